"""The cards of the policies that come with the package: how each was trained, and what it is worth.

    python benchmarks/zoo.py

Writes benchmarks/results/zoo.md and zoo.png, the table of README.md, and those of the pages of environments that have a mark
for it, out of the checkpoints and of what `benchmarks/comparisons.py` found.
"""

import json
import shlex
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import llmgym
from benchmarks.make_docs import fill
from benchmarks.rooms import ROOMS
from benchmarks.site_tables import RESULTS, parted
from llmgym.evaluation import RoomResult
from llmgym.evaluation.tables import number
from llmgym.policies import PPOConfig, checkpoint, shipped
from llmgym.policies.recipes import recipe

OUT = Path(__file__).parent / "results"
COLUMNS = (
    "policy", "network", "imitates first", "seed", "steps", "minutes", "torch", "date",
    "to the best tuned rule", "on as many others", "verdict", "share of the room",
)  # fmt: skip
HOW = (
    "Paired, on worlds that were used for nothing else; a win or a loss holds on both sets of them. "
    "[How each was trained, with its curve and its command](../../benchmarks/results/zoo.md)."
)
REASONS = {
    "KVQueue-v0 azure-conv-tight": """A choice among six rules, one decision in sixteen: which has the best tuned rule among
them; the policies come within 0.2 % of it, and four million steps found nothing more.""",
    "KVQueue-v0 tiny-overload": """A choice among six rules, one decision in four, of which the two best are within a thousandth
of each other.""",
    "AFDRatio-v0 real": """The policies imitate `pipeline`, whose formula knows the measured latencies, and lose 0.2 to 0.5
of 55.6 while they explore. A million steps without a rule to begin with lost 0.7 to 2.3; with one, eight million in 8,192
lanes on a GPU lost 4.6.""",
    "PipeSDTune-v0 mobile": """As in `small`: one pair of thresholds for good, found on other episodes. A million steps lost 1.3 to
1.7; a hundred million on a GPU tie on the first worlds, and two seeds lose 0.7 to 0.8 on the second.""",
    "PipeSDBatch-v0 s4": """`dp` is the optimum here too. To imitate it first, and 75 million steps on a GPU, left 0.0035.""",
    "PipeSDBatch-v0 small": """`dp` is the optimum of this problem, a recursion over the window: there is nothing to win. To
imitate it first, and 72 million steps on a GPU, left 0.011.""",
    "MemPlace-v0 small": """The policies imitate `brute-force`, which tries every placement with the predicted times, and stay
there; who knows the true ones gains 1.2 %.""",
    "MemPlace-v0 h100": """Times are known here, so `brute-force` is the optimum, and the policies take all its choices.""",
    "PPDWeights-v0 real": """All rules but the extremes are within a thousandth of each other here.""",
    "PipeSDTune-v0 small": """`fixed-tuned` is one pair of thresholds, found on other episodes of this scenario; the optimum
hardly moves. A million steps lost 0.12 to 0.15, a hundred million on a GPU tie.""",
    "Forage-v0 small": """The policies answer as well with an eighth fewer tokens and in two thirds of the time, and are ahead with
every seed on both sets of worlds, but right and wrong answers by chance are larger than that.""",
    "OServe-v0 real": """The mix of requests drifts slowly: one good deployment for good, routed by what came in the last minute,
is as good as any planner, and the policies imitate that.""",
    "KVProvision-v0 daily": """Positive with every seed on both sets of worlds; one of six intervals holds zero.""",
    "PPDWeights-v0 small": """Positive with every seed on both sets of worlds; one of six intervals touches zero.""",
}
"""Why nothing is won, or not by every seed: a bound, or what was tried."""
FIRST = {"KVQueue-v1 azure-conv-tight": 9_931_766}
"""Steps of a first training, where a second one went on from what it left."""
ACROSS = 4
"""Panels in a row of the picture."""


class Card(NamedTuple):
    """A shipped policy.

    Attributes:
        name: as `llmgym.policies.load` takes it.
        scenario: that it was trained on.
        meta: what its checkpoint says of its training.
        curve: steps, mean return of training, and mean return in validation (NaN where there was none), float [points, 3].
    """

    name: str
    scenario: str
    meta: dict[str, Any]
    curve: NDArray[np.float64]


def cards() -> dict[tuple[str, str], list[Card]]:
    """The shipped policies by environment and scenario."""
    found: dict[tuple[str, str], list[Card]] = defaultdict(list)
    for name in shipped.names():
        stored = checkpoint.load(shipped.TRAINED / f"{name}.pt")
        meta = stored["meta"]
        columns, curve = meta["curve_columns"], stored["curve"].double().numpy()
        shown = np.full((len(curve), 3), np.nan)
        for place, column in enumerate(("steps", "return_mean", "validation_return")):
            if column in columns:
                shown[:, place] = curve[:, columns.index(column)]
        if (np.diff(shown[:, 0]) <= 0).any():  # older checkpoints have a metric of this name instead
            shown[:, 0] = np.linspace(0, meta["steps"], len(curve) + 1)[1:]
        scenario = meta["env_kwargs"].get("scenario", "default")
        found[meta["env_id"], scenario].append(Card(name, scenario, meta, shown))
    return found


