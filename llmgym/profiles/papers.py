"""Step costs that papers state, as profiles.

- Nie, Si, Zhou, "A Queueing-Theoretic Framework for Stability Analysis of LLM Inference with KV Cache Memory
  Constraints", ICML 2026, https://arxiv.org/abs/2605.04595: a step takes a constant b that depends on the
  workload's prompt:output ratio.
- Dai, Deng, Li, Peng, "Throughput-Optimal Scheduling Algorithms for LLM Inference and AI Agents",
  https://arxiv.org/abs/2504.07347: a step is a staircase in the tokens of its batch.
"""

from collections.abc import Callable
from functools import partial

from llmgym.profiles.profile import Profile, Provenance, Source, from_law

KV_QUEUE_TOKENS = 131_000
"""KV capacity M of the paper's GPU, tokens."""
KV_QUEUE_STEP_S = {"1:1": 0.0372, "2:1": 0.0430, "1:2": 0.0337}
"""Step time b of the paper for each prompt:output ratio, s."""
KV_QUEUE_LINEAR = {"c0_s": 0.0163, "c_kv_s": 1.05e-7, "c_tok_s": 7.13e-5}
"""Linear law through the three values of b: s, s per resident token, s per prompt token."""
TINY_STEP_S, TINY_TOKENS = 0.01, 2_000
"""A small world for tests and pictures: step time, s, and KV capacity, tokens."""
CODELLAMA_STAIRCASE = {"c0_s": 11.28e-3, "tile_s": 35.47e-3, "tile_tokens": 128.0}
"""Step time of CodeLlama-34B against batch tokens: s, s a tile, tokens a tile."""

_KV_QUEUE = Source(
    "Nie, Si, Zhou: A Queueing-Theoretic Framework for Stability Analysis of LLM Inference with KV Cache "
    "Memory Constraints, ICML 2026",
    "https://arxiv.org/abs/2605.04595",
    "published numbers (facts)",
)
_TOKEN_BATCH = Source(
    "Dai, Deng, Li, Peng: Throughput-Optimal Scheduling Algorithms for LLM Inference and AI Agents, arXiv "
    "2504.07347",
    "https://arxiv.org/abs/2504.07347",
    "published numbers (facts)",
)
_DATE = "2026-11-24"


def _kv_queue_constant(ratio: str) -> Profile:
    note = f"b for prompt:output {ratio}; it holds for that workload at saturation and for no other."
    origin = Provenance("paper", _DATE, (_KV_QUEUE,), notes=(note,))
    numbers = {"c0_s": KV_QUEUE_STEP_S[ratio]}
    return from_law(f"paper/kv-queue-{ratio}", "constant", origin, numbers, kv_tokens=KV_QUEUE_TOKENS)


def _kv_queue_linear() -> Profile:
    notes = (
        "Fitted by llmgym to the paper's three values of b (least squares, residuals up to 0.5 %).",
        "The split between c0_s and c_kv_s is not identified by the paper's data: the cache is about full "
        "in all three workloads, so only c0_s + c_kv_s * M is. It was chosen so that reading the cache "
        "runs at a plausible bandwidth; do not reason with it about a cache that is nearly empty.",
    )
    error = {"fit to the three values of b": {"max_ape_pct": 0.5, "n": 3}}
    origin = Provenance("paper", _DATE, (_KV_QUEUE,), errors=error, notes=notes)
    return from_law("paper/kv-queue-linear", "linear", origin, KV_QUEUE_LINEAR, kv_tokens=KV_QUEUE_TOKENS)


def _tiny() -> Profile:
    source = Source("chosen for this package", "-", "MIT")
    origin = Provenance("synthetic", _DATE, (source,), notes=("A toy; no machine behaves like this.",))
    return from_law("paper/tiny", "constant", origin, {"c0_s": TINY_STEP_S}, kv_tokens=TINY_TOKENS)


def _codellama() -> Profile:
    notes = (
        "t = 11.28 + 35.47 ceil(batch tokens / 128) ms. The law has no KV term and comes without a KV "
        "capacity, so kv_capacity_tokens() has no answer here.",
    )
    origin = Provenance("paper", _DATE, (_TOKEN_BATCH,), notes=notes)
    return from_law("paper/token-batch-codellama-34b", "staircase", origin, CODELLAMA_STAIRCASE)


PAPERS: dict[str, Callable[[], Profile]] = {
    **{f"paper/kv-queue-{ratio}": partial(_kv_queue_constant, ratio) for ratio in KV_QUEUE_STEP_S},
    "paper/kv-queue-linear": _kv_queue_linear,
    "paper/tiny": _tiny,
    "paper/token-batch-codellama-34b": _codellama,
}

NEEDS_CHOICE = {
    "paper/kv-queue-constant": "the paper's step time depends on the workload's prompt:output ratio; load "
    "one of " + ", ".join(f"paper/kv-queue-{ratio} ({b} s)" for ratio, b in KV_QUEUE_STEP_S.items()),
}
"""Names that stand for several profiles, with what to load instead."""
