"""Forecasters that are trained on the worlds of a scenario: ridge regression, and the LSTM."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.oserve import lstm
from llmgym.baselines.oserve.forecast import WINDOW, Floats, Forecaster, Ridge, fit_ridge
from llmgym.core.lanes import Lanes
from llmgym.core.store import Store, key
from llmgym.envs.oserve.env import OServe

FORECASTS = Store("forecasts", "oserve", most=16)
_TRAIN_SEED = 3_000_000_000
_TRAIN_COUNTS = 8000


def training_counts(simulation: OServe) -> list[NDArray[np.float64]]:
    """Counts of worlds of a scenario that are kept for training, a list for each type of series [window + epochs].

    Each begins with its first count repeated, as a forecast at the beginning of an episode sees it. The worlds come from
    seeds of their own, beyond those of comparisons.
    """
    epochs = simulation.scenario.epochs
    episodes = max(2, min(200, -(-_TRAIN_COUNTS // epochs)))
    lanes = Lanes(simulation, 1)
    series: list[list[Floats]] = [[] for _ in range(simulation.requests.types)]
    for k in range(episodes):
        lanes.reset(None, [_TRAIN_SEED + k])
        counts = simulation.rates(lanes.state, 0) * simulation.scenario.epoch_s
        for of_type, worlds in zip(counts.T, series, strict=True):
            worlds.append(np.concatenate([np.full(WINDOW, of_type[0]), of_type]))
    return [np.array(worlds) for worlds in series]


def forecaster(simulation: OServe, name: str) -> list[Forecaster]:
    """Forecasters for the types of a scenario, trained on `training_counts` and kept, in memory and on disk.

    Args:
        simulation: the environment whose worlds are to be forecast.
        name: `"ridge"` or `"lstm"`.

    Returns:
        One for each type of request.

    Raises:
        ImportError: an LSTM needs torch.
    """
    inputs = {"settings": simulation.settings(), "run": [_TRAIN_SEED, _TRAIN_COUNTS, WINDOW]}
    worlds = (training_counts, OServe.rates, simulation.kernels.reset_lane)
    if name == "ridge":
        arrays = FORECASTS.get(key(inputs, (*worlds, fit_ridge)), lambda: _fit_ridges(simulation))
        pairs = zip(arrays["coefficients"], arrays["offset"].tolist(), strict=True)
        return [Ridge(coefficients, offset) for coefficients, offset in pairs]
    arrays = FORECASTS.get(key(inputs, (*worlds, lstm.fit)), lambda: _fit_networks(simulation))
    return [*lstm.unpacked(arrays)]


def _fit_ridges(simulation: OServe) -> dict[str, NDArray[Any]]:
    fitted = [fit_ridge(list(series)) for series in training_counts(simulation)]
    return {
        "coefficients": np.array([ridge.coefficients for ridge in fitted]),
        "offset": np.array([ridge.offset for ridge in fitted]),
    }


def _fit_networks(simulation: OServe) -> dict[str, NDArray[Any]]:
    counts = training_counts(simulation)
    return lstm.packed([lstm.fit(list(series), seed=j) for j, series in enumerate(counts)])
