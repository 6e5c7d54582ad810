"""KVProvision: how many replicas of an inference engine to run while load and request lengths change.

The capacity question of Nie, Si and Zhou, "A Queueing-Theoretic Framework for Stability Analysis of LLM Inference with KV
Cache Memory Constraints", ICML 2026 (arXiv 2605.04595), sections 4 and 5: one replica serves M / (b E[g]) requests a
second, so lambda of them need G = lambda / (rho mu) replicas. Here the two sides move, and replicas take time to start.
"""

import math
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from llmgym import profiles, workloads
from llmgym.core.checks import number, whole
from llmgym.core.env import LaneEnv, LaneVectorEnv
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.envs.kv.provision.kernels import KERNELS
from llmgym.envs.kv.provision.scenarios import (
    MODES,
    Scenario,
    mixtures,
    multipliers,
    resolve_scenario,
    resolve_workload,
    room,
)
from llmgym.envs.kv.provision.state import (
    AREA,
    BATCHES,
    COMMON,
    HISTORY,
    LANE,
    NUMBER,
    REPLICA,
    REQUEST_LEVEL,
    REQUESTS,
    SCALARS,
    TOKENS,
    WORK_S,
    Engines,
    Params,
    State,
)
from llmgym.errors import InvalidArgument, UnknownName
from llmgym.serving.admission import SCRATCH_ROWS
from llmgym.serving.capacity import Saturation, exact_area, gpus_needed, saturation, with_class_budgets
from llmgym.serving.hidden import redraw_arrivals, redraw_outputs
from llmgym.serving.requests import FIRST_TOKENS, REQUEST, set_limits
from llmgym.serving.residents import RESIDENT
from llmgym.serving.rules import pack, resolve
from llmgym.serving.settings import OVERFLOWS
from llmgym.workloads import Workload

