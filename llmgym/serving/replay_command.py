"""`llmgym replay`: how long users wait when an engine serves a trace."""

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from llmgym import workloads
from llmgym.core.checks import choice, output_folder, whole
from llmgym.errors import InvalidArgument, NoProgress
from llmgym.profiles.profile import Profile
from llmgym.serving.engine_options import EngineOptions, shown, tell_band
from llmgym.serving.pictures import check_picture, draw_rates
from llmgym.serving.rates import KNEE_OF, at_rate, for_all, knee, rates_of
from llmgym.serving.replay import Replayed, latency_figures, replay
from llmgym.serving.sensitivity import NEAR, band, load
from llmgym.serving.targets import Target, attained, check_targets, slo
from llmgym.serving.validate import as_run
from llmgym.workloads import runs
from llmgym.workloads.workload import INFORMATION

SWEPT = {
    "req\n/s": "",
    "load\n%": "",
    "done\n/s": "",
    "tokens\n/s": "",
    "TTFT\nmean\ns": "ttft_mean_s",
    "TTFT\np99\ns": "ttft_p99_s",
    "TPOT\nmean\nms": "tpot_mean_s",
    "TPOT\np99\nms": "tpot_p99_s",
    "E2E\nmean\ns": "e2e_mean_s",
    "E2E\np99\ns": "e2e_p99_s",
}
"""Columns of a sweep; those with a key of `latency_figures` after those without."""


