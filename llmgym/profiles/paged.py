"""Decode attention over a paged KV cache, in Triton: one query token a sequence, blocks of `BLOCK` tokens found through a table.

Flash decoding (Dao, Haziza, Massa, Sizov, 2023) on the paged layout of vLLM (Kwon et al., SOSP 2023): each sequence is cut into
parts of `PART` tokens that run side by side with a running maximum and sum of their own, and a second kernel joins the parts.
Grouped queries share the keys they read.
"""

from typing import Any

BLOCK = 16
PART = 256


def build(torch: Any) -> Any:
    """The function `paged_decode(q, keys, values, table, lengths)`; importing Triton is left until here.

    - q [batch, query heads, head_dim] bf16; keys, values [blocks, BLOCK, key heads, head_dim] bf16; table int32 [batch, most
      blocks]; lengths int32 [batch], tokens cached. Returns [batch, query heads, head_dim] bf16.

    Raises:
        ImportError: Triton is not installed.
    """
    import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
    import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def parts_kernel(  # type: ignore[no-untyped-def]
        q_at, k_at, v_at, table_at, length_at, out_at, top_at, sum_at,
        scale, q_heads, kv_heads, most, parts,
        group: tl.constexpr, rows: tl.constexpr, dim: tl.constexpr, block: tl.constexpr, part: tl.constexpr,
    ):  # fmt: skip
        sequence, kv_head, number = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        length = tl.load(length_at + sequence)
        start = number * part
        if start < length:
            row, column = tl.arange(0, rows), tl.arange(0, dim)
            head = kv_head * group + row
            q_cell = (sequence * q_heads + head)[:, None] * dim + column[None, :]
            q = tl.load(q_at + q_cell, mask=(row < group)[:, None], other=0.0)
            top = tl.full((rows,), -1.0e30, tl.float32)
            total = tl.zeros((rows,), tl.float32)
            out = tl.zeros((rows, dim), tl.float32)
            for at in range(start, min(start + part, length), block):
                token = at + tl.arange(0, block)
                page = tl.load(table_at + sequence * most + at // block).to(tl.int64)
                cell = ((page * block + tl.arange(0, block)) * kv_heads + kv_head)[:, None] * dim + column[
                    None, :
                ]
                inside = token < length
                k = tl.load(k_at + cell, mask=inside[:, None], other=0.0)
                v = tl.load(v_at + cell, mask=inside[:, None], other=0.0)
                score = tl.where(inside[None, :], tl.dot(q, tl.trans(k)) * scale, -1.0e30)
                higher = tl.maximum(top, tl.max(score, 1))
                weight = tl.exp(score - higher[:, None])
                shrink = tl.exp(top - higher)
                total = total * shrink + tl.sum(weight, 1)
                out = out * shrink[:, None] + tl.dot(weight.to(v.dtype), v)
                top = higher
            place = (sequence * q_heads + head) * parts + number
            tl.store(out_at + place[:, None] * dim + column[None, :], out, mask=(row < group)[:, None])
            tl.store(top_at + place, top, mask=row < group)
            tl.store(sum_at + place, total, mask=row < group)

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def join_kernel(  # type: ignore[no-untyped-def]
        out_at, top_at, sum_at, length_at, result_at, q_heads, parts,
        wide: tl.constexpr, dim: tl.constexpr, part: tl.constexpr,
    ):  # fmt: skip
        sequence, head = tl.program_id(0), tl.program_id(1)
        length = tl.load(length_at + sequence)
        number, column = tl.arange(0, wide), tl.arange(0, dim)
        used = number * part < length
        place = (sequence * q_heads + head) * parts + number
        top = tl.load(top_at + place, mask=used, other=-1.0e30)
        weight = tl.exp(top - tl.max(top, 0))
        total = tl.sum(weight * tl.load(sum_at + place, mask=used, other=0.0), 0)
        out = tl.load(out_at + place[:, None] * dim + column[None, :], mask=used[:, None], other=0.0)
        result = tl.sum(out * weight[:, None], 0) / total
        tl.store(
            result_at + (sequence * q_heads + head) * dim + column, result.to(result_at.dtype.element_ty)
        )

    def paged_decode(q: Any, keys: Any, values: Any, table: Any, lengths: Any) -> Any:
        batch, q_heads, dim = q.shape
        kv_heads, most = keys.shape[2], table.shape[1]
        group = q_heads // kv_heads
        parts = max(1, -(-most * BLOCK // PART))
        wide = 1 << (parts - 1).bit_length()
        out = torch.empty(batch, q_heads, parts, dim, dtype=torch.float32, device=q.device)
        top, total = torch.empty(2, batch, q_heads, parts, dtype=torch.float32, device=q.device)
        result = torch.empty_like(q)
        parts_kernel[(batch, kv_heads, parts)](
            q, keys, values, table, lengths, out, top, total,
            dim**-0.5, q_heads, kv_heads, most, parts,
            group=group, rows=max(16, group), dim=dim, block=BLOCK, part=PART,
        )  # fmt: skip
        join_kernel[(batch, q_heads)](
            out, top, total, lengths, result, q_heads, parts, wide=wide, dim=dim, part=PART
        )
        return result

    return paged_decode


def reference(torch: Any, q: Any, keys: Any, values: Any, table: Any, lengths: Any) -> Any:
    """Decode attention over a paged KV cache in float32, one sequence after another, to compare the kernel with.

    Args:
        torch: the module.
        q: queries [batch, query heads, head_dim].
        keys: cached keys [blocks, BLOCK, key heads, head_dim].
        values: cached values [blocks, BLOCK, key heads, head_dim].
        table: blocks of each sequence, int32 [batch, most blocks].
        lengths: tokens cached for each sequence, int32 [batch].

    Returns:
        float32 [batch, query heads, head_dim].
    """
    out = []
    for i, length in enumerate(lengths.tolist()):
        k, v = (x[table[i].long()].flatten(0, 1)[:length].float() for x in (keys, values))
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        scores = torch.einsum("hd,thd->ht", q[i].float(), k) * q.shape[-1] ** -0.5
        out.append(torch.einsum("ht,thd->hd", torch.softmax(scores, -1), v))
    return torch.stack(out)
