"""Profiles by name: those that are shipped as folders, those that papers state, and any folder of the user's."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from llmgym.core.checks import loaded
from llmgym.errors import ProfileError, UnknownName
from llmgym.profiles.papers import NEEDS_CHOICE, PAPERS
from llmgym.profiles.profile import Profile, read_folder, read_json

DATA = Path(__file__).parent / "data"
_EXPECTED = "the name of a profile, its folder, or a Profile"


@cache
def _shipped() -> dict[str, Path]:
    folders = (path.parent for path in DATA.glob("*/*/meta.json") if path.parent.name != "kernels")
    return {folder.relative_to(DATA).as_posix(): folder for folder in folders}


@cache
def _left_out() -> dict[str, str]:
    """Profiles that are not shipped because the model does not fit, with the reason."""
    path = DATA / "left_out.json"
    return dict(read_json(path)) if path.is_file() else {}


def names() -> list[str]:
    """Names of the shipped profiles, sorted."""
    return sorted([*_shipped(), *PAPERS])


def load(name_or_path: str | os.PathLike[str], *, dense: str = "default", host: str = "default") -> Profile:
    """Load a shipped profile by name, or any profile by its directory.

    Args:
        name_or_path: one of `names()`, or the path of a directory with a meta.json.
        dense: option of the dense laws, for profiles that have several (see `Profile.options`).
        host: option of the host laws, for profiles that have several; "vidur-2024" is the overhead measured on a 2024 engine.

    Returns:
        The profile, with these options.

    Raises:
        UnknownName: there is no such profile or option.
        ProfileError: the profile is not shipped as its model does not fit; or there is no such folder, or its
            files are incomplete or wrong.
    """
    profile = _reader(name_or_path)()
    for part, chosen in (("dense", dense), ("host", host)):
        if chosen not in profile.options[part]:
            raise UnknownName(f"{part} option of profile {profile.name}", chosen, profile.options[part])
    profile = replace(profile, dense=dense, host=host)
    profile.step_cost()
    return profile


def check_name(argument: str, value: Any) -> None:
    """Check a setting that names a profile, without reading it.

    Args:
        argument: of which function, for messages.
        value: what was given; a `Profile` is allowed too.

    Raises:
        UnknownName: there is no such profile.
        ProfileError: it is not shipped as its model does not fit; or there is no such folder.
        InvalidArgument: `value` is neither a text nor a profile.
    """
    if not isinstance(value, Profile):
        loaded(argument, value, _reader, _EXPECTED)


def profile_of(argument: str, value: Any) -> Profile:
    """The profile that was given for an argument, by name, by folder or as a `Profile`. Raises as `check_name` and `load` do."""
    return loaded(argument, value, load, _EXPECTED, Profile)


def _reader(name_or_path: str | os.PathLike[str]) -> Callable[[], Profile]:
    """What reads a profile. Raises `UnknownName` or `ProfileError` where there is none."""
    name = os.fspath(name_or_path)
    if name in NEEDS_CHOICE:
        raise ProfileError(f"profile {name!r}: {NEEDS_CHOICE[name]}")
    if name in _left_out():
        raise ProfileError(f"profile {name!r} is not shipped: {_left_out()[name]}")
    if name in PAPERS:
        return PAPERS[name]
    if name in _shipped():
        return partial(read_folder, _shipped()[name])
    if Path(name).is_dir():
        return partial(read_folder, Path(name))
    if Path(name).exists():
        raise ProfileError(f"{name} is a file; a profile is a folder with meta.json")
    if Path(name).is_absolute() or name.startswith((".", "~")) or len(Path(name).parts) > 2:
        raise ProfileError(f"{name}: no such file or folder")  # a name is of the form gpu/model
    raise UnknownName("profile (there is no such folder either)", name, names())
