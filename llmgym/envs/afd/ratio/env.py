"""AFDRatio: how many attention instances feed one FFN instance while the requests change.

The provisioning question of Song et al., "Theoretically Optimal Attention/FFN Ratios in Disaggregated LLM Serving" (arXiv
2601.21351; later versions "Analytical Provisioning for Attention-FFN Disaggregated LLM Serving under Stochastic Workloads"): one
ratio is best for one law of requests. Here the law changes, is known only from the requests that finish, and a new ratio
costs time.
"""

from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete

from llmgym import profiles
from llmgym.core.checks import choice, number, whole
from llmgym.core.env import LaneEnv, LaneVectorEnv
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.statistics import counted
from llmgym.envs.afd.law import barrier_time, optimal_ratio, throughput
from llmgym.envs.afd.ratio.kernels import KERNELS
from llmgym.envs.afd.ratio.scenarios import (
    ACTIONS,
    FIDELITIES,
    Law,
    Scenario,
    resolve_coefficients,
    resolve_ratios,
    resolve_requests,
    resolve_scenario,
)
from llmgym.envs.afd.ratio.state import (
    LANE,
    METRICS,
    MICROBATCH,
    NUMBER,
    SCALARS,
    SLOT_LEVEL,
    WORKER,
    Params,
    State,
)
from llmgym.envs.afd.requests import pack
from llmgym.envs.afd.slots import SLOT, TABLE, recount, redraw_steps, wheel_size

SWITCH_STEPS = 5.0
"""What a change of the ratio costs by default, in attention times t_A."""
MEMORY = 16.0
"""Gaussian loads are drawn so many times in the mean stay of a request."""


