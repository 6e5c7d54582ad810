"""What `llmgym profile --kernels` measures: families of kernels that the papers' systems are made of, on one device.

Times are per call: one layer, one operator. bf16 on random data unless an op says otherwise.

| family | op (shape) | what |
|---|---|---|
| dense | `gemm` (tokens) | query-key-value, output, gate-up, down, head of a model's shard on one of 1, 2, 4, 8 GPUs |
| dense | `elementwise` (tokens) | norm with residual, rotary embedding, gated activation; fused on a GPU |
| moe | `moe` (tokens) | router, sorting, grouped gate-up and down products, weighted sum |
| attention | `prefill_attention` (batch, chunk, context), `decode_attention` (batch, kv) | FlashAttention as shipped in torch |
| paged | `paged_decode` (batch, kv) | decode over blocks of 16 tokens, own Triton kernel |
| afd | `attention_part` (batch, kv), `ffn_part` (tokens) | the halves of a layer that attention-FFN disaggregation separates |
| linear | `causal_attention` (heads, head_dim, length) | fused, unfused and linear kernels, with peak memory |
| diffusion | `bidirectional_attention`, `denoiser_layer` (batch, queries, keys) | masked tokens see their context and themselves |
| diffusion | `confidence` (tokens) | output head, softmax and the likeliest token of each position |
| segmented | `segment` (chunk, tail, retrieved) | gather of retrieved blocks; a segment attends to them, its tail, itself |
| memory | `score`, `top_k`, `gather`, `sparse_attention`, `bm25` | the stages of retrieval from a long memory |
| copies | `copy_on_device`, `copy_to_device`, `copy_to_host` (bytes) | pinned host memory |
| host | `host_step` (sequences) | inputs to the device, greedy sampling, tokens back: a step without model and scheduler |
| power | `power` (batch) | one layer as in prefill, decode and training, over and over, with the board's power; the board at rest |
| sustained | `layer_products` (tokens) | the four products of a layer over and over, at the clock that the power limit leaves |
"""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llmgym.profiles import paged
from llmgym.profiles.bench import Case, Device, case
from llmgym.profiles.measure import SMALL, attention, fused
from llmgym.profiles.models import MODELS, ModelShape

LARGEST_BYTES = 20 * 2**30
"""Cases whose tensors would take more are skipped."""
POWER_SECONDS = 1.5


@dataclass(frozen=True)
class Grid:
    """Shapes to measure; `QUICK` is a handful, for a smoke run on a CPU."""

    models: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("llama-3.1-8b", (1, 2, 4, 8)),
        ("qwen2.5-14b", (1, 2, 4, 8)),
        ("llama-3.1-70b", (1, 2, 4, 8)),
    )
    tokens: tuple[int, ...] = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
    experts: tuple[tuple[str, int, int, int, int], ...] = (
        ("8 of 14336, top 2", 4096, 14336, 8, 2),  # Mixtral 8x7B
        ("64 of 1408, top 6", 2048, 1408, 64, 6),  # DeepSeekMoE 16B
        ("128 of 768, top 8", 2048, 768, 128, 8),  # Qwen3 30B-A3B
    )
    batches: tuple[int, ...] = (1, 4, 16, 64, 256)
    kv: tuple[int, ...] = (256, 1024, 4096, 16384, 65536)
    chunks: tuple[int, ...] = (128, 512, 2048, 8192)
    contexts: tuple[int, ...] = (0, 2048, 8192, 32768)
    heads: tuple[tuple[int, int, int], ...] = (
        (8, 32, 131072),
        (32, 128, 32768),
    )  # of linear attention: heads, width, longest
    lengths: tuple[int, ...] = tuple(2**i for i in range(7, 18))
    features: tuple[tuple[int, int, int], ...] = tuple(
        (nodes, m, anchors) for nodes in (1, 2, 3) for m in (4, 8, 16, 32) for anchors in (8, 16, 32)
    )  # of SLAY, at every other length and the first heads; those of `main_features` at all
    main_features: tuple[tuple[int, int, int], ...] = ((1, 8, 8), (2, 16, 8), (3, 16, 8), (2, 16, 32))
    memory: tuple[int, ...] = (4096, 16384, 65536, 262144, 1048576)
    sizes: tuple[int, ...] = tuple(2**i for i in range(12, 31, 3))
    sequences: tuple[int, ...] = (1, 4, 16, 64, 256)
    power: tuple[int, ...] = (1, 4, 16, 64)
    steady: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192)
    seconds: float = POWER_SECONDS


