"""Numbers on the ratio of attention to FFN instances, as published and as another simulation of the published model gives them.

Song et al., "Theoretically Optimal Attention/FFN Ratios in Disaggregated LLM Serving", arXiv 2601.21351. `PRINTED` holds what the
paper prints. Everything marked "simulated" is not in the paper: it comes from an independent simulation of its model (one seed),
and holds this package to a second implementation. What either states and the model does not give is a row of
`docs/deviations.csv`, with the reason.
"""

import numpy as np
from numpy.typing import NDArray

from llmgym.envs.afd.occupancy import nu_geometric

B, N, THETA, NU = 256, 10_000, 600.0, nu_geometric(0.0, 500.0)
BASELINE = "geometric:prompt=100,decode=500,prompt_law=constant"

# B, mu_P, mu_D -> printed r*, r* of the limit, r* of the load over N = 10,000 requests, what binds
PRINTED = {
    (256, 100, 500): (9.34, 9.575, 9.320, "attention"),
    (128, 100, 500): (7.08, 7.221, 7.094, "attention"),
    (512, 100, 500): (10.31, 10.751, 10.242, "attention"),
    (256, 100, 100): (2.17, 2.169, 2.169, "FFN"),
    (256, 500, 500): (17.25, 17.526, 17.272, "attention"),
}

RATIOS = (1, 2, 4, 8, 9, 10, 12, 16, 24, 32)
# tokens per cycle and instance: mean field, with a barrier (closed forms); simulated: synchronous in the long run, Thr80 of the
# same from a cold start, of two microbatches from a cold start; simulated idle shares of attention and FFN with these
TABLE = {
    1: (0.4218, 0.4218, 0.418, 0.416, 0.407, 0.02, 0.55),
    2: (0.5624, 0.5489, 0.552, 0.535, 0.542, 0.04, 0.49),
    4: (0.6749, 0.6460, 0.647, 0.640, 0.640, 0.06, 0.37),
    8: (0.7499, 0.7061, 0.695, 0.690, 0.688, 0.11, 0.14),
    9: (0.7593, 0.7132, 0.711, 0.696, 0.677, 0.15, 0.11),
    10: (0.7448, 0.7184, 0.713, 0.700, 0.658, 0.16, 0.07),
    12: (0.6657, 0.6657, 0.666, 0.644, 0.620, 0.22, 0.03),
    16: (0.5476, 0.5476, 0.548, 0.530, 0.513, 0.34, 0.01),
    24: (0.4029, 0.4029, 0.403, 0.390, 0.377, 0.52, 0.01),
    32: (0.3183, 0.3183, 0.318, 0.308, 0.298, 0.62, 0.01),
}

# decode laws of one mean: text -> theta, nu, r_A of the mean field, r*_G, best whole r (simulated)
LAWS = {
    "constant:prompt=100,steps=500": (349.5, 144.3, 4.59, 4.75, 4),
    "uniform:prompt=100,low=1,high=999": (432.7, 235.6, 6.25, 6.50, 6),
    BASELINE: (600.0, 500.5, 9.57, 10.10, 10),
    "geometric:decode=500,prompt_per_step=0.4": (900.0, 729.0, 15.5, 16.45, 16),
}


def column(i: int) -> NDArray[np.float64]:
    return np.array([TABLE[r][i] for r in RATIOS])
