"""The comparisons of `benchmarks/fidelity.py`: two published runs, many published servers, and vLLM measured with this project."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from fidelity import silicon
from fidelity.cases import ALL_CASES, BLOCK_TOKENS, CASES, write_traffic
from fidelity.kernels import HOST_S, SHAPES, Nccl, columns, rows_of, summed_step
from fidelity.report import Sheet, Tally, comparison, counted
from fidelity.runs import Engine, Floats, Run, own_runs, read_run
from fidelity.serving import serve
from fidelity.steps import GRAPH_TOKENS, Log, decoding, log_of
from llmgym import profiles, workloads
from llmgym.errors import InvalidArgument
from llmgym.profiles import Profile
from llmgym.profiles.llmservingsim import Mixed, mixed_attention, table_path
from llmgym.serving.capacity import critical_rate, exact_area, saturation
from llmgym.serving.replay import WAYS

H100 = "h100/llama-3.1-8b"
PREDICTIONS = "predictions.json"
OLD_OPTIONS = {"dense": "sustained", "host": "vllm-0.24"}
"""Fitted to the times per token of one run of the H100."""
BEST_OPTIONS = {"dense": "sustained", "host": "vllm-0.24-steps"}
"""Options of a profile that predict vLLM best; those that it has are used."""
CLOCK_OPTIONS = BEST_OPTIONS | {"dense": "following"}
WAYS_OF_COST = {"vllm-0.24": OLD_OPTIONS, "llmgym": BEST_OPTIONS, "clock follows": CLOCK_OPTIONS}
"""Columns of the tables: options of the profile, of which those are used that it has."""
UNSEEN = "not seen before"
"""Runs to which nothing was fitted that `BEST_OPTIONS` is made of."""
NEW_GROUP = f"vLLM 0.24, {UNSEEN}"
MODEL_GPU = "RTXPRO6000"
MODEL_SYSTEM = "rtx_pro_6000_server"


@dataclass
class Report:
    """What is written.

    Attributes:
        sheets: tables, in order.
        groups: name to pairs (measured, predicted) of the picture, s.
        tallies: runs of the table of all runs.
    """

    sheets: list[Sheet] = field(default_factory=list)
    groups: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    tallies: list[Tally] = field(default_factory=list)


def pairs_of(measured: Mapping[str, float], predicted: Mapping[str, float]) -> list[tuple[float, float]]:
    """Pairs (measured, predicted) of the figures that are times, s."""
    return [(measured[key], predicted[key]) for key in measured if key != "output_tokens_per_s"]


def published_runs(data: Path, report: Report) -> None:
    """Two runs of vLLM 0.19 on RTX PRO 6000 that LLMServingSim publishes, from kernel tables of the same GPU."""
    folder = data / "llmservingsim"
    if not folder.is_dir():
        return
    specs = {row["system"]: row for row in rows_of(data / "aiconfigurator" / "system_specs.csv")}
    memory = int(specs[MODEL_SYSTEM]["mem_capacity_B"])
    effects: list[tuple[str, dict[str, dict[str, float]]]] = []
    for model, ranks in (("Llama-3.1-8B", 1), ("Qwen3-30B-A3B-Instruct-2507", 2)):
        profile = profiles.from_llmservingsim(
            folder / MODEL_GPU,
            model,
            SHAPES[model],
            expert_ranks=ranks,
            link=Nccl(data, MODEL_SYSTEM),
            memory_bytes=memory,
        )
        path = folder / "measured" / f"{MODEL_GPU}_{model}_requests.csv"
        run = read_run(path, Engine(seats=128, kv_tokens=profile.kv_capacity_tokens()), {})
        measured = run.figures()
        apart = {op: table for op, table in profile.tables.items() if op != "decode_attention_beside"}
        added = replace(profile, tables=apart)

        ours = run.figures(*serve(run, profile, ranks=ranks)[:2])
        ways = {"attention added up": run.figures(*serve(run, added, ranks=ranks)[:2])}
        variants = {
            "attention added up": ways["attention added up"],
            "synchronous scheduling": run.figures(*serve(run, profile, ranks=ranks, scheduling="sync")[:2]),
            "llmgym": ours,
        }
        if ranks > 1:
            first, last = np.empty_like(run.first_s), np.empty_like(run.first_s)
            for rank in range(ranks):
                chosen = np.arange(len(run.arrival_s)) % ranks == rank
                first[chosen], last[chosen], _ = serve(run.part(chosen), profile)
            ways["ranks on their own"] = variants["ranks on their own"] = run.figures(first, last)
        ways["llmgym"] = ours
        note = (
            "300 ShareGPT requests at 10 req/s, 128 sequences a GPU, 2,048 tokens a batch. Step costs: kernel tables of the same "
            f"GPU and engine; host time {1e3 * HOST_S:.2f} ms a step, from another run on an H100. Nothing was fitted to this run."
        )
        if ranks > 1:
            note += " Two data-parallel GPUs share the experts; requests go to them in turn, as the router's choice is not known."
        report.sheets.append(comparison(f"vLLM 0.19, RTX PRO 6000, {model}", measured, ways, note))
        report.groups[f"RTX PRO 6000, {model.partition('-Instruct')[0]}"] = pairs_of(measured, ours)
        report.tallies.append(Tally("published, vLLM 0.19", model, measured, {"llmgym": ours}))
        effects.append((model, variants | {"measured": measured}))
        if ranks == 1:
            report.sheets.append(
                _mixed_sheet(mixed_attention(table_path(folder / MODEL_GPU, model, 1, "attention")))
            )
    rows = []
    for model, variants in effects:
        for name in ("ttft_p50_s", "tpot_p50_s", "makespan_s"):
            for variant, figures in variants.items():
                if variant != "measured":
                    wrong = 100 * (figures[name] / variants["measured"][name] - 1)
                    rows.append((model, name, variant, f"{wrong:+.1f}"))
    report.sheets.append(
        Sheet(
            "What the mechanics are worth in these runs",
            ("run", "figure", "replay", "error %"),
            tuple(rows),
            "One mechanism left out at a time.",
        )
    )


def _mixed_sheet(mixed: Mixed) -> Sheet:
    rows = []
    for batch in mixed.batch:
        ratio = mixed.ratio[mixed.rows[:, 2] == batch]
        if len(ratio):
            low, mid, high = np.quantile(ratio, [0.1, 0.5, 0.9])
            rows.append((f"{batch:.0f}", str(len(ratio)), f"{mid:.2f}", f"{low:.2f} to {high:.2f}"))
    return Sheet(
        "Attention of a mixed batch: sum of its parts over what was measured",
        ("decodes", "shapes", "median", "10th to 90th percentile"),
        tuple(rows),
        "A prefill chunk alone plus the decodes alone, over both in one call (Llama-3.1-8B, RTX PRO 6000, vLLM 0.19). A step cost "
        "that adds the parts is too short by this factor in steps that have both.",
    )


def published_servers(data: Path, report: Report, with_loop: bool) -> None:
    """Dense servers that AIConfigurator publishes, from kernel tables of the same GPUs."""
    if not (data / "aiconfigurator").is_dir():
        return
    found = silicon.points(data, with_loop)
    figures = (
        "servers",
        "TPOT abs error %",
        "TPOT error %",
        "TTFT abs error %",
        "TTFT error %",
        "loop TTFT abs error %",
        "loop TTFT error %",
        "loops",
    )
    note = "Medians. TPOT and TTFT in closed form; loop TTFT replays the client."
    for title, by in (
        ("Published servers by GPU and model", ("system", "model")),
        ("Published servers by engine", ("backend",)),
        (
            "Published servers by GPU, model, engine and tensor parallelism",
            ("system", "model", "backend", "gpus"),
        ),
        ("Published servers", ()),
    ):
        report.sheets.append(Sheet(title, (*by, *figures), tuple(silicon.errors(found, by)), note))
    report.groups["published servers, TPOT"] = [(p.tpot_s[1], p.tpot_s[0]) for p in found]
    if with_loop:
        report.groups["published servers, TTFT (loop)"] = [
            (p.ttft_s[1], p.loop_ttft_s) for p in found if np.isfinite(p.loop_ttft_s)
        ]


def profile_for(run: Run, name: str | None, dense: str = "default") -> Profile:
    """The profile of the GPU of a run, or the one named, with an option of its dense laws."""
    if name is None:
        gpu = re.search(r"\b(a100|h100|h200|b200|l40s)\b", str(run.meta.get("gpu", "")).lower())
        if gpu is None:
            raise InvalidArgument(
                f"gpu={run.meta.get('gpu')!r} of run {run.name!r}: no profile for it; name one with --profile"
            )
        name = f"{gpu.group(1)}/llama-3.1-8b"
    return profiles.load(name, dense=dense)


def with_options(profile: Profile, options: dict[str, str]) -> Profile:
    """The profile with those of the options that it has."""
    return replace(profile, **{part: name for part, name in options.items() if name in profile.options[part]})


def own_engine(data: Path | None, runs: Sequence[Path], name: str | None, report: Report) -> None:
    """Runs of vLLM 0.24 with Llama-3.1-8B shapes: the two runs of 2026-11-23, and whatever `benchmarks/engine_vllm.py` measured."""
    if data is not None and (data / "vllm_h100").is_dir():
        for run in own_runs(data / "vllm_h100"):
            note = "The engine was not warmed up, and a client read every token."
            _vllm(run, name, "streaming", note, {}, UNSEEN, report)
    for folder in runs:
        stored = folder / PREDICTIONS
        before = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {"cases": {}}
        found = own_runs(folder)
        report.sheets += [sheet for sheet in (twice(found), launched(folder, found)) if sheet.rows]
        for run in found:
            way = way_of(run.meta.get("case", {}).get("stream", False))
            columns = (
                {"stored before": before["cases"][run.name]["figures"]} if run.name in before["cases"] else {}
            )
            # nothing was fitted to the experiment on steps: host times come from the logs of the other runs
            fitted_to = not run.meta.get("case", {}).get("logged", False)
            kind = f"the project's own, {folder.name}" if fitted_to else f"{UNSEEN}, {folder.name}"
            profile = _vllm(run, name, way, "", columns, kind, report)
            log = log_of(folder, run)
            if log is not None:
                report.sheets.append(step_times(log, run, profile))
            if run.name == "queue_paper":
                report.sheets.append(_rates(run, profile, *serve(run, profile, way=way)[:2]))


def twice(runs: Sequence[Run]) -> Sheet:
    """How far two runs of the same requests on one engine are apart, of which only one had a client that reads every token."""
    by_name = {run.name: run for run in runs}
    pairs = [name for name in by_name if f"{name}_streamed" in by_name]
    figures = {name: (by_name[name].figures(), by_name[f"{name}_streamed"].figures()) for name in pairs}
    keys = next(iter(figures.values()))[0] if figures else {}
    rows = [
        (key, *(f"{100 * (again[key] / first[key] - 1):+.1f}" for first, again in figures.values()))
        for key in keys
    ]
    said = "; ".join(f"{name}: {counted(*pair)}" for name, pair in figures.items())
    title = "The same requests twice: the second run over the first, less 1, per cent"
    return Sheet(title, ("figure", *pairs), tuple(rows), said)


def launched(folder: Path, runs: Sequence[Run]) -> Sheet:
    """What the host takes for steps of three kinds in runs that were logged in the engine's process."""
    rows = []
    for run in runs:
        path = folder / f"{run.name}_engine_steps.csv"
        if not path.is_file():
            continue
        names = (
            "start_s",
            "planned_s",
            "launch_s",
            "launched_s",
            "sampled_s",
            "tokens",
            "chunks",
            "device_ms",
        )
        start, planned, launch, done, sampled, tokens, chunks, device_ms = columns(path, *names).T
        for kind, chosen in (
            ("decodes", chunks == 0),
            (f"a prompt, to {GRAPH_TOKENS} tokens", (chunks > 0) & (tokens <= GRAPH_TOKENS)),
            (f"above {GRAPH_TOKENS} tokens", tokens > GRAPH_TOKENS),
        ):
            low, mid, high = np.quantile(1e3 * (done - launch)[chosen], (0.1, 0.5, 0.9))
            parts = (1e3 * (planned - start), 1e3 * (sampled - done), device_ms)
            medians = (f"{np.nanmedian(part[chosen]):.2f}" for part in parts)
            rows.append(
                (run.name, kind, str(int(chosen.sum())), f"{mid:.1f} ({low:.1f} to {high:.1f})", *medians)
            )
    header = (
        "run",
        "steps with",
        "steps",
        "launch, ms (10th to 90th)",
        "plan, ms",
        "sampler, ms",
        "on the device, ms",
    )
    return Sheet("What the host takes for a step", header, tuple(rows), "In vLLM's own process; medians.")


