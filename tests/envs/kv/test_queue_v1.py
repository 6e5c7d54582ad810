"""KVQueue-v1: the same engine as a replay, its choices and what they do, its rewards, conversations, and what it refuses."""

import math
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmgym
from llmgym import profiles, workloads
from llmgym.core.memory import copy_lane
from llmgym.envs.kv.queue_v1.cases import CASES
from llmgym.envs.kv.queue_v1.env import KVQueue
from llmgym.envs.kv.queue_v1.state import NOBODY
from llmgym.errors import InvalidAction, InvalidArgument, UnknownName
from llmgym.serving.engine import follow, plan
from llmgym.serving.overflow import VICTIMS
from llmgym.serving.replay import replay
from llmgym.serving.state import NO_KEY
from llmgym.serving.targets import Target, attained
from llmgym.workloads import Conversations, RequestClass, Rows, Workload, exponential_think, fixed

ID = "llmgym/KVQueue-v1"
FCFS = "vllm:watermark=0"
"""First come, first served, as vLLM has it by default."""
LAWS = "h100/llama-3.1-8b"
AT_ONCE = "vllm-0.24"
"""A host option without launches that begin before a step: a replay lets these delay tokens, the environment does not."""


def make(case: str = "pick", **kwargs: Any) -> Any:
    return gymnasium.make(ID, **{**CASES[case], **kwargs}).unwrapped


def front(env: Any, mask: Any) -> int:
    """vLLM by hand: the front of the line while it fits, else run; the youngest where the batch does not fit."""
    if env.lanes.state.lane[0]["short"]:
        return 1 + int(env.simulation.params.config["visible"][0])
    return int(mask[1])


