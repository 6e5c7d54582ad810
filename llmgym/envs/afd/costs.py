"""What attention, FFN and the link between them cost: affine latencies, the paper's, and those of a GPU.

Song et al., arXiv 2601.21351v1, section 3: t_A = alpha_A T + beta_A for the T tokens in the KV cache of a microbatch (memory
bound), t_F = alpha_F n + beta_F for the n requests of a step (compute bound), t_C = alpha_C n + beta_C for a round trip.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmgym.core.checks import number, whole
from llmgym.errors import InvalidArgument

if TYPE_CHECKING:
    from llmgym.profiles import Profile

MICROSECOND_S = 1e-6
LINK_LATENCY_US = 5.0
"""One way between two instances, chosen here: the order of a small RDMA write with a kernel launch on either side."""


@dataclass(frozen=True)
class Coefficients:
    """Latencies of one step, in one unit of time ("cycles" in the paper, microseconds for a GPU).

    Attributes:
        alpha_attention: alpha_A, time of attention for each token in the KV cache of a microbatch.
        beta_attention: beta_A, time of attention without any token.
        alpha_ffn: alpha_F, time of the FFN for each request.
        beta_ffn: beta_F, time of the FFN without any request.
        alpha_comm: alpha_C, time of the link for each request, both ways together.
        beta_comm: beta_C, time of the link without any request, both ways together.
        cycle_s: length of the unit of time, seconds.
        source: where the numbers come from.

    Raises:
        InvalidArgument: a slope of attention or FFN that is not positive, or any number that is negative or not finite.
    """

    alpha_attention: float
    beta_attention: float
    alpha_ffn: float
    beta_ffn: float
    alpha_comm: float
    beta_comm: float
    cycle_s: float = MICROSECOND_S
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("alpha_attention", "alpha_ffn", "cycle_s"):
            number(name, getattr(self, name))
        for name in ("beta_attention", "beta_ffn", "alpha_comm", "beta_comm"):
            number(name, getattr(self, name), zero=True)

    def attention(self, load_tokens: ArrayLike) -> NDArray[np.float64]:
        """t_A of a microbatch with so many tokens in its KV cache, in the unit of time; shape of the argument."""
        return np.asarray(self.alpha_attention * np.asarray(load_tokens, np.float64) + self.beta_attention)

    def ffn(self, requests: ArrayLike) -> NDArray[np.float64]:
        """t_F of so many requests, in the unit of time; shape of the argument."""
        return np.asarray(self.alpha_ffn * np.asarray(requests, np.float64) + self.beta_ffn)

    @property
    def values(self) -> tuple[float, float, float, float, float, float]:
        """The six numbers alpha_A, beta_A, alpha_F, beta_F, alpha_C, beta_C."""
        a, b, c, d, e, f = (getattr(self, name) for name in NAMES)
        return a, b, c, d, e, f


NAMES = tuple(field.name for field in fields(Coefficients))[:6]
"""The six coefficients in the order of `Coefficients.values`."""
ALPHA_A, BETA_A, ALPHA_F, BETA_F, ALPHA_C, BETA_C = range(6)
"""Where each of the six coefficients is in a row of them."""

PAPER = Coefficients(
    0.00165,
    50.0,
    0.083,
    100.0,
    0.022,
    20.0,
    source="DeepSeek-V3 on Ascend 910C: Song et al., arXiv 2601.21351v1, section 5; "
    "the length of a cycle is not stated, 1 us stands in",
)
"""The paper's coefficients. Nothing depends on `cycle_s` but the clock in seconds."""


def from_shape(
    *,
    kv_bytes_per_token: float,
    flop_per_token: float,
    activation_bytes_per_token: float,
    hbm_gb_per_s: float,
    tflop_per_s: float,
    link_gb_per_s: float,
    attention_us: float = 0.0,
    ffn_us: float = 0.0,
    link_us: float = 2 * LINK_LATENCY_US,
    source: str = "",
) -> Coefficients:
    """Coefficients from sizes and *effective* rates, in microseconds.

    alpha_A = KV bytes of a token / memory bandwidth, alpha_F = operations of a token / compute rate, alpha_C = activation bytes of
    a token both ways / link bandwidth; the intercepts are launches, weights that have to be read, and latencies.

    Args:
        kv_bytes_per_token: bytes that attention reads for each cached token in a step.
        flop_per_token: operations of the FFN side for each request in a step.
        activation_bytes_per_token: bytes sent for each request in a step, both ways together.
        hbm_gb_per_s: memory bandwidth that attention reaches, GB/s.
        tflop_per_s: compute rate that the FFN reaches, TFLOP/s.
        link_gb_per_s: bandwidth between an attention and an FFN instance, GB/s.
        attention_us: beta_A, us.
        ffn_us: beta_F, us.
        link_us: beta_C, us.
        source: where the numbers come from.

    Returns:
        The coefficients, in microseconds.

    Raises:
        InvalidArgument: a number that is zero or negative where it must not be.
    """
    sizes = {
        "kv_bytes_per_token": kv_bytes_per_token,
        "flop_per_token": flop_per_token,
        "activation_bytes_per_token": activation_bytes_per_token,
        "hbm_gb_per_s": hbm_gb_per_s,
        "tflop_per_s": tflop_per_s,
        "link_gb_per_s": link_gb_per_s,
    }
    for name, value in sizes.items():
        number(name, value)
    return Coefficients(
        alpha_attention=kv_bytes_per_token / (hbm_gb_per_s * 1e3),
        beta_attention=number("attention_us", attention_us, zero=True),
        alpha_ffn=flop_per_token / (tflop_per_s * 1e6),
        beta_ffn=number("ffn_us", ffn_us, zero=True),
        alpha_comm=activation_bytes_per_token / (link_gb_per_s * 1e3),
        beta_comm=number("link_us", link_us, zero=True),
        source=source,
    )


