"""Statistics of episodes: interquartile mean, bootstrap intervals, paired differences, corrected p values.

The interquartile mean and stratified bootstrap intervals follow Agarwal, Schwarzer, Castro, Courville and Bellemare, "Deep
reinforcement learning at the edge of the statistical precipice", NeurIPS 2021, section 4. Percentile intervals of small samples
are too narrow; they are expanded as in Hesterberg, "What teachers should know about the bootstrap", The American Statistician
69(4), 2015, section 4.3. The correction for several comparisons is that of Holm, "A simple sequentially rejective multiple test
procedure", Scandinavian Journal of Statistics 6(2), 1979.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from llmgym.errors import InvalidArgument

RESAMPLES = 5_000
BLOCK = 1 << 22
"""Most numbers gathered at a time: 32 MiB, whatever the number of episodes."""

Statistic = Callable[[NDArray[np.float64]], Any]
"""A function of an array [..., n] that reduces the last axis."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """True if the sign of the quantity is settled."""
        return self.low > 0.0 or self.high < 0.0

    @property
    def complement(self) -> "Interval":
        """The interval of 1 minus the quantity."""
        return Interval(1.0 - self.high, 1.0 - self.low)


NOTHING = Interval(math.nan, math.nan)
"""The interval of a quantity that has no value."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """What paired differences say, one difference a world; without differences all but `count` is NaN.

    Attributes:
        mean: mean difference.
        interval: bootstrap interval of the mean difference.
        median: median difference.
        probability: share of the worlds where the difference is positive, ties counted half.
        probability_interval: bootstrap interval of that share.
        p_wilcoxon: two-sided p value of Wilcoxon's signed-rank test (1 if all differences are zero).
        p_sign: two-sided p value of the sign test (1 if all differences are zero).
        count: number of differences.
    """

    mean: float = math.nan
    interval: Interval = NOTHING
    median: float = math.nan
    probability: float = math.nan
    probability_interval: Interval = NOTHING
    p_wilcoxon: float = math.nan
    p_sign: float = math.nan
    count: int = 0


def mean(values: NDArray[np.float64]) -> Any:
    """Mean over the last axis."""
    return np.mean(values, axis=-1)


def median(values: NDArray[np.float64]) -> Any:
    """Median over the last axis."""
    return np.median(values, axis=-1)


def iqm(values: NDArray[np.float64]) -> Any:
    """Interquartile mean over the last axis: of n values, floor(n / 4) are dropped at each end."""
    return stats.trim_mean(values, 0.25, axis=-1)


def _sample(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise InvalidArgument(f"{name} has shape {array.shape}: expected at least 2 numbers in one row")
    if not np.isfinite(array).all():
        raise InvalidArgument(
            f"{name} holds {np.count_nonzero(~np.isfinite(array))} NaN or infinite values: drop them"
        )
    return array


def _groups(strata: ArrayLike | None, count: int) -> list[NDArray[np.int64]]:
    """Positions of the members of each stratum."""
    if strata is None:
        return [np.arange(count)]
    labels = np.asarray(strata)
    if labels.shape != (count,):
        raise InvalidArgument(
            f"strata has shape {labels.shape}, expected one label for each of the {count} values"
        )
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    # A stratum of one would always resample to itself and hide its own spread.
    return [np.arange(count)] if min(map(len, groups)) < 2 else groups


def resample(
    values: ArrayLike,
    statistic: Statistic = mean,
    *,
    strata: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The statistic of bootstrap samples, drawn with replacement within each stratum.

    Args:
        values: finite numbers, [n], n >= 2.
        statistic: reduces the last axis of an array [..., n].
        strata: labels [n]; None, or a stratum with a single member, puts all values into one.
        resamples: how many samples to draw, at least 100.
        seed: seed of the draws; the same seed draws the same positions for any values of this length.

    Returns:
        float64 [resamples].

    Raises:
        InvalidArgument: fewer than 2 values, NaN or infinite values, or strata of another length.
    """
    sample = _sample(values, "values")
    if resamples < 100:
        raise InvalidArgument(f"resamples={resamples!r}: expected at least 100")
    count = len(sample)
    groups = _groups(strata, count)
    block = max(1, BLOCK // count)
    if resamples <= block:  # one block, which many samples of one length share
        sizes = tuple(map(len, groups))
        drawn = _positions(sizes, resamples, seed)
        order = np.concatenate(groups)
        return np.asarray(statistic(sample[order][drawn]), np.float64)
    rng = np.random.default_rng(seed)
    out = np.empty(resamples)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        parts = [group[rng.integers(0, len(group), size=(rows, len(group)))] for group in groups]
        out[start : start + rows] = statistic(sample[np.concatenate(parts, axis=1)])
    return out


@functools.lru_cache(maxsize=2)
def _positions(sizes: tuple[int, ...], resamples: int, seed: int) -> NDArray[np.int64]:
    """Places drawn within groups that lie one after the other, int64 [resamples, sum of the sizes]."""
    rng = np.random.default_rng(seed)
    starts = np.cumsum((0, *sizes))[:-1]
    drawn = np.concatenate(
        [
            start + rng.integers(0, size, size=(resamples, size))
            for start, size in zip(starts, sizes, strict=True)
        ],
        axis=1,
    )
    drawn.setflags(write=False)
    return drawn


def bootstrap(
    values: ArrayLike,
    statistic: Statistic = mean,
    *,
    confidence: float = 0.95,
    strata: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Stratified bootstrap percentile interval, expanded for small samples.

    The percentiles are those that give the mean of a normal sample the width of Student's interval. Where the sample is so small
    that the bootstrap distribution has no such percentiles (fewer than 5 values at 95 %), the interval is Student's with the
    bootstrap standard error.

    Args:
        values: finite numbers, [n], n >= 2.
        statistic: reduces the last axis of an array [..., n].
        confidence: confidence of the interval, between 0 and 1.
        strata: labels [n] or None, as `resample` takes them.
        resamples: number of bootstrap samples.
        seed: seed of the draws.

    Returns:
        The interval, in the unit of the statistic.

    Raises:
        InvalidArgument: what `resample` raises it for, or a confidence outside (0, 1).
    """
    check_confidence(confidence)
    sample = _sample(values, "values")
    count = len(sample)
    freedom = count - len(_groups(strata, count))
    draws = resample(sample, statistic, strata=strata, resamples=resamples, seed=seed)
    expansion = math.sqrt(count / freedom)
    quantile = float(stats.t.ppf(0.5 + confidence / 2.0, freedom))
    tail = float(stats.norm.cdf(-expansion * quantile))
    # Beyond these the percentiles are the ends of the sample, however unlikely they ought to be.
    if tail < max(2.0 / resamples, float(count) ** -count):
        centre, half = float(statistic(sample)), quantile * expansion * float(np.std(draws))
        return Interval(centre - half, centre + half)
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return Interval(float(low), float(high))


def paired(
    differences: ArrayLike,
    *,
    confidence: float = 0.95,
    strata: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """What the differences between two policies on the same worlds say.

    Args:
        differences: one number a world, [n], n >= 2.
        confidence: confidence of the intervals, between 0 and 1.
        strata: labels [n] or None, as `resample` takes them.
        resamples: number of bootstrap samples.
        seed: seed of the draws.

    Returns:
        Mean, median, share of worlds and p values, with their intervals; see `Paired`.

    Raises:
        InvalidArgument: what `bootstrap` raises it for.
    """
    array = _sample(differences, "differences")
    better = np.where(array > 0, 1.0, np.where(array < 0, 0.0, 0.5))
    moved = array[array != 0.0]
    if len(moved):
        p_wilcoxon = float(stats.wilcoxon(moved).pvalue)
        p_sign = float(stats.binomtest(int(np.count_nonzero(moved > 0)), len(moved)).pvalue)
    else:
        p_wilcoxon = p_sign = 1.0
    chance = bootstrap(better, confidence=confidence, strata=strata, resamples=resamples, seed=seed)
    return Paired(
        mean=float(mean(array)),
        interval=bootstrap(array, confidence=confidence, strata=strata, resamples=resamples, seed=seed),
        median=float(median(array)),
        probability=float(mean(better)),
        probability_interval=Interval(max(0.0, chance.low), min(1.0, chance.high)),
        p_wilcoxon=p_wilcoxon,
        p_sign=p_sign,
        count=len(array),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p values, in the order given: each is compared with the level of the whole family."""
    order = np.argsort(p_values)
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def check_confidence(confidence: float) -> None:
    """Raise `InvalidArgument` unless `confidence` is a number between 0 and 1, both excluded."""
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0.0 < confidence < 1.0:
        raise InvalidArgument(f"confidence={confidence!r}: expected a number between 0 and 1, such as 0.95")
