"""What a masked-diffusion model says of blocks of which some positions are known."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from masked_model.models import MaskedModel, Plan

QUANTITIES = ("log_true", "log_top", "entropy", "margin")
LOG_TRUE, LOG_TOP, ENTROPY, MARGIN = range(len(QUANTITIES))
BATCH = 256
"""Blocks that the model is asked about at once."""
Floats = NDArray[np.float32]


class Said(NamedTuple):
    """What the model says of blocks.

    Attributes:
        values: the `QUANTITIES`, float32 [..., block, 4]; of a position that is known 0, 0, 0, 1.
        right: whether the likeliest token is the true one, bool [..., block]; of a position that is known it is.
        best: the likeliest token, int64 [..., block].
    """

    values: Floats
    right: NDArray[np.bool_]
    best: NDArray[np.int64]


@torch.no_grad()
def ask(model: MaskedModel, text: Tensor, known: Tensor, plan: Plan) -> Said:
    """Ask the model about blocks of which some positions are known.

    Args:
        model: the model.
        text: prompt and block, [blocks, prompt + block or more]; what follows is not read.
        known: which positions of the block are known, bool [blocks, block].
        plan: says how many masked tokens follow.
    """
    values, right, likeliest = [], [], []
    for part, shown in zip(text.split(BATCH), known.split(BATCH), strict=True):
        truth = part[:, plan.prompt : plan.prompt + plan.block]
        rest = truth.new_full((len(part), plan.after), model.mask)
        asked = torch.cat([part[:, : plan.prompt], torch.where(shown, truth, model.mask), rest], dim=1)
        logits = model(asked)[:, plan.prompt : plan.prompt + plan.block].float()
        law = functional.log_softmax(logits, dim=-1)
        best = law.topk(2, dim=-1)
        of_true = law.gather(-1, truth[..., None])[..., 0]
        entropy = -(law.exp() * law).sum(dim=-1)
        margin = best.values[..., 0].exp() - best.values[..., 1].exp()
        said = torch.stack([of_true, best.values[..., 0], entropy, margin], dim=-1)
        certain = torch.tensor([0.0, 0.0, 0.0, 1.0], device=said.device)
        values.append(torch.where(shown[..., None], certain, said).cpu().numpy())
        right.append(((best.indices[..., 0] == truth) | shown).cpu().numpy())
        likeliest.append(best.indices[..., 0].cpu().numpy())
    return Said(np.concatenate(values), np.concatenate(right), np.concatenate(likeliest))


def ask_pairs(model: MaskedModel, text: Tensor, plan: Plan) -> Said:
    """What the model says with nothing known and with each position known in turn, [blocks, 1 + block, block]."""
    rows = torch.cat([torch.zeros(1, plan.block), torch.eye(plan.block)]).bool().to(text.device)
    said = [ask(model, text, row.expand(len(text), -1), plan) for row in rows]
    values, right, best = zip(*said, strict=True)
    return Said(np.stack(values, axis=1), np.stack(right, axis=1), np.stack(best, axis=1))
