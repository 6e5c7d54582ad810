"""AFDRefill: which waiting request refills which slot of a disaggregated decode bundle.

In Song et al., "Theoretically Optimal Attention/FFN Ratios in Disaggregated LLM Serving" (arXiv 2601.21351), the FFN waits for the
slowest attention instance, and free slots are refilled first come, first served. The paper names balancing as the remedy (it points
to Chen et al., arXiv 2601.17855): here a policy decides which request goes where.
"""

import math
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box, Discrete

from llmgym import profiles
from llmgym.core.checks import choice
from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.settings import settled
from llmgym.core.statistics import counted
from llmgym.envs.afd.law import communication_time, step_time, throughput
from llmgym.envs.afd.refill.kernels import KERNELS, STEPS_IN_CHECKSUM
from llmgym.envs.afd.refill.scenarios import INFORMATION, SCENARIOS, Scenario
from llmgym.envs.afd.refill.state import (
    EXCESS,
    MOST_SHOWN,
    PICK,
    SCORE,
    THROUGHPUT,
    Config,
    Episode,
    Metrics,
    Observation,
    Params,
    Past,
    State,
    Waiting,
)
from llmgym.envs.afd.requests import RequestSource, law_of, pack
from llmgym.envs.afd.settings import latencies
from llmgym.envs.afd.slots import Slot, Table, redraw_steps, wheel_size

ACTIONS = {"pick": PICK, "score": SCORE}
REWARDS = {"excess": EXCESS, "throughput": THROUGHPUT}
LOAD_SPREAD = 4.0
"""Loads are shown in units of so many standard deviations of an instance's load; chosen here."""


class AFDRefill(Simulation):
    """The simulation behind `llmgym/AFDRefill-v0`; see `AFDRefillEnv` for the arguments.

    Attributes:
        scenario: the settings, with requests and latencies resolved.
        coefficients: the latencies.
        law: the requests, as a table.
        action_mode: what an action is, "pick" or "score".
        reward: what a reward is, "excess" or "throughput".
    """

    kernels = KERNELS
    metrics = Metrics
    view = "llmgym.envs.afd.refill.view"

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        action: str = "pick",
        reward: str = "excess",
        invalid_action: str = "penalize",
        invalid_cost: float = 0.01,
        workload: RequestSource | None = None,
        profile: str | profiles.Profile | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(invalid_action=invalid_action, invalid_cost=invalid_cost)
        chosen: Scenario = settled(scenario, SCENARIOS, settings, "AFDRefill", ("about", "profile"))
        self.action_mode = choice("action", action, ACTIONS)
        self.reward = choice("reward", reward, REWARDS)
        self.coefficients = latencies(chosen, chosen.batch, profile, settings)
        self.law = law_of("requests", chosen.requests) if workload is None else law_of("workload", workload)
        self.scenario: Scenario = replace(chosen, requests=self.law, coefficients=self.coefficients)
        # a prediction without an error is the truth
        self.privileged_observation = chosen.information == "exact" or (
            chosen.information == "noisy" and chosen.noise_scale == 0.0
        )
        self.layout = _layout(chosen)
        self.action_space: Discrete[Any] | Box = Discrete(chosen.window)
        if action == "score":
            self.action_space = Box(0.0, 1.0, (chosen.window,), np.float64)
        self.params = self._params()

    def _params(self) -> Params:
        chosen, c, law = self.scenario, self.coefficients, self.law
        tau = step_time(c, chosen.batch, law.theta, chosen.ratio, chosen.comm)
        config = Config.pack(
            chosen,
            action=ACTIONS[self.action_mode],
            reward=REWARDS[self.reward],
            information=INFORMATION[chosen.information],
            workers=chosen.ratio,
            stationary=chosen.start == "stationary",
            default_steps=max(1, round(law.mean_steps)),
            noise=chosen.noise_scale,
            invalid_cost=self.invalid_cost,
            cycle_s=c.cycle_s,
            alpha_attention=c.alpha_attention,
            beta_attention=c.beta_attention,
            alpha_ffn=c.alpha_ffn,
            beta_ffn=c.beta_ffn,
            comm=communication_time(c, chosen.batch, chosen.ratio, chosen.comm),
            best=throughput(chosen.ratio, chosen.batch, tau),
            load_scale=LOAD_SPREAD * max(law.nu * math.sqrt(chosen.batch), 1.0),
            log_prompt=1.0 / math.log1p(max(int(law.prompt_tokens.max()), 1)),
            log_steps=1.0 / math.log1p(int(law.steps.max())),
        )
        return Params(config, *pack((law,)))

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        chosen = self.scenario
        return State(
            lane=Episode.zeros(lanes),
            table=Table.zeros(lanes, chosen.ratio),
            slot=Slot.zeros(lanes, chosen.ratio, chosen.batch),
            wheel=np.zeros((lanes, chosen.ratio, wheel_size(self.law.mean_steps)), np.int32),
            waiting=Waiting.zeros(lanes, chosen.window),
            order=np.zeros((lanes, chosen.ratio), np.int32),
            history=Past.zeros(lanes, chosen.cycles),
        )

    hidden: ClassVar[dict[str, str]] = {
        "lane.key": "never: requests to come",
        "lane.checksum": "at the end of the episode",
        "lane.demand_steps": "when the requests are done",
        "waiting.steps": "when the request is done",
        "slot.steps": "when the request is done",
        "slot.end": "when the request is done",
        "slot.next": "when the request is done: who is done in the same step",
        "wheel": "when the request is done",
    }
    shown: ClassVar[frozenset[str]] = frozenset(
        {
            # the run before the episode, and what it left in the slots
            "lane.tick",
            "lane.left",
            "lane.taken",
            "lane.tau",
            "history",
            "table",
            "order",
            "slot.prompt",
            "waiting.prompt",
            "waiting.predicted",
        }
    )

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Other requests to come, and other steps of those that wait or run; predictions stay. See `Simulation.redraw`.

        Args:
            state: arrays of all lanes.
            lane: number of the lane.
            key: seeds the other world, 0 to 2**63 - 1.
        """
        episode, waiting = state.lane[lane], state.waiting[lane]
        rng = np.random.default_rng(key)
        steps = np.sort(self.law.steps)
        grown = 0
        for slots, wheel in zip(state.slot[lane], state.wheel[lane], strict=True):
            grown += redraw_steps(slots, wheel, int(episode["tick"]), steps, rng)
        episode["demand_steps"] += grown
        drawn = rng.choice(steps, len(waiting))
        grown += int(drawn.sum() - waiting["steps"].sum())
        waiting["steps"] = drawn
        episode["key"] = key
        episode["checksum"] += STEPS_IN_CHECKSUM * grown

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode: its cycles times the mean that `reward` names, less penalties."""
        mean = metrics["relative_throughput"] if self.reward == "throughput" else -metrics["relative_excess"]
        return counted(mean) * metrics["cycles"] - metrics["penalty"]

    def settings(self) -> dict[str, Any]:
        """The scenario with everything resolved, for reports; the law of requests by name."""
        return asdict(replace(self.scenario, requests=self.law.name))


