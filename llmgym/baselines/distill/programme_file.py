"""Programmes of `llmgym plan distill`: a TOML or JSON file with students, floors and deadlines, read and checked.

gpus = 2
budget_kwh = 150.0

[[student]]
size = "13B"
dataset = "math"
floor = 0.8
deadline_h = 240
count = 3
"""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmgym.core.checks import choice, number, whole
from llmgym.envs.distill.published import DATASETS, KINDS, LIMIT_W, SIZES
from llmgym.envs.distill.scenarios import LEAST_CAP_W, MOST_GPUS
from llmgym.errors import InvalidArgument, UnknownArgument

MOST_ORDERS = 60
"""Students of a programme at most."""
ARTEFACT_NAMES = tuple(f"{kind} of {dataset}" for dataset in DATASETS for kind in KINDS)
"""Names of the artefacts, in the order of their numbers."""


@dataclass(frozen=True)
class Order:
    """One student that is ordered.

    Attributes:
        name: what the file calls it.
        size: index of its size.
        dataset: index of its dataset.
        floor: least quality, relative to the teacher.
        deadline_h: hours from the beginning; infinite: none.
    """

    name: str
    size: int
    dataset: int
    floor: float
    deadline_h: float


@dataclass(frozen=True)
class Programme:
    """What is planned.

    Attributes:
        orders: the students.
        gpus: H100s, each of which runs one stage at a time.
        budget_kwh: energy budget, kWh; infinite: none.
        caps: power caps that may be used, falling, W.
        power: where the power of the stages comes from; see `llmgym.envs.distill.power`.
        there: numbers of the artefacts that exist.
        split: synthetic text costs what its dataset costs by measured joules a token; otherwise the mean of the paper.
        intensity_g: carbon intensity of the grid, g CO2e/kWh.
        pue: energy of the site over that of the GPUs.
    """

    orders: tuple[Order, ...]
    gpus: int = 1
    budget_kwh: float = math.inf
    caps: tuple[float, ...] = ()
    power: str = "paper"
    there: tuple[int, ...] = ()
    split: bool = True
    intensity_g: float = 300.0
    pue: float = 1.2


_KEYS = ("student", "gpus", "budget_kwh", "caps", "power", "artefacts", "split", "intensity_g", "pue")
_STUDENT_KEYS = ("name", "size", "dataset", "floor", "deadline_h", "count")


def read_programme(path: str | Path) -> Programme:
    """A programme from its file.

    Args:
        path: of a file whose name ends in `.toml` or `.json`.

    Raises:
        InvalidArgument: there is no such file, it is no TOML or JSON, or something in it is not allowed; the message names both.
        UnknownName: a size, dataset or artefact that does not exist.
        UnknownArgument: a key that is not known.
    """
    file = Path(path)
    if file.suffix not in (".toml", ".json"):
        raise InvalidArgument(f"programme={str(path)!r}: expected a file that ends in .toml or .json")
    try:
        words = file.read_text(encoding="utf-8")
        declared: Any = tomllib.loads(words) if file.suffix == ".toml" else json.loads(words)
    except OSError as error:
        raise InvalidArgument(f"programme={str(path)!r}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # of both parsers, and of what is no UTF-8
        told = " ".join(str(error).split())
        raise InvalidArgument(
            f"programme={str(path)!r}: this is no {file.suffix[1:].upper()}: {told}"
        ) from error
    if not isinstance(declared, Mapping):
        raise InvalidArgument(f"programme={str(path)!r}: expected a table with {', '.join(_KEYS)}")
    return programme_of(declared)


def programme_of(declared: Mapping[str, Any]) -> Programme:
    """A programme from its table; see `read_programme` for the errors.

    Args:
        declared: as it is in the file.
    """
    for key in declared:
        if key not in _KEYS:
            raise UnknownArgument("programme", key, _KEYS)
    students = declared.get("student", [])
    if not isinstance(students, list) or not students:
        raise InvalidArgument("student: expected at least one, a table [[student]] for each kind")
    orders = [one for n, table in enumerate(students, 1) for one in _orders(table, n)]
    if len(orders) > MOST_ORDERS:
        raise InvalidArgument(f"student: {len(orders)} students; at most {MOST_ORDERS} are planned")
    caps = _list(declared, "caps")
    for i, cap in enumerate(caps):
        if not LEAST_CAP_W <= number("caps", cap) < (LIMIT_W if i == 0 else caps[i - 1]):
            raise InvalidArgument(
                f"caps={caps!r}: expected watts from {LEAST_CAP_W:g} to below {LIMIT_W:g}, each lower than the one before"
            )
    there = [
        ARTEFACT_NAMES.index(choice("artefacts", name, ARTEFACT_NAMES))
        for name in _list(declared, "artefacts")
    ]
    power, split = declared.get("power", "paper"), declared.get("split", True)
    if not isinstance(power, str):
        raise InvalidArgument(f"power={power!r}: expected 'paper' or the name of a kernel set")
    if not isinstance(split, bool):
        raise InvalidArgument(f"split={split!r}: expected true or false")
    pue = number("pue", declared.get("pue", 1.2))
    if pue < 1.0:
        raise InvalidArgument(f"pue={pue!r}: expected a finite number >= 1")
    return Programme(
        tuple(orders),
        whole("gpus", declared.get("gpus", 1), 1, MOST_GPUS),
        number("budget_kwh", declared["budget_kwh"]) if "budget_kwh" in declared else math.inf,
        tuple(float(cap) for cap in caps),
        power,
        tuple(there),
        split,
        number("intensity_g", declared.get("intensity_g", 300.0), True),
        pue,
    )


def _list(declared: Mapping[str, Any], key: str) -> list[Any]:
    """A list of the table; empty if it is not there."""
    value = declared.get(key, [])
    if not isinstance(value, list):
        raise InvalidArgument(f"{key}={value!r}: expected a list")
    return value


def _orders(table: Any, n: int) -> list[Order]:
    """The students of one table, the n-th."""
    where = f"student {n}"
    if not isinstance(table, Mapping):
        raise InvalidArgument(f"{where}: expected a table with {', '.join(_STUDENT_KEYS)}")
    for key in table:
        if key not in _STUDENT_KEYS:
            raise UnknownArgument(where, key, _STUDENT_KEYS)
    for key in ("size", "dataset"):
        if key not in table:
            raise InvalidArgument(f"{where}: needs {key!r}")
    size = SIZES.index(choice(f"size of {where}", table["size"], SIZES))
    dataset = DATASETS.index(choice(f"dataset of {where}", table["dataset"], DATASETS))
    floor = number(f"floor of {where}", table.get("floor", 0.0), True)
    deadline = number(f"deadline_h of {where}", table["deadline_h"]) if "deadline_h" in table else math.inf
    name = table.get("name", f"{SIZES[size]} {DATASETS[dataset]}")
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"name of {where}={name!r}: expected some text")
    count = whole(f"count of {where}", table.get("count", 1), 1, MOST_ORDERS)
    return [Order(name, size, dataset, floor, deadline)] * count
