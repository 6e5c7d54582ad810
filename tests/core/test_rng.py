"""The random numbers: known answers, the same in Python, and as random as their tests can tell."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llmgym.core import rng
from llmgym.core.jit import kernel

ALL = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
N = 100_000
KNOWN_BITS = [10475206250991968183, 18013574638773611725, 14174688893392939574]
KNOWN_SUBSTREAMS = [5222652717193318939, 16228064895053911763, 3248414769774641325]

keys = st.integers(0, ALL)
numbers = st.integers(0, 2**62)


def mix(z: int) -> int:
    """SplitMix64's finalizer on Python's own integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & ALL
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & ALL
    return z ^ (z >> 31)


def bits(key: int, number: int) -> int:
    return mix(mix((key + number * GOLDEN) & ALL))


def substream(key: int, number: int) -> int:
    return mix(mix((key + GOLDEN) & ALL) ^ ((number * GOLDEN + 1) & ALL))


def uniform(key: int, number: int) -> float:
    return ((bits(key, number) >> 12) + 0.5) / 2**52


@kernel
def fill(key, out, what, shape):
    for i in range(out.shape[0]):
        if what == 0:
            out[i] = rng.uniform(key, i)
        elif what == 1:
            out[i] = rng.exponential(key, i)
        elif what == 2:
            out[i] = rng.normal(key, i)
        elif what == 3:
            out[i] = rng.gamma(key, i, shape)
        elif what == 4:
            out[i] = rng.uniform(rng.substream(key, i), 0)
        else:
            out[i] = rng.integer(key, i, -3, 6)


@kernel
def fill_bits(key, out):
    for i in range(out.shape[0]):
        out[i] = rng.bits(key, i)


def draws(what: int, key: int = 12345, shape: float = 1.0, n: int = N) -> np.ndarray:
    out = np.empty(n)
    fill(np.uint64(key), out, what, shape)
    return out


def test_the_mixer_is_splitmix64():
    """First outputs of SplitMix64 from seed 1234567, as published with many implementations of it."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    for i, value in enumerate(expected, 1):
        state = np.uint64((1234567 + i * GOLDEN) & ALL)
        assert int(rng._mix(state)) == value == mix(int(state))


def test_known_answers():
    """Fixed for ever: a change here changes every world of every seed."""
    assert [int(rng.bits(np.uint64(2024), i)) for i in range(3)] == KNOWN_BITS
    assert [int(rng.substream(np.uint64(2024), i)) for i in range(3)] == KNOWN_SUBSTREAMS


@given(keys, numbers)
def test_the_compiled_functions_are_the_plain_ones(key, number):
    k = np.uint64(key)
    assert int(rng.bits(k, number)) == bits(key, number)
    assert int(rng.substream(k, number)) == substream(key, number)
    assert rng.uniform(k, number) == uniform(key, number)
    assert rng.integer(k, number, -7, 12) == -7 + math.floor(uniform(key, number) * 20)
    assert rng.exponential(k, number) == pytest.approx(-math.log(uniform(key, number)), rel=1e-14)
    with np.errstate(over="ignore"):
        assert rng._mix.py_func(k) == rng._mix(k)


PLAIN = """
import sys
import numpy as np
from llmgym.core import rng
np.seterr(over="ignore")
for key in (0, 1, 2024, 2**63, 2**64 - 1):
    k = np.uint64(key)
    for number in (0, 1, 77, 2**40):
        print(rng.bits(k, number), rng.substream(k, number), rng.integer(k, number, -5, 5), *map(float.hex, (
            rng.uniform(k, number), rng.exponential(k, number), rng.normal(k, number),
            rng.gamma(k, number, 0.3), rng.gamma(k, number, 1.0), rng.gamma(k, number, 4.7))))