@dataclass(frozen=True)
class Replay(EngineOptions):
    """Serve the requests of a trace on one engine, or on several that step together, and say how long users wait."""

    trace: Annotated[str, tyro.conf.Positional]
    """A trace file (arrival_s, prompt_tokens, output_tokens, or another format that llmgym reads), or the name of a workload. With
    columns session, turn and think_s a turn arrives so long after the last token of the turn before it."""
    requests: int = 1000
    """So many, from the beginning of the file or drawn from the workload."""
    rate: str | None = None
    """Requests a second, instead of the trace's; FIRST:LAST:STEP, such as 2:20:2, for a replay at each of these rates."""
    information: str | None = None
    """What the rule is told of output lengths: exact, noisy, mean or none; the trace's own predictions, if any, if left out."""
    seed: int = 0
    """Of what is drawn from a workload, and of the errors of noisy predictions."""
    targets: tuple[str, ...] = ()
    """TTFT,TPOT[,WEIGHT[,E2E]] in seconds for each class of requests, such as 0.5,0.05 10,inf,0.2; classes are a column of the
    trace, request_class."""
    slo: str | None = None
    """Objective of every request, times in seconds or ms: ttft=0.5,tpot=50ms,e2e=10, or some of these; tells the goodput."""
    picture: Path | None = None
    """PNG, SVG or PDF file: with several rates, latency and throughput against the rate, with the knee marked."""
    write: tuple[str, Path] | None = None
    """FORMAT and FILE: the times of each request as vllm, sglang, guidellm, aiperf or llmgym (CSV) writes those of a measured run,
    or mooncake for the requests alone, a trace that a server can be asked for."""
    out: Path | None = None
    """CSV file for the times of each request."""
    steps: Path | None = None
    """CSV file for every step of every rank: when it began, requests and tokens in it, preemptions, blocks in use."""

    def run(self, console: Console) -> dict[str, Any]:
        """Print what was found, and write it if asked to.

        Returns:
            The same as numbers.

        Raises:
            LlmgymError: a name, file or number that does not do, a request that can never fit into the cache, or no request that
                finishes.
        """
        rates = [] if self.rate is None else rates_of(self.rate)
        target = None if self.slo is None else slo(self.slo)
        self._check_files(rates)
        whole("requests", self.requests)
        whole("seed", self.seed, 0, 2**63)
        if self.information is not None:
            choice("information", self.information, INFORMATION)
        targets = [_target(text) for text in self.targets]
        rows = self._rows(rates[0] if rates else None)
        if targets:
            check_targets(rows, targets)
        profile = self.costs()
        if len(rates) > 1:
            return self._sweep(console, rates, profile, target, targets)
        return self._once(console, rows, profile, target, targets)

    def _check_files(self, rates: Sequence[float]) -> None:
        """Raise `InvalidArgument` unless every file can be written and fits to the number of rates."""
        if self.write is not None:
            choice("write", self.write[0], runs.WRITTEN)
        files = {
            "out": self.out,
            "steps": self.steps,
            "picture": self.picture,
            "write": self.write[1] if self.write else None,
        }
        for name, path in files.items():
            if path is not None:
                check_writable(name, path)
                if len(rates) > 1 and name != "picture":
                    raise InvalidArgument(
                        f"{name}={str(path)!r}: needs one rate, and rate={self.rate!r} gives {len(rates)}"
                    )
        if self.picture is not None:
            check_picture("picture", self.picture)
            if len(rates) < 2:
                raise InvalidArgument(
                    f"picture={str(self.picture)!r}: needs several rates, such as --rate 2:20:2"
                )
        if len(rates) > 1 and self.clients is not None:
            raise InvalidArgument(
                f"clients={self.clients}: a closed loop has no rate, and rate={self.rate!r} was given"
            )

    def _sweep(
        self,
        console: Console,
        rates: Sequence[float],
        profile: Profile,
        target: Target | None,
        targets: Sequence[Target],
    ) -> dict[str, Any]:
        settings = self.for_replay() | {"targets": targets}
        points = []
        for rate in rates:
            rows = self._rows(rate)
            share = load(rows, profile, **self.for_load())
            points.append(at_rate(rows, profile, rate, target, settings, share))
        bend = knee(rates, [point.figures[KNEE_OF] for point in points])
        table = Table(
            title=f"{self.requests} requests of {self.trace} on {self.profile}",
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=0,
        )
        for name in (*SWEPT, *(("good\n/s", "within\n%") if target else ())):
            table.add_column(name, justify="right", no_wrap=True)
        for i, point in enumerate(points):
            cells = [f"{point.rate_rps:g}", f"{100 * point.load:.0f}", shown(point.requests_per_s, ".2f")]
            cells.append(shown(point.figures["output_tokens_per_s"], ",.0f"))
            cells += [
                shown((1e3 if key.startswith("tpot") else 1.0) * point.figures[key], ".3g")
                for key in SWEPT.values()
                if key
            ]
            if target:
                cells += [shown(point.goodput_rps, ".2f"), shown(100 * point.within, ".1f")]
            table.add_row(*cells, style="bold" if i == bend else None)
        console.print(table)
        if bend is None:
            console.print(
                "No knee: the mean time to the first token does not bend upwards within these rates."
            )
        else:
            console.print(
                f"Knee of the mean time to the first token: [bold]{rates[bend]:g} requests/s[/bold] (the bold row)."
            )
        lost = sum(point.unfinished for point in points)
        if lost:
            console.print(
                f"[bold]{lost} requests do not finish[/bold], over all rates. They are in no figure."
            )
        written = []
        if self.picture is not None:
            draw_rates(points, bend, f"{self.trace} on {self.profile}", self.slo, self.picture)
            written.append(self.picture)
            console.print(f"Written: {self.picture}")
        return {
            "trace": self.trace,
            "profile": self.profile,
            "requests": self.requests,
            "rates": [asdict(point) for point in points],
            "knee_rps": None if bend is None else rates[bend],
            "written": written,
        }

    def _once(
        self,
        console: Console,
        rows: workloads.Rows,
        profile: Profile,
        target: Target | None,
        targets: Sequence[Target],
    ) -> dict[str, Any]:
        engine, settings = self.for_load(), self.for_replay() | {"targets": targets}
        replayed = replay(rows, profile, **settings, log=self.steps is not None)
        if replayed.unfinished == len(rows):
            raise NoProgress(
                f"none of {len(rows)} requests finishes: what is in the engine cannot be run by rule={self.rule!r} in batches of "
                f"budget={self.budget} tokens"
            )
        told = self._print(console, rows, replayed)
        told["load"] = share = load(rows, profile, **engine) if self.clients is None else np.nan
        if share >= NEAR:
            told["band"] = band(rows, profile, **settings)
            tell_band(console, share, told["band"])
        if targets:
            found = attained(rows, replayed, targets)
            told["targets"] = found._asdict()
            shares = ", ".join(shown(100 * share, ".1f") for share in found.share)
            console.print(
                f"Within their targets, by class: {shares} %; weighted: {shown(100 * found.weighted, '.1f')} %, "
                f"{shown(found.goodput_rps, '.2f')} requests/s"
            )
        if target is not None:
            found = attained(rows, replayed, for_all(rows, target))
            told["slo"] = {"within": found.weighted, "goodput_rps": found.goodput_rps}
            console.print(
                f"Goodput: {shown(found.goodput_rps, '.2f')} requests/s within {self.slo}, {shown(100 * found.weighted, '.1f')} % "
                "of the requests"
            )
        written: list[Path] = []
        if self.out is not None:
            self._write(self.out, rows, replayed)
            written.append(self.out)
        if self.steps is not None:
            _write_steps(self.steps, replayed)
            written.append(self.steps)
        if self.write is not None:
            form, path = self.write
            rate = None if self.rate is None else float(self.rate)
            facts = {"model": profile.model, "trace": self.trace}
            runs.write_run(
                path, form, as_run(rows, replayed, clients=self.clients, rate_rps=rate, facts=facts)
            )
            written.append(path)
        for path in written:
            console.print(f"Written: {path}")
        return told | {"written": written}

    def _rows(self, rate: float | None) -> workloads.Rows:
        """The requests, at a rate if one is given, with what the rule is told of their outputs."""
        workload = workloads.load(self.trace)
        most = self.requests
        # a trace as it was recorded, request by request, may tell more of them than lengths
        recorded = workload.classes[0].rows if len(workload.classes) == 1 else None
        known = recorded if recorded is workload.arrivals.rows else None
        if workload.arrivals.rows is not None:
            most = min(most, len(workload.arrivals.rows))
            workload = workload.with_arrivals(workloads.replay(workload.arrivals.rows, from_start=True))
        if rate is not None:
            workload = workload.with_rate(rate)
        information = self.information or ("rows" if workload.has_predictions else "none")
        drawn = workload.sample(np.random.default_rng(self.seed), most, information=information)
        more = ("session", "request_class", "turn", "think_s") if known is not None else ()
        told = {name: getattr(known, name) for name in more}
        if len(workload.classes) > 1:
            told["request_class"] = drawn.request_class
        if workload.conversations is not None:
            told = {name: getattr(drawn, name) for name in ("session", "turn", "think_s")}
        return workloads.Rows(
            drawn.arrival_s,
            drawn.prompt_tokens,
            drawn.output_tokens,
            None if information == "none" else drawn.predicted_tokens,
            drawn.priority if known is not None and known.priority is not None else None,
            **{name: column[:most] for name, column in told.items() if column is not None},
        )

    def _print(self, console: Console, rows: workloads.Rows, replayed: Replayed) -> dict[str, Any]:
        figures = latency_figures(
            replayed.arrival_s, replayed.first_s, replayed.last_s, rows.output_tokens, means=True
        )
        table = Table(title=f"{len(rows)} requests of {self.trace} on {self.profile}", title_justify="left")
        for name in ("", "mean", "p50", "p90", "p99"):
            table.add_column(name, justify="right")
        for figure, name in (
            ("ttft", "first token, s"),
            ("tpot", "time per output token, s"),
            ("e2e", "end to end, s"),
        ):
            table.add_row(
                name, *(shown(figures[f"{figure}_{key}_s"], ".4g") for key in ("mean", "p50", "p90", "p99"))
            )
        console.print(table)
        finished = len(rows) - replayed.unfinished
        if replayed.unfinished:
            console.print(
                f"[bold]{replayed.unfinished} of {len(rows)} requests do not finish[/bold]: what is then in the engine cannot be "
                f"run by rule {self.rule} in batches of {self.budget} tokens. They are in no figure."
            )
        makespan_s = figures["makespan_s"]
        rate = finished / makespan_s if makespan_s > 0.0 else np.nan
        console.print(
            f"{shown(figures['output_tokens_per_s'], ',.0f')} output tokens/s, {shown(rate, '.2f')} requests/s, "
            f"{self._reused(rows, replayed)}{replayed.preemptions} preemptions, {self._copied(replayed)}"
            f"cache {100 * replayed.kv_mean:.0f} % full on average, "
            f"{100 * replayed.kv_peak:.0f} % at most, {replayed.batches:,} steps of {1e3 * replayed.batch_mean_s:.1f} ms"
        )
        return {
            "trace": self.trace,
            "profile": self.profile,
            "requests": len(rows),
            "unfinished": replayed.unfinished,
            "figures": figures,
            "requests_per_s": rate,
            "preemptions": replayed.preemptions,
            "kv_mean": replayed.kv_mean,
            "kv_peak": replayed.kv_peak,
            "steps": replayed.batches,
            "step_mean_s": replayed.batch_mean_s,
            "reused_tokens": replayed.reused,
            "copied_out_tokens": replayed.copied_out,
            "copied_in_tokens": replayed.copied_in,
        }

    def _reused(self, rows: workloads.Rows, replayed: Replayed) -> str:
        if not self.prefix_caching:
            return ""
        return f"{100 * replayed.reused / int(rows.prompt_tokens.sum(dtype=np.int64)):.1f} % of prompt tokens found in the cache, "

    def _copied(self, replayed: Replayed) -> str:
        if not self.host_tokens:
            return ""
        return f"{replayed.copied_out:,} tokens copied to the host and {replayed.copied_in:,} back, "

    @staticmethod
    def _write(out: Path, rows: workloads.Rows, replayed: Replayed) -> None:
        columns = (
            replayed.arrival_s,
            rows.prompt_tokens,
            rows.output_tokens,
            replayed.first_s,
            replayed.last_s,
            replayed.rank,
        )
        header = "arrival_s,prompt_tokens,output_tokens,first_token_s,last_token_s,rank"
        form = ("%.6f", "%d", "%d", "%.6f", "%.6f", "%d")
        try:
            np.savetxt(out, np.column_stack(columns), form, ",", header=header, comments="")
        except OSError as error:
            raise InvalidArgument(f"out={str(out)!r}: cannot be written ({error.strerror})") from None