QUICK = Grid(
    models=(("small", (1, 2)),),
    tokens=(1, 8),
    experts=(("4 of 64, top 2", 64, 64, 4, 2),),
    batches=(1, 2),
    kv=(16, 64),
    chunks=(8, 32),
    contexts=(0, 64),
    heads=((2, 8, 256),),
    lengths=(64, 256),
    features=((2, 4, 4),),
    main_features=((2, 4, 4),),
    memory=(64, 256),
    sizes=(4096, 65536),
    sequences=(1, 4),
    power=(1,),
    steady=(8,),
    seconds=0.01,
)


class Families:
    """The cases of the families on one device; those that single papers need are in `llmgym.profiles.paper_families`."""

    def __init__(self, device: Device, grid: Grid) -> None:
        self.device, self.grid = device, grid
        self.torch, self.random = device.torch, device.random
        self.known: dict[str, Callable[[], Iterator[Case]]] = {
            "dense": self.dense,
            "attention": self.attention,
            "paged": self.paged,
            "afd": self.afd,
            "moe": self.moe,
            "copies": self.copies,
            "host": self.host,
            "power": self.power,
            "sustained": self.sustained,
        }

    @functools.cached_property
    def fused(self) -> tuple[Callable[..., Any], ...]:
        """Norm with residual, rotary embedding, gated activation; one kernel each on a GPU."""
        return fused(self.torch, self.device.cuda)

    def shape(self, name: str) -> ModelShape:
        """The shape of a model in the grid; `small` is that of smoke runs."""
        return SMALL if name == "small" else MODELS[name]

    def dense(self) -> Iterator[Case]:
        """Cases of `gemm` and `elementwise`: the dense parts of a layer."""
        linear = self.torch.nn.functional.linear
        for name, shards in self.grid.models:
            shape = self.shape(name)
            for tp in shards:
                for gemm in (*shape.gemms(tp), shape.output_head(tp)):
                    for tokens in self.grid.tokens:

                        def make(n: int = gemm.n, k: int = gemm.k, tokens: int = tokens) -> Callable[[], Any]:
                            x, w = self.random(tokens, k), self.random(n, k, scale=k**-0.5)
                            return lambda: linear(x, w)

                        needs = 2.0 * (gemm.n * gemm.k + tokens * (gemm.n + gemm.k))
                        yield case("gemm", f"{name} tp{tp} {gemm.name}", needs, make, tokens=tokens)
        shape = self.shape(self.grid.models[0][0])
        heads, d = shape.q_heads + shape.kv_heads, shape.head_dim
        kernels = dict(zip(("add_norm", "rotary", "gate"), self.fused, strict=True))
        for part, kernel in kernels.items():
            for tokens in self.grid.tokens:

                def ready(part: str = part, kernel: Any = kernel, tokens: int = tokens) -> Callable[[], Any]:
                    if part == "rotary":
                        x = self.random(tokens, heads, d)
                        angle = self.torch.rand(tokens, 1, d // 2, device=self.device.device)
                        cos, sin = angle.cos(), angle.sin()
                        return lambda: kernel(x, cos, sin)
                    if part == "gate":
                        x = self.random(tokens, 2 * shape.intermediate)
                        return lambda: kernel(x)
                    x, weight = self.random(tokens, shape.hidden), self.random(shape.hidden)
                    return lambda: kernel(x, x, weight)

                yield case("elementwise", f"{shape.name} {part}", 0.0, ready, tokens=tokens)

    def moe(self) -> Iterator[Case]:
        """Cases of `moe`: a layer of experts."""
        for variant, hidden, width, experts, top in self.grid.experts:
            for tokens in self.grid.tokens:

                def make(
                    hidden: int = hidden,
                    width: int = width,
                    experts: int = experts,
                    top: int = top,
                    tokens: int = tokens,
                ) -> Callable[[], Any]:
                    x, router = self.random(tokens, hidden), self.random(experts, hidden, scale=hidden**-0.5)
                    up = self.random(experts, 2 * width, hidden, scale=hidden**-0.5).transpose(1, 2)
                    down = self.random(experts, hidden, width, scale=width**-0.5).transpose(1, 2)
                    return lambda: mixture(self.torch, x, router, up, down, top)

                needs = 6.0 * experts * hidden * width + 8.0 * tokens * top * (hidden + 2 * width)
                yield case("moe", variant, needs, make, tokens=tokens)

    def attention(self) -> Iterator[Case]:
        """Cases of `prefill_attention` and `decode_attention`."""
        shape = self.shape(self.grid.models[0][0])
        heads, d = shape.q_heads, shape.head_dim
        for batch in self.grid.batches[:2]:
            for chunk in self.grid.chunks:
                for context in self.grid.contexts:
                    yield self._attention(
                        "prefill_attention", heads, shape.kv_heads, d, batch, chunk, context
                    )
        for kv_heads in sorted({1, 2, shape.kv_heads, heads}):
            for batch in self.grid.batches:
                for kv in self.grid.kv:
                    yield self._attention("decode_attention", heads, kv_heads, d, batch, 1, kv - 1)

    def _attention(
        self, op: str, heads: int, kv_heads: int, d: int, batch: int, queries: int, context: int
    ) -> Case:
        keys = queries + context

        def make() -> Callable[[], Any]:
            q = self.random(batch, queries, heads, d)
            k, v = self.random(batch, keys, kv_heads, d), self.random(batch, keys, kv_heads, d)
            return lambda: attention(self.torch, q, k, v)

        shape = (
            {"batch": batch, "chunk": queries, "context": context}
            if queries > 1
            else {"batch": batch, "kv": keys}
        )
        needs = 4.0 * batch * (keys * kv_heads + queries * heads) * d
        return case(op, f"{heads} query heads, {kv_heads} key heads of {d}", needs, make, **shape)

    def paged(self) -> Iterator[Case]:
        """Cases of `paged_decode`: decode attention over blocks of a cache."""
        shape = self.shape(self.grid.models[0][0])
        heads, kv_heads, d = shape.q_heads, shape.kv_heads, shape.head_dim
        for batch in self.grid.batches:
            for kv in self.grid.kv:

                def make(batch: int = batch, kv: int = kv) -> Callable[[], Any]:
                    if not self.device.cuda:
                        raise RuntimeError("Triton needs a CUDA device")
                    torch, each = self.torch, kv // paged.BLOCK
                    decode = paged.build(torch)
                    q = self.random(batch, heads, d)
                    keys, values = (self.random(batch * each, paged.BLOCK, kv_heads, d) for _ in range(2))
                    order = torch.randperm(batch * each, device=self.device.device)
                    table = order.to(torch.int32).reshape(batch, each)
                    lengths = torch.full((batch,), kv, dtype=torch.int32, device=self.device.device)
                    if batch * kv <= 65536:
                        right = paged.reference(torch, q, keys, values, table, lengths)
                        error = float(
                            (decode(q, keys, values, table, lengths).float() - right).norm() / right.norm()
                        )
                        if not error < 1e-2:
                            raise RuntimeError(f"relative error {error:.2g} against float32")
                    return lambda: decode(q, keys, values, table, lengths)

                variant = f"{heads} query heads, {kv_heads} key heads of {d}"
                yield case("paged_decode", variant, 4.0 * batch * kv * kv_heads * d, make, batch=batch, kv=kv)

    def afd(self) -> Iterator[Case]:
        """Cases of `attention_part` and `ffn_part`: the halves of a layer."""
        linear = self.torch.nn.functional.linear
        add_norm, rotary, gate = self.fused
        for name, _ in self.grid.models:
            shape = self.shape(name)
            h, d, kv_heads = shape.hidden, shape.head_dim, shape.kv_heads
            for batch in self.grid.batches:
                for kv in self.grid.kv:

                    def attend(
                        batch: int = batch, kv: int = kv, shape: ModelShape = shape
                    ) -> Callable[[], Any]:
                        h, d, q_heads, kv_heads = shape.hidden, shape.head_dim, shape.q_heads, shape.kv_heads
                        x = self.random(batch, h)
                        w_in = self.random((q_heads + 2 * kv_heads) * d, h, scale=h**-0.5)
                        w_out = self.random(h, q_heads * d, scale=h**-0.5)
                        k, v = self.random(batch, kv, kv_heads, d), self.random(batch, kv, kv_heads, d)
                        weight = self.random(h)
                        angle = self.torch.rand(batch, 1, d // 2, device=self.device.device)
                        cos, sin = angle.cos(), angle.sin()

                        def layer() -> Any:
                            normed, _ = add_norm(x, x, weight)
                            heads = linear(normed, w_in).view(batch, q_heads + 2 * kv_heads, d)
                            turned = rotary(heads[:, : q_heads + kv_heads], cos, sin)
                            k[:, -1] = turned[:, q_heads:]
                            v[:, -1] = heads[:, q_heads + kv_heads :]
                            mixed = attention(self.torch, turned[:, None, :q_heads], k, v)
                            return linear(mixed.reshape(batch, q_heads * d), w_out)

                        return layer

                    yield case(
                        "attention_part", name, 4.0 * batch * kv * kv_heads * d, attend, batch=batch, kv=kv
                    )
            for tokens in self.grid.tokens:

                def feed(tokens: int = tokens, shape: ModelShape = shape) -> Callable[[], Any]:
                    h, f = shape.hidden, shape.intermediate
                    x = self.random(tokens, h)
                    up, down = self.random(2 * f, h, scale=h**-0.5), self.random(h, f, scale=f**-0.5)
                    weight = self.random(h)
                    return lambda: linear(gate(linear(add_norm(x, x, weight)[0], up)), down)

                yield case("ffn_part", name, 6.0 * h * shape.intermediate, feed, tokens=tokens)

    def copies(self) -> Iterator[Case]:
        """Cases of copies on the device, and to and from the host."""
        torch = self.torch
        for op in (
            ("copy_on_device", "copy_to_device", "copy_to_host") if self.device.cuda else ("copy_on_device",)
        ):
            for size in self.grid.sizes:

                def make(op: str = op, size: int = size) -> Callable[[], Any]:
                    here = torch.empty(size, dtype=torch.int8, device=self.device.device)
                    there = (
                        torch.empty_like(here)
                        if op == "copy_on_device"
                        else torch.empty(size, dtype=torch.int8, pin_memory=True)
                    )
                    target, source = (there, here) if op == "copy_to_host" else (here, there)
                    return lambda: target.copy_(source, non_blocking=True)

                yield case(op, "pinned" if op != "copy_on_device" else "device", 2.0 * size, make, bytes=size)

    def host(self) -> Iterator[Case]:
        """Cases of `host_step`: what a step takes beside model and scheduler."""
        torch, vocab = self.torch, self.shape(self.grid.models[0][0]).vocab
        for sequences in self.grid.sequences:

            def make(n: int = sequences) -> Callable[[], Any]:
                logits = self.random(n, vocab)
                ids, positions, blocks = [7] * n, list(range(n)), [[3] * 64 for _ in range(n)]

                def step() -> Any:
                    sent = [
                        torch.tensor(x, dtype=torch.int32).to(self.device.device, non_blocking=True)
                        for x in (ids, positions, blocks)
                    ]
                    return sent, logits.argmax(-1).tolist()

                return step

            yield case("host_step", "greedy", 0.0, make, sequences=sequences)._replace(graph=False)

    def power(self) -> Iterator[Case]:
        """Cases of `power`: one layer over and over, and the board at rest."""
        torch = self.torch
        linear = torch.nn.functional.linear
        shape = self.shape(self.grid.models[0][0])
        h, d, f, q_heads, kv_heads = (
            shape.hidden,
            shape.head_dim,
            shape.intermediate,
            shape.q_heads,
            shape.kv_heads,
        )
        each = 1024 if h > 1024 else 16

        def make(batch: int, queries: int, trains: bool) -> Callable[[], Any]:
            weights = [
                self.random(n, k, scale=k**-0.5).requires_grad_(trains)
                for n, k in (((q_heads + 2 * kv_heads) * d, h), (h, q_heads * d), (2 * f, h), (h, f))
            ]
            x = self.random(batch, queries, h)
            cache = self.random(2, batch, each, kv_heads, d) if queries == 1 else None

            def layer() -> Any:
                heads = linear(x, weights[0]).view(batch, queries, -1, d)
                q, k, v = heads.split([q_heads, kv_heads, kv_heads], dim=2)
                if cache is not None:
                    k, v = cache
                if trains:
                    sides = (t.transpose(1, 2) for t in (q, k, v))
                    mixed = torch.nn.functional.scaled_dot_product_attention(
                        *sides, is_causal=True, enable_gqa=True
                    )
                    mixed = mixed.transpose(1, 2)
                else:
                    mixed = attention(torch, q, k, v)
                out = x + linear(mixed.reshape(batch, queries, -1), weights[1])
                left, right = linear(out, weights[2]).chunk(2, dim=-1)
                out = out + linear(torch.nn.functional.silu(left) * right, weights[3])
                if trains:
                    torch.autograd.grad(out.float().square().mean(), weights)
                return out

            if trains:
                return layer

            def quiet() -> Any:
                with torch.no_grad():
                    return layer()

            return quiet

        for variant, queries, trains in (
            ("prefill", each, False),
            ("decode", 1, False),
            ("training", each, True),
        ):
            for batch in self.grid.power:
                needs = 2.0 * batch * queries * (8 * f + 12 * h) * (3 if trains else 1)
                layers = case(
                    "power",
                    f"{shape.name} layer, {variant}, {each} tokens a sequence",
                    needs,
                    lambda b=batch, n=queries, t=trains: make(b, n, t),  # type: ignore[misc]
                    batch=batch,
                )
                yield layers._replace(power=True, graph=False)
        rest = case("power", "at rest", 0.0, lambda: lambda: time.sleep(0.02), batch=1)
        yield rest._replace(power=True, graph=False)

    def sustained(self) -> Iterator[Case]:
        """Cases of `layer_products`: the products of a layer over and over."""
        linear = self.torch.nn.functional.linear
        for name, _ in self.grid.models:
            gemms = self.shape(name).gemms(1)
            for tokens in self.grid.steady:

                def make(gemms: Any = gemms, tokens: int = tokens) -> Callable[[], Any]:
                    pairs = [
                        (self.random(tokens, g.k), self.random(g.n, g.k, scale=g.k**-0.5)) for g in gemms
                    ]
                    return lambda: [linear(x, w) for x, w in pairs]

                needs = 2.0 * sum(g.n * g.k + tokens * (g.n + g.k) for g in gemms)
                products = case("layer_products", f"{name} tp1", needs, make, tokens=tokens)
                yield products._replace(sustained=True, power=True)


def mixture(torch: Any, x: Any, router: Any, up: Any, down: Any, top: int) -> Any:
    """A layer of experts: each token goes to `top` of them.

    Args:
        torch: the module.
        x: [tokens, hidden].
        router: [experts, hidden].
        up: [experts, hidden, 2 width].
        down: [experts, width, hidden].
        top: experts a token.

    Returns:
        [tokens, hidden].
    """
    experts = len(router)
    weight, expert = (x @ router.T).float().softmax(-1).topk(top, -1)
    order = expert.flatten().argsort()
    rows = x[order // top]
    ends = (
        torch.bincount(expert.flatten(), minlength=experts).cumsum(0).to(torch.int32)
        if not x.is_cuda
        else (
            (expert.flatten()[None, :] <= torch.arange(experts, device=x.device)[:, None]).sum(
                1, dtype=torch.int32
            )
        )
    )

    def product(rows: Any, weights: Any) -> Any:
        if x.is_cuda:
            return torch._grouped_mm(rows, weights, offs=ends)
        parts = rows.tensor_split(ends.tolist()[:-1])
        return torch.cat([part @ w for part, w in zip(parts, weights, strict=True)])

    left, right = product(rows, up).chunk(2, dim=-1)
    out = product(torch.nn.functional.silu(left) * right, down)
    scaled = out * weight.flatten()[order, None].to(out.dtype)
    return torch.zeros_like(x).index_add_(0, order // top, scaled)
