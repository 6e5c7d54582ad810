"""What holds for every registered environment: the design's invariants, one test each.

Each is tested with the cheap arguments that its `EnvSpec` names; the checks themselves are those of the test kit,
`llmgym.testing.invariants`, which anybody can run on an environment of their own. What is hidden from a scheduler (I11) has
tests of its own, in `test_hidden.py`.
"""

import itertools
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from hypothesis import given, settings
from hypothesis import strategies as st

import llmgym
from llmgym.core.memory import arrays_of
from llmgym.profiles.profile import Provenance, Source, from_law
from llmgym.serving.rules import CATALOGUE
from llmgym.testing import invariants
from llmgym.testing.drive import MODES, audited
from llmgym.testing.invariants import make
from llmgym.workloads import RequestClass, Rows, Workload, replay
from tests.envs.populations import counting

CASES = {env_id: llmgym.spec(env_id).test_cases() for env_id in llmgym.env_ids()}
"""Cheap arguments to test each id with, by a short name."""


def cases_of(quick: int | None = None, most: int | None = None) -> Any:
    """Parametrise with the cases of every environment.

    Args:
        quick: of each environment, those after so many are left to the slow pass; None: none is.
        most: of each environment; None: all.
    """
    return pytest.mark.parametrize(
        ("env_id", "kwargs"),
        [
            pytest.param(
                env_id,
                kwargs,
                id=f"{env_id.partition('/')[2]}-{name}",
                marks=[pytest.mark.slow] if quick is not None and number >= quick else [],
            )
            for env_id, cases in CASES.items()
            for number, (name, kwargs) in enumerate(itertools.islice(cases.items(), most))
        ],
    )


every_case = cases_of()
two_cases_first = cases_of(quick=2)
every_action_space = cases_of(quick=2, most=4)
every_id = pytest.mark.parametrize("env_id", llmgym.env_ids())
seeds = st.integers(0, 2**63 - 1)


def examples(count: int) -> Any:
    """So many pairs of a world and actions, the first of which is (0, 0), as hypothesis begins with the smallest."""

    def decorate(function: Any) -> Any:
        drawn = given(seed=seeds, action_seed=seeds)(function)
        return settings(max_examples=count, deadline=None)(drawn)

    return decorate


COUNTED = {
    "llmgym/KVQueue-v0": {"kv_used", "kv_planned", "distinct", "work_asked"},
    "llmgym/KVQueue-v1": {"kv_used", "kv_planned", "distinct", "work_asked"},
    "llmgym/KVProvision-v0": {"kv_used", "distinct"},
    "llmgym/AFDRatio-v0": {"kv_used", "work_asked"},
    "llmgym/AFDRefill-v0": {"kv_used", "work_asked"},
    "llmgym/PPDRouting-v0": {"kv_used", "bytes_sent", "distinct"},
    "llmgym/PPDWeights-v0": {"kv_used", "bytes_sent", "distinct"},
    "llmgym/OServe-v0": {"kv_used", "bytes_sent", "distinct"},
    "llmgym/PipeSDBatch-v0": set(),
    "llmgym/PipeSDNav-v0": {"bytes_sent", "energy_j", "work_asked"},
    "llmgym/PipeSDTune-v0": {"bytes_sent", "energy_j", "work_asked"},
    "llmgym/MemPipe-v0": {"energy_j", "work_asked"},
    "llmgym/SegmentedPrefill-v0": {"kv_used", "distinct", "work_asked"},
    "llmgym/DistillProgramme-v0": {"distinct", "energy_j", "kwh_counted", "work_asked"},
    "llmgym/MemPlace-v0": {"bytes_sent", "energy_j", "work_asked"},
    "llmgym/AttentionBudget-v0": {"energy_j", "work_asked"},
    "llmgym/Unmask-v0": {"work_asked", "calls_counted", "seconds_counted"},
    "llmgym/Forage-v0": {"tokens_counted", "work_asked"},
}
"""What `check_audit` checks of an environment beside requests and the clock: an audit that leaves it out proves nothing."""


@every_id
def test_an_audit_counts_what_the_invariants_need(env_id):
    audit = audit_of(env_id, next(iter(CASES[env_id].values())))
    assert {"arrived", "clock_s"} | COUNTED[env_id] <= set(audit)


