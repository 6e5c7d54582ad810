"""Settings of a scenario: what each may be is said once, at the field, and checked, documented and told in errors from there.

    @dataclass(frozen=True)
    class Scenario:
        about: str
        seats: int = count(256, "Requests that run at once.", high=65_536)
        horizon_s: float = quantity(3600.0, "An episode is cut after this time, seconds.", unit="s")
        overflow: str = option("pause", "What happens when the next batch does not fit.", OVERFLOWS)

`settled` makes a scenario of a name or an object and the arguments of an environment; it checks every field. `rows` tells them for
`llmgym settings` and for the documentation.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

import numpy as np

from llmgym.core.checks import choice, number, whole
from llmgym.errors import InvalidArgument, UnknownArgument

_KEY = "llmgym"


@dataclass(frozen=True)
class Setting:
    """What one field of a scenario may be.

    Attributes:
        about: a sentence, with the unit.
        allowed: what it may be, for people.
        unit: what it is measured in.
        check: `(name, value)`: raises where the value is not allowed.
        optional: None is allowed too.
        plain: makes a checked value Python's own, of numpy's; None: it stays as it is.
    """

    about: str
    allowed: str
    unit: str
    check: Callable[[str, Any], Any]
    optional: bool
    plain: Callable[[Any], Any] | None = None


def _setting(default: Any, setting: Setting) -> Any:
    if default is ...:
        return field(metadata={_KEY: setting})
    if dataclasses.is_dataclass(default) or not isinstance(default, (list, dict, set)):
        return field(default=default, metadata={_KEY: setting})
    raise TypeError(f"the default {default!r} can be changed; use a tuple")


def count(
    default: Any, about: str, *, low: int = 1, high: int = 2**30, unit: str = "", optional: bool = False
) -> Any:
    """A setting that is a whole number from `low` to `high`.

    Args:
        default: `...` for one that each scenario has to give.
        about: a sentence for the documentation, with the unit.
        low: smallest value.
        high: largest value.
        unit: what is counted.
        optional: None is allowed too; so it is where the default is None.
    """

    def check(name: str, value: Any) -> None:
        whole(name, value, low, high)

    allowed = f"{low:,} to {high:,}" if high < 2**30 else f"whole, from {low:,}"
    return _setting(default, Setting(about, allowed, unit, check, optional or default is None, int))


def quantity(
    default: Any,
    about: str,
    *,
    zero: bool = False,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    optional: bool = False,
) -> Any:
    """A setting that is a finite number above 0.

    Args:
        default: `...` for one that each scenario has to give.
        about: a sentence for the documentation, with the unit.
        zero: whether 0 is allowed.
        low: smallest value, instead of 0.
        high: largest value; None: any.
        unit: what it is measured in.
        optional: None is allowed too; so it is where the default is None.
    """

    def check(name: str, value: Any) -> None:
        if low is None:
            number(name, value, zero)
            if high is None or value <= high:
                return
        elif _real(value) and low <= value <= (math.inf if high is None else high):
            return
        raise InvalidArgument(f"{name}={value!r}: expected a finite number {allowed}")

    least = f"{low:g}" if low is not None else "0"
    if high is None:
        allowed = f">= {least}" if zero or low is not None else f"> {least}"
    else:
        allowed = f"from {least} to {high:g}" if zero or low is not None else f"above {least}, up to {high:g}"
    return _setting(default, Setting(about, allowed, unit, check, optional or default is None, _plain))


def option(default: Any, about: str, choices: Collection[str], *, optional: bool = False) -> Any:
    """A setting that is one of some names.

    Args:
        default: `...` for one that each scenario has to give.
        about: a sentence for the documentation.
        choices: the names.
        optional: None is allowed too; so it is where the default is None.
    """

    def check(name: str, value: Any) -> None:
        choice(name, value, choices)

    allowed = ", ".join(f"`{name}`" for name in choices)
    return _setting(default, Setting(about, allowed, "", check, optional or default is None))


def flag(default: Any, about: str) -> Any:
    """A setting that is True or False."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, (bool, np.bool_)):
            raise InvalidArgument(f"{name}={value!r}: expected True or False")

    return _setting(default, Setting(about, "True, False", "", check, False, bool))


def given(
    default: Any,
    about: str,
    *,
    allowed: str = "",
    unit: str = "",
    check: Callable[[str, Any], Any] | None = None,
) -> Any:
    """A setting of another kind.

    Args:
        default: `...` for one that each scenario has to give.
        about: a sentence for the documentation.
        allowed: what it may be, for people.
        unit: what it is measured in.
        check: `(name, value)`, raises where it is not allowed; None: somebody else checks it.
    """
    return _setting(
        default, Setting(about, allowed, unit, check or (lambda name, value: None), default is None)
    )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _real(value: Any) -> bool:
    plain = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return plain and math.isfinite(value)


def check(scenario: Any) -> None:
    """Check every field of a scenario. Raises `InvalidArgument` or `UnknownName` for the first that is not what it may be."""
    for one in fields(scenario):
        setting: Setting | None = one.metadata.get(_KEY)
        value = getattr(scenario, one.name)
        if setting is not None and not (value is None and setting.optional):
            setting.check(one.name, value)


def rows(scenario: Any) -> Iterator[tuple[str, Any, Setting]]:
    """The settings of a scenario, or of a class of them: name, value (the default, for a class) and what it may be."""
    for one in fields(scenario):
        setting: Setting | None = one.metadata.get(_KEY)
        if setting is not None:
            value = one.default if isinstance(scenario, type) else getattr(scenario, one.name)
            yield one.name, ("" if value is MISSING else value), setting


def markdown(scenario: Any) -> str:
    """The settings as a table for the documentation."""
    lines = ["| setting | default | allowed | unit | meaning |", "|---|---|---|---|---|"]
    for name, value, setting in rows(scenario):
        optional = f"{setting.allowed}; `None`" if setting.optional and setting.allowed else setting.allowed
        shown = "" if value == "" else f"`{value}`"
        lines.append(f"| `{name}` | {shown} | {optional} | {setting.unit} | {setting.about} |")
    return "\n".join(lines)


def settled(
    scenario: Any, known: Mapping[str, Any], settings: Mapping[str, Any], of: str, fixed: Collection[str] = ()
) -> Any:
    """A named scenario, or one given as an object, with some of its fields set anew; all of them are checked.

    Args:
        scenario: a name in `known`, or an object of the same dataclass as these.
        known: the scenarios of an environment by name.
        settings: fields to set, by name.
        of: the environment, for messages.
        fixed: fields that are not settings.

    Raises:
        UnknownName: no such scenario, or a word that is not among those allowed.
        UnknownArgument: no such setting.
        InvalidArgument: `scenario` is something else, or a field is out of range.
    """
    dataclass_of_them = type(next(iter(known.values())))
    if isinstance(scenario, str):
        scenario = known[choice("scenario", scenario, known)]
    elif not isinstance(scenario, dataclass_of_them):
        raise InvalidArgument(
            f"scenario={scenario!r}: expected a name or a {dataclass_of_them.__module__}.{dataclass_of_them.__name__}"
        )
    names = {one.name for one in fields(scenario)} - set(fixed)
    for name in settings:
        if name not in names:
            raise UnknownArgument(of, name, names)
    chosen = replace(scenario, **settings)
    check(chosen)
    numpys = {
        one.name: one.metadata[_KEY].plain(value)
        for one in fields(chosen)
        if isinstance(value := getattr(chosen, one.name), np.generic)
        and _KEY in one.metadata
        and one.metadata[_KEY].plain is not None
    }
    return replace(chosen, **numpys) if numpys else chosen
