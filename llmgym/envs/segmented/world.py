"""What arrives in an episode of SegmentedPrefill: times, prompts, outputs, classes and limits."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from llmgym import workloads
from llmgym.core.jit import kernel
from llmgym.core.rng import exponential, substream, uniform
from llmgym.envs.segmented.modes import rest_time_s
from llmgym.envs.segmented.scenarios import Scenario
from llmgym.envs.segmented.state import Params, Request, State

QUANTILES = 1025
"""Knots of a table of lengths, evenly spaced in probability."""
SAMPLE = 20_000
"""Requests of a named workload that its quantiles are taken of."""
GAPS, PROMPTS, OUTPUTS, CLASSES = 0, 1, 2, 3
"""Sub-streams of the key of an episode."""
NEW = Request.blank


def lengths(chosen: Scenario) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Prompts and outputs at evenly spaced probabilities.

    Args:
        chosen: the settings.

    Returns:
        Tokens of prompts and of outputs, float64 [QUANTILES] each, within the limits of the settings.

    Raises:
        UnknownName: there is no such workload.
    """
    u = np.linspace(0.0, 1.0, QUANTILES)
    if chosen.workload is not None:
        requests = workloads.workload_of("workload", chosen.workload).sample(np.random.default_rng(0), SAMPLE)
        prompts = np.quantile(requests.prompt_tokens, u)
        outputs = np.quantile(requests.output_tokens, u)
    else:
        z = ndtri(np.clip(u, 1e-9, 1.0 - 1e-9))
        prompts = chosen.prompt_median * np.exp(chosen.prompt_sigma * z)
        # a geometric length is the exponential one rounded up
        rate = -np.log1p(-1.0 / chosen.output_mean) if chosen.output_mean > 1.0 else np.inf
        outputs = np.ceil(-np.log1p(-np.minimum(u, 1.0 - 1e-9)) / rate)
    return (
        np.clip(np.rint(prompts), chosen.prompt_least, chosen.prompt_most),
        np.clip(np.rint(outputs), 1, chosen.output_most),
    )


@kernel(inline=True)
def length(table: NDArray[np.float64], u: float) -> int:
    """Tokens at probability `u` of a table of lengths."""
    place = u * (table.shape[0] - 1)
    low = min(int(place), table.shape[0] - 2)
    return int(table[low] + (place - low) * (table[low + 1] - table[low]) + 0.5)


@kernel
def draw(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw all requests of an episode; the first one arrives at time 0.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that gets the requests.
        key: seeds everything that is drawn in the episode.
    """
    config = params.config[0]
    arrival_s = 0.0
    for n in range(config.requests):
        if n > 0:
            arrival_s += exponential(substream(key, GAPS), n) / config.rate_rps
        state.request[lane, n] = NEW[0]
        request = state.request[lane, n]
        request.arrival_s = arrival_s
        request.prompt = length(params.prompts, uniform(substream(key, PROMPTS), n))
        request.output = length(params.outputs, uniform(substream(key, OUTPUTS), n))
        u = uniform(substream(key, CLASSES), n)
        group = 0
        while group < config.classes - 1 and u >= params.classes[group, 0]:
            group += 1
        request.group = group
        request.quality = params.classes[group, 1]
        alone_s = rest_time_s(params.modes[config.paper], request.prompt, 0)
        request.limit_s = config.limit_s + params.classes[group, 2] * alone_s
        state.lane[lane].checksum += arrival_s + request.prompt + request.output + group
