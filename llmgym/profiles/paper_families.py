"""Families of kernels that single papers need: linear attention, denoisers, segments with retrieval, long memories.

What the ops are is told in `llmgym.profiles.families`. Each function yields the cases of one family on a device.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from llmgym.profiles import linear_attention
from llmgym.profiles.bench import Case, case
from llmgym.profiles.families import Families
from llmgym.profiles.measure import attention


def known(f: Families) -> dict[str, Callable[[], Iterator[Case]]]:
    """The families of this module by name."""
    return {family.__name__: partial(family, f) for family in (memory, diffusion, segmented, linear)}


def linear(f: Families) -> Iterator[Case]:
    """Cases of `causal_attention`: fused, unfused and linear kernels."""
    torch, kernels = f.torch, linear_attention
    seed, where = f.device.generator, f.device.device
    for heads, d, longest in f.grid.heads:
        for length in f.grid.lengths:
            if length > longest:
                continue
            square, states = 4.0 * heads * length**2, 4.0 * heads * (length / kernels.CHUNK + 1) * (d + 1)

            def ready(heads: int = heads, d: int = d, length: int = length) -> tuple[Any, Any, Any]:
                return (
                    f.random(heads, length, d),
                    f.random(heads, length, d),
                    f.random(heads, length, d),
                )

            def whole(kernel: Any, ready: Any = ready) -> Callable[[], Callable[[], Any]]:
                def prepared() -> Callable[[], Any]:
                    q, k, v = ready()
                    return lambda: kernel(torch, q, k, v)

                return prepared

            def by_features(build: Any, ready: Any = ready) -> Callable[[], Callable[[], Any]]:
                def prepared() -> Callable[[], Any]:
                    q, k, v = ready()
                    features = build()
                    return lambda: kernels.linear(torch, q, k, v, features)

                return prepared

            def flash(torch: Any, q: Any, k: Any, v: Any) -> Any:
                return attention(torch, *(x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)))

            variants: list[tuple[str, float, Callable[[], Callable[[], Any]]]] = [
                ("fused softmax", 0.0, whole(flash)),
                ("softmax", 2 * square, whole(kernels.softmax)),
                ("yat", 3 * square, whole(kernels.yat)),
                ("elu", states * d, by_features(lambda: kernels.elu(torch))),
                (
                    "cosformer",
                    2 * states * d,
                    by_features(lambda length=length: kernels.cosformer(torch, length)),  # type: ignore[misc]
                ),
                (
                    "favor 256",
                    2 * states * 256,
                    by_features(lambda d=d: kernels.favor(torch, d, 256, seed, where)),  # type: ignore[misc]
                ),
            ]
            every = heads == f.grid.heads[0][0] and length in f.grid.lengths[::2]
            for nodes, m, anchors in f.grid.features if every else f.grid.main_features:
                variants.append(
                    (
                        f"slay {nodes} {m} {anchors}",
                        2 * states * nodes * m * anchors + 12.0 * heads * length * nodes * m * anchors,
                        by_features(
                            lambda d=d, n=nodes, m=m, a=anchors: kernels.slay(torch, d, n, m, a, seed, where)  # type: ignore[misc]
                        ),
                    )
                )
            for variant, needs, make in variants:
                measured = case(
                    "causal_attention", variant, needs, make, heads=heads, head_dim=d, length=length
                )
                yield measured._replace(memory=True)


def diffusion(f: Families) -> Iterator[Case]:
    """Cases of `confidence`, `bidirectional_attention` and `denoiser_layer`: decoding by diffusion."""
    shape = f.shape(f.grid.models[0][0])
    sdpa = f.torch.nn.functional.scaled_dot_product_attention
    yield from _confidence(f)
    for batch in f.grid.batches[:2]:
        for queries in (32, *f.grid.chunks):
            for context in f.grid.contexts:

                def make(
                    batch: int = batch, queries: int = queries, keys: int = queries + context
                ) -> Callable[[], Any]:
                    q = f.random(batch, shape.q_heads, queries, shape.head_dim)
                    k, v = (f.random(batch, shape.kv_heads, keys, shape.head_dim) for _ in range(2))
                    return lambda: sdpa(q, k, v, enable_gqa=True)

                needs = 4.0 * batch * (queries + context) * shape.q_heads * shape.head_dim
                variant = f"{shape.q_heads} query heads, {shape.kv_heads} key heads of {shape.head_dim}"

                def layer(
                    batch: int = batch, queries: int = queries, keys: int = queries + context
                ) -> Callable[[], Any]:
                    return _layer(f, batch, queries, keys)

                yield case(
                    "denoiser_layer",
                    shape.name,
                    needs,
                    layer,
                    batch=batch,
                    queries=queries,
                    keys=queries + context,
                )
                yield case(
                    "bidirectional_attention",
                    variant,
                    needs,
                    make,
                    batch=batch,
                    queries=queries,
                    keys=queries + context,
                )


def _confidence(f: Families) -> Iterator[Case]:
    shape = f.shape(f.grid.models[0][0])
    for tokens in f.grid.tokens[: -2 if len(f.grid.tokens) > 2 else None]:

        def make(tokens: int = tokens) -> Callable[[], Any]:
            x, w = f.random(tokens, shape.hidden), f.random(shape.vocab, shape.hidden, scale=0.01)
            return lambda: f.torch.nn.functional.linear(x, w).float().softmax(-1).max(-1)

        yield case("confidence", shape.name, 10.0 * tokens * shape.vocab, make, tokens=tokens)


def _layer(f: Families, batch: int, queries: int, keys: int) -> Callable[[], Any]:
    """One layer of a denoiser: every query sees every key; no cache is written."""
    linear = f.torch.nn.functional.linear
    add_norm, rotary, gate = f.fused
    shape = f.shape(f.grid.models[0][0])
    h, d, width, q_heads, kv_heads = (
        shape.hidden,
        shape.head_dim,
        shape.intermediate,
        shape.q_heads,
        shape.kv_heads,
    )
    tokens, total = batch * queries, q_heads + 2 * kv_heads
    x, weight = f.random(tokens, h), f.random(h)
    w_in, w_out = f.random(total * d, h, scale=h**-0.5), f.random(h, q_heads * d, scale=h**-0.5)
    up, down = f.random(2 * width, h, scale=h**-0.5), f.random(h, width, scale=width**-0.5)
    angle = f.torch.rand(tokens, 1, d // 2, device=f.device.device)
    cos, sin = angle.cos(), angle.sin()
    k, v = (f.random(batch, kv_heads, keys, d) for _ in range(2))
    sdpa = f.torch.nn.functional.scaled_dot_product_attention

    def layer() -> Any:
        normed, added = add_norm(x, x, weight)
        heads = linear(normed, w_in).view(tokens, total, d)
        turned = rotary(heads[:, : q_heads + kv_heads], cos, sin)
        q = turned[:, :q_heads].view(batch, queries, q_heads, d).transpose(1, 2)
        mixed = sdpa(q, k, v, enable_gqa=True).transpose(1, 2).reshape(tokens, q_heads * d)
        normed, added = add_norm(linear(mixed, w_out), added, weight)
        return linear(gate(linear(normed, up)), down)

    return layer


def segmented(f: Families) -> Iterator[Case]:
    """Cases of `segment`: prefill of a segment with retrieved blocks."""
    torch, shape = f.torch, f.shape(f.grid.models[0][0])
    kv_heads, d, block = shape.kv_heads, shape.head_dim, 16
    for chunk in f.grid.chunks[1:]:
        for tail in f.grid.contexts[:2]:
            for retrieved in f.grid.contexts[:3]:

                def make(
                    chunk: int = chunk, tail: int = tail, retrieved: int = retrieved
                ) -> Callable[[], Any]:
                    pool = f.random(2, 4 * retrieved // block + 1, block, kv_heads, d)
                    index = torch.randperm(pool.shape[1], device=f.device.device)[: retrieved // block]
                    q, near = (
                        f.random(1, chunk, shape.q_heads, d),
                        f.random(2, 1, tail + chunk, kv_heads, d),
                    )

                    def call() -> Any:
                        far = pool.index_select(1, index).flatten(1, 2).unsqueeze(1)
                        k, v = torch.cat([far, near], dim=2)
                        return attention(torch, q, k, v)

                    return call

                needs = 40.0 * (chunk + tail + retrieved) * kv_heads * d
                variant = f"{shape.q_heads} query heads, {kv_heads} key heads of {d}, blocks of {block}"
                yield case("segment", variant, needs, make, chunk=chunk, tail=tail, retrieved=retrieved)


def memory(f: Families) -> Iterator[Case]:
    """Cases of `score`, `top_k`, `gather`, `sparse_attention` and `bm25`: retrieval from a long memory."""
    torch, where = f.torch, f.device.device
    index_heads, heads, d, chosen, pages = 16, 32, 128, 2048, 64
    for entries in f.grid.memory:
        k = min(chosen, entries // 2)

        def score(entries: int = entries) -> Callable[[], Any]:
            q, keys = f.random(index_heads, d), f.random(entries, d)
            weight = f.random(index_heads)
            return lambda: (q @ keys.T).relu().mul(weight[:, None]).sum(0)

        def top_k(entries: int = entries, k: int = k) -> Callable[[], Any]:
            scores = torch.randn(entries, device=where, generator=f.device.generator)
            return lambda: torch.topk(scores, k, sorted=False)

        def gather(entries: int = entries, k: int = k) -> Callable[[], Any]:
            values = f.random(entries, 2 * 8 * d)
            index = torch.randperm(entries, device=where)[:k]
            return lambda: values.index_select(0, index)

        def sparse(entries: int = entries) -> Callable[[], Any]:
            page = 16
            keys, values = (f.random(entries // page, page, d) for _ in range(2))
            index = torch.randperm(entries // page, device=where)[: min(pages, entries // page)]
            q = f.random(1, heads, 1, d)
            sdpa = torch.nn.functional.scaled_dot_product_attention

            def call() -> Any:
                k, v = (
                    x.index_select(0, index).flatten(0, 1).expand(1, heads, -1, -1) for x in (keys, values)
                )
                return sdpa(q, k, v)

            return call

        def bm25(documents: int = entries) -> Callable[[], Any]:
            terms, query, slots = 30000, 8, 128
            words = torch.randint(0, terms, (documents, slots), device=where, dtype=torch.int32)
            query_terms = torch.randint(0, terms, (query,), device=where, dtype=torch.int32)
            rarity = torch.rand(query, device=where) * 8.0

            def call() -> Any:
                total = torch.zeros(documents, device=where)
                for i in range(query):
                    count = (words == query_terms[i]).sum(1, dtype=torch.float32)
                    total += rarity[i] * count * 2.2 / (count + 1.2)
                return total

            return call

        yield case("score", f"{index_heads} heads of {d}", 2.0 * entries * d, score, entries=entries)
        yield case("top_k", f"{chosen} at most", 8.0 * entries, top_k, entries=entries)
        yield case(
            "gather", f"{chosen} rows of 4096 bytes at most", 32.0 * entries * d, gather, entries=entries
        )
        yield case(
            "sparse_attention",
            f"{pages} pages of 16, {heads} heads of {d}",
            4.0 * entries * d,
            sparse,
            entries=entries,
        )
        yield case("bm25", "8 terms, documents of 128 words", 640.0 * entries, bm25, entries=entries)
