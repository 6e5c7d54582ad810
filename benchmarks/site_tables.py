"""Parts of the documentation site that come out of the code: the gallery, the rules, the classes of the environments."""

import re
from pathlib import Path

import gymnasium

import llmgym
from llmgym import baselines
from llmgym.core.spec import EnvSpec
from llmgym.envs import ENVIRONMENTS

RESULTS = Path(__file__).parent / "results" / "comparisons"
RUN = re.compile(r"\*\*(\S+) \(scenario='(.+?)'.*?\): (\d+) paired episodes.*\*\*")
"""The title of a comparison: environment, scenario, worlds."""


def name_of(spec: EnvSpec) -> str:
    """`KVQueue-v0` of `llmgym/KVQueue-v0`."""
    return spec.id.rpartition("/")[2]


def page_of(spec: EnvSpec) -> str:
    """The page of an environment, from `docs`."""
    return spec.docs.removeprefix("docs/")


def gallery() -> str:
    """A card for each environment: its picture, what is decided, and whose problem it is."""
    cards = ["::::{grid} 1 1 2 2", ":gutter: 3", ""]
    for spec in ENVIRONMENTS:
        page = page_of(spec).removesuffix(".md")
        cards += [
            f":::{{grid-item-card}} {name_of(spec)}",
            f":link: {page}",
            ":link-type: doc",
            f":img-top: pictures/{page.removeprefix('envs/')}.png",
            f":img-alt: a moment of {name_of(spec)}",
            "",
            f"{spec.decision[0].upper()}{spec.decision[1:]}.",
            "",
            f"*{spec.source}*",
            ":::",
            "",
        ]
    return "\n".join([*cards, "::::"])


def privileged(spec: EnvSpec, name: str, made: dict[str, gymnasium.Env]) -> bool:
    """Whether a rule sees what a real scheduler could not; environments that were made are kept in `made`."""
    kwargs = {**next(iter(spec.test_cases().values())), **baselines.env_kwargs(spec.id, name)}
    key = f"{spec.id} {sorted(kwargs.items(), key=str)}"
    if key not in made:
        made[key] = gymnasium.make(spec.id, **kwargs)
    return baselines.make(name, made[key]).privileged


def rules() -> str:
    """Every rule of every environment, with † for what a real scheduler cannot see and ‡ for another world, and what is tuned."""
    rows = ["| environment | rules | tuned, with the number of variants |", "|---|---|---|"]
    made: dict[str, gymnasium.Env] = {}
    for spec in ENVIRONMENTS:
        names, grids = [], []
        for name in baselines.names(spec.id):
            marks = ("†" if privileged(spec, name, made) else "") + (
                "‡" if baselines.other_world(spec.id, name) else ""
            )
            names.append(f"`{name}`{marks}")
            if grid := baselines.grid(spec.id, name):
                grids.append(f"`{name}` {len(grid)}")
        rows.append(
            f"| [{name_of(spec)}]({page_of(spec)}#baselines) | {', '.join(names)} | {', '.join(grids) or '-'} |"
        )
    return "\n".join(rows)


def numbers(spec: EnvSpec) -> str:
    """What the best rule gets, and what the best learned policy and the best that knows more do beside it, out of the results.

    Args:
        spec: of the environment.

    Returns:
        A table with a row for each scenario that was compared; empty where nothing was.
    """
    page = RESULTS / f"{name_of(spec)}.md"
    if not page.exists():
        return ""
    link = "../" * page_of(spec).count("/") + f"../benchmarks/results/comparisons/{page.name}"
    rows = [
        "| scenario | worlds | best rule | its return | first learned policy, difference "
        "| best that sees more (†), difference |",
        "|---|---|---|---|---|---|",
    ]
    for title, table in zip(*parted(page.read_text()), strict=True):
        best = next(row for row in table if row["paired difference [95% CI]"] == "reference")
        trained = [row for row in table if "/" in row["policy"]]
        learned = min(
            trained, key=lambda row: len(row["policy"]), default=None
        )  # the first seed, not the better one
        told_more = best["policy"].endswith(
            "†"
        )  # so is everybody here, and rules below it are nothing special
        rest = [row for row in (table[: table.index(best)] if told_more else table) if row not in trained]
        above = next((row for row in rest if row["policy"].endswith("†")), None)
        cells = [f"`{title[2]}`", title[3], f"`{best['policy'].strip(' †')}`", best["return [95% CI]"]]
        for row in (learned, above):
            told = "-"
            if row is not None:
                told = f"`{row['policy'].strip(' †')}` {row['paired difference [95% CI]']}: {row['verdict']}"
            cells.append(told)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"Returns with 95 % intervals, higher is better; [every policy]({link})."])


def parted(text: str) -> tuple[list[re.Match[str]], list[list[dict[str, str]]]]:
    """The titles of a page of comparisons, and the tables below them, a dictionary a row by the names of the columns."""
    titles = list(RUN.finditer(text))
    tables = []
    for title in titles:
        lines = text[title.end() :].strip().split("\n\n")[0].splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        tables.append([dict(zip(cells[0], row, strict=True)) for row in cells[2:]])
    return titles, tables


def classes() -> str:
    """The docstring of every environment's class: what is seen and done, rewards, endings, arguments, versions."""
    parts = []
    for spec in ENVIRONMENTS:
        module, _, name = spec.env.partition(":")
        parts += [
            f"## {name_of(spec)}",
            "",
            f"Page: [{llmgym.spec(spec.id).decision}](../{page_of(spec)}).",
            "",
        ]
        parts += ["```{eval-rst}", f".. autoclass:: {module}.{name}", "```", ""]
    return "\n".join(parts).rstrip()
