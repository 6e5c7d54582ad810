"""KVProvision: how many replicas of an inference engine to run while load and request lengths change.

The capacity question of Nie, Si and Zhou, "A Queueing-Theoretic Framework for Stability Analysis of LLM Inference with KV
Cache Memory Constraints", ICML 2026 (arXiv 2605.04595), sections 4 and 5: one replica serves M / (b E[g]) requests a
second, so lambda of them need G = lambda / (rho mu) replicas. Here the two sides move, and replicas take time to start.
"""

import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from llmgym import profiles, workloads
from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.settings import settled
from llmgym.envs.kv.provision.kernels import KERNELS
from llmgym.envs.kv.provision.load import SPARE, mixtures, multipliers, resolve_workload, room
from llmgym.envs.kv.provision.scenarios import MODES, SCENARIOS, Scenario
from llmgym.envs.kv.provision.state import (
    AREA,
    BATCHES,
    COMMON,
    HEADLINE,
    HISTORY,
    QUANTITIES,
    REQUESTS,
    TIMES,
    TOKENS,
    WORK_S,
    Config,
    Engines,
    Episode,
    Metrics,
    Observation,
    Params,
    Replica,
    State,
)
from llmgym.errors import InvalidArgument
from llmgym.serving.admission import SCRATCH_ROWS
from llmgym.serving.capacity import (
    BOTH,
    OUTPUT,
    Saturation,
    gpus_needed,
    passes,
    saturation,
    with_class_budgets,
)
from llmgym.serving.hidden import redraw_arrivals, redraw_outputs
from llmgym.serving.requests import FIRST_TOKENS, checksum_of, derived_limits
from llmgym.serving.rules import pack, resolve
from llmgym.serving.settings import OVERFLOWS, cache_in_blocks
from llmgym.serving.state import Request, Resident, no_prefixes
from llmgym.serving.targets import Target, objective_records
from llmgym.workloads import Workload
from llmgym.workloads.traffic import Drawn

PARCELS = 100
"""Fluid: pieces in which the requests of a mean epoch arrive."""
MOST_REQUESTS = 2**27
"""Requests of an episode that are refused as too many: their records alone take 6 GiB a lane."""
BUSIEST = 1.5
"""The busiest epoch has so many times the requests of a mean one."""
UTILIZATION = 0.9
"""Target utilisation of the paper's provisioning rule."""


