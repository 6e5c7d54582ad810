"""The comparisons of `benchmarks/fidelity.py`: two published runs, many published servers, and vLLM measured with this project."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize

from fidelity import silicon
from fidelity.cases import ALL_CASES, BLOCK_TOKENS, CASES, write_traffic
from fidelity.kernels import HOST_S, SHAPES, Nccl, columns, rows_of, summed_step
from fidelity.report import Sheet, comparison
from fidelity.runs import Engine, Floats, Run, own_runs, read_run
from fidelity.serving import serve
from llmgym import profiles, workloads
from llmgym.errors import InvalidArgument
from llmgym.profiles import Profile
from llmgym.profiles.llmservingsim import Mixed, mixed_attention, table_path
from llmgym.serving.capacity import critical_rate, exact_area, saturation

H100 = "h100/llama-3.1-8b"
PREDICTIONS = "predictions.json"
BEST_OPTIONS = {"dense": "sustained", "host": "vllm-0.24"}
"""Options of a profile that predict vLLM best; those that it has are used in predictions."""
WAY_S = 0.3e-3
"""A request's way in and its first token's way out: median of what TTFT exceeds the replay by in the run 'calibration' of vLLM
0.24.0 on one H100, with the host time of that run and products as under steady load."""
GRAPH_TOKENS = 512
"""Tokens of the largest batch that vLLM 0.24 captures as a CUDA graph: two for each of 256 sequences, at most 512."""
STEPS_OF_A_PROMPT = 5
"""Steps before the end of a prompt that may hold chunks of it: the longest is 8,192 tokens, a batch 2,048."""
MODEL_GPU = "RTXPRO6000"
MODEL_SYSTEM = "rtx_pro_6000_server"

Groups = dict[str, list[tuple[float, float]]]


def _pairs(measured: dict[str, float], predicted: dict[str, float]) -> list[tuple[float, float]]:
    """Pairs (measured, predicted) of the figures that are times, s."""
    return [(measured[key], predicted[key]) for key in measured if key != "output_tokens_per_s"]


def published_runs(data: Path, sheets: list[Sheet], groups: Groups) -> None:
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
        sheets.append(comparison(f"vLLM 0.19, RTX PRO 6000, {model}", measured, ways, note))
        groups[f"RTX PRO 6000, {model.partition('-Instruct')[0]}"] = _pairs(measured, ours)
        effects.append((model, variants | {"measured": measured}))
        if ranks == 1:
            sheets.append(
                _mixed_sheet(mixed_attention(table_path(folder / MODEL_GPU, model, 1, "attention")))
            )
    rows = []
    for model, variants in effects:
        for name in ("ttft_p50_s", "tpot_p50_s", "makespan_s"):
            for variant, figures in variants.items():
                if variant != "measured":
                    wrong = 100 * (figures[name] / variants["measured"][name] - 1)
                    rows.append((model, name, variant, f"{wrong:+.1f}"))
    sheets.append(
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


def published_servers(data: Path, sheets: list[Sheet], groups: Groups, with_loop: bool) -> None:
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
        sheets.append(Sheet(title, (*by, *figures), tuple(silicon.errors(found, by)), note))
    groups["published servers, TPOT"] = [(p.tpot_s[1], p.tpot_s[0]) for p in found]
    if with_loop:
        groups["published servers, TTFT (loop)"] = [
            (p.ttft_s[1], p.loop_ttft_s) for p in found if np.isfinite(p.loop_ttft_s)
        ]


def with_host(profile: Profile, host_s: float, launch_s: float = 0.0) -> Profile:
    """The profile with another host time a step, and with launches of so many s in steps that are no CUDA graph.

    Raises:
        InvalidArgument: the profile is not made of laws.
    """
    if "host" not in profile.laws:
        raise InvalidArgument(
            f"profile {profile.name!r}: only the host time of a profile of laws can be changed"
        )
    laws: list[dict[str, Any]] = [
        {"law": "affine", "count": 1, "base_ms": 1e3 * host_s, "per_sequence_ms": 0.0}
    ]
    if launch_s:
        laws.append({"law": "launch", "count": 1, "base_ms": 1e3 * launch_s, "above_tokens": GRAPH_TOKENS})
    chosen = profile.host
    return replace(profile, laws={**profile.laws, "host": {**profile.laws["host"], chosen: laws}})


def calibrate(run: Run, profile: Profile) -> tuple[Profile, float]:
    """Host time and a request's way from one run, to predict others with.

    Returns:
        The profile with the host time that gives the run's median TPOT (unchanged if no time from 0 to 5 ms does), and the
        median of what TTFT then exceeds the replay by, s.
    """
    target = run.figures()["tpot_p50_s"]

    def off(host_s: float) -> float:
        return run.figures(*serve(run, with_host(profile, host_s))[:2])["tpot_p50_s"] - target

    if off(0.0) < 0.0 < off(5e-3):
        profile = with_host(profile, float(brentq(off, 0.0, 5e-3, xtol=1e-6)))
    first, _, _ = serve(run, profile)
    return profile, max(float(np.median(run.first_s - first)), 0.0)


@dataclass(frozen=True)
class Launches:
    """What a run says of the host beside the kernels of a profile, s.

    Attributes:
        every_s: host time of every step.
        launch_s: of a step of more than `GRAPH_TOKENS` tokens: its kernels are launched one by one, and it takes that long if the
            device is not slower.
        way_s: a request's way, with these.
    """

    every_s: float
    launch_s: float
    way_s: float

    def profile(self, profile: Profile) -> Profile:
        """The profile with these as its host times."""
        return with_host(profile, self.every_s, self.launch_s)

    def figures(self, run: Run, profile: Profile) -> dict[str, float]:
        """A prediction with it."""
        return run.figures(*serve(run, self.profile(profile), self.way_s)[:2])


def launches(run: Run, profile: Profile) -> Launches:
    """Fit `Launches` to the times per output token of a run: least mean absolute log error."""
    several = run.output_tokens > 1

    def wrong(x: Floats) -> float:
        if min(x) < 0:
            return 1.0
        first, last, _ = serve(run, Launches(1e-3 * x[0], 1e-3 * x[1], 0.0).profile(profile))
        ratio = (last - first)[several] / (run.last_s - run.first_s)[several]
        return float(np.abs(np.log(ratio)).mean())

    start = np.array([[0.5, 24.0], [0.2, 24.0], [0.5, 30.0]])
    options = {"initial_simplex": start, "xatol": 0.05, "fatol": 1e-4, "maxfev": 60}
    every_ms, launch_ms = minimize(wrong, start[0], method="Nelder-Mead", options=options).x
    fitted = Launches(1e-3 * float(every_ms), 1e-3 * float(launch_ms), 0.0)
    first, _, _ = serve(run, fitted.profile(profile))
    return replace(fitted, way_s=max(float(np.median(run.first_s - first)), 0.0))


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


def best(profile: Profile) -> Profile:
    """The profile with those of `BEST_OPTIONS` that it has."""
    return replace(
        profile, **{part: name for part, name in BEST_OPTIONS.items() if name in profile.options[part]}
    )


def own_engine(
    data: Path | None, runs: Sequence[Path], name: str | None, sheets: list[Sheet], groups: Groups
) -> None:
    """Runs of vLLM 0.24 with Llama-3.1-8B shapes: the two runs of 2026-11-23, and whatever `benchmarks/engine_vllm.py` measured."""
    pair = own_runs(data / "vllm_h100") if data is not None and (data / "vllm_h100").is_dir() else []
    for run in pair:
        profile = profile_for(run, name)
        other = next((found for found in pair if found.name != run.name), None)
        way_s = 0.0
        if other is not None:
            first, _, _ = serve(other, profile)
            way_s = max(float(np.median(other.first_s - first)), 0.0)
        note = (
            f"{profile.name}; a request's way of {1e3 * way_s:.1f} ms, the median of the other run, is part of llmgym's column. "
            "The host time of the profile was fitted to the TPOT of conv_light. The engine was not warmed up."
        )
        ways = {
            "llmgym, synchronous, no way": run.figures(*serve(run, profile, scheduling="sync", block=1)[:2]),
            "llmgym": run.figures(*serve(run, profile, way_s)[:2]),
        }
        if other is not None:
            steady = profile_for(run, name, dense="sustained")
            ways["launches, steady load"] = launches(other, steady).figures(run, steady)
        sheets.append(comparison(f"vLLM 0.24.0, {run.meta['gpu']}, {run.name}", run.figures(), ways, note))
        groups.setdefault("vLLM 0.24, earlier runs", []).extend(_pairs(run.figures(), ways["llmgym"]))
    for folder in runs:
        _measured_here(folder, name, sheets, groups)


def _measured_here(runs: Path, name: str | None, sheets: list[Sheet], groups: Groups) -> None:
    """The runs of one engine and GPU that `benchmarks/engine_vllm.py` measured."""
    stored = runs / PREDICTIONS
    before = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {"cases": {}}
    measured = own_runs(runs)
    reference = next((run for run in measured if run.name == "calibration"), None)
    calibrated: dict[str, tuple[Profile, float, Launches]] = {}
    for run in measured:
        profile = profile_for(run, name)
        figures = run.figures()
        ways = {}
        if run.name in before["cases"]:
            ways["stored before"] = before["cases"][run.name]["figures"]
        note = f"{profile.name}; {run.meta.get('preemptions', 'unknown')} preemptions measured"
        if reference is not None and run.name != "calibration":
            if profile.name not in calibrated:
                steady = profile_for(run, name, dense="sustained")
                calibrated[profile.name] = (*calibrate(reference, profile), launches(reference, steady))
            fitted, one_way_s, host = calibrated[profile.name]
            ways["one host time"] = run.figures(*serve(run, fitted, one_way_s)[:2])
            profile, way_s = host.profile(profile_for(run, name, dense="sustained")), host.way_s
            note += (
                f"; products as under steady load; from the run 'calibration': {1e3 * host.every_s:.2f} ms of host time a step, "
                f"{1e3 * host.launch_s:.1f} ms of launches in steps of more than {GRAPH_TOKENS} tokens, a request's way of "
                f"{1e3 * way_s:.1f} ms ('one host time': products as in single calls, no launches, {1e3 * one_way_s:.1f} ms)"
            )
        else:
            profile, way_s = best(profile), WAY_S
            note += f"; options of the profile: {profile.dense}, {profile.host}"
        first, last, replayed = serve(run, profile, way_s)
        ways["llmgym"] = run.figures(first, last)
        note += f", {replayed.preemptions} in the replay."
        sheets.append(comparison(f"{run.meta['engine']}, {run.meta['gpu']}, {run.name}", figures, ways, note))
        groups.setdefault(f"vLLM 0.24, {run.meta['gpu']}", []).extend(_pairs(figures, ways["llmgym"]))
        steps = runs / f"{run.name}_steps.csv"
        if steps.is_file():
            sheets.append(step_times(steps, run, profile))
        if run.name == "queue_paper":
            sheets.append(_rates(run, profile, first, last))


def step_times(path: Path, run: Run, profile: Profile) -> Sheet:
    """Steps of a run that only decode, by their number of decodes: measured, and as the profile has them.

    A step is the time between two outputs of a busy engine. Steps near the end of a prompt are left out: an engine notes a
    prompt when it ends, not with the chunks that it was computed in, and with asynchronous scheduling the time that the host
    takes to launch them shows in the step before.
    """
    names = ("time_s", "running", "kv_usage", "output_tokens", "prompt_tokens", "preempted")
    time_s, running, usage, output, prompt, preempted = columns(path, *names).T
    taken_s = np.diff(time_s)
    at = np.arange(1, len(time_s))
    near = prompt > 0
    for ahead in range(1, STEPS_OF_A_PROMPT + 1):
        near[:-ahead] |= prompt[ahead:] > 0
    alone = (running[at - 1] > 0) & (output[at - 1] > 0) & (output[at] > 0) & (preempted[at] == 0)
    alone &= (taken_s > 0) & ~near[at] & ~near[at - 1]
    step = summed_step(profile)
    rows = []
    for low, high in ((1, 4), (4, 16), (16, 48), (48, 96), (96, 160), (160, 256), (256, 1024)):
        found = at[alone & (output[at] >= low) & (output[at] < high)]
        if len(found) < 5:
            continue
        predicted = [step([], int(output[i]), int(usage[i] * run.engine.kv_tokens)) for i in found]
        measured_ms = 1e3 * float(np.median(taken_s[found - 1]))
        predicted_ms = 1e3 * float(np.median(predicted))
        error = f"{100 * (predicted_ms / measured_ms - 1):+.1f}"
        row = (f"{low} to {high - 1}", str(len(found)), f"{measured_ms:.2f}", f"{predicted_ms:.2f}", error)
        rows.append(row)
    header = ("decodes", "steps", "measured ms", "predicted ms", "error %")
    title = f"Steps without a prompt, {run.meta['gpu']}, {run.name}"
    return Sheet(title, header, tuple(rows), f"Medians; predicted with {profile.name}.")


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
    profile = best(profiles.load(profile_name))
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
        first, last, replayed = serve(run, profile, WAY_S)
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
        "way_s": WAY_S,
        "cases": cases,
    }
    (folder / PREDICTIONS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    keys = list(next(iter(cases.values()))["figures"])
    rows = [(key, *(f"{case['figures'][key]:.4g}" for case in cases.values())) for key in keys]
    rows.append(("preemptions", *(f"{case['metrics']['preemptions']:.0f}" for case in cases.values())))
    return [Sheet(f"Predicted with {profile_name}", ("figure", *cases), tuple(rows)), *sheets]
