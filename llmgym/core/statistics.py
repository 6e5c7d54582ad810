"""Mean, quantiles and ratios for compiled code: numpy's partition would take as long to compile as a whole environment.

What there is nothing to take it of has no value: it is NaN and not 0, which would be the best of all latencies.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel


@kernel
def mean(values: NDArray[np.float32]) -> float:
    """Mean of float32 [n]; NaN where there are no values."""
    total = 0.0
    for i in range(values.shape[0]):
        total += values[i]
    return ratio(total, values.shape[0])


@kernel(inline=True)
def ratio(total: float, count: float) -> float:
    """`total / count`; NaN where there is nothing to divide by, which is a count of 0 or less."""
    return total / count if count > 0.0 else math.nan


def counted(value: float) -> float:
    """A metric as part of a return: 0 where it is NaN, because then nothing was counted that a reward could have been for."""
    return 0.0 if math.isnan(value) else value


@kernel
def quantile(values: NDArray[np.float32], q: float) -> float:
    """Quantile of float32 [n], linear between neighbours as numpy's default; NaN where there are no values.

    Reorders `values` (Hoare's selection, CACM 4(7), 1961); no NaN may be among them.
    """
    n = values.shape[0]
    if n == 0:
        return math.nan
    place = q * (n - 1)
    wanted = int(math.floor(place))
    low, high = 0, n - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if wanted <= j:
            high = j
        elif wanted >= i:
            low = i
        else:
            break
    value = np.float64(values[wanted])
    if wanted + 1 < n:
        above = np.float64(values[wanted + 1])
        for k in range(wanted + 2, n):
            above = min(above, np.float64(values[k]))
        value += (place - wanted) * (above - value)
    return value
