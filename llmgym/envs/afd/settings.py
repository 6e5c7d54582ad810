"""What the scenarios of AFDRatio and AFDRefill have in common: requests and latencies of a bundle."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmgym import profiles
from llmgym.core.settings import given, quantity
from llmgym.envs.afd.costs import LINK_LATENCY_US, PAPER, Coefficients, fit
from llmgym.envs.afd.requests import RequestSource, laws_of
from llmgym.errors import InvalidArgument

STARTS = ("stationary", "cold")
"""What the first bundle begins with: slots as they are in the long run, or requests that are all new."""
MOST_BATCH = 65_536
"""The largest B: an instance of the paper has 512 at most."""


def _check_coefficients(name: str, value: Any) -> None:
    if not isinstance(value, Coefficients):
        raise InvalidArgument(f"{name}={value!r}: expected llmgym.envs.afd.costs.Coefficients")


@dataclass(frozen=True)
class Bundle:
    """Requests and latencies of attention and FFN instances."""

    about: str
    requests: RequestSource | tuple[RequestSource, ...] = given(
        ...,
        "Law of the requests, see `llmgym.envs.afd.requests.load`; with several, the load changes between them.",
        check=laws_of,
        allowed="laws by text, `Requests`, `Workload`",
    )
    coefficients: Coefficients | None = given(
        None,
        "Latencies of attention, FFN and link; None fits them to `profile`, or takes the paper's where that is None too.",
        allowed="`Coefficients`",
        check=_check_coefficients,
    )
    profile: str | None = given(
        None,
        "Profile that latencies are fitted to.",
        check=profiles.check_name,
        allowed="a name in `llmgym.profiles.names()`, or a folder",
    )
    link_gb_per_s: float = quantity(
        50.0, "Bandwidth between two instances where latencies are fitted to a profile, GB/s.", unit="GB/s"
    )
    link_latency_us: float = quantity(
        LINK_LATENCY_US,
        "Latency of one way between two instances where latencies are fitted to a profile, microseconds.",
        zero=True,
        unit="us",
    )


def latencies(
    scenario: Bundle, batch: int, profile: "str | profiles.Profile | None", arguments: Mapping[str, Any]
) -> Coefficients:
    """The latencies of a scenario: given ones, those of a profile, or the paper's.

    Args:
        scenario: with all arguments put in.
        batch: B, requests of a microbatch of one attention instance, that a profile is fitted for.
        profile: to fit them to, instead of what the scenario says; None: as the scenario says.
        arguments: settings that were given one by one; coefficients among them come before a profile.

    Returns:
        The coefficients that the environment is made with.

    Raises:
        UnknownName: no such profile.
        InvalidArgument: a profile that nothing can be fitted to.
    """
    if scenario.coefficients is not None and (profile is None or "coefficients" in arguments):
        return scenario.coefficients
    profile = scenario.profile if profile is None else profile
    if profile is None:
        return PAPER
    return fit(
        profiles.profile_of("profile", profile), batch, scenario.link_gb_per_s, scenario.link_latency_us
    ).coefficients
