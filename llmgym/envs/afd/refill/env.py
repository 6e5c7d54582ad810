"""AFDRefill: which waiting request refills which slot of a disaggregated decode bundle.

In Song et al., "Theoretically Optimal Attention/FFN Ratios in Disaggregated LLM Serving" (arXiv 2601.21351), the FFN waits
for the slowest attention instance, and free slots are refilled first come, first served. The paper names balancing as the
remedy (it points to Chen et al., arXiv 2601.17855): here a policy decides which request goes where.
"""

import math
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box, Discrete

from llmgym import profiles
from llmgym.core.checks import choice, number
from llmgym.core.env import LaneEnv, LaneVectorEnv
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.statistics import counted
from llmgym.envs.afd.law import communication_time, step_time, throughput
from llmgym.envs.afd.ratio.scenarios import Law, resolve_coefficients
from llmgym.envs.afd.refill.kernels import KERNELS
from llmgym.envs.afd.refill.scenarios import INFORMATION, Scenario, resolve_scenario
from llmgym.envs.afd.refill.state import (
    EXCESS,
    GLOBALS,
    LANE,
    METRICS,
    NUMBER,
    PICK,
    SCORE,
    THROUGHPUT,
    WAITING,
    Params,
    State,
)
from llmgym.envs.afd.requests import load, pack
from llmgym.envs.afd.slots import SLOT, TABLE, recount, redraw_steps, wheel_size

ACTIONS = {"pick": PICK, "score": SCORE}
REWARDS = {"excess": EXCESS, "throughput": THROUGHPUT}
LOAD_SPREAD = 4.0
"""Loads are shown in units of so many standard deviations of an instance's load."""


