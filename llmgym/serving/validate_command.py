"""`llmgym validate`: a measured run against what a replay of its requests predicts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from llmgym import workloads
from llmgym.errors import InvalidArgument
from llmgym.serving.engine_options import EngineOptions, shown, tell_band
from llmgym.serving.pictures import check_picture, draw_validation
from llmgym.serving.replay_command import check_writable
from llmgym.serving.sensitivity import NEAR, band, load
from llmgym.serving.validate import Validation, closed_loop, validate
from llmgym.workloads import runs

NAMES = {
    "ttft": "first token",
    "tpot": "time per output token",
    "e2e": "end to end",
    "makespan_s": "makespan, s",
    "output_tokens_per_s": "output tokens/s",
}
CLOSE = (0.05, 0.1)
"""Errors up to which figures are counted: the two bars of docs/fidelity.md."""


@dataclass(frozen=True)
class Validate(EngineOptions):
    """Compare a run that was measured on a server with the replay of its requests: predicted against measured, figure by figure."""

    run_file: Annotated[Path, tyro.conf.Positional]
    """Result of vllm bench serve (--save-result --save-detailed), SGLang's bench_serving (--output-details), GuideLLM
    (benchmarks.json) or AIPerf (profile_export.jsonl), or a CSV file as llmgym replay --out writes it."""
    format: str | None = None
    """vllm, sglang, guidellm, aiperf or llmgym (CSV); found from the file if left out."""
    number: int | None = None
    """Which run of the file, from 1 on, where it holds several."""
    arrivals: Path | None = None
    """Trace file with the times at which requests were sent, a row for each request of the run in its order, for results that do
    not tell them (SGLang's)."""
    picture: Path | None = None
    """PNG, SVG or PDF file: how many requests were within which time, measured and predicted."""
    out: Path | None = None
    """CSV file for the predicted times of each request."""

    def run(self, console: Console) -> dict[str, Any]:
        """Print the comparison, and draw it if asked to.

        Returns:
            The same as numbers.

        Raises:
            LlmgymError: a name, file or number that does not do, a run without the times, lengths or arrivals of its requests, or
                requests that do not finish in the replay.
        """
        for name, path in (("picture", self.picture), ("out", self.out)):
            if path is not None:
                check_writable(name, path)
        if self.picture is not None:
            check_picture("picture", self.picture)
        measured = runs.read_run(self.run_file, self.format, self.number)
        if self.arrivals is not None:
            measured = measured.with_arrivals(self._arrivals(measured))
        closed_loop(measured, self.clients)
        profile, settings = self.costs(), self.for_replay()
        del settings["clients"]
        found = validate(measured, profile, clients=self.clients, **settings)
        told = self._print(console, found)
        share = load(found.rows, profile, **self.for_load()) if found.clients is None else np.nan
        told["load"] = share
        if NEAR <= share < np.inf:
            told["band"] = band(found.rows, profile, **settings)
            tell_band(console, share, told["band"])
        written = []
        if self.picture is not None:
            draw_validation(*found.times(), f"{self.run_file.name} on {self.profile}", self.picture)
            written.append(self.picture)
        if self.out is not None:
            self._write(self.out, found)
            written.append(self.out)
        for path in written:
            console.print(f"Written: {path}")
        return told | {"written": written}

    def _arrivals(self, measured: runs.MeasuredRun) -> Any:
        """When requests were sent, s, float64 [n], in the order of the run's file."""
        if measured.arrival_s is not None:
            raise InvalidArgument(
                f"arrivals={str(self.arrivals)!r}: {self.run_file} tells them itself; expected none"
            )
        rows = workloads.from_trace(str(self.arrivals)).arrivals.rows
        asked = len(measured) + measured.failed
        if rows is None or len(rows) != asked or measured.failed:
            why = (
                f"{measured.failed} failed, so that rows and requests do not match"
                if measured.failed
                else f"expected {asked} rows"
            )
            raise InvalidArgument(f"arrivals={str(self.arrivals)!r}: {len(rows) if rows else 0} rows; {why}")
        return rows.arrival_s

    def _print(self, console: Console, found: Validation) -> dict[str, Any]:
        run = found.run
        table = Table(
            title=f"{len(run)} requests of {self.run_file} ({run.format}) on {self.profile}",
            title_justify="left",
        )
        for name in ("figure", "measured", "predicted", "error", "within"):
            table.add_column(name, justify="left" if name == "figure" else "right")
        for one in found.figures:
            within = next((f"{100 * bar:g} %" for bar in CLOSE if one.within(bar)), "-")
            form = ",.0f" if one.name == "output_tokens_per_s" else ".4g"
            measured, predicted = shown(one.measured, form), shown(one.predicted, form)
            table.add_row(_name(one.name), measured, predicted, f"{100 * one.error:+.1f} %", within)
        console.print(table)
        sizes = np.abs([one.error for one in found.figures])
        counts = [sum(one.within(bar) for one in found.figures) for bar in CLOSE]
        counted = ", ".join(
            f"{count} within {100 * bar:g} %" for count, bar in zip(counts, CLOSE, strict=True)
        )
        console.print(
            f"[bold]Of {len(sizes)} figures {counted}[/bold]; median absolute error {100 * np.median(sizes):.1f} %."
        )
        notes = _notes(found)
        for note in notes:
            console.print(note)
        return {
            "run": self.run_file,
            "format": run.format,
            "profile": self.profile,
            "requests": len(run),
            "failed": run.failed,
            "clients": found.clients,
            "figures": [
                {"name": one.name, "measured": one.measured, "predicted": one.predicted, "error": one.error}
                for one in found.figures
            ],
            "within": {f"{bar:g}": count for bar, count in zip(CLOSE, counts, strict=True)},
            "median_absolute_error": float(np.median(sizes)),
            "notes": notes,
        }

    @staticmethod
    def _write(out: Path, found: Validation) -> None:
        from llmgym.serving.validate import as_run

        runs.write_run(out, "llmgym", as_run(found.rows, found.replayed, clients=found.clients))


def _name(key: str) -> str:
    """`ttft_p50_s` in words."""
    if key in NAMES:
        return NAMES[key]
    figure, what, _ = key.split("_")
    return f"{NAMES[figure]} {what}, s"


def _notes(found: Validation) -> list[str]:
    """What a reader of the comparison has to know of the run."""
    run, notes = found.run, []
    if run.failed:
        notes.append(
            f"{run.failed} of {run.failed + len(run)} requests were not answered; they are left out of both."
        )
    if found.clients is not None:
        notes.append(f"Replayed with {found.clients} requests in flight on each rank, not by arrivals.")
    elif run.arrival_s is None:
        notes.append("All requests arrive at once in the replay, as the client sent them.")
    elif run.clients is not None:
        notes.append(
            f"The client kept at most {run.clients} requests in flight: its arrivals, which are replayed, follow from the measured "
            f"answers. --clients {run.clients} replays the client too."
        )
    return notes
