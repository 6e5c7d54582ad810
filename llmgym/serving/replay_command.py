"""`llmgym replay`: how long users wait when an engine serves a trace."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from llmgym import profiles, workloads
from llmgym.core.checks import choice, output_folder, whole
from llmgym.errors import InvalidArgument, NoProgress
from llmgym.serving.replay import Replayed, latency_figures, replay
from llmgym.serving.sensitivity import NEAR, STEP_S, band, load
from llmgym.serving.targets import Target, attained, check_targets
from llmgym.workloads.workload import INFORMATION

ENGINE = (
    "scheduling",
    "prefix_caching",
    "host_tokens",
    "chunk_alone",
    "block",
    "overflow",
    "first_token",
)
"""Arguments of `replay` that an engine is made with, beside those that the closed form knows."""


@dataclass(frozen=True)
class Replay:
    """Serve the requests of a trace on one engine, or on several that step together, and say how long users wait."""

    trace: Annotated[str, tyro.conf.Positional]
    """A trace file (arrival_s, prompt_tokens, output_tokens, or another format that llmgym reads), or the name of a workload. With
    columns session, turn and think_s a turn arrives so long after the last token of the turn before it."""
    profile: str = "h100/llama-3.1-8b"
    """Cost profile: a name, or the path of its folder."""
    dense: str = "default"
    """Option of the profile's dense laws, such as sustained."""
    host: str = "default"
    """Option of the profile's host laws, such as vllm-0.24."""
    requests: int = 1000
    """So many, from the beginning of the file or drawn from the workload."""
    rate: float | None = None
    """Requests a second, instead of the trace's."""
    kv_capacity: int | None = None
    """Tokens of the cache of a rank; what the profile's memory leaves if left out."""
    budget: int = 2048
    """Tokens of a batch."""
    chunk: int | None = None
    """Longest chunk of one prompt in a batch, tokens (vLLM's long_prefill_token_threshold); the budget if left out."""
    chunk_alone: bool = True
    """Whether that also binds a request that is alone on its rank: so in vLLM 0.24, not from 0.31 on."""
    block: int = 16
    """Tokens of a block of the cache, a power of two."""
    overflow: str = "recompute"
    """What happens when the next batch does not fit into the cache: recompute or pause."""
    first_token: str = "with-prefill"
    """When the first output token appears: next-batch, with-prefill or stored."""
    seats: int = 256
    """Requests that run at once on a rank."""
    scheduling: str = "async"
    """When a batch is planned: sync, async, or async-held, as vLLM V1 does by default."""
    prefix_caching: bool = False
    """Let the turns of a session find their beginning in the cache; the trace needs a column session."""
    host_tokens: int = 0
    """Cache that the host's memory holds, tokens: who is preempted is copied there and back; the profile needs measured copies."""
    rule: str = "vllm:watermark=0"
    """Admission rule; vllm-priority needs a column priority in the trace (lower first)."""
    ranks: int = 1
    """Data-parallel engines that step together, at the pace of the slowest."""
    clients: int | None = None
    """Requests kept in flight on each rank, instead of the arrivals."""
    information: str | None = None
    """What the rule is told of output lengths: exact, noisy, mean or none; the trace's own predictions, if any, if left out."""
    seed: int = 0
    """Of what is drawn from a workload, and of the errors of noisy predictions."""
    targets: tuple[str, ...] = ()
    """TTFT,TPOT[,WEIGHT[,E2E]] in seconds for each class of requests, such as 0.5,0.05 10,inf,0.2; classes are a column of the
    trace, request_class."""
    way: str = "none"
    """How much later a client has its tokens: none, in-process, streaming (it reads every token), or seconds."""
    out: Path | None = None
    """CSV file for the times of each request."""
    steps: Path | None = None
    """CSV file for every step of every rank: when it began, requests and tokens in it, preemptions, blocks in use."""

    def run(self, console: Console) -> None:
        """Print what was found, and write it if asked to.

        Raises:
            LlmgymError: a name, file or number that does not do, a request that can never fit into the cache, or no request that
                finishes.
        """
        for name, path in (("out", self.out), ("steps", self.steps)):
            if path is not None:
                _check_writable(name, path)
        whole("requests", self.requests)
        whole("seed", self.seed, 0, 2**63)
        if self.information is not None:
            choice("information", self.information, INFORMATION)
        targets = [_target(text) for text in self.targets]
        rows = self._rows()
        if targets:
            check_targets(rows, targets)
        profile = profiles.load(self.profile, dense=self.dense, host=self.host)
        engine: dict[str, Any] = {
            name: getattr(self, name) for name in ("kv_capacity", "budget", "chunk", "seats", "ranks")
        }
        others: dict[str, Any] = {name: getattr(self, name) for name in (*ENGINE, "rule", "clients")} | {
            "targets": targets
        }
        others["way"] = _way(self.way)
        replayed = replay(rows, profile, **engine, **others, log=self.steps is not None)
        if replayed.unfinished == len(rows):
            raise NoProgress(
                f"none of {len(rows)} requests finishes: what is in the engine cannot be run by rule={self.rule!r} in batches of "
                f"budget={self.budget} tokens"
            )
        self._print(console, rows, replayed)
        if self.clients is None and (share := load(rows, profile, **engine)) >= NEAR:
            self._band(console, share, band(rows, profile, **engine, **others))
        if targets:
            found = attained(rows, replayed, targets)
            shares = ", ".join(_shown(100 * share, ".1f") for share in found.share)
            console.print(
                f"Within their targets, by class: {shares} %; weighted: {_shown(100 * found.weighted, '.1f')} %, "
                f"{_shown(found.goodput_rps, '.2f')} requests/s"
            )
        if self.out is not None:
            self._write(self.out, rows, replayed)
            console.print(f"Written: {self.out}")
        if self.steps is not None:
            _write_steps(self.steps, replayed)
            console.print(f"Written: {self.steps}")

    def _rows(self) -> workloads.Rows:
        """The requests, with what the rule is told of their outputs."""
        workload = workloads.load(self.trace)
        most = self.requests
        # a trace as it was recorded, request by request, may tell more of them than lengths
        recorded = workload.classes[0].rows if len(workload.classes) == 1 else None
        known = recorded if recorded is workload.arrivals.rows else None
        if workload.arrivals.rows is not None:
            most = min(most, len(workload.arrivals.rows))
            workload = workload.with_arrivals(workloads.replay(workload.arrivals.rows, from_start=True))
        if self.rate is not None:
            workload = workload.with_rate(self.rate)
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

    def _print(self, console: Console, rows: workloads.Rows, replayed: Replayed) -> None:
        figures = latency_figures(replayed.arrival_s, replayed.first_s, replayed.last_s, rows.output_tokens)
        table = Table(title=f"{len(rows)} requests of {self.trace} on {self.profile}", title_justify="left")
        for name in ("", "p50", "p90", "p99"):
            table.add_column(name, justify="right")
        for figure, name in (
            ("ttft", "first token, s"),
            ("tpot", "time per output token, s"),
            ("e2e", "end to end, s"),
        ):
            table.add_row(name, *(_shown(figures[f"{figure}_p{p}_s"], ".4g") for p in (50, 90, 99)))
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
            f"{_shown(figures['output_tokens_per_s'], ',.0f')} output tokens/s, {_shown(rate, '.2f')} requests/s, "
            f"{self._reused(rows, replayed)}{replayed.preemptions} preemptions, {self._copied(replayed)}"
            f"cache {100 * replayed.kv_mean:.0f} % full on average, "
            f"{100 * replayed.kv_peak:.0f} % at most, {replayed.batches:,} steps of {1e3 * replayed.batch_mean_s:.1f} ms"
        )

    @staticmethod
    def _band(console: Console, share: float, found: dict[str, tuple[float, float]]) -> None:
        def pair(key: str, form: str = ".3g") -> str:
            return " to ".join(_shown(value, form) for value in found[key])

        console.print(
            f"The requests come at {100 * share:.0f} % of the rate that saturates the engine in closed form; small errors of a "
            f"step decide how long they wait. With {1e3 * STEP_S:.1f} ms a step less and more: first token p50 "
            f"{pair('ttft_p50_s')} s, p90 {pair('ttft_p90_s')} s; time per output token p50 {pair('tpot_p50_s')} s; end to end p50 "
            f"{pair('e2e_p50_s')} s, p90 {pair('e2e_p90_s')} s; {pair('output_tokens_per_s', ',.0f')} output tokens/s."
        )

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


def _way(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


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


def _check_writable(name: str, out: Path) -> None:
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


def _shown(value: float, form: str) -> str:
    return "-" if np.isnan(value) else format(value, form)
