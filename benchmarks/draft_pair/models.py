"""A small decoder with a cache, and its training for a given time."""

import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from draft_pair.corpus import DOMAINS

TRAINED_ON = {"code": 0.8, "prose": 0.2}
"""Share of each domain in a batch."""


class Shape(NamedTuple):
    layers: int
    width: int
    heads: int
    dropout: float
    peak_rate: float


TARGET = Shape(layers=12, width=640, heads=10, dropout=0.2, peak_rate=1e-3)
DRAFT = Shape(layers=3, width=256, heads=4, dropout=0.0, peak_rate=3e-3)
QUICK_TARGET = Shape(layers=2, width=96, heads=2, dropout=0.0, peak_rate=5e-3)
QUICK_DRAFT = Shape(layers=1, width=48, heads=2, dropout=0.0, peak_rate=1e-2)

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [batch, heads, positions, width of a head]."""


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.dropout = shape.heads, shape.dropout
        hidden = 64 * round(shape.width * 8 / 3 / 64)
        self.before_attention, self.before_mixing = nn.RMSNorm(shape.width), nn.RMSNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.up = nn.Linear(shape.width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, shape.width, bias=False)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Any]:
        batch, new, width = x.shape
        q, k, v = (
            self.qkv(self.before_attention(x)).view(batch, new, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        q, k = rotate(q, turn), rotate(k, turn)
        old = 0
        if past is not None:
            old = past[0].shape[2]
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        seen = (
            None
            if old == 0 or new == 1
            else torch.ones(new, old + new, dtype=torch.bool, device=x.device).tril(old)
        )
        drop = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, is_causal=old == 0, dropout_p=drop
        )
        x = x + functional.dropout(self.out(mixed.transpose(1, 2).reshape(batch, new, width)), drop)
        gate, value = self.up(self.before_mixing(x)).chunk(2, dim=-1)
        return x + functional.dropout(self.down(functional.silu(gate) * value), drop), (k, v)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turn
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Decoder(nn.Module):
    """A decoder with rotary positions, RMS norms and gated mixing; the embedding is the output layer too."""

    def __init__(self, shape: Shape, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        half = shape.width // shape.heads // 2
        self.register_buffer("frequency", 10_000.0 ** (-torch.arange(half) / half), persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                small = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * shape.layers) if small else 0.02)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Logits [batch, new, vocabulary] of the token after each new one, and the cache with the new ones in it."""
        old = cache[0][0].shape[2] if cache else 0
        angle = torch.arange(old, old + tokens.shape[1], device=tokens.device)[:, None] * self.frequency
        turn = (angle.cos(), angle.sin())
        x, grown = self.embed(tokens), []
        for i, block in enumerate(self.blocks):
            x, kept = block(x, turn, cache[i] if cache else None)
            grown.append(kept)
        return functional.linear(self.norm(x), self.embed.weight), grown

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.parameters())


class Plan(NamedTuple):
    """How long and how much: seconds of training, windows of a batch, tokens of a window, and what is measured."""

    target_s: float
    draft_s: float
    batch: int
    window: int
    streams: int
    sampled_streams: int
    prompt: int
    positions: int
    beyond: int
    checked: int


def windows(tokens: Tensor, count: int, window: int, generator: torch.Generator) -> Tensor:
    start = torch.randint(len(tokens) - window, (count,), generator=generator, device=tokens.device)
    return tokens[start[:, None] + torch.arange(window, device=tokens.device)].long()


def loss_of(model: Decoder, batch: Tensor, bf16: bool) -> Tensor:
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
        logits, _ = model(batch[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: Decoder, tokens: dict[str, Tensor], plan: Plan) -> dict[str, float]:
    """Nats a token on the same held-out windows every time, by domain."""
    model.eval()
    bf16 = next(model.parameters()).is_cuda
    losses = {}
    for domain in DOMAINS:
        held = tokens[f"{domain}_held"]
        generator = torch.Generator(held.device).manual_seed(1)
        parts = [loss_of(model, windows(held, plan.batch, plan.window, generator), bf16) for _ in range(4)]
        losses[domain] = round(float(torch.stack(parts).mean()), 4)
    model.train()
    return losses


def train(
    name: str, model: Decoder, shape: Shape, tokens: dict[str, Tensor], seconds: float, plan: Plan
) -> dict[str, Any]:
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
    while spent < seconds:
        rate = (
            shape.peak_rate
            * min(1.0, (step + 1) / 100)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spent / seconds)))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = torch.cat(
            [windows(tokens[f"{d}_train"], n, plan.window + 1, generator) for d, n in counts.items()]
        )
        loss = loss_of(model, batch, bf16=cuda)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 10 == 0 or not cuda:
            if cuda:
                torch.cuda.synchronize()
            spent = time.monotonic() - begin
        if spent >= seconds * (len(curve) + 1) / 8:
            row = {
                "step": step,
                "train": round(float(loss.detach()), 4),
                **held_out_loss(model, tokens, plan),
            }
            curve.append(row)
            print(f"{name}: {spent:5.0f} s  {row}", flush=True)
    seen = step * sum(counts.values()) * plan.window
    return {
        **shape._asdict(),
        "parameters": model.size,
        "steps": step,
        "tokens_seen": seen,
        "seconds": round(spent, 1),
        "held_out_loss": held_out_loss(model, tokens, plan),
        "curve": curve,
    }
