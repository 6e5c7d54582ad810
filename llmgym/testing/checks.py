"""What holds of one observation, one recount, one set of metrics or one return of any environment.

Each function raises `AssertionError` with a hint where it does not hold; `llmgym.testing.invariants` plays and calls them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

Counts = Mapping[str, float]
"""How many things each metric is taken of; one that is not named is always finite."""


def close(got: float, expected: float, rel: float, near: float = 0.0) -> bool:
    """Whether two numbers agree up to a share of the second, or up to a distance.

    Args:
        got: a number.
        expected: another.
        rel: largest distance, as a share of `expected`.
        near: distance that is always close enough, in the unit of both.

    Returns:
        True if they do.
    """
    return got == expected or abs(got - expected) <= max(rel * abs(expected), near)


def check_observation(env: Any, obs: NDArray[np.float32]) -> None:
    """Fail unless an observation is float32, finite and within the bounds of its fields."""
    size = env.simulation.layout.size
    assert obs.dtype == np.float32 and obs.shape == (size,), (
        f"an observation is {obs.dtype}{obs.shape}, not float32({size},): it is made of the fields of `layout`"
    )
    for field in env.simulation.layout:
        values = obs[env.simulation.layout[field.name]]
        assert np.isfinite(values).all(), (
            f"observation field {field.name!r} is {values}: write a finite number"
        )
        assert ((values >= np.float32(field.low)) & (values <= np.float32(field.high))).all(), (
            f"observation field {field.name!r} is {values}, outside of {field.low:g} to {field.high:g}: "
            "clip it in `observe_lane`, or declare wider bounds in `layout`"
        )


def check_tables(env: Any) -> None:
    """Fail unless every action that the observation's tables name exists, and belongs to one row."""
    owner: dict[int, str] = {}
    space = env.action_space
    actions = int(np.prod(space.shape)) if isinstance(space, Box) else env.simulation.mask_size
    for table in env.simulation.layout.tables():
        for first in table.actions:
            for action in range(first, first + table.rows):
                assert 0 <= action < actions, (
                    f"field {table.name!r}: its rows have action {action}, which {space} lacks"
                )
                assert action not in owner, (
                    f"action {action} belongs to rows of {owner[action]!r} and of {table.name!r}"
                )
                owner[action] = table.name


def check_audit(audit: Mapping[str, float], before: Mapping[str, float]) -> None:
    """Fail unless one recount of the raw arrays adds up: requests, memory, bytes, energy, work.

    Args:
        audit: what the spec's `audit` tells.
        before: what it told earlier in the episode; empty if nothing.
    """
    wrong = {name: value for name, value in audit.items() if not np.isfinite(value)}
    assert not wrong, f"audit: {wrong} are no finite numbers"
    has = audit.keys().__contains__
    if has("arrived"):
        parts = {part: audit.get(part, 0.0) for part in ("waiting", "running", "done", "rejected")}
        # not exactly: a fluid has fractions
        assert close(audit["arrived"], sum(parts.values()), 1e-12, 1e-9), (
            f"audit: {audit['arrived']} requests arrived, but {parts} add up to {sum(parts.values())}: one is lost or counted twice"
        )
        assert min(parts.values()) >= -1e-9, f"audit: less than nothing in {parts}"
        for name in ("arrived", "done"):
            now, then = audit.get(name, 0.0), before.get(name, 0.0)
            assert now >= then, f"audit: {name} went down from {then} to {now}"
    if has("distinct"):
        assert audit["distinct"] == audit.get("live", audit["arrived"]), audit
    for name in audit:
        if name.endswith("_counted"):
            base = name.removesuffix("_counted")
            assert audit[name] == audit[base], f"audit: {base} is {audit[base]}, recounted {audit[name]}"
    if has("kv_used"):
        used, resident = audit["kv_used"], audit["kv_resident"]
        assert 0 <= used == resident, f"audit: {used} KV tokens in use, {resident} by the residents"
        assert audit.get("kv_fullest", used) <= audit["kv_capacity"], f"audit: more KV than there is, {audit}"
    if has("kv_planned"):
        assert audit["kv_planned"] <= audit["kv_capacity"], f"audit: more KV planned than there is, {audit}"
    if has("bytes_sent"):
        elsewhere = audit["bytes_received"] + audit["bytes_in_flight"]
        assert close(audit["bytes_sent"], elsewhere, 1e-9, 1e-12), f"audit: bytes are lost, {audit}"
    if has("energy_j"):
        assert audit["energy_j"] >= before.get("energy_j", 0.0) >= 0.0, f"audit: energy went down, {audit}"
    if has("work_asked"):
        done_and_left = audit["work_done"] + audit["work_left"]
        assert close(audit["work_asked"], done_and_left, 1e-9, 1e-9), f"audit: work is lost, {audit}"


def check_metrics(metrics: Mapping[str, float], counts: Counts | None = None) -> None:
    """Fail unless each metric is a float, finite or NaN.

    Args:
        metrics: of an episode, or of its beginning.
        counts: how many things each is taken of, where that is known: it is NaN exactly where that is none. A metric that is
            not named is always finite. None: not known.
    """
    if counts is not None:
        assert set(counts) <= set(metrics), f"not among the metrics: {sorted(set(counts) - set(metrics))}"
    for name, value in metrics.items():
        assert type(value) is float, f"metric {name} is {value!r}, not a float"
        assert not np.isinf(value), (
            f"metric {name} is {value}: write NaN where there is nothing to take it of"
        )
        if counts is not None:
            count = counts.get(name, 1.0)
            told = f"metric {name} is {value}, taken of {count:g}"
            assert np.isfinite(value) if count > 0 else np.isnan(value), told


def check_return(env: Any, total: float, metrics: Mapping[str, float]) -> None:
    """Fail unless the sum of the rewards is the return that the metrics stand for.

    Args:
        env: a single environment.
        total: sum of the rewards of an episode.
        metrics: of this episode, by name.

    Raises:
        AssertionError: they differ by more than rounding.
    """
    expected = env.simulation.expected_return(dict(metrics))
    assert close(total, expected, 1e-6, 1e-9), (
        f"the rewards of an episode add up to {total!r}, but expected_return(metrics) is {expected!r}: "
        "a metric has to count all that the rewards do, masked actions included"
    )
