"""SegmentedPrefill: a plain simulation of lists agrees, and the optimum of two requests is found."""

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest

from llmgym import baselines
from llmgym.envs.segmented.env import SegmentedPrefillEnv
from llmgym.envs.segmented.law import GIB
from llmgym.envs.segmented.modes import (
    answer_quality,
    kept_bytes,
    resident_bytes,
    rest_time_s,
    running_bytes,
    step_time_s,
    step_tokens,
)
from llmgym.envs.segmented.observing import kind_of
from llmgym.envs.segmented.state import (
    ADMIT,
    DECODING,
    EVICT,
    REJECT,
    RUN,
    WAIT,
)

ID = "llmgym/SegmentedPrefill-v0"


class Plain:
    """The same server, with lists and dictionaries; costs of a step come from `llmgym.envs.segmented.modes`."""

    def __init__(self, env: SegmentedPrefillEnv) -> None:
        self.config, self.modes = env.simulation.params.config[0], env.simulation.params.modes
        self.all = [
            {name: request[name].item() for name in ("arrival_s", "limit_s", "quality", "prompt", "output")}
            for request in env.lanes.state.request[0]
        ]
        for one in self.all:
            one |= {"done": 0, "made": 0, "mode": None, "evictions": 0}
        self.waiting = list(self.all)
        self.slots: list[dict[str, Any]] = []
        self.clock = self.held = 0.0
        self.value = self.lost = 0.0

    def holds(self, one: dict[str, Any]) -> int:
        mode = self.modes[one["mode"]]
        if one["made"]:
            return kept_bytes(mode, one["prompt"], int(self.config["output_most"]))
        return resident_bytes(mode, one["done"])

    def go(self, seconds: float, held: float) -> float:
        self.clock += seconds
        self.held += seconds * held / GIB
        return -float(self.config["memory_weight"]) * seconds * held / GIB

    def finish(self, one: dict[str, Any]) -> float:
        ttft = one["first_s"] - one["arrival_s"]
        late = max(0.0, ttft / one["limit_s"] - 1.0)
        if one["output"] > 1:
            tpot = (self.clock - one["first_s"]) / (one["output"] - 1)
            late = max(late, tpot / float(self.config["tpot_limit_s"]) - 1.0)
        quality = answer_quality(self.modes[one["mode"]], one["prompt"], int(self.config["output_most"]))
        self.slots.remove(one)
        value = max(-1.0, 1.0 - late)
        self.value += value
        return value - float(self.config["quality_weight"]) * max(0.0, one["quality"] - quality)

    def act(self, action: int) -> float:
        kind, which, chosen = kind_of(self.config, action)
        here = [one for one in self.waiting if one["arrival_s"] <= self.clock]
        if kind == ADMIT:
            one = here[which]
            self.waiting.remove(one)
            one["mode"] = chosen
            self.slots.append(one)
            return 0.0
        if kind == REJECT:
            self.waiting.remove(here[which])
            return -float(self.config["reject_cost"])
        if kind == EVICT:
            one = self.slots.pop(which)
            one |= {"done": 0, "mode": None, "evictions": one["evictions"] + 1}
            self.waiting = sorted([*self.waiting, one], key=lambda x: x["arrival_s"])
            return 0.0
        if kind == WAIT:
            until = min(one["arrival_s"] for one in self.waiting if one["arrival_s"] > self.clock)
            return self.go(until - self.clock, sum(map(self.holds, self.slots)))
        if kind == DECODING:
            batch = [one for one in self.slots if one["made"]]
            tokens = min([int(self.config["decode_tokens"]), *(one["output"] - one["made"] for one in batch)])
            read = int(self.config["weights_bytes"]) + sum(map(self.holds, batch))
            reward = self.go(
                tokens * read / float(self.config["bytes_per_s"]), sum(map(self.holds, self.slots))
            )
            for one in batch:
                one["made"] += tokens
                if one["made"] == one["output"]:
                    reward += self.finish(one)
            return reward
        one = self.slots[which]
        mode = self.modes[one["mode"]]
        n = step_tokens(mode, one["prompt"], one["done"])
        need = running_bytes(mode, one["prompt"], one["done"])
        if one["done"] + n == one["prompt"]:
            need = max(need, kept_bytes(mode, one["prompt"], int(self.config["output_most"])))
        need += sum(self.holds(other) for other in self.slots if other is not one)
        if need > int(self.config["room_bytes"]):
            self.slots.remove(one)
            self.lost += 1
            return -float(self.config["lost_cost"])
        reward = self.go(step_time_s(mode, one["prompt"], one["done"]), need)
        one["done"] += n
        if one["done"] == one["prompt"]:
            one |= {"first_s": self.clock, "made": 1}
            if one["output"] == 1:
                reward += self.finish(one)
        return reward

    def settle(self) -> bool:
        """Whether it is over; an empty server goes on to the next arrival."""
        if not self.waiting and not self.slots:
            return True
        if not self.slots and all(one["arrival_s"] > self.clock for one in self.waiting):
            self.clock = min(one["arrival_s"] for one in self.waiting)
        return False


