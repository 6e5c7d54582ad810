"""Numbers of the SLAY paper (Luna, Bouhsine, Choromanski, ICML 2026, arXiv 2602.04915): latency, memory, loss of a language model.

Latency and memory: one causal attention layer, 8 heads of 32, one sequence, forward, on an A100 80GB. Softmax and exact Yat are
PyTorch with the matrix written out, which ends at 16,384 tokens. The feature budget of SLAY in that figure is not published; here
it counts as (2, 16, 8), as in the paper's language model. The loss is that of a GPT-2 Small trained with each kernel on 2.5 billion
tokens.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llmgym.envs.attention.law import REFERENCE, Budget

LENGTHS = tuple(2**i for i in range(7, 18))
"""Tokens."""
LATENCY_MS: dict[str, tuple[float, ...]] = {
    "softmax": (0.41, 0.43, 0.45, 0.67, 2.08, 7.04, 22.84, 85.60),
    "yat": (0.57, 0.56, 0.63, 0.90, 2.79, 9.79, 37.38, 141.43),
    "elu": (0.58, 0.58, 0.72, 1.18, 2.10, 3.91, 8.42, 18.82, 36.68, 73.27, 147.63),
    "cosformer": (0.96, 0.98, 1.29, 2.20, 4.01, 7.52, 14.84, 35.32, 72.19, 144.60, 291.17),
    "favor": (0.63, 0.64, 0.99, 1.55, 2.69, 4.99, 9.73, 19.38, 38.77, 77.48, 155.06),
    "slay": (1.46, 1.45, 1.71, 2.17, 3.26, 5.47, 9.78, 19.02, 37.69, 75.05, 149.63),
}
MEMORY_MIB: dict[str, tuple[float, ...]] = {
    "softmax": (11.9, 15.7, 29.4, 81.1, 282.1, 1074.1, 4218.1, 16746.1),
    "yat": (13.4, 21.7, 53.4, 177.2, 666.3, 2610.4, 10362.6, 41323.1),
    "elu": (22.9, 35.6, 61.1, 112.1, 214.1, 418.1, 826.1, 1642.1, 3274.1, 6538.1, 13066.1),
    "cosformer": (31.5, 52.9, 95.6, 181.1, 352.2, 694.2, 1378.2, 2746.3, 5482.5, 10954.9, 21899.6),
    "favor": (27.8, 45.4, 80.7, 151.2, 292.3, 574.3, 1138.4, 2266.7, 4523.2, 9036.2, 18062.2),
    "slay": (36.2, 62.2, 114.2, 151.7, 160.7, 178.7, 214.7, 314.2, 618.2, 1226.2, 2442.2),
}
LOSS = {
    "softmax": 4.6417,
    "exact yat": 4.5747,
    "slay": 4.6760,
    "yat": 4.7180,
    "elu": 5.0884,
    "cosformer": 5.1983,
    "favor": 5.4524,
}
"""Validation loss, nat; `yat` is the spherical kernel, `exact yat` the one of raw vectors."""
PERPLEXITY = {
    "softmax": 103.73,
    "exact yat": 97.03,
    "slay": 107.35,
    "yat": 112.00,
    "elu": 161.99,
    "cosformer": 180.97,
    "favor": 233.32,
}
FIXED_MS, MS_PER_TOKEN = 1.186, 1.083e-3
"""An affine law of SLAY's latency, fitted here to within 9 %."""
P100_MS: dict[str, tuple[float, ...]] = {
    "slay 2 16 32": (2.94, 5.15, 9.78, 17.84),
    "slay 2 4 8": (0.49, 0.77, 0.86, 1.40),
    "favor 64": (0.61, math.nan, 0.86, 1.39),
}
"""Medians of a layer of 4 heads of 16 at 512, 1,024, 2,048 and 4,096 tokens on a P100, in JAX, from the authors' data files."""
SIZE_EXPONENT = 0.92
"""How latency grows with m: 12.7 times for 16 times the features at 4,096 tokens in `P100_MS`."""
FIXED_MIB = 10.2
"""Memory of SLAY at no tokens."""


def loss_gap(kernel: str) -> float:
    """Validation loss over that of softmax, nat.

    Args:
        kernel: a key of `LOSS`.
    """
    return round(LOSS[kernel] - LOSS["softmax"], 4)


def slay_ms(budget: Budget) -> NDArray[np.float64]:
    """Latency of another budget at every length, ms: the part that grows with the length goes with m^0.92."""
    measured: NDArray[np.float64] = np.array(LATENCY_MS["slay"])
    return FIXED_MS + (measured - FIXED_MS) * (budget.size / REFERENCE.size) ** SIZE_EXPONENT


def slay_mib(budget: Budget) -> NDArray[np.float64]:
    """Memory of another budget at every length, MiB: what is not fixed goes with m."""
    measured: NDArray[np.float64] = np.array(MEMORY_MIB["slay"])
    return FIXED_MIB + (measured - FIXED_MIB) * budget.size / REFERENCE.size


def softmax_fit_ms(length: NDArray[np.float64]) -> NDArray[np.float64]:
    """A quadratic law of the softmax row, ms; within 13 % of it."""
    return 0.394 - 2.28e-5 * length + 3.485e-7 * length**2


def slay_fit_ms(length: NDArray[np.float64]) -> NDArray[np.float64]:
    """An affine law of the SLAY row, ms; within 9 % of it."""
    return FIXED_MS + MS_PER_TOKEN * length


def favor_fit_ms(length: NDArray[np.float64]) -> NDArray[np.float64]:
    """An affine law of the FAVOR+ row, ms; within 12 % of it."""
    return 0.410 + 1.145e-3 * length


def softmax_fit_mib(length: NDArray[np.float64]) -> NDArray[np.float64]:
    """A quadratic law of the softmax row's memory, MiB: 65 bytes for a pair of tokens."""
    return 10.13 + 5.87e-3 * length + 6.198e-5 * length**2


def slay_fit_mib(length: NDArray[np.float64]) -> NDArray[np.float64]:
    """A law of the SLAY row's memory in three parts, MiB."""
    kib = length / 1024.0
    parts = [length <= 512, length <= 8192]
    return np.select(parts, [FIXED_MIB + 208.0 * kib, 142.7 + 9.0 * kib], FIXED_MIB + 19.0 * kib)