class AFDRefill(Simulation):
    """The simulation behind `llmgym/AFDRefill-v0`; see `AFDRefillEnv` for the arguments.

    Attributes:
        scenario: the settings.
        coefficients: the latencies.
        law: the requests, as a table.
    """

    kernels = KERNELS
    metric_names = METRICS
    headline_metrics = {  # noqa: RUF012
        "relative_excess": "min",
        "barrier_excess_cycles": "min",
        "tau_mean_cycles": "min",
        "throughput_tokens_per_s": "max",
        "tpot_mean_s": "min",
        "skips_mean": "min",
    }

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        action: str = "pick",
        reward: str = "excess",
        invalid_action: str = "penalize",
        invalid_cost: float = 0.01,
        workload: Law | None = None,
        profile: str | profiles.Profile | None = None,
        **settings: Any,
    ) -> None:
        chosen = resolve_scenario(scenario, settings)
        for name, value, known in (
            ("action", action, ACTIONS),
            ("reward", reward, REWARDS),
            ("invalid_action", invalid_action, ("penalize", "raise")),
        ):
            choice(name, value, known)
        number("invalid_cost", invalid_cost, zero=True)
        if profile is not None and "coefficients" not in settings:
            chosen = replace(chosen, coefficients=None)
        self.coefficients = resolve_coefficients(
            chosen.coefficients,
            chosen.profile if profile is None else profile,
            chosen.batch,
            chosen.link_gb_per_s,
            chosen.link_latency_us,
        )
        self.law = load(chosen.requests if workload is None else workload)
        self.scenario = chosen
        self.action_mode, self.reward = action, reward
        self.raise_on_masked = invalid_action == "raise"
        # a prediction without an error is the truth
        self.privileged_observation = chosen.information == "exact" or (
            chosen.information == "noisy" and chosen.noise_scale == 0.0
        )
        self.layout = _layout(chosen)
        self.action_space: Discrete[Any] | Box = Discrete(chosen.window)
        if action == "score":
            self.action_space = Box(0.0, 1.0, (chosen.window,), np.float64)
        self.params = self._params(invalid_cost)

    def _params(self, invalid_cost: float) -> Params:
        chosen, c = self.scenario, self.coefficients
        laws, requests, until = pack((self.law,))
        numbers = np.zeros(1, NUMBER)
        record = numbers[0]
        record["action"], record["reward"] = ACTIONS[self.action_mode], REWARDS[self.reward]
        record["information"] = INFORMATION[chosen.information]
        for name in ("batch", "window", "cycles", "patience"):
            record[name] = getattr(chosen, name)
        record["workers"], record["stationary"] = chosen.ratio, chosen.start == "stationary"
        record["default_steps"], record["noise"] = max(1, round(self.law.mean_steps)), chosen.noise_scale
        record["invalid_cost"], record["cycle_s"] = invalid_cost, c.cycle_s
        for name in ("alpha_attention", "beta_attention", "alpha_ffn", "beta_ffn"):
            record[name] = getattr(c, name)
        record["comm"] = float(communication_time(c, chosen.batch, chosen.ratio, chosen.comm))
        tau = step_time(c, chosen.batch, self.law.theta, chosen.ratio, chosen.comm)
        record["best"] = float(throughput(chosen.ratio, chosen.batch, tau))
        record["attention_ref"] = float(c.attention(chosen.batch * self.law.theta))
        record["load_scale"] = LOAD_SPREAD * max(self.law.nu * math.sqrt(chosen.batch), 1.0)
        record["log_prompt"] = 1.0 / math.log1p(max(int(self.law.prompt_tokens.max()), 1))
        record["log_steps"] = 1.0 / math.log1p(int(self.law.steps.max()))
        return Params(numbers, laws, requests, until)

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        chosen = self.scenario
        return State(
            lane=np.zeros(lanes, LANE),
            table=np.zeros((lanes, chosen.ratio), TABLE),
            slot=np.zeros((lanes, chosen.ratio, chosen.batch), SLOT),
            wheel=np.zeros((lanes, chosen.ratio, wheel_size(self.law.mean_steps)), np.int32),
            waiting=np.zeros((lanes, chosen.window), WAITING),
            order=np.zeros((lanes, chosen.ratio), np.int32),
            history=np.zeros((lanes, chosen.cycles, 2), np.float32),
        )

    hidden: ClassVar[dict[str, str]] = {
        "lane.key": "never: requests to come",
        "lane.checksum": "at the end of the episode",
        "lane.asked_steps": "when the requests are done",
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
        """Other requests to come, and other steps of those that wait or run; predictions stay. See `Simulation.redraw`."""
        episode, waiting = state.lane[lane], state.waiting[lane]
        rng = np.random.default_rng(key)
        steps = np.sort(self.law.steps)
        grown = 0
        for slots, wheel in zip(state.slot[lane], state.wheel[lane], strict=True):
            grown += redraw_steps(slots, wheel, int(episode["tick"]), steps, rng)
        episode["asked_steps"] += grown
        drawn = rng.choice(steps, len(waiting))
        grown += int(drawn.sum() - waiting["steps"].sum())
        waiting["steps"] = drawn
        episode["key"] = key
        episode["checksum"] += 1e-3 * grown

    def audit(self, state: State, lane: int) -> dict[str, float]:
        """Recount requests, their tokens and steps from the slots."""
        episode = state.lane[lane]
        running = tokens = left = 0
        for i in range(self.scenario.ratio):
            count, held, _, ahead = recount(state.slot[lane, i], state.wheel[lane, i], int(episode["tick"]))
            running, tokens, left = running + count, tokens + held, left + ahead
        waiting = state.waiting["number"][lane]
        return {
            "arrived": float(episode["taken"]),
            "waiting": float(len(np.unique(waiting))),
            "waiting_counted": float(self.scenario.window),
            "running": float(running),
            "running_counted": float(state.table["occupied"][lane].sum()),
            "free": float(episode["left"]),
            "free_counted": float(state.slot[lane].size - running),
            "done": float(episode["completed"]),
            "rejected": 0.0,
            "kv_used": float(state.table["load"][lane].sum()),
            "kv_resident": float(tokens),
            "kv_capacity": float(
                int((self.law.prompt_tokens + self.law.steps).max()) * state.slot[lane].size
            ),
            "clock_s": float(episode["clock"] * self.coefficients.cycle_s),
            "work_asked": float(episode["asked_steps"]),
            "work_done": float(episode["tokens"]),
            "work_left": float(left),
        }

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode: its cycles times the mean that `reward` names, less penalties."""
        mean = metrics["relative_throughput"] if self.reward == "throughput" else -metrics["relative_excess"]
        return counted(mean) * metrics["cycles"] - metrics["penalty"]

    def render(self, state: State, lane: int, mode: str) -> Any:
        """A picture or a text of one lane."""
        from llmgym.envs.afd.refill.view import picture, text

        if mode == "ansi":
            return text(self.scenario, state, lane)
        return picture(self.scenario, self.coefficients, float(self.params.config["comm"][0]), state, lane)

    def settings(self) -> dict[str, Any]:
        """The scenario with everything resolved, for reports."""
        return asdict(replace(self.scenario, requests="")) | {
            "requests": self.law.name,
            "coefficients": asdict(self.coefficients),
        }


def _layout(chosen: Scenario) -> Layout:
    r, w = chosen.ratio, chosen.window
    layout = Layout(
        [
            Field("left", 1, 0, 1, "W", "free slots still to fill before the next cycle"),
            Field("due", 1, 0, 1, "share", "of these, for requests that must not be skipped again"),
            Field(
                "floor",
                1,
                0,
                4,
                "mean t_A",
                "what a cycle takes at least: the longer of FFN and communication",
            ),
            Field("spread", 1, 0, 4, "load_scale", "most loaded instance over the mean"),
            Field("current", 1, -4, 4, "load_scale", "instance that gets the next request, over the mean"),
            Field("room", 1, 0, 4, "load_scale", "most loaded instance over that one"),
            Field("progress", 1, 0, 1, "episode", "cycles so far"),
            Field("loads", r, -4, 4, "load_scale", "load of each instance over the mean, rising"),
            Field("free", r, 0, 1, "4 slots", "free slots of each, in the same order"),
            Field("window.prompt", w, 0, 1, "log", "log(1 + prompt) over that of the longest; oldest first"),
            Field("window.steps", w, 0, 1, "log", "the same of the predicted steps; 0 if nothing is told"),
            Field("window.skips", w, 0, 1, "A", "times each has been skipped"),
        ]
    )
    assert layout["loads"].start == GLOBALS
    return layout


class AFDRefillEnv(LaneEnv):
    """Which waiting request refills which slot of a disaggregated decode bundle.

    ## Description
    r attention instances hold `B` requests each; in every cycle the FFN waits for the one that has most tokens in its cache,
    then works on all of them. Loads drift apart by chance: requests have different prompts and stay for different times.
    Requests that are done free their slots, which are filled before the next cycle from an endless backlog. The next free
    slot is always that of the least loaded instance; the agent chooses which of the `window` oldest waiting requests gets
    it. A long prompt there levels the loads; a long answer keeps them level for longer.

    The barrier costs alpha_A (max T - mean T) a cycle, about alpha_A kappa_r nu sqrt(B) if nothing is done, with kappa_r the
    expected largest of r standard normal numbers: 6 % of a cycle in `paper`, 11 % in `stress`.

    ## Action Space
    - `action="pick"` (default): `Discrete(window)`, the waiting request (0 is the oldest) for the next free slot. Time
      passes when no slot is free any more. Masked: requests that may not overtake, as the ones due fill all free slots. Such
      an action places the oldest one, is counted in `invalid_actions` and costs `invalid_cost`; `invalid_action="raise"`
      makes it an error.
    - `action="score"`: `Box(0, 1, (window,))`, a score for each waiting request. All free slots are filled at once: the best
      scores (and all that are due) are placed in the order of their scores, each on the least loaded instance with a free slot.

    A request is skipped when a younger one is placed before a cycle and it is not. After `patience` times it is due.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["loads"]` is the slice of a field, `layout.markdown()` prints the table. How
    long a request will stay appears only as a prediction, as good as `information` says, and for waiting requests alone.

    ## Rewards
    - `"excess"` (default): for each cycle -(tau - ideal) / ideal, where ideal is the time of the cycle if all instances had
      the mean load. The return is minus the cycles times `relative_excess`, less penalties.
    - `"throughput"`: for each cycle its throughput over that of the mean field; the return is the cycles times
      `relative_throughput`.

    ## Starting State
    Slots filled as in the long run (`start="stationary"`) or with new requests (`"cold"`), run until a slot is free; that is
    time 0. Slots and the backlog are drawn from the seed: request number n is the same for every policy.

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
            `llmgym.envs.afd.refill.scenarios`). Each of its settings can be given as an argument of its own: `requests`,
            `coefficients`, `link_gb_per_s`, `link_latency_us`, `batch`, `ratio`, `comm`, `window`, `cycles`, `patience`,
            `information`, `noise_scale`, `start`.
        action: `pick` or `score`.
        reward: `excess` or `throughput`.
        invalid_action: `penalize` or `raise`.
        invalid_cost: cost of a masked action.
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


class AFDRefillVectorEnv(LaneVectorEnv):
    """Many lanes of `AFDRefillEnv`; see `llmgym.core.env.LaneVectorEnv` for the arguments of every vector environment."""

    simulation_class = AFDRefill
