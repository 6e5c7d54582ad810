"""Tuning a paper's rule before it is compared: the best of the values its paper tries, on worlds kept apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from llmgym import baselines
from llmgym.evaluation.paired import fitting
from llmgym.evaluation.rollout import run_episodes

TUNING_SEEDS = 2_000_000_000
"""Rules are tuned on seeds from here on: neither those of comparisons (below) nor those of training (from 2**32 on)."""


def tuned(
    env_id: str,
    names: Sequence[str] | None = None,
    *,
    episodes: int = 30,
    seed: int = 10_000,
    progress: bool = True,
    **env_kwargs: Any,
) -> list[str]:
    """Replace every baseline that has a grid by the variant of it with the best mean return.

    Args:
        env_id: registered id.
        names: baselines and learned policies; None for all baselines and shipped policies that fit the environment.
        episodes: worlds each variant is tried on.
        seed: of the comparison to come; the tuning worlds start at `TUNING_SEEDS + seed`.
        progress: say on stderr what was chosen.
        **env_kwargs: arguments of the environment.

    Returns:
        The names, with variants such as `"vllm:watermark=0.05"` in place of the tuned ones.
    """
    if names is None:
        names = [contender.label for contender in fitting(env_id, env_kwargs)]
    chosen = []
    console = Console(stderr=True)
    for name in names:
        grid = baselines.grid(env_id, name)
        if not grid:
            chosen.append(name)
            continue
        means = [
            float(np.mean(run_episodes(env_id, variant, episodes, TUNING_SEEDS + seed, env_kwargs).returns))
            for variant in grid
        ]
        chosen.append(grid[int(np.argmax(means))])
        if progress:
            console.print(f"tuned over {len(grid)} values: {chosen[-1]}", highlight=False)
    return chosen
