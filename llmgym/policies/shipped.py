"""Where policies are: those that come with the package, by name, and files and folders of runs."""

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


def path_of(name_or_path: str | Path) -> tuple[Path, str | None]:
    """The file of a policy, and its name if it is a shipped one."""
    if isinstance(name_or_path, str) and name_or_path in names():
        return TRAINED / f"{name_or_path}.pt", name_or_path
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