PARCELS = 100
"""Fluid: pieces in which the requests of a mean epoch arrive."""
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
        chosen = resolve_scenario(scenario, settings)
        if invalid_action not in ("penalize", "raise"):
            raise UnknownName("invalid_action", invalid_action, ("penalize", "raise"))
        number("invalid_cost", invalid_cost, zero=True)
        given = chosen.workload if workload is None else workload
        asked = given if isinstance(given, Workload) else workloads.load(given)
        costs = chosen.profile if profile is None else profile
        self.profile = costs if isinstance(costs, profiles.Profile) else profiles.load(costs)
        self.gpus = self.profile.tensor_parallel
        capacity = self.profile.kv_capacity_tokens() if chosen.kv_capacity is None else chosen.kv_capacity
        self.kv_capacity = whole("kv_capacity", capacity)
        longest = capacity if chosen.longest is None else min(whole("longest", chosen.longest), capacity)

        asked = resolve_workload(chosen, asked)
        self.saturated = self._saturated(asked, chosen)
        mix = mixtures(asked, chosen.epochs, chosen.epoch_s)
        shape = multipliers(asked.arrivals, chosen.epochs, chosen.epoch_s)
        work = self._work(asked)
        replicas_per_rps = mix @ work[:, WORK_S] * shape
        rate_rps = chosen.rate_rps
        if rate_rps is None:
            rate_rps = chosen.load * chosen.max_replicas / float(replicas_per_rps.mean())
        self.workload = asked.with_rate(rate_rps)
        self.nominal_load = rate_rps * replicas_per_rps
        self.scenario = replace(chosen, kv_capacity=self.kv_capacity, longest=longest, rate_rps=rate_rps)
        self.metric_names = COMMON if chosen.mode == "fluid" else COMMON + REQUEST_LEVEL
        self.headline_metrics = {
            "cost": "min",
            "gpu_hours": "min",
            "waiting_mean": "min",
            "waiting_end": "min",
            "switches": "min",
            "utilization": "max",
        }
        if chosen.mode == "event":
            self.headline_metrics |= {"ttft_p99_s": "min", "slo_attainment": "max"}
        self.raise_on_masked = invalid_action == "raise"
        self.action_space: Discrete[Any] = Discrete(chosen.max_replicas + 1)
        self.layout = _layout(chosen)
        self.params = self._params(work, float(shape[0]), mix[0], float(shape.mean()), invalid_cost)

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
        """What a request of each class brings into the fluid, float64 [classes, 5]."""
        work = np.zeros((len(workload.classes), 5))
        for row, c, full in zip(work, workload.classes, self.saturated, strict=True):
            single = Workload(c.name, workload.arrivals, (c,))
            row[REQUESTS] = 1.0
            row[AREA] = full.mean_area
            row[WORK_S] = 1.0 / full.rate_rps
            row[TOKENS] = single.expectation(lambda s, o: s + o)
            row[BATCHES] = 1.0 / (full.rate_rps * full.batch_s)
        return work

    def _params(
        self,
        work: NDArray[np.float64],
        first_multiplier: float,
        mix: NDArray[np.float64],
        mean_multiplier: float,
        invalid_cost: float,
    ) -> Params:
        chosen = self.scenario
        assert chosen.rate_rps is not None
        numbers = np.zeros(1, NUMBER)
        record = numbers[0]
        set_limits(
            record,
            kv_capacity=self.kv_capacity,
            chunk=chosen.chunk,
            budget=chosen.budget,
            seats=chosen.seats,
            block=1,
            first_token=chosen.first_token,
            default_output=max(1, round(self._mean(mix, lambda s, o: o))),
            ttft_slo_s=chosen.ttft_slo_s,
            tpot_slo_s=chosen.tpot_slo_s,
        )
        for name in (
            "longest",
            "waiting_cap",
            "epochs",
            "epoch_s",
            "gpu_cost",
            "wait_cost",
            "slo_cost",
            "window",
        ):
            record[name] = getattr(chosen, name)
        record["mode"], record["gpus"], record["invalid_cost"] = MODES[chosen.mode], self.gpus, invalid_cost
        record["replicas"], record["least"] = chosen.max_replicas, chosen.min_replicas
        record["startup"] = chosen.startup_epochs
        record["ema"] = 1.0 - math.exp(-1.0 / chosen.ema_epochs)
        horizon_s = chosen.epochs * chosen.epoch_s
        profile = self.workload.arrivals.profile
        day_s = profile.period_s if profile is not None and profile.period_s is not None else horizon_s
        record["day_s"] = day_s
        start = mix @ work
        record["area_ref"], record["tokens_ref"] = start[AREA], start[TOKENS]
        record["batch_ref"] = record["idle_s"] = start[WORK_S] / start[BATCHES]
        mu = self.kv_capacity / (record["batch_ref"] * record["area_ref"])
        record["mu_ref"], record["rate_scale"] = mu, chosen.max_replicas * mu
        record["rate_start"] = chosen.rate_rps * first_multiplier
        record["drain_s"] = record["batch_ref"] * self._mean(mix, lambda s, o: np.ceil(s / chosen.chunk) + o)
        initial = chosen.initial_replicas
        if initial is None:
            initial = gpus_needed(chosen.rate_rps * first_multiplier, mu, UTILIZATION)
            initial = min(max(initial, chosen.min_replicas, 1), chosen.max_replicas)
        record["initial"] = initial

        expected = chosen.rate_rps * mean_multiplier * horizon_s
        traffic = self.workload
        record["parcel"] = 1.0
        if chosen.mode == "fluid":
            if self.workload.arrivals.process not in ("renewal", "regular"):
                raise InvalidArgument(
                    f"mode='fluid' needs arrivals with a rate at every moment (poisson, gamma, regular), not "
                    f"{self.workload.arrivals.process!r}; use mode='event'"
                )
            parcel = chosen.rate_rps * mean_multiplier * chosen.epoch_s / PARCELS
            record["parcel"] = parcel
            expected /= parcel
            # evenly spaced in operational time: the rate follows the same random levels as in event mode
            arrivals = replace(self.workload.arrivals, process="regular", cv=1.0)
            traffic = self.workload.with_arrivals(arrivals.with_rate(chosen.rate_rps / parcel))
        self.room = room(traffic.arrivals, expected, horizon_s)
        if self.room > 2**27:
            raise InvalidArgument(
                f"rate_rps={chosen.rate_rps:g} for {horizon_s:g} s: {expected:,.0f} requests an episode are too many"
            )
        (rule,) = resolve((chosen.rule,))
        rules = (with_class_budgets(rule, self.workload, self.kv_capacity, chosen.chunk),)
        records, class_budgets, orders = pack(rules, OVERFLOWS[chosen.overflow], len(self.workload.classes))
        return Params(
            numbers, records, class_budgets, orders, self.profile.step_cost(), traffic.traffic("mean"), work
        )

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
            busiest = 1.5 * chosen.epoch_s * n / (chosen.epochs * chosen.epoch_s)
            slots = min(n, chosen.waiting_cap + seats + math.ceil(busiest) + 64)
        return State(
            lane=np.zeros(lanes, LANE),
            engine=Engines(
                lane=np.zeros(engines, REPLICA),
                resident=np.zeros((engines, seats), RESIDENT),
                request=np.zeros((engines, slots), REQUEST),
                queue=np.zeros((engines, len(self.params.orders), slots + 2), np.int32),
                scratch=np.zeros(
                    (engines, SCRATCH_ROWS, max(seats + 1, len(self.workload.classes))), np.int32
                ),
                moved=np.zeros((engines, slots), np.int32),
            ),
            request=np.zeros((lanes, n), REQUEST),
            served=np.zeros((lanes, 3, served), np.float32),
            fluid=np.zeros((lanes, 5)),
            history=np.zeros((lanes, chosen.epochs + 1, HISTORY), np.float32),
        )

    hidden: ClassVar[dict[str, str]] = {
        "lane.requests": "at the end of the episode",
        "lane.checksum": "at the end of the episode",
        "request.arrival_s": "on arrival",
        "request.prompt": "on arrival",
        "request.predicted": "on arrival",
        "request.kind": "when the request completes",
        "request.output": "when the request completes",
        "engine.lane.key": "never: chances of clearing",
        "engine.lane.next_finish": "when the request completes",
        "engine.resident.output": "when the request completes",
        "engine.resident.finish": "when the request completes",
        "engine.request.output": "when the request completes",
    }
    shown: ClassVar[frozenset[str]] = frozenset({"request.ttft_s", "request.e2e_s"})

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Other arrivals from the coming epoch on, and another rest of every output; see `Simulation.redraw`.

        A replica's last batch may end after its epoch; what completes with it counts as known.
        """
        episode, requests = state.lane[lane], state.request[lane]
        rng = np.random.default_rng(key)
        other = self.world(key)
        drawn = other.request[0, : other.lane[0]["requests"]]
        arrived = int(episode["arrived"])
        coming = drawn[drawn["arrival_s"] >= episode["epoch"] * self.scenario.epoch_s]
        episode["requests"] = redraw_arrivals(requests, arrived, coming, rng)
        asked = requests[: episode["requests"]]
        episode["checksum"] = float((asked["arrival_s"] + asked["prompt"] + 1e-3 * asked["output"]).sum())
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

    def loads(self, state: State, lane: int, epochs: int | None = None) -> NDArray[np.float64]:
        """Work that arrives in each of the first epochs of this episode, in replicas (float64 [epochs]).

        Counted from the true lengths, also of epochs that have not begun: a real operator cannot know it.
        """
        chosen = self.scenario
        count = chosen.epochs if epochs is None else epochs
        requests = state.request[lane, : state.lane[lane]["requests"]]
        per_class = self.params.work[requests["kind"], WORK_S]
        if chosen.mode == "fluid":
            work_s = self.params.config["parcel"][0] * per_class
        else:
            first, _ = FIRST_TOKENS[chosen.first_token]
            areas = exact_area(requests["prompt"], requests["output"], chosen.chunk, first)
            accepted = (requests["prompt"] > 0) & (requests["prompt"] < chosen.longest)
            work_s = np.where(accepted, areas * per_class / self.params.work[requests["kind"], AREA], 0.0)
        epoch = (requests["arrival_s"] / chosen.epoch_s).astype(np.int64)
        return np.bincount(epoch, work_s, minlength=count)[:count] / chosen.epoch_s

    def audit(self, state: State, lane: int) -> dict[str, float]:
        """Recount requests and tokens of all replicas from the raw arrays."""
        episode = state.lane[lane]
        chosen = self.scenario
        if chosen.mode == "fluid":
            parcels = int(
                np.sum(
                    state.request["arrival_s"][lane, : episode["requests"]]
                    < episode["epoch"] * chosen.epoch_s
                )
            )
            came = self.params.work[state.request["kind"][lane, :parcels], WORK_S].sum()
            parcel = float(self.params.config["parcel"][0])
            return {
                "arrived": parcels * parcel,
                "waiting": float(state.fluid[lane, REQUESTS]),
                "running": 0.0,
                "done": float(episode["completed"]),
                "rejected": 0.0,
                "clock_s": float(episode["epoch"] * chosen.epoch_s),
                "work_asked": float(came * parcel),
                "work_done": float(episode["used_s"]),
                "work_left": float(state.fluid[lane, WORK_S]),
            }
        begin = lane * chosen.max_replicas
        engine, mine = state.engine, range(begin, begin + chosen.max_replicas)
        first, stored = FIRST_TOKENS[chosen.first_token]
        waiting = running = used = resident_tokens = fullest = live = distinct = queued_area = 0
        for e in mine:
            r = engine.lane[e]
            residents = engine.resident[e, : r["residents"]]
            line = engine.queue[e, 0]
            queued = line[2 + line[0] : 2 + line[1]]
            decoding = residents["decoding"] == 1
            produced = r["tick"] - residents["base"]
            kv = np.where(
                decoding,
                residents["prompt"] - residents["kept"] + produced - (first - stored),
                residents["prefilled"],
            )
            waiting += len(queued)
            queued_area += int(engine.request["area"][e, queued].sum())
            running += len(residents)
            used += int(r["used"])
            fullest = max(fullest, int(r["kv_peak"]))
            resident_tokens += int(kv[residents["paused"] == 0].sum())
            live += int(r["filled"])
            distinct += len(np.unique(np.concatenate([residents["request"], queued])))
        arrived = state.request["arrival_s"][lane, : episode["requests"]] < episode["epoch"] * chosen.epoch_s
        prompts = state.request["prompt"][lane, : episode["requests"]]
        door = int(np.sum(prompts[episode["next"] : episode["arrived"]] > 0))
        return {
            "arrived": float(arrived.sum()),
            "waiting": float(waiting + door),
            "waiting_counted": float(episode["waiting"]),
            "waiting_area": float(queued_area),
            "waiting_area_counted": float(
                engine.lane["waiting_area"][begin : begin + chosen.max_replicas].sum()
            ),
            "running": float(running),
            "live": float(live),
            "distinct": float(distinct),
            "done": float(episode["served"]),
            "done_counted": float(engine.lane["done"][begin : begin + chosen.max_replicas].sum()),
            "rejected": float(np.sum(prompts[: episode["arrived"]] == 0)),
            "kv_used": float(used),
            "kv_resident": float(resident_tokens),
            "kv_fullest": float(fullest),
            "kv_capacity": float(self.kv_capacity),
            "clock_s": float(episode["epoch"] * chosen.epoch_s),
        }

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode from its metrics: minus its cost."""
        return -metrics["cost"]

    def render(self, state: State, lane: int, mode: str) -> Any:
        """A picture or a text of one lane."""
        from llmgym.envs.kv.provision.view import picture, text

        if mode == "ansi":
            return text(self.scenario, self.kv_capacity, state, lane)
        return picture(
            self.scenario, self.gpus, self.loads(state, lane, int(state.lane["epoch"][lane])), state, lane
        )

    def settings(self) -> dict[str, Any]:
        """The scenario with everything resolved, for reports."""
        return asdict(self.scenario)


