"""Execution modes of a prefill as rows of a table: what each step of each takes, holds and leaves, and how good the answer is.

The laws are those of `llmgym.envs.segmented.law`, cut into steps. A step of n tokens after `done` others takes

    step_s + n dense_s + X pair_s + (n prefix_s where done > 0),

with X = n^2 where a segment sees itself, and (done + n)^2 - done^2 where attention is exact; summed over the steps of a prompt
that is a whole number of segments these are the closed forms. Chunks are those of vLLM's chunked prefill.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import loaded, members
from llmgym.core.jit import kernel
from llmgym.core.records import Record, float64, int64
from llmgym.envs.segmented.law import (
    CHUNK_S,
    DUO_DENSE,
    DUO_PAIRS,
    LAST_LOGITS_BYTES,
    MODELS,
    MULTIPLY_ADD,
    PREFIX,
    RETRIEVED,
    SEGMENT_BYTES,
    SEGMENT_S,
    STREAMING_DENSE,
    STREAMING_S,
    TAIL,
    device,
    pairs_flop,
    visible_prefix,
)
from llmgym.errors import InvalidArgument, UnknownName

WHOLE = 2**30
"""Tokens of a step that takes the whole prompt."""
CHUNKS = (512, 1024, 2048, 4096, 8192)
SEGMENTS = (2048, 4096, 8192)
TAILS = (0, 512, 1024)
PREFIXES = (0, 512)
"""Choices of c, S, M and R."""
STREAMING_WINDOW = 4096
"""Last tokens whose keys and values StreamingLLM keeps for decoding; assumed."""

TRAINED = "segmented-4096-512-512"
"""The configuration that the paper trains."""

QUALITY = {"full": 1.0, "chunked": 1.0, "duo": 0.981, "streaming": 0.922}
"""Score over that of full attention on LongBench-E, Llama-2-7B-80K; chunks compute the same as the whole."""
TRAINED_QUALITY = 1.034
TAIL_QUALITY = {0: 0.995, 512: TRAINED_QUALITY, 1024: 1.035}
"""Score of segmented execution over that of full attention, by the carried tokens that the model was trained with."""
NO_RETRIEVAL_QUALITY = 0.968
"""Score of a model trained for segments without retrieval, over that of full attention."""
UNTRAINED_QUALITY = 0.509
"""Score of segmented execution of a model trained with full attention, over that of full attention."""


class Mode(Record):
    """What one execution mode costs."""

    size: int = int64("Tokens of a step.")
    local: int = int64("1: a step sees itself and a short prefix; 0: it sees all before it.")
    token_bytes: int = int64("Held for each token that is done, bytes.")
    carried_bytes: int = int64("Held from one step to the next whatever the length, bytes.")
    work_bytes: int = int64("Held while a step runs, bytes.")
    work_token_bytes: int = int64("Held while a step runs for each of its tokens, bytes.")
    keep_bytes: int = int64("Kept for decoding for each token, bytes.")
    window_bytes: int = int64("Kept for decoding for each token of a window at most, bytes.")
    window: int = int64("That window, tokens.")
    step_s: float = float64("Time of a step beside that of its tokens, seconds.")
    dense_s: float = float64("Time of a token, seconds.")
    pair_s: float = float64("Time of attention over the square of the tokens that it sees, seconds.")
    prefix_s: float = float64("Time of a token for the carried and retrieved ones that it sees, seconds.")
    quality: float = float64("Score of the answer over that of full attention.")


class Parsed(NamedTuple):
    """A mode's name in parts; S, M and R are 0 where it has none."""

    family: str
    size: int
    tail: int
    retrieved: int


def names() -> tuple[str, ...]:
    """Every mode there is, by name."""
    segments = [f"segmented-{s}-{m}-{r}" for s in SEGMENTS for m in TAILS for r in PREFIXES]
    return ("full", *(f"chunked-{c}" for c in CHUNKS), "duo", "streaming", *segments)


def parse(name: str) -> Parsed:
    """The parts of a mode's name. Raises `UnknownName`."""
    if name not in names():
        raise UnknownName("mode", name, names())
    family, *numbers = name.split("-")
    size, tail, retrieved = (*map(int, numbers), 0, 0, 0)[:3]
    return Parsed(family, size or WHOLE, tail, retrieved)


