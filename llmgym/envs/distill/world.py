"""What DistillProgramme draws: students, deadlines, floors, luck, the days of the grid, new versions of the teacher."""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.rng import exponential, gamma, integer, normal, substream, uniform
from llmgym.envs.distill.grid import draw_days
from llmgym.envs.distill.published import SFT
from llmgym.envs.distill.state import ARTEFACTS, Artefact, Config, Episode, Params, State, Student

SHARES, GAPS, SIZES, DATASETS, SLACKS, FLOORS, VALUES, STRETCHES, LUCKS, DAYS, CHANGES, MADE = range(12)
"""Sub-streams of the key of an episode."""
EMPTY, NEW, NONE = Episode.blank, Student.blank, Artefact.blank


@kernel(inline=True)
def _drawn(shares: NDArray[np.float64], u: float) -> int:
    """The first index whose running share is above `u`."""
    total = 0.0
    for k in range(shares.shape[0] - 1):
        total += shares[k]
        if u < total:
            return k
    return shares.shape[0] - 1


@kernel
def draw_students(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw all students of an episode, and how many there are.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that gets them.
        key: of the episode.
    """
    episode, config = state.lane[lane], params.config[0]
    weights_key, total = substream(key, SHARES), 0.0
    for d in range(config.datasets):
        total += gamma(weights_key, d, config.concentration)
    episode.students = 0
    episode.checksum = 0.0
    clock_h = 0.0
    for i in range(config.capacity):
        if i >= config.known:
            if config.per_day <= 0.0:
                break
            clock_h += 24.0 * exponential(substream(key, GAPS), i) / config.per_day
            if clock_h > config.orders_h:
                break
        state.student[lane, i] = NEW[0]
        student = state.student[lane, i]
        student.arrival_h = clock_h
        size = _drawn(params.size_share, uniform(substream(key, SIZES), i))
        student.size = size
        left = total * uniform(substream(key, DATASETS), i)
        while student.dataset < config.datasets - 1:
            left -= gamma(weights_key, student.dataset, config.concentration)
            if left < 0.0:
                break
            student.dataset += 1
        spare = config.slack_high_h - config.slack_low_h
        slack_h = config.slack_low_h + spare * uniform(substream(key, SLACKS), i)
        needs_h = config.prepare_h + params.train_h[SFT, size, 0] + params.evaluate_h[size, 0]
        student.deadline_h = min(clock_h + needs_h + slack_h, config.horizon_h)
        gap = config.gap_low + (config.gap_high - config.gap_low) * uniform(substream(key, FLOORS), i)
        student.floor = config.floor if config.floor >= 0.0 else max(params.quality[SFT, size] - gap, 0.0)
        spread = config.value_spread * (2.0 * uniform(substream(key, VALUES), i) - 1.0)
        student.value = config.value * (size + 1.0) * (1.0 + spread)
        student.stretch = math.exp(config.noise * normal(substream(key, STRETCHES), i))
        student.luck = normal(substream(key, LUCKS), i)
        episode.students += 1
        episode.checksum += student.arrival_h + student.deadline_h + student.value + student.stretch
    for i in range(episode.students, config.capacity):
        state.student[lane, i] = NEW[0]


@kernel(inline=True)
def next_change_h(config: Config, key: np.uint64, number: int, after_h: float) -> float:
    """Time of the teacher's next version after a time, hours; infinite where there is none.

    Args:
        config: the settings.
        key: of the episode.
        number: new versions that have come before it.
        after_h: when the last of them came, 0 before the first, hours.

    Returns:
        Hours since midnight of the first day.
    """
    if config.teacher_per_day <= 0.0:
        return math.inf
    return after_h + 24.0 * exponential(substream(key, CHANGES), number) / config.teacher_per_day


@kernel(inline=True)
def made_stretch(config: Config, key: np.uint64, number: int) -> float:
    """True time and energy of making an artefact, over the expected.

    Args:
        config: the settings.
        key: of the episode.
        number: artefacts that were begun before.

    Returns:
        A factor, whose logarithm has mean 0.
    """
    return math.exp(config.noise * normal(substream(key, MADE), number))


@kernel
def reset_world(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw the world of an episode at time 0, with nothing on the GPUs and no artefact.

    Args:
        state: arrays of all lanes, written to.
        params: what all lanes share.
        lane: the lane that begins anew.
        key: seeds everything that is drawn in the episode.
    """
    state.lane[lane] = EMPTY[0]
    episode, config = state.lane[lane], params.config[0]
    episode.key = key
    episode.month = config.month if config.month >= 0 else integer(substream(key, DAYS), 1 << 40, 0, 11)
    draw_students(state, params, lane, key)
    draw_days(substream(key, DAYS), config.day_spread, 0, 0.0, state.day[lane])
    episode.change_h = next_change_h(config, key, 0, 0.0)
    for a in range(ARTEFACTS):
        state.artefact[lane, a] = NONE[0]
    for gpu in range(config.gpus):
        state.running[lane, gpu] = -1
