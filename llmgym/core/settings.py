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

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np

from llmgym.core.checks import choice, members, number, range_text, whole
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
    """

    about: str
    allowed: str
    unit: str
    check: Callable[[str, Any], Any]
    optional: bool


def _setting(default: Any, setting: Setting, trial: bool = True) -> Any:
    """A field of a dataclass. Raises `InvalidArgument` where the declaration contradicts itself.

    Args:
        default: its value, or `...` for none.
        setting: what it may be.
        trial: the default is checked now; without, when a scenario is made (what it names may have to be loaded).
    """
    if not isinstance(setting.about, str) or not setting.about:
        raise InvalidArgument(f"about={setting.about!r}: expected a sentence; the default comes before it")
    if default is ...:
        return field(metadata={_KEY: setting})
    if isinstance(default, (list, dict, set)):
        raise InvalidArgument(f"default={default!r} of {setting.about!r}: it can be changed; use a tuple")
    if trial and not (default is None and setting.optional):
        try:
            setting.check("default", default)
        except InvalidArgument as error:
            raise InvalidArgument(f"{setting.about!r}: {error}") from None
    return field(default=default, metadata={_KEY: setting})


def _check_bounds(about: str, low: float | None, high: float | None) -> None:
    least, most = 0.0 if low is None else low, math.inf if high is None else high
    if not least <= most or (low is None and most <= 0.0):
        raise InvalidArgument(f"{about!r}: low={low!r}, high={high!r}: expected the smaller first")


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

    Returns:
        What a scenario's dataclass has as the default of the field.

    Raises:
        InvalidArgument: no value is in the range, or the default is outside.
    """

    def check(name: str, value: Any) -> None:
        whole(name, value, low, high)

    _check_bounds(about, low, high)
    allowed = f"{low:,} to {high:,}" if high < 2**30 else f"whole, from {low:,}"
    return _setting(default, Setting(about, allowed, unit, check, optional or default is None))


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

    Returns:
        What a scenario's dataclass has as the default of the field.

    Raises:
        InvalidArgument: no value is in the range, or the default is outside.
    """
    most = math.inf if high is None else high

    def check(name: str, value: Any) -> None:
        number(name, value, zero, low=low, high=most)

    _check_bounds(about, low, high)
    allowed = range_text(low or 0.0, most, low is None and not zero)
    return _setting(default, Setting(about, allowed, unit, check, optional or default is None))


def numbers(
    default: Any,
    about: str,
    *,
    size: int | tuple[int, int] = (1, 2**16),
    zero: bool = False,
    low: float | None = None,
    high: float | None = None,
    integers: bool = False,
    order: str = "",
    some: bool = False,
    total: float | None = None,
    unit: str = "",
    optional: bool = False,
) -> Any:
    """A setting that is several numbers, a tuple or a list; scenarios hold a tuple.

    Args:
        default: `...` for one that each scenario has to give.
        about: a sentence for the documentation, with the unit.
        size: how many, or the least and the most of them.
        zero: whether they may be 0.
        low: smallest value, instead of 0; of integers, instead of 1.
        high: largest value; None: any.
        integers: whole numbers only.
        order: `"pair"` (the second is no less than the first), `"rising"` (each above the one before), `"falling"`, or none.
        some: not all of them are 0.
        total: what they add up to.
        unit: what they are measured in.
        optional: None is allowed too; so it is where the default is None.

    Returns:
        What a scenario's dataclass has as the default of the field.

    Raises:
        InvalidArgument: no value is in the range, or the default is not allowed.
    """
    least, most = (size, size) if isinstance(size, int) else size
    upper = math.inf if high is None else high
    if integers:
        lower: float = (0 if zero else 1) if low is None else low
        upper = min(upper, 2**30)
        words = range_text(lower, math.inf if high is None else high)
    else:
        lower = 0.0 if low is None else low
        words = range_text(lower, upper, low is None and not zero)
    many = "two" if (least, most) == (2, 2) else f"{least}" if least == most else f"{least} or more"
    if least < most < 2**16:
        many = f"{least} to {most}" if least else f"up to {most}"
    follows = {"pair": "the smaller first", "rising": "rising", "falling": "falling", "": ""}[order]
    extra = (follows, "not all 0" if some else "", f"adding up to {total:g}" if total is not None else "")
    kind = "whole numbers" if integers else "numbers"
    allowed = ", ".join(filter(None, (f"{many} {kind} {words}", *extra)))

    def check(name: str, value: Any) -> None:
        told = InvalidArgument(f"{name}={value!r}: expected {allowed}")
        given_ones = members(name, value, allowed)
        if not least <= len(given_ones) <= most:
            raise told
        for one in given_ones:
            try:
                if integers:
                    whole(name, one, int(lower), int(upper))
                else:
                    number(name, one, zero, low=low, high=upper)
            except InvalidArgument:
                raise InvalidArgument(f"{name}={one!r} in {value!r}: expected {allowed}") from None
        steps = [after - before for before, after in pairwise(given_ones)]
        wrong = {
            "pair": any(step < 0 for step in steps),
            "rising": any(step <= 0 for step in steps),
            "falling": any(step >= 0 for step in steps),
            "": False,
        }[order]
        if wrong or (some and not any(given_ones)):
            raise told
        if total is not None and not math.isclose(math.fsum(given_ones), total, abs_tol=1e-9):
            raise told

    _check_bounds(about, lower, high)
    return _setting(default, Setting(about, allowed, unit, check, optional or default is None))


def option(default: Any, about: str, choices: Collection[str], *, optional: bool = False) -> Any:
    """A setting that is one of some names.

    Args:
        default: `...` for one that each scenario has to give.
        about: a sentence for the documentation.
        choices: the names.
        optional: None is allowed too; so it is where the default is None.

    Returns:
        What a scenario's dataclass has as the default of the field.

    Raises:
        InvalidArgument: there is nothing to choose, or the default is none of them.
    """

    def check(name: str, value: Any) -> None:
        choice(name, value, choices)

    if isinstance(choices, str) or not choices or not all(isinstance(name, str) for name in choices):
        raise InvalidArgument(f"{about!r}: choices={choices!r}: expected names")
    allowed = ", ".join(f"`{name}`" for name in choices)
    return _setting(default, Setting(about, allowed, "", check, optional or default is None))


def some_of(default: Any, about: str, choices: Collection[Any], *, first: Any = None, unit: str = "") -> Any:
    """A setting that is some of a few values, each once: a tuple or a list; scenarios hold a tuple.

    Args:
        default: `...` for one that each scenario has to give.
        about: a sentence for the documentation.
        choices: the values, all names or all numbers.
        first: the one that has to come first; None: any.
        unit: what they are measured in.

    Returns:
        What a scenario's dataclass has as the default of the field.

    Raises:
        InvalidArgument: there is nothing to choose, or the default is not allowed.
    """
    listed = ", ".join(f"`{one}`" if isinstance(one, str) else f"{one}" for one in choices)
    begins = f", `{first}` first" if first is not None else ""
    allowed = f"some of {listed}, each once{begins}"

    def check(name: str, value: Any) -> None:
        told = InvalidArgument(f"{name}={value!r}: expected {allowed.replace('`', '')}")
        given_ones = members(name, value, allowed.replace("`", ""))
        for one in given_ones:
            if not isinstance(one, (str, int, np.integer)) or isinstance(one, bool) or one not in choices:
                raise told
        if not given_ones or len(set(given_ones)) < len(given_ones):
            raise told
        if first is not None and given_ones[0] != first:
            raise told

    if isinstance(choices, str) or not choices:
        raise InvalidArgument(f"{about!r}: choices={choices!r}: expected names or numbers")
    return _setting(default, Setting(about, allowed, unit, check, default is None))


def flag(default: Any, about: str) -> Any:
    """A setting that is True or False. Raises `InvalidArgument` where the default is neither."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, (bool, np.bool_)):
            raise InvalidArgument(f"{name}={value!r}: expected True or False")

    return _setting(default, Setting(about, "True, False", "", check, False))