def at_random(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return lambda env, mask: int(rng.choice(np.flatnonzero(mask)))


def play(env: Any, policy: Any, seed: int = 0) -> tuple[float, dict[str, float]]:
    """One episode: its return and its metrics."""
    _, info = env.reset(seed=seed)
    total, end = 0.0, False
    while not end:
        _, reward, terminated, truncated, info = env.step(policy(env, info["action_mask"]))
        total, end = total + reward, terminated or truncated
    return total, info["metrics"]


def by_rule(env: Any, mask: Any) -> int:
    return 0


def requests_of(env: Any) -> Any:
    return env.lanes.state.request[0, : env.lanes.state.lane[0]["requests"]].copy()


def residents_of(env: Any) -> list[int]:
    state = env.lanes.state
    return state.resident[0, : state.lane[0]["residents"]]["request"].tolist()


def line_of(env: Any, row: int = 0) -> list[int]:
    line = env.lanes.state.queue[0, row]
    return line[2 + line[0] : 2 + line[1]].tolist()


# -- the engine is that of vLLM and of a replay ----------------------------------------------------------------------


def rows_by_themselves(seed: int, n: int = 150) -> Rows:
    rng = np.random.default_rng(seed)
    return Rows(
        np.cumsum(rng.exponential(0.05, n)),
        rng.integers(1, 500, n),
        np.append(rng.integers(1, 500, n - 1), 1),
    )


ENGINE: dict[str, Any] = {"kv_capacity": 2_048, "budget": 512, "chunk": 512, "seats": 40, "block": 16}


def on_rows(rows: Rows, scheduling: str, **kwargs: Any) -> Any:
    workload = Workload("x", workloads.replay(rows, from_start=True), (RequestClass(rows=rows),))
    return gymnasium.make(
        ID,
        workload=workload,
        rate_rps=workload.mean_rate_rps,
        requests=len(rows),
        information="exact",
        scheduling=scheduling,
        horizon_s=1e6,
        waiting_cap=2**20,
        **{**ENGINE, "host": AT_ONCE, **kwargs},
    ).unwrapped


@pytest.mark.parametrize("scheduling", ["sync", "async", "async-held"])
def test_picking_the_front_by_hand_is_the_rule_and_the_replay(scheduling: str) -> None:
    for seed in range(2):
        rows = rows_by_themselves(seed)
        hand, rule = on_rows(rows, scheduling), on_rows(rows, scheduling, action="rule", rules=(FCFS,))
        _, one = play(hand, front)
        _, other = play(rule, by_rule)
        profile = profiles.load(LAWS, dense="sustained", host=AT_ONCE)
        found = replay(rows, profile, rule=FCFS, scheduling=scheduling, **ENGINE)
        assert one["preemptions"] == other["preemptions"] == found.preemptions > 10
        assert one["batches"] == other["batches"] == found.batches
        for env in (hand, rule):
            requests = requests_of(env)
            np.testing.assert_array_equal(found.first_s, rows.arrival_s + requests["ttft_s"].astype(float))
            np.testing.assert_array_equal(found.last_s, rows.arrival_s + requests["e2e_s"].astype(float))
            assert one["invalid_actions"] == 0


def test_some_of_those_that_are_thrown_out_had_their_last_token() -> None:
    """vLLM, which plans ahead, does not know either; without them among the candidates nobody could do what it does."""
    env, gone = make(), 0
    for seed in range(4):
        _, info = env.reset(seed=seed)
        end = False
        while not end:
            state = env.lanes.state
            action = front(env, info["action_mask"])
            if state.lane[0]["short"]:
                gone += state.resident[0, state.lane[0]["residents"] - 1]["gone"]
            _, _, terminated, truncated, info = env.step(action)
            end = terminated or truncated
    assert gone > 0


def test_a_step_with_a_prompt_takes_the_launches_of_the_host_from_its_plan_on() -> None:
    """Two requests, each alone, whose first step is planned when it begins."""
    rows = Rows([0.0, 10.0], [100, 100], [3, 3])
    profile = profiles.load(LAWS, dense="sustained", host="vllm-0.24-steps")
    for scheduling in ("sync", "async-held"):
        env = on_rows(rows, scheduling, host="vllm-0.24-steps", action="rule", rules=(FCFS,))
        play(env, by_rule)
        requests, floor_s = requests_of(env), env.simulation.params.config[0]["floor_s"]
        found = replay(rows, profile, rule=FCFS, scheduling=scheduling, **ENGINE)
        np.testing.assert_array_equal(found.last_s, rows.arrival_s + requests["e2e_s"].astype(float))
        assert (floor_s > 0.0) == (scheduling == "async-held")  # else the cost of a step holds them
        if floor_s > 0.0:
            np.testing.assert_allclose(requests["ttft_s"], floor_s, rtol=1e-6)


def test_conversations_with_cached_prefixes_are_those_of_a_replay() -> None:
    """Blocks found again, and turns that wait for answers. Rows begin at 0 s, so that clocks differ in the last bits."""
    shared = {"host": AT_ONCE, "requests": 60, "kv_capacity": 16_384}
    hand, rule = make("sessions", **shared), make("sessions", **shared, action="rule", rules=(FCFS,))
    hand.reset(seed=1)
    drawn = requests_of(hand)
    turn = np.arange(len(drawn)) - np.searchsorted(drawn["session"], drawn["session"])
    rows = Rows(
        drawn["arrival_s"],
        drawn["prompt"],
        drawn["output"],
        session=drawn["session"],
        turn=turn,
        think_s=drawn["think_s"],
    )
    chosen = rule.simulation.scenario
    found = replay(
        rows,
        rule.simulation.profile,
        rule=FCFS,
        prefix_caching=True,
        **{
            name: getattr(chosen, name)
            for name in ("kv_capacity", "budget", "chunk", "seats", "block", "scheduling", "first_token")
        },
    )
    for env, policy in ((hand, front), (rule, by_rule)):
        _, metrics = play(env, policy, seed=1)
        requests = requests_of(env)
        np.testing.assert_allclose(found.first_s - found.arrival_s, requests["ttft_s"], rtol=1e-5)
        np.testing.assert_allclose(found.last_s - found.arrival_s, requests["e2e_s"], rtol=1e-5)
        assert metrics["preemptions"] == found.preemptions > 0
        assert env.lanes.state.lane[0]["reused"] == found.reused > 0


# -- what an episode is worth ----------------------------------------------------------------------------------------

ENDINGS: dict[str, dict[str, Any]] = {
    "served": {},
    "unstable": {"waiting_cap": 12, "load": 3.0},
    "horizon": {"horizon_s": 0.6, "load": 2.0},
}


@pytest.mark.parametrize("reward", ["latency", "goodput"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_rewards_add_up_to_what_the_requests_say(reward: str, ending: str) -> None:
    promised = Target(0.3, 0.05, 2.0, 0.8)
    env = make("pick", reward=reward, late_cost=3.0, targets=(promised,), **ENDINGS[ending])
    total, metrics = play(env, at_random(1), seed=5)
    state, chosen = env.lanes.state, env.simulation.scenario
    episode, requests = state.lane[0], requests_of(env)
    done = requests["e2e_s"] >= 0.0
    left = sorted(set(residents_of(env)) | set(line_of(env)))
    left = [number for number in left if not done[number]]
    assert (len(left) > 0) == (ending != "served")
    assert metrics["unstable"] == (ending == "unstable")
    until_s = chosen.horizon_s if ending == "unstable" and reward == "latency" else episode["clock_s"]
    stays_s = requests["e2e_s"][done].sum() + (until_s - requests["arrival_s"][left]).sum()
    late = ((requests["e2e_s"] > promised.e2e_s).sum() + len(left)) / len(requests)
    assert metrics["latency_mean_s"] == pytest.approx(stays_s / len(requests), rel=1e-5)
    assert metrics["late"] == pytest.approx(late) and late > 0.0
    rows = Rows(requests["arrival_s"], requests["prompt"], requests["output"])
    first_s, last_s = (
        np.where(done, requests["arrival_s"] + requests[name], np.nan) for name in ("ttft_s", "e2e_s")
    )
    times = SimpleNamespace(arrival_s=requests["arrival_s"], first_s=first_s, last_s=last_s)
    assert (
        metrics["goodput"] == pytest.approx(attained(rows, times, [promised]).weighted)
        and metrics["goodput"] > 0.0
    )
    value = metrics["goodput"] if reward == "goodput" else -metrics["latency_mean_s"] - 3.0 * metrics["late"]
    assert total == pytest.approx(value, rel=1e-9)
    assert total == pytest.approx(env.simulation.expected_return(metrics), rel=1e-9)


def test_a_class_counts_with_its_weight() -> None:
    env = make("tiers", targets=(Target(0.5, weight=3.0), Target(math.inf, weight=0.0)))
    total, metrics = play(env, front, seed=3)
    requests = requests_of(env)
    first = requests["request_class"] == 0
    assert 0 < first.sum() < len(requests)
    assert total == metrics["goodput"] == pytest.approx((requests["ttft_s"][first] <= 0.5).mean())


# -- choices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_victim_is_the_one_that_was_chosen(seed: int) -> None:
    env, policy = make(running=6), at_random(seed)
    _, info = env.reset(seed=seed)
    rows, evicted, end = 6, set(), False
    while not end:
        state = env.lanes.state
        episode = state.lane[0]
        short, before = episode["short"], residents_of(env)
        preemptions, gone = int(episode["preemptions"]), state.resident[0]["gone"].copy()
        action = policy(env, info["action_mask"])
        index = state.candidate[0, action - 1] if action else NOBODY
        _, _, terminated, truncated, info = env.step(action)
        end = terminated or truncated
        if not short:
            continue
        assert action > rows  # neither running the batch nor an admission
        evicted.add(len(before) - 1 - index)
        assert episode["preemptions"] == preemptions + 1
        chosen, others = before[index], before[:index] + before[index + 1 :]
        assert chosen not in residents_of(env)
        assert (chosen in line_of(env)) == (gone[index] == 0)
        done = state.request[0]["e2e_s"] >= 0.0
        now = residents_of(env)
        assert [number for number in others if number in now or not done[number]] == now
        if info["dt"] == 0.0:
            assert episode["short"] and now == others
        else:
            assert episode["batch_used"] <= env.simulation.scenario.kv_capacity
    assert len(evicted) > 3


@settings(max_examples=12)
@given(st.sampled_from(["pick", "sync", "goodput", "overload", "sessions"]), st.integers(0, 2**31))
def test_random_choices_come_to_an_end_within_the_cache(case: str, seed: int) -> None:
    env, policy = make(case), at_random(seed)
    capacity = env.simulation.scenario.kv_capacity
    _, info = env.reset(seed=seed)
    state, end, still = env.lanes.state, False, 0
    while not end:
        _, _, terminated, truncated, info = env.step(policy(env, info["action_mask"]))
        end = terminated or truncated
        still = 0 if info["dt"] > 0.0 else still + 1
        episode = state.lane[0]
        # admissions, marks and victims take no time, and end
        assert still <= 3 * (int(episode["residents"]) + int(episode["waiting"])) + 3
        assert end or info["action_mask"].any()
        assert episode["used"] <= capacity and episode["kv_peak"] <= capacity
        assert episode["short"] == 1 or episode["used"] + episode["growth"] <= capacity
    metrics = info["metrics"]
    assert metrics["invalid_actions"] == 0
    assert (
        episode["done"] == episode["requests"]
        or terminated
        or episode["clock_s"] >= env.simulation.scenario.horizon_s
    )


def fits(env: Any, number: int) -> bool:
    """vLLM's check, from the blocks that residents hold and fill: seats, budget, and the whole prompt in the cache."""
    state, chosen = env.lanes.state, env.simulation.scenario
    episode, request = state.lane[0], state.request[0, number]
    held = chosen.scheduling == "async-held"
    assert not held or episode["leaving"] == state.resident[0, : episode["residents"]]["gone"].sum()
    if episode["short"] or episode["residents"] >= chosen.seats or episode["budget_left"] == 0:
        return False
    prompt = int(request["prompt"] + request["kept"])
    first = min(prompt, chosen.chunk, int(episode["budget_left"]))
    blocks = -(-(first if episode["residents"] == 0 else prompt) // chosen.block)
    return int(episode["used"] + episode["growth"]) + blocks * chosen.block <= chosen.kv_capacity


@pytest.mark.parametrize("case", ["pick", "goodput", "overload"])
def test_candidates_are_the_first_of_each_list_and_open_where_the_engine_admits(case: str) -> None:
    env, policy = make(case), at_random(0)
    obs, info = env.reset(seed=4)
    lists, slots = len(env.simulation.lists), int(env.simulation.params.config["visible"][0])
    waiting, running = env.layout.tables()
    twice, closed, end = 0, 0, False
    while not end:
        state = env.lanes.state
        rows = state.candidate[0, :slots].reshape(lists, -1)
        shown: set[int] = set()
        for row, ids in enumerate(rows.tolist()):
            first = line_of(env, row)[: len(ids)]
            twice += sum(number in shown for number in first)
            assert ids == [*(NOBODY if n in shown else n for n in first), *[NOBODY] * (len(ids) - len(first))]
            shown |= set(first)
        for k, number in enumerate(rows.ravel().tolist()):
            assert info["action_mask"][1 + k] == (number != NOBODY and fits(env, number))
            closed += number != NOBODY and not info["action_mask"][1 + k]
        for table, actions in ((waiting, 1), (running, 1 + slots)):
            assert table.actions == (actions,)
            told = obs[table.entries()]
            there = state.candidate[0, actions - 1 :][: table.rows] != NOBODY
            np.testing.assert_array_equal(told[:, 0], there)
            if table is waiting:
                np.testing.assert_array_equal(told[:, -1], info["action_mask"][1 : 1 + slots])
        obs, _, terminated, truncated, info = env.step(policy(env, info["action_mask"]))
        end = terminated or truncated
    assert closed > 0 and (twice > 0) == (lists > 1)


def test_running_candidates_are_the_youngest() -> None:
    env, most = make(), 0
    _, info = env.reset(seed=1)
    slots, end = int(env.simulation.params.config["visible"][0]), False
    while not end:
        state = env.lanes.state
        n, short = int(state.lane[0]["residents"]), int(state.lane[0]["short"])
        youngest = [n - 1 - k if k < n else NOBODY for k in range(4)]
        assert state.candidate[0, slots:].tolist() == youngest
        # without cached prefixes there is nothing to mark
        assert info["action_mask"][1 + slots :].tolist() == [int(short and i != NOBODY) for i in youngest]
        most = max(most, n)
        _, _, terminated, truncated, info = env.step(front(env, info["action_mask"]))
        end = terminated or truncated
    assert most > 4


def test_a_masked_action_runs_the_batch_or_throws_out_the_youngest() -> None:
    env, masked = make(invalid_cost=0.25), {0: 0, 1: 0}
    _, info = env.reset(seed=2)
    total, end = 0.0, False
    while not end:
        state = env.lanes.state
        short, youngest = int(state.lane[0]["short"]), residents_of(env)[-1:]
        refused = np.flatnonzero(info["action_mask"] == 0)
        action = front(env, info["action_mask"])
        if len(refused) and (short or (masked[0] < 5 and residents_of(env))):
            action = int(refused[0 if short else -1])
            masked[short] += 1
        before = len(residents_of(env))
        _, reward, terminated, truncated, info = env.step(action)
        total, end = total + reward, terminated or truncated
        if short:
            assert youngest[0] not in residents_of(env)
        elif action in refused:
            assert info["dt"] > 0.0 and len(residents_of(env)) <= before
    metrics = info["metrics"]
    assert masked[0] == 5 and masked[1] > 5
    assert metrics["invalid_actions"] == sum(masked.values()) == 4.0 * metrics["penalty"]
    assert total == pytest.approx(env.simulation.expected_return(metrics))
    strict = make(invalid_action="raise")
    strict.reset(seed=0)
    with pytest.raises(InvalidAction, match="masked"):
        strict.step(0)


# -- conversations ---------------------------------------------------------------------------------------------------

TALK = Workload(
    "talk",
    workloads.regular(0.5),
    (RequestClass(prompt=fixed(64), output=fixed(16)),),
    conversations=Conversations(fixed(2), exponential_think(3.0), 1_000, fixed(16)),
)
"""Two turns: 64 tokens and an answer of 16, then 16 more and an answer. 79 of the first 80 are in the cache when it ends."""


def talking(scheduling: str = "sync") -> Any:
    return make(
        workload=TALK,
        rate_rps=0.5,
        requests=4,
        kv_capacity=1_024,
        longest=1_000,
        horizon_s=1e3,
        prefix_caching=True,
        scheduling=scheduling,
    )


@pytest.mark.parametrize("scheduling", ["sync", "async-held"])
def test_what_is_marked_is_forgotten_and_handed_out_next(scheduling: str) -> None:
    for marks in (False, True):
        env = talking(scheduling)
        _, info = env.reset(seed=0)
        state, mark = env.lanes.state, 1 + int(env.simulation.params.config["visible"][0])
        _, _, _, _, info = env.step(1)
        assert residents_of(env) == [0] and info["action_mask"][mark] == 1
        if marks:
            _, reward, _, _, info = env.step(mark)
            assert reward == 0.0 == info["dt"] and residents_of(env) == [0]
            assert info["action_mask"][mark] == 0  # it is marked
        resident = state.resident[0, 0]
        assert resident["blocks"] == 4
        held = state.prefix.held[0, resident["row"], :4].tolist()
        while not state.lane[0]["waiting"]:
            _, _, _, _, info = env.step(0)
        assert residents_of(env) == []
        assert (state.prefix.block[0, held]["key"] == NO_KEY).all() == marks
        _, _, _, _, info = env.step(1)
        resident = state.resident[0, 0]
        now = state.prefix.held[0, resident["row"], : resident["blocks"]].tolist()
        assert set(held) <= set(now) if marks else state.request[0, resident["request"]]["session"] == 1
        end = False
        while not end:
            _, _, end, _, info = env.step(front(env, info["action_mask"]))
        # each second turn finds the four blocks that are full, of which the marked conversation has none
        assert state.lane[0]["reused"] == (64 if marks else 128)
        assert info["metrics"]["reused"] == pytest.approx(state.lane[0]["reused"] / (2 * 64 + 2 * 96))


def test_a_turn_arrives_when_the_answer_before_it_was_thought_over() -> None:
    env = make("sessions", host=AT_ONCE)
    play(env, at_random(0), seed=2)
    requests = requests_of(env)
    assert (requests["e2e_s"] >= 0.0).all()
    before = np.flatnonzero(requests["follower"] > 0)
    after = requests[requests["follower"][before]]
    answered_s = requests["arrival_s"][before] + requests["e2e_s"][before]
    assert len(before) > 10 and (after["think_s"] > 0.0).all()
    np.testing.assert_allclose(after["arrival_s"], answered_s + after["think_s"], rtol=1e-6)
    assert (np.diff(requests["arrival_s"][np.argsort(requests["ticket"])]) >= 0.0).all()


# -- rules and wrong input -------------------------------------------------------------------------------------------


def test_class_budgets_are_derived() -> None:
    (rule,) = make("rule", rules=("class-budgets",)).simulation.rules
    assert len(rule.class_budgets) == 1 and rule.class_budgets[0] >= 1


@pytest.mark.parametrize("victim", VICTIMS)
def test_rules_choose_victims(victim: str) -> None:
    _, metrics = play(make("rule", rules=(f"vllm:watermark=0,victim={victim}",)), by_rule)
    assert metrics["preemptions"] > 0 and metrics["completed"] == 60


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("pick", {"slots": 5}, "slots=5: expected a multiple of the 2 lists"),
        ("pick", {"slots": 0}, "slots=0: expected a whole number"),
        ("pick", {"running": 0}, "running=0: expected a whole number"),
        ("pick", {"lists": ()}, r"lists=\(\): expected"),
        ("pick", {"lists": ("arrival", "arrival")}, "and each once"),
        ("pick", {"lists": ("youngest",)}, "unknown lists 'youngest'. Known: arrival"),
        (
            "tiers",
            {"targets": (Target(1.0),)},
            "targets: 1 were given, and workload 'chat-and-batch' has 2 classes",
        ),
        ("pick", {"targets": (1.0,)}, r"targets=\(1.0,\): expected a tuple"),
        ("pick", {"overflow": "pause"}, "overflow='pause': expected 'recompute'; version 0 has 'pause'"),
        ("pick", {"overflow": "pause", "block": 1}, "overflow='pause': expected 'recompute'"),
        ("pick", {"rules": ("vllm",)}, "needs action='rule', not 'pick'"),
        ("pick", {"every": 2}, "every=2: more than 1 needs action='rule', not 'pick'"),
        ("pick", {"host": "vllm-9"}, "unknown host option of profile paper/tiny 'vllm-9'. Known: default"),
        ("pick", {"dense": "cold"}, "unknown dense option of profile paper/tiny 'cold'. Known: default"),
        ("pick", {"kv_capacity": 15}, "kv_capacity=15: less than one block of 16 tokens"),
        ("pick", {"block": 24}, "block=24: expected a power of two"),
        ("pick", {"late_cost": -1.0}, "late_cost=-1.0: expected"),
        ("rule", {"rules": ("vllm", "vllm")}, "and each once"),
        ("rule", {"rules": ("alpha-clearing",), "prefix_caching": True}, "not rule='alpha-clearing'"),
        ("rule", {"rules": ("sarathi",), "prefix_caching": True}, "not rule='sarathi'"),
    ],
)
def test_what_cannot_be_meant_is_told(case: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidArgument, UnknownName), match=message):
        KVQueue(**{**CASES[case], **changes})


# -- the clairvoyant -------------------------------------------------------------------------------------------------

FEW: dict[str, Any] = {"requests": 25, "slots": 4, "running": 3, "information": "exact"}


def test_rollout_does_at_least_as_well_as_the_rule_it_goes_on_with() -> None:
    env = gymnasium.make(ID, **{**CASES["pick"], **FEW})
    policy = llmgym.baselines.make("rollout:tail=2", env)
    tail = make("rule", **FEW, rules=(env.unwrapped.simulation.rules[2],))
    won = []
    for seed in range(3):
        total, metrics = play(
            env.unwrapped, lambda env, mask: int(policy.act(np.zeros((1, 1)), mask[None])[0]), seed
        )
        assert metrics["invalid_actions"] == 0
        won.append(total - play(tail, by_rule, seed)[0])
    assert policy.privileged and np.mean(won) > 0.0


def test_rollout_knows_what_comes_after_an_action() -> None:
    """What it says of an action is what the environment gives for it, and then for the rule in a copy of the state."""
    env, rule = gymnasium.make(ID, **{**CASES["pick"], **FEW}), make("rule", **FEW)
    policies: list[Any] = [llmgym.baselines.make(f"rollout:tail={tail}", env) for tail in range(4)]
    rng, taken, compared = np.random.default_rng(0), [], 0
    _, info = env.reset(seed=0)
    while compared < 30:
        allowed = np.flatnonzero(info["action_mask"])
        if len(allowed) > 2 and rng.random() < 0.2:
            tail = int(rng.integers(4))
            for action, told in zip(allowed, policies[tail].worth(0, allowed), strict=True):
                other = make("pick", **FEW)
                other.reset(seed=0)
                for before in taken:
                    other.step(before)
                _, total, terminated, truncated, _ = other.step(int(action))
                rule.reset(seed=0)
                state, params = rule.lanes.state, rule.simulation.params
                copy_lane(other.lanes.state, 0, state)
                state.lane[0]["rule"] = tail
                follow(state, params, 0, tail)
                if state.lane[0]["short"]:
                    plan(state, params, 0)
                while not (terminated or truncated):
                    _, reward, terminated, truncated, _ = rule.step(tail)
                    total += reward
                assert told == pytest.approx(total, abs=1e-9)
                compared += 1
        taken.append(int(rng.choice(allowed)))
        _, _, terminated, truncated, info = env.step(taken[-1])
        assert not (terminated or truncated)


def test_rollout_needs_choices() -> None:
    env = gymnasium.make(ID, **CASES["rule"])
    with pytest.raises(InvalidArgument, match="policy 'rollout' needs action='pick', not 'rule'"):
        llmgym.baselines.make("rollout", env)
