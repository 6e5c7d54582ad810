"""Memory and time of a prefill, whole or in segments: closed forms and published numbers.

Shang, Li, Duo, Cai and Su, "Training-Inference Consistent Segmented Execution for Long-Context LLMs", ICML 2026 (arXiv 2605.11744):
a prompt of T tokens is executed in segments of S. Local heads carry the keys and values of the last M tokens from one segment to
the next; long-range heads of a few layers read R tokens back from a pool of all that came before. Memory then grows by the pool
alone, and attention costs T S instead of T squared.

The paper prints peak memory and time to first token at two lengths. The forms here follow from the shapes of the model and are
fitted to these numbers where they have a free constant; each constant says which it is.
"""

from dataclasses import dataclass
from functools import cache

from llmgym import profiles
from llmgym.core.checks import choice, whole
from llmgym.profiles.cost import decode_attention_s, dense_s, prefill_attention_s

GIB, KIB = 2**30, 2**10
BYTES = 2
"""Size of a number in bf16, bytes."""
HEAD_DIM = 128
"""Entries of an attention head in both models."""
MULTIPLY_ADD = 2
"""FLOP of one multiplication with its addition."""

SEGMENT, TAIL, RETRIEVED = 4096, 512, 512
"""S, M and R of the paper: tokens of a segment, carried ones, retrieved ones."""
PREFIX = 512
"""Positions in front of a segment that carried and retrieved tokens share."""
POOL_LAYERS = 4
"""Layers with retrieval, of 32, in both models."""
FIRST_POOL = 8192
"""Entries of the pool's buffer when it is made; it doubles when it is full (the authors' code)."""

LOGITS_BYTES = 6
"""Memory of a full forward pass for each token and word, bytes: logits in bf16 and in float32."""
LAST_LOGITS_BYTES = 4
"""Memory of the logits of one token for each word, where those of no other are wanted: float32, bytes."""
MLP_BYTES, RESIDUAL_BYTES, WHOLE_RESIDUAL_BYTES = 8, 4, 2
"""Peak inside a layer for each token: of the MLP's width, of the model's width beside it, and of the latter under full logits."""
SEGMENT_BYTES = round(2.745 * GIB)
"""What segmented execution holds beside a segment's own activations; fitted to the paper's peaks."""
CCA_BYTES = 996 * KIB
"""Memory of core context aware attention for each token, bytes; fitted to the paper's peaks. No mode of the environment has it."""

SEGMENT_S = 0.095
"""Time of the retrieval loop for each segment, seconds; fitted to the paper's times. It is many small kernels, not arithmetic."""
CHUNK_S = 0.005
"""Time that a chunk of exact attention takes beside its arithmetic, seconds; assumed."""
DUO_DENSE, DUO_PAIRS = 0.942, 0.908
"""DuoAttention over full attention: time that is linear and time that is quadratic in T, fitted to the paper's two times."""
STREAMING_S, STREAMING_DENSE = 0.11, 1.196
"""StreamingLLM: fixed time, seconds, and linear time over that of full attention, fitted to the paper's two times."""

PEAK_GIB = {
    "full": (23.61, 34.67),
    "streaming": (22.19, 31.77),
    "duo": (18.15, 23.66),
    "cca": (28.08, 43.64),
    "segmented": (18.56, 19.06),
}
"""Peak memory in the paper's table, GiB, at the two lengths of `LENGTHS`."""
TTFT_S = {
    "full": (1.62, 4.13),
    "cca": (1.79, 3.88),
    "streaming": (1.59, 3.07),
    "duo": (1.53, 3.79),
    "segmented": (1.70, 3.49),
}
"""Time to first token in the paper's table, seconds, at the two lengths of `LENGTHS`."""
LENGTHS = (16_384, 32_768)
"""Tokens at which both columns were measured; the paper names them by its models of 32K and 80K. It follows from the peaks."""


