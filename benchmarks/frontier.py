"""Mean against tail: where each order of KVQueue-v1 lies between short answers on average and none that is late.

    python benchmarks/frontier.py
    python benchmarks/frontier.py --scenario sessions --episodes 60 --out frontier

Every rule is played over its grid on the same worlds, and shipped policies too. What no other beats in both the mean latency and
the 99th percentile of the end-to-end time is on the frontier. Writes `frontier-SCENARIO.md` and `.png`.
"""

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.progress import track

from llmgym import policies
from llmgym.baselines.kv.queue_v1 import AGING
from llmgym.evaluation import run_episodes

ENV = "llmgym/KVQueue-v1"
RULES = (
    "vllm:watermark=0",
    "vllm",
    "shortest-first",
    "area-watermark",
    *(f"area-aging:aging={aging}" for aging in AGING),
    "edf",
    "vllm-priority",
    "least-computed",
    "longest-prefix",
)
LABELS = {
    "vllm:watermark=0": "first come first served",
    "shortest-first": "shortest output first",
    "area-watermark": "least work first",
}
TOGETHER_S = 0.15
"""Points closer than this share a label."""
RESULTS = Path(__file__).parent / "results" / "comparisons"


class Point(NamedTuple):
    """What one policy does, means over worlds: latency and 99th percentile of the end-to-end time (s), late share, return."""

    name: str
    mean_s: float
    p99_s: float
    late: float
    value: float


def play(name: str, scenario: str, episodes: int, seed: int) -> Point:
    """Play one policy.

    Args:
        name: of a rule, with numbers, or of a shipped policy.
        scenario: of KVQueue-v1.
        episodes: worlds.
        seed: of the first.
    """
    batch = run_episodes(ENV, name, episodes, seed, {"scenario": scenario})
    columns = [float(batch.metrics[key].mean()) for key in ("latency_mean_s", "e2e_p99_s", "late")]
    return Point(name, *columns, float(batch.returns.mean()))


def on_frontier(point: Point, points: list[Point]) -> bool:
    """Whether no other is better in both the mean and the 99th percentile."""
    return not any(
        other.mean_s <= point.mean_s and other.p99_s <= point.p99_s and other[1:3] != point[1:3]
        for other in points
    )


def draw(points: list[Point], path: Path, scenario: str) -> None:
    """A picture of all points, with those on the frontier joined."""
    figure, axes = plt.subplots(figsize=(8, 5), dpi=120, layout="constrained")
    front = sorted((p for p in points if on_frontier(p, points)), key=lambda p: p.mean_s)
    axes.plot([p.mean_s for p in front], [p.p99_s for p in front], color="#999999", linewidth=1, zorder=1)
    places: dict[tuple[float, float], list[str]] = {}
    for point in points:
        learned = point.name.startswith("KVQueue")
        colour = "#D55E00" if learned else "#0072B2"
        axes.scatter(point.mean_s, point.p99_s, color=colour, marker="D" if learned else "o", zorder=2)
        text = LABELS.get(point.name, point.name.removeprefix("KVQueue-v1/").replace("area-aging:", ""))
        near = next((at for at in places if math.dist(at, point[1:3]) < TOGETHER_S), point[1:3])
        places.setdefault(near, []).append(text)
    axes.margins(x=0.12)
    middle = (min(p.mean_s for p in points) + max(p.mean_s for p in points)) / 2
    for place, texts in places.items():
        right = place[0] > middle
        axes.annotate(
            ("\n" if right else ", ").join(texts),
            place,
            (-6 if right else 6, 4),
            textcoords="offset points",
            fontsize=7,
            ha="right" if right else "left",
        )
    axes.set(
        xlabel="mean time in the system, s",
        ylabel="99th percentile of the end-to-end time, s",
        title=f"KVQueue-v1, {scenario}: orders between a short mean and a short tail",
    )
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Play all, and write the table and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", default="azure-conv-tight")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    learned = [
        n for n in policies.names(ENV) if policies.meta(n)["env_kwargs"].get("scenario") == args.scenario
    ]
    names = [*RULES, *learned]
    points = [play(n, args.scenario, args.episodes, args.seed) for n in track(names, "playing")]
    rows = [
        f"| {p.name} | {p.mean_s:.2f} | {p.p99_s:.1f} | {100 * p.late:.2f} | {p.value:.2f} | "
        f"{'yes' if on_frontier(p, points) else ''} |"
        for p in sorted(points, key=lambda p: p.mean_s)
    ]
    name = f"frontier-{args.scenario}"
    table = "| policy | mean latency, s | E2E p99, s | late, % | return | on the frontier |\n|---|---|---|---|---|---|"
    text = (
        f"# KVQueue-v1, {args.scenario}: mean against tail\n\n{args.episodes} worlds from seed {args.seed}, by "
        f"`benchmarks/frontier.py`.\n\n{table}\n"
        + "\n".join(rows)
        + f"\n\n![mean against tail]({name}.png)\n"
    )
    (args.out / f"{name}.md").write_text(text)
    draw(points, args.out / f"{name}.png", args.scenario)
    print(text)


if __name__ == "__main__":
    main()