class AFDRatio(Simulation):
    """The simulation behind `llmgym/AFDRatio-v0`; see `AFDRatioEnv` for the arguments.

    Attributes:
        scenario: the settings, resolved.
        coefficients: the nominal latencies.
        laws: the requests, a table for each law.
        ratios: (attention, FFN) instances of each choice, by rising ratio.
        best: the largest throughput of each law on these ratios, with a barrier (tokens per cycle and instance), float64 [laws].
    """

    kernels = KERNELS
    metric_names = METRICS
    headline_metrics = {  # noqa: RUF012
        "relative_throughput": "max",
        "throughput_tokens_per_s": "max",
        "tpot_mean_s": "min",
        "idle_attention": "min",
        "idle_ffn": "min",
        "ratio_mean": "min",
        "switches": "min",
    }

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        action: str = "ratio",
        invalid_action: str = "penalize",
        invalid_cost: float = 0.01,
        workload: Law | None = None,
        profile: str | profiles.Profile | None = None,
        **settings: Any,
    ) -> None:
        chosen = resolve_scenario(scenario, settings)
        choice("action", action, ACTIONS)
        choice("invalid_action", invalid_action, ("penalize", "raise"))
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
        self.laws = resolve_requests(chosen.requests if workload is None else workload)
        self.ratios = resolve_ratios(chosen)
        self.scenario = chosen
        self.batches = chosen.batches if chosen.fidelity == "pipeline" else 1
        self.action_mode = action
        self.raise_on_masked = invalid_action == "raise"
        self.layout = _layout()
        count = len(self.ratios) if action == "ratio" else 3
        self.action_space: Discrete[Any] = Discrete(count)
        self.params = self._params(invalid_cost)

    def _params(self, invalid_cost: float) -> Params:
        chosen, c = self.scenario, self.coefficients
        pairs = np.array(self.ratios, np.int32)
        ratio = pairs[:, 0] / pairs[:, 1]
        laws, requests, until = pack(self.laws)
        times = np.array(
            [
                barrier_time(c, chosen.batch, law.theta, law.nu, ratio, chosen.comm, pairs[:, 0])
                for law in self.laws
            ]
        )
        values = np.array([throughput(ratio, chosen.batch, row) for row in times])
        self.best = values.max(axis=1)
        laws["best"] = self.best
        numbers = np.zeros(1, NUMBER)
        record = numbers[0]
        record["mode"], record["action"] = FIDELITIES[chosen.fidelity], ACTIONS[self.action_mode]
        for name in ("batch", "cycles", "epochs", "stop", "window", "spread"):
            record[name] = getattr(chosen, name)
        record["batches"], record["workers"] = self.batches, pairs[:, 0].max()
        record["stationary"] = chosen.start == "stationary"
        record["aggregate"] = chosen.comm == "aggregate"
        initial = chosen.initial
        if initial is None:
            best = optimal_ratio(c, chosen.batch, self.laws[0].theta, chosen.comm).ratio
            initial = int(np.argmin(np.abs(np.log(ratio / best))))
        record["initial"] = whole("initial", initial, 0, len(pairs) - 1)
        record["stride"] = max(1, round(min(law.mean_steps for law in self.laws) / MEMORY))
        record["switch_chance"] = 0.0 if chosen.switch_epochs is None else 1.0 / chosen.switch_epochs
        longest = self.laws[int(np.argmax([law.theta for law in self.laws]))]
        attention = float(c.attention(chosen.batch * longest.theta))
        cost = SWITCH_STEPS * attention if chosen.switch_cycles is None else chosen.switch_cycles
        record["switch_cost"], record["invalid_cost"], record["cycle_s"] = cost, invalid_cost, c.cycle_s
        record["ratio_scale"], record["instance_scale"] = ratio.max(), pairs.max(axis=0).sum()
        record["theta_ref"], record["nu_ref"] = longest.theta, max(max(law.nu for law in self.laws), 1.0)
        record["prompt_ref"] = max(max(law.mean_prompt for law in self.laws), 1.0)
        record["steps_ref"] = max(law.mean_steps for law in self.laws)
        record["tau_ref"], record["throughput_ref"] = attention, self.best.max()
        return Params(numbers, pairs, laws, requests, until, np.array(c.values, np.float64))

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        chosen = self.scenario
        workers = int(self.params.config["workers"][0])
        tables = self.batches * workers
        slots, buckets = 1, 8
        if FIDELITIES[chosen.fidelity] >= SLOT_LEVEL:
            slots = chosen.batch
            buckets = wheel_size(max(law.mean_steps for law in self.laws))
        return State(
            lane=np.zeros(lanes, LANE),
            worker=np.zeros((lanes, workers), WORKER),
            microbatch=np.zeros((lanes, self.batches), MICROBATCH),
            table=np.zeros((lanes, tables), TABLE),
            slot=np.zeros((lanes, tables, slots), SLOT),
            wheel=np.zeros((lanes, tables, buckets), np.int32),
            coefficients=np.zeros((lanes, 6)),
            window=np.zeros((lanes, chosen.window, 2), np.int32),
            law=np.zeros((lanes, chosen.epochs), np.int32),
            history=np.zeros((lanes, chosen.epochs, 6), np.float32),
        )

    hidden: ClassVar[dict[str, str]] = {
        "lane.key": "never: requests, loads and ages to come",
        "lane.checksum": "at the end of the episode",
        "lane.asked_steps": "when the requests are done",
        "law": "never, but for the first; the requests that finish tell",
        "slot.steps": "when the request is done",
        "slot.end": "when the request is done",
        "slot.next": "when the request is done: who is done in the same step",
        "wheel": "when the request is done",
    }
    shown: ClassVar[frozenset[str]] = frozenset(
        {
            "lane.first_law",  # a load test has measured it, and rewards are in units of its best
            "window",  # of that test, then of the requests that finished
            "lane.sum_prompt",
            "lane.sum_steps",
            "lane.sum_load",
            "lane.sum_square",
            "coefficients",  # measured
        }
    )

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Other laws from the coming epoch on, other requests, and another rest of those in the slots; see `Simulation.redraw`."""
        episode, law = state.lane[lane], state.law[lane]
        rng = np.random.default_rng(key)
        chance = float(self.params.config["switch_chance"][0])
        begun = max(int(episode["epoch"]), 1)
        for epoch in range(begun, len(law)):
            law[epoch] = law[epoch - 1]
            if len(self.laws) > 1 and rng.random() < chance:
                law[epoch] = (law[epoch - 1] + rng.integers(1, len(self.laws))) % len(self.laws)
        steps = np.sort(np.concatenate([self.laws[k].steps for k in np.unique(law[:begun])]))
        workers = state.worker.shape[1]
        for t in range(state.table.shape[1]):
            tick = int(state.microbatch["tick"][lane, t // workers])
            episode["asked_steps"] += redraw_steps(
                state.slot[lane, t], state.wheel[lane, t], tick, steps, rng
            )
        episode["key"] = key
        episode["checksum"] = rng.random() + float(np.arange(1, len(law) + 1) @ law)

    def audit(self, state: State, lane: int) -> dict[str, float]:
        """Recount requests, their tokens and steps from the slots."""
        episode = state.lane[lane]
        clock = {"clock_s": float(episode["clock"] * self.coefficients.cycle_s)}
        if FIDELITIES[self.scenario.fidelity] < SLOT_LEVEL:
            return clock
        workers = state.worker.shape[1]
        running = tokens = left = held = 0
        for t in range(state.table.shape[1]):
            tick = int(state.microbatch["tick"][lane, t // workers])
            count, load, _, ahead = recount(state.slot[lane, t], state.wheel[lane, t], tick)
            running, tokens, left = running + count, tokens + load, left + ahead
            held += int(state.table["occupied"][lane, t])
        most = max(int((law.prompt_tokens + law.steps).max()) for law in self.laws)
        return clock | {
            "arrived": float(episode["taken"]),
            "waiting": 0.0,
            "running": float(running),
            "running_counted": float(held),
            "done": float(episode["completed"]),
            "rejected": 0.0,
            "kv_used": float(state.table["load"][lane].sum()),
            "kv_resident": float(tokens),
            "kv_capacity": float(most * state.slot[lane].size),
            "work_asked": float(episode["asked_steps"]),
            "work_done": float(episode["tokens"]),
            "work_left": float(left),
        }

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode: its epochs times the mean relative throughput, less penalties."""
        return counted(metrics["relative_throughput"]) * metrics["epochs"] - metrics["penalty"]

    def render(self, state: State, lane: int, mode: str) -> Any:
        """A picture or a text of one lane."""
        from llmgym.envs.afd.ratio.view import picture, text

        if mode == "ansi":
            return text(self.scenario, self.params, self.laws, state, lane)
        return picture(self.scenario, self.params, self.laws, self.ratios, state, lane)

    def settings(self) -> dict[str, Any]:
        """The scenario with everything resolved, for reports."""
        return asdict(replace(self.scenario, requests=())) | {
            "requests": [law.name for law in self.laws],
            "coefficients": asdict(self.coefficients),
            "ratios": self.ratios,
        }


