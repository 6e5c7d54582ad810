"""Scenarios of PipeSDBatch: how long windows are, and how fast an edge and its uplink."""

from dataclasses import dataclass
from typing import Any

from llmgym.core.settings import numbers

MOST_TOKENS = 512
"""Tokens of the longest window: a plan takes time that grows with their square."""


def _times(default: tuple[float, float], about: str, zero: bool = False) -> Any:
    """A setting that is the least and the most of a time, seconds."""
    return numbers(default, about, size=2, zero=zero, order="pair", unit="s")


@dataclass(frozen=True)
class Scenario:
    """Settings of PipeSDBatch; every one of them is also an argument of the environment."""

    about: str
    tokens: tuple[int, int] = numbers(
        (1, 30),
        "Smallest and largest N, the tokens of a window; all in between are equally likely.",
        size=2,
        integers=True,
        high=MOST_TOKENS,
        order="pair",
        unit="tokens",
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