def check_modes(name: str, value: object) -> None:
    """Fail unless a setting is a tuple of modes, each once.

    Raises:
        InvalidArgument: it is none, is empty, or names one twice.
        UnknownName: it names one that does not exist.
    """
    expected = "a tuple of different modes, such as ('full', 'duo')"
    modes = members(name, value, expected)
    for one in modes:
        if not isinstance(one, str):
            raise InvalidArgument(f"{name}={value!r}: expected {expected}")
        loaded(name, one, parse, expected)
    if not modes or len(set(modes)) < len(modes):
        raise InvalidArgument(f"{name}={value!r}: expected {expected}")


def check_trained(name: str, value: object) -> None:
    """Fail unless a setting is a tuple, perhaps empty, of segmented modes. Raises `InvalidArgument` or `UnknownName`."""
    trained = members(name, value, "a tuple of segmented modes, perhaps empty")
    if trained:
        check_modes(name, trained)
    for one in trained:
        if parse(one).family != "segmented":
            raise InvalidArgument(f"{name} names {one!r}: only segmented modes are trained for")


def quality_of(mode: str, trained: tuple[str, ...]) -> float:
    """Score of a mode's answers to prompts of several segments, over that of full attention.

    Args:
        mode: its name.
        trained: segmented modes that the model was trained for.

    Returns:
        The published value; without carried tokens and without retrieval, the product of both losses.

    Raises:
        UnknownName: there is no such mode.
    """
    family, _, tail, retrieved = parse(mode)
    if family != "segmented":
        return QUALITY[family]
    if mode not in trained:
        return UNTRAINED_QUALITY
    return TAIL_QUALITY[tail] * (1.0 if retrieved else NO_RETRIEVAL_QUALITY / TRAINED_QUALITY)


def table(modes: tuple[str, ...], trained: tuple[str, ...], model: str, on: str) -> NDArray[np.void]:
    """What execution modes cost.

    Args:
        modes: their names.
        trained: segmented modes that the model was trained for.
        model: one of `llmgym.envs.segmented.law.MODELS`.
        on: one of `llmgym.envs.segmented.law.DEVICES`.

    Returns:
        Records `Mode`, [modes].

    Raises:
        UnknownName: a mode, model or device that does not exist.
    """
    records: NDArray[np.void] = np.zeros(len(modes), Mode.dtype)
    for i, mode in enumerate(modes):
        records[i : i + 1] = _row(mode, trained, model, on)
    return records


def _row(mode: str, trained: tuple[str, ...], model: str, on: str) -> NDArray[np.void]:
    family, size, tail, retrieved = parse(mode)
    m, gpu = MODELS[model], device(on)
    dense_s = MULTIPLY_ADD * m.parameters / gpu.dense_flops
    pair_s = pairs_flop(m) / gpu.attention_flops
    row = {
        "size": size,
        "local": 0,
        "token_bytes": m.kv_bytes,
        "carried_bytes": 0,
        "work_bytes": 0,
        "work_token_bytes": m.layer_bytes,
        "keep_bytes": m.kv_bytes,
        "window_bytes": 0,
        "window": 0,
        "step_s": 0.0,
        "dense_s": dense_s,
        "pair_s": pair_s,
        "prefix_s": 0.0,
        "quality": quality_of(mode, trained),
    }
    if family == "full":
        row |= {"work_token_bytes": m.whole_bytes}
    elif family == "chunked":
        row |= {"work_bytes": LAST_LOGITS_BYTES * m.vocabulary, "step_s": CHUNK_S}
    elif family == "duo":
        half = m.kv_bytes // 2
        row |= {"token_bytes": half, "keep_bytes": half}
        row |= {"dense_s": DUO_DENSE * dense_s, "pair_s": DUO_PAIRS * pair_s}
    elif family == "streaming":
        row |= {"keep_bytes": 0, "window_bytes": m.kv_bytes, "window": STREAMING_WINDOW}
        row |= {"step_s": STREAMING_S, "dense_s": STREAMING_DENSE * dense_s, "pair_s": 0.0}
    else:
        pool = m.pool_bytes if retrieved else 0
        row |= {
            "local": 1,
            "token_bytes": pool,
            "carried_bytes": m.carried_bytes(tail),
            "work_bytes": SEGMENT_BYTES - m.carried_bytes(TAIL),  # the paper's peak has its tail in it
            "work_token_bytes": m.kv_bytes + m.whole_bytes,
            "keep_bytes": pool,
            "window_bytes": m.kv_bytes,
            "window": size + PREFIX,
            "step_s": SEGMENT_S * retrieved / RETRIEVED,
            "prefix_s": 2.0 * pair_s * visible_prefix(m, tail, retrieved),
        }
    return Mode.pack(**row)  # type: ignore[no-any-return]