def _layout() -> Layout:
    layout = Layout(
        [
            Field("ratio", 1, 0, 1, "largest", "attention over FFN instances; 0 before the first decision"),
            Field("instances", 1, 0, 1.0001, "most", "instances that are paid for, draining ones included"),
            Field(
                "load.mean",
                1,
                0,
                4,
                "theta_ref",
                "tokens of a slot at the end of the epoch, mean over the instances",
            ),
            Field("load.max", 1, 0, 4, "theta_ref", "the same of the microbatch with most"),
            Field("tau", 1, 0, 4, "tau_ref", "time of a cycle in the last epoch"),
            Field("throughput", 1, 0, 4, "throughput_ref", "r B / ((r + 1) tau) of the last epoch"),
            Field("idle.attention", 1, 0, 1, "share", "idle time of attention instances"),
            Field("idle.ffn", 1, 0, 1, "share", "idle time of FFN instances"),
            Field("bound.attention", 1, 0, 1, "share", "cycles in which attention took longest"),
            Field("bound.communication", 1, 0, 1, "share", "cycles in which communication did"),
            Field("bound.ffn", 1, 0, 1, "share", "cycles in which the FFN did"),
            Field("prompt.mean", 1, 0, 4, "prompt_ref", "mean prompt of the requests in the window"),
            Field("steps.mean", 1, 0, 4, "steps_ref", "their mean steps"),
            Field("theta", 1, 0, 4, "theta_ref", "mean tokens of a slot, estimated from them"),
            Field("nu", 1, 0, 4, "nu_ref", "their standard deviation, likewise"),
            Field(
                "coefficients",
                6,
                0,
                2,
                "nominal",
                "alpha_A, beta_A, alpha_F, beta_F, alpha_C, beta_C of this episode",
            ),
            Field("batch", 1, 0, 1, "log2 / 16", "B"),
            Field("reference", 1, 0, 1.0001, "throughput_ref", "what a reward of 1 stands for"),
        ]
    )
    assert layout.size == SCALARS
    return layout


