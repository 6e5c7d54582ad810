"""KVQueue-v1: whom an engine with a full KV cache serves next, and whom it throws out, as vLLM V1 runs.

The engine is `llmgym.serving`, whose batches are those of vLLM's own scheduler (docs/engine.md). The queue under a KV-cache limit
is that of Nie, Si and Zhou, ICML 2026 (arXiv 2605.04595), section 2.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Discrete

from llmgym import profiles, workloads
from llmgym.core.checks import choice, loaded, members, whole
from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.settings import settled
from llmgym.core.statistics import counted
from llmgym.envs.kv.queue import env as v0
from llmgym.envs.kv.queue.state import HISTOGRAM
from llmgym.envs.kv.queue_v1.hidden import redraw_future
from llmgym.envs.kv.queue_v1.kernels import KERNELS
from llmgym.envs.kv.queue_v1.scenarios import REWARDS, SCENARIOS, Scenario
from llmgym.envs.kv.queue_v1.state import (
    HEADLINE,
    LATENCY,
    PER_RUNNING,
    PER_WAITING,
    PICK,
    RULE,
    Config,
    Episode,
    Metrics,
    Observation,
    Params,
    State,
)
from llmgym.errors import InvalidArgument
from llmgym.profiles.cost_changes import launches_ahead
from llmgym.serving.admission import SCRATCH_ROWS
from llmgym.serving.capacity import with_class_budgets
from llmgym.serving.prefix import allocate
from llmgym.serving.requests import checksum_of
from llmgym.serving.rules import Rule, check_prefixes, pack, resolve
from llmgym.serving.settings import OVERFLOWS, SCHEDULINGS, SYNC
from llmgym.serving.state import Prefixes, Request, Resident, no_prefixes
from llmgym.serving.targets import Target, objective_records
from llmgym.workloads.conversations import most_keys

MODES = {"pick": PICK, "rule": RULE}
LISTS = ("arrival", "smallest-area", "shortest-output", "deadline")
DEFAULT_RULES = ("vllm", "area-watermark", "area-aging", "vllm-priority")


class KVQueue(v0.KVQueue):
    """The simulation behind `llmgym/KVQueue-v1`; see `KVQueueEnv` for the arguments, and version 0 for the attributes."""

    kernels = KERNELS
    metrics = Metrics
    headline = HEADLINE

    def __init__(
        self,
        *,
        scenario: str | Scenario = "azure-conv-tight",
        action: str = "pick",
        rules: Sequence[str | Rule] | None = None,
        every: int = 1,
        lists: Sequence[str] = ("arrival", "smallest-area"),
        slots: int = 16,
        running: int = 8,
        invalid_action: str = "penalize",
        invalid_cost: float = 0.01,
        workload: str | workloads.Workload | None = None,
        profile: str | profiles.Profile | None = None,
        **settings: Any,
    ) -> None:
        Simulation.__init__(self, invalid_action=invalid_action, invalid_cost=invalid_cost)
        chosen: Scenario = settled(scenario, SCENARIOS, settings, "KVQueue", ("about", "workload", "profile"))
        if chosen.overflow != "recompute":
            raise InvalidArgument(
                f"overflow={chosen.overflow!r}: expected 'recompute'; version 0 has 'pause'"
            )
        self.action_mode = choice("action", action, MODES)
        self.reward = chosen.reward
        self.lists = tuple(choice("lists", one, LISTS) for one in members("lists", lists, "orders"))
        if not self.lists or len(set(self.lists)) != len(self.lists):
            raise InvalidArgument(f"lists={lists!r}: expected at least one order, and each once")
        whole("slots", slots)
        whole("running", running)
        whole("every", every, 1, v0.MOST_BATCHES)
        if slots % len(self.lists):
            raise InvalidArgument(f"slots={slots!r}: expected a multiple of the {len(self.lists)} lists")
        if every > 1 and action != "rule":
            raise InvalidArgument(f"every={every!r}: more than 1 needs action='rule', not {action!r}")
        if rules is not None and action != "rule":
            raise InvalidArgument(f"rules={rules!r} needs action='rule', not {action!r}")
        self.workload = workloads.workload_of("workload", chosen.workload if workload is None else workload)
        self.profile = self._profile(chosen, chosen.profile if profile is None else profile)
        self._resolve(chosen)
        self.targets = self._targets(chosen)
        self.rules = self._resolved(rules)
        self.params = self._packed(every, slots, running)
        self.layout = _layout(slots, running)
        self.action_space: Discrete[Any] = Discrete(
            len(self.rules) if action == "rule" else 1 + slots + running
        )

    @staticmethod
    def _profile(chosen: Scenario, given: Any) -> profiles.Profile:
        """The profile with the options of the scenario, unless it is given as an object."""

        def load(name: Any) -> profiles.Profile:
            return profiles.load(name, dense=chosen.dense, host=chosen.host)

        return loaded(
            "profile", given, load, "the name of a profile, a folder, or a Profile", profiles.Profile
        )

    def _targets(self, chosen: Scenario) -> tuple[Target, ...]:
        classes = len(self.workload.classes)
        targets = chosen.targets or (Target(chosen.ttft_slo_s, chosen.tpot_slo_s),) * classes
        if len(targets) != classes:
            raise InvalidArgument(
                f"targets: {len(targets)} were given, and workload {self.workload.name!r} has {classes} classes"
            )
        return targets

    def _resolved(self, rules: Sequence[str | Rule] | None) -> tuple[Rule, ...]:
        chosen = self.scenario
        resolved = resolve(DEFAULT_RULES if rules is None else rules)
        if chosen.prefix_caching:
            check_prefixes(resolved)
        return tuple(
            with_class_budgets(rule, self.workload, chosen.kv_capacity, chosen.chunk) for rule in resolved
        )

    def _packed(self, every: int, slots: int, running: int) -> Params:
        chosen: Any = self.scenario
        classes = len(self.workload.classes)
        ahead = SCHEDULINGS[chosen.scheduling] != SYNC
        cost, launches = launches_ahead(self.profile.step_cost(), ahead)
        config = Config.pack(
            chosen,
            reward=REWARDS[self.reward],
            drop_cost=0.0,
            lists=len(self.lists),
            running=running,
            per_class=1.0 / (classes - 1) if classes > 1 else 0.0,
            **self._of_engine(
                MODES[self.action_mode],
                every,
                slots,
                prefix=chosen.prefix_caching,
                conversations=True,
                launches=launches,
            ),
        )
        packed = pack(
            self.rules,
            OVERFLOWS[chosen.overflow],
            classes,
            area_per_s=chosen.kv_capacity / self.predicted.batch_s,
            priorities=True,
            objectives=True,
            prefixes=True,
            orders=self.lists,
        )
        traffic = self.workload.traffic(chosen.information, chosen.noise_scale, conversations=True)
        return Params(config, *packed, objective_records(self.targets), cost, traffic)

    def allocate(self, lanes: int) -> State:  # type: ignore[override]
        """New arrays for this number of lanes."""
        n, seats = self.scenario.requests, self.scenario.seats
        config = self.params.config[0]
        width = max(seats + 1, HISTOGRAM, len(self.workload.classes))
        choices = int(config["visible"] + config["running"])
        return State(
            lane=Episode.zeros(lanes),
            resident=Resident.zeros(lanes, seats),
            request=Request.zeros(lanes, n),
            queue=np.zeros(
                (lanes, len(self.params.orders) + 1, n + 2), np.int32
            ),  # and those that are coming
            prefix=self._prefixes(lanes),
            scratch=np.zeros((lanes, SCRATCH_ROWS, width), np.int32),
            times=np.zeros((lanes, n), np.float32),
            candidate=np.zeros((lanes, choices), np.int32),
            allowed=np.zeros((lanes, choices), np.int8),
        )

    def _prefixes(self, lanes: int) -> Prefixes:
        chosen: Any = self.scenario
        if not chosen.prefix_caching:
            return no_prefixes(lanes)
        longest = -(-chosen.longest // chosen.block)
        talk = self.workload.conversations
        keys = chosen.requests * longest
        if talk is not None:
            keys = most_keys(talk, self.workload.classes, chosen.requests, chosen.longest, chosen.block)
        return allocate(lanes, chosen.kv_capacity // chosen.block, chosen.seats, longest, keys)

    hidden: ClassVar[dict[str, str]] = {
        **v0.KVQueue.hidden,
        "lane.weight": "at the end of the episode",
        "request.priority": "on arrival",
        "request.follower": "when the next turn arrives",
        "request.think_s": "when the next turn arrives",
    }
    shown: ClassVar[frozenset[str]] = v0.KVQueue.shown | {
        "candidate",
        "allowed",
        "queue",
        # numbers that the engine goes by, of which an observation tells nothing
        "request.session",
        "request.first_key",
    }

    def redraw(self, state: Any, lane: int, key: int) -> None:
        """Other arrivals, turns and lengths from now on; see `Simulation.redraw`."""
        other = self.world(key)
        drawn = other.request[0, : other.lane[0]["requests"]]
        redraw_future(state, self.params, lane, drawn, np.random.default_rng(key))
        episode = state.lane[lane]
        episode["key"] = key
        episode["checksum"] = checksum_of(state.request[lane], int(episode["requests"]))

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode from its metrics (see `reward`)."""
        if REWARDS[self.reward] == LATENCY:
            late = self.scenario.late_cost * counted(metrics["late"])
            return -counted(metrics["latency_mean_s"]) - late - metrics["penalty"]
        return counted(metrics["goodput"]) - metrics["penalty"]