def audit_of(env_id: str, kwargs: dict[str, Any]) -> dict[str, float]:
    env = make(env_id, kwargs)
    env.reset(seed=0)
    return audited(env)


def metric_names(env_id: str, kwargs: dict[str, Any]) -> tuple[str, ...]:
    return make(env_id, kwargs).simulation.metric_names


@every_case
@examples(4)
def test_counts_memory_time_bounds_and_return(env_id, kwargs, seed, action_seed):
    """I1, I2, I3, I4, I5, I7, I9, I10 after every step of an episode, and at least one action allowed (I8)."""
    assert "clock_s" in audit_of(env_id, kwargs)
    invariants.counts_time_bounds_and_return(env_id, kwargs, seed, action_seed, counting(env_id))


@every_case
def test_metrics_have_no_value_before_there_is_anything_to_take_them_of(env_id, kwargs):
    invariants.metrics_before_there_is_anything(env_id, kwargs, counting(env_id))


@every_case
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_lane_is_the_single_environment(env_id, kwargs, mode):
    """I6: bit for bit, three lanes of different worlds that end at different times, in every autoreset mode."""
    lanes = [0, 20_001, 2**62 + 7]
    assert invariants.lane_is_single(env_id, kwargs, mode, lanes, 5, episodes=6) >= len(lanes)


@pytest.mark.slow
@every_case
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_lane_is_the_single_environment_for_long(env_id, kwargs, mode):
    """I6, eight lanes over up to 10,000 steps."""
    invariants.lane_is_single(env_id, kwargs, mode, list(range(100, 900, 100)), 6, episodes=20)


@every_case
@examples(2)
def test_the_same_seed_gives_the_same_bits(env_id, kwargs, seed, action_seed):
    """I6."""
    invariants.same_seed_same_bits(env_id, kwargs, seed, action_seed)


@every_id
def test_another_process_gets_the_same_bits(env_id):
    """I6, and the `module:id` form, which needs no import of the package; no two cases are the same world."""
    digests = invariants.another_process_same_bits(env_id, CASES[env_id], "llmgym")
    assert len(set(digests.values())) == len(digests)


@every_case
@examples(2)
def test_every_unmasked_action_is_accepted_and_a_masked_one_is_safe(env_id, kwargs, seed, action_seed):
    """I8, by trying every action on copies of states along an episode."""
    assert isinstance(make(env_id, kwargs).action_space, Box) or "invalid_actions" in metric_names(
        env_id, kwargs
    )
    invariants.actions_accepted_or_safe(env_id, kwargs, seed, action_seed)


@every_case
@examples(3)
def test_a_return_with_masked_actions_is_still_its_metric(env_id, kwargs, seed, action_seed):
    """I9 when a policy knows no masks."""
    invariants.return_with_masked_actions(env_id, kwargs, seed, action_seed)


@every_action_space
def test_gymnasiums_checker(env_id, kwargs):
    invariants.gymnasium_checker(env_id, kwargs)


@every_action_space
@pytest.mark.filterwarnings("ignore:.*is out of date")  # there is a newer version
@pytest.mark.filterwarnings("ignore:We recommend you to use a symmetric")  # a share of memory is neither
@pytest.mark.filterwarnings("ignore:Your action space has dtype float64")  # actions are float64 throughout
@pytest.mark.filterwarnings("error")
def test_stable_baselines3s_checker(env_id, kwargs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "ignore")
        checker = pytest.importorskip("stable_baselines3.common.env_checker", exc_type=ImportError)
    checker.check_env(gymnasium.make(env_id, **kwargs).unwrapped)


@every_id
def test_make_vec_is_native_and_conforms(env_id):
    invariants.spaces_and_types(env_id, next(iter(CASES[env_id].values())))


@every_id
@pytest.mark.parametrize(("argument", "value"), invariants.BAD_ARGUMENTS.items())
def test_a_bad_argument_is_named(env_id, argument, value):
    invariants.bad_argument_is_named(env_id, argument, value)


TOY_PROFILE = from_law(
    "toy/one-second-batches",
    "constant",
    Provenance("synthetic", "2026-11-24", (Source("this test", "-", "MIT"),)),
    {"c0_s": 1.0},
    kv_tokens=7,
)
"""Every batch takes one second, and the cache holds 7 tokens."""

