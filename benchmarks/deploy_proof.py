"""Four schedulers in one vLLM, predicted before they are measured: first come first served, shortest first, a rule and a network.

    python benchmarks/deploy_proof.py --predict [--gpu h200]                    # writes requests, predictions and policies
    python benchmarks/deploy_proof.py --commands RUNS [--gpu h200]              # what to run on a machine with that GPU
    python benchmarks/deploy_proof.py --measured RUNS [--gpu h200]              # measured against predicted, and the picture

Three worlds of KVQueue-v1's `azure-conv-tight` are the traffic: 400 requests each, with predicted lengths, on one GPU whose cache
has 2,048 blocks, at 1.2 times what that GPU sustains; the second is played twice, to see how much runs differ. vLLM's
own two orders are predicted by a replay of these requests, the rule and the network by playing the worlds in the gym, which a
`GymScheduler` follows decision by decision (`tests/deploy/test_vllm.py`). Everything is in `benchmarks/results/deploy/GPU`.
"""

import argparse
import csv
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from fidelity.cases import DEPLOY_CASES, write_rows

from llmgym import baselines, policies
from llmgym.serving.replay import replay
from llmgym.workloads import Rows

RESULTS = Path(__file__).parent / "results" / "deploy"
ENV_ID, SCENARIO, LATE_S = "llmgym/KVQueue-v1", "azure-conv-tight", 20.0
GPUS = {"h100": "h100/llama-3.1-8b", "h200": "h200/llama-3.1-8b"}
"""Profiles by which each is predicted."""
REPEATED = {"deploy_2_again": "deploy_2"}
RULE, NETWORK = "pick-area:aging=0.05", "KVQueue-v1/ppo-azure-conv-tight"
SCHEDULERS = {
    "fcfs": "vLLM: first come first served",
    "shortest": "vLLM: priorities, the predicted length",
    "rule": f"gym: {RULE}",
    "network": f"gym: {NETWORK}",
}
OPTIONS = {
    "fcfs": "",
    "shortest": "--shortest",
    "rule": "--scheduler-cls llmgym.deploy.vllm.GymScheduler --policy {out}/rule.npz",
    "network": "--scheduler-cls llmgym.deploy.vllm.GymScheduler --policy {out}/network.npz",
}
FIGURES = ("e2e_mean_s", "e2e_p50_s", "e2e_p99_s", "ttft_p50_s", "ttft_p99_s", "late", "makespan_s")
Floats = Any


def figures(arrival_s: Floats, first_s: Floats, last_s: Floats) -> dict[str, float]:
    """The figures of one run.

    Args:
        arrival_s: float64 [n], s.
        first_s: float64 [n], when the first output token was there, s.
        last_s: float64 [n], when the last one was, s.
    """
    e2e, ttft = last_s - arrival_s, first_s - arrival_s
    return {
        "e2e_mean_s": float(e2e.mean()),
        "e2e_p50_s": float(np.quantile(e2e, 0.5)),
        "e2e_p99_s": float(np.quantile(e2e, 0.99)),
        "ttft_p50_s": float(np.quantile(ttft, 0.5)),
        "ttft_p99_s": float(np.quantile(ttft, 0.99)),
        "late": float((e2e > LATE_S).mean()),
        "makespan_s": float(last_s.max() - arrival_s.min()),
    }


def played(name: str, seed: int, profile: str) -> tuple[Any, dict[str, float]]:
    """The requests of a world, and what becomes of them in the gym under a rule or a network."""
    env: Any = gymnasium.make(ENV_ID, scenario=SCENARIO, profile=profile).unwrapped
    policy: Any = policies.load(name, env) if name in policies.names() else baselines.make(name, env)
    obs, info = env.reset(seed=seed)
    ended = False
    while not ended:
        action = policy.act(obs[None], info["action_mask"][None])[0]
        obs, _, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
    found = env.lanes.state.request[0, : env.lanes.state.lane[0]["requests"]].copy()
    arrival_s = found["arrival_s"]
    return found, figures(arrival_s, arrival_s + found["ttft_s"], arrival_s + found["e2e_s"])


