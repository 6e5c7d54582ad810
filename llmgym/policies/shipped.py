"""Where policies are: those that come with the package, by name, and files and folders of runs."""

import re
from pathlib import Path

from llmgym.errors import InvalidArgument, UnknownName

TRAINED = Path(__file__).parent / "trained"
"""Shipped checkpoints: `trained/<environment>/<name>.pt`, called `<environment>/<name>`, such as
`KVQueue-v0/ppo`."""


def names(env_id: str | None = None) -> list[str]:
    """Names of the shipped policies of an environment (with or without `llmgym/`), or of all."""
    if env_id is None:
        return sorted(f"{path.parent.name}/{path.stem}" for path in TRAINED.glob("*/*.pt"))
    namespace, _, environment = env_id.rpartition(":")[2].rpartition("/")
    if namespace not in ("", "llmgym"):
        return []
    return [name for name in names() if name.partition("/")[0] == environment]


def seeds_of(name: str) -> list[Path]:
    """The shipped checkpoints that `<environment>/<scenario>` stands for, one a training seed; none if it stands for nothing."""
    environment, _, scenario = name.partition("/")
    seed = re.compile(rf"ppo-{re.escape(scenario)}(-s\d+)?")
    found = [
        path
        for path in TRAINED.glob("*/*.pt")
        if path.parent.name == environment and seed.fullmatch(path.stem)
    ]
    return sorted(found, key=lambda path: path.stem)


def _best(paths: list[Path]) -> Path:
    """The checkpoint that did best on the worlds of its validation; the first where none was validated."""
    from llmgym.policies.checkpoint import load

    def validated(path: Path) -> float:
        found = load(path)["meta"].get("best_return")
        return float("-inf") if found is None else float(found)

    return paths[0] if len(paths) == 1 else max(paths, key=validated)


def path_of(name_or_path: str | Path) -> tuple[Path, str | None]:
    """The file of a policy, and its name if it is a shipped one."""
    if isinstance(name_or_path, str):
        if name_or_path in names():
            return TRAINED / f"{name_or_path}.pt", name_or_path
        if seeds := seeds_of(name_or_path):
            return _best(seeds), name_or_path
    path = Path(name_or_path)
    if path.is_dir():
        best = path / "best.pt"
        path = best if best.is_file() else path / "checkpoint.pt"
    if path.is_file() or path.suffix in (".pt", ".zip"):
        return path, None
    raise UnknownName(
        "learned policy", str(name_or_path), [*names(), "<path of a .pt or .zip file, or of a run folder>"]
    )


def checkpoint_of(name_or_path: str | Path) -> Path:
    """The checkpoint of a policy.

    Raises:
        InvalidArgument: it is an archive of stable-baselines3, which is none.
        UnknownName: there is no such policy.
    """
    path, _ = path_of(name_or_path)
    if path.suffix == ".zip":
        raise InvalidArgument(
            f"{path} is an archive of stable-baselines3: it does not say what it was trained on"
        )
    return path
