"""Forecasts of the arrivals of the next minute, type by type.

OServe (Jiang et al., arXiv 2602.12151, section 4 and appendix) predicts with one LSTM for each type from the last 50 minutes;
moving average and last value are what it compares with. Ridge regression on the same 50 minutes is ours. A forecaster maps counts
[n, window] of one type, oldest first, to the next count [n]; what it learns does not depend on the scale of the counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import number, whole
from llmgym.errors import InvalidArgument

Floats = NDArray[np.float64]
Forecaster = Callable[[Floats], Floats]

WINDOW = 50
"""Minutes that a forecast looks back; section 4."""
_LEAST_MEAN = 0.5
"""Half a request a window: what counts are divided by where hardly any came."""
RIDGE = 1.0
"""Weight of the squared coefficients; ours."""


def last_value(counts: Floats) -> Floats:
    """The next minute is like the last; [n, window] -> [n]."""
    return np.asarray(counts, np.float64)[:, -1]


def moving_average(counts: Floats) -> Floats:
    """The mean of the window; [n, window] -> [n]."""
    return np.asarray(np.mean(counts, axis=1))


def ewma(weight: float) -> Forecaster:
    """The exponential moving average with this weight of the newest count. Raises `InvalidArgument` unless it is in (0, 1]."""
    if number("weight", weight) > 1.0:
        raise InvalidArgument(f"weight={weight!r}: expected a number above 0 and up to 1")

    def forecast(counts: Floats) -> Floats:
        window = counts.shape[1]
        weights = weight * (1.0 - weight) ** np.arange(window - 1, -1, -1)
        weights[0] = (1.0 - weight) ** (window - 1)
        return np.asarray(counts @ weights)

    return forecast


def rrmse(actual: Floats, forecast: Floats) -> float:
    """Relative root mean square error, sqrt(mean((y - yhat)^2)) / mean(y): our reading, the paper does not define it."""
    y = np.asarray(actual, np.float64)
    return float(np.sqrt(np.mean((y - forecast) ** 2)) / np.mean(y))


def windows(series: Floats, window: int = WINDOW) -> tuple[Floats, Floats]:
    """Every stretch of `window` counts of a series [t] and the count after it: [t - window, window] and [t - window].

    Raises:
        InvalidArgument: the series is not longer than the window.
    """
    values = np.asarray(series, np.float64)
    if values.ndim != 1 or len(values) <= whole("window", window):
        raise InvalidArgument(f"series of shape {values.shape}: expected more than window={window} counts")
    every = np.lib.stride_tricks.sliding_window_view(values, window)
    return every[:-1], values[window:]


@dataclass(frozen=True)
class Ridge:
    """A linear forecast of the change from the last count, learnt by ridge regression on counts over the mean of their window.

    Attributes:
        coefficients: float64 [window], weights of the counts over their mean, oldest first.
        offset: what is added, over the mean of the counts.
    """

    coefficients: Floats
    offset: float

    def __call__(self, counts: Floats) -> Floats:
        """[n, window] -> [n], at least 0."""
        x, scale = scaled(counts)
        return np.maximum((x[:, -1] + x @ self.coefficients + self.offset) * scale, 0.0)


def scaled(counts: Floats) -> tuple[Floats, Floats]:
    """Counts [n, window] over the mean of their window, and that mean [n], at least `_LEAST_MEAN`."""
    values = np.asarray(counts, np.float64)
    scale = np.maximum(values.mean(axis=1), _LEAST_MEAN)
    return values / scale[:, None], scale


def fit_ridge(series: Sequence[Floats], window: int = WINDOW, penalty: float = RIDGE) -> Ridge:
    """Learn a `Ridge` from one series of counts or more.

    Args:
        series: counts of one type, each [t] with t > window.
        window: counts that a forecast reads.
        penalty: weight of the squared coefficients.

    Returns:
        The fitted forecaster.

    Raises:
        InvalidArgument: a series that is too short, or a penalty that is not above 0.
    """
    pairs = [windows(counts, window) for counts in series]
    x, scale = scaled(np.concatenate([a for a, _ in pairs]))
    y = np.concatenate([b for _, b in pairs]) / scale - x[:, -1]
    middle, mean = x.mean(axis=0), float(y.mean())
    centred = x - middle
    gram = centred.T @ centred + number("penalty", penalty) * np.eye(window)
    coefficients = np.linalg.solve(gram, centred.T @ (y - mean))
    return Ridge(coefficients, mean - float(middle @ coefficients))


def padded(counts: Floats, window: int = WINDOW) -> Floats:
    """The last `window` of some counts [n, t]; where there are fewer, the first one is repeated in front."""
    if counts.shape[1] >= window:
        return counts[:, -window:]
    return np.concatenate([np.repeat(counts[:, :1], window - counts.shape[1], axis=1), counts], axis=1)
