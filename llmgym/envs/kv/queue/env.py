"""KVQueue: which waiting requests enter the batch of an inference engine whose KV cache is full.

The model is that of Nie, Si and Zhou, "A Queueing-Theoretic Framework for Stability Analysis of LLM Inference with KV Cache
Memory Constraints", ICML 2026 (arXiv 2605.04595), sections 2 to 5, extended by what real engines do: a token budget a
batch, a watermark, preemption by recompute, and batch times from kernel profiles.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box, Discrete

from llmgym import profiles, workloads
from llmgym.core.checks import choice, number, whole
from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.settings import settled
from llmgym.core.statistics import counted
from llmgym.envs.kv.queue.kernels import KERNELS
from llmgym.envs.kv.queue.scenarios import SCENARIOS, Scenario
from llmgym.envs.kv.queue.state import (
    ADMIT,
    BIN_SHIFT,
    HEADLINE,
    HISTOGRAM,
    LATENCY,
    PER_REQUEST,
    PICK,
    RULE,
    SLO,
    STABILITY,
    WATERMARK,
    Config,
    Episode,
    Metrics,
    Observation,
    Params,
    State,
)
from llmgym.errors import InvalidArgument
from llmgym.serving.admission import SCRATCH_ROWS
from llmgym.serving.capacity import OUTPUT, PROMPT, exact_area, saturation, with_class_budgets
from llmgym.serving.hidden import redraw_arrivals, redraw_outputs
from llmgym.serving.requests import FIRST_TOKENS, checksum_of, derived_limits
from llmgym.serving.rules import CATALOGUE, Rule, pack, resolve
from llmgym.serving.settings import HELD, OVERFLOWS, SCHEDULINGS, SYNC, cache_in_blocks, check_overflow
from llmgym.serving.state import Request, Resident, no_prefixes
from llmgym.serving.targets import Target, objective_records

MOST_BATCHES = 2**16
"""A decision lasts no more batches: it is one compiled call, in which Python sees no signal."""
MOST_WATERMARK = 0.3
"""Largest watermark of `action="watermark"`; the best of the rule's grid are below 0.1."""
BATCHES_OF_LOAD = 100
"""Reference batches over which the estimate of the offered load averages."""
LONG = 4.0
"""Lengths are shown up to so many times the mean of the workload; most lie below, and a few would make all others look alike."""
MODES = {"admit": ADMIT, "pick": PICK, "watermark": WATERMARK, "rule": RULE}
REWARDS = {"latency": LATENCY, "slo": SLO, "stability": STABILITY}

DEFAULT_RULES = ("wc-fcfs", "vllm", "reserve-peak", "mc-sf", "fcfs-lookahead", "smallest-area")