def _layout(chosen: Scenario) -> Layout:
    cluster = "mu_ref G"
    layout = Layout(
        [
            Field("rate", 1, 0, 4, cluster, "arrivals a second, moving average"),
            Field("rate.last", 1, 0, 4, cluster, "arrivals a second in the last epoch"),
            Field(
                "mu",
                1,
                0,
                4,
                "mu_ref",
                "estimate of M / (b E[g]): requests a second that one replica can serve",
            ),
            Field("area", 1, 0, 4, "area_ref", "estimate of E[g] from completed requests, tokens x batches"),
            Field(
                "batch.time",
                1,
                0,
                4,
                "batch_ref",
                "estimate of b from batches with more than 0.8 M in the cache",
            ),
            Field("tokens", 1, 0, 4, "tokens_ref", "mean prompt and output tokens of completed requests"),
            Field("need", 1, 0, 4, "G", "rate / mu: replicas that would be fully used"),
            Field("waiting", 1, 0, 1, "waiting_cap", "requests waiting, over all replicas"),
            Field("waiting.log", 1, 0, 1, "log(1 + waiting_cap)", "log(1 + requests waiting)"),
            Field("waiting.growth", 1, -1, 1, cluster, "change of the requests waiting, a second"),
            Field(
                "kv.mean",
                1,
                0,
                1,
                "M",
                "tokens in the cache, mean over the epoch and the replicas that are on",
            ),
            Field("kv.max", 1, 0, 1, "M", "the same of the fullest replica"),
            Field("on", 1, 0, 1, "G", "replicas that serve"),
            Field("draining", 1, 0, 1, "G", "replicas that finish what they have and then stop"),
            Field("target", 1, 0, 1, "G", "the previous action"),
            Field("day.sin", 1, -1, 1, "-", "sine of the time of day"),
            Field("day.cos", 1, -1, 1, "-", "cosine of the time of day"),
            Field("starting", 1, 0, 1, "G", "replicas that start"),
            Field(
                "starting.in",
                max(chosen.startup_epochs, 1),
                0,
                1.0001,
                "G",
                "those that serve after 1, 2, ... more epochs",
            ),
        ]
    )
    assert layout["starting.in"].start == SCALARS
    return layout


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


class KVProvisionVectorEnv(LaneVectorEnv):
    """Many lanes of `KVProvisionEnv`; see `llmgym.core.env.LaneVectorEnv` for the arguments of every vector environment."""

    simulation_class = KVProvision
