"""Scenarios of PipeSDBatch: how long windows are, and how fast an edge and its uplink."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmgym.core.checks import number, whole
from llmgym.core.settings import given
from llmgym.errors import InvalidArgument

MOST_TOKENS = 512
"""Tokens of the longest window: a plan takes time that grows with their square."""


def _span(name: str, value: Any, check: Callable[[str, Any], Any]) -> None:
    """Raise `InvalidArgument` unless `value` is the least and the most of something, each of which `check` allows."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InvalidArgument(f"{name}={value!r}: expected two numbers, the least and the most")
    for limit in value:
        check(name, limit)
    if value[0] > value[1]:
        raise InvalidArgument(f"{name}={value!r}: the least is above the most")


def _times(default: tuple[float, float], about: str, zero: bool = False) -> Any:
    """A setting that is the least and the most of a time, seconds."""
    return given(
        default,
        about,
        allowed=f"two numbers {'>= 0' if zero else '> 0'}, the least first",
        unit="s",
        check=lambda name, value: _span(name, value, lambda name, limit: number(name, limit, zero)),
    )


@dataclass(frozen=True)
class Scenario:
    """Settings of PipeSDBatch; every one of them is also an argument of the environment."""

    about: str
    tokens: tuple[int, int] = given(
        (1, 30),
        "Smallest and largest N, the tokens of a window; all in between are equally likely.",
        allowed=f"two whole numbers from 1 to {MOST_TOKENS}, the least first",
        unit="tokens",
        check=lambda name, value: _span(name, value, lambda name, limit: whole(name, limit, 1, MOST_TOKENS)),
    )
    alpha_s: tuple[float, float] = _times(
        (0.0, 0.2), "Least and most time to start an upload, uniform, seconds.", zero=True
    )
    beta_s: tuple[float, float] = _times(
        (0.0001, 0.2), "Least and most time that a token adds to an upload, uniform, seconds."
    )
    gamma_s: tuple[float, float] = _times(
        (0.005, 0.2), "Least and most time to draft a token, uniform, seconds."
    )


SCENARIOS: dict[str, Scenario] = {
    "random": Scenario("any window of up to 30 tokens, any speeds up to 0.2 s"),
    "s1": Scenario(
        "the paper's scenario 1: a laptop at 20 Mbps", (1, 20), (0.05, 0.05), (0.116, 0.116), (0.037, 0.037)
    ),
    "s2": Scenario("scenario 2: a phone", (1, 20), (0.05, 0.05), (0.116, 0.116), (0.0755, 0.0755)),
    "s3": Scenario("scenario 3: a small device", (1, 20), (0.05, 0.05), (0.116, 0.116), (0.157, 0.157)),
    "s4": Scenario(
        "scenario 4: a laptop at 10 to 80 Mbps", (1, 20), (0.05, 0.05), (0.029, 0.232), (0.037, 0.037)
    ),
    "small": Scenario("up to 12 tokens, any speeds: to train on in minutes", (2, 12)),
}
