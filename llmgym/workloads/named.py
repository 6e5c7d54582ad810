"""Named workloads: production traces as fitted parameters, and the length laws of papers.

The traces are kept as one small JSON file each in `data/`: quantile tables of prompt and output lengths, their rank correlation
and the parameters of an arrival process; no row of a trace is in this package. They are written by
`benchmarks/build_workloads.py`. Mean, p50, p90 and p99 of the lengths, the rate and the index of dispersion of requests per
minute are those of the trace; sessions, prefixes shared between requests and the hour of day are not modelled.

`conversations` has laws of turns, lengths and times to think, fitted to a measured run of 90 conversations.

The uniform laws are those of a study of stability under a KV-cache limit (Nie, Si and Zhou, ICML 2026): prompt and output lengths
are independent, and the name gives the ratio of their means.
"""

import json
import os
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from llmgym.core.checks import loaded
from llmgym.errors import UnknownName
from llmgym.workloads.arrivals import Arrivals, Modulation, poisson
from llmgym.workloads.conversations import Conversations, exponential_think, geometric
from llmgym.workloads.lengths import RequestClass, lognormal, quantiles, uniform
from llmgym.workloads.traces import from_trace
from llmgym.workloads.workload import Phase, Workload

TRACES = (
    "azure-code-2023",
    "azure-conv-2023",
    "mooncake-conversation",
    "mooncake-synthetic",
    "sharegpt",
    "sharegpt-8k",
)

_LENGTHS = {  # prompt low, high; output low, high (tokens)
    "uniform-1:1": (10, 1600, 10, 1600),
    "uniform-2:1": (10, 2133, 10, 1066),
    "uniform-1:2": (10, 1066, 10, 2133),
    "uniform-8:1": (10, 2844, 10, 356),
    "uniform-tiny": (5, 50, 5, 50),
}
_MIXED = "uniform-mixed"
_TIERS = "chat-and-batch"
_TIER_SHARES = (0.7, 0.3)
"""Shares of interactive and of batch requests, chosen here."""
_TALK = "conversations"
_EXPECTED = "the name of a workload, a trace file, or a Workload"
_PAPER = (
    "Nie, Si, Zhou: A Queueing-Theoretic Framework for Stability Analysis of LLM Inference with KV Cache "
    "Memory Constraints, ICML 2026, experiments. https://arxiv.org/abs/2605.04595"
)
_SOURCES = {
    "uniform-8:1": f"Ratio: {_PAPER} The bounds are chosen here, with the same sum as the others.",
    "uniform-tiny": "Chosen here: short requests, for small instances and quick tests.",
}


def names() -> tuple[str, ...]:
    """Names of the workloads that `load` knows."""
    return tuple(sorted([*TRACES, *_LENGTHS, _MIXED, _TIERS, _TALK]))


def load(name: str, format: str | None = None) -> Workload:
    """The named workload, at the rate of its source (1 req/s where the source has no arrival times), or that of a trace file.

    Args:
        name: of a workload, or the path of a file that `from_trace` reads. What has a folder or an ending, such as
            "traces/today.csv", is a path.
        format: of the file, see `from_trace`.

    Raises:
        UnknownName: there is none of this name, and no such file; the message lists those that exist.
        TraceError: see `from_trace`.
    """
    if format is not None or _is_file(name):
        return from_trace(name, format)
    if name in TRACES:
        file = files("llmgym.workloads") / "data" / f"{name}.json"
        return _from_parameters(json.loads(file.read_text(encoding="utf-8")))
    if name in _LENGTHS:
        return _uniform(name, (_class(name),))
    if name == _MIXED:
        phases = (Phase(0.0, (1.0, 0.0)), Phase(0.5, (0.0, 1.0)))
        return _uniform(name, (_class("uniform-2:1"), _class("uniform-1:2")), phases)
    if name == _TIERS:
        chat, batch = load("azure-conv-2023"), load("sharegpt-8k")
        return Workload(
            name,
            chat.arrivals,
            (replace(chat.classes[0], name="interactive"), replace(batch.classes[0], name="batch")),
            (Phase(0.0, _TIER_SHARES),),
            description="Conversations of Azure 2023, and long documents as a second class; the shares are chosen here.",
            source=f"{chat.source} {batch.source}",
            licence=f"{chat.licence} {batch.licence}",
        )
    if name == _TALK:
        return _conversations()
    raise UnknownName("workload", name, names())


