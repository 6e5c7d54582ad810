"""A small reference of segmented execution in torch: a Llama-shaped model with random weights, run whole or in segments.

It is written from the description in Shang, Li, Duo, Cai and Su, ICML 2026 (arXiv 2605.11744), to hold the laws of memory and
time of `llmgym.envs.segmented.law` to a running program: `benchmarks/segmented_attention.py` measures both. It computes nothing
of use, as its weights are random, and it is not fast: retrieval is a handful of small kernels for each layer with a pool.

Segment i of S tokens is run with what came before in two parts. Local heads of every layer see the keys and values of the last M
tokens of segment i - 1. Long-range heads of the first `POOL_LAYERS` layers see R tokens taken out of a pool of all that came
before, chosen by the last queries of segment i - 1; those of other layers see the segment alone. Keys are kept as they are before
the rotary embedding; what is carried or retrieved gets positions from 0 on, the segment those from `PREFIX` on.

torch is imported when something is called, and is an extra (`pip install 'llmgym[train]'`).
"""

import importlib
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llmgym.envs.segmented.law import FIRST_POOL, HEAD_DIM, POOL_LAYERS, PREFIX, Model
from llmgym.errors import InvalidArgument, MissingExtra

ROTARY_BASE = 10_000.0
LAST_QUERIES = 64
"""Queries of a segment that choose what the next one retrieves."""
POOLING, STRIDE, LATEST = 8, 4, 4
"""Queries are pooled over windows of 8 that begin every 4, and once more over the last 4."""
TOP = 16
"""Tokens that each pooled query proposes."""
SPREAD = (-3, 4)
"""Neighbours of an anchor that are retrieved with it, from and to."""

Tensor = Any


def torch() -> Any:
    """The module torch. Raises `MissingExtra` where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise MissingExtra("the reference of segmented attention", "train") from error


class Layer(NamedTuple):
    """Weights of one layer; heads are those of keys, as many as of queries or fewer.

    Attributes:
        query: [width, heads * HEAD_DIM].
        key: [width, kv_heads * HEAD_DIM].
        value: [width, kv_heads * HEAD_DIM].
        output: [heads * HEAD_DIM, width].
        gate: [width, ff].
        up: [width, ff].
        down: [ff, width].
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


@dataclass
class Weights:
    """A model with random weights.

    Attributes:
        shape: its shapes.
        layers: of each.
        embedding: [vocabulary, width].
        head: [width, vocabulary].
        masks: for segments behind a prefix where the device needs one written out, by their lengths.
    """

    shape: Model
    layers: list[Layer]
    embedding: Tensor
    head: Tensor
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @classmethod
    def random(cls, shape: Model, device: str = "cpu", dtype: str = "bfloat16", seed: int = 0) -> "Weights":
        """Random weights of a shape.

        Args:
            shape: of the model; its width is a multiple of `HEAD_DIM`.
            device: of torch.
            dtype: name of torch's type of numbers.
            seed: of the weights.

        Returns:
            Weights, normal: of standard deviation 1 in the embedding, else 1 over the root of the number of rows.

        Raises:
            MissingExtra: torch is not installed.
        """
        t = torch()
        t.manual_seed(seed)

        def made(rows: int, columns: int) -> Tensor:
            matrix = t.empty(rows, columns, device=device, dtype=getattr(t, dtype))
            return matrix.normal_(0.0, rows**-0.5)

        w, kv = shape.width, shape.kv_heads * HEAD_DIM
        sizes = [(w, w), (w, kv), (w, kv), (w, w), (w, shape.ff), (w, shape.ff), (shape.ff, w)]
        layers = [Layer(*(made(*size) for size in sizes)) for _ in range(shape.layers)]
        return cls(
            shape, layers, made(shape.vocabulary, w).mul_(shape.vocabulary**0.5), made(w, shape.vocabulary)
        )

    def tensors(self) -> list[Tensor]:
        """All tensors of the model, for gradients."""
        return [self.embedding, self.head, *(one for layer in self.layers for one in layer)]


