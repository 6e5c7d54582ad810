"""How likely true texts are: the log-probability below which few of them lie, of each language."""

import functools
import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.rng import substream
from llmgym.envs.unmask.denoiser import advance, copy_law, draw_text, normalise
from llmgym.envs.unmask.process import Process

TEXTS, QUANTILE = 200, 0.05
"""True texts that are drawn for a quantile, and which one."""


@kernel
def _true_logs(
    start: NDArray[np.float64],
    lengths: NDArray[np.int64],
    words: NDArray[np.int64],
    onward: NDArray[np.float64],
    noise: float,
    vocabulary: int,
    miss: float,
    prompt: int,
    streams: int,
    now: NDArray[np.float64],
    tail: NDArray[np.float64],
    text: NDArray[np.int16],
    out: NDArray[np.float64],
) -> None:
    """Write ln p(text | prompt) of true texts, over that of as many matches, float64 [texts]."""
    for n in range(out.shape[0]):
        total = 0.0
        for s in range(streams):
            draw_text(
                substream(np.uint64(n), 0),
                s,
                streams,
                text[:0],
                start,
                lengths,
                words,
                onward,
                noise,
                vocabulary,
                miss,
                now,
                text,
            )
            copy_law(start, now)
            for i in range(s, text.shape[0], streams):
                here = 0.0
                for z in range(now.shape[0]):
                    for p in range(now.shape[1]):
                        for k in range(lengths[p]):
                            here += now[z, p, k] * (1.0 if words[p, k] == text[i] else miss)
                if i >= prompt:
                    total += math.log(here)
                advance(text[i], now, lengths, words, onward, miss, tail)
                normalise(now)
        out[n] = total


@functools.lru_cache(maxsize=256)
def _logs(key: "_Key", prompt: int, tokens: int, streams: int) -> NDArray[np.float64]:
    process = key.process
    out = np.zeros(TEXTS)
    _true_logs(
        process.start,
        process.lengths,
        process.words,
        process.onward,
        process.noise,
        process.vocabulary,
        process.miss,
        prompt,
        streams,
        np.zeros_like(process.start),
        np.zeros(process.onward.shape[1]),
        np.zeros(prompt + tokens, np.int16),
        out,
    )
    return out + tokens * math.log(process.match)


class _Key:
    """A language as a key of a cache: processes of equal numbers are one."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._bytes = b"".join(part.tobytes() for part in process[:4]) + np.float64(process.noise).tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._bytes == other._bytes

    def __hash__(self) -> int:
        return hash(self._bytes)


def typical_log(process: Process, prompt: int, tokens: int, streams: int) -> float:
    """The 5 % quantile of the log-probability of true texts given their prompt, nats.

    Args:
        process: the language.
        prompt: tokens of the prompt.
        tokens: tokens after it.
        streams: texts that are interleaved.

    Returns:
        The quantile of 200 texts, which are the same every time.
    """
    return float(np.quantile(_logs(_Key(process), prompt, tokens, streams), QUANTILE))