def _conversations() -> Workload:
    """The laws of a run of 90 conversations and 323 turns; the parameters are estimates of their logarithms and means."""
    opening = RequestClass(lognormal(6.66, 0.75, max=4000), lognormal(4.84, 0.67, max=1024), name="chat")
    later = lognormal(5.56, 0.84, max=4000)
    return Workload(
        _TALK,
        poisson(1.0),
        (opening,),
        description="Sessions of 1 to 8 turns, 3.6 on average: a first prompt of about 1,000 tokens, 370 new ones in every later "
        "turn, answers of 160, exponential times to think of 2.9 s. A prompt is the conversation so far; 16,384 tokens at most. "
        "Poisson at 1 session a second until another rate is set.",
        source="Estimated from the 323 turns that vLLM 0.24 served on one H100 on 2026-11-28 (docs/engine.md), which were drawn "
        "from laws of this form: synthetic, not from users.",
        conversations=Conversations(geometric(0.25, 8), exponential_think(2.9), 16_384, later),
    )


def check_name(argument: str, value: Any) -> None:
    """Check a setting that names a workload, without reading a trace file.

    Args:
        argument: of which function, for messages.
        value: what was given; a `Workload` is allowed too.

    Raises:
        UnknownName: there is none of this name, and no such file.
        InvalidArgument: `value` is neither a text nor a workload.
    """
    if not isinstance(value, Workload) and not (isinstance(value, (str, os.PathLike)) and _is_file(value)):
        loaded(argument, value, load, _EXPECTED)


def workload_of(argument: str, value: Any) -> Workload:
    """The workload that was given for an argument: a name, a trace file or a `Workload`. Raises as `check_name` and `load` do."""
    return loaded(argument, value, load, _EXPECTED, Workload)


def _is_file(name: str | os.PathLike[str]) -> bool:
    """Whether a name means a trace file: there is one, or it has a folder or an ending."""
    path = Path(name)
    return path.is_file() or bool(path.suffix) or path.name != os.fspath(name)


def _class(name: str) -> RequestClass:
    a, b, c, d = _LENGTHS[name]
    return RequestClass(uniform(a, b), uniform(c, d), name=name.removeprefix("uniform-"))


def _uniform(name: str, classes: tuple[RequestClass, ...], phases: tuple[Phase, ...] = ()) -> Workload:
    laws = "; then ".join(f"prompt {c.prompt}, output {c.output}" for c in classes)
    when = " (by request number, half of the requests each)" if phases else ""
    return Workload(
        name,
        poisson(1.0),
        classes,
        phases,
        "fraction" if phases else "request",
        f"Independent uniform lengths (tokens): {laws}{when}. Poisson at 1 req/s until another rate is set.",
        _SOURCES.get(name, _PAPER),
    )


def _from_parameters(data: dict[str, Any]) -> Workload:
    a = data["arrivals"]
    modulation = Modulation(**a["modulation"]) if "modulation" in a else None
    arrivals = Arrivals(
        a["process"],
        a["rate_rps"],
        cv=a.get("cv", 1.0),
        mean_on_s=a.get("mean_on_s", 0.0),
        mean_off_s=a.get("mean_off_s", 0.0),
        modulation=modulation,
    )
    p = data["probabilities"]
    prompt, output = (
        quantiles(p, data[f"{side}_tokens"], f"{data['name']} {side}s") for side in ("prompt", "output")
    )
    return Workload(
        data["name"],
        arrivals,
        (RequestClass(prompt, output, data["correlation"]),),
        description=data["description"],
        source=f"{data['source']} {data['url']}",
        licence=f"{data['licence']}. {data['attribution']}",
        date=data["date"],
    )
