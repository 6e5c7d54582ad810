"""A judge: by how much less likely an autoregressive model finds a text once tokens of it are others.

The judge is another model than the one that is measured, reads from left to right only, and is trained by
`draft_pair.models.train`, as the target model of `draft_target.py` is.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from draft_pair.models import Decoder
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from masked_model.models import Plan

BATCH = 768
"""Texts that are judged at once."""
SIZES = ((2, 2), (3, 4), (5, 8), (9, 64))
"""Groups of sets of wrong tokens by their number, for `additivity`."""
Floats = NDArray[np.float32]


class Written(NamedTuple):
    """Blocks as they might have been written.

    Attributes:
        of: which text each is a block of, int64 [written].
        block: its tokens, int64 [written, block].
    """

    of: Tensor
    block: Tensor


@torch.no_grad()
def nats(scorer: Decoder, text: Tensor, written: Written, plan: Plan) -> NDArray[np.float64]:
    """Nats of blocks, after the true prompt and with the true tokens that follow, float64 [written].

    Args:
        scorer: the judge.
        text: the true texts, [texts, prompt + block + after].
        written: the blocks, those of one text side by side.
        plan: says how long the parts are.
    """
    found = []
    for of, block in zip(written.of.split(BATCH), written.block.split(BATCH), strict=True):
        texts, back = of.unique_consecutive(return_inverse=True)
        logits, cache = scorer(text[texts, : plan.prompt])
        tail = torch.cat([block, text[of, plan.prompt + plan.block :]], dim=1)
        later, _ = scorer(tail, [(k[back], v[back]) for k, v in cache])
        laws = torch.cat([logits[back, -1:], later[:, :-1]], dim=1).float()
        each = functional.cross_entropy(laws.transpose(1, 2), tail, reduction="none")
        found.append(each.double().sum(dim=1).cpu().numpy())
    return np.concatenate(found)


def rise(scorer: Decoder, text: Tensor, written: Written, plan: Plan) -> NDArray[np.float64]:
    """By how many nats blocks are less likely than the true ones, float64 [written]; see `nats`."""
    true = text[:, plan.prompt : plan.prompt + plan.block]
    base = nats(scorer, text, Written(torch.arange(len(text), device=text.device), true), plan)
    return nats(scorer, text, written, plan) - base[written.of.cpu().numpy()]


def damages(
    scorer: Decoder, text: Tensor, best: NDArray[np.int64], right: NDArray[np.bool_], plan: Plan
) -> Floats:
    """The rise of nats with the likeliest token of one position in the place of the true one; 0 where it is the true one.

    Args:
        scorer: the judge.
        text: the true texts, [texts, prompt + block + after].
        best: the likeliest token in each row (nothing known, or one position), int64 [texts, rows, block].
        right: whether it is the true one, likewise.
        plan: says how long the parts are.

    Returns:
        Nats, float32 [texts, rows, block].
    """
    n, _, i = np.nonzero(~right)
    # The same token is often the likeliest in many rows.
    cases, back = np.unique(np.stack([n, i, best[~right]]), axis=1, return_inverse=True)
    of, place, token = torch.from_numpy(cases).to(text.device)
    block = text[of, plan.prompt : plan.prompt + plan.block]
    block[torch.arange(len(of), device=of.device), place] = token
    out = np.zeros(best.shape, np.float32)
    out[~right] = rise(scorer, text, Written(of, block), plan)[back.ravel()]
    return out


def additivity(
    scorer: Decoder,
    text: Tensor,
    best: NDArray[np.int64],
    right: NDArray[np.bool_],
    damage: Floats,
    plan: Plan,
) -> list[dict[str, Any]]:
    """Several wrong tokens at once in a block, with nothing known, against the sum of what each does alone.

    Args:
        scorer: the judge.
        text: the true texts, [texts, prompt + block + after].
        best: the likeliest tokens with nothing known, int64 [texts, block].
        right: which are the true ones, bool [texts, block].
        damage: what each does alone, nats, float32 [texts, block].
        plan: says how long the parts are and how many sets are drawn of each text.

    Returns:
        By number of wrong tokens: sets, means of both, root mean square difference, correlation.
    """
    rng = np.random.default_rng(1)
    sets = []
    for _ in range(plan.sets):
        order = np.where(right, 2.0, rng.random(right.shape)).argsort(axis=1).argsort(axis=1)
        most = (~right).sum(axis=1)
        sets.append((order < rng.integers(2, np.maximum(most, 2) + 1)[:, None]) & ~right)
    wrong = np.stack(sets, axis=1).reshape(-1, right.shape[1])
    of = np.repeat(np.arange(len(text)), plan.sets)
    some = wrong.sum(axis=1) >= SIZES[0][0]
    wrong, of = wrong[some], of[some]
    index = torch.from_numpy(of).to(text.device)
    true = text[index, plan.prompt : plan.prompt + plan.block]
    swapped = torch.from_numpy(wrong).to(text.device)
    block = torch.where(swapped, torch.from_numpy(best[of]).to(text.device), true)
    real = rise(scorer, text, Written(index, block), plan)
    added, count = (damage[of] * wrong).sum(axis=1), wrong.sum(axis=1)
    rows: list[dict[str, Any]] = []
    for low, high in SIZES:
        here = (count >= low) & (count <= high)
        if here.sum() > 1:
            a, b = added[here], real[here]
            rows.append(
                {
                    "wrong_tokens": [low, high],
                    "sets": int(here.sum()),
                    "sum_mean": round(float(a.mean()), 4),
                    "at_once_mean": round(float(b.mean()), 4),
                    "rms_difference": round(float(np.sqrt(((a - b) ** 2).mean())), 4),
                    "correlation": round(float(np.corrcoef(a, b)[0, 1]), 4),
                }
            )
    return rows
