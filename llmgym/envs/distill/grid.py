"""Carbon intensity of the grid by hour: measured means of each month, and days that are cleaner or dirtier than their month.

`CALIFORNIA` is made of a year of hourly intensities of the California ISO, consumption-based: Jacques de Chalendar's gridemissions
(de Chalendar, Taggart, Benson, "Tracking emissions in the US electricity system", PNAS 116(51), 2019, doi:10.1073/pnas.1912950116),
as the file `co2_caiso.csv` of pymgrid 1.2.2 has it (8,760 hours from 1 January, UTC; the year is not named there). Kept here are
the means by month and hour, in Pacific standard time, and three numbers of the days about them.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.rng import normal

# fmt: off
CALIFORNIA = (
    (290, 289, 289, 289, 288, 286, 287, 287, 263, 231, 214, 206, 205, 206, 209, 221, 254, 283, 285, 285, 287, 290, 292, 293),
    (288, 287, 288, 289, 289, 285, 290, 284, 246, 217, 201, 197, 196, 196, 199, 208, 228, 271, 291, 290, 292, 292, 290, 290),
    (233, 226, 223, 223, 225, 232, 243, 219, 175, 153, 144, 142, 142, 141, 144, 149, 160, 201, 246, 253, 248, 243, 239, 235),
    (167, 162, 158, 157, 164, 177, 175, 142, 121, 113, 110, 109, 111, 110, 111, 119, 132, 159, 199, 212, 205, 197, 184, 172),
    (147, 143, 141, 139, 142, 151, 141, 123, 117, 116, 114, 112, 112, 111, 111, 118, 123, 138, 167, 179, 178, 171, 162, 154),
    (174, 167, 163, 161, 163, 164, 147, 128, 122, 123, 124, 124, 126, 127, 129, 139, 145, 162, 193, 210, 211, 206, 197, 185),
    (226, 218, 214, 213, 214, 217, 197, 171, 162, 161, 162, 165, 171, 173, 178, 186, 194, 211, 240, 252, 251, 249, 246, 237),
    (250, 245, 243, 243, 245, 249, 234, 200, 182, 179, 180, 184, 192, 200, 207, 216, 224, 245, 275, 277, 273, 271, 268, 260),
    (267, 263, 262, 262, 262, 263, 260, 224, 194, 186, 187, 188, 193, 197, 203, 213, 225, 258, 276, 276, 277, 276, 276, 271),
    (309, 306, 306, 309, 309, 313, 315, 283, 231, 214, 204, 204, 209, 209, 217, 236, 273, 318, 325, 325, 322, 321, 321, 318),
    (330, 326, 325, 322, 321, 322, 329, 320, 274, 249, 239, 238, 239, 241, 251, 272, 318, 341, 335, 332, 331, 333, 334, 331),
    (307, 303, 302, 301, 299, 301, 305, 314, 294, 266, 250, 243, 242, 243, 251, 269, 299, 320, 313, 311, 310, 310, 311, 309),
)
"""Mean intensity by month (January first) and hour of the day, g CO2e/kWh, [12, 24]."""
# fmt: on
DAY_SPREAD = 0.13
"""Standard deviation of the logarithm of a day's mean over that of its month."""
DAY_MEMORY = 0.68
"""Correlation of that logarithm with the one of the day before."""
MOST_G = 500.0
"""Intensities are shown in units of this, g/kWh."""
GRIDS = ("california", "flat")


def monthly(grid: str, flat_g: float) -> NDArray[np.float64]:
    """Mean intensity by month and hour, g CO2e/kWh, float64 [12, 24].

    Args:
        grid: `california`, or `flat`: the same in all hours.
        flat_g: intensity of the flat grid, g CO2e/kWh.
    """
    if grid == "flat":
        return np.full((12, 24), float(flat_g))
    return np.array(CALIFORNIA, np.float64)


@kernel
def draw_days(key: np.uint64, spread: float, first: int, before: float, out: NDArray[np.float64]) -> None:
    """Draw the logarithms of the days' factors: each remembers the one before.

    Args:
        key: of the stream; day d uses draw d.
        spread: standard deviation of the logarithms.
        first: day from which on they are drawn.
        before: logarithm of the day before that one; not read where `first` is 0.
        out: where they are written, float64 [days].
    """
    fresh = spread * math.sqrt(1.0 - DAY_MEMORY * DAY_MEMORY)
    for day in range(first, out.shape[0]):
        drawn = normal(key, day)
        before = spread * drawn if day == 0 else DAY_MEMORY * before + fresh * drawn
        out[day] = before


@kernel(inline=True)
def intensity_g(means: NDArray[np.float64], days: NDArray[np.float64], month: int, hour: int) -> float:
    """Intensity in an hour of the programme, g CO2e/kWh.

    Args:
        means: by month and hour of the day, float64 [12, 24].
        days: logarithms of the factors of the days, float64 [days].
        month: 0 to 11; a programme stays in it.
        hour: whole hours since midnight of the first day.

    Returns:
        g CO2e/kWh.
    """
    return means[month, hour % 24] * math.exp(days[hour // 24])


@kernel(inline=True)
def forecast_g(
    means: NDArray[np.float64], days: NDArray[np.float64], month: int, hour: int, ahead: int
) -> float:
    """What is expected of an hour to come, g CO2e/kWh: today's factor is known, tomorrow's is half forgotten.

    Args:
        means: by month and hour of the day, float64 [12, 24].
        days: logarithms of the factors of the days, float64 [days], of which only today's is read.
        month: 0 to 11.
        hour: the present one, whole hours since midnight of the first day.
        ahead: hours from it.

    Returns:
        g CO2e/kWh.
    """
    later = hour + ahead
    passed = later // 24 - hour // 24
    return means[month, later % 24] * math.exp(days[hour // 24] * DAY_MEMORY**passed)