@dataclass(frozen=True)
class Model:
    """A language model by its shapes.

    Attributes:
        weights_gib: its weights in bf16, GiB.
        parameters: of its layers, without the embeddings.
        width: of the residual stream.
        ff: width of the MLP.
        vocabulary: words.
        kv_heads: key heads of a layer.
        long_heads: of these, long-range ones.
        layers: how many.
    """

    weights_gib: float
    parameters: float
    width: int
    ff: int
    vocabulary: int
    kv_heads: int
    long_heads: int
    layers: int = 32

    @property
    def kv_bytes(self) -> int:
        """Of one token in the whole KV cache."""
        return 2 * BYTES * HEAD_DIM * self.layers * self.kv_heads

    @property
    def pool_bytes(self) -> int:
        """Of one token in the pool of retrieval."""
        return 2 * BYTES * HEAD_DIM * POOL_LAYERS * self.long_heads

    @property
    def whole_bytes(self) -> int:
        """Activations and logits of one token where logits of all positions are wanted."""
        return LOGITS_BYTES * self.vocabulary + WHOLE_RESIDUAL_BYTES * self.width

    @property
    def layer_bytes(self) -> int:
        """Activations of one token where only the last one's logits are wanted."""
        return MLP_BYTES * self.ff + RESIDUAL_BYTES * self.width

    def carried_bytes(self, tail: int) -> int:
        """Keys and values of the last `tail` tokens, of the local heads of all layers."""
        return 2 * BYTES * HEAD_DIM * self.layers * (self.kv_heads - self.long_heads) * tail

    def segment_bytes(self, segment: int) -> int:
        """What a segment of so many tokens needs while it runs, with the tail that the paper carries."""
        return SEGMENT_BYTES + segment * (self.kv_bytes + self.whole_bytes)


MODELS = {
    "llama-2-7b": Model(12.551, 6.607e9, 4096, 11_008, 32_000, 32, 16),
    "llama-3.1-8b": Model(14.958, 6.980e9, 4096, 14_336, 128_256, 8, 4),
}
"""By name; shapes are those of the models' configurations."""


@dataclass(frozen=True)
class Device:
    """A GPU by what it reaches.

    Attributes:
        memory_gib: of the card, GiB.
        dense_flops: FLOP a second of the products of a layer.
        attention_flops: FLOP a second of attention.
        bytes_per_s: read in decoding, weights and caches.
    """

    memory_gib: float
    dense_flops: float
    attention_flops: float
    bytes_per_s: float


A100_FLOPS = 175e12
"""Rate at which the paper's times of full attention come out; the paper's GPU is not told, the rate is that of an A100."""
A100_BYTES_PER_S = 1.5e12
"""Three quarters of the 2.04 TB/s of an A100 80GB's data sheet; assumed."""
MEASURED = {"h100": "h100/llama-3.1-8b-measured", "h200": "h200/llama-3.1-8b-measured"}
"""Profiles that the other devices are taken from."""
DEVICES = ("a100", "a100-40", *MEASURED)


@cache
def device(name: str) -> Device:
    """A GPU by its name in `DEVICES`; those of `MEASURED` reach what this package's profiles measured there.

    Raises:
        UnknownName: there is none of this name.
    """
    choice("device", name, DEVICES)
    if name not in MEASURED:
        return Device(40.0 if name == "a100-40" else 80.0, A100_FLOPS, A100_FLOPS, A100_BYTES_PER_S)
    profile = profiles.load(MEASURED[name])
    cost, model = profile.step_cost(), MODELS["llama-3.1-8b"]
    tokens, batch = 8192, 8
    dense = MULTIPLY_ADD * model.parameters * tokens / dense_s(cost, tokens)
    # a chunk that follows one of its own length sees 1.5 tokens of it for each of its own
    pairs = 2 * MULTIPLY_ADD * model.width * model.layers * 1.5 * tokens * tokens
    read = model.weights_gib * GIB + batch * tokens * model.kv_bytes
    took_s = dense_s(cost, batch) + decode_attention_s(cost, batch, batch * tokens)
    return Device(
        profile.memory_bytes / GIB, dense, pairs / prefill_attention_s(cost, tokens, tokens), read / took_s
    )


