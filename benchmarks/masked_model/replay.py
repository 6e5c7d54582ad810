"""Rules that reveal blocks with the model itself at every call, to compare with what the tables say of the same blocks.

The sets are those of the paper (Luxembourg, Permuter and Nachmani, 2026, arXiv 2506.19037): the dilated schedule, rivals with as
many calls, EB with a budget of 1 bit, one position a call, and all at once.
"""

import math
from typing import Any

import numpy as np
import torch
from draft_pair.models import Decoder
from numpy.typing import NDArray
from torch import Tensor

from llmgym.envs.unmask.schedule import dus_levels, level_of
from masked_model.ask import ENTROPY, LOG_TOP, LOG_TRUE, Said, ask
from masked_model.models import MaskedModel, Plan
from masked_model.scorer import Written, rise

RULES = ("one", "eb", "dus", "random-rising", "random-fixed", "confidence", "left-to-right", "all")
BUDGET_BITS = 1.0
Flags = NDArray[np.bool_]


def chosen(rule: str, said: Said, known: Flags, call: int, order: NDArray[np.float64]) -> Flags:
    """The positions that a rule reveals, bool [blocks, block].

    Args:
        rule: one of `RULES`.
        said: what the model says of the blocks.
        known: what is known already, bool [blocks, block].
        call: number of the call in the blocks.
        order: a random number for each position, [blocks, block].
    """
    block = known.shape[1]
    levels = dus_levels(block)
    rising = [len(level) for level in levels]
    equal = [block // len(levels) + (i < block % len(levels)) for i in range(len(levels))]
    confidence = said.values[..., LOG_TOP].astype(np.float64)
    places = np.broadcast_to(np.arange(block, dtype=np.float64), known.shape)
    if rule == "eb":
        score = -said.values[..., ENTROPY].astype(np.float64)
        sums = np.cumsum(np.sort(np.where(known, np.inf, -score), axis=1), axis=1) / math.log(2.0)
        before = np.concatenate([np.zeros((len(known), 1)), sums[:, :-1]], axis=1)
        count = (before <= BUDGET_BITS).sum(axis=1)
    else:
        score, counts = {
            "one": (confidence, [1] * block),
            "dus": (-level_of(levels)[None].repeat(len(known), 0).astype(np.float64), rising),
            "random-rising": (order, rising),
            "random-fixed": (order, equal),
            "confidence": (confidence, equal),
            "left-to-right": (-places, equal),
            "all": (confidence, [block]),
        }[rule]
        count = np.full(len(known), counts[call])
    rank = np.where(known, np.inf, -score).argsort(axis=1, kind="stable").argsort(axis=1)
    return (rank < count[:, None]) & ~known


def reveal(
    model: MaskedModel, scorer: Decoder, text: Tensor, rule: str, plan: Plan, forced: bool
) -> dict[str, NDArray[np.float64]]:
    """Fill blocks by a rule.

    Args:
        model: asked at every call.
        scorer: judges what was written.
        text: the true texts, [blocks, prompt + block + after].
        rule: one of `RULES`.
        plan: says how long the parts are.
        forced: whether the true token is revealed and only noted what would have been written; otherwise the likeliest one stays.

    Returns:
        By block: `calls`; `gap_nats`, what drawing each call's tokens apart loses by the model's own chain rule (0 where not
        forced); `accuracy`, the share of right tokens; `scorer_nats`, the rise of the judge's nats with all that was written.
    """
    shown, truth = text.clone(), text[:, plan.prompt : plan.prompt + plan.block]
    known = np.zeros(truth.shape, bool)
    order = np.random.default_rng(2).random(known.shape)
    written = torch.zeros_like(truth)
    calls, gap = np.zeros(len(text)), np.zeros(len(text))
    call = 0
    while not known.all():
        said = ask(model, shown, torch.from_numpy(known).to(text.device), plan)
        some = chosen(rule, said, known, call, order)
        calls += some.any(axis=1)
        picked = torch.from_numpy(some).to(text.device)
        written = torch.where(picked, torch.from_numpy(said.best).to(text.device), written)
        if forced:
            gap -= (said.values[..., LOG_TRUE] * some).sum(axis=1)
            for i in range(plan.block):
                (here,) = np.nonzero(some[:, i])
                if len(here):
                    now = torch.from_numpy(known[here]).to(text.device)
                    gap[here] += ask(model, text[here], now, plan).values[:, i, LOG_TRUE]
                    known[here, i] = True
        else:
            known |= some
            shown[:, plan.prompt : plan.prompt + plan.block] = written
        call += 1
    of = torch.arange(len(text), device=text.device)
    return {
        "calls": calls,
        "gap_nats": gap,
        "accuracy": (written == truth).float().mean(dim=1).cpu().numpy(),
        "scorer_nats": rise(scorer, text, Written(of, written), plan),
    }


def replays(model: MaskedModel, scorer: Decoder, text: Tensor, plan: Plan) -> dict[str, Any]:
    """Every rule on these blocks, with true tokens and with the model's own: means of a block and their standard errors."""
    told: dict[str, Any] = {}
    for forced in (True, False):
        rules = {rule: reveal(model, scorer, text, rule, plan, forced) for rule in RULES}
        told["true tokens" if forced else "own tokens"] = {
            rule: {
                name: [round(float(x.mean()), 4), round(float(x.std(ddof=1) / math.sqrt(len(x))), 4)]
                for name, x in found.items()
                if forced or name != "gap_nats"
            }
            for rule, found in rules.items()
        }
    return told
