"""Parts of the documentation site that come out of the code: the gallery, the rules, the classes of the environments."""

import gymnasium

import llmgym
from llmgym import baselines
from llmgym.core.spec import EnvSpec
from llmgym.envs import ENVIRONMENTS


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
