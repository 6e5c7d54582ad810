"""What holds for every registered environment: the design's invariants, one test each.

Each is tested with the cheap arguments that its `EnvSpec` names. What is hidden from a scheduler (I11) has tests of its own, in
`test_hidden.py`.
"""

import copy
import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

import llmgym
from llmgym.profiles.profile import Provenance, Source, from_law
from llmgym.serving.rules import CATALOGUE
from llmgym.workloads import RequestClass, Rows, Workload, replay
from tests.core.drive import MODES, check_lanes_are_singles, legal_action, legal_actions, same
from tests.envs.populations import check_metrics

LANE_STEPS = 10_000

CASES = {env_id: llmgym.spec(env_id).test_cases() for env_id in llmgym.env_ids()}
"""Cheap arguments to test each id with, by a short name."""

FIRST_CASE_ONLY = {env_id: dict(itertools.islice(cases.items(), 4)) for env_id, cases in CASES.items()}


def _parameters(table: dict[str, dict[str, dict[str, Any]]]) -> list[Any]:
    return [
        pytest.param(env_id, kwargs, id=f"{env_id.partition('/')[2]}-{name}")
        for env_id, some in table.items()
        for name, kwargs in some.items()
    ]


every_case = pytest.mark.parametrize(
    ("env_id", "kwargs"),
    _parameters(CASES),
)
every_action_space = pytest.mark.parametrize(("env_id", "kwargs"), _parameters(FIRST_CASE_ONLY))
every_id = pytest.mark.parametrize("env_id", llmgym.env_ids())
seeds = st.integers(0, 2**63 - 1)


COUNTED = {
    "llmgym/KVQueue-v0": {"kv_used", "kv_planned", "distinct", "work_asked"},
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
    "llmgym/MemPlace-v0": {"bytes_sent", "energy_j", "work_asked"},
}
"""What `check_audit` checks of an environment beside requests and the clock: an audit that leaves it out proves nothing."""


@every_id
def test_an_audit_counts_what_the_invariants_need(env_id):
    env = make(env_id, next(iter(CASES[env_id].values())))
    env.reset(seed=0)
    audit = env.simulation.audit(env.lanes.state, 0)
    assert {"arrived", "clock_s"} | COUNTED[env_id] <= set(audit)


def make(env_id: str, kwargs: dict[str, Any], **more: Any) -> Any:
    return gymnasium.make(env_id, **kwargs, **more).unwrapped


def rollout(env: Any, seed: int | None, action_seed: int, most: int = 100_000):
    """One episode of random legal actions: yields (obs, reward, terminated, truncated, info), the reset first."""
    rng = np.random.default_rng(action_seed)
    obs, info = env.reset(seed=seed)
    yield obs, 0.0, False, False, info
    for _ in range(most):
        result = env.step(legal_action(env, info["action_mask"], rng))
        yield result
        info = result[4]
        if result[2] or result[3]:
            return


def check_audit(audit: dict[str, float], before: dict[str, float]) -> None:
    """I1, I2, I4, I5 and I10 on one recount of the raw arrays."""
    assert all(np.isfinite(value) for value in audit.values()), audit
    has = audit.keys().__contains__
    if has("arrived"):
        parts = [audit.get(part, 0.0) for part in ("waiting", "running", "done", "rejected")]
        # not exactly: a fluid has fractions
        assert audit["arrived"] == pytest.approx(sum(parts), rel=1e-12, abs=1e-9), audit
        assert min(parts) >= -1e-9
        assert audit["arrived"] >= before.get("arrived", 0) and audit["done"] >= before.get("done", 0)
    if has("distinct"):
        assert audit["distinct"] == audit.get("live", audit["arrived"]), audit
    for name in audit:
        if name.endswith("_counted"):
            assert audit[name] == audit[name.removesuffix("_counted")], (name, audit)
    if has("kv_used"):
        assert 0 <= audit["kv_used"] == audit["kv_resident"], audit
        assert audit.get("kv_fullest", audit["kv_used"]) <= audit["kv_capacity"], audit
    if has("kv_planned"):
        assert audit["kv_planned"] <= audit["kv_capacity"], audit
    if has("bytes_sent"):
        elsewhere = audit["bytes_received"] + audit["bytes_in_flight"]
        assert audit["bytes_sent"] == pytest.approx(elsewhere, rel=1e-9)
    if has("energy_j"):
        assert audit["energy_j"] >= before.get("energy_j", 0.0) >= 0.0
    if has("work_asked"):
        done_and_left = audit["work_done"] + audit["work_left"]
        assert audit["work_asked"] == pytest.approx(done_and_left, rel=1e-9, abs=1e-9), audit