def _layout(slots: int, running: int) -> Layout:
    return Layout(
        [
            Field(
                "waiting.candidates",
                PER_WAITING * slots,
                -1,
                1,
                "scales",
                "for each candidate of the queue: 1 if there is one, prompt, predicted output, wait / (wait + 100 reference "
                "batches), predicted area, output it has produced before, class, what is left until its first token and until its "
                "end are due (share of what is promised), share of its prompt in the cache, 1 if it fits",
                rows=slots,
                actions=(1,),
            ),
            Field(
                "running.candidates",
                PER_RUNNING * running,
                -1,
                1,
                "scales",
                "for each of the youngest running requests: 1 if there is one, tokens in the cache, output so far, predicted "
                "output left, prompt left, time in the system like a wait, class, what is left until its end is due, mark",
                rows=running,
                actions=(1 + slots,),
            ),
        ],
        Observation,
    )


class KVQueueEnv(LaneEnv):
    """Whom an engine with a full KV cache serves next, and whom it throws out, as vLLM V1 runs.

    ## Description
    Version 0 is the queue of the theory; this is the engine as it is run: blocks of 16 tokens, planning a batch while the one
    before runs, preemption by recompute, prefix caching where the scenario has it, batch times of vLLM 0.24 on an H100. The agent
    does what an engine's scheduler can do: it chooses *which* waiting request joins the batch, and *which* running request loses
    its cache when the next batch does not fit. Between two choices the engine runs as many batches as it takes until there
    is something to choose again.

    What there is to win: an operator wants short answers on average, without letting the long ones starve. First come first served
    makes everybody wait; shortest first makes a few wait for ever.

    ## Action Space
    - `"pick"` (default): `Discrete(1 + slots + running)`. 0 runs the batch, so whoever fits is held back; 1..slots admits that
      candidate of the queue (no time passes); the others are running requests. When the next batch does not fit
      (`short` is 1) one of these must be chosen, and loses its cache. At other times, where prefixes are cached, choosing one
      marks it: its prefix is forgotten as soon as it leaves, not when its turn comes. Masked: requests whose prompt does not fit
      into the cache, and 0 while nothing runs and something would fit.
    - `"rule"`: `Discrete(len(rules))`, which published rule decides about the coming batch, victims included.

    A masked action is counted in `invalid_actions`, costs `invalid_cost`, and runs the batch (or throws out the youngest);
    `invalid_action="raise"` makes it an error. What cannot be represented always raises `InvalidAction`.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout.markdown()` prints the table. First the state of the engine, as in version 0, then
    two tables of candidates: of the queue (the first ones of each of `lists`, a request that is in two lists only once), and
    of the running batch (the youngest, vLLM's victims first; with `async-held` also who has its last token and leaves next).
    Row i of a table belongs to one action, so that one network can score each candidate by its row.

    ## Rewards
    - `"latency"`: minus the requests in the system, integrated over the step, over the number of requests, minus `late_cost` for
      each share of the requests that take longer than the end-to-end objective of their class. The return is minus what
      an operator signs: mean latency (s) + `late_cost` * share of late answers.
    - `"goodput"`: the weight of each request that completes within all objectives of its class, over all weights.

    ## Starting State
    An idle engine at the arrival of the first request, and all of the world drawn from the seed.

    ## Episode End
    1. Termination: every request was served or rejected.
    2. Termination: more than `waiting_cap` requests wait; everybody left is late, and stays until `horizon_s`.
    3. Truncation: the clock passes `horizon_s`; everybody left is late.

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/KVQueue-v1", scenario="tiers")
    envs = gymnasium.make_vec("llmgym/KVQueue-v1", num_envs=256, late_cost=20.0)
    ```

    Args:
        scenario: `azure-conv-tight`, `sessions`, `tiers` or a `Scenario`. Each of its settings (those of version 0, `targets`,
            `reward`, `late_cost`, `prefix_caching`, `dense`, `host`) can be given as an argument of its own.
        action: what is decided, see above.
        rules: for `action="rule"`: names of rules (`"area-aging:aging=0.1,victim=largest"` changes numbers and victim) or `Rule`s.
        every: batches that a decision lasts, for `rule`.
        lists: orders whose first waiting requests are candidates: of `arrival`, `smallest-area`, `shortest-output`, `deadline`.
        slots: candidates of the queue, the same number from each list.
        running: candidates of the running batch.
        invalid_action: `penalize` or `raise`.
        invalid_cost: cost of a masked action.
        workload: name or `Workload`, instead of the scenario's.
        profile: name or `Profile`, instead of the scenario's.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, workload, profile, rule or setting that does not exist.
        InvalidArgument: a value out of range; the message names it.

    ## Version History
    - v1: choices among requests and victims, on the engine as vLLM V1 runs it; v0 is the queue of the theory.
    """

    simulation_class = KVQueue


KVQueueVectorEnv = vector_env(KVQueueEnv)
