"""Memory processing of LLM inference as a pipeline of four stages, its workloads, and what a published GPU-FPGA pair gains on them.

The source is He, Ma, Sun and Cong, "Understand and Accelerate Memory Processing Pipeline for Large Language Model Inference", ICML
2026 (arXiv 2603.29002). Sparse attention, retrieval and compressed contexts prepare a memory, compute the relevancy of its entries,
retrieve some, and apply them. Stages differ in what they need, so some run better on an FPGA beside the GPU.

The paper publishes speed-ups, energies and shares; the laws here are fitted to these tables. With f the share of the GPU's time in
the stages that move and s their speed-up, a request is S = 1 / (1 - f + f / s) times as fast. Times of a stage on its own are not
published; absolute times follow from energies at a mean power of 75 W. Choices are marked as such.
"""

from dataclasses import dataclass

from llmgym.core.checks import choice, number
from llmgym.errors import InvalidArgument

STAGES = ("prep", "comp", "ret", "apply")
"""The four stages: prepare the memory, compute relevancy, retrieve, apply to inference."""

PREP, COMP, RET, APPLY = range(4)
GPU, FPGA = 0, 1
SPARSE, RAG, AGENT, CONTEXT, TRAINING = "sparse attention", "rag", "memagent", "memory as context", "training"

TOKENS_FITTING = 1_048_576
"""Most tokens of sparse attention whose index the FPGA holds; beyond that the GPU has to do relevancy and retrieval."""
DOCUMENTS_FITTING = 31_000_000
"""Most documents whose index the FPGA holds: 128 tokens of 4 bytes a document, in 16 GB."""
NO_LIMIT = 2**60
"""Size of a memory that the FPGA always holds."""

SHORT, LONG, CORPUS, RERANKED = 4096, 1_048_576, 20_000_000, 500_000
"""Tokens of the published context lengths, documents of the published corpus, and where two-stage retrieval flattens out."""
SHORT_ODDS = 0.035
"""Odds of the stages that move at 4,096 tokens, for every kind of sparse attention (choice; published: 1 to 11 %)."""
SHARED = 0.054
"""What each further sample of a batch adds to the dense stages of sparse attention, as a share of the first."""

MEAN_POWER_W = 75.0
"""Middle of the published 45 to 106 W of the GPU during these workloads: seconds = joules / 75 W."""
POWER_RATIO = 0.4
"""Power of the FPGA over that of the GPU: MemAgent's time ratio of 1.85 and energy ratio of 4.66 imply it."""
GPU_W, FPGA_W = 100.0, 40.0
"""Powers of the two devices where no workload is calibrated, watts."""

FPGA_RIDGE_BATCH = 3
"""Largest batch whose dense products (FLOP per byte = batch) stay below the ridge of the FPGA, 3.85."""
BAND_LIMIT = 10.0
"""FLOP per byte up to which the band rule gives a stage to the FPGA."""

Band = tuple[float, float]
BANDS: dict[str, tuple[Band | None, Band | None, Band | None, Band | None]] = {
    SPARSE: ((10.0, 100.0), (1.0, 10.0), (1.0, 1.0), (10.0, 100.0)),
    RAG: ((1.0, 100.0), (1.0, 10.0), (1.0, 1.0), (0.0, 0.0)),
    AGENT: ((1.0, 10.0), None, (0.0, 0.0), (100.0, 1000.0)),
    CONTEXT: ((100.0, 1000.0), (1.0, 10.0), (1.0, 1.0), (0.0, 0.0)),
    TRAINING: ((100.0, 1000.0), (100.0, 1000.0), None, (100.0, 1000.0)),
}
"""Published arithmetic intensity of each stage, FLOP per byte, by family.

"Above 100" in the paper is 100 to 1,000 here. Training at test time is not in that table."""

DENSE_STAGE = {AGENT: PREP, CONTEXT: COMP}
"""The stage whose FLOP per byte is the batch, by family."""


@dataclass(frozen=True)
class Workload:
    """One method that processes memory.

    Attributes:
        name: short name.
        family: `SPARSE`, `RAG`, `AGENT`, `CONTEXT` or `TRAINING`; laws in context and batch are those of the family.
        stages: what each stage does; "" for a stage that the workload lacks.
        share: f, the share of the GPU's time in the stages that move, at the reference: 1,048,576 tokens or 20 million documents,
            and a batch of one.
        speedup: s, the speed-up of the stages that move.
        energy_share: f_E, the share of the GPU's energy in the stages that move.
        joules: energy of a request on the GPU alone, joules.
        kappa: exponent of the batch with which the odds f / (1 - f) of a RAG workload grow.
        best_share: the share f at the best published point; None: that point is the reference.
        published: True: the paper has results of the workload; False: those of a relative are taken.
    """

    name: str
    family: str
    stages: tuple[str, str, str, str]
    share: float
    speedup: float
    energy_share: float
    joules: float
    kappa: float = 0.0
    best_share: float | None = None
    published: bool = True

    @property
    def empty(self) -> tuple[bool, ...]:
        """For each of the four stages whether the workload lacks it. MemAgent takes the nearest memory, so it retrieves nothing."""
        return tuple(not what for what in self.stages)

    @property
    def gpu_s(self) -> float:
        """Time of a request on the GPU alone at the reference, seconds (derived, within a factor of about 1.7)."""
        return self.joules / MEAN_POWER_W

    @property
    def fitting(self) -> int:
        """Largest size whose index the FPGA holds: tokens or documents."""
        return {SPARSE: TOKENS_FITTING, RAG: DOCUMENTS_FITTING}.get(self.family, NO_LIMIT)

    @property
    def unit(self) -> str:
        """What a size of this workload counts: "documents" or "tokens"."""
        return "documents" if self.family == RAG else "tokens"


