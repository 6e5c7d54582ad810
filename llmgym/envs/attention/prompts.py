"""How long prompts are, and what a mean batch of them is."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from llmgym import workloads
from llmgym.core.jit import kernel
from llmgym.envs.attention.costs import first_choice
from llmgym.envs.attention.kernels import length_of, most_requests
from llmgym.envs.attention.scenarios import MIXTURE, Scenario
from llmgym.envs.attention.state import Params

KNOTS = 4097
"""Lengths in the table of them, at even probabilities."""
NODES = 1024
"""Lengths that a mean is taken over."""


def quantiles(scenario: Scenario) -> NDArray[np.float64]:
    """Lengths of prompts at even probabilities from 0 to 1, tokens, float64 [KNOTS]; the cut is not applied yet.

    Raises:
        UnknownName: no such workload.
        InvalidArgument: `lengths` is neither a name nor a workload.
    """
    if isinstance(scenario.lengths, str) and scenario.lengths == MIXTURE:
        return _mixture(scenario)
    source = workloads.workload_of("lengths", scenario.lengths)
    if source.conversations is not None:
        turns = source.sample(np.random.default_rng(0), KNOTS, information="none").prompt_tokens
        return np.quantile(turns, np.linspace(0.0, 1.0, KNOTS)).astype(np.float64)
    shares = np.mean([np.array(phase.weights) / sum(phase.weights) for phase in source.phases], axis=0)
    middle = (np.arange(KNOTS) + 0.5) / KNOTS
    values, weights = [], []
    for share, one in zip(shares, source.classes, strict=True):
        if one.prompt is not None:
            tokens = one.prompt.quantile(middle).astype(np.float64)
        else:
            assert one.rows is not None  # a class has one of the two
            tokens = np.sort(one.rows.prompt_tokens.astype(np.float64))
        values.append(tokens)
        weights.append(np.full(len(tokens), share / len(tokens)))
    value, weight = np.concatenate(values), np.concatenate(weights)
    order = np.argsort(value, kind="stable")
    running = np.cumsum(weight[order]) - 0.5 * weight[order]
    return np.interp(np.linspace(0.0, 1.0, KNOTS), running, value[order])


def _mixture(scenario: Scenario) -> NDArray[np.float64]:
    """The lengths of short (log-normal) and long (even) prompts."""
    low, high = scenario.long_tokens
    top = max(high, float(scenario.longest))
    tokens = np.unique(np.concatenate([np.geomspace(1.0, top, 20_000), np.linspace(low, high, 2000)]))
    spread = max(scenario.short_sigma, 1e-6)
    short = norm.cdf(np.log(tokens / scenario.short_median) / spread)
    long = np.clip((tokens - low) / max(high - low, 1e-9), 0.0, 1.0)
    share = scenario.short_share * short + (1.0 - scenario.short_share) * long
    rising = np.maximum.accumulate(share + 1e-12 * np.arange(len(share)))
    return np.interp(np.linspace(0.0, 1.0, KNOTS), rising, tokens)


@kernel
def mean_batch(params: Params, free_bytes: float) -> tuple[float, float, float, int]:
    """What a batch is on average, served at the least loss.

    Args:
        params: what all lanes share; of its settings those of batches and layers are read.
        free_bytes: memory beside the checkpoints.

    Returns:
        Seconds, tokens, joules; and 0, or the length of a batch that nothing can serve, in tokens.
    """
    config = params.config[0]
    total_s, total_tokens, total_j = 0.0, 0.0, 0.0
    for node in range(NODES + 1):
        # the last one is the longest, which is in no mean
        u = (node + 0.5) / NODES if node < NODES else 1.0
        length = length_of(params.quantiles, config.longest, u)
        most = most_requests(config, length)
        weight = 1.0 / (NODES * most) if node < NODES else 0.0
        for requests in range(1, most + 1):
            action, seconds = first_choice(
                params.tables, params.splits, length, requests, config.layers, free_bytes
            )
            if action < 0:
                return 0.0, 0.0, 0.0, length
            power_w = params.tables.kernels[action // params.splits.shape[0]].power_w
            total_s += weight * seconds
            total_tokens += weight * length * requests
            total_j += weight * seconds * power_w
    return total_s, total_tokens, total_j, 0