def pairs_flop(model: Model) -> int:
    """FLOP of causal attention over T tokens, divided by T squared: scores and values, half of the matrix."""
    return MULTIPLY_ADD * model.width * model.layers


def peak_gib(method: str, tokens: int, model: str = "llama-2-7b", segment: int = SEGMENT) -> float:
    """Peak memory of a prefill that is alone on the card.

    Args:
        method: one of `PEAK_GIB`.
        tokens: T, of the prompt.
        model: one of `MODELS`.
        segment: S, tokens of a segment.

    Returns:
        Weights, caches and activations, GiB.

    Raises:
        UnknownName: another method or model.
        InvalidArgument: fewer than one token.
    """
    choice("method", method, PEAK_GIB)
    m = MODELS[choice("model", model, MODELS)]
    whole("tokens", tokens)
    whole("segment", segment)
    if method == "segmented":
        total = m.segment_bytes(segment) + m.pool_bytes * tokens
    else:
        each = {
            "full": m.kv_bytes + m.whole_bytes,
            "streaming": m.kv_bytes + m.layer_bytes,
            "duo": m.kv_bytes // 2 + m.layer_bytes,
            "cca": CCA_BYTES,
        }
        total = each[method] * tokens
    return m.weights_gib + total / GIB


def full_s(tokens: float, model: str = "llama-2-7b", on: str = "a100") -> float:
    """Time to first token of full attention, seconds: (2 N T + 2 T^2 w L) / F.

    Args:
        tokens: T, of the prompt.
        model: one of `MODELS`.
        on: one of `DEVICES`.

    Returns:
        Seconds.

    Raises:
        UnknownName: there is no such GPU.
    """
    m, gpu = MODELS[model], device(on)
    dense = MULTIPLY_ADD * m.parameters * tokens / gpu.dense_flops
    return dense + pairs_flop(m) * tokens * tokens / gpu.attention_flops


def segmented_s(
    tokens: float, segment: int = SEGMENT, model: str = "llama-2-7b", on: str = "a100", tail: int = TAIL
) -> float:
    """Time to first token of segmented execution, seconds, for a whole number of segments.

    (2 N T + 2 T S w L + 4 (T - S) w L (alpha M + beta (1 - alpha) R)) / F + c T / S, where alpha is the share of local heads and
    beta that of layers with retrieval.

    Args:
        tokens: T, of the prompt.
        segment: S, tokens of a segment.
        model: one of `MODELS`.
        on: one of `DEVICES`.
        tail: M, tokens carried by local heads; R is the paper's.

    Returns:
        Seconds.

    Raises:
        UnknownName: there is no such GPU.
    """
    m, gpu = MODELS[model], device(on)
    attention = pairs_flop(m) * (
        tokens * segment + 2.0 * (tokens - segment) * visible_prefix(m, tail, RETRIEVED)
    )
    dense = MULTIPLY_ADD * m.parameters * tokens / gpu.dense_flops
    return dense + attention / gpu.attention_flops + SEGMENT_S * tokens / segment


def visible_prefix(model: Model, tail: int, retrieved: int) -> float:
    """Tokens before the segment that a head sees on average: alpha M + beta (1 - alpha) R.

    Args:
        model: the model, of whose heads a share alpha is local.
        tail: M, tokens carried by local heads.
        retrieved: R, tokens retrieved by long-range heads of layers with a pool, a share beta of all layers.

    Returns:
        Tokens, mean over heads and layers.
    """
    long = model.long_heads / model.kv_heads
    return (1.0 - long) * tail + POOL_LAYERS / model.layers * long * retrieved


def pool_entries(tokens: int) -> int:
    """Entries that the pool's buffer has for so many tokens: it doubles from `FIRST_POOL` on."""
    return max(FIRST_POOL, 1 << (whole("tokens", tokens) - 1).bit_length())