# A request of (prompt, output) is one batch of prefill and one batch for each output token; the long one, (5, 2), holds
# 5, 6, 7 tokens, the short ones, (2, 1), hold 2, 3. So two short ones fit together, and nothing beside the long one
# beyond its first batch. For each instance: arrivals, an optimal sequence of picks (0 runs the batch), the optimum, and
# the optimum without actions that are masked (idling while something fits is).
TOY_OPTIMA = {
    # All at once. Short ones first: 2 + 2 s, the long one from 2 s to 5 s. First come, first served: 3 + 4 + 5 s.
    "short first": ([0.0, 0.0, 0.0], [2, 2, 0, 0, 1, 0, 0, 0], -(2 + 2 + 5) / 3, -(2 + 2 + 5) / 3),
    # The short ones come after 1 s. To idle until then costs 2 + 2 + 6 s, to begin with the long one 3 + 4 + 4 s.
    "idle at first": ([0.0, 1.0, 1.0], [0, 2, 2, 0, 0, 1, 0, 0, 0], -(2 + 2 + 6) / 3, -(3 + 4 + 4) / 3),
}


def toy_queue(arrival_s: list[float], **kwargs: Any) -> Any:
    rows = Rows(np.array(arrival_s), np.array([5, 2, 2]), np.array([2, 1, 1]))
    arrivals = replay(rows, from_start=True)
    workload = Workload("toy", arrivals, (RequestClass(rows=rows),))
    if np.isfinite(arrivals.rate_rps):
        kwargs["rate_rps"] = arrivals.rate_rps
    settings_ = {
        "requests": 3,
        "horizon_s": 12.0,
        "chunk": 8,
        "kv_capacity": 7,
        "slots": 3,
        "order": "arrival",
    }
    return make(
        "llmgym/KVQueue-v0", {**settings_, "workload": workload, "profile": TOY_PROFILE, "seats": 8, **kwargs}
    )


def play(env: Any, choose: Callable[[int], int]) -> float:
    env.reset(seed=0)
    total, done, step = 0.0, False, 0
    while not done:
        _, reward, terminated, truncated, _ = env.step(choose(step))
        total, done, step = total + reward, terminated or truncated, step + 1
    return total


def best_return(env: Any, idling: bool) -> tuple[float, int]:
    """The largest return over all sequences of unmasked actions, with `idling` also of 0, and how many there are."""
    env.reset(seed=0)
    arrays = [*arrays_of(env.lanes.state), *env.lanes.buffers]

    def search() -> tuple[float, int]:
        kept = [array.copy() for array in arrays]
        best, leaves = -np.inf, 0
        for action, allowed in enumerate(env.action_masks().tolist()):
            if not allowed and not (idling and action == 0):
                continue
            _, reward, terminated, truncated, _ = env.step(action)
            rest, below = (0.0, 1) if terminated or truncated else search()
            best, leaves = max(best, reward + rest), leaves + below
            for array, old in zip(arrays, kept):
                array[...] = old
        return best, leaves

    return search()


@pytest.mark.parametrize("overflow", ["pause", "recompute"])
@pytest.mark.parametrize("name", TOY_OPTIMA)
def test_the_optimum_of_a_toy_instance_of_kvqueue(name, overflow):
    """I12: brute force over all schedules finds the optimum worked out by hand, and no rule does better."""
    arrival_s, actions, optimum, unmasked = TOY_OPTIMA[name]
    env = toy_queue(arrival_s, action="pick", overflow=overflow, invalid_cost=0.0)
    best, schedules = best_return(env, idling=True)
    assert schedules > 50
    assert best == pytest.approx(optimum, rel=1e-12)
    assert play(env, actions.__getitem__) == pytest.approx(optimum, rel=1e-12)
    best_unmasked, some = best_return(env, idling=False)
    assert some < schedules and best_unmasked == pytest.approx(unmasked, rel=1e-12)
    rules = {
        rule: play(toy_queue(arrival_s, action="rule", rules=(rule,), overflow=overflow), lambda step: 0)
        for rule in CATALOGUE
    }
    assert max(rules.values()) <= optimum + 1e-12, rules
    assert rules["mc-sf"] == pytest.approx(unmasked, rel=1e-12)
    assert rules["wc-fcfs"] < optimum - 0.1
