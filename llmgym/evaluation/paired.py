"""Paired runs: every policy meets the same worlds, in the order of the same seeds."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmgym.core.checks import whole
from llmgym.core.policy import Policy
from llmgym.errors import CheckpointError, InvalidArgument, MissingExtra
from llmgym.evaluation.backends import HERE, Backend
from llmgym.evaluation.comparable import (
    CHECKSUM,
    STRATA,
    check_headline,
    check_labels,
    check_metrics,
    check_same_metrics,
)
from llmgym.evaluation.comparison import Comparison, in_brackets
from llmgym.evaluation.contenders import (
    BASELINE,
    GIVEN,
    LEARNED,
    Contender,
    check_id,
    known,
    make_env,
    merged_kwargs,
    resolve,
)
from llmgym.evaluation.progress import Bar
from llmgym.evaluation.rollout import run_all
from llmgym.evaluation.room_result import RoomResult
from llmgym.evaluation.statistics import check_confidence

GROUPS = {"rules": (BASELINE,), "learned": (LEARNED,), "all": (BASELINE, LEARNED, GIVEN)}
"""Words that stand for several policies: the kinds that each means."""


def compare(
    env_id: str,
    policies: Sequence[str | Policy] | Mapping[str, str | Policy] | None = None,
    episodes: int = 30,
    seed: int = 10_000,
    metrics: Sequence[str] | None = None,
    confidence: float = 0.95,
    progress: bool = True,
    room: RoomResult | str | Path | None = None,
    backend: Backend = HERE,
    **env_kwargs: Any,
) -> Comparison:
    """Run policies on the same worlds and compare them.

    Args:
        env_id: a registered environment of this package, such as "llmgym/KVQueue-v0".
        policies: names of baselines, names of learned policies, paths to checkpoints, or policy objects; a dict gives them other
            labels. None takes every baseline and every learned policy that is shipped for the environment.
        episodes: episodes a policy, at least 2; episode i has seed `seed + i` for every policy.
        seed: of the first episode, at least 0. Keep it away from seeds that policies were trained on.
        metrics: metrics to show in the main table; None for the environment's headline metrics.
        confidence: of all intervals, between 0 and 1.
        progress: a bar on stderr, if that is a terminal.
        room: what there is to win, of `llmgym.evaluation.room`, or the file of such a measurement; tables then tell which share of
            it each policy gets.
        backend: where episodes are played: in this process, or as `llmgym.evaluation.backend` says; results do not depend on it.
        **env_kwargs: arguments of the environment; those a policy needs are added for it.

    Returns:
        A `Comparison`: `print(result.table())`, `result.plot("a.png")`, `result.report("a.html")`,
        `result.to_csv("a.csv")`.

    Raises:
        UnknownName: no such environment, policy or metric.
        InvalidArgument: a bad number, no or repeated policies, a policy that needs other arguments than were
            given, policies that met other worlds, or room of another environment.
        InvalidAction: a policy's actions are not allowed.
        LlmgymError: a return is not finite, or the backend could not play some of the episodes.
    """
    whole("episodes", episodes, 2)
    whole("seed", seed, 0, 2**63)
    check_confidence(confidence)
    named, env_id = str(env_id), check_id(env_id)
    contenders = fitting(env_id, env_kwargs) if policies is None else _named(env_id, policies)
    check_labels([contender.label for contender in contenders])
    _probe(env_id, contenders, env_kwargs, metrics)
    if isinstance(room, (str, Path)):
        room = RoomResult.read(room)
    if room is not None:
        room.check(env_id, env_kwargs)
    with Bar(len(contenders), int(episodes), shown=progress) as bar:
        tables = run_all(named, contenders, int(episodes), int(seed), env_kwargs, bar, backend)
    return Comparison(tables, metrics=metrics, confidence=confidence, env_kwargs=env_kwargs, room=room)


def _named(env_id: str, policies: Sequence[str | Policy] | Mapping[str, str | Policy]) -> list[Contender]:
    if isinstance(policies, str) or not isinstance(policies, (Sequence, Mapping)):
        raise InvalidArgument(
            f"policies={policies!r}: expected a list, such as ['a', 'b'], or a dict of label -> policy"
        )
    if not policies:
        raise InvalidArgument("policies is empty: name at least one, or pass None for all that are known")
    if isinstance(policies, Mapping):
        return [resolve(env_id, policy, label) for label, policy in policies.items()]
    return [resolve(env_id, policy) for policy in policies]


def fitting(env_id: str, env_kwargs: Mapping[str, Any]) -> list[Contender]:
    """All known policies that can act in an environment with these arguments; a warning names the others."""
    # First of all, so that a wrong argument is not taken for policies that do not fit.
    make_env(env_id, 1, env_kwargs).close()
    fitting = []
    for name in known(env_id):
        try:
            contender = resolve(env_id, name)
            env = make_env(env_id, 1, merged_kwargs(contender, env_kwargs))
            if contender.kind == LEARNED:
                contender.build(env)
            env.close()
        except (InvalidArgument, CheckpointError, MissingExtra) as error:
            warnings.warn(f"policy {name!r} is left out: {error}", stacklevel=3)
        else:
            fitting.append(contender)
    if not fitting:
        raise InvalidArgument(
            f"policies=None: no known policy fits {env_id}{in_brackets(env_kwargs)}; name your own"
        )
    return fitting


def members(
    env_id: str, words: Sequence[str], env_kwargs: Mapping[str, Any], trained_on: str | None = None
) -> list[str]:
    """Names of policies, where some may be asked for together.

    Args:
        env_id: a registered id.
        words: names, which stay, and `all`, `rules` or `learned`: what is known and fits the environment.
        env_kwargs: arguments of the environment.
        trained_on: take all learned ones, but of those that are not named only those that were trained on this scenario.

    Returns:
        The names, each once.

    Raises:
        InvalidArgument: no learned policy that fits was trained on the scenario.
    """
    from llmgym import policies

    words = [*words] if trained_on is None else [*words, "learned"]
    known = fitting(env_id, env_kwargs) if any(word in GROUPS for word in words) else []
    if trained_on is not None:
        fit = [one.label for one in known if one.kind == LEARNED]
        scenarios = {label: policies.meta(label)["env_kwargs"].get("scenario") for label in fit}
        if trained_on not in scenarios.values():
            there = sorted({name for name in scenarios.values() if name is not None})
            raise InvalidArgument(
                f"trained_on={trained_on!r}: no shipped policy of {env_id} that fits here was trained on it; "
                f"there are policies of {', '.join(there) or 'no scenario'}"
            )
        known = [one for one in known if one.kind != LEARNED or scenarios[one.label] == trained_on]
    names: list[str] = []
    for word in words:
        names += [one.label for one in known if one.kind in GROUPS[word]] if word in GROUPS else [word]
    return list(dict.fromkeys(names))


def _probe(
    env_id: str, contenders: Sequence[Contender], env_kwargs: Mapping[str, Any], metrics: Sequence[str] | None
) -> None:
    """Make every environment once, with one lane, so that mistakes show before anything runs for long."""
    first: tuple[str, ...] = ()
    for index, contender in enumerate(contenders):
        env = make_env(env_id, 1, merged_kwargs(contender, env_kwargs))
        names = env.simulation.metric_names
        headline = getattr(env.simulation, "headline_metrics", {})
        env.close()
        if index == 0:
            first = names
            check_headline(headline, names)
            check_metrics(metrics or [], [name for name in names if name not in (CHECKSUM, *STRATA)])
        check_same_metrics(contenders[0].label, first, contender.label, names)
