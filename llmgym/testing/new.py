"""`llmgym new`: one file with an environment of one's own that runs, trains and passes the test kit, to be changed from there."""

import importlib.util
import keyword
from pathlib import Path

from llmgym.errors import InvalidArgument

TEMPLATE = Path(__file__).with_name("template.txt")
USED = frozenset(
    {"Episode", "Observation", "Metrics", "Params", "Simulation", "Kernels", "Layout", "Record", "Discrete"}
)
"""Classes that the template names, for which the environment cannot be called."""


def new(name: str, folder: Path | str = ".") -> tuple[Path, str]:
    """Write `name.py`.

    Args:
        name: of the file and module, such as `"my_env"`.
        folder: where to write it; it has to exist.

    Returns:
        The file, and the id of the environment in it.

    Raises:
        InvalidArgument: the name is none that Python can import, another module has it, or the file is there already.
    """
    title = "".join(part[:1].upper() + part[1:] for part in name.removesuffix("_env").split("_"))
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name) or not title[:1].isalpha():
        raise InvalidArgument(f"name={name!r}: expected the name of a Python module, such as 'my_env'")
    if title in USED:
        raise InvalidArgument(
            f"name={name!r}: the new file has a class {title} of its own; take another name"
        )
    path = Path(folder) / f"{name}.py"
    if path.exists():
        raise InvalidArgument(f"name={name!r}: {path} exists already, and nothing is overwritten")
    if not path.parent.is_dir():
        raise InvalidArgument(f"folder={str(folder)!r}: no such folder")
    if importlib.util.find_spec(name) is not None:
        raise InvalidArgument(
            f"name={name!r}: there is a module of this name, which would be imported instead"
        )
    try:
        with path.open("x") as file:
            file.write(TEMPLATE.read_text().replace("my_env", name).replace("MyEnv", title))
    except OSError as error:
        raise InvalidArgument(f"name={name!r}: {path} cannot be written: {error.strerror}") from error
    return path, f"me/{title}-v0"
