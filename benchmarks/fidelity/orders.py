"""What an order, or a cached prefix, is worth in vLLM and in the replay: the same requests, served in several ways.

A folder holds `<run>_requests.csv` with `arrival_s`, `prompt_tokens`, `output_tokens`, `first_token_s`, `last_token_s` (one clock,
s), `priority` where the engine had some, `session` where it cached prefixes and `turn` with `think_s` in conversations, and
`<run>_meta.json` with `blocks`, `block_size`, `batched` (tokens of a batch), `seqs` (seats) and, if so, `prefix_caching`.
"""

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fidelity.report import Sheet, Tally, comparison
from fidelity.runs import OWN_BLOCKS, Floats
from llmgym import profiles, workloads
from llmgym.profiles import Profile
from llmgym.serving.replay import latency_figures, replay
from llmgym.workloads import Rows

PROFILE = "h100/llama-3.1-8b"
POINTS = 5.0
"""Differences between two orders are met up to here, per cent."""
WAY = "in-process"
"""How the clients were: whether they read every token is not told."""


@dataclass(frozen=True)
class Order:
    """One way of serving, measured and replayed.

    Attributes:
        name: of the run.
        measured: its figures, s.
        replayed: the same of the replay.
        cached: share of the prompt tokens that were found in the cache, measured and replayed; NaN where prefixes are not cached.
    """

    name: str
    measured: dict[str, float]
    replayed: dict[str, float]
    cached: tuple[float, float]


def figures(rows: Rows, arrival_s: Floats, first_s: Floats, last_s: Floats) -> dict[str, float]:
    """`latency_figures` with means and without the token rate, s.

    Args:
        rows: the requests.
        arrival_s: float64 [n], s.
        first_s: float64 [n], when the first output token was there, s.
        last_s: float64 [n], when the last one was, s.
    """
    found = latency_figures(arrival_s, first_s, last_s, rows.output_tokens, means=True)
    del found["output_tokens_per_s"]
    return dict(sorted(found.items()))


def serve(path: Path, profile: Profile, closed: bool = False) -> Order:
    """Replay one run with the settings of its engine.

    Args:
        path: its `<run>_requests.csv`.
        profile: what a step costs.
        closed: whether a turn arrives `think_s` after the replayed answer to the turn before it, and not when it was measured.
    """
    name = path.name.removesuffix("_requests.csv")
    meta = json.loads(path.with_name(f"{name}_meta.json").read_text(encoding="utf-8"))
    rows = workloads.load(str(path)).arrivals.rows
    assert rows is not None
    if not closed:
        rows = replace(rows, turn=None, think_s=None)
    with path.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    columns = {key: np.array([float(row[key]) for row in table]) for key in ("first_token_s", "last_token_s")}
    start_s = float(table[0]["arrival_s"])
    found = replay(
        rows,
        profile,
        kv_capacity=meta["block_size"] * (meta["blocks"] - OWN_BLOCKS),
        budget=meta["batched"],
        seats=meta["seqs"],
        block=meta["block_size"],
        rule="vllm:watermark=0" if rows.priority is None else "vllm-priority",
        scheduling="async-held",
        prefix_caching=bool(meta.get("prefix_caching", False)),
        way=WAY,
    )
    measured = figures(
        rows, rows.arrival_s, columns["first_token_s"] - start_s, columns["last_token_s"] - start_s
    )
    replayed = figures(rows, found.arrival_s, found.first_s, found.last_s)
    cached = (float("nan"), float("nan"))
    if rows.session is not None:
        tokens = float(rows.prompt_tokens.sum())
        cached = (sum(float(row["cached_tokens"]) for row in table) / tokens, found.reused / tokens)
    return Order(name, measured, replayed, cached)


def differences(one: Order, other: Order) -> dict[str, tuple[float, float]]:
    """By how many per cent the figures of one order are above those of another, measured and replayed."""
    return {
        key: (
            100 * (one.measured[key] / other.measured[key] - 1),
            100 * (one.replayed[key] / other.replayed[key] - 1),
        )
        for key in one.measured
    }


def sheets(folder: Path, kind: str, options: dict[str, dict[str, str]]) -> tuple[list[Sheet], list[Tally]]:
    """A table for each run of a folder, and one for each pair of runs.

    Args:
        folder: with the runs.
        kind: of runs, for the table of all runs.
        options: of the profile, for each column; pairs are compared in all of them. A run of conversations has a further column, of
            the last options in a closed loop.

    Returns:
        The tables, and the runs.
    """
    served = {
        label: [
            serve(path, profiles.load(PROFILE, **chosen)) for path in sorted(folder.glob("*_requests.csv"))
        ]
        for label, chosen in options.items()
    }
    made, tallies = [], []
    for same in zip(*served.values(), strict=True):
        run = same[-1]
        note = ""
        if not np.isnan(run.cached[0]):
            note = f"{100 * run.cached[0]:.1f} % of the prompt tokens were found in the cache, replayed {100 * run.cached[1]:.1f} %"
        columns = {label: one.replayed for label, one in zip(options, same, strict=True)}
        path = folder / f"{run.name}_requests.csv"
        if "think_s" in path.read_text(encoding="utf-8").partition("\n")[0]:
            last = list(options.values())[-1]
            columns["closed loop"] = serve(path, profiles.load(PROFILE, **last), closed=True).replayed
        made.append(comparison(f"{folder.name}, {run.name}", run.measured, columns, note))
        tallies.append(Tally(kind, f"{folder.name}, {run.name}", run.measured, columns))
    count = len(next(iter(served.values())))
    for i in range(count):
        for j in range(i):
            found = {label: differences(runs[i], runs[j]) for label, runs in served.items()}
            first = next(iter(found.values()))
            rows = tuple(
                (key, f"{first[key][0]:+.1f}", *(f"{pairs[key][1]:+.1f}" for pairs in found.values()))
                for key in first
            )
            near = "; ".join(
                f"{label}: {sum(abs(a - b) <= POINTS for a, b in pairs.values())} of {len(pairs)} differences within "
                f"{POINTS:.0f} points"
                for label, pairs in found.items()
            )
            runs = next(iter(served.values()))
            title = f"{runs[i].name} against {runs[j].name}, per cent"
            made.append(Sheet(title, ("figure", "measured", *options), rows, f"{near}."))
    return made, tallies
