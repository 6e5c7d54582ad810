"""Forecasters that are trained on the worlds of a scenario: ridge regression, and the LSTM, which is kept on disk."""

import functools
import hashlib
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.oserve import lstm
from llmgym.baselines.oserve.forecast import WINDOW, Floats, Forecaster, fit_ridge
from llmgym.core.jit import cache_dir, fingerprint
from llmgym.core.lanes import Lanes
from llmgym.envs.oserve.env import OServe

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
    """Forecasters for the types of a scenario: "ridge" or "lstm", trained on `training_counts`; the LSTM is kept on disk.

    Raises:
        ImportError: an LSTM needs torch.
    """
    key = hashlib.sha256(
        json.dumps(
            [name, simulation.settings(), fingerprint("llmgym.envs.oserve.env"), fingerprint(__name__)]
        ).encode()
    ).hexdigest()
    return _trained(key, _Box(simulation, name))


@dataclass(frozen=True, eq=False)
class _Box:
    """Hides the simulation from the memory of `_trained`, whose key says all there is to say."""

    simulation: Any
    name: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Box)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=16)
def _trained(key: str, box: _Box) -> list[Forecaster]:
    if box.name == "ridge":
        return [fit_ridge(list(series)) for series in training_counts(box.simulation)]
    path = cache_dir().parent / "forecasts" / f"oserve-{key[:32]}.npz"
    made = lstm.read(path)
    if made is None:
        made = [lstm.fit(list(series), seed=j) for j, series in enumerate(training_counts(box.simulation))]
        _write(path, lstm.packed(made))
    return list(made)


def _write(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Store weights; a folder that cannot be written to only costs the time to train again."""
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
