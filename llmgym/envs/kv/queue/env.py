"""KVQueue: which waiting requests enter the batch of an inference engine whose KV cache is full.

The model is that of Nie, Si and Zhou, "A Queueing-Theoretic Framework for Stability Analysis of LLM Inference with KV Cache
Memory Constraints", ICML 2026 (arXiv 2605.04595), sections 2 to 5, extended by what real engines do: a token budget a
batch, a watermark, preemption by recompute, and batch times from kernel profiles.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box, Discrete

from llmgym import profiles, workloads
from llmgym.core.checks import choice, number, whole
from llmgym.core.env import LaneEnv, LaneVectorEnv
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.settings import settled
from llmgym.core.statistics import counted
from llmgym.envs.kv.queue.kernels import (
    ADMIT,
    BIN_SHIFT,
    HISTOGRAM,
    KERNELS,
    LANE,
    LATENCY,
    METRICS,
    NUMBER,
    PICK,
    RULE,
    SCALARS,
    SLO,
    STABILITY,
    WATERMARK,
    Params,
    State,
)
from llmgym.envs.kv.queue.scenarios import SCENARIOS, Scenario
from llmgym.errors import InvalidArgument
from llmgym.serving.admission import SCRATCH_ROWS
from llmgym.serving.capacity import Saturation, exact_area, saturation, with_class_budgets
from llmgym.serving.hidden import redraw_arrivals, redraw_outputs
from llmgym.serving.requests import FIRST_TOKENS, REQUEST, set_limits
from llmgym.serving.residents import RESIDENT
from llmgym.serving.rules import CATALOGUE, ORDERS, Rule, pack, resolve
from llmgym.serving.settings import OVERFLOWS, SCHEDULINGS, cache_in_blocks, check_engine
from llmgym.workloads.workload import INFORMATION

UNKNOWN_BATCH_S = 0.02
"""Reference for the time of a batch where the closed forms have none (a workload without a rate), s."""
MODES = {"admit": ADMIT, "pick": PICK, "watermark": WATERMARK, "rule": RULE}
REWARDS = {"latency": LATENCY, "slo": SLO, "stability": STABILITY}

DEFAULT_RULES = ("wc-fcfs", "vllm", "reserve-peak", "mc-sf", "fcfs-lookahead", "smallest-area")


class KVQueue(Simulation):
    """The simulation behind `llmgym/KVQueue-v0`; see `KVQueueEnv` for the arguments."""

    kernels = KERNELS
    metric_names = METRICS
    headline_metrics = {  # noqa: RUF012
        "latency_mean_s": "min",
        "e2e_p99_s": "min",
        "ttft_p50_s": "min",
        "ttft_p99_s": "min",
        "goodput_rps": "max",
        "waiting_end": "min",
        "preemptions": "min",
    }

    def __init__(
        self,
        *,
        scenario: str | Scenario = "tiny",
        action: str = "admit",
        order: str = "arrival",
        rules: Sequence[str | Rule] | None = None,
        every: int = 1,
        slots: int = 8,
        reward: str = "latency",
        drop_cost: float = 0.0,
        invalid_action: str = "penalize",
        invalid_cost: float = 0.01,
        workload: str | workloads.Workload | None = None,
        profile: str | profiles.Profile | None = None,
        **settings: Any,
    ) -> None:
        chosen: Scenario = settled(scenario, SCENARIOS, settings, "KVQueue", ("about", "workload", "profile"))
        for name, value, known in (
            ("action", action, MODES),
            ("order", order, ORDERS),
            ("reward", reward, REWARDS),
            ("information", chosen.information, INFORMATION),
            ("invalid_action", invalid_action, ("penalize", "raise")),
        ):
            choice(name, value, known)
        for name in ("requests", "waiting_cap"):
            whole(name, getattr(chosen, name))
        check_engine(
            chunk=chosen.chunk,
            budget=chosen.budget,
            seats=chosen.seats,
            block=chosen.block,
            overflow=chosen.overflow,
            first_token=chosen.first_token,
            scheduling=chosen.scheduling,
        )
        whole("slots", slots)
        whole("every", every, 1, 2**16)  # a step is one compiled call, in which Python sees no signal
        if every > 1 and action not in ("rule", "watermark"):
            raise InvalidArgument(
                f"every={every!r}: more than 1 needs action='rule' or 'watermark', not {action!r}"
            )
        for name in ("horizon_s", "ttft_slo_s", "tpot_slo_s"):
            number(name, getattr(chosen, name))
        for name, cost in (("drop_cost", drop_cost), ("invalid_cost", invalid_cost)):
            number(name, cost, zero=True)

        self.workload = _load(workload or chosen.workload, workloads.load, workloads.Workload)
        self.profile = _load(profile or chosen.profile, profiles.load, profiles.Profile)
        self.workload = self.workload.with_requests(chosen.requests)
        capacity = self.profile.kv_capacity_tokens() if chosen.kv_capacity is None else chosen.kv_capacity
        capacity = cache_in_blocks(capacity, chosen.block)
        longest = capacity if chosen.longest is None else min(whole("longest", chosen.longest), capacity)
        first, _ = FIRST_TOKENS[chosen.first_token]
        self.predicted = _predict(self.workload, self.profile, chosen, capacity, first)
        if chosen.rate_rps is not None:
            self.workload = self.workload.with_rate(number("rate_rps", chosen.rate_rps))
        elif self.predicted is not None and math.isfinite(self.workload.mean_rate_rps):
            self.workload = self.workload.with_rate(number("load", chosen.load) * self.predicted.rate_rps)
        self.scenario = replace(
            chosen, kv_capacity=capacity, longest=longest, rate_rps=self.workload.mean_rate_rps
        )

        self.action_mode = action
        base = Rule("base", order=order)
        if action == "rule":
            self.rules = resolve(DEFAULT_RULES if rules is None else rules)
        elif action == "watermark":
            self.rules = (replace(CATALOGUE["vllm"], name="vllm", order=order),)
        else:
            self.rules = (base,)
        if rules is not None and action != "rule":
            raise InvalidArgument(f"rules={rules!r} needs action='rule', not {action!r}")
        self.rules = tuple(
            with_class_budgets(rule, self.workload, capacity, chosen.chunk) for rule in self.rules
        )
        records, class_budgets, orders = pack(
            self.rules, OVERFLOWS[chosen.overflow], len(self.workload.classes)
        )

        mean_prompt = self._mean(lambda s, o: s)
        mean_output = self._mean(lambda s, o: o)
        prompt_scale = min(self.workload.max_prompt_tokens, 4.0 * mean_prompt, longest)
        output_scale = min(self.workload.max_output_tokens, 4.0 * mean_output, longest)
        batch_s = self.predicted.batch_s if self.predicted else UNKNOWN_BATCH_S
        numbers = np.zeros(1, NUMBER)
        record = numbers[0]
        set_limits(
            record,
            kv_capacity=capacity,
            chunk=chosen.chunk,
            budget=chosen.budget,
            seats=chosen.seats,
            block=chosen.block,
            first_token=chosen.first_token,
            default_output=max(1, round(mean_output)),
            ttft_slo_s=chosen.ttft_slo_s,
            tpot_slo_s=chosen.tpot_slo_s,
        )
        record["longest"], record["waiting_cap"], record["horizon_s"] = (
            longest,
            chosen.waiting_cap,
            chosen.horizon_s,
        )
        record["mode"], record["reward"], record["slots"] = MODES[action], REWARDS[reward], slots
        record["every"] = every
        record["ahead"] = SCHEDULINGS[chosen.scheduling]
        record["idle_s"] = record["batch_ref_s"] = batch_s
        record["window_s"] = 100 * batch_s
        record["drop_cost"], record["invalid_cost"] = drop_cost, invalid_cost
        steps_scale = output_scale + math.ceil(prompt_scale / chosen.chunk)
        record["steps_per_bin"] = steps_scale / HISTOGRAM
        record["bins_per_step"] = math.ceil(2**BIN_SHIFT * HISTOGRAM / steps_scale)
        record["bins_per_token"] = math.ceil(2**BIN_SHIFT * HISTOGRAM / (prompt_scale + output_scale))
        for name, scale in (
            ("capacity", capacity),
            ("seat", chosen.seats),
            ("cap", chosen.waiting_cap),
            ("horizon", chosen.horizon_s),
            ("batch", batch_s),
            ("prefill", min(chosen.budget, capacity)),
            ("prompt", prompt_scale),
            ("output", output_scale),
            ("area", float(exact_area(prompt_scale, output_scale, chosen.chunk))),
            ("expected", max(min(chosen.requests, self.workload.mean_rate_rps * chosen.horizon_s), 1.0)),
        ):
            record[f"per_{name}"] = 1.0 / scale
        self.params = Params(
            numbers,
            records,
            class_budgets,
            orders,
            self.profile.step_cost(),
            self.workload.traffic(chosen.information, chosen.noise_scale),
        )
        self.reward = reward
        self.drop_cost = drop_cost
        self.raise_on_masked = invalid_action == "raise"
        self.privileged_observation = chosen.information == "exact" or (
            chosen.information == "noisy" and chosen.noise_scale == 0.0
        )
        self.layout = _layout(slots)
        if action == "watermark":
            self.action_space: Discrete[Any] | Box = Box(0.0, 0.3, (1,), np.float64)
        elif action == "rule":
            self.action_space = Discrete(len(self.rules))
        else:
            self.action_space = Discrete(slots + 1)

    def _mean(self, f: Any) -> float:
        return self.workload.expectation(f, _even(self.workload))

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        n, seats = self.scenario.requests, self.scenario.seats
        return State(
            lane=np.zeros(lanes, LANE),
            resident=np.zeros((lanes, seats), RESIDENT),
            request=np.zeros((lanes, n), REQUEST),
            queue=np.zeros((lanes, len(self.params.orders), n + 2), np.int32),
            scratch=np.zeros(
                (lanes, SCRATCH_ROWS, max(seats + 1, HISTOGRAM, len(self.workload.classes))), np.int32
            ),
        )

    hidden: ClassVar[dict[str, str]] = {
        "lane.key": "never: chances of clearing",
        "lane.requests": "at the end of the episode",
        "lane.per_request": "at the end of the episode",
        "lane.checksum": "at the end of the episode",
        "lane.next_finish": "when the request completes",
        "resident.output": "when the request completes",
        "resident.finish": "when the request completes",
        "request.output": "when the request completes",
        "request.arrival_s": "on arrival",
        "request.prompt": "on arrival",
        "request.predicted": "on arrival",
        "request.kind": "on arrival",
    }
    shown: ClassVar[frozenset[str]] = frozenset(
        {"lane.clock_s", "lane.seen_s", "lane.waiting_area", "lane.allowed", "request.area", "scratch"}
    )

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Other arrivals from now on, and another rest of every output; see `Simulation.redraw`."""
        episode, requests = state.lane[lane], state.request[lane]
        rng = np.random.default_rng(key)
        other = self.world(key)
        drawn = other.request[0, : other.lane[0]["requests"]]
        arrived = int(episode["next"])
        coming = drawn[drawn["arrival_s"] > max(episode["clock_s"], episode["seen_s"])]
        count = redraw_arrivals(requests, arrived, coming, rng)
        longest = int(self.params.config[0]["longest"])
        redraw_outputs(state, lane, arrived, longest, drawn["output"], rng)
        episode["key"] = key
        episode["requests"], episode["per_request"] = count, 1.0 / max(count, 1)
        asked = requests[:count]
        episode["checksum"] = float((asked["arrival_s"] + asked["prompt"] + 1e-3 * asked["output"]).sum())

    def audit(self, state: State, lane: int) -> dict[str, float]:
        """Recount requests and tokens from the raw arrays."""
        episode = state.lane[lane]
        residents = state.resident[lane, : episode["residents"]]
        first, stored = FIRST_TOKENS[self.scenario.first_token]
        decoding = residents["decoding"] == 1
        produced = np.where(decoding, episode["tick"] - residents["base"], residents["kept"])
        kv = np.where(
            decoding,
            residents["prompt"] - residents["kept"] + produced - (first - stored),
            residents["prefilled"],
        )
        block = self.scenario.block
        kv = -(-kv // block) * block
        line = state.queue[lane, 0]
        waiting = line[2 + line[0] : 2 + line[1]]
        requests = state.request[lane]
        served = np.flatnonzero(requests["e2e_s"][: episode["next"]] >= 0)
        prompts = requests["prompt"][: episode["next"]]
        rejected = np.flatnonzero(prompts >= int(self.params.config[0]["longest"]))
        everyone = np.concatenate([residents["request"], waiting, served, rejected])
        outputs, kept = requests["output"], requests["kept"]
        return {
            "arrived": float(episode["next"]),
            "waiting": float(len(waiting)),
            "waiting_counted": float(episode["waiting"]),
            "running": float(episode["residents"]),
            "done": float(len(served)),
            "done_counted": float(episode["done"]),
            "rejected": float(len(rejected)),
            "distinct": float(len(np.unique(everyone))),
            "kv_used": float(episode["used"]),
            "kv_resident": float(kv[residents["paused"] == 0].sum()),
            "kv_capacity": float(self.scenario.kv_capacity or 0),
            "kv_planned": float(episode["used"] + episode["growth"]),
            "clock_s": float(episode["clock_s"]),
            "work_asked": float(outputs[: episode["next"]].sum() - outputs[rejected].sum()),
            "work_done": float(outputs[served].sum() + produced.sum() + kept[waiting].sum()),
            "work_left": float(
                (residents["output"] - produced).sum() + (outputs[waiting] - kept[waiting]).sum()
            ),
        }

    def potential(self, state: State, lane: int) -> int:
        """V: remaining area of every request in the system, tokens x batches, recounted from true lengths.

        With no recompute and no budget, V falls in every batch by exactly the tokens of the residents that ran, and rises
        by the area of the requests that arrive (section 3 of the paper).
        """
        episode = state.lane[lane]
        chunk, (first, stored) = self.scenario.chunk, FIRST_TOKENS[self.scenario.first_token]
        total = 0
        for r in state.resident[lane, : episode["residents"]]:
            prompt, output = int(r["prompt"]), int(r["output"])
            done = int(episode["tick"] - r["base"]) if r["decoding"] else int(r["kept"])
            prefilled = int(r["prefilled"])
            while prefilled < prompt:
                prefilled = min(prefilled + chunk, prompt)
                total += prefilled
                if prefilled == prompt:
                    done += first
                    total += stored
            total += sum(prompt - int(r["kept"]) + d - (first - stored) for d in range(done + 1, output + 1))
        line = state.queue[lane, 0]
        waiting = line[2 + line[0] : 2 + line[1]]
        s, o = state.request["prompt"][lane, waiting], state.request["output"][lane, waiting]
        return total + int(exact_area(s, o, chunk, first, stored).sum())

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode from its metrics (see `reward`)."""
        value = -metrics["penalty"]
        if self.reward == "latency":
            value -= counted(metrics["latency_mean_s"]) + self.drop_cost * metrics["dropped_of_capacity"]
        elif self.reward == "slo":
            value += counted(metrics["slo_attainment"])
        else:
            value += metrics["stability"]
        return value

    def render(self, state: State, lane: int, mode: str) -> Any:
        """A picture or a text of one lane."""
        from llmgym.envs.kv.queue.view import picture, text

        return (picture if mode == "rgb_array" else text)(self.scenario, state, lane)

    def settings(self) -> dict[str, Any]:
        """The scenario with everything resolved, for reports."""
        return asdict(self.scenario)


def _layout(slots: int) -> Layout:
    layout = Layout(
        [
            Field("kv.used", 1, 0, 1, "M", "tokens in the cache"),
            Field("kv.free", 1, 0, 1, "M", "tokens left after the coming batch"),
            Field("kv.peak", 1, 0, 4, "M", "predicted peak of the residents, by bins of remaining batches"),
            Field("residents", 1, 0, 1, "seats", "requests in the batch"),
            Field("waiting", 1, 0, 1, "waiting_cap", "requests waiting"),
            Field("backlog", 1, 0, 1, "100 M", "predicted tokens x batches left in the system"),
            Field(
                "load", 1, 0, 4, "M per batch", "estimate of the offered load: predicted area that arrives"
            ),
            Field("batch.time", 1, 0, 4, "reference batch", "duration of the last batch"),
            Field("batch.prefill", 1, 0, 1, "budget or M", "prompt tokens of the last batch"),
            Field("blocked", 1, 0, 1, "-", "1 if the coming batch had to pause or preempt: no admission"),
            Field("preemptions", 1, 0, 1, "expected requests", "preemptions so far"),
            Field(
                "progress",
                1,
                0,
                2,
                "expected requests",
                "requests completed; expected are rate x horizon, at most `requests`",
            ),
            Field("time", 1, 0, 1, "horizon_s", "clock"),
            Field("picked", 1, 0, 1, "seats", "requests picked for the coming batch (action='pick')"),
            Field(
                "residents.remaining", HISTOGRAM, 0, 1, "seats", "histogram of predicted remaining batches"
            ),
            Field("residents.footprint", HISTOGRAM, 0, 1.0001, "seats", "histogram of tokens held"),
            Field(
                "queue",
                4 * slots,
                0,
                1,
                "scales",
                "for each of the first waiting requests: prompt, predicted output, "
                "wait / (wait + 100 reference batches), predicted area",
            ),
        ]
    )
    assert layout["residents.remaining"].start == SCALARS
    return layout


def _even(workload: workloads.Workload) -> list[float] | None:
    """Equal weights where the shares of a workload's phases depend on the episode."""
    return (
        None if len(workload.phases) == 1 or workload.phase_by == "fraction" else [1.0] * len(workload.phases)
    )


def _predict(
    workload: workloads.Workload, profile: profiles.Profile, scenario: Scenario, capacity: int, first: int
) -> Saturation | None:
    """The saturated engine, where the workload is one law; otherwise the mixture with equal shares."""
    return saturation(
        workload, profile, capacity, scenario.chunk, scenario.budget, scenario.seats, first, _even(workload)
    )


def _load(value: Any, load: Any, kind: type) -> Any:
    return value if isinstance(value, kind) else load(value)


class KVQueueEnv(LaneEnv):
    """Which waiting requests enter the batch of an inference engine whose KV cache is full.

    ## Description
    Requests arrive with a prompt of `s` tokens and will produce `o` output tokens; `s` is known on arrival, `o` only at
    the end. An engine works in batches. In a batch every admitted request advances by one unit: a chunk of its prompt, or
    one output token. All tokens of admitted requests stay in the KV cache, which holds `M` tokens, until they complete. The
    agent decides before each batch which waiting requests join. Admitting too few leaves memory idle; admitting too many
    makes running requests outgrow the cache later, so that some are paused or lose their work; and the order decides
    who waits. One step is one batch (with `action="pick"`: one choice).

    The theory (Nie, Si, Zhou, ICML 2026, arXiv 2605.04595): a request costs an *area* g(s, o), tokens times batches, and a batch
    erases at most M of it. The engine is stable up to mu = M / (b E[g]) requests a second, b the seconds of a batch, and any rule
    that keeps the cache full reaches it. What a scheduler can gain is latency, by order and by avoiding recomputation.

    ## Action Space
    Depends on `action`:

    - `"admit"` (default): `Discrete(slots + 1)`, how many waiting requests to admit, from the front of `order`. Masked: more
      than fit into the coming batch, and 0 while nothing runs and something would fit.
    - `"pick"`: `Discrete(slots + 1)`, 1..slots admits that one of the first waiting requests (no time passes), 0 runs the batch.
      Masked: requests whose first chunk does not fit, and 0 while nothing runs and one of them would fit.
    - `"watermark"`: `Box(0, 0.3, (1,))`, the share of M that vLLM's admission keeps free in this batch.
    - `"rule"`: `Discrete(len(rules))`, which published rule decides about this batch.

    A masked action admits nothing, is counted in `invalid_actions` and costs `invalid_cost`; `invalid_action="raise"` makes it an
    error. What cannot be represented (outside the space, NaN, a wrong dtype) always raises `InvalidAction`.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["queue"]` is the slice of a field, `layout.markdown()` prints the table.
    It holds what a scheduler can know: the state of the cache, histograms of the residents' predicted remaining batches
    and of their footprints, an estimate of the offered load, and the first `slots` waiting requests. Output lengths
    appear only as predictions, as good as `information` says.

    ## Rewards
    - `"latency"` (default): minus the requests in the system, integrated over the step, over the number of requests of the
      episode, minus `drop_cost` times tokens dropped by preemption over M. When every request is served, the undiscounted return
      is minus the mean latency in seconds (Little's law).
    - `"slo"`: 1 / requests for each request completed within both objectives: the return is the SLO attainment.
    - `"stability"`: tokens in the cache over M minus 1, for each batch: how far the cache is from being full.

    ## Starting State
    An idle engine at the arrival of the first request. The whole world (arrivals, lengths, predictions) is drawn at reset from
    the seed, so two policies on one seed meet the same requests.

    ## Episode End
    1. Termination: every request was served or rejected (no cost can follow, so the value is 0).
    2. Termination: more than `waiting_cap` requests wait. With `"latency"`, everybody is charged as if nobody were served
       until `horizon_s`.
    3. Truncation: the clock passes `horizon_s`.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/KVQueue-v0", scenario="azure-conv", action="admit", information="noisy")
    envs = gymnasium.make_vec("llmgym/KVQueue-v0", num_envs=1024, scenario="tiny", load=1.1)
    ```

    Args:
        scenario: `paper-1:1`, `paper-2:1`, `paper-1:2`, `mixed`, `8:1-guess`, `tiny`, `tiny-overload`, `azure-conv`,
            `azure-conv-tight`, `azure-code`, `mooncake`, or a `Scenario`. Each of its settings (`load`, `rate_rps`, `requests`,
            `horizon_s`, `kv_capacity`, `chunk`, `budget`, `seats`, `block`, `scheduling`, `longest`, `overflow`, `first_token`,
            `information`,
            `noise_scale`, `waiting_cap`, `ttft_slo_s`, `tpot_slo_s`) can be given as an argument of its own.
        action: what is decided, see above.
        order: base order of waiting requests: `arrival`, `shortest-output` or `smallest-area` (predicted).
        rules: for `action="rule"`: names of the catalogue (`"vllm:watermark=0.05"` changes a number) or `Rule` objects.
        every: batches that a decision lasts, for `rule` and `watermark`; it ends early with the episode.
        slots: waiting requests that an observation shows.
        reward: `latency`, `slo` or `stability`.
        drop_cost: cost of dropping a whole cache of tokens, in units of the return.
        invalid_action: `penalize` or `raise`.
        invalid_cost: cost of a masked action.
        workload: name or `Workload`, instead of the scenario's.
        profile: name or `Profile`, instead of the scenario's.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, workload, profile, rule or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = KVQueue


class KVQueueVectorEnv(LaneVectorEnv):
    """Many lanes of `KVQueueEnv`; see `llmgym.core.env.LaneVectorEnv` for the arguments of every vector environment."""

    simulation_class = KVQueue
