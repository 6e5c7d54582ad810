"""A small masked-diffusion language model, and its training for a given time.

The model sees known and masked tokens on both sides and gives a law of each masked one. It is trained as masked diffusion is: a
share of the tokens is masked, and the loss of each is weighted with one over that share, which bounds the likelihood of a text (Nie
et al., Large Language Diffusion Models, 2025, equation 3). In half of the examples everything before some place is known and only
what follows is masked, as it is when a text is written block by block.
"""

import math
import time
from typing import Any, NamedTuple

import torch
from draft_pair.corpus import DOMAINS
from draft_pair.models import TRAINED_ON, Shape, rotate, windows
from torch import Tensor, nn
from torch.nn import functional

DENOISER = Shape(layers=8, width=384, heads=6, dropout=0.0, peak_rate=2e-3)
QUICK_DENOISER = Shape(layers=1, width=48, heads=2, dropout=0.0, peak_rate=1e-2)
LEAST_SHARE = 0.02
"""Smallest share of masked tokens in training: the weight of the loss is one over it."""


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.dropout = shape.heads, shape.dropout
        hidden = 64 * round(shape.width * 8 / 3 / 64)
        self.before_attention, self.before_mixing = nn.RMSNorm(shape.width), nn.RMSNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.up = nn.Linear(shape.width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, shape.width, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.before_attention(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(rotate(q, turn), rotate(k, turn), v, dropout_p=drop)
        x = x + functional.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, width)), drop)
        gate, value = self.up(self.before_mixing(x)).chunk(2, dim=-1)
        return x + functional.dropout(self.down(functional.silu(gate) * value), drop)


class MaskedModel(nn.Module):
    """A bidirectional transformer with rotary positions; the embedding is the output layer too. The token `mask` is masked."""

    def __init__(self, shape: Shape, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = self.mask = vocabulary
        self.embed = nn.Embedding(vocabulary + 1, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        half = shape.width // shape.heads // 2
        self.register_buffer("frequency", 10_000.0 ** (-torch.arange(half) / half), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                small = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * shape.layers) if small else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the token at every position, [batch, length, vocabulary]."""
        angle = torch.arange(tokens.shape[1], device=tokens.device)[:, None] * self.frequency
        turn = (angle.cos(), angle.sin())
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, turn)
        return functional.linear(self.norm(x), self.embed.weight[: self.vocabulary])

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.parameters())


class Plan(NamedTuple):
    """How long and how much: seconds of training, windows of a batch, tokens of a window, and what is measured."""

    train_s: float
    batch: int
    window: int
    blocks: int
    block: int
    prompt: int
    after: int
    checked: int
    sets: int


def masked_share(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Shares of masked tokens, [count], spread evenly from `LEAST_SHARE` to 1."""
    first = torch.rand(1, generator=generator, device=device)
    even = (first + torch.arange(count, device=device) / count) % 1.0
    return LEAST_SHARE + (1.0 - LEAST_SHARE) * even


def loss_of(model: MaskedModel, batch: Tensor, generator: torch.Generator, bf16: bool) -> Tensor:
    """The bound on nats a token of windows [count, length]; in half of them what comes before some place is known."""
    count, length = batch.shape
    share = masked_share(count, generator, batch.device)
    cut = torch.randint(length, (count,), generator=generator, device=batch.device)
    cut = torch.where(torch.arange(count, device=batch.device) % 2 == 0, torch.zeros_like(cut), cut)
    open_ = torch.arange(length, device=batch.device) >= cut[:, None]
    hidden = open_ & (torch.rand(batch.shape, generator=generator, device=batch.device) < share[:, None])
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
        logits = model(torch.where(hidden, model.mask, batch))
    nats = functional.cross_entropy(logits.flatten(0, 1).float(), batch.flatten(), reduction="none")
    weight = hidden / share[:, None] / open_.sum(dim=1, keepdim=True)
    return (nats.view_as(batch) * weight).sum() / count


@torch.no_grad()
def held_out_loss(model: MaskedModel, tokens: dict[str, Tensor], plan: Plan) -> dict[str, float]:
    """The bound on nats a token, on the same held-out windows and masks every time, by domain."""
    model.eval()
    bf16 = next(model.parameters()).is_cuda
    losses = {}
    for domain in DOMAINS:
        held = tokens[f"{domain}_held"]
        generator = torch.Generator(held.device).manual_seed(1)
        parts = [
            loss_of(model, windows(held, plan.batch, plan.window, generator), generator, bf16)
            for _ in range(4)
        ]
        losses[domain] = round(float(torch.stack(parts).mean()), 4)
    model.train()
    return losses


def train(model: MaskedModel, shape: Shape, tokens: dict[str, Tensor], plan: Plan) -> dict[str, Any]:
    """Train for some time; the rate of learning follows the time spent. Returns steps, tokens and losses."""
    first = next(iter(tokens.values()))
    cuda = first.is_cuda
    generator = torch.Generator(first.device).manual_seed(0)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=shape.peak_rate, betas=(0.9, 0.95), fused=cuda)
    counts = {domain: max(1, round(plan.batch * share)) for domain, share in TRAINED_ON.items()}
    curve: list[dict[str, Any]] = []
    begin, spent, step = time.monotonic(), 0.0, 0
    model.train()
    while spent < plan.train_s:
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spent / plan.train_s))
        for group in optimizer.param_groups:
            group["lr"] = shape.peak_rate * min(1.0, (step + 1) / 100) * decay
        parts = [windows(tokens[f"{d}_train"], n, plan.window, generator) for d, n in counts.items()]
        loss = loss_of(model, torch.cat(parts), generator, bf16=cuda)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 10 == 0 or not cuda:
            if cuda:
                torch.cuda.synchronize()
            spent = time.monotonic() - begin
        if spent >= plan.train_s * (len(curve) + 1) / 8:
            row = {
                "step": step,
                "train": round(float(loss.detach()), 4),
                **held_out_loss(model, tokens, plan),
            }
            curve.append(row)
            print(f"denoiser: {spent:5.0f} s  {row}", flush=True)
    return {
        **shape._asdict(),
        "parameters": model.size,
        "steps": step,
        "tokens_seen": step * sum(counts.values()) * plan.window,
        "seconds": round(spent, 1),
        "held_out_loss": held_out_loss(model, tokens, plan),
        "curve": curve,
    }
