"""Tuning a paper's rule before it is compared: the best of the values its paper tries, on worlds kept apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from llmgym import baselines
from llmgym.core.checks import whole
from llmgym.evaluation.backends import HERE, Backend
from llmgym.evaluation.contenders import check_id, resolve
from llmgym.evaluation.paired import fitting
from llmgym.evaluation.progress import Bar
from llmgym.evaluation.rollout import run_all

TUNING_SEEDS = 2_000_000_000
"""Rules are tuned on seeds from here on: neither those of comparisons (below) nor those of training (from 2**32 on)."""


def tuned(
    env_id: str,
    names: Sequence[str] | None = None,
    *,
    episodes: int = 30,
    seed: int = 10_000,
    progress: bool = True,
    backend: Backend = HERE,
    **env_kwargs: Any,
) -> list[str]:
    """Replace every baseline that has a grid by the variant of it with the best mean return.

    Args:
        env_id: registered id.
        names: baselines and learned policies; None for all baselines and shipped policies that fit the environment.
        episodes: worlds each variant is tried on.
        seed: of the comparison to come; the tuning worlds start at `TUNING_SEEDS + seed`.
        progress: a bar on stderr, if that is a terminal, and what was chosen.
        backend: where episodes are played.
        **env_kwargs: arguments of the environment.

    Returns:
        The names, with variants such as `"vllm:watermark=0.05"` in place of the tuned ones.
    """
    whole("episodes", episodes)
    if names is None:
        names = [contender.label for contender in fitting(env_id, env_kwargs)]
    grids = {name: baselines.grid(env_id, name) for name in names}
    variants = [variant for grid in grids.values() for variant in grid]
    contenders = [resolve(check_id(env_id), variant) for variant in variants]
    with Bar(len(variants), episodes, shown=progress) as bar:
        played = run_all(env_id, contenders, episodes, TUNING_SEEDS + seed, env_kwargs, bar, backend)
    means = {variant: float(np.mean(table.returns)) for variant, table in zip(variants, played, strict=True)}
    chosen = []
    console = Console(stderr=True)
    for name in names:
        grid = grids[name]
        chosen.append(grid[int(np.argmax([means[variant] for variant in grid]))] if grid else name)
        if grid and progress:
            console.print(f"tuned over {len(grid)} values: {chosen[-1]}", highlight=False)
    return chosen