_ROPE = "linear projection and rotary embedding"
_POOL = "linear projection and pooling"
_BM25: tuple[str, str, str, str] = ("tokenise", "BM25", "top-k", "append to query")
_TOP: tuple[str, str, str, str] = (_POOL, "inner product", "top-k", "block-sparse attention")
WORKLOADS: dict[str, Workload] = {
    w.name: w
    for w in (
        Workload(
            "dsa",
            SPARSE,
            (_ROPE, "multi-head inner product", "top-k", "fine-grained sparse attention"),
            0.306,
            2.2,
            0.465,
            25.62,
        ),
        Workload("seer-topk", SPARSE, _TOP, 0.367, 2.2, 0.136, 0.36),
        Workload(
            "seer-threshold",
            SPARSE,
            (_POOL, "inner product", "threshold", "block-sparse attention"),
            0.402,
            4.9,
            0.128,
            0.34,
        ),
        Workload(
            "lserve",
            SPARSE,
            ("minimum and maximum of pages", "inner product, maximum", "top-k", "block-sparse attention"),
            0.400,
            5.6,
            0.351,
            0.43,
        ),
        # There is no published result. Those of DeepSeek's sparse attention are taken, which prepares and applies alike.
        Workload(
            "triattention",
            SPARSE,
            (_ROPE, "trigonometric series", "top-k", "fine-grained sparse attention"),
            0.306,
            2.2,
            0.465,
            25.62,
            published=False,
        ),
        Workload("dragin", RAG, _BM25, 0.152, 5.16, 0.103, 362.57, 0.607, 0.594),
        Workload("flare", RAG, _BM25, 0.194, 5.7, 0.131, 275.53, 0.575, 0.638),
        Workload("fs-rag", RAG, _BM25, 0.243, 6.6, 0.187, 315.25, 0.465, 0.617),
        # Its joules are not published: they are the mean of the three above (choice). f_E follows from the geometric mean 1.07.
        Workload(
            "two-stage-rag",
            RAG,
            ("embedding model", "inner product or BM25, reranker", "top-k", "append to query"),
            0.263,
            2.1,
            0.081,
            317.8,
            0.316,
            0.516,
        ),
        Workload("memagent", AGENT, ("decoding", "", "", "prefill"), 0.97, 1.90, 0.977, 13662.0),
        Workload(
            "memory-as-context",
            CONTEXT,
            ("forward pass", "projection and inner product", "top-k or weighted sum", "append to segment"),
            0.5,
            4.0,
            0.438,
            27.31,
        ),
        # Nothing gains on the FPGA. Its joules are not published: they are those of memory as context (choice).
        Workload(
            "ttt",
            TRAINING,
            ("backward pass", "loss", "", "forward pass"),
            0.0,
            1.0,
            0.0,
            27.31,
            published=False,
        ),
    )
}
"""The nine workloads of the paper; SeerAttention-R with two ways to retrieve, single-stage retrieval with three systems."""


def workload(name: str) -> Workload:
    """The workload of this name in `WORKLOADS`. Raises `UnknownName`."""
    return WORKLOADS[choice("workload", name, WORKLOADS)]


def amdahl(share: float, speedup: float) -> float:
    """Speed-up of a request of which the share f of the time becomes s times as fast: 1 / (1 - f + f / s).

    Raises:
        InvalidArgument: a share outside 0..1, or a speed-up that is not above zero.
    """
    if number("share", share, zero=True) > 1.0:
        raise InvalidArgument(f"share={share!r}: expected a number from 0 to 1")
    return 1.0 / (1.0 - share + share / number("speedup", speedup))


def share_of(odds: float) -> float:
    """The share f of odds f / (1 - f)."""
    return odds / (1.0 + odds)


def odds_of(share: float) -> float:
    """The odds f / (1 - f) of a share."""
    return share / (1.0 - share)


