"""Random numbers for compiled code: counter-based, so a draw depends on its key and its number alone.

A stream is a 64-bit key. Draw `i` of a stream is a pure function of (key, i); no state is carried, so a world is the same
whether it is drawn by one lane or by a thousand, in one thread or in many. The mixing function is the finalizer of
SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), applied twice.
"""

import math

import numpy as np

from llmgym.core.jit import kernel

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MUL1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S12 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(12)
_ONE = np.uint64(1)
_TO_UNIT = (
    1.0 / 4503599627370496.0
)  # 2**-52: with 52 bits the half step below stays exact, so 1.0 cannot come out


@kernel(inline=True)
def _mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> _S30)) * _MUL1
    z = (z ^ (z >> _S27)) * _MUL2
    return z ^ (z >> _S31)


@kernel(inline=True)
def substream(key: np.uint64, number: int) -> np.uint64:
    """Key of sub-stream `number` of `key` (uint64): independent of the draws of `key` and of other sub-streams."""
    return _mix(_mix(np.uint64(key) + _GOLDEN) ^ (np.uint64(number) * _GOLDEN + _ONE))


@kernel(inline=True)
def bits(key: np.uint64, number: int) -> np.uint64:
    """Draw `number` of stream `key`: 64 random bits."""
    return _mix(_mix(np.uint64(key) + np.uint64(number) * _GOLDEN))


@kernel(inline=True)
def uniform(key: np.uint64, number: int) -> float:
    """Draw `number` of stream `key`: float64, uniform in the open interval (0, 1)."""
    return (float(bits(key, number) >> _S12) + 0.5) * _TO_UNIT


@kernel(inline=True)
def integer(key: np.uint64, number: int, low: int, high: int) -> int:
    """Draw `number` of stream `key`: an integer, uniform in low..high, both included.

    Args:
        key: of the stream, uint64.
        number: index of the draw in the stream, 0 or more.
        low: the least that is drawn.
        high: the most that is drawn, not below `low`.

    Returns:
        The integer.
    """
    return low + int(math.floor(uniform(key, number) * (high - low + 1)))


@kernel(inline=True)
def exponential(key: np.uint64, number: int) -> float:
    """Draw `number` of stream `key`: exponential with mean 1."""
    return -math.log(uniform(key, number))


@kernel
def normal(key: np.uint64, number: int) -> float:
    """Draw `number` of stream `key`: standard normal (Box-Muller; uses sub-draws, never clashes with other draws)."""
    pair = substream(key, number)
    return math.sqrt(-2.0 * math.log(uniform(pair, 0))) * math.cos(2.0 * math.pi * uniform(pair, 1))


@kernel
def gamma(key: np.uint64, number: int, shape: float) -> float:
    """Draw `number` of stream `key`: gamma with the given shape and scale 1.

    Marsaglia and Tsang, "A simple method for generating gamma variables", ACM TOMS 26(3), 2000.

    Args:
        key: of the stream, uint64.
        number: index of the draw in the stream, 0 or more.
        shape: of the law, above 0.

    Returns:
        The draw, above 0; its mean and variance are `shape`.
    """
    stream = substream(key, number)
    boost = 1.0
    if shape < 1.0:
        boost = uniform(stream, 0) ** (1.0 / shape)
        shape += 1.0
    d = shape - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    trial = 1
    while True:
        x = normal(stream, 2 * trial)
        v = 1.0 + c * x
        if v > 0.0:
            v = v * v * v
            if math.log(uniform(stream, 2 * trial + 1)) < 0.5 * x * x + d - d * v + d * math.log(v):
                return boost * d * v
        trial += 1