def _layout(chosen: Scenario) -> Layout:
    r, w = chosen.ratio, chosen.window
    columns: dict[str, Any] = {"rows": w, "actions": (0,), "table": "window"}
    fields = [
        Field(
            "loads",
            r,
            -MOST_SHOWN,
            MOST_SHOWN,
            "load_scale",
            "load of each attention instance over the mean, rising",
        ),
        Field("free", r, 0, 1, "4 slots", "free slots of each attention instance, in the order of `loads`"),
        Field(
            "window.prompt",
            w,
            0,
            1,
            "log",
            "log(1 + prompt) of each waiting request over that of the longest; oldest first",
            **columns,
        ),
        Field(
            "window.steps",
            w,
            0,
            1,
            "log",
            "log(1 + predicted steps) of each waiting request over that of the longest; 0 if nothing is told",
            **columns,
        ),
        Field(
            "window.skips",
            w,
            0,
            1,
            "A",
            "times that each waiting request has been skipped",
            **columns,
        ),
    ]
    return Layout(fields, Observation)


class AFDRefillEnv(LaneEnv):
    """Which waiting request refills which slot of a disaggregated decode bundle.

    ## Description
    r attention instances hold `B` requests each; in every cycle the FFN waits for the one that has most tokens in its cache, then
    works on all of them. Loads drift apart by chance: requests have different prompts and stay for different times. Requests that
    are done free their slots, which are filled before the next cycle from an endless backlog. The next free slot is always that of
    the least loaded instance; the agent chooses which of the `window` oldest waiting requests gets it. A long prompt there levels
    the loads; a long answer keeps them level for longer.

    The barrier costs alpha_A (max T - mean T) a cycle, about alpha_A kappa_r nu sqrt(B) if nothing is done, with kappa_r the
    expected largest of r standard normal numbers: 6 % of a cycle in `paper`, 11 % in `stress`.

    ## Action Space
    - `action="pick"` (default): `Discrete(window)`, the waiting request (0 is the oldest) for the next free slot. Time passes when
      no slot is free any more. Masked: requests that may not overtake, as the ones due fill all free slots. Such an action places
      the oldest one, is counted in `invalid_actions` and costs `invalid_cost`; `invalid_action="raise"` makes it an error.
    - `action="score"`: `Box(0, 1, (window,))`, a score for each waiting request. All free slots are filled at once: the best scores
      (and all that are due) are placed in the order of their scores, each on the least loaded instance with a free slot.

    A request is skipped when a younger one is placed before a cycle and it is not. After `patience` times it is due.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["loads"]` is the slice of a field, `layout.markdown()` prints the table. How long a
    request will stay appears only as a prediction, as good as `information` says, and for waiting requests alone.

    ## Rewards
    - `"excess"` (default): for each cycle -(tau - ideal) / ideal, where ideal is the time of the cycle if all instances had the
      mean load. The return is minus the cycles times `relative_excess`, less penalties.
    - `"throughput"`: for each cycle its throughput over that of the mean field; the return is the cycles times
      `relative_throughput`, less penalties.

    ## Starting State
    Slots filled as in the long run (`start="stationary"`) or with new requests (`"cold"`), run until a slot is free; that is time
    0. Slots and the backlog are drawn from the seed: request number n is the same for every policy.

    ## Episode End
    Truncation after `cycles` cycles. There is no termination.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/AFDRefill-v0", scenario="paper", ratio=16)
    envs = gymnasium.make_vec("llmgym/AFDRefill-v0", num_envs=256, scenario="small")
    ```

    Args:
        scenario: `paper`, `constant-prompt`, `real`, `real-long`, `stress`, `small`, or a `Scenario` (see
            `llmgym.envs.afd.refill.scenarios`). Each of its settings, which `llmgym settings llmgym/AFDRefill-v0` tells, can be
            given as an argument of its own.
        action: what an action is, `pick` or `score`.
        reward: what a reward is, `excess` or `throughput`.
        invalid_action: what a masked action is, `penalize` or `raise`.
        invalid_cost: what a masked action costs, in units of the reward.
        workload: law of the requests instead of the scenario's: a name, `Workload` or `Requests`.
        profile: name or `Profile` to fit the latencies to, instead of the scenario's.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, law, workload, profile or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = AFDRefill


AFDRefillVectorEnv = vector_env(AFDRefillEnv)