def envelope_share(tokens: float, upper: bool) -> float:
    """Share of all memory processing in the decode time of sparse attention, at one end of the published range.

    Args:
        tokens: length of the context, 0 or more.
        upper: True: the upper end of the range; False: the lower end.
    """
    tokens = number("tokens", tokens, zero=True)
    return share_of(0.1075 + 3.96e-6 * tokens if upper else 0.009 + 2.6e-7 * tokens)


def batch_odds(odds: float, batch: float) -> float:
    """Odds f / (1 - f) of sparse attention at a batch, from its odds at a batch of one.

    The stages that move grow with the batch; the dense stages that stay share their weights.
    """
    return odds * batch / (1.0 + SHARED * (number("batch", batch) - 1.0))


def moving_odds(w: Workload, size: float, batch: float) -> float:
    """Odds f / (1 - f) of the stages that move, by context or corpus and batch.

    Odds of sparse attention are affine in tokens: 3.5 % at 4,096 tokens, those of the reference at 1,048,576. Odds of RAG are
    proportional to documents (in two stages: up to 500,000) and to batch^kappa. Others always have those of the reference.

    Args:
        w: the workload.
        size: entries of the memory, tokens or documents.
        batch: samples that run together.

    Returns:
        The odds, 0 or more.

    Raises:
        InvalidArgument: a size or a batch that is not above zero.
    """
    size, batch = number("size", size), number("batch", batch)
    odds = odds_of(w.share)
    if w.family == SPARSE:
        slope = (odds - SHORT_ODDS) / (LONG - SHORT)
        return batch_odds(SHORT_ODDS + slope * (size - SHORT), batch)
    if w.family == RAG:
        corpus = min(size, RERANKED) / RERANKED if w.name == "two-stage-rag" else size / CORPUS
        return float(odds * corpus * batch**w.kappa)
    return odds


def moving_speedup(w: Workload, batch: float) -> float:
    """Speed-up s of the stages that move, at a batch.

    For MemAgent and memory as context it falls: the FPGA's dense work grows with the batch while the GPU shares the weights.
    """
    batch = number("batch", batch)
    if w.family == AGENT:
        return w.share / (max(0.50 + 0.05 * batch, 0.12 + 0.238 * batch) - (1.0 - w.share))
    if w.family == CONTEXT:
        return 1.0 / (0.338 + 0.0125 * batch)
    return w.speedup


def rest_growth(w: Workload, batch: float) -> float:
    """Factor by which a batch lengthens the stages that stay; the stages that move then grow in proportion to the batch."""
    if w.family == SPARSE:
        return 1.0 + SHARED * (batch - 1.0)
    if w.family == RAG:
        return float(batch ** (1.0 - w.kappa))
    return 1.0  # dense throughout: weights are read once for the whole batch


def mapped_speedup(w: Workload, size: float, batch: float) -> float:
    """Speed-up of the paper's mapping over the GPU alone, end to end.

    Args:
        w: the workload.
        size: entries of the memory, tokens or documents.
        batch: samples that run together.

    Returns:
        Time on the GPU alone over time with the FPGA.

    Raises:
        InvalidArgument: a size or a batch that is not above zero.
    """
    return amdahl(share_of(moving_odds(w, size, batch)), moving_speedup(w, batch))


def energy_ratio(energy_share: float, speedup: float, power_ratio: float = POWER_RATIO) -> float:
    """Energy on the GPU alone over that of the paper's mapping, 1 / (1 - f_E + f_E p / s). Only the active device counts.

    Args:
        energy_share: f_E, the share of the GPU's energy in the stages that move.
        speedup: s, the speed-up of the stages that move.
        power_ratio: p, power of the FPGA over that of the GPU.

    Returns:
        The ratio, above 0.

    Raises:
        InvalidArgument: a share outside 0..1, a speed-up or a power ratio that is not above zero.
    """
    return amdahl(energy_share, number("speedup", speedup) / number("power_ratio", power_ratio))


def band_devices(w: Workload, batch: int) -> tuple[int, int, int, int]:
    """Devices of the four stages by the band rule: stages of at most 10 FLOP per byte go to the FPGA.

    Stages without arithmetic (0 FLOP per byte, such as appending to the query) stay with the model. A dense stage, whose FLOP per
    byte is the batch, goes to the GPU above a batch of 3.
    """
    devices = [GPU] * 4
    for stage, band in enumerate(BANDS[w.family]):
        if band is not None and 0.0 < band[1] <= BAND_LIMIT and not w.empty[stage]:
            dense = DENSE_STAGE.get(w.family) == stage and batch > FPGA_RIDGE_BATCH
            devices[stage] = GPU if dense else FPGA
    return (devices[0], devices[1], devices[2], devices[3])


def paper_devices(w: Workload) -> tuple[int, int, int, int]:
    """Devices of the four stages by the paper's static mapping; relevancy and retrieval, where both move, run fused."""
    if w.family == AGENT:
        return (FPGA, GPU, GPU, GPU)
    return (GPU, GPU, GPU, GPU) if w.family == TRAINING else (GPU, FPGA, FPGA, GPU)
