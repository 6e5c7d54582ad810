"""AFDRatio: how many attention instances feed one FFN instance while the requests change.

The provisioning question of Song et al., "Theoretically Optimal Attention/FFN Ratios in Disaggregated LLM Serving" (arXiv
2601.21351; later versions "Analytical Provisioning for Attention-FFN Disaggregated LLM Serving under Stochastic Workloads"): one
ratio is best for one law of requests. Here the law changes, is known only from the requests that finish, and a new ratio costs
time.
"""

from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete

from llmgym import profiles
from llmgym.core.checks import choice, whole
from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Layout
from llmgym.core.settings import settled
from llmgym.core.statistics import counted
from llmgym.envs.afd.law import barrier_time, optimal_ratio, throughput
from llmgym.envs.afd.ratio.kernels import KERNELS
from llmgym.envs.afd.ratio.scenarios import (
    ACTIONS,
    FIDELITIES,
    SCENARIOS,
    Scenario,
    resolve_ratios,
)
from llmgym.envs.afd.ratio.state import (
    SLOT_LEVEL,
    Config,
    Episode,
    Metrics,
    Microbatch,
    Observation,
    Params,
    Past,
    State,
    Worker,
)
from llmgym.envs.afd.requests import RequestSource, laws_of, pack
from llmgym.envs.afd.settings import latencies
from llmgym.envs.afd.slots import LEAST_BUCKETS, Slot, Table, redraw_steps, wheel_size

SWITCH_STEPS = 5.0
"""What a change of the ratio costs by default, in attention times t_A; chosen here."""
DRAWS_PER_STAY = 16.0
"""Gaussian loads are drawn so many times in the mean stay of a request; chosen here."""