@pytest.mark.parametrize(
    "kwargs",
    [
        {"scenario": "small", "requests": 14},
        {"scenario": "stress", "requests": 14, "most_lost": 14, "load": 3.0},
        {"scenario": "real", "requests": 14, "output_mean": 1.0},
    ],
)
def test_a_plain_simulation_agrees(kwargs: dict[str, Any]) -> None:
    """Random choices: the same rewards, clock, memory and slots at every step."""
    env = SegmentedPrefillEnv(**kwargs)
    rng = np.random.default_rng(3)
    kinds: set[int] = set()
    for seed in range(4):
        _, info = env.reset(seed=seed)
        plain, ended = Plain(env), False
        while not ended:
            legal = np.flatnonzero(info["action_mask"])
            what = [kind_of(plain.config, int(action))[0] for action in legal]
            # rejections and evictions are rare
            weights = np.array([0.05 if kind in (REJECT, EVICT) else 1.0 for kind in what])
            action = int(rng.choice(legal, p=weights / weights.sum()))
            kinds.add(kind_of(plain.config, action)[0])
            expected = plain.act(action)
            over = plain.settle()
            _, reward, ended, cut, info = env.step(action)
            state = env.lanes.state
            assert reward == pytest.approx(expected, rel=1e-9, abs=1e-12) and not cut
            assert ended == over
            assert state.lane[0]["clock_s"] == pytest.approx(plain.clock, rel=1e-12)
            assert state.lane[0]["resident_bytes"] == sum(map(plain.holds, plain.slots))
            assert state.slot[0, : len(plain.slots)].tolist() == [plain.all.index(one) for one in plain.slots]
        assert info["metrics"]["value"] == pytest.approx(plain.value)
        assert info["metrics"]["lost"] == plain.lost
        assert info["metrics"]["memory_gib_s"] == pytest.approx(plain.held, rel=1e-9)
    assert kinds == {ADMIT, RUN, EVICT, REJECT, DECODING, WAIT}


def values(env: SegmentedPrefillEnv, plan: tuple[tuple[int, int | None], ...]) -> float:
    """Return of prefilling requests one after the other, (request, mode) each; None: rejected. By the closed forms."""
    requests, modes = env.lanes.state.request[0], env.simulation.params.modes
    clock, total = 0.0, 0.0
    for n, mode in plan:
        request = requests[n]
        if mode is None:
            total -= 1.0
            continue
        clock = max(clock, float(request["arrival_s"])) + rest_time_s(modes[mode], int(request["prompt"]), 0)
        late = max(0.0, (clock - float(request["arrival_s"])) / float(request["limit_s"]) - 1.0)
        lack = max(0.0, float(request["quality"]) - answer_quality(modes[mode], int(request["prompt"]), 1))
        total += max(-1.0, 1.0 - late) - 10.0 * lack
    return total