class KVQueue(Simulation):
    """The simulation behind `llmgym/KVQueue-v0`; see `KVQueueEnv` for the arguments.

    Attributes:
        scenario: the settings, with everything resolved.
        workload: who asks, at the rate of the scenario.
        profile: what a batch costs.
        predicted: the saturated engine by the closed forms; where the shares of phases depend on the episode, with equal shares.
        rules: those that can be in force.
        action_mode: what is decided, a key of `MODES`.
        reward: what is rewarded, a key of `REWARDS`.
    """

    kernels = KERNELS
    metrics = Metrics
    headline: ClassVar[tuple[str, ...]] = HEADLINE
    view = "llmgym.envs.kv.queue.view"

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
        super().__init__(invalid_action=invalid_action, invalid_cost=invalid_cost)
        chosen: Scenario = settled(scenario, SCENARIOS, settings, "KVQueue", ("about", "workload", "profile"))
        check_overflow(chosen.overflow, chosen.block, chosen.scheduling)
        self.action_mode = choice("action", action, MODES)
        self.reward = choice("reward", reward, REWARDS)
        choice("order", order, ("arrival", "shortest-output", "smallest-area"))
        whole("slots", slots)
        whole("every", every, 1, MOST_BATCHES)
        if every > 1 and action not in ("rule", "watermark"):
            raise InvalidArgument(
                f"every={every!r}: more than 1 needs action='rule' or 'watermark', not {action!r}"
            )
        self.drop_cost = number("drop_cost", drop_cost, zero=True)

        self.workload = workloads.workload_of("workload", chosen.workload if workload is None else workload)
        self.profile = profiles.profile_of("profile", chosen.profile if profile is None else profile)
        self._resolve(chosen)
        self.rules = self._resolve_rules(rules, order)
        self.params = self._params(every, slots)
        self.layout = Layout(
            [
                Field(
                    "queue",
                    PER_REQUEST * slots,
                    0,
                    1,
                    "scales",
                    "for each of the first waiting requests: prompt, predicted output, "
                    "wait / (wait + 100 reference batches), predicted area",
                    rows=slots,
                    actions=(1,) if action == "pick" else (),
                )
            ],
            Observation,
        )
        if action == "watermark":
            self.action_space: Discrete[Any] | Box = Box(0.0, MOST_WATERMARK, (1,), np.float64)
        elif action == "rule":
            self.action_space = Discrete(len(self.rules))
        else:
            self.action_space = Discrete(slots + 1)

    def _resolve(self, chosen: Scenario) -> None:
        """Set what follows from the settings, the workload and the profile: cache, lengths, rate and closed forms."""
        self.workload = self.workload.with_requests(chosen.requests)
        capacity = self.profile.kv_capacity_tokens() if chosen.kv_capacity is None else chosen.kv_capacity
        capacity = cache_in_blocks(capacity, chosen.block)
        longest = capacity if chosen.longest is None else min(chosen.longest, capacity)
        first, _ = FIRST_TOKENS[chosen.first_token]
        self.predicted = saturation(
            self.workload,
            self.profile,
            capacity,
            chosen.chunk,
            chosen.budget,
            chosen.seats,
            first,
            _even(self.workload),
        )
        if chosen.rate_rps is not None:
            self.workload = self.workload.with_rate(chosen.rate_rps)
        elif math.isfinite(self.workload.mean_rate_rps):
            self.workload = self.workload.with_rate(chosen.load * self.predicted.rate_rps)
        self.scenario = replace(
            chosen, kv_capacity=capacity, longest=longest, rate_rps=self.workload.mean_rate_rps
        )
        self.privileged_observation = chosen.information == "exact" or (
            chosen.information == "noisy" and chosen.noise_scale == 0.0
        )
        self.headline_metrics = {name: self.metrics.headline()[name] for name in self.headline}

    def _resolve_rules(self, rules: Sequence[str | Rule] | None, order: str) -> tuple[Rule, ...]:
        """The rules that can be in force: those to choose from, or the one that gives the order and the check."""
        if rules is not None and self.action_mode != "rule":
            raise InvalidArgument(f"rules={rules!r} needs action='rule', not {self.action_mode!r}")
        resolved: tuple[Rule, ...]
        if self.action_mode == "rule":
            resolved = resolve(DEFAULT_RULES if rules is None else rules)
        elif self.action_mode == "watermark":
            resolved = (replace(CATALOGUE["vllm"], order=order),)
        else:
            resolved = (Rule("base", order=order),)
        chosen = self.scenario
        return tuple(
            with_class_budgets(rule, self.workload, chosen.kv_capacity, chosen.chunk) for rule in resolved
        )

    def _params(self, every: int, slots: int) -> Params:
        chosen, batch_s = self.scenario, self.predicted.batch_s
        config = Config.pack(
            chosen,
            reward=REWARDS[self.reward],
            drop_cost=self.drop_cost,
            **self._of_engine(MODES[self.action_mode], every, slots),
        )
        classes = len(self.workload.classes)
        packed = pack(
            self.rules, OVERFLOWS[chosen.overflow], classes, area_per_s=chosen.kv_capacity / batch_s
        )
        objectives = objective_records([Target(chosen.ttft_slo_s, chosen.tpot_slo_s)] * classes)
        traffic = self.workload.traffic(chosen.information, chosen.noise_scale)
        return Params(config, *packed, objectives, self.profile.step_cost(), traffic)

    def _of_engine(self, mode: int, every: int, visible: int, **limits: Any) -> dict[str, Any]:
        """Fields of `Config` that follow from the engine, the workload and the scales; `limits`: those of `derived_limits`."""
        chosen, capacity = self.scenario, self.scenario.kv_capacity
        mean_prompt, mean_output = self._mean(PROMPT), self._mean(OUTPUT)
        prompt = min(self.workload.max_prompt_tokens, LONG * mean_prompt, chosen.longest)
        output = min(self.workload.max_output_tokens, LONG * mean_output, chosen.longest)
        steps = output + math.ceil(prompt / chosen.chunk)
        batch_s = self.predicted.batch_s
        scales = {
            "capacity": capacity,
            "seat": chosen.seats,
            "cap": chosen.waiting_cap,
            "horizon": chosen.horizon_s,
            "batch": batch_s,
            "prefill": min(chosen.budget, capacity),
            "prompt": prompt,
            "output": output,
            "area": float(exact_area(prompt, output, chosen.chunk)),
            "expected": max(min(chosen.requests, self.workload.mean_rate_rps * chosen.horizon_s), 1.0),
        }
        held = SCHEDULINGS[chosen.scheduling] == HELD
        return {
            "default_output": max(1, round(mean_output)),
            "mode": mode,
            "every": every,
            "ahead": int(SCHEDULINGS[chosen.scheduling] != SYNC),
            "visible": visible,
            "idle_s": batch_s,
            "batch_ref_s": batch_s,
            "window_s": BATCHES_OF_LOAD * batch_s,
            "invalid_cost": self.invalid_cost,
            "steps_per_bin": steps / HISTOGRAM,
            "bins_per_step": math.ceil(2**BIN_SHIFT * HISTOGRAM / steps),
            "bins_per_token": math.ceil(2**BIN_SHIFT * HISTOGRAM / (prompt + output)),
            **derived_limits(chosen.chunk, chosen.first_token, held, **limits),
            **{f"per_{name}": 1.0 / scale for name, scale in scales.items()},
        }

    def _mean(self, f: Any) -> float:
        return self.workload.expectation(f, _even(self.workload))

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        n, seats = self.scenario.requests, self.scenario.seats
        width = max(seats + 1, HISTOGRAM, len(self.workload.classes))
        return State(
            lane=Episode.zeros(lanes),
            resident=Resident.zeros(lanes, seats),
            request=Request.zeros(lanes, n),
            queue=np.zeros((lanes, len(self.params.orders), n + 2), np.int32),
            prefix=no_prefixes(lanes),
            scratch=np.zeros((lanes, SCRATCH_ROWS, width), np.int32),
            times=np.zeros((lanes, n), np.float32),
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
        "request.request_class": "on arrival",
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
        episode["checksum"] = checksum_of(requests, count)

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


def _even(workload: workloads.Workload) -> list[float] | None:
    """Equal weights where the shares of a workload's phases depend on the episode."""
    return (
        None if len(workload.phases) == 1 or workload.phase_by == "fraction" else [1.0] * len(workload.phases)
    )


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
            `information`, `noise_scale`, `waiting_cap`, `ttft_slo_s`, `tpot_slo_s`) can be given as an argument of its own.
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


KVQueueVectorEnv = vector_env(KVQueueEnv)