@dataclass(frozen=True)
class ProfileFit:
    """Coefficients fitted to a profile, and how well they fit.

    Attributes:
        coefficients: latencies of a whole forward pass (all layers), microseconds.
        attention_r2: R^2 of the fit of decode attention.
        ffn_r2: R^2 of the fit of dense work.
        attention_tokens: fewest and most cached tokens that the fit of attention spans.
        ffn_tokens: fewest and most tokens that the fit of dense work spans.
    """

    coefficients: Coefficients
    attention_r2: float
    ffn_r2: float
    attention_tokens: tuple[int, int]
    ffn_tokens: tuple[int, int]


_POINTS = 48  # of each fit; this and the ranges are chosen here
_COMPUTE_BOUND = 2.0  # dense work counts as compute bound where it takes twice as long as for a single token
_MOST_FFN_TOKENS = 8192
_LEAST_CONTEXT, _MOST_CONTEXT = 64, 16_384  # cached tokens of a sequence


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float]:
    """Slope, intercept and R^2 of the least-squares line; through the origin where the intercept would be negative."""
    slope, intercept = np.polyfit(x, y, 1)
    if intercept < 0.0:
        slope, intercept = float(x @ y / (x @ x)), 0.0
    residual = y - slope * x - intercept
    return (
        float(slope),
        float(intercept),
        1.0 - float(residual @ residual) / float(((y - y.mean()) ** 2).sum()),
    )


def fit(
    profile: "Profile", batch: int, link_gb_per_s: float, link_latency_us: float = LINK_LATENCY_US
) -> ProfileFit:
    """Affine latencies of a profile: the attention part is its decode attention, the FFN part everything dense.

    - Attention: least squares of decode attention of `batch` sequences over 64 to 16,384 cached tokens each, as far as was
      measured.
    - FFN: least squares of dense work (in these profiles with projections and output head) over the tokens where it is compute
      bound, at least twice as long as for one token, up to 8,192. Below that range the line is too low by up to the time it takes
      to read the weights once.
    - Link: hidden width in bf16, both ways, in each layer, over the bandwidth; two latencies a layer.

    A step of the paper's model is then a whole forward pass. Layers alternate between the pools one after the other, so with all
    layers alike the ratio is that of a single layer.

    Args:
        profile: of kind "tables", of a model in `llmgym.profiles.models.MODELS`.
        batch: B, requests of a microbatch of one attention instance.
        link_gb_per_s: bandwidth between two instances, GB/s each way.
        link_latency_us: latency of one way, us.

    Returns:
        The coefficients, in microseconds, and how well they fit.

    Raises:
        InvalidArgument: a profile without kernel costs or of an unknown model, or a number out of range.
    """
    from llmgym.profiles.cost import decode_attention_s, dense_s
    from llmgym.profiles.models import BF16_BYTES, MODELS

    b = whole("batch", batch, high=65_536)
    number("link_gb_per_s", link_gb_per_s)
    number("link_latency_us", link_latency_us, zero=True)
    if profile.kind != "tables":
        raise InvalidArgument(
            f"profile={profile.name!r} has no kernel costs to fit; its kind is {profile.kind!r}"
        )
    if profile.model not in MODELS:
        raise InvalidArgument(
            f"profile={profile.name!r}: its model {profile.model!r} is none of {', '.join(MODELS)}"
        )
    cost = profile.step_cost()
    head: Any = cost.head[0]
    most = min(_MOST_CONTEXT, float(head["kv_to"]), float(head["kv_total_to"]) / b)
    least = max(_LEAST_CONTEXT, float(head["kv_from"]))
    if most < 2 * least:
        raise InvalidArgument(
            f"batch={batch!r}: profile {profile.name!r} has no attention of so many sequences"
        )
    cached = np.unique(np.linspace(b * least, b * most, _POINTS).astype(np.int64))
    attention = np.array([decode_attention_s(cost, b, int(n)) for n in cached]) / MICROSECOND_S
    single_s = dense_s(cost, 1)
    last = int(min(_MOST_FFN_TOKENS, head["tokens_to"]))
    first = next((n for n in range(1, last) if dense_s(cost, n) >= _COMPUTE_BOUND * single_s), last)
    if last < 2 * first:
        raise InvalidArgument(
            f"profile={profile.name!r}: its dense work is not compute bound up to {last} tokens"
        )
    tokens = np.unique(np.linspace(first, last, _POINTS).astype(np.int64))
    dense = np.array([dense_s(cost, int(n)) for n in tokens]) / MICROSECOND_S
    alpha_a, beta_a, attention_r2 = _line(cached.astype(np.float64), attention)
    alpha_f, beta_f, ffn_r2 = _line(tokens.astype(np.float64), dense)
    shape = MODELS[profile.model]
    made = Coefficients(
        alpha_a,
        beta_a,
        alpha_f,
        beta_f,
        2 * shape.layers * shape.hidden * BF16_BYTES / (link_gb_per_s * 1e3),
        2 * shape.layers * link_latency_us,
        source=f"affine fit to profile {profile.name}, link {link_gb_per_s:g} GB/s and {link_latency_us:g} us",
    )
    return ProfileFit(
        made, attention_r2, ffn_r2, (int(cached[0]), int(cached[-1])), (int(tokens[0]), int(tokens[-1]))
    )
