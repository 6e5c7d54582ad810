"""What rules for Forage read of an observation: the rows of keys and of candidates, by name."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.layout import Layout
from llmgym.envs.forage.state import KEY_COLUMNS, KEYS, SLOT_COLUMNS, SLOTS, TERMS

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Seen(NamedTuple):
    """An observation of several lanes in parts; first axis = lane.

    Attributes:
        exists: the question needs this fact, [lanes, 4].
        known: it is known what to look for, [lanes, 4].
        held: E has a claim, [lanes, 4].
        pending: a claim was read and not written, [lanes, 4].
        agrees: it is the one that E has, [lanes, 4].
        differs: it is another one, [lanes, 4].
        sources: how many sources of the claim in E were written, [lanes, 4].
        authority: of the pending claim's source, standard deviations, [lanes, 4].
        terms: used, [lanes, 4].
        reported: by the last evaluation, [lanes, 4].
        focus: key in focus, [lanes].
        chain: whether the question is a chain, [lanes].
        there: which candidates there are, [lanes, 16].
        scanned: which of them were scanned, [lanes, 16].
        posterior: how likely each is right, [lanes, 16].
        sufficient: the last evaluation found no gap, [lanes].
        evaluated: there was one, [lanes].
    """

    exists: Bools
    known: Bools
    held: Bools
    pending: Bools
    agrees: Bools
    differs: Bools
    sources: Floats
    authority: Floats
    terms: Ints
    reported: Bools
    focus: Ints
    chain: Bools
    there: Bools
    scanned: Bools
    posterior: Floats
    sufficient: Bools
    evaluated: Bools


def seen(layout: Layout, obs: NDArray[np.float32]) -> Seen:
    """The parts of observations, float32 [lanes, size]."""
    key = obs[:, layout["key"]].reshape(-1, KEYS, KEY_COLUMNS).astype(np.float64)
    slot = obs[:, layout["slot"]].reshape(-1, SLOTS, SLOT_COLUMNS).astype(np.float64)
    verdict = obs[:, layout["verdict"]]
    share = np.minimum(key[..., 6], 0.999)
    return Seen(
        exists=key[..., 0] > 0.5,
        known=key[..., 1] > 0.5,
        held=key[..., 2] > 0.5,
        pending=key[..., 3] > 0.5,
        agrees=key[..., 4] > 0.5,
        differs=key[..., 5] > 0.5,
        sources=np.round(share / (1.0 - share)),
        authority=4.0 * key[..., 7],
        terms=np.round(TERMS * key[..., 8]).astype(np.int64),
        reported=key[..., 10] > 0.5,
        focus=key[..., 11].argmax(axis=1),
        chain=obs[:, layout["chain"].start] > 0.5,
        there=slot[..., 0] > 0.5,
        scanned=slot[..., 2] > 0.5,
        posterior=slot[..., 4],
        sufficient=verdict[:, 1] > 0.5,
        evaluated=verdict[:, 0] < 0.5,
    )


def first(which: Bools) -> Ints:
    """Number of the first True in each row of [lanes, n]; n where there is none."""
    return np.where(which.any(axis=1), which.argmax(axis=1), which.shape[1])