def predict(out: Path, gpu: str) -> dict[str, Any]:
    """Write the requests of each case, and predict each scheduler."""
    out.mkdir(parents=True, exist_ok=True)
    env = gymnasium.make(ENV_ID, scenario=SCENARIO, profile=GPUS[gpu])
    simulation: Any = env.unwrapped.simulation  # type: ignore[attr-defined]
    scenario, profile = simulation.scenario, simulation.profile
    cases: dict[str, Any] = {}
    for case in DEPLOY_CASES.values():
        drawn, rule = played(RULE, case.seed, GPUS[gpu])
        _, network = played(NETWORK, case.seed, GPUS[gpu])
        arrival_s = drawn["arrival_s"] - drawn["arrival_s"][0]
        columns = (arrival_s, drawn["prompt"], drawn["output"], drawn["predicted"])
        write_rows(
            out / f"{case.name}_traffic.csv",
            ("arrival_s", "prompt_tokens", "output_tokens", "predicted_tokens"),
            zip(*(column.tolist() for column in columns), strict=True),
        )
        rows = Rows(*columns[:3], predicted_tokens=columns[3], priority=columns[3])
        settings: dict[str, Any] = {
            name: getattr(scenario, name)
            for name in ("kv_capacity", "budget", "chunk", "seats", "block", "scheduling")
        }
        predicted = {}
        for name, order in (("fcfs", "vllm:watermark=0"), ("shortest", "vllm-priority")):
            found = replay(rows, profile, rule=order, way="in-process", **settings)
            predicted[name] = figures(found.arrival_s, found.first_s, found.last_s)
        if case.name not in REPEATED:
            cases[case.name] = predicted | {"rule": rule, "network": network}
    said = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "llmgym": version("llmgym"),
        "gpu": f"one {gpu.upper()}",
        "profile": GPUS[gpu],
        "schedulers": SCHEDULERS,
        "cases": cases,
    }
    (out / "predictions.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return said


def measured(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Figures of each case and scheduler of the folders `RUNS/<scheduler>`; those that are missing are left out."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for case in DEPLOY_CASES:
        for name in SCHEDULERS:
            path = folder / name / f"{case}_requests.csv"
            if not path.is_file():
                continue
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            columns = [
                np.array([float(row[key]) for row in rows])
                for key in ("arrival_s", "first_token_s", "last_token_s")
            ]
            found.setdefault(case, {})[name] = figures(*columns)
    return found


def mean_of(cases: Mapping[str, Mapping[str, Mapping[str, float]]], name: str, figure: str) -> float:
    """Mean of a figure over the cases that have the scheduler."""
    values = [one[name][figure] for one in cases.values() if name in one]
    return float(np.mean(values)) if values else float("nan")


def table(predicted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Predicted, and where there is any, measured, means over the cases, in Markdown."""
    once = {case: one for case, one in found.items() if case not in REPEATED}
    lines = [
        f"| scheduler | {' | '.join(FIGURES)} |",
        "|---|" + "---|" * len(FIGURES),
    ]
    for name, label in SCHEDULERS.items():
        for kind, cases in (("predicted", predicted), ("measured", once)):
            if any(name in one for one in cases.values()):
                values = " | ".join(f"{mean_of(cases, name, figure):.4g}" for figure in FIGURES)
                lines.append(f"| {label}, {kind} | {values} |")
    return "\n".join([*lines, *_beside_stock(predicted, once), *_pairs(predicted, once), *_repeated(found)])


def _ratios(cases: Mapping[str, Any], name: str, to: str, figure: str) -> Floats:
    """Of the cases that have both schedulers: a figure of one over that of the other."""
    return np.array([one[name][figure] / one[to][figure] for one in cases.values() if {name, to} <= set(one)])


def _beside_stock(predicted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Lines of a table: each scheduler beside first come first served, world by world."""
    lines = [
        "",
        "Beside vLLM's first come first served, mean over the worlds (and each world): end-to-end time, its 99th percentile, and "
        "requests a second.",
        "",
        "| scheduler | mean | 99th percentile | throughput |",
        "|---|---|---|---|",
    ]
    for name, label in list(SCHEDULERS.items())[1:]:
        for kind, cases in (("predicted", predicted), ("measured", found)):
            mean, tail, span = (
                _ratios(cases, name, "fcfs", figure) for figure in ("e2e_mean_s", "e2e_p99_s", "makespan_s")
            )
            if len(mean):
                less = ", ".join(f"{value - 1:+.1%}" for value in mean)
                more = ", ".join(f"x{value:.2f}" for value in tail)
                lines.append(
                    f"| {label}, {kind} | {mean.mean() - 1:+.1%} ({less}) | x{tail.mean():.2f} ({more}) "
                    f"| {(1 / span).mean() - 1:+.1%} |"
                )
    return lines


def _pairs(predicted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Lines of a table: how far the predicted difference of any two schedulers is from the measured one."""
    if not found:
        return []
    lines = [
        "",
        "Any two schedulers, means over the worlds: by how much the first one's mean time is below or above the second one's.",
        "",
        "| schedulers | predicted | measured | apart, points |",
        "|---|---|---|---|",
    ]
    for one, two in itertools.combinations(reversed(SCHEDULERS), 2):
        said, seen = (_ratios(cases, one, two, "e2e_mean_s") for cases in (predicted, found))
        if len(seen):
            apart = 100 * (seen.mean() - said.mean())
            lines.append(
                f"| {one} to {two} | {said.mean() - 1:+.1%} | {seen.mean() - 1:+.1%} | {apart:+.1f} |"
            )
    return lines


def _repeated(found: Mapping[str, Any]) -> list[str]:
    """Lines of a table: what a second run of the same requests gives."""
    lines = []
    for again, first in REPEATED.items():
        for name in SCHEDULERS:
            if name in found.get(again, {}) and name in found.get(first, {}):
                pairs = (
                    f"{found[first][name][figure]:.4g}, {found[again][name][figure]:.4g}"
                    for figure in ("e2e_mean_s", "e2e_p99_s", "makespan_s")
                )
                lines.append(f"| {name} | {' | '.join(pairs)} |")
    head = [
        "",
        "The same requests twice, s:",
        "",
        "| scheduler | mean | 99th percentile | makespan |",
        "|---|---|---|---|",
    ]
    return [*head, *lines] if lines else []


def _measured_with(folder: Path | None) -> str:
    """A sentence on what was measured, by the files beside it; empty where nothing was."""
    if folder is None:
        return ""
    metas = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*_meta.json"))]
    dates = sorted({meta["date"] for meta in metas})
    one = metas[0]
    return (
        f" Measured from {dates[0]} to {dates[-1]}: {one['engine']}, {one['gpu']}, driver {one['driver']}, torch {one['torch']}, "
        f"{one['model']}."
    )


def picture(path: Path, predicted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Mean against 99th percentile of the end-to-end time, case by case, from what was predicted to what was measured."""
    figure, axes = plt.subplots(figsize=(7.2, 5.2))
    colours = dict(zip(SCHEDULERS, ("#0072B2", "#E69F00", "#009E73", "#CC79A7"), strict=True))
    for case, one in predicted.items():
        for name in SCHEDULERS:
            points = [
                (kind[name]["e2e_mean_s"], kind[name]["e2e_p99_s"])
                for kind in (one, found.get(case, {}))
                if name in kind
            ]
            axes.plot(*zip(*points, strict=True), color=colours[name], linewidth=0.8, alpha=0.6)
            for point, face in zip(points, ("white", colours[name]), strict=False):
                axes.plot(*point, "o", markersize=7, markeredgecolor=colours[name], markerfacecolor=face)
    handles = [
        plt.Line2D([], [], marker="o", linestyle="", color=colours[name], label=label)
        for name, label in SCHEDULERS.items()
    ]
    handles += [
        plt.Line2D([], [], marker="o", linestyle="", color="black", markerfacecolor=face, label=kind)
        for kind, face in (("predicted", "white"), ("measured", "black"))
        if found or kind == "predicted"
    ]
    axes.set(
        xlabel="mean end-to-end time, s",
        ylabel="99th percentile, s",
        title=f"{len(predicted)} worlds of 400 requests",
    )
    figure.legend(handles=handles, fontsize=8, loc="lower center", ncols=2)
    figure.tight_layout(rect=(0, 0.15, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predict", action="store_true", help="write requests, predictions and policies")
    parser.add_argument("--commands", type=Path, metavar="RUNS", help="print what is to be run on a GPU")
    parser.add_argument("--measured", type=Path, metavar="RUNS", help="folder that these commands filled")
    parser.add_argument("--gpu", choices=list(GPUS), default="h100", help="that it is predicted for")
    parser.add_argument("--out", type=Path, help="where everything is kept (default: results/deploy/GPU)")
    asked = parser.parse_args(argv)
    asked.out = asked.out or RESULTS / asked.gpu
    if sum((asked.predict, asked.commands is not None, asked.measured is not None)) != 1:
        parser.error("one of --predict, --commands and --measured is needed")
    if asked.commands is not None:
        for name, options in OPTIONS.items():
            print(
                f"python benchmarks/engine_vllm.py --traffic {asked.out} --cases {','.join(DEPLOY_CASES)} "
                f"--out {asked.commands / name} --minutes 10 {options.format(out=asked.out)}".rstrip()
            )
        return 0
    found: dict[str, Any] = {}
    if asked.predict:
        from llmgym.deploy.export import export

        said = predict(asked.out, asked.gpu)
        for name, policy in (("rule", RULE), ("network", NETWORK)):
            export(policy, asked.out / f"{name}.npz", scenario=SCENARIO, profile=GPUS[asked.gpu])
    else:
        path = asked.out / "predictions.json"
        if not path.is_file():
            parser.error(f"--out {asked.out}: it has no predictions.json; --predict comes first")
        said = json.loads(path.read_text(encoding="utf-8"))
        found = measured(asked.measured)
        if not found:
            parser.error(
                f"--measured {asked.measured}: there is no {next(iter(SCHEDULERS))}/deploy_1_requests.csv"
            )
    text = table(said["cases"], found)
    print(text)
    what = "predicted, and measured afterwards" if found else "predicted; nothing is measured yet"
    (asked.out / "proof.md").write_text(
        f"# Four schedulers in one vLLM, {what}\n\nPredicted {said['date']} with llmgym {said['llmgym']} for {said['gpu']}, by "
        f"`benchmarks/deploy_proof.py`; means over {len(said['cases'])} worlds of 400 requests. `late`: share that took more than "
        f"{LATE_S:.0f} s. The network is the policy of that name as it was shipped then."
        f"{_measured_with(asked.measured)}\n\n{text}\n\n![mean against tail](proof.png)\n",
        encoding="utf-8",
    )
    once = {case: one for case, one in found.items() if case not in REPEATED}
    picture(asked.out / "proof.png", said["cases"], once)
    return 0


if __name__ == "__main__":
    sys.exit(main())
