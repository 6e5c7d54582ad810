"""Courses of a day: how the request rate of real services varies with the hour, as three harmonics each, and its noise.

Each is a least-squares fit of 1 + sum_h a_h cos(2 pi h t) + b_h sin(2 pi h t), t the time in days, to a rate over its mean. The
data are not in this package. Hours are those of the origin's clock: phases mean something only between courses of one origin.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import number, whole
from llmgym.errors import InvalidArgument

MINUTES = 1440
"""Minutes of a day."""
HARMONICS = 3
LEAST_RATE = 0.05
"""Smallest rate of a course, relative to its mean: where harmonics would go below, as no service is without any request."""


class Course(NamedTuple):
    """The rate of a service over a day, relative to its mean.

    Attributes:
        name: name of the service.
        harmonics: coefficients a_1, b_1, a_2, b_2, a_3, b_3, relative to the mean.
        r_squared: coefficient of determination of the fit.
        week: factors of the seven days from the first day of the record on.
        source: where the data are from.
    """

    name: str
    harmonics: tuple[float, ...]
    r_squared: float
    week: tuple[float, ...]
    source: str

    def shape(self, days: NDArray[np.float64]) -> NDArray[np.float64]:
        """The rate at these times (days), relative to the mean over a week, at least `LEAST_RATE`."""
        rate = np.ones_like(days)
        for h in range(HARMONICS):
            angle = 2.0 * np.pi * (h + 1) * days
            rate += self.harmonics[2 * h] * np.cos(angle) + self.harmonics[2 * h + 1] * np.sin(angle)
        week = np.array(self.week)
        return np.asarray(np.maximum(rate, LEAST_RATE) * week[np.floor(days).astype(np.int64) % 7])


_SERVEGEN = (
    "ServeGen (Xiang et al., arXiv 2505.09999; Apache-2.0), rates of {} in windows of 10 minutes over 14 days; "
    "week: mean of the two weeks"
)
_FLAT = (1.0,) * 7

DAYS = (
    Course(
        "chat",
        (-0.125, -0.645, 0.22, 0.142, -0.126, -0.069),
        0.959,
        _FLAT,
        "BurstGPT (Wang et al., arXiv 2401.17644; CC-BY-4.0), requests by hour of day, mean over 61 days",
    ),
    Course(
        "m-small",
        (-0.035, -0.226, 0.069, -0.174, -0.03, -0.041),
        0.38,
        (0.915, 0.915, 1.095, 1.065, 1.04, 0.985, 0.975),
        _SERVEGEN.format("all clients of m-small"),
    ),
    Course(
        "m-mid, long prompts and short answers",
        (0.003, -0.397, 0.278, -0.269, -0.125, -0.028),
        0.21,
        (1.305, 1.025, 0.985, 0.64, 1.085, 0.91, 0.985),
        _SERVEGEN.format("clients of m-mid with mean prompts above 512 tokens and mean answers up to 128"),
    ),
    Course(
        "m-small, long prompts and short answers",
        (-0.274, -0.315, 0.167, -0.103, 0.003, 0.071),
        0.21,
        (1.11, 1.065, 1.02, 0.78, 0.895, 1.06, 1.08),
        _SERVEGEN.format("clients of m-small with mean prompts above 512 tokens and mean answers up to 128"),
    ),
)

STEP_DEVIATION = 0.0145
"""Deviation of the change of a log rate in a minute: the median change in ten minutes of m-small (ServeGen) is 3.1 %."""
PERSISTENCE = 0.99
"""Correlation of the deviation of a log rate from its course from minute to minute."""


def counts(
    rng: np.random.Generator, per_minute: float = 1500.0, days: int = 14, noise: float = 1.0
) -> NDArray[np.int64]:
    """Arrivals a minute of four services over some days: courses of a day and a week, slow noise, Poisson.

    Args:
        rng: source of randomness.
        per_minute: mean arrivals of each service, requests a minute.
        days: length, days, 1 to 1,000.
        noise: factor on the deviation of the slow noise, 0 to 20.

    Returns:
        int64 [4, days * 1440].

    Raises:
        InvalidArgument: a number out of range.
    """
    whole("days", days, 1, 1000)
    number("per_minute", per_minute)
    if number("noise", noise, zero=True) > 20.0:
        raise InvalidArgument(f"noise={noise!r}: expected at most 20")
    n = days * MINUTES
    times = (np.arange(n) + 0.5) / MINUTES
    rows = []
    for course in DAYS:
        fresh = rng.standard_normal(n) * noise * STEP_DEVIATION
        level = np.zeros(n)
        for t in range(1, n):
            level[t] = PERSISTENCE * level[t - 1] + fresh[t]
        rows.append(rng.poisson(per_minute * course.shape(times) * np.exp(level)))
    return np.array(rows)
