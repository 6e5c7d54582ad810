"""The cluster that PPDRouting and PPDWeights decide for: its arguments, its arrays, and how they are recounted."""

import math
from abc import abstractmethod
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from llmgym import profiles, workloads
from llmgym.core.checks import choice, number, whole
from llmgym.core.lanes import Simulation
from llmgym.core.statistics import counted
from llmgym.envs.ppd import conversations as ppd_conversations
from llmgym.envs.ppd import hidden as ppd_hidden
from llmgym.envs.ppd.conversations import Conversations, without_turns_beyond
from llmgym.envs.ppd.latency import KV_BYTES_PER_TOKEN, KV_CAPACITY_TOKENS, LLAMA_8B_H100, Latencies
from llmgym.envs.ppd.links import LINK, set_link
from llmgym.envs.ppd.scenarios import (
    INTERFERENCES,
    PLACEMENTS,
    RATES,
    Scenario,
    parse_allocation,
    resolve_scenario,
)
from llmgym.envs.ppd.state import (
    ASKED,
    AWAY,
    CACHED,
    CONVERSATION,
    D_RUN,
    D_WAIT,
    GATE,
    LANE,
    LATENCY_FIELDS,
    METRICS,
    MOVE,
    NODE,
    NUMBER,
    OVER,
    P_RUN,
    P_WAIT,
    RELATIVE,
    REQUEST,
    SLO,
    P,
    Params,
    State,
)
from llmgym.errors import InvalidArgument
from llmgym.profiles.cost import scalar_cost

REWARDS = {"relative": RELATIVE, "slo": SLO}
RATE_WINDOW_S = 10.0