def given(
    default: Any,
    about: str,
    *,
    check: Callable[[str, Any], Any],
    allowed: str = "",
    unit: str = "",
    optional: bool = False,
) -> Any:
    """A setting of a kind that no other function of this module has; a function given with it checks the value.

    Args:
        default: `...` for one that each scenario has to give.
        about: a sentence for the documentation.
        check: `(name, value)`, raises where it is not allowed; `llmgym.core.checks.loaded` is for what is named and loaded.
        allowed: what it may be, for people.
        unit: what it is measured in.
        optional: None is allowed too; so it is where the default is None.

    Returns:
        What a scenario's dataclass has as the default of the field.

    Raises:
        InvalidArgument: there is no sentence.
    """
    return _setting(default, Setting(about, allowed, unit, check, optional or default is None), trial=False)


def plain(value: Any) -> Any:
    """A value with numpy's numbers as Python's own, and lists and arrays of one axis as tuples, which nobody can change."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return tuple(value.tolist())
    if isinstance(value, list) or type(value) is tuple:
        changed = tuple(map(plain, value))
        same = isinstance(value, tuple) and all(a is b for a, b in zip(changed, value))
        return value if same else changed
    return value


def check(scenario: Any) -> None:
    """Check every field of a scenario, and then, by its method `check_together` if it has one, what they are to each other.

    Raises:
        UnknownName: a word that is not among those allowed.
        InvalidArgument: the first field that is not what it may be; or fields that do not go together.
    """
    _check_fields(scenario)
    _check_together(scenario)


def _check_fields(scenario: Any) -> None:
    for one in fields(scenario):
        setting: Setting | None = one.metadata.get(_KEY)
        value = getattr(scenario, one.name)
        if setting is not None and not (value is None and setting.optional):
            setting.check(one.name, value)


def _check_together(scenario: Any) -> None:
    hook: Callable[[], None] | None = getattr(scenario, "check_together", None)
    if hook is not None:
        hook()


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

    Returns:
        The scenario, an object of the dataclass in `known`, with plain values in its settings.

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
    _check_fields(chosen)
    values = {one.name: getattr(chosen, one.name) for one in fields(chosen) if _KEY in one.metadata}
    others = {name: plain(value) for name, value in values.items() if plain(value) is not value}
    chosen = replace(chosen, **others) if others else chosen
    _check_together(chosen)
    return chosen