def outcomes(env_id: str, scenario: str) -> dict[str, dict[str, str]]:
    """The rows of a comparison, by policy without its marks; none where there was no comparison."""
    page = RESULTS / f"{env_id.rpartition('/')[2]}.md"
    if not page.exists():
        return {}
    for title, table in zip(*parted(page.read_text(encoding="utf-8")), strict=True):
        if title[2] == scenario:
            return {row["policy"].strip(" †‡"): row for row in table}
    return {}


def verdicts(found: dict[tuple[str, str], list[Card]], wide: bool = False) -> str:
    """Who wins, a row for each environment and scenario: the table of README.md.

    Args:
        found: the shipped policies.
        wide: with what there is to win, what each seed gets of it, and the differences on the second set of worlds.
    """
    head = ["environment", "scenario", "best tuned rule, its return"]
    head += ["room"] * wide + ["learned, difference: a figure a seed of training"]
    head += ["share of the room", "on as many others"] * wide + ["verdicts"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for (env_id, scenario), group in found.items():
        known = outcomes(env_id, scenario)
        best = next((row for row in known.values() if row["paired difference [95% CI]"] == "reference"), None)
        rows = [known[card.name] for card in group if card.name in known]
        if best is None or not rows:
            continue
        said = [row["verdict"] for row in rows]
        told = said[0] if len(set(said)) == 1 else ", ".join(said)
        name = env_id.rpartition("/")[2]
        cells = [
            f"[{name}]({'../../' if wide else ''}{llmgym.spec(env_id).docs})",
            f"`{scenario}`",
            f"`{best['policy'].strip(' †‡')}` {best['return [95% CI]'].partition(' ')[0]}",
        ]
        cells += [room_of(name, scenario)] * wide
        cells.append(", ".join(row["paired difference [95% CI]"] for row in rows))
        if wide:
            cells.append(", ".join(row.get("share of the room", "") or "-" for row in rows))
            cells.append(", ".join(second_of(row) or "-" for row in rows))
        lines.append(f"| {' | '.join([*cells, told])} |")
    return "\n".join(lines)


def unexplained(found: dict[tuple[str, str], list[Card]]) -> list[str]:
    """Keys of `REASONS` that are missing, or that stand where every seed wins or nothing is shipped."""
    needed = set()
    for (env_id, scenario), group in found.items():
        known = outcomes(env_id, scenario)
        if any(known[card.name]["verdict"] != "win" for card in group if card.name in known):
            needed.add(f"{env_id.rpartition('/')[2]} {scenario}")
    return sorted(needed ^ set(REASONS))


def room_of(name: str, scenario: str) -> str:
    """What those gain who know the future, where it was measured."""
    path = ROOMS / f"{name}-{scenario}.json"
    if not path.exists():
        return "-"
    one = RoomResult.read(path)
    gains = {who: float((returns - one.rules[one.best]).mean()) for who, returns in one.knowing.items()}
    return ", ".join(
        f"{who} {number(gain, 3)} ({number(one.percent_of(gain), 1)} %)" for who, gain in gains.items()
    )


def second_of(outcome: dict[str, str]) -> str:
    """The difference on the second set of worlds; empty where there was none."""
    return next((cell for name, cell in outcome.items() if name.startswith("on seeds ")), "")


def cells_of(card: Card, outcome: dict[str, str]) -> list[str]:
    """What a card says, in the order of `COLUMNS`."""
    meta, config = card.meta, card.meta["config"]
    imitated = config.get("imitate", config.get("teacher", ""))
    hidden = "x".join(map(str, config.get("hidden", ())))
    cells = [
        f"`{card.name}`",
        f"{config.get('network', 'mlp')} {hidden}",
        f"`{imitated}`" if imitated else "goes on from a first training" if meta.get("init") else "-",
        meta["seed"],
        f"{meta['steps']:,}",
        f"{meta['wall_s'] / 60:.1f} on {where(config)}",
        meta["torch_version"],
        meta["written"][:10],
        outcome.get("paired difference [95% CI]", "not compared"),
        second_of(outcome) or "-",
        outcome.get("verdict", "-"),
        outcome.get("share of the room", "") or "-",
    ]
    return [str(cell) for cell in cells]


def where(config: dict[str, Any]) -> str:
    """What a policy was trained on, in words."""
    if config.get("device", "cpu") == "cpu":
        return "a CPU"
    return "a GPU, lanes too" if config.get("env_device", "cpu") != "cpu" else "a GPU"


def page(found: dict[tuple[str, str], list[Card]]) -> str:
    """The page, in Markdown."""
    parts = [
        "# Policies that come with the package",
        "",
        'Written by `benchmarks/zoo.py`. `llmgym.policies.load("AFDRefill-v0/small", env)` loads, of the seeds of an '
        "environment and a scenario, the one that did best in validation; a name of a row loads that one. Differences are "
        "those of `benchmarks/comparisons.py`, on worlds on which nothing was trained, tuned or validated.",
        "",
        "All of them beside the best tuned rule of the place, and beside what there is to win "
        "([rooms](../../benchmarks/results/rooms.md): a lower bound of what knowing the future is worth); "
        "[away from home](../../benchmarks/results/transfers.md), under other loads, on other traces and GPUs.",
        "",
        verdicts(found, wide=True),
        "",
        "![learning curves](zoo.png)",
        "",
        "*Mean return against steps of training, a line a seed; dots: on the worlds of the validation.*",
    ]
    for (env_id, scenario), group in found.items():
        known = outcomes(env_id, scenario)
        parts += [
            "",
            f"## {env_id}, {scenario}",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|" + "---|" * len(COLUMNS),
        ]
        parts += [f"| {' | '.join(cells_of(card, known.get(card.name, {})))} |" for card in group]
        reason = REASONS.get(f"{env_id.rpartition('/')[2]} {scenario}")
        parts += ["", reason] if reason else []
        parts += ["", *(f"    {command}" for command in commands(env_id, scenario, group))]
    return "\n".join([*parts, ""])


def commands(env_id: str, scenario: str, group: list[Card]) -> list[str]:
    """What trains the policies of a scenario again, with the settings that the table of recipes does not have by now."""
    meta = group[0].meta
    config = PPOConfig.from_dict(meta["config"])
    table = recipe(env_id, scenario, env_device=config.env_device)
    now, then = table.config.to_dict(), config.to_dict()
    differing = {
        name: value
        for name, value in then.items()
        if value != now[name] and name not in ("device", "env_device", "threads", *idle(config))
    }
    if meta.get("init"):  # nothing is imitated then
        differing.pop("imitate", None)
    if meta["lanes"] != table.lanes:
        differing["lanes"] = meta["lanes"]
    seeds = " ".join(str(card.meta["seed"]) for card in group)
    words = ["python benchmarks/train_policies.py", env_id, "--scenarios", scenario, "--seeds", seeds]
    words += ["--steps", str(max(card.meta["timesteps"] for card in group))]
    words += ["--device cuda"] * (config.device != "cpu") + ["--on-device"] * (config.env_device != "cpu")
    before = []
    if meta.get("init"):
        steps = str(FIRST[f"{env_id.rpartition('/')[2]} {scenario}"])
        first = [*words[:6], "--steps", steps, *["--device cuda"] * (config.device != "cpu"), "--out first"]
        before = [" ".join(first)]
        words += ["--init first"]
    if differing:
        words += ["--set", *(f"{name}={_word(value)}" for name, value in differing.items())]
    return [*before, " ".join([*words, "--out runs"])]


def idle(config: PPOConfig) -> tuple[str, ...]:
    """Settings that mean nothing beside the others."""
    return () if config.imitate else ("imitate_steps", "imitate_rounds", "dagger_rounds")


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return shlex.quote(text) if text else ""


def of_page(env_id: str, found: dict[tuple[str, str], list[Card]]) -> str:
    """What is shipped for an environment, for its page."""
    lines = [
        "| policy | steps, minutes of training | best tuned rule | difference to it | on as many others | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for (of, scenario), group in found.items():
        if of != env_id:
            continue
        known = outcomes(env_id, scenario)
        best = next(
            (name for name, row in known.items() if row["paired difference [95% CI]"] == "reference"), "-"
        )
        for card in group:
            cells = cells_of(card, known.get(card.name, {}))
            lines.append(
                f"| {cells[0]} | {cells[4]}, {cells[5]} | `{best}` | {cells[8]} | {cells[9]} | {cells[10]} |"
            )
    return "\n".join([*lines, "", HOW])


def picture(found: dict[tuple[str, str], list[Card]], path: Path) -> None:
    """Draw the learning curves, a panel for each environment and scenario."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    down = -(-len(found) // ACROSS)
    figure = Figure(figsize=(3.2 * ACROSS, 2.2 * down), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, ACROSS, squeeze=False).ravel()
    for panel, ((env_id, scenario), group) in zip(panels, found.items()):
        for index, card in enumerate(group):
            steps, trained, validated = card.curve.T
            there = np.isfinite(trained)
            panel.plot(steps[there] / 1e6, trained[there], color=f"C{index}", linewidth=1.0, alpha=0.6)
            panel.plot(steps / 1e6, validated, ".", color=f"C{index}", markersize=5)
        panel.set_title(f"{env_id.rpartition('/')[2]}, {scenario}", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.locator_params(axis="x", nbins=5)
        panel.grid(alpha=0.3)
    for panel in panels[len(found) :]:
        panel.set_axis_off()
    figure.supxlabel("million steps", fontsize=8)
    figure.supylabel("mean return", fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Write the page and its picture."""
    found = cards()
    (OUT / "zoo.md").write_text(page(found), encoding="utf-8")
    picture(found, OUT / "zoo.png")
    root = Path(__file__).parent.parent
    fill(root / "README.md", "winners", verdicts(found))
    for env_id in dict.fromkeys(of for of, _ in found):
        docs = root / llmgym.spec(env_id).docs
        if "<!-- learned -->" in docs.read_text(encoding="utf-8"):
            fill(docs, "learned", of_page(env_id, found))


if __name__ == "__main__":
    main()