def way_of(stream: bool) -> str:
    """A client's way, by whether it reads every token."""
    return "streaming" if stream else "in-process"


def _vllm(
    run: Run, name: str | None, way: str, note: str, predicted: dict[str, Any], kind: str, report: Report
) -> Profile:
    """Compare one run with the replays of both host options; returns the profile that predicts best."""
    figures = run.figures()
    for label, options in WAYS_OF_COST.items():
        priced = with_options(profile_for(run, name), options)
        first, last, found = serve(run, priced, way=way)
        predicted[label] = run.figures(first, last)
        if label == "llmgym":
            profile, replayed = priced, found
    note = (
        f"{profile.name}, {profile.dense}, {profile.host}; way {way}; preemptions: "
        f"{run.meta.get('preemptions', 'unknown')} measured, {replayed.preemptions} replayed. {note}".strip()
    )
    title = f"{run.meta.get('engine', 'vllm 0.24.0')}, {run.meta['gpu']}, {run.name}"
    report.sheets.append(comparison(title, figures, predicted, note))
    gpu = run.meta["gpu"]
    group = NEW_GROUP if kind.startswith(UNSEEN) else f"vLLM 0.24, {gpu}"
    report.groups.setdefault(group, []).extend(pairs_of(figures, predicted["llmgym"]))
    kept = {label: predicted[label] for label in WAYS_OF_COST}
    report.tallies.append(Tally(kind, run.name, figures, kept))
    return profile


