"""Attention kernels of one layer, fused, unfused and linear in the length, to be timed.

Shapes: q and k [heads, length, head_dim], v the same; the result has the shape of v. All are causal.

- `softmax`: the attention matrix written out; `yat`: the same with the spherical Yat kernel K(x) = x^2 / (2 + eps - 2 x) of unit
  vectors with cosine x (Luna, Bouhsine, Choromanski, "SLAY", arXiv 2602.04915).
- Linear ones have features F(q), F(k) >= 0 with m entries, and F(q) . F(k) in the place of the kernel: `elu` (Katharopoulos et al.,
  ICML 2020), `cosformer` (Qin et al., ICLR 2022), `favor` (Choromanski et al., ICLR 2021), `slay`(R, M, P): R quadrature nodes x P
  anchors x M random features (arXiv 2602.04915, section 3; `llmgym.profiles.slay`). They run in chunks of `CHUNK` tokens: inside a
  chunk the product of features is written out, what came before is one sum of m x head_dim numbers per chunk. All chunks run at
  once, which takes memory for those sums and for the features of the whole length, but no loop in Python. Products are in the type
  of v, running sums in float32. `yat` needs float32 throughout: near x = 1 its denominator is eps.
"""

import math
from collections.abc import Callable
from typing import Any

from llmgym.profiles.slay import CHUNK, DELTA, EPSILON, Slay, exact

__all__ = ["CHUNK", "DELTA", "EPSILON", "cosformer", "elu", "favor", "linear", "slay", "softmax", "yat"]


def softmax(torch: Any, q: Any, k: Any, v: Any) -> Any:
    """Causal softmax attention with the matrix written out.

    Args:
        torch: the module.
        q: queries [heads, length, head_dim].
        k: keys [heads, length, head_dim].
        v: values [heads, length, head_dim].

    Returns:
        [heads, length, head_dim], of the type of v.
    """
    length = q.shape[-2]
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    hidden = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    return torch.softmax(scores.masked_fill(hidden, -math.inf), dim=-1) @ v


def yat(torch: Any, q: Any, k: Any, v: Any) -> Any:
    """Causal attention with the exact spherical Yat kernel, its matrix written out in float32.

    Args:
        torch: the module.
        q: queries [heads, length, head_dim].
        k: keys [heads, length, head_dim].
        v: values [heads, length, head_dim].

    Returns:
        [heads, length, head_dim], of the type of v.
    """
    return exact(torch, q.float(), k.float(), v.float()).to(v.dtype)


def elu(torch: Any) -> Callable[[Any], Any]:
    """The exponential linear unit plus one as features; m = head_dim."""
    return lambda x: torch.nn.functional.elu(x.float()) + 1.0


def cosformer(torch: Any, length: int) -> Callable[[Any], Any]:
    """Features relu(x) times cos and sin of the position; m = 2 head_dim."""

    def features(x: Any) -> Any:
        angle = torch.arange(x.shape[-2], device=x.device).float().unsqueeze(-1) * (math.pi / 2 / length)
        positive = x.float().relu()
        return torch.cat([positive * angle.cos(), positive * angle.sin()], dim=-1)

    return features


def favor(torch: Any, head_dim: int, m: int, generator: Any, device: Any) -> Callable[[Any], Any]:
    """Draw positive random features of the softmax kernel.

    Args:
        torch: the module.
        head_dim: entries of a head.
        m: number of features.
        generator: of torch, on the device.
        device: where the features are computed.

    Returns:
        A function from [..., head_dim] to features, float32 [..., m].
    """
    directions = torch.randn(head_dim, m, generator=generator, device=device)

    def features(x: Any) -> Any:
        x = x.float() * head_dim**-0.25
        exponent = x @ directions - 0.5 * x.square().sum(-1, keepdim=True)
        return exponent.clamp(-20.0, 20.0).exp() * m**-0.5

    return features


def slay(
    torch: Any, head_dim: int, nodes: int, m: int, anchors: int, generator: Any, device: Any
) -> Callable[[Any], Any]:
    """Draw features of SLAY; `nodes` x `anchors` x `m` of them.

    Args:
        torch: the module.
        head_dim: entries of a head.
        nodes: of the quadrature, R.
        m: random features for each node, M.
        anchors: squared projections for each node, P.
        generator: of torch, on the device.
        device: where the features are computed.

    Returns:
        A function from [..., head_dim] to features, float32 [..., R P M].
    """
    return Slay.draw(torch, head_dim, (nodes, m, anchors), generator, device=device).__call__


def linear(torch: Any, q: Any, k: Any, v: Any, features: Callable[[Any], Any]) -> Any:
    """Causal attention with the kernel F(q) . F(k), in chunks.

    Args:
        torch: the module.
        q: queries [heads, length, head_dim]; the length is a multiple of `CHUNK`, or shorter than it.
        k: keys [heads, length, head_dim].
        v: values [heads, length, head_dim].
        features: maps [heads, length, head_dim] to [heads, length, m], no entry negative.

    Returns:
        [heads, length, head_dim], of the type of v.
    """
    chunk = min(CHUNK, q.shape[-2])
    fq, fk, values = (x.to(v.dtype).unflatten(-2, (-1, chunk)) for x in (features(q), features(k), v))
    values = torch.nn.functional.pad(values, (0, 1), value=1.0)  # the last column sums up the denominators
    inside = (fq @ fk.transpose(-1, -2)).tril() @ values
    sums = (fk.transpose(-1, -2) @ values).float()
    out = (inside + fq @ (sums.cumsum(-3) - sums).to(v.dtype)).float()
    return (out[..., :-1] / (out[..., -1:] + DELTA)).flatten(-3, -2).to(v.dtype)