class PPDCluster(Simulation):
    """What both environments simulate.

    Attributes:
        scenario: the settings, resolved.
        latencies: what work and transfers cost where no profile says it.
        profile: cost of a step, or None.
        workload: the conversations.
        nodes: what each node is, int64 [nodes].
        kv_capacity: tokens of a node's cache.
        kv_bytes: of a token.
    """

    metric_names = METRICS
    headline_metrics = {  # noqa: RUF012
        "ttft_mean_s": "min",
        "ttft_p99_s": "min",
        "tpot_mean_s": "min",
        "e2e_mean_s": "min",
        "slo_attainment": "max",
        "success": "max",
        "kv_moved_bytes": "min",
        "local_fraction": "max",
    }

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
        chosen = resolve_scenario(scenario, settings, type(self).__name__)
        choice("invalid_action", invalid_action, ("penalize", "raise"))
        choice("reward", reward, REWARDS)
        if not isinstance(shaped, bool) or (shaped and reward != "relative"):
            raise InvalidArgument(
                f'shaped={shaped!r}: expected True or False, and True only with reward="relative"'
            )
        number("invalid_cost", invalid_cost, zero=True)
        if not isinstance(latencies, Latencies):
            raise InvalidArgument(f"latencies={latencies!r}: expected Latencies")
        self.latencies = latencies
        given = chosen.workload if workload is None else workload
        talk = given if isinstance(given, Conversations) else ppd_conversations.load(given)
        self.workload = without_turns_beyond(talk, chosen.max_turns)
        costs = chosen.profile if profile is None else profile
        self.profile = profiles.load(costs) if isinstance(costs, str) else costs
        if self.profile is not None and not isinstance(self.profile, profiles.Profile):
            raise InvalidArgument(f"profile={profile!r}: expected the name of a profile, a Profile or None")
        gpus_of_node = 1 if self.profile is None else self.profile.tensor_parallel
        self.nodes = np.array(parse_allocation(chosen.allocation, chosen.gpus, gpus_of_node), np.int64)
        self.kv_bytes = KV_BYTES_PER_TOKEN
        capacity = chosen.kv_capacity
        if self.profile is not None:
            self.kv_bytes = self.profile.kv_bytes_per_token or KV_BYTES_PER_TOKEN
            capacity = self.profile.kv_capacity_tokens() if capacity is None else capacity
        self.kv_capacity = whole("kv_capacity", KV_CAPACITY_TOKENS if capacity is None else capacity)
        if self.kv_capacity <= chosen.longest:
            raise InvalidArgument(
                f"kv_capacity={self.kv_capacity}: expected more than longest={chosen.longest} tokens, or a single conversation "
                "would fit nowhere"
            )
        self.scenario = replace(chosen, kv_capacity=self.kv_capacity)
        self.reward, self.shaped = reward, shaped
        self.raise_on_masked = invalid_action == "raise"
        # PPDWeights shows no lengths, but its table routes by them on the policy's behalf
        self.privileged_observation = chosen.information == "exact"
        self.params = self._params(invalid_cost)

    def _params(self, invalid_cost: float) -> Params:
        chosen, costs = self.scenario, self.latencies
        numbers = np.zeros(1, NUMBER)
        record = numbers[0]
        for name in LATENCY_FIELDS:
            record[name] = getattr(costs, name)
        record["tables"] = self.profile is not None
        record["nodes"], record["ps"] = len(self.nodes), np.sum(self.nodes == P)
        for name in (
            "chunk",
            "seats",
            "kv_capacity",
            "longest",
            "answer_kv_hit",
            "bypass",
            "window_s",
            "limit_s",
            "timeout_s",
            "w_ttft",
            "w_tpot",
            "timeout_cost",
            "ttft_slo_s",
            "tpot_slo_s",
            "epoch_s",
            "epochs",
        ):
            record[name] = getattr(chosen, name)
        record["max_inflight"] = chosen.max_inflight or 0
        record["max_turns"] = len(self.workload.turns)
        record["interference"] = INTERFERENCES[chosen.interference]
        record["placement"], record["average_rate"] = PLACEMENTS[chosen.placement], RATES[chosen.rate]
        record["reward"], record["invalid_cost"] = REWARDS[self.reward], invalid_cost
        record["shaped"] = self.shaped
        record["kv_bytes"] = self.kv_bytes
        record["think_s"], record["think_sigma"] = self.workload.think_s, self.workload.think_sigma
        record["rate_window_s"] = RATE_WINDOW_S
        mean = sum(c.mean_output_tokens for c in self.workload.following.classes)
        record["default_output"] = max(1, round(mean / len(self.workload.following.classes)))
        links = np.zeros(len(self.nodes), LINK)
        set_link(
            links,
            bandwidth_gb_per_s=math.inf if chosen.link_gb_per_s is None else chosen.link_gb_per_s,
            receiver_gb_per_s=KV_BYTES_PER_TOKEN / costs.receive_token_s / 1e9,
            setup_s=costs.receive_s,
            buffer_gb=chosen.buffer_gb,
        )
        step = scalar_cost(0, costs.step_s) if self.profile is None else self.profile.step_cost()
        rates = np.array(chosen.rates)
        reference, routes, weights = self.table_part(chosen)
        opening = self.workload.opening
        if math.isfinite(opening.mean_rate_rps):  # else all conversations come at once
            opening = opening.with_rate(chosen.qps)
        if chosen.shape is not None:
            starts = [chosen.day_s * i / max(len(chosen.shape), 1) for i in range(len(chosen.shape))]
            opening = opening.with_arrivals(
                workloads.poisson(chosen.qps).shaped(starts, chosen.shape, chosen.day_s)
            )
        return Params(
            numbers,
            self.nodes,
            links,
            step,
            opening.traffic(chosen.information, chosen.noise_scale),
            self.workload.following.traffic(chosen.information, chosen.noise_scale),
            self.workload.turns_cdf,
            rates,
            reference,
            routes,
            weights,
        )

    @abstractmethod
    def table_part(
        self, chosen: Scenario
    ) -> tuple[NDArray[np.float64], NDArray[np.int8], NDArray[np.float64]]:
        """`Params.reference`, `Params.routes` and `Params.weights`, what the environment takes from the SLO table."""

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        chosen = self.scenario
        n, turns = chosen.conversations, len(self.workload.turns)
        if chosen.window_s < math.inf:
            expected = chosen.qps * chosen.window_s
            n = min(n, math.ceil(expected + 8.0 * math.sqrt(expected) + 32))
        nodes = len(self.nodes)
        return State(
            lane=np.zeros(lanes, LANE),
            node=np.zeros((lanes, nodes), NODE),
            link=np.zeros((lanes, nodes), LINK),
            conversation=np.zeros((lanes, n), CONVERSATION),
            request=np.zeros((lanes, n * turns), REQUEST),
            cache=np.zeros((lanes, 2 * n), CACHED),
            running=np.zeros((lanes, nodes, chosen.seats), np.int32),
            heap=np.zeros((lanes, n), np.int32),
            scratch=np.zeros((lanes, 3, n * turns), np.float32),
        )

    hidden: ClassVar[dict[str, str]] = ppd_hidden.HIDDEN
    shown: ClassVar[frozenset[str]] = ppd_hidden.SHOWN

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Other conversations, turns, answers and times to come; see `Simulation.redraw`."""
        ppd_hidden.redraw(self.params, state, lane, self.world(key), np.random.default_rng(key))

    def audit(self, state: State, lane: int) -> dict[str, float]:
        """Recount requests, tokens and bytes from the raw arrays."""
        episode = state.lane[lane]
        talks = state.conversation[lane, : episode["conversations"]]
        request = state.request[lane]
        stage = talks["stage"]
        running = np.isin(stage, (P_RUN, D_RUN))
        waiting = np.isin(stage, (GATE, ASKED, P_WAIT, MOVE, D_WAIT))
        mine = np.arange(len(talks))
        found = self._found(state, lane)
        fullest, pinned, idle = 0, 0, 0
        for n, kind in enumerate(self.nodes):
            side = 0 if kind == P else 1
            node = state.node[lane, n]
            here = talks["p" if kind == P else "d"] == n
            listed = state.cache["listed"][lane, 2 * mine[here] + side] == 1
            tokens = state.cache["tokens"][lane, 2 * mine[here] + side]
            idle += int(tokens[listed].sum())
            if kind == P:
                fullest = max(fullest, int(node["idle"]))
                continue
            batch = state.running[lane, n, : node["running"]]
            held = talks["context"][batch] + talks["prompt"][batch] + talks["kept"][batch]
            decodes = np.arange(len(batch)) < node["decoding"]
            so_far = talks["context"][batch] + talks["prompt"][batch] + node["tick"] - talks["base"][batch]
            pinned += int(np.where(decodes, so_far, held).sum())
            fullest = max(fullest, int(node["active"] + node["idle"]))
        coming = talks["moving"].astype(bool) & np.isin(stage, (MOVE, D_WAIT))
        flying = (talks["context"] + talks["prompt"])[coming].sum() * self.kv_bytes
        links = state.link[lane]
        return {
            "arrived": float(episode["asked"]),
            "waiting": float(waiting.sum()),
            "running": float(running.sum()),
            "done": float(np.sum(request["e2e_s"][self.turn_numbers(state, lane)] >= 0.0)),
            "done_counted": float(episode["done"]),
            "rejected": float(episode["failed"]),
            "live": float(np.sum((stage > AWAY) & (stage < OVER))),
            "distinct": float(len(np.unique(found))),
            "found": float(len(found)),
            "found_counted": float(np.sum((stage > AWAY) & (stage < OVER))),
            "kv_used": float(state.node["active"][lane].sum() + state.node["idle"][lane].sum()),
            "kv_resident": float(pinned + idle),
            "kv_fullest": float(fullest),
            "kv_capacity": float(self.kv_capacity),
            "bytes_sent": float(links["sent_bytes"].sum()),
            "bytes_received": float(links["received_bytes"].sum()),
            "bytes_in_flight": float(flying),
            "clock_s": float(episode["clock_s"]),
        }

    def _found(self, state: State, lane: int) -> NDArray[np.int64]:
        """Conversations that are under way, gathered from the gate, the heap, the lines and the batches, int64 [n]."""
        episode = state.lane[lane]
        found = [*range(episode["gate"], episode["next"]), *state.heap[lane, : episode["size"]].tolist()]
        if episode["current"] >= 0:
            found.append(int(episode["current"]))
        for n, node in enumerate(state.node[lane]):
            c = int(node["head"])
            while c >= 0:
                found.append(c)
                c = int(state.conversation["next"][lane, c])
            if node["serving"] >= 0:
                found.append(int(node["serving"]))
            found.extend(state.running[lane, n, : node["running"]].tolist())
        return np.array(found, np.int64)

    def turn_numbers(self, state: State, lane: int) -> NDArray[np.int64]:
        """Where the turns of this episode are in `state.request`: first turns, then the later ones of each conversation."""
        talks = state.conversation[lane, : state.lane["conversations"][lane]]
        later = [
            np.arange(start, start + turns - 1)
            for start, turns in zip(talks["later"], talks["turns"], strict=True)
        ]
        return np.concatenate([np.arange(len(talks)), *later])

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

    def render(self, state: State, lane: int, mode: str) -> Any:
        """A picture or a text of one lane."""
        from llmgym.envs.ppd.view import picture, text

        if mode == "ansi":
            return text(self.nodes, self.kv_capacity, state, lane)
        return picture(
            self.nodes,
            self.kv_capacity,
            self.turn_numbers(state, lane)[state.lane["conversations"][lane] :],
            self.scenario.ttft_slo_s,
            state,
            lane,
        )

    def settings(self) -> dict[str, Any]:
        """The scenario with everything resolved, for reports."""
        return asdict(self.scenario) | {"workload": self.workload.name, "latencies": self.latencies.as_dict()}
