"""Questions whose passages and scores were measured on real text, read from a file.

A bank is an `.npz`: `passages` of questions x 4 keys x 64 (records), `sizes`, and `meta`, a JSON text that says what was measured
where and when. `llmgym.envs.forage.text` makes one.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.envs.forage.state import KEYS, PASSAGES, Passage
from llmgym.errors import InvalidArgument

if TYPE_CHECKING:
    from llmgym.envs.forage.scenarios import Scenario

SHIPPED = Path(__file__).parent / "data"
FORMAT = 1
COLUMNS = ("chunk", "listed", "claims", "line", "glance", "rank")
"""Fields of a passage that are measured."""


class Bank(NamedTuple):
    """Measured questions.

    Attributes:
        passages: records [questions, 4, 64].
        sizes: passages of each key, int16 [questions, 4].
        settled: the scenario with what the bank says of the document and of the scores.
        meta: what was measured, where and when; empty where nothing is.
    """

    passages: Any
    sizes: NDArray[np.int16]
    settled: "Scenario"
    meta: dict[str, Any]


def bank_of(scenario: "Scenario") -> Bank:
    """The bank of a scenario; an empty one where its passages are drawn.

    Raises:
        InvalidArgument: there is no such file, or it is no bank.
    """
    if scenario.text is None:
        return Bank(Passage.zeros(1, KEYS, PASSAGES), np.zeros((0, KEYS), np.int16), scenario, {})
    if not isinstance(scenario.text, str):
        raise InvalidArgument(f"text={scenario.text!r}: expected 'stdlib', a path, or None")
    path = SHIPPED / "stdlib.npz" if scenario.text == "stdlib" else Path(scenario.text)
    try:
        with np.load(path, allow_pickle=False) as file:
            meta = json.loads(str(file["meta"]))
            columns = {name: file[name] for name in COLUMNS}
            sizes = file["sizes"].astype(np.int16)
        if meta["format"] != FORMAT:
            raise KeyError(f"format {meta['format']}")
    except (OSError, KeyError, ValueError) as error:
        raise InvalidArgument(
            f"text={scenario.text!r}: no bank of questions can be read there: {error}"
        ) from error
    passages = Passage.zeros(*sizes.shape, PASSAGES)
    present = np.arange(PASSAGES) < sizes[..., None]
    for name in COLUMNS:
        passages[name][present] = columns[name]
    settled = replace(
        scenario,
        chunks=int(meta["chunks"]),
        listed=tuple(meta["listed"]),
        snippet_gap=float(meta["snippet_gap"]),
        scan_gap=float(meta["scan_gap"]),
    )
    return Bank(passages, sizes, settled, meta)
