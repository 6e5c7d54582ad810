"""Measured text in a lane: what the model would say when several positions of a block are known, from what it said with one.

See `llmgym.envs.unmask.tables` for the table. The true tokens are revealed: nothing is drawn but which blocks a text has.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.envs.unmask.state import Params, State
from llmgym.envs.unmask.tables import ENTROPY, LOG_TOP, LOG_TRUE, MARGIN


@kernel
def estimate(
    table: NDArray[np.float32], quantity: int, share: float, masked: NDArray[np.int8], i: int
) -> float:
    """A quantity of a masked position, given the positions that are known: the strongest effect, and a share of the others.

    Args:
        table: of the block, float32 [1 + block, block, 4].
        quantity: index into `llmgym.envs.unmask.tables.QUANTITIES`.
        share: of the weaker effects.
        masked: 1 where a position is masked, int8 [block].
        i: the position.

    Returns:
        A log-probability or an entropy, nats, or a margin, by `quantity`; not cut to what is possible.
    """
    base, strongest, total = table[0, i, quantity], 0.0, 0.0
    for j in range(masked.shape[0]):
        if masked[j] == 0 and j != i:
            effect = table[1 + j, i, quantity] - base
            total += effect
            if abs(effect) > abs(strongest):
                strongest = effect
    return base + strongest + share * (total - strongest)


@kernel
def log_true(state: State, params: Params, lane: int, i: int) -> float:
    """Ln of the probability of the true token of a position, given those that are known, nats.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is asked about.
        i: the position in the block, which is masked.

    Returns:
        Nats, at most 0.
    """
    table = params.measured[state.lane[lane].excerpt]
    return min(estimate(table, LOG_TRUE, params.shares[LOG_TRUE], state.masked[lane], i), 0.0)


@kernel
def telling_row(table: NDArray[np.float32], masked: NDArray[np.int8], i: int) -> int:
    """The row of the known position that tells most of the true token of a position; 0 where nothing is known.

    Args:
        table: of the block, float32 [1 + block, block, 4].
        masked: 1 where a position is masked, int8 [block].
        i: the position.

    Returns:
        A row of `table`: 1 + the known position, or 0.
    """
    best, row = 0.0, 0
    for j in range(masked.shape[0]):
        gain = table[1 + j, i, LOG_TRUE] - table[0, i, LOG_TRUE]
        if masked[j] == 0 and abs(gain) > best:
            best, row = abs(gain), 1 + j
    return row


@kernel
def damage_of_chosen(state: State, params: Params, lane: int) -> float:
    """Nats that another model finds the text less likely with the likeliest tokens of the chosen positions, each alone.

    Args:
        state: arrays of all lanes.
        params: what all lanes share.
        lane: the lane that is asked about.

    Returns:
        Nats, summed over the chosen positions.
    """
    excerpt, masked, chosen = state.lane[lane].excerpt, state.masked[lane], state.chosen[lane]
    total = 0.0
    for i in range(masked.shape[0]):
        if chosen[i] != 0:
            total += params.measured_damage[excerpt, telling_row(params.measured[excerpt], masked, i), i]
    return total


@kernel
def denoise_excerpt(state: State, params: Params, lane: int) -> None:
    """Write what the model says of all positions of the block, given those that are known.

    Args:
        state: arrays of all lanes; `position` is written to.
        params: what all lanes share.
        lane: the lane that asks the model.
    """
    episode, masked = state.lane[lane], state.masked[lane]
    table, right = params.measured[episode.excerpt], params.measured_right[episode.excerpt]
    most = math.log(params.config[0].vocabulary)
    for i in range(masked.shape[0]):
        position = state.position[lane, i]
        if masked[i] == 0:
            position.confidence, position.margin, position.entropy, position.fall = 1.0, 1.0, 0.0, 0.0
            continue
        top = min(estimate(table, LOG_TOP, params.shares[LOG_TOP], masked, i), 0.0)
        entropy = min(max(estimate(table, ENTROPY, params.shares[ENTROPY], masked, i), 0.0), most)
        margin = estimate(table, MARGIN, params.shares[MARGIN], masked, i)
        position.fall = position.entropy - entropy
        position.confidence, position.entropy = math.exp(top), entropy
        position.margin = min(max(margin, 0.0), position.confidence)
        position.log_drawn = log_true(state, params, lane, i)
        position.drawn = 0
        # as right as it was when only that was known which tells most of it
        position.right = right[telling_row(table, masked, i), i]