class KVProvision(Simulation):
    """The simulation behind `llmgym/KVProvision-v0`; see `KVProvisionEnv` for the arguments.

    Attributes:
        scenario: the settings, resolved.
        workload: who asks, with the arrivals and the drift of the scenario.
        profile: what a batch costs.
        kv_capacity: M of a replica, tokens.
        gpus: GPUs of a replica.
        saturated: for each class of the workload, the engine that has only such requests and always work waiting.
        nominal_load: work expected to arrive in each epoch, in replicas, float64 [epochs].
    """

    kernels = KERNELS
    metrics = Metrics
    view = "llmgym.envs.kv.provision.view"

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        invalid_action: str = "penalize",
        invalid_cost: float = 0.01,
        workload: str | Workload | None = None,
        profile: str | profiles.Profile | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(invalid_action=invalid_action, invalid_cost=invalid_cost)
        fixed = ("about", "workload", "profile")
        chosen: Scenario = settled(scenario, SCENARIOS, settings, "KVProvision", fixed)
        own = workloads.workload_of("workload", chosen.workload if workload is None else workload)
        self.profile = profiles.profile_of("profile", chosen.profile if profile is None else profile)
        self.gpus = self.profile.tensor_parallel
        capacity = self.profile.kv_capacity_tokens() if chosen.kv_capacity is None else chosen.kv_capacity
        self.kv_capacity = cache_in_blocks(capacity, 1)
        longest = capacity if chosen.longest is None else min(chosen.longest, capacity)

        own = resolve_workload(chosen, own)
        self.saturated = self._saturated(own, chosen)
        mix = mixtures(own, chosen.epochs, chosen.epoch_s)
        shape = multipliers(own.arrivals, chosen.epochs, chosen.epoch_s)
        work = self._work(own)
        replicas_per_rps = mix @ work[:, WORK_S] * shape
        rate_rps = chosen.rate_rps
        if rate_rps is None:
            rate_rps = chosen.load * chosen.max_replicas / float(replicas_per_rps.mean())
        self.workload = own.with_rate(rate_rps)
        self.nominal_load = rate_rps * replicas_per_rps
        self.scenario = replace(chosen, kv_capacity=self.kv_capacity, longest=longest, rate_rps=rate_rps)
        self.metric_names = COMMON if chosen.mode == "fluid" else Metrics.names()
        self.headline_metrics = {
            name: Metrics.headline()[name] for name in HEADLINE if name in self.metric_names
        }
        self.action_space: Discrete[Any] = Discrete(chosen.max_replicas + 1)
        self.layout = Layout(
            [
                Field(
                    "starting.in",
                    max(chosen.startup_epochs, 1),
                    0,
                    1.0001,
                    "G",
                    "those that serve after 1, 2, ... more epochs",
                )
            ],
            Observation,
        )
        self.params = self._params(work, float(shape[0]), mix[0], float(shape.mean()))

    def _saturated(self, workload: Workload, chosen: Scenario) -> tuple[Saturation, ...]:
        first, _ = FIRST_TOKENS[chosen.first_token]
        return tuple(
            saturation(
                Workload(c.name, workload.arrivals, (c,)),
                self.profile,
                self.kv_capacity,
                chosen.chunk,
                chosen.budget,
                chosen.seats,
                first,
            )
            for c in workload.classes
        )

    def _work(self, workload: Workload) -> NDArray[np.float64]:
        """What a request of each class brings into the fluid, float64 [classes, QUANTITIES]."""
        work = np.zeros((len(workload.classes), QUANTITIES))
        for row, c, full in zip(work, workload.classes, self.saturated, strict=True):
            single = Workload(c.name, workload.arrivals, (c,))
            row[REQUESTS] = 1.0
            row[AREA] = full.mean_area
            row[WORK_S] = 1.0 / full.rate_rps
            row[TOKENS] = single.expectation(BOTH)
            row[BATCHES] = 1.0 / (full.rate_rps * full.batch_s)
        return work

    def _params(
        self,
        work: NDArray[np.float64],
        first_multiplier: float,
        mix: NDArray[np.float64],
        mean_multiplier: float,
    ) -> Params:
        chosen, rate_rps = self.scenario, self.scenario.rate_rps
        horizon_s = chosen.epochs * chosen.epoch_s
        profile = self.workload.arrivals.profile
        day_s = profile.period_s if profile is not None and profile.period_s is not None else horizon_s
        at_start = mix @ work
        batch_s = at_start[WORK_S] / at_start[BATCHES]
        mu = self.kv_capacity / (batch_s * at_start[AREA])
        initial = chosen.initial_replicas
        if initial is None:
            initial = gpus_needed(rate_rps * first_multiplier, mu, UTILIZATION)
            initial = min(max(initial, chosen.min_replicas, 1), chosen.max_replicas)
        traffic, parcel = self._traffic(rate_rps * mean_multiplier)
        config = Config.pack(
            chosen,
            block=1,
            default_output=max(1, round(self._mean(mix, OUTPUT))),
            mode=MODES[chosen.mode],
            replicas=chosen.max_replicas,
            least=chosen.min_replicas,
            initial=initial,
            startup=chosen.startup_epochs,
            gpus=self.gpus,
            day_s=day_s,
            idle_s=batch_s,
            ema=1.0 - math.exp(-1.0 / chosen.ema_epochs),
            invalid_cost=self.invalid_cost,
            parcel=parcel,
            drain_s=batch_s * self._mean(mix, passes(chosen.chunk)),
            rate_scale=chosen.max_replicas * mu,
            rate_start=rate_rps * first_multiplier,
            mu_ref=mu,
            area_ref=at_start[AREA],
            batch_ref=batch_s,
            tokens_ref=at_start[TOKENS],
            **derived_limits(chosen.chunk, chosen.first_token),
        )
        (rule,) = resolve((chosen.rule,))
        rules = (with_class_budgets(rule, self.workload, self.kv_capacity, chosen.chunk),)
        classes = len(self.workload.classes)
        packed = pack(rules, OVERFLOWS[chosen.overflow], classes, area_per_s=self.kv_capacity / batch_s)
        objectives = objective_records([Target(chosen.ttft_slo_s, chosen.tpot_slo_s)] * classes)
        return Params(config, *packed, objectives, self.profile.step_cost(), traffic.traffic("mean"), work)

    def _traffic(self, mean_rps: float) -> tuple[Workload, float]:
        """What arrives, requests or parcels of the fluid, and the requests that each stands for; sets the room for it."""
        chosen = self.scenario
        horizon_s = chosen.epochs * chosen.epoch_s
        traffic, parcel = self.workload, 1.0
        expected = mean_rps * horizon_s
        if chosen.mode == "fluid":
            if self.workload.arrivals.process not in ("renewal", "regular"):
                raise InvalidArgument(
                    f"mode='fluid' needs arrivals with a rate at every moment (poisson, gamma, regular), not "
                    f"{self.workload.arrivals.process!r}; use mode='event'"
                )
            parcel = mean_rps * chosen.epoch_s / PARCELS
            expected /= parcel
            # evenly spaced in operational time: the rate follows the same random levels as in event mode
            arrivals = replace(self.workload.arrivals, process="regular", cv=1.0)
            traffic = self.workload.with_arrivals(arrivals.with_rate(chosen.rate_rps / parcel))
        self.room = room(traffic.arrivals, expected, horizon_s)
        if self.room > MOST_REQUESTS:
            raise InvalidArgument(
                f"rate_rps={chosen.rate_rps:g} for {horizon_s:g} s: {expected:,.0f} requests an episode are too many"
            )
        return traffic, parcel

    def _mean(self, mix: NDArray[np.float64], f: Any) -> float:
        parts = [Workload(c.name, self.workload.arrivals, (c,)).expectation(f) for c in self.workload.classes]
        return float(mix @ np.array(parts))

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        chosen = self.scenario
        n, engines = self.room, lanes * chosen.max_replicas
        slots, seats, served = 1, 1, 0
        if chosen.mode == "event":
            # those in the system when an epoch begins, and what may reach one replica in an epoch
            seats, served = chosen.seats, n
            busiest = BUSIEST * chosen.epoch_s * n / (chosen.epochs * chosen.epoch_s)
            slots = min(n, chosen.waiting_cap + seats + math.ceil(busiest) + SPARE)
        width = max(seats + 1, len(self.workload.classes))
        return State(
            lane=Episode.zeros(lanes),
            engine=Engines(
                lane=Replica.zeros(engines),
                resident=Resident.zeros(engines, seats),
                request=Request.zeros(engines, slots),
                queue=np.zeros((engines, len(self.params.orders), slots + 2), np.int32),
                prefix=no_prefixes(engines),
                scratch=np.zeros((engines, SCRATCH_ROWS, width), np.int32),
                moved=np.zeros((engines, slots), np.int32),
            ),
            request=Drawn.zeros(lanes, n),
            served=np.zeros((lanes, TIMES, served), np.float32),
            fluid=np.zeros((lanes, QUANTITIES)),
            history=np.zeros((lanes, chosen.epochs + 1, HISTORY), np.float32),
        )

    hidden: ClassVar[dict[str, str]] = {
        "lane.requests": "at the end of the episode",
        "lane.checksum": "at the end of the episode",
        "request.arrival_s": "on arrival",
        "request.prompt": "on arrival",
        "request.predicted": "on arrival",
        "request.request_class": "when the request completes",
        "request.output": "when the request completes",
        "engine.lane.key": "never: chances of clearing",
        "engine.lane.next_finish": "when the request completes",
        "engine.resident.output": "when the request completes",
        "engine.resident.finish": "when the request completes",
        "engine.request.output": "when the request completes",
    }

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Other arrivals from the coming epoch on, and another rest of every output; see `Simulation.redraw`.

        A replica's last batch may end after its epoch; what completes with it counts as known.

        Args:
            state: arrays of all lanes.
            lane: number of the lane.
            key: seeds the other world, 0 to 2**63 - 1.
        """
        episode, requests = state.lane[lane], state.request[lane]
        rng = np.random.default_rng(key)
        other = self.world(key)
        drawn = other.request[0, : other.lane[0]["requests"]]
        arrived = int(episode["arrived"])
        coming = drawn[drawn["arrival_s"] >= episode["epoch"] * self.scenario.epoch_s]
        episode["requests"] = redraw_arrivals(requests, arrived, coming, rng)
        episode["checksum"] = checksum_of(requests, episode["requests"])
        if self.scenario.mode == "fluid":
            return
        longest = int(self.params.config[0]["longest"])
        door = requests[episode["next"] : arrived]
        most = np.maximum(longest - door["prompt"], 1)
        door["output"] = np.minimum(rng.choice(drawn["output"], len(door)) if len(drawn) else 1, most)
        engine = state.engine
        begin = lane * self.scenario.max_replicas
        for e in range(begin, begin + self.scenario.max_replicas):
            engine.lane[e]["key"] = rng.integers(2**63)
            redraw_outputs(engine, e, int(engine.lane[e]["filled"]), longest, drawn["output"], rng)

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode from its metrics: minus its cost."""
        return -metrics["cost"]


