"""How far SLAY is from the kernel that it approximates, by feature budget: a table that `benchmarks/attention_errors.py` measures.

An error is the norm of the difference of outputs over the norm of the exact output, on random input: `errors.json` says how. It is
no loss of a language model. How much one follows from the other is not known: the paper's SLAY has a smaller loss than the kernel
that it approximates.
"""

import functools
import json
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from llmgym.envs.attention import published
from llmgym.envs.attention.law import REFERENCE, Budget
from llmgym.errors import InvalidArgument
from llmgym.profiles.tables import read_csv

DATA = Path(__file__).parent / "data"
COLUMNS = ("head_dim", "polynomial", "nodes", "features", "anchors", "error", "spread", "error_without_bias")


class Measured(NamedTuple):
    """Relative error of the output: its mean and standard deviation over seeds, and its mean for projections without a bias."""

    error: float
    spread: float
    without_bias: float


@functools.cache
def table() -> MappingProxyType[tuple[int, str, Budget], Measured]:
    """All that was measured, by head dimension, polynomial and budget.

    The polynomial is `anchor` (what SLAY uses), `exact` (x^2 itself), `quadrature` (no random features) or `limit` (anchors and
    random features without end); what a kind does not have is 0 in its budget.
    """
    rows = {}
    for _, row in read_csv(DATA / "errors.csv", COLUMNS):
        budget = Budget(int(row["nodes"]), int(row["features"]), int(row["anchors"]))
        values = Measured(*(float(row[name]) for name in COLUMNS[5:]))
        rows[int(row["head_dim"]), str(row["polynomial"]), budget] = values
    return MappingProxyType(rows)


def provenance() -> dict[str, Any]:
    """How, when and with which versions the table was measured."""
    table: dict[str, Any] = json.loads((DATA / "errors.json").read_text(encoding="utf-8"))
    return table


def head_dims() -> list[int]:
    """Head dimensions of the table, rising."""
    return sorted({head_dim for head_dim, _, _ in table()})


def error_of(budget: Budget, head_dim: int) -> float:
    """Measured relative error of a budget.

    Args:
        budget: R, M, P.
        head_dim: one that was measured.

    Raises:
        InvalidArgument: it was not measured.
    """
    key = (head_dim, "anchor", budget)
    if key not in table():
        raise InvalidArgument(
            f"budget={tuple(budget)} at head_dim={head_dim}: measured are R of 1 to 3, M of 4, 8, 16, 32, "
            f"P of 8, 16, 32, at {', '.join(map(str, head_dims()))}"
        )
    return table()[key].error


def loss_of(budget: Budget, head_dim: int, slope: float) -> float:
    """Loss of a language model over that of softmax, nat: the published one of the reference budget, and an assumed slope.

    Args:
        budget: R, M, P.
        head_dim: one that was measured.
        slope: nat per unit of relative error, an assumption; 0: all budgets have the published loss.

    Returns:
        Not below 0.
    """
    more = error_of(budget, head_dim) - error_of(REFERENCE, head_dim)
    return float(np.maximum(published.loss_gap("slay") + slope * more, 0.0))