@kernel(inline=True)
def step_tokens(mode: Mode, prompt: int, done: int) -> int:
    """Tokens of the next step of a prompt of which `done` are done.

    Args:
        mode: what the execution mode costs.
        prompt: tokens of the prompt.
        done: tokens of the prompt that are done.

    Returns:
        Tokens, at most those of a step of the mode.
    """
    return min(mode.size, prompt - done)


@kernel(inline=True)
def step_time_s(mode: Mode, prompt: int, done: int) -> float:
    """Time of the next step of a prompt of which `done` tokens are done, seconds.

    Args:
        mode: what the execution mode costs.
        prompt: tokens of the prompt.
        done: tokens of the prompt that are done.

    Returns:
        Seconds.
    """
    n = float(min(mode.size, prompt - done))
    pairs = n * n if mode.local != 0 else n * (2.0 * done + n)
    return mode.step_s + n * mode.dense_s + pairs * mode.pair_s + (n * mode.prefix_s if done > 0 else 0.0)


@kernel(inline=True)
def rest_time_s(mode: Mode, prompt: int, done: int) -> float:
    """Time of all further steps of a prompt of which `done` tokens are done, in a row, seconds.

    Args:
        mode: what the execution mode costs.
        prompt: tokens of the prompt.
        done: tokens of the prompt that are done.

    Returns:
        Seconds.
    """
    left = float(prompt - done)
    steps = (prompt - done + mode.size - 1) // mode.size
    last = left - (steps - 1) * float(mode.size)
    pairs = left * (2.0 * done + left)
    if mode.local != 0:
        pairs = (steps - 1) * float(mode.size) * mode.size + last * last
    first = min(float(mode.size), left) if done == 0 else 0.0
    return steps * mode.step_s + left * mode.dense_s + pairs * mode.pair_s + (left - first) * mode.prefix_s


@kernel
def alone_s(mode: Mode, prompts: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """Write the time to first token of each prompt where it is alone on the card.

    Args:
        mode: what the execution mode costs.
        prompts: tokens of each prompt, int64 [prompts].
        out: written, seconds, float64 [prompts].
    """
    for i in range(len(prompts)):
        out[i] = rest_time_s(mode, prompts[i], 0)


@kernel(inline=True)
def resident_bytes(mode: Mode, done: int) -> int:
    """Held between two steps of a prompt of which `done` tokens are done, bytes."""
    return mode.token_bytes * done + mode.carried_bytes if done > 0 else 0


@kernel(inline=True)
def running_bytes(mode: Mode, prompt: int, done: int) -> int:
    """Memory that a request holds while its next step runs: what is resident after it, and what it works with.

    Args:
        mode: what the execution mode costs.
        prompt: tokens of the prompt.
        done: tokens of the prompt that are done before the step.

    Returns:
        Bytes.
    """
    n = min(mode.size, prompt - done)
    return mode.token_bytes * (done + n) + mode.carried_bytes + mode.work_bytes + mode.work_token_bytes * n


@kernel(inline=True)
def kept_bytes(mode: Mode, prompt: int, output: int) -> int:
    """Memory kept while a request decodes, with room for its output.

    Args:
        mode: what the execution mode costs.
        prompt: tokens of the prompt.
        output: tokens of the output.

    Returns:
        Bytes.
    """
    return mode.keep_bytes * (prompt + output) + mode.window_bytes * min(prompt + output, mode.window)


@kernel(inline=True)
def peak_bytes(mode: Mode, prompt: int, output: int) -> int:
    """The most that a request will hold at any time, bytes.

    Args:
        mode: what the execution mode costs.
        prompt: tokens of the prompt.
        output: tokens of the output.

    Returns:
        Bytes.
    """
    n = min(mode.size, prompt)
    peak = mode.token_bytes * prompt + mode.carried_bytes + mode.work_bytes + mode.work_token_bytes * n
    return max(peak, kept_bytes(mode, prompt, output))


@kernel(inline=True)
def answer_quality(mode: Mode, prompt: int, output: int) -> float:
    """Score of the answer over that of full attention: what fits one segment is executed as full attention is.

    Args:
        mode: what the execution mode costs.
        prompt: tokens of the prompt.
        output: tokens of the output that have to fit the segment beside the prompt.

    Returns:
        The score; 1 is that of full attention.
    """
    whole = mode.local != 0 and prompt + output <= mode.size
    return max(mode.quality, 1.0) if whole else mode.quality