def step_times(log: Log, run: Run, profile: Profile) -> Sheet:
    """Steps of a run that only decode, by their number of decodes: measured, and as the profile has them."""
    alone = decoding(log)
    step = summed_step(profile)
    rows = []
    for low, high in ((1, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 128), (128, 256), (256, 1024)):
        found = np.flatnonzero(alone & (log.output >= low) & (log.output < high))
        if len(found) < 5:
            continue
        predicted = [step([], int(log.output[i]), int(log.usage[i] * run.engine.kv_tokens)) for i in found]
        measured_ms = 1e3 * float(np.median(log.taken_s[found]))
        predicted_ms = 1e3 * float(np.median(predicted))
        error = f"{100 * (predicted_ms / measured_ms - 1):+.1f}"
        row = (f"{low} to {high - 1}", str(len(found)), f"{measured_ms:.2f}", f"{predicted_ms:.2f}", error)
        rows.append(row)
    header = ("decodes", "steps", "measured ms", "predicted ms", "error %")
    title = f"Steps without a prompt, {run.meta['gpu']}, {run.name}"
    return Sheet(title, header, tuple(rows), f"Medians; predicted with {profile.name}, {profile.host}.")


def completion_rate(arrival_s: Floats, last_s: Floats) -> float:
    """Completions a second of a saturated engine, between its first fifth of completions and the last arrival.

    What is left out is filling up and running dry; needs three completions in between.
    """
    done = np.sort(last_s)
    start, end = done[len(done) // 5], max(arrival_s.max(), done[3 * len(done) // 5])
    inside = done[(done > start) & (done <= end)]
    if len(inside) < 3:
        raise InvalidArgument(
            f"last_s: {len(inside)} completions while the engine is saturated; expected 3 or more"
        )
    return len(inside) / float(inside[-1] - start)


def _rates(run: Run, profile: Profile, first: Floats, last: Floats) -> Sheet:
    """The critical rate of the queueing paper: closed form, replayed, measured."""
    engine = run.engine
    a, b, c, d = CASES["queue_paper"].lengths  # type: ignore[misc]
    laws = workloads.RequestClass(workloads.uniform(a, b), workloads.uniform(c, d))
    workload = workloads.Workload("queue_paper", workloads.poisson(1.0), (laws,))
    closed = saturation(
        workload, profile, engine.kv_tokens, engine.budget_tokens, engine.budget_tokens, engine.seats, 1
    )
    area = float(np.mean(exact_area(run.prompt_tokens, run.output_tokens, engine.budget_tokens, 1)))
    rows = [
        ("closed form, step time from the profile", f"{closed.rate_rps:.2f}", f"{1e3 * closed.batch_s:.2f}"),
        ("replayed by llmgym", f"{completion_rate(run.arrival_s, last):.2f}", "-"),
    ]
    if np.isfinite(run.last_s).all():
        tpot = (run.last_s - run.first_s)[run.output_tokens > 1] / (
            run.output_tokens[run.output_tokens > 1] - 1
        )
        step_s = float(np.median(tpot))
        rate = critical_rate(engine.kv_tokens, step_s, area)
        rows.append(("closed form, median TPOT measured as step time", f"{rate:.2f}", f"{1e3 * step_s:.2f}"))
        rows.append(("measured", f"{completion_rate(run.arrival_s, run.last_s):.2f}", "-"))
    return Sheet(
        "The queueing paper's experiment: critical rate",
        ("way", "req/s", "step ms"),
        tuple(rows),
        "Uniform lengths, overload, bound by the KV cache (arXiv 2605.04595, section 5, scaled down). mu = M / (b E[g]).",
    )


def predict(names: list[str], profile_name: str, folder: Path) -> list[Sheet]:
    """Predict cases of `benchmarks/engine_vllm.py` from llmgym alone, and write predictions and requests.

    Args:
        names: of the cases.
        profile_name: profile of the engine.
        folder: where `predictions.json` and `<case>_traffic.csv` go.

    Returns:
        What was predicted, for the terminal.
    """
    profile = with_options(profiles.load(profile_name), BEST_OPTIONS)
    cases: dict[str, Any] = {}
    sheets = []
    for name in names:
        case = ALL_CASES[name]
        traffic = write_traffic(folder, case)
        nothing = np.full(len(traffic.asked_s), np.nan)
        blocks = case.blocks or profile.kv_capacity_tokens() // BLOCK_TOKENS
        engine = Engine(case.budget_tokens, case.seats, blocks * BLOCK_TOKENS, BLOCK_TOKENS)
        run = Run(
            name, traffic.asked_s, traffic.prompt_tokens, traffic.output_tokens, nothing, nothing, engine
        )
        first, last, replayed = serve(run, profile, way=way_of(case.stream))
        figures = run.figures(first, last)
        kept = ("preemptions", "batches", "batch_mean_s", "kv_mean", "kv_peak")
        cases[name] = {
            "case": asdict(case),
            "figures": figures,
            "metrics": {key: getattr(replayed, key) for key in kept},
        }
        if name == "queue_paper":
            rates = _rates(run, profile, first, last)
            cases[name]["rates_rps"] = {row[0]: float(row[1]) for row in rates.rows}
            sheets.append(rates)
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "llmgym": version("llmgym"),
        "profile": profile_name,
        "options": {"dense": profile.dense, "host": profile.host},
        "ways": WAYS,
        "cases": cases,
    }
    (folder / PREDICTIONS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    keys = list(next(iter(cases.values()))["figures"])
    rows = [(key, *(f"{case['figures'][key]:.4g}" for case in cases.values())) for key in keys]
    rows.append(("preemptions", *(f"{case['metrics']['preemptions']:.0f}" for case in cases.values())))
    return [Sheet(f"Predicted with {profile_name}", ("figure", *cases), tuple(rows)), *sheets]
