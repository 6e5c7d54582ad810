"""Policies that installed packages bring along, by an entry point of the group `llmgym.policies`.

    [project.entry-points."llmgym.policies"]
    mine = "my_rules:POLICIES"

    POLICIES = {"llmgym/AFDRefill-v0": {"longest": LongestPrompt, "net": Path(__file__).with_name("net.pt")}}

The first is called `mine/longest` in tables and wherever a policy is named.
"""

import functools
import warnings
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from llmgym.errors import InvalidArgument

GROUP = "llmgym.policies"
"""Each entry point is a mapping from the id of an environment to its policies by name."""


def policies(env_id: str) -> dict[str, Any]:
    """Installed policies of an environment: a class, an object or the path of a checkpoint, by `<entry point>/<name>`.

    Args:
        env_id: its id, with or without a module in front of it.
    """
    return dict(_found().get(str(env_id).rpartition(":")[2], {}))


@functools.cache
def _found() -> dict[str, dict[str, Any]]:
    """All of them by the id of their environment; what cannot be loaded is left out with a warning, once."""
    found: dict[str, dict[str, Any]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            for env_id, policies in _checked(point.load()).items():
                found.setdefault(env_id, {}).update(
                    {f"{point.name}/{name}": policy for name, policy in policies.items()}
                )
        except Exception as error:
            warnings.warn(
                f"the policies of {point.value} ({point.dist.name if point.dist else '?'}) are left out: {error!r}",
                stacklevel=2,
            )
    return found


def _checked(policies: Any) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(policies, Mapping) or not all(isinstance(one, Mapping) for one in policies.values()):
        raise InvalidArgument(
            f"{policies!r}: expected a dict such as {{'llmgym/AFDRefill-v0': {{'mine': MyPolicy}}}}"
        )
    return policies