@every_case
@settings(max_examples=4, deadline=None)
@given(seed=seeds, action_seed=seeds)
def test_counts_memory_time_bounds_and_return(env_id, kwargs, seed, action_seed):
    """I1, I2, I3, I4, I5, I7, I9, I10 after every step of an episode, and at least one action allowed (I8)."""
    env = make(env_id, {"invalid_action": "raise", **kwargs})
    clock, total, spent, audit = 0.0, 0.0, 0.0, {}
    start = None
    for obs, reward, terminated, truncated, info in rollout(env, seed, action_seed):
        assert np.isfinite(obs).all()
        assert obs in env.observation_space, obs
        assert type(reward) is float and type(terminated) is bool and type(truncated) is bool
        assert info["action_mask"].dtype == np.int8
        assert info["action_mask"].shape == (env.simulation.mask_size,)
        assert set(np.unique(info["action_mask"])) <= {0, 1}
        if isinstance(env.action_space, Discrete):
            assert info["action_mask"].any()
        before, audit = audit, env.simulation.audit(env.lanes.state, 0)
        check_audit(audit, before)
        start = audit["clock_s"] if start is None else start
        spent += info["dt"]
        assert info["dt"] >= 0.0 and audit["clock_s"] >= clock
        assert audit["clock_s"] == pytest.approx(start + spent, rel=1e-9, abs=1e-9)
        clock, total = audit["clock_s"], total + reward
    assert terminated or truncated, "no end after 100,000 steps"
    metrics = info["metrics"]
    assert set(metrics) == set(env.simulation.metric_names)
    check_metrics(env_id, env, metrics)
    assert metrics.get("invalid_actions", 0.0) == 0.0
    assert total == pytest.approx(env.simulation.expected_return(metrics), rel=1e-6, abs=1e-9)


@every_case
def test_metrics_have_no_value_before_there_is_anything_to_take_them_of(env_id, kwargs):
    """Right after a reset, and after one step: NaN exactly where nothing was counted, and a return that is a number all the
    same."""
    env = make(env_id, kwargs)
    _, info = env.reset(seed=3)
    metrics = env.lanes.metrics_now(0)
    check_metrics(env_id, env, metrics)
    assert np.isfinite(env.simulation.expected_return(metrics))
    env.step(legal_action(env, info["action_mask"], np.random.default_rng(0)))
    check_metrics(env_id, env, env.lanes.metrics_now(0))