"""


def test_compiled_and_interpreted_agree():
    """The same calls in a process where numba compiles nothing."""
    texts = []
    for disabled in ("0", "1"):
        environment = {**os.environ, "NUMBA_DISABLE_JIT": disabled, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", PLAIN], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        texts.append([line.split() for line in done.stdout.splitlines()])
    compiled, plain = texts
    assert len(compiled) == 20
    for got, expected in zip(compiled, plain, strict=True):
        assert got[:4] == expected[:4]  # whole numbers and uniforms: the same bits
        for a, b in zip(got[4:], expected[4:], strict=True):  # log and cos may differ in the last one
            assert float.fromhex(a) == pytest.approx(float.fromhex(b), rel=1e-12)


def test_the_interval_is_open():
    """The smallest and the largest 52 bits, by the module's own constant."""
    smallest, largest = (0 + 0.5) * rng._TO_UNIT, (float(2**52 - 1) + 0.5) * rng._TO_UNIT
    assert smallest > 0.0 and largest < 1.0
    assert math.isfinite(-math.log(smallest)) and -math.log(largest) > 0.0
    everything = draws(0)
    assert everything.min() > 0.0 and everything.max() < 1.0


@pytest.mark.parametrize("key", [0, 1, 12345, 2**63, ALL])
def test_uniform_and_every_bit_of_it(key):
    assert stats.kstest(draws(0, key), "uniform").pvalue > 1e-4
    raw = np.empty(N, np.uint64)
    fill_bits(np.uint64(key), raw)
    ones = np.array([((raw >> np.uint64(b)) & np.uint64(1)).mean() for b in range(64)])
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / math.sqrt(N)
    assert len(np.unique(raw)) == N


def test_integers_are_uniform_and_include_both_ends():
    values, counts = np.unique(draws(5), return_counts=True)
    assert values.tolist() == list(range(-3, 7))
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize(
    ("what", "shape", "law"),
    [
        (1, 1.0, stats.expon()),
        (2, 1.0, stats.norm()),
        (3, 0.3, stats.gamma(0.3)),
        (3, 1.0, stats.gamma(1.0)),
        (3, 4.7, stats.gamma(4.7)),
        (3, 250.0, stats.gamma(250.0)),
    ],
)
def test_laws_and_moments(what, shape, law):
    sample = draws(what, shape=shape)
    assert stats.kstest(sample, law.cdf).pvalue > 1e-4
    mean, variance, kurtosis = law.stats("mvk")
    assert abs(sample.mean() - mean) < 5 * math.sqrt(variance / N)
    assert abs(sample.var() - variance) < 5 * variance * math.sqrt((kurtosis + 2) / N)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return abs(float(np.corrcoef(a, b)[0, 1])) * math.sqrt(len(a))


def test_streams_do_not_know_each_other():
    """Correlations in units of their standard deviation."""
    key = 987654321
    one = draws(0, key)
    for lag in (1, 2, 7, 64):
        assert correlation(one[lag:], one[:-lag]) < 5
    others = [draws(0, key + 1), draws(0, key ^ (1 << 63)), draws(4, key)]
    others += [draws(0, substream(key, number)) for number in (0, 1, 2, 1000)]
    others += [draws(0, substream(substream(key, 0), 1)), draws(2, key), draws(3, key, 2.0)]
    for i, other in enumerate(others):
        assert correlation(one, other) < 5, i
    for i, first in enumerate(others):
        for second in others[i + 1 : -2]:
            assert correlation(first, second) < 5


def test_substream_keys_are_distinct_and_look_random():
    seen = {substream(key, number) for key in range(300) for number in range(300)}
    assert len(seen) == 300 * 300
    assert stats.kstest(draws(4), "uniform").pvalue > 1e-4


def test_neighbouring_keys_avalanche():
    """One flipped bit of key or number flips half of the output bits."""
    flips = []
    for key in range(50):
        for b in range(64):
            flips.append((bits(key, 3) ^ bits(key ^ (1 << b), 3)).bit_count())
            flips.append((substream(key, 3) ^ substream(key, 3 ^ (1 << b))).bit_count())
    assert np.mean(flips) == pytest.approx(32, abs=0.5) and min(flips) > 8
