"""Measured runs of serving engines as arrays, and the figures that are compared.

Three layouts are read, all with one row a request:

- llmgym's own, written by `benchmarks/engine_vllm.py`: `<case>_requests.csv` and `<case>_meta.json`;
- LLMServingSim's (https://github.com/casys-kaist/LLMServingSim, `bench/examples`, reduced to CSV): arrival as a time of day,
  further columns that are not used here;
- rows without times, for a prediction.
"""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.errors import InvalidArgument
from llmgym.serving.replay import latency_figures

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


OWN_BLOCKS = 1
"""Blocks that vLLM keeps for itself."""


@dataclass(frozen=True)
class Engine:
    """Settings of a serving engine.

    Attributes:
        budget_tokens: tokens of a batch (`max_num_batched_tokens`).
        seats: requests that run at once (`max_num_seqs`).
        kv_tokens: tokens the KV cache holds.
        block_tokens: tokens of a block of it.
        watermark: share of the cache kept free at admission; vLLM 0.24 has 0 by default.
    """

    budget_tokens: int = 2048
    seats: int = 256
    kv_tokens: int = 2**24
    block_tokens: int = 16
    watermark: float = 0.0


@dataclass(frozen=True)
class Run:
    """Requests in order of arrival, and what an engine made of them.

    Attributes:
        name: of the run.
        arrival_s: float64 [n], never decreasing.
        prompt_tokens: int64 [n].
        output_tokens: int64 [n].
        first_s: float64 [n], when the first output token was there; NaN where nothing was measured.
        last_s: float64 [n], when the last one was.
        engine: its settings.
        meta: what else is known of the run.
    """

    name: str
    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    first_s: Floats
    last_s: Floats
    engine: Engine = field(default_factory=Engine)
    meta: dict[str, Any] = field(default_factory=dict)

    def figures(self, first_s: Floats | None = None, last_s: Floats | None = None) -> dict[str, float]:
        """`llmgym.serving.replay.latency_figures` of what was measured, or of other token times (s, [n])."""
        first = self.first_s if first_s is None else first_s
        last = self.last_s if last_s is None else last_s
        return latency_figures(self.arrival_s, first, last, self.output_tokens)

    def part(self, chosen: NDArray[Any]) -> "Run":
        """The requests that a mask or an index chooses, of the same engine."""
        columns = (self.arrival_s, self.prompt_tokens, self.output_tokens, self.first_s, self.last_s)
        return Run(self.name, *(column[chosen] for column in columns), self.engine, self.meta)


def _seconds(text: str) -> float:
    """Seconds of a number, or of a duration such as "0 days 00:00:01.5"."""
    if ":" not in text:
        return float(text)
    days, _, clock = text.partition(" days ")
    hours, minutes, seconds = clock.split(":")
    return 86_400 * float(days) + 3_600 * float(hours) + 60 * float(minutes) + float(seconds)


def read_run(requests: Path, engine: Engine, meta: dict[str, Any], name: str | None = None) -> Run:
    """Read one run; requests are sorted by arrival.

    Args:
        requests: a CSV file with `arrival_s`, `prompt_tokens`, `output_tokens`, `first_token_s`, `last_token_s` (s, tokens).
        engine: settings of the engine that made it.
        meta: anything to keep with it.
        name: of the run; the file's by default.

    Raises:
        InvalidArgument: the file is missing, has no rows or lacks a column.
    """
    if not requests.is_file():
        raise InvalidArgument(f"requests={str(requests)!r}: there is no such file")
    with requests.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    needed = ("arrival_s", "prompt_tokens", "output_tokens", "first_token_s", "last_token_s")
    missing = [column for column in needed if not rows or column not in rows[0]]
    if missing:
        raise InvalidArgument(
            f"requests={str(requests)!r}: no rows or no column {missing[0]!r}; needed: {', '.join(needed)}"
        )
    arrival, prompt, output, first, last = (
        np.array([_seconds(row[column]) for row in rows]) for column in needed
    )
    run = Run(
        name or requests.name.removesuffix("_requests.csv"),
        arrival,
        prompt.astype(np.int64),
        output.astype(np.int64),
        first,
        last,
        engine,
        meta,
    )
    return run.part(np.argsort(arrival, kind="stable"))


def own_runs(folder: Path) -> list[Run]:
    """Every run in a folder that `benchmarks/engine_vllm.py` wrote, or that has its layout; sorted by name.

    Raises:
        InvalidArgument: a run lacks its meta file.
    """
    found = []
    for requests in sorted(folder.glob("*_requests.csv")):
        path = requests.with_name(requests.name.replace("_requests.csv", "_meta.json"))
        if not path.is_file():
            raise InvalidArgument(f"runs={str(folder)!r}: {path.name} is missing beside {requests.name}")
        meta = json.loads(path.read_text(encoding="utf-8"))
        engine = Engine(
            budget_tokens=meta["max_num_batched_tokens"],
            seats=meta["max_num_seqs"],
            kv_tokens=(meta["blocks"] - OWN_BLOCKS) * meta["block_size"],
            block_tokens=meta["block_size"],
        )
        found.append(read_run(requests, engine, meta))
    return found