@every_case
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@settings(max_examples=1, deadline=None)
@given(lanes=st.lists(seeds, min_size=1, max_size=8), action_seed=seeds)
def test_a_lane_is_the_single_environment(env_id, kwargs, mode, lanes, action_seed):
    """I6: bit for bit, over several episodes, in every autoreset mode."""
    check_lanes_are_singles(
        lambda: make(env_id, kwargs),
        lambda n, **more: gymnasium.make_vec(env_id, num_envs=n, **kwargs, **more),
        lanes,
        mode,
        -(-LANE_STEPS // len(lanes)),
        action_seed,
    )


def digest(env_id: str, kwargs: dict[str, Any]) -> str:
    """A hash of everything 8 lanes return in 300 steps."""
    envs = gymnasium.make_vec(env_id, num_envs=8, autoreset_mode=AutoresetMode.SAME_STEP, **kwargs)
    rng = np.random.default_rng(7)
    obs, infos = envs.reset(seed=11)
    summary = hashlib.sha256(obs.tobytes())
    for _ in range(300):
        actions = legal_actions(envs.single_action_space, infos["action_mask"], rng)
        obs, rewards, terminated, truncated, infos = envs.step(actions)
        for part in (obs, rewards, terminated, truncated, infos["dt"], infos["action_mask"]):
            summary.update(np.ascontiguousarray(part).tobytes())
        if "final_info" in infos:
            for name in envs.simulation.metric_names:
                summary.update(infos["final_info"]["metrics"][name].tobytes())
    return summary.hexdigest()


@every_id
def test_another_process_gets_the_same_bits(env_id):
    """I6, and the `module:id` form, which needs no import of the package."""
    cases = CASES[env_id]
    here = {name: digest(env_id, kwargs) for name, kwargs in cases.items()}
    code = (
        "import json, sys, gymnasium\n"
        "env_id, cases = json.loads(sys.argv[1])\n"
        "assert 'llmgym' not in sys.modules\n"
        "gymnasium.make('llmgym:' + env_id, **next(iter(cases.values()))).reset(seed=0)\n"
        "from tests.envs.test_every_env import digest\n"
        "print(json.dumps({name: digest(env_id, kwargs) for name, kwargs in cases.items()}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([env_id, cases])],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == here
    assert len(set(here.values())) == len(here)


@every_case
@settings(max_examples=2, deadline=None)
@given(seed=seeds, action_seed=seeds)
def test_every_unmasked_action_is_accepted_and_a_masked_one_is_safe(env_id, kwargs, seed, action_seed):
    """I8, by trying every action on copies of states along an episode."""
    env = make(env_id, kwargs)
    if not isinstance(env.action_space, Discrete):
        pytest.skip("every element of a continuous action space is allowed")
    strict = make(env_id, {**kwargs, "invalid_action": "raise"})
    states = rollout(env, seed, action_seed)
    strict_states = rollout(strict, seed, action_seed)
    for number, (*_, terminated, truncated, info) in enumerate(states):
        next(strict_states)
        if terminated or truncated:
            break
        if number % 23:
            continue
        for action, allowed in enumerate(info["action_mask"].tolist()):
            other, strict_other = copy.deepcopy(env), copy.deepcopy(strict)
            if allowed:
                same(list(other.step(action)[:4]), list(strict_other.step(action)[:4]))
                assert other.metrics().get("invalid_actions", 0.0) == 0.0
                continue
            with pytest.raises(llmgym.errors.InvalidAction, match="masked"):
                strict_other.step(action)
            obs, reward, *_ = other.step(action)
            assert obs in env.observation_space and np.isfinite(reward)
            assert other.metrics()["invalid_actions"] == 1.0
            check_audit(other.simulation.audit(other.lanes.state, 0), {})
            free = strict.lanes.buffers.mask[0]
            strict_other.step(int(np.flatnonzero(free)[0]))


@every_case
@settings(max_examples=3, deadline=None)
@given(seed=seeds, action_seed=seeds)
def test_a_return_with_masked_actions_is_still_its_metric(env_id, kwargs, seed, action_seed):
    """I9 when a policy knows no masks."""
    env = make(env_id, kwargs)
    env.reset(seed=seed)
    env.action_space.seed(action_seed % 2**32)
    total, done, steps = 0.0, False, 0
    while not done and steps < 20_000:
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        total, done, steps = total + reward, terminated or truncated, steps + 1
        assert obs in env.observation_space
    assert done, "no end after 20,000 steps"
    check_audit(env.simulation.audit(env.lanes.state, 0), {})
    assert total == pytest.approx(env.simulation.expected_return(info["metrics"]), rel=1e-6, abs=1e-9)


@every_action_space
@pytest.mark.filterwarnings("error")
def test_gymnasiums_checker(env_id, kwargs):
    check_env(gymnasium.make(env_id, **kwargs).unwrapped)


@every_action_space
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
    kwargs = next(iter(CASES[env_id].values()))
    envs = gymnasium.make_vec(env_id, num_envs=3, **kwargs)
    assert isinstance(envs, llmgym.core.env.LaneVectorEnv)
    obs, infos = envs.reset(seed=0)
    assert obs in envs.observation_space and envs.num_envs == 3
    assert gymnasium.make(env_id, **kwargs).observation_space == envs.single_observation_space
    assert infos["action_mask"].shape == (3, envs.simulation.mask_size)
    rng = np.random.default_rng(0)
    obs, *_ = envs.step(legal_actions(envs.single_action_space, infos["action_mask"], rng))
    assert obs in envs.observation_space


@every_id
@pytest.mark.parametrize(
    ("argument", "value"),
    [("scenario", "no-such"), ("render_mode", "hologram"), ("invalid_action", "no"), ("no_such_argument", 1)],
)
def test_a_bad_argument_is_named(env_id, argument, value):
    with pytest.raises((llmgym.errors.InvalidArgument, TypeError), match=argument):
        if argument == "render_mode":
            env_class = gymnasium.envs.registration.load_env_creator(gymnasium.spec(env_id).entry_point)
            env_class(render_mode=value)
        else:
            make(env_id, {argument: value})


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
    arrays = [*env.lanes.state, *env.lanes.buffers]

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
