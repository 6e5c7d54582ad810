"""The cluster that PPDRouting and PPDWeights decide for: its arguments and its arrays."""

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym import profiles, workloads
from llmgym.core.checks import choice
from llmgym.core.lanes import Simulation
from llmgym.core.settings import settled
from llmgym.core.statistics import counted
from llmgym.envs.ppd import conversations as ppd_conversations
from llmgym.envs.ppd import hidden as ppd_hidden
from llmgym.envs.ppd.conversations import Conversations, without_turns_beyond
from llmgym.envs.ppd.latency import KV_BYTES_PER_TOKEN, KV_CAPACITY_TOKENS, LLAMA_8B_H100, Latencies
from llmgym.envs.ppd.links import GB, Link, idle_link
from llmgym.envs.ppd.metrics import HEADLINE, Metrics
from llmgym.envs.ppd.scenarios import (
    INTERFERENCES,
    PLACEMENTS,
    RATES,
    SCENARIOS,
    Scenario,
    parse_allocation,
)
from llmgym.envs.ppd.state import (
    RELATIVE,
    SLO,
    Config,
    Conversation,
    Entry,
    Episode,
    Node,
    P,
    Params,
    Request,
    State,
)
from llmgym.errors import InvalidArgument
from llmgym.profiles.cost import CONSTANT, scalar_cost
from llmgym.workloads.traffic import Traffic

REWARDS = {"relative": RELATIVE, "slo": SLO}
RATE_WINDOW_S = 10.0
"""Time constant of the moving average of rates: the paper's table was measured over 10 seconds."""
SURE_DEVIATIONS, SURE_MORE = 8.0, 32
"""Room for what arrives in a time: so many standard deviations above the mean, and so many more where few are expected."""


class FromTable(NamedTuple):
    """What an environment takes from the SLO table; see the fields of `Params`.

    Attributes:
        reference: float64 [2, contexts, types], seconds.
        routes: int8 [weights, contexts, types, rates].
        weights: float64 [weights].
    """

    reference: NDArray[np.float64]
    routes: NDArray[np.int8]
    weights: NDArray[np.float64]


