"""AFDRatio request by request: slots, drains and pipeline against a plain simulation."""

from typing import Any

import numpy as np
import pytest

from llmgym.core.rng import integer, substream, uniform
from llmgym.envs.afd.ratio.env import AFDRatioEnv, AFDRatioVectorEnv
from llmgym.envs.afd.ratio.epoch import AGES, REQUESTS
from llmgym.envs.afd.requests import load
from tests.envs.afd.test_ratio import TINY


class Reference:
    """The bundle in plain Python: a list of [prompt, steps, age] for each microbatch and instance, and the event recursion.

    Requests finish row once in any order within an instance and step; as the next requests of the stream fill whatever slots an
    instance has free, only their number matters.
    """

    def __init__(self, env: AFDRatioEnv) -> None:
        self.simulation = env.simulation
        self.key = np.uint64(env.lanes.state.lane[0]["key"])
        self.c = env.lanes.state.coefficients[0].tolist()
        self.schedule = env.lanes.state.law[0].tolist()
        self.pipeline = self.simulation.scenario.fidelity == "pipeline"
        self.m, self.b = self.simulation.batches, self.simulation.scenario.batch
        workers = max(x for x, _ in self.simulation.ratios)
        self.slots: list[list[list[list[int]]]] = [[[] for _ in range(workers)] for _ in range(self.m)]
        self.back = [0.0] * self.m
        self.free = [0.0] * workers
        self.ffn_free = self.clock = self.instance_time = 0.0
        self.drawn = self.done = self.tokens = self.turn = 0
        self.pair = (0, 0)

    def fresh(self, law: int) -> list[int]:
        rows = self.simulation.laws[law]
        n = len(rows.steps)
        row = min(int(uniform(np.uint64(substream(self.key, REQUESTS)), self.drawn) * n), n - 1)
        self.drawn += 1
        return [int(rows.prompt_tokens[row]), int(rows.steps[row]), 0]

    def running(self, law: int, number: int) -> list[int]:
        rows = self.simulation.laws[law]
        until = np.cumsum(rows.steps)
        point = integer(np.uint64(substream(self.key, AGES)), number, 0, int(until[-1]) - 1)
        row = int(np.searchsorted(until, point, side="right"))
        self.drawn += 1
        return [
            int(rows.prompt_tokens[row]),
            int(rows.steps[row]),
            int(point - (until[row - 1] if row else 0)),
        ]

    def switch(self, choice: int, law: int) -> None:
        pair = self.simulation.ratios[choice]
        first = self.pair == (0, 0)
        if pair == self.pair:
            return
        before = self.clock
        if not first:
            self.clock = max(self.clock, *self.back) + float(self.simulation.params.config["switch_cost"][0])
        self.pair = pair
        self.ffn_free = self.clock
        self.back = [self.clock] * self.m
        self.free = [self.clock] * len(self.free)
        stationary = first and self.simulation.scenario.start == "stationary"
        for i in range(pair[0]):
            for x in range(self.m):
                requests = self.slots[x][i]
                while len(requests) < self.b:
                    number = (x * len(self.free) + i) * self.b + len(requests)
                    requests.append(self.running(law, number) if stationary else self.fresh(law))
        self.instance_time += (self.clock - before) * self.paid()

    def paid(self) -> int:
        drains = [
            i for i in range(self.pair[0], len(self.free)) if any(self.slots[x][i] for x in range(self.m))
        ]
        return sum(self.pair) + len(drains)

    def cycle(self, law: int) -> None:
        a, a0, f, f0, k, k0 = self.c
        x, before, paid = self.turn, self.clock, self.paid()
        here = [i for i, requests in enumerate(self.slots[x]) if requests]
        times = {i: a * sum(p + age for p, _, age in self.slots[x][i]) + a0 for i in here}
        active = sum(len(self.slots[x][i]) for i in here)
        each = active / self.pair[1]
        comm = k * (each if self.simulation.scenario.comm == "aggregate" else self.b) + k0
        ffn = f * each + f0
        if self.pipeline:
            for i in here:
                self.free[i] = max(self.back[x], self.free[i]) + times[i]
            self.ffn_free = max(max(self.free[i] for i in here) + comm / 2, self.ffn_free) + ffn
            self.clock, self.back[x] = self.ffn_free, self.ffn_free + comm / 2
        else:
            self.clock += max(*times.values(), comm, ffn)
            self.back[x] = self.clock
        self.instance_time += (self.clock - before) * paid
        self.tokens += active
        for i in here:
            kept = []
            for p, steps, age in self.slots[x][i]:
                if age + 1 < steps:
                    kept.append([p, steps, age + 1])
            gone = len(self.slots[x][i]) - len(kept)
            self.done += gone
            self.slots[x][i] = kept + ([self.fresh(law) for _ in range(gone)] if i < self.pair[0] else [])
        self.turn = (x + 1) % self.m

    def loads(self) -> list[int]:
        return [sum(p + age for p, _, age in requests) for some in self.slots for requests in some]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"fidelity": "slot"},
        {"fidelity": "slot", "start": "cold", "comm": "aggregate", "ratios": ((2, 3), (3, 2), (5, 1))},
        {"fidelity": "pipeline", "batches": 1, "start": "cold"},
        {"fidelity": "pipeline", "batches": 2},
        {"fidelity": "pipeline", "batches": 3, "spread": 0.5},
        {
            "fidelity": "pipeline",
            "batches": 2,
            "requests": ("geometric:prompt=3,decode=4", "constant:prompt=7,steps=9"),
            "switch_epochs": 1.5,
        },
    ],
    ids=str,
)
def test_slots_are_those_of_a_plain_simulation(kwargs: dict[str, Any]) -> None:
    """Growing, shrinking (with instances that drain), coming back while they drain: same clock, loads, tokens, completions."""
    env = AFDRatioEnv(**{**TINY, "epochs": 14, **kwargs})
    for seed in range(3):
        env.reset(seed=seed)
        other = Reference(env)
        rng = np.random.default_rng(seed)
        drained = False
        for epoch in range(14):
            choice = int(rng.integers(len(env.simulation.ratios)))
            _, reward, _, _, info = env.step(choice)
            tokens, instance_time, clock = other.tokens, other.instance_time, other.clock
            other.switch(choice, other.schedule[epoch])
            for _ in range(9):
                drained |= other.paid() > sum(other.pair)
                other.cycle(other.schedule[epoch])
            episode = env.lanes.state.lane[0]
            assert env.lanes.state.table["load"][0].tolist() == other.loads()
            assert (episode["tokens"], episode["completed"], episode["taken"]) == (
                other.tokens,
                other.done,
                other.drawn,
            )
            assert episode["clock"] == pytest.approx(other.clock, rel=1e-12)
            assert episode["paid"] == other.paid()
            rate = (other.tokens - tokens) / (other.instance_time - instance_time)
            assert reward == pytest.approx(rate / env.simulation.best[other.schedule[0]], rel=1e-12)
            assert info["dt"] == pytest.approx((other.clock - clock) * 1e-6, rel=1e-9)
        assert drained


def test_slots_hold_theta_and_nu_in_the_long_run() -> None:
    """Within 1 % and 10 %, from the first step on and after 100 mean stays."""
    law = load("geometric:prompt=30,decode=40")
    env = AFDRatioVectorEnv(
        64, **{**TINY, "requests": (law,), "batch": 16, "ratios": (8,), "cycles": 41, "epochs": 101}
    )
    env.reset(seed=0)
    loads = []
    for _ in range(100):
        env.step(np.zeros(64, np.int64))
        loads.append(env.lanes.state.table["load"].copy())
    for part in (np.array(loads[:5]), np.array(loads)):
        assert part.mean() / 16 == pytest.approx(law.theta, rel=0.01)
        assert part.std() / 4 == pytest.approx(law.nu, rel=0.1)