class Carried(NamedTuple):
    """What one segment leaves to the next.

    Attributes:
        keys: of the local heads of each layer, before the rotary embedding, [local heads, tail, HEAD_DIM].
        values: of the local heads of each layer, [local heads, tail, HEAD_DIM].
        queries: the last ones of long-range heads in layers with a pool, [heads, LAST_QUERIES, HEAD_DIM].
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    queries: tuple[Tensor, ...]


class Pool:
    """Keys and values of the long-range heads of all segments so far, in buffers that double when they are full; read only.

    Args:
        weights: of the model.
        first: entries of a new buffer.
    """

    def __init__(self, weights: Weights, first: int = FIRST_POOL) -> None:
        shape, like = weights.shape, weights.embedding
        size = (shape.long_heads, first, HEAD_DIM)
        self.tokens = 0
        self.keys = [like.new_empty(size) for _ in range(pool_layers(shape))]
        self.values = [like.new_empty(size) for _ in range(pool_layers(shape))]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Take in the keys and values of a segment; `advance` counts them.

        Args:
            layer: with a pool.
            keys: of the long-range heads, before the rotary embedding, [long heads, tokens, HEAD_DIM].
            values: of the long-range heads, [long heads, tokens, HEAD_DIM].
        """
        for buffers, new in ((self.keys, keys), (self.values, values)):
            while buffers[layer].shape[1] < self.tokens + new.shape[1]:
                old = buffers[layer]
                grown = old.new_empty(old.shape[0], 2 * old.shape[1], HEAD_DIM)
                grown[:, : self.tokens] = old[:, : self.tokens]
                buffers[layer] = grown
            buffers[layer][:, self.tokens : self.tokens + new.shape[1]] = new.detach()

    def advance(self, tokens: int) -> None:
        """Count the tokens of a segment that every layer with a pool has taken in."""
        self.tokens += tokens

    def take(self, layer: int, queries: Tensor, retrieved: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens that these queries choose, [long heads, up to `retrieved`, HEAD_DIM] each.

        Args:
            layer: with a pool.
            queries: the last ones, [long query heads, up to LAST_QUERIES, HEAD_DIM].
            retrieved: R, the most that are taken.

        Returns:
            Keys and values, without gradients.
        """
        keys, values = (part[layer][:, : self.tokens].detach() for part in (self.keys, self.values))
        chosen = choose(queries.detach(), keys, retrieved)[..., None].expand(-1, -1, HEAD_DIM)
        return keys.gather(1, chosen), values.gather(1, chosen)


def pool_layers(shape: Model) -> int:
    """Layers with a pool: the first ones, so many as the paper has."""
    return min(POOL_LAYERS, shape.layers)


def pooled(queries: Tensor) -> Tensor:
    """Means of queries over windows, and over the latest ones: [heads, n, HEAD_DIM] to [heads, windows + 1, HEAD_DIM]."""
    n = queries.shape[1]
    size = min(POOLING, n)
    windows = queries.unfold(1, size, STRIDE).mean(dim=-1)
    return torch().cat([windows, queries[:, -LATEST:].mean(dim=1, keepdim=True)], dim=1)


def choose(queries: Tensor, keys: Tensor, retrieved: int) -> Tensor:
    """Which tokens of a pool are retrieved.

    Each pooled query proposes `TOP` tokens; the best R / 8 of a head are its anchors, which are taken with their neighbours. Where
    that is fewer than R, the earliest of the others follow.

    Args:
        queries: [query heads, n, HEAD_DIM]; a key head serves as many of them as there are more.
        keys: of the pool, before the rotary embedding, [key heads, tokens, HEAD_DIM].
        retrieved: R.

    Returns:
        Places in the pool in rising order, int64 [key heads, min(R, tokens)].
    """
    t = torch()
    heads, tokens, _ = keys.shape
    means = pooled(queries)
    means = means.reshape(heads, -1, HEAD_DIM)  # all queries that share a key head propose
    scores = means @ keys.transpose(1, 2)
    best, at = scores.topk(min(TOP, tokens), dim=-1)
    flat = t.full((heads, tokens), -math.inf, device=keys.device, dtype=scores.dtype)
    flat.scatter_reduce_(1, at.flatten(1), best.flatten(1), "amax")
    spread = SPREAD[1] - SPREAD[0] + 1
    anchors, places = flat.topk(min(max(retrieved // spread, 1), tokens), dim=-1)
    offsets = t.arange(SPREAD[0], SPREAD[1] + 1, device=keys.device)
    # a head with fewer proposals than anchors has some of minus infinity: these take nobody with them
    around = (places[..., None] + offsets).clamp_(0, tokens - 1).flatten(1)
    real = anchors.isfinite()[..., None].expand(-1, -1, spread).flatten(1)
    taken = t.zeros(heads, tokens, device=keys.device, dtype=t.int8)
    taken.scatter_reduce_(1, around, real.to(t.int8), "amax")
    # those that are taken, in order, then the earliest of the others
    order = taken.argsort(dim=1, descending=True, stable=True)
    return order[:, : min(retrieved, tokens)].sort(dim=1).values


def rotated(x: Tensor, first: int) -> Tensor:
    """Rotary embedding of [heads, n, HEAD_DIM] at positions from `first` on."""
    t = torch()
    half = HEAD_DIM // 2
    rates = ROTARY_BASE ** (-t.arange(half, device=x.device, dtype=t.float32) / half)
    angles = t.arange(first, first + x.shape[1], device=x.device, dtype=t.float32)[:, None] * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    out = t.empty_like(x) if not x.requires_grad else None
    a, b = x[..., :half], x[..., half:]
    if out is None:
        return t.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    out[..., :half] = a * cos - b * sin
    out[..., half:] = a * sin + b * cos
    return out


def normed(x: Tensor) -> Tensor:
    """Root mean square norm without weights, over the last axis."""
    return torch().nn.functional.rms_norm(x, x.shape[-1:])


def attend(weights: Weights, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of the last n queries to all prefix + n keys.

    Args:
        weights: of the model; its masks are made here where they are new.
        query: [heads, n, HEAD_DIM].
        key: [heads or fewer, prefix + n, HEAD_DIM]; each serves as many heads of queries as there are more.
        value: [heads or fewer, prefix + n, HEAD_DIM].

    Returns:
        [heads, n, HEAD_DIM].
    """
    t = torch()
    n, seen = query.shape[1], key.shape[1]
    call = t.nn.functional.scaled_dot_product_attention
    grouped = {"enable_gqa": True} if query.shape[0] != key.shape[0] else {}
    q, k, v = query[None], key[None], value[None]
    if seen == n:
        return call(q, k, v, is_causal=True, **grouped)[0]
    if query.is_cuda:
        bias = importlib.import_module("torch.nn.attention.bias").causal_lower_right(n, seen)
        return call(q, k, v, attn_mask=bias, **grouped)[0]
    if (n, seen) not in weights.masks:
        weights.masks[n, seen] = t.ones(n, seen, dtype=t.bool).tril_(seen - n)
    return call(q, k, v, attn_mask=weights.masks[n, seen], **grouped)[0]


def heads_of(x: Tensor) -> Tensor:
    """[n, heads * HEAD_DIM] as [heads, n, HEAD_DIM]."""
    return x.view(x.shape[0], -1, HEAD_DIM).transpose(0, 1)


def mlp(x: Tensor, layer: Layer) -> Tensor:
    """The MLP of a layer: gate, up, activation and product are all there at once, as the law of memory counts them."""
    silu = torch().nn.functional.silu
    gate, up = x @ layer.gate, x @ layer.up
    active = silu(gate)
    product = active * up
    del gate, up, active
    return product @ layer.down


class Segment(NamedTuple):
    """What a segment computes.

    Attributes:
        hidden: of its tokens, normed, [n, width].
        keys: of all heads of each layer, before the rotary embedding, [kv heads, n, HEAD_DIM].
        values: of all heads of each layer, [kv heads, n, HEAD_DIM].
        queries: the last ones of long-range heads in layers with a pool.
    """

    hidden: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    queries: list[Tensor]


def run_segment(
    weights: Weights,
    tokens: Tensor,
    carried: Carried | None = None,
    pool: Pool | None = None,
    retrieved: int = 0,
) -> Segment:
    """Run a segment, or a whole prompt, through all layers.

    Args:
        weights: of the model.
        tokens: int64 [n].
        carried: what the segment before left; None for the first one.
        pool: of retrieval; None: nothing is retrieved.
        retrieved: R.

    Returns:
        Its hidden states, and its part of the KV cache.
    """
    t, shape = torch(), weights.shape
    local = shape.kv_heads - shape.long_heads
    group = shape.width // HEAD_DIM // shape.kv_heads
    residual = weights.embedding[tokens]
    out = Segment(tokens, [], [], [])
    for i, layer in enumerate(weights.layers):
        x = normed(residual)
        query, key, value = (heads_of(x @ matrix) for matrix in layer[:3])
        if i < pool_layers(shape) and shape.long_heads:
            out.queries.append(query[local * group :, -LAST_QUERIES:].detach().clone())
        out.keys.append(key)
        out.values.append(value)
        query = rotated(query, PREFIX)
        parts = []
        for kind, heads in (("local", slice(0, local)), ("long", slice(local, shape.kv_heads))):
            if heads.stop == heads.start:
                continue
            k, v = rotated(key[heads], PREFIX), value[heads]
            before = None
            if kind == "local" and carried is not None and carried.keys[i].shape[1]:
                before = carried.keys[i], carried.values[i]
            elif (
                kind == "long"
                and carried is not None
                and pool is not None
                and retrieved
                and i < pool_layers(shape)
            ):
                before = pool.take(i, carried.queries[i], retrieved)
            if before is not None:
                k = t.cat([rotated(before[0], 0), k], dim=1)
                v = t.cat([before[1], v], dim=1)
            parts.append(attend(weights, query[heads.start * group : heads.stop * group], k, v))
        del query, k, v, before
        mixed = t.cat(parts).transpose(0, 1).reshape(len(tokens), -1)
        del parts
        residual = residual + mixed @ layer.output
        del mixed, x
        x = normed(residual)
        residual = residual + mlp(x, layer)
        del x
    return out._replace(hidden=normed(residual))


def carry(weights: Weights, segment: Segment, tail: int, pool: Pool | None = None) -> Carried:
    """What a segment leaves to the next; its long-range heads go into the pool.

    Args:
        weights: of the model.
        segment: as it was run.
        tail: M, tokens of local heads that are carried.
        pool: of retrieval; None: there is none.

    Returns:
        Copies of the last keys and values of local heads, and the queries that choose from the pool.
    """
    local = weights.shape.kv_heads - weights.shape.long_heads
    if pool is not None:
        for i in range(len(pool.keys)):
            pool.append(i, segment.keys[i][local:], segment.values[i][local:])
        pool.advance(segment.keys[0].shape[1])
    n = segment.keys[0].shape[1]
    # copies, so that the segment's own cache can go
    keys = tuple(k[:local, max(n - tail, 0) :].clone() for k in segment.keys)
    values = tuple(v[:local, max(n - tail, 0) :].clone() for v in segment.values)
    return Carried(keys, values, tuple(segment.queries))


def full_logits(weights: Weights, hidden: Tensor) -> Tensor:
    """Logits of all tokens in float32, beside those in the type of the weights: [n, vocabulary]."""
    logits = hidden @ weights.head
    return logits.float()


def prefill_full(weights: Weights, tokens: Tensor) -> Tensor:
    """Full attention over a prompt: logits of its last token, float32 [vocabulary]; those of all are computed."""
    with torch().no_grad():
        segment = run_segment(weights, tokens)
        return full_logits(weights, segment.hidden)[-1].clone()


def prefill_segmented(
    weights: Weights, tokens: Tensor, segment: int, tail: int, retrieved: int, first: int = FIRST_POOL
) -> Tensor:
    """A prompt in segments.

    Args:
        weights: of the model.
        tokens: int64 [n].
        segment: S.
        tail: M.
        retrieved: R; 0: there is no pool.
        first: entries of the pool's buffer at the beginning.

    Returns:
        Logits of the last token, float32 [vocabulary]; those of all tokens of each segment are computed.

    Raises:
        InvalidArgument: no tokens, segments of none, a tail longer than a segment, or a prefix longer than `PREFIX`.
    """
    if (
        len(tokens) < 1
        or segment < 1
        or not 0 <= tail <= min(segment, PREFIX)
        or not 0 <= retrieved <= PREFIX
    ):
        raise InvalidArgument(
            f"tokens={len(tokens)}, segment={segment}, tail={tail}, retrieved={retrieved}: expected tokens, a segment of at least "
            f"one, and a tail and a prefix of at most {PREFIX}, the tail within a segment"
        )
    with torch().no_grad():
        pool = Pool(weights, first) if retrieved and weights.shape.long_heads else None
        carried, last = None, None
        for part in tokens.split(segment):
            done = run_segment(weights, part, carried, pool, retrieved)
            last = full_logits(weights, done.hidden)[-1].clone()
            carried = carry(weights, done, tail, pool)
            del done
        return last