def _write_steps(path: Path, replayed: Replayed) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("time_s", "rank", "requests", "tokens", "preempted", "blocks"))
        for step in replayed.steps:
            tokens = sum(tokens for _, tokens in step.run)
            row = (step.rank, len(step.run), tokens, len(step.preempted), step.blocks)
            writer.writerow((f"{step.time_s:.6f}", *row))


def _target(text: str) -> Target:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3, 4):
        raise InvalidArgument(
            f"targets={text!r}: expected TTFT,TPOT or TTFT,TPOT,WEIGHT or TTFT,TPOT,WEIGHT,E2E, times in seconds"
        )
    return Target(*numbers)


def check_writable(name: str, out: Path) -> None:
    """Raises `InvalidArgument` if a file cannot be written: no such folder, a folder of that name, or no right to."""
    reason = None
    if out.is_dir():
        reason = "it is a folder"
    elif not out.parent.is_dir():
        reason = f"there is no folder {str(out.parent)!r}"
    elif not os.access(out if out.exists() else out.parent, os.W_OK):
        reason = "permission denied"
    if reason is not None:
        raise InvalidArgument(f"{name}={str(out)!r}: cannot be written, {reason}")
    if not out.exists():
        output_folder(name, out.parent)  # where access is granted, and writing is not