class AFDRatioEnv(LaneEnv):
    """How many attention instances feed one FFN instance of a disaggregated decode pool.

    ## Description
    Decoding is split: r attention instances, each with a microbatch of `B` requests and their KV cache, feed one FFN
    instance that has no state. In a step every attention instance reads its cache (a time that grows with its tokens),
    activations go to the FFN, which works on all r B tokens once the slowest has arrived, and come back. Requests come from
    an endless backlog; one that is done makes room for the next at once. With few attention instances the FFN idles; with
    many it is what everybody waits for. Each instance costs the same, so what counts is tokens per time and instance.

    The theory (Song et al., arXiv 2601.21351): attention takes t_A = alpha_A B theta + beta_A, with theta = E[P L + L (L -
    1) / 2] / E[L] the mean tokens of a slot, the FFN t_F = alpha_F r B + beta_F, and the best ratio is max(r_A, r_C,
    r_peak): where the two take equally long, or where the FFN's own throughput peaks. So the right ratio moves with the
    lengths of prompts and answers, and two workloads with the same means can need very different ones.

    What an agent can gain over the formula: the lengths change, and finished requests tell it late; instances that are taken out
    drain slowly; a change of the ratio costs time; the slowest instance, and the link when few microbatches are in flight,
    make the best ratio another one than the mean field says.

    ## Action Space
    - `action="ratio"` (default): `Discrete(len(ratios))`, the ratio of the next epoch, by rising ratio.
    - `action="delta"`: `Discrete(3)`, one place down, stay, one place up. Masked at the ends of the grid: then it stays, is
      counted in `invalid_actions` and costs `invalid_cost`; `invalid_action="raise"` makes it an error.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["theta"]` is the slice of a field, `layout.markdown()` prints the table. It
    holds what an operator can measure: times, idle shares, loads, and lengths of requests that finished. The window of
    finished requests begins with those of a load test with the first law.

    ## Rewards
    Tokens of the epoch over instances times time (with the time of a change, and draining instances), over the best that the
    theory with a barrier reaches for the first law. The return is the number of epochs times `relative_throughput`, less
    penalties.

    ## Starting State
    No instance runs. The first decision builds the bundle at no cost: with slots as they are in the long run, or all requests new
    (`start="cold"`). The courses of the law and the coefficients are drawn at reset from the seed; so is request number n, for
    every n.

    ## Episode End
    Truncation after `epochs` epochs, or when `stop` requests are done for each attention instance. There is no termination.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/AFDRatio-v0", scenario="real", fidelity="pipeline")
    envs = gymnasium.make_vec("llmgym/AFDRatio-v0", num_envs=256, scenario="small")
    ```

    Args:
        scenario: `paper`, `paper-stationary`, `paper-shift`, `real`, `real-long`, `stress`, `small`, `small-gaussian`,
            `small-meanfield`, or a `Scenario` (see `llmgym.envs.afd.ratio.scenarios`). Each of its settings can be given as
            an argument of its own: `requests`, `coefficients`, `link_gb_per_s`, `link_latency_us`, `fidelity`, `batch`,
            `batches`, `comm`, `ratios`, `max_ratio`, `instances`, `initial`, `cycles`, `epochs`, `stop`, `start`,
            `switch_epochs`, `spread`, `switch_cycles`, `window`.
        action: `ratio` or `delta`.
        invalid_action: `penalize` or `raise`.
        invalid_cost: cost of a masked action.
        workload: law of the requests (or several) instead of the scenario's: a name, `Workload` or `Requests`.
        profile: name or `Profile` to fit the latencies to, instead of the scenario's.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, law, workload, profile or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = AFDRatio


class AFDRatioVectorEnv(LaneVectorEnv):
    """Many lanes of `AFDRatioEnv`; see `llmgym.core.env.LaneVectorEnv` for the arguments of every vector environment."""

    simulation_class = AFDRatio