class KVProvisionEnv(LaneEnv):
    """How many replicas of an inference engine to run while the load and the lengths of requests change.

    ## Description
    A service runs up to G replicas of an engine, each on its own GPUs with a KV cache of `M` tokens; requests are handed out in
    turn. The agent sets the number of replicas for the next epoch (a minute, in most scenarios). A replica that is started
    serves only some epochs later but costs from the start; one that is stopped takes no new requests and goes off when it has
    finished what it has. Too few replicas, and the queue grows by what they cannot serve; too many cost money.

    The theory (Nie, Si, Zhou, ICML 2026, arXiv 2605.04595): a request of s prompt and o output tokens occupies an
    *area* g(s, o), tokens times batches. One replica erases at most M of it in a batch of b seconds, so it serves up to
    mu = M / (b E[g]) requests a second, and lambda requests a second need G = lambda / (0.9 mu) replicas. Areas grow with the
    square of the output: the same number of tokens a second can need 1.7 times the replicas. What there is to gain over
    the rule: anticipating the load (start-up takes time), knowing when a short queue is cheaper than a replica, and working
    a queue off.

    `mode="event"` runs an engine with its batches for every replica. `mode="fluid"` replaces them by queue' = lambda - G mu,
    in closed form, with the same random course of the rate: hundreds of times faster, for training.

    ## Action Space
    `Discrete(max_replicas + 1)`: the target, how many replicas shall serve. Draining replicas are taken back before others are
    started, starts are called off before replicas that serve are stopped. Targets below `min_replicas` are masked: such an
    action leaves the target as it is, is counted in `invalid_actions` and costs `invalid_cost`; `invalid_action="raise"` makes it
    an error. What cannot be represented (outside the space, a wrong dtype) always raises `InvalidAction`.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["rate"]` is the slice of a field, `layout.markdown()` prints the table. It
    holds what an operator can measure: arrival rate, estimates of E[g] and b from completed requests and full batches, the
    queue, the use of the caches, what the replicas do, and the time of day. The estimates begin at the values of a load
    test with the lengths of the first epoch.

    ## Rewards
    Minus the cost of the epoch: `gpu_cost` times GPU-hours (serving, starting and draining replicas, times the GPUs of a
    replica), plus `wait_cost` times the hours that requests spent waiting for admission, plus `slo_cost` for each completed
    request that missed an objective, plus penalties. The undiscounted return is minus `cost` in the metrics; its parts are
    `cost_gpu`, `cost_waiting`, `cost_slo` and `penalty`.

    ## Starting State
    `initial_replicas` are on and idle. The whole world (arrivals, lengths, random course of the rate) is drawn at reset
    from the seed, so two policies on one seed meet the same requests.

    ## Episode End
    1. Truncation: after `epochs` epochs.
    2. Termination: more than `waiting_cap` requests wait (`unstable`). The rest of the episode is charged as if the queue and the
       replicas stayed as they are (in `penalty`).

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/KVProvision-v0", scenario="paper-drift", load=0.6)
    envs = gymnasium.make_vec("llmgym/KVProvision-v0", num_envs=256, scenario="fluid-small")
    ```

    Args:
        scenario: `paper-drift`, `daily`, `surge`, `small`, `fluid-small`, or a `Scenario` (see
            `llmgym.envs.kv.provision.scenarios`). Each of its settings can be given as an argument of its own: `mode`,
            `max_replicas`, `min_replicas`, `initial_replicas`, `startup_epochs`, `epochs`, `epoch_s`, `load`, `rate_rps`,
            `shape`, `day_s`, `variance`, `level_s`, `correlation`, `mix`, `rule`, `kv_capacity`, `chunk`, `budget`, `seats`,
            `longest`, `overflow`, `first_token`, `waiting_cap`, `ttft_slo_s`, `tpot_slo_s`, `gpu_cost`, `wait_cost`,
            `slo_cost`, `ema_epochs`, `window`.
        invalid_action: `penalize` or `raise`.
        invalid_cost: cost of a masked action.
        workload: name or `Workload`, instead of the scenario's; with `shape=None` it keeps its own arrivals.
        profile: name or `Profile`, instead of the scenario's.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, workload, profile, rule or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = KVProvision


KVProvisionVectorEnv = vector_env(KVProvisionEnv)