class PPDCluster(Simulation):
    """What both environments simulate.

    Attributes:
        scenario: the settings, resolved.
        latencies: what work and transfers cost where no profile says it.
        profile: cost of a step, or None.
        workload: the conversations.
        nodes: what each node is, int64 [nodes].
        kv_capacity: size of a node's cache, tokens.
        kv_bytes: size of a token's KV cache, bytes.
    """

    metrics = Metrics
    headline_metrics = HEADLINE
    view = "llmgym.envs.ppd.view"
    scenario: Scenario
    params: Params
    hidden = ppd_hidden.HIDDEN
    shown = ppd_hidden.SHOWN

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        reward: str = "relative",
        shaped: bool = False,
        invalid_action: str = "penalize",
        invalid_cost: float = 0.01,
        workload: str | Conversations | None = None,
        profile: str | profiles.Profile | None = None,
        latencies: Latencies = LLAMA_8B_H100,
        **settings: Any,
    ) -> None:
        super().__init__(invalid_action=invalid_action, invalid_cost=invalid_cost)
        fixed = ("about", "workload", "profile")
        chosen: Scenario = settled(scenario, SCENARIOS, settings, type(self).__name__, fixed)
        choice("reward", reward, REWARDS)
        if not isinstance(shaped, bool) or (shaped and reward != "relative"):
            raise InvalidArgument(
                f'shaped={shaped!r}: expected True or False, and True only with reward="relative"'
            )
        if not isinstance(latencies, Latencies):
            raise InvalidArgument(f"latencies={latencies!r}: expected Latencies")
        self.reward, self.shaped, self.latencies = reward, shaped, latencies
        conversations = ppd_conversations.given_as(
            "workload", chosen.workload if workload is None else workload
        )
        self.workload = without_turns_beyond(conversations, chosen.max_turns)
        costs = chosen.profile if profile is None else profile
        self.profile = None if costs is None else profiles.profile_of("profile", costs)
        gpus_of_node = 1 if self.profile is None else self.profile.tensor_parallel
        self.nodes = np.array(parse_allocation(chosen.allocation, chosen.gpus, gpus_of_node), np.int64)
        self.kv_bytes, self.kv_capacity = self._cache_size(chosen)
        if self.kv_capacity <= chosen.longest:
            raise InvalidArgument(
                f"kv_capacity={self.kv_capacity}: expected more than longest={chosen.longest} tokens, or a single conversation "
                "would fit nowhere"
            )
        rates = tuple(map(float, chosen.rates))
        self.scenario = replace(chosen, kv_capacity=self.kv_capacity, rates=rates)
        # PPDWeights shows no lengths, but its table routes by them on the policy's behalf
        self.privileged_observation = chosen.information == "exact"
        self.params = self._params()

    def _cache_size(self, chosen: Scenario) -> tuple[float, int]:
        """Size of a token's KV cache, bytes, and of a node's cache, tokens."""
        if self.profile is None:
            capacity = KV_CAPACITY_TOKENS if chosen.kv_capacity is None else chosen.kv_capacity
            return KV_BYTES_PER_TOKEN, int(capacity)
        capacity = self.profile.kv_capacity_tokens() if chosen.kv_capacity is None else chosen.kv_capacity
        return self.profile.kv_bytes_per_token or KV_BYTES_PER_TOKEN, int(capacity)

    def _params(self) -> Params:
        chosen, costs = self.scenario, self.latencies
        links: Any = idle_link(
            bandwidth_gb_per_s=math.inf if chosen.link_gb_per_s is None else chosen.link_gb_per_s,
            receiver_gb_per_s=KV_BYTES_PER_TOKEN / costs.receive_token_s / GB,
            setup_s=costs.receive_s,
            buffer_gb=chosen.buffer_gb,
        )
        links = np.repeat(links, len(self.nodes))
        table = self.from_table()
        return Params(
            config=self._config(),
            role=self.nodes,
            links=links,
            cost=scalar_cost(CONSTANT, costs.step_s) if self.profile is None else self.profile.step_cost(),
            opening=self._opening(),
            following=self.workload.following.traffic(chosen.information, chosen.noise_scale),
            turns=self.workload.turns_cdf,
            rates=np.array(chosen.rates),
            reference=table.reference,
            routes=table.routes,
            weights=table.weights,
        )

    def _config(self) -> Any:
        chosen = self.scenario
        law = {name: value for name, value in self.latencies.as_dict().items() if name in Config.declared}
        answers = [one.mean_output_tokens for one in self.workload.following.classes]
        return Config.pack(
            chosen,
            **law,
            profiled=self.profile is not None,
            nodes=len(self.nodes),
            ps=np.sum(self.nodes == P),
            max_inflight=chosen.max_inflight or 0,
            max_turns=len(self.workload.turns),
            interference=INTERFERENCES[chosen.interference],
            placement=PLACEMENTS[chosen.placement],
            average_rate=RATES[chosen.rate],
            default_output=max(1, round(sum(answers) / len(answers))),
            reward=REWARDS[self.reward],
            shaped=self.shaped,
            kv_bytes=self.kv_bytes,
            think_s=self.workload.think_s,
            think_sigma=self.workload.think_sigma,
            rate_window_s=RATE_WINDOW_S,
            invalid_cost=self.invalid_cost,
        )

    def _opening(self) -> Traffic:
        """Arrivals of conversations at the rate of the scenario, and lengths of first turns."""
        chosen, opening = self.scenario, self.workload.opening
        if math.isfinite(opening.mean_rate_rps):  # else all conversations come at once
            opening = opening.with_rate(chosen.qps)
        if chosen.shape is not None:
            starts = [chosen.day_s * i / max(len(chosen.shape), 1) for i in range(len(chosen.shape))]
            arrivals = workloads.poisson(chosen.qps).shaped(starts, chosen.shape, chosen.day_s)
            opening = opening.with_arrivals(arrivals)
        return opening.traffic(chosen.information, chosen.noise_scale)

    @abstractmethod
    def from_table(self) -> FromTable:
        """What the environment takes from the SLO table."""

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        chosen = self.scenario
        count, turns, nodes = chosen.conversations, len(self.workload.turns), len(self.nodes)
        if chosen.window_s < math.inf:
            count = min(count, most_arrivals(chosen.qps * chosen.window_s))
        return State(
            lane=Episode.zeros(lanes),
            node=Node.zeros(lanes, nodes),
            link=Link.zeros(lanes, nodes),
            conversation=Conversation.zeros(lanes, count),
            request=Request.zeros(lanes, count * turns),
            cache=Entry.zeros(lanes, 2 * count),
            running=np.zeros((lanes, nodes, chosen.seats), np.int32),
            heap=np.zeros((lanes, count), np.int32),
            scratch=np.zeros((lanes, 3, count * turns), np.float32),
        )

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Other conversations, turns, answers and times to come; see `Simulation.redraw`.

        Args:
            state: arrays of all lanes.
            lane: number of the lane.
            key: seeds the other world.
        """
        ppd_hidden.redraw(self.params, state, lane, self.world(key), np.random.default_rng(key))

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode from its metrics (see `reward`)."""
        if self.reward == "slo":
            return counted(metrics["slo_attainment"]) - metrics["penalty"]
        chosen = self.scenario
        loss = metrics["tpot_loss"] + metrics["crowd_loss"]
        gain = counted(chosen.w_ttft * metrics["ttft_gain"] - chosen.w_tpot * loss)
        return (
            gain * metrics["later_completed"] - chosen.timeout_cost * metrics["timeouts"] - metrics["penalty"]
        )

    def settings(self) -> dict[str, Any]:
        """The scenario with everything resolved, for reports."""
        own = {"workload": self.workload.name, "latencies": self.latencies.as_dict()}
        return super().settings() | own


def most_arrivals(expected: float) -> int:
    """A number of arrivals that is practically never exceeded where so many are expected."""
    return math.ceil(expected + SURE_DEVIATIONS * math.sqrt(expected) + SURE_MORE)