def best(env: SegmentedPrefillEnv) -> float:
    """The best return of all sequences of actions, tried one after the other on the kernels."""
    top = -math.inf
    for action in np.flatnonzero(env.action_masks()).tolist():
        other = copy.deepcopy(env)
        _, reward, ended, cut, _ = other.step(action)
        top = max(top, reward + (0.0 if ended or cut else best(other)))
    return top


@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_of_two_requests(seed: int) -> None:
    """I12. Two requests at once, of different lengths, each in one of two modes, in either order, or rejected.

    Every sequence of actions is tried; the best one is the best of the closed forms, and the clairvoyant finds it.
    """
    kwargs: dict[str, Any] = {
        "scenario": "paper",
        "modes": ("full", "streaming"),
        "requests": 2,
        "load": 1e9,
        "window": 2,
        "slots": 2,
        "evictions": 0,
        "output_mean": 1.0,
        "output_most": 1,
        "prompt_most": 65_536,
        "limit_s": 0.0,
        "memory_weight": 0.0,
        "classes": ((1.0, 0.95, 1.2),),
    }
    env = SegmentedPrefillEnv(**kwargs)
    env.reset(seed=seed)
    plans = [
        values(env, tuple(zip(order, modes, strict=True)))
        for order in ((0, 1), (1, 0))
        for modes in itertools.product((0, 1, None), repeat=2)
    ]
    top = best(env)
    assert top == pytest.approx(max(plans), abs=1e-6)
    policy = baselines.make("clairvoyant", env)
    obs, info = env.reset(seed=seed)
    ended, total = False, 0.0
    while not ended:
        obs, reward, ended, _, info = env.step(int(policy.act(obs[None], info["action_mask"][None])[0]))
        total += reward
    assert total == pytest.approx(top, abs=1e-6)


MODE_ALONE: dict[str, Any] = {
    "scenario": "paper",
    "decide": "mode",
    "modes": ("full", "streaming"),
    "load": 2.0,
    "window": 1,
    "slots": 1,
    "evictions": 0,
    "output_mean": 1.0,
    "output_most": 1,
    "prompt_most": 65_536,
    "limit_s": 0.0,
    "memory_weight": 0.0,
    "classes": ((1.0, 0.95, 1.2),),
}
"""One request after the other, in one of two modes or rejected; nothing is decoded."""


def optimum(env: SegmentedPrefillEnv) -> float:
    """The best return of all choices of modes, first in, first out, by the closed forms: 3^n plans."""
    count = env.simulation.scenario.requests
    return max(
        values(env, tuple(enumerate(modes))) for modes in itertools.product((0, 1, None), repeat=count)
    )


@pytest.mark.parametrize("seed", range(2))
def test_the_optimum_of_modes_is_that_of_all_sequences_of_actions(seed: int) -> None:
    """Three requests: the kernels, waiting included, give what the closed forms do."""
    env = SegmentedPrefillEnv(**MODE_ALONE, requests=3)
    env.reset(seed=seed)
    expected = optimum(env)
    assert best(env) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", [1, 4])
def test_no_rule_is_above_the_optimum_of_eight_requests(seed: int) -> None:
    """All 6,561 plans of an overloaded server; the clairvoyant, a roll-out, lies between its rules and the optimum."""
    env = SegmentedPrefillEnv(**MODE_ALONE, requests=8)
    env.reset(seed=seed)
    total = {"optimum": optimum(env)}
    for name in ("clairvoyant", "triage", "triage:short=10,give_up=0.3", "memory-greedy"):
        policy = baselines.make(name, env)
        obs, info = env.reset(seed=seed)
        ended, total[name] = False, 0.0
        while not ended:
            obs, reward, ended, _, info = env.step(int(policy.act(obs[None], info["action_mask"][None])[0]))
            total[name] += reward
    rules = max(total["triage"], total["triage:short=10,give_up=0.3"])
    assert total["optimum"] + 1e-6 >= total["clairvoyant"] >= rules - 1e-6
    assert total["optimum"] > max(rules, total["memory-greedy"]) + 0.1
