"""Numbers of Lambert and Luccioni, "Towards Resource-Efficient LLMs" (ICML 2026, arXiv 2605.13981).

The teacher is OLMo-2 32B SFT, the students are OLMo-2 1B, 7B and 13B, on one H100 of 80 GB. What is not printed there says so: some
rows follow from others, powers are means over the logs of the authors' harness (github.com/StellarLuminosity/Energy), and some
numbers are assumptions of this package.
"""

SIZES = ("1B", "7B", "13B")
"""Students, by their parameters."""
DATASETS = ("tulu", "math", "code")
"""TULU-3 SFT mixture, OpenR1-Math-220k, codeforces-cots."""

SFT, KD, SYNTHETIC, HALF, ONLINE = range(5)
PIPELINES = ("sft", "kd", "synthetic", "half", "online")
"""Supervised fine-tuning; distillation from cached logits; training on synthetic text of the teacher; fine-tuning on half of the
data; distillation with the teacher running beside the student."""
LOGITS, TEXT = 0, 1
KINDS = ("logits", "synthetic text")
"""Artefacts of the teacher that students can share: cached log-probabilities, and synthetic text."""

DATA_KWH = 0.37
"""Preparing the data of one dataset, kWh."""
LOGITS_KWH = 11.00
"""Caching the top-100 log-probabilities of the teacher over one dataset, kWh."""
TEXT_KWH = 10.60
"""Generating synthetic text for one dataset, kWh; mean over the datasets."""
STUDENT_KWH = (
    (6.30, 18.42, 33.15),
    (5.20, 16.42, 30.05),
    (5.35, 16.66, 28.65),
)
"""Training a student by SFT, KD and synthetic SFT, kWh, by size. The 7B column is not printed: it is solved from the printed totals
and from the printed numbers of students at which distillation breaks even (5.5 for KD, 6 for synthetic SFT)."""
EVAL_KWH = (0.33, 0.71, 1.08)
"""Evaluating a student, kWh, by size; that of 7B is interpolated in the number of parameters."""
TOKENS = 30e6
"""Tokens that the printed joules per token divide by."""
QUALITY = ((0.69, 0.90, 0.99), (0.70, 0.78, 0.82), (0.69, 0.80, 0.85))
"""Quality relative to the teacher by SFT, KD and synthetic SFT, by size. KD of 7B and synthetic SFT of 1B and 7B are
assumptions."""

STUDENT_W = ((622.0, 673.0, 663.0), (218.0, 342.0, 467.0), (622.0, 673.0, 663.0))
"""Mean power of one H100 while a student trains by SFT, KD and synthetic SFT, watts, by size: logs of the harness (611 to 632, 673,
663; 204 to 222, 342, 465 to 473). Energy over power is the time of a stage."""
LOGITS_W, TEXT_W, DATA_W = 653.0, 400.0, 124.0
"""Mean power while logits are cached, text is generated (391 to 419) and data is prepared, watts: logs of the harness."""
IDLE_W, LIMIT_W = 35.0, 700.0
"""Power of an idle GPU (log of the harness) and the limit of an H100 SXM, watts."""
TEXT_J_PER_TOKEN = (3.84, 4.43, 2.77)
"""Joules per generated token, by dataset, at 1,024 tokens and 7,000 prompts: logs of the harness."""

COMPUTE_BOUND = (0.9, 0.3, 0.9, 0.9, 0.9)
"""Share of a pipeline's time that is bound by compute and stretches under a power cap: an assumption."""
LOGITS_BOUND, TEXT_BOUND = 0.9, 0.4
"""Share of the time of caching logits, and of generating text and evaluating, that is bound by compute: assumptions."""
STATIC_W = 70.0
"""Power of an H100 that no cap can take away, watts: an assumption."""
ONLINE_SHARE = 0.95
"""Energy of the teacher's forward passes beside a student, over that of caching its logits: an assumption."""
HALF_ENERGY, HALF_LOSS = 0.5, 0.05
"""Fine-tuning on half of the data: energy over that of all of it, and the quality that it costs. Assumptions."""
LOGITS_GB, TEXT_GB = 18.0, 0.1
"""Size of the artefacts: 100 log-probabilities of 6 bytes for each of 30 million tokens; text of a few bytes each."""


def total_kwh(pipeline: int, size: int) -> float:
    """Energy of one student by SFT, KD or synthetic SFT with everything it needs, nothing shared, kWh.

    Args:
        pipeline: `SFT`, `KD` or `SYNTHETIC`.
        size: 0, 1 or 2 for 1B, 7B and 13B.
    """
    teacher = (0.0, LOGITS_KWH, TEXT_KWH)[pipeline]
    return DATA_KWH + teacher + STUDENT_KWH[pipeline][size] + EVAL_KWH[size]