class AFDRatio(Simulation):
    """The simulation behind `llmgym/AFDRatio-v0`; see `AFDRatioEnv` for the arguments.

    Attributes:
        scenario: the settings, with requests, latencies and ratios resolved.
        coefficients: the nominal latencies.
        laws: the requests, a table for each law.
        ratios: (attention, FFN) instances of each choice, by rising ratio.
        batches: microbatches in flight, 1 outside the pipeline.
        action_mode: what an action is, "ratio" or "delta".
        best: the largest throughput of each law on these ratios, with a barrier (tokens per cycle and instance), float64 [laws].
    """

    kernels = KERNELS
    metrics = Metrics
    view = "llmgym.envs.afd.ratio.view"
    layout = Layout(head=Observation)

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        action: str = "ratio",
        invalid_action: str = "penalize",
        invalid_cost: float = 0.01,
        workload: RequestSource | tuple[RequestSource, ...] | None = None,
        profile: str | profiles.Profile | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(invalid_action=invalid_action, invalid_cost=invalid_cost)
        chosen: Scenario = settled(scenario, SCENARIOS, settings, "AFDRatio", ("about", "profile"))
        self.action_mode = choice("action", action, ACTIONS)
        self.coefficients = latencies(chosen, chosen.batch, profile, settings)
        self.laws = (
            laws_of("requests", chosen.requests) if workload is None else laws_of("workload", workload)
        )
        self.ratios = resolve_ratios(chosen)
        self.scenario = replace(
            chosen, requests=self.laws, coefficients=self.coefficients, ratios=self.ratios
        )
        self.batches = chosen.batches if chosen.fidelity == "pipeline" else 1
        self.action_space: Discrete[Any] = Discrete(len(self.ratios) if action == "ratio" else 3)
        self.params = self._params()

    def _params(self) -> Params:
        chosen, c = self.scenario, self.coefficients
        pairs = np.array(self.ratios, np.int32)
        ratio = pairs[:, 0] / pairs[:, 1]
        laws, requests, until = pack(self.laws)
        times = [
            barrier_time(c, chosen.batch, law.theta, law.nu, ratio, chosen.comm, pairs[:, 0])
            for law in self.laws
        ]
        self.best = np.array([throughput(ratio, chosen.batch, time).max() for time in times])
        laws["best"] = self.best
        initial = chosen.initial
        if initial is None:
            best = optimal_ratio(c, chosen.batch, self.laws[0].theta, chosen.comm).ratio
            initial = int(np.argmin(np.abs(np.log(ratio / best))))
        fullest = max(self.laws, key=lambda law: law.theta)
        attention = float(c.attention(chosen.batch * fullest.theta))
        config = Config.pack(
            chosen,
            mode=FIDELITIES[chosen.fidelity],
            action=ACTIONS[self.action_mode],
            batches=self.batches,
            workers=pairs[:, 0].max(),
            stationary=chosen.start == "stationary",
            aggregate=chosen.comm == "aggregate",
            initial=whole("initial", initial, 0, len(pairs) - 1),
            stride=max(1, round(min(law.mean_steps for law in self.laws) / DRAWS_PER_STAY)),
            switch_chance=0.0 if chosen.switch_epochs is None else 1.0 / chosen.switch_epochs,
            switch_cost=SWITCH_STEPS * attention if chosen.switch_cycles is None else chosen.switch_cycles,
            invalid_cost=self.invalid_cost,
            cycle_s=c.cycle_s,
            ratio_scale=ratio.max(),
            instance_scale=pairs.max(axis=0).sum(),
            theta_ref=fullest.theta,
            nu_ref=max(1.0, *(law.nu for law in self.laws)),
            prompt_ref=max(1.0, *(law.mean_prompt for law in self.laws)),
            steps_ref=max(law.mean_steps for law in self.laws),
            tau_ref=attention,
            throughput_ref=self.best.max(),
        )
        return Params(config, pairs, laws, requests, until, np.array(c.values, np.float64))

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        chosen = self.scenario
        workers = int(self.params.config["workers"][0])
        tables = self.batches * workers
        slots, buckets = 1, LEAST_BUCKETS
        if FIDELITIES[chosen.fidelity] >= SLOT_LEVEL:
            slots = chosen.batch
            buckets = wheel_size(max(law.mean_steps for law in self.laws))
        return State(
            lane=Episode.zeros(lanes),
            worker=Worker.zeros(lanes, workers),
            microbatch=Microbatch.zeros(lanes, self.batches),
            table=Table.zeros(lanes, tables),
            slot=Slot.zeros(lanes, tables, slots),
            wheel=np.zeros((lanes, tables, buckets), np.int32),
            coefficients=np.zeros((lanes, len(self.coefficients.values))),
            window=np.zeros((lanes, chosen.window, 2), np.int32),
            law=np.zeros((lanes, chosen.epochs), np.int32),
            history=Past.zeros(lanes, chosen.epochs),
        )

    hidden: ClassVar[dict[str, str]] = {
        "lane.key": "never: requests, loads and ages to come",
        "lane.checksum": "at the end of the episode",
        "lane.demand_steps": "when the requests are done",
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
        """Other laws from the coming epoch on, other requests, and another rest of those in the slots; see `Simulation.redraw`.

        Args:
            state: arrays of all lanes.
            lane: number of the lane.
            key: seeds the other world, 0 to 2**63 - 1.
        """
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
            episode["demand_steps"] += redraw_steps(
                state.slot[lane, t], state.wheel[lane, t], tick, steps, rng
            )
        episode["key"] = key
        episode["checksum"] = rng.random() + float(np.arange(1, len(law) + 1) @ law)

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode: its epochs times the mean relative throughput, less penalties."""
        return counted(metrics["relative_throughput"]) * metrics["epochs"] - metrics["penalty"]

    def settings(self) -> dict[str, Any]:
        """The scenario with everything resolved, for reports; laws of requests by name."""
        return asdict(replace(self.scenario, requests=())) | {"requests": [law.name for law in self.laws]}


class AFDRatioEnv(LaneEnv):
    """How many attention instances feed one FFN instance of a disaggregated decode pool.

    ## Description
    Decoding is split: r attention instances, each with a microbatch of `B` requests and their KV cache, feed one FFN instance that
    has no state. In a step every attention instance reads its cache (a time that grows with its tokens), activations go to the
    FFN, which works on all r B tokens once the slowest has arrived, and come back. Requests come from an endless backlog; one that
    is done makes room for the next at once. With few attention instances the FFN idles; with many it is what everybody waits for.
    Each instance costs the same, so what counts is tokens per time and instance.

    The theory (Song et al., arXiv 2601.21351): attention takes t_A = alpha_A B theta + beta_A, with theta the mean tokens of a
    slot, E[P L + L (L - 1) / 2] / E[L], and the FFN takes t_F = alpha_F r B + beta_F. The best ratio is max(r_A, r_C, r_peak):
    where the two take equally long, or where the FFN's own throughput peaks. So the right ratio moves with the lengths of prompts
    and answers, and two workloads with the same means can need very different ones.

    What an agent can gain over the formula: the lengths change, and finished requests tell it late; instances that are taken out
    drain slowly; a change of the ratio costs time; the slowest instance, and the link when few microbatches are in flight, make the
    best ratio another one than the mean field says.

    ## Action Space
    - `action="ratio"` (default): `Discrete(len(ratios))`, the ratio of the next epoch, by rising ratio.
    - `action="delta"`: `Discrete(3)`, one place down, stay, one place up. A step off the ends of the grid is masked: the ratio then
      stays, the action is counted in `invalid_actions` and costs `invalid_cost`; `invalid_action="raise"` makes it an error.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["theta"]` is the slice of a field, `layout.markdown()` prints the table. It holds
    what an operator can measure: times, idle shares, loads, and lengths of requests that finished. The window of finished requests
    begins with those of a load test with the first law.

    ## Rewards
    Tokens of the epoch over instances times time (with the time of a change, and draining instances), over the best that the theory
    with a barrier reaches for the first law. The return is the number of epochs times `relative_throughput`, less penalties.

    ## Starting State
    No instance runs. The first decision builds the bundle at no cost: with slots as they are in the long run, or all requests new
    (`start="cold"`). The law of every epoch and the coefficients are drawn at reset from the seed; so is request number n, for
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
            `small-meanfield`, or a `Scenario` (see `llmgym.envs.afd.ratio.scenarios`). Each of its settings, which `llmgym settings
            llmgym/AFDRatio-v0` tells, can be given as an argument of its own.
        action: what an action is, `ratio` or `delta`.
        invalid_action: what a masked action is, `penalize` or `raise`.
        invalid_cost: what a masked action costs, in units of the reward.
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


AFDRatioVectorEnv = vector_env(AFDRatioEnv)
