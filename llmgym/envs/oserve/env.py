"""OServe: which replicas a cluster is made of, decided minute by minute while the mix of requests drifts.

The problem of Jiang, Fu, Wang, He and Yoneki, "OServe: Accelerating LLM Serving via Spatial-Temporal Workload Orchestration", ICML
2026 (arXiv 2602.12151). The paper prints neither rates nor request mixes; `llmgym.envs.oserve.shapes` has formulas that stand for
them.
"""

from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from llmgym.core.checks import choice, number
from llmgym.core.env import LaneEnv, LaneVectorEnv
from llmgym.core.lanes import Simulation
from llmgym.core.layout import Field, Layout
from llmgym.core.statistics import counted
from llmgym.envs.oserve.demand import day_rate_rps, expected_rps, harmonics, known_at_arrival, room
from llmgym.envs.oserve.deployments import (
    best,
    candidates,
    catalogue,
    evaluate,
    scratch_size,
    serving_all,
    uniform,
)
from llmgym.envs.oserve.kernels import KERNELS
from llmgym.envs.oserve.placement import PARTS, layout
from llmgym.envs.oserve.scenarios import (
    DISPATCH,
    DRIFTS,
    SWITCHING,
    Scenario,
    requests_of,
    resolve_scenario,
    type_table,
)
from llmgym.envs.oserve.shapes import MODELS, SEATS, Shape, rate_table
from llmgym.envs.oserve.state import (
    CANDIDATE_FIELDS,
    CONTROL,
    EDIT,
    HISTORY,
    LANE,
    LATENCY,
    MENU,
    METRICS,
    MOST_PLANNED,
    NUMBER,
    P99,
    PLAN,
    REQUEST,
    ROUTE,
    SCALARS,
    SLO,
    SLOT,
    SLOT_FIELDS,
    Params,
    State,
)
from llmgym.errors import InvalidArgument
from llmgym.serving.hidden import redraw_arrivals

ACTIONS = {"menu": MENU, "edit": EDIT, "plan": PLAN, "control": CONTROL, "route": ROUTE}
REWARDS = {"latency": LATENCY, "p99": P99, "slo": SLO}
MOST_DEPLOYMENTS = 20_000


class OServe(Simulation):
    """The simulation behind `llmgym/OServe-v0`; see `OServeEnv` for the arguments.

    Attributes:
        scenario: the settings, resolved.
        requests: classes, types and streams of the requests.
        table: rates of every shape for every class.
        types: rates of every shape for every type.
        deployments: those that can serve every class, int64 [deployments, shapes].
        menu: numbers of the candidates (action "menu"); between them they reach all but `menu_loss` of the headroom of the best
            deployment on every mix of types.
        static: number of the best uniform deployment for the mean mix.
        latency_ref_s: mean latency of a lone request in a replica of that deployment.
        expected_rps: arrivals a second, mean over the worlds of the scenario; what `backlog_s` is counted in.
        room: requests that an episode has room for.
    """

    kernels = KERNELS
    metric_names = METRICS
    headline_metrics = {  # noqa: RUF012
        "e2e_mean_s": "min",
        "e2e_p99_s": "min",
        "ttft_p99_s": "min",
        "throughput_rps": "max",
        "slo_attainment": "max",
        "switches": "min",
        "stopped_gpu_s": "min",
    }

    def __init__(
        self,
        *,
        scenario: str | Scenario = "small",
        action: str = "menu",
        reward: str = "latency",
        invalid_action: str = "penalize",
        invalid_cost: float = 0.01,
        **settings: Any,
    ) -> None:
        chosen = resolve_scenario(scenario, settings)
        choice("action", action, ACTIONS)
        choice("reward", reward, REWARDS)
        choice("invalid_action", invalid_action, ("penalize", "raise"))
        number("invalid_cost", invalid_cost, zero=True)
        self.action, self.reward = action, reward
        self.raise_on_masked = invalid_action == "raise"
        self.model = MODELS[chosen.model]
        self.requests = requests_of(chosen)
        self.table = rate_table(chosen.model, self.requests.kinds, chosen.gpus, chosen.kernels)
        self.types = type_table(self.table, self.requests)
        found = catalogue(self.table.shapes, chosen.gpus)
        self.deployments = np.ascontiguousarray(found[serving_all(self.types, found)])
        if not len(self.deployments):
            raise InvalidArgument(
                f"gpus={chosen.gpus}: no division into replicas of {chosen.model} can serve every type of {self.requests.centroids}"
            )
        if len(self.deployments) > MOST_DEPLOYMENTS:
            raise InvalidArgument(
                f"gpus={chosen.gpus}: {len(self.deployments):,} deployments are too many to list"
            )
        self.mean_load = self.requests.mix @ self.requests.stream_type
        self.static = self.best_uniform(self.mean_load)
        chosen_menu, self.menu_loss = candidates(
            self.types, self.deployments, chosen.candidates, (self.static,)
        )
        self.menu = np.array(chosen_menu, np.int64)
        self.initial = self.static if chosen.initial is None else self.number_of(chosen.initial)
        alone = self.types.latency_s[self.deployments[self.static] > 0][0]
        self.latency_ref_s = float(alone @ self.mean_load)
        self.scenario = chosen
        self.edits = _edits(self.table.shapes)
        self.places = chosen.gpus // min(shape.gpus for shape in self.table.shapes)
        self.expected_rps = expected_rps(chosen, self.requests, self.types, self.deployments[self.menu])
        self.params = self._params(invalid_cost)
        self.room = room(chosen, self.requests, self.types, self.deployments[self.menu])
        self.layout = self._layout()
        self.action_space = self._space()

    def best_uniform(self, load: NDArray[np.float64]) -> int:
        """Number of the best deployment of equal replicas for a load (float64 [types], only its mix counts)."""
        alike = np.flatnonzero(uniform(self.deployments))
        if not len(alike):
            raise InvalidArgument(f"no set of equal replicas uses all GPUs for {self.requests.centroids}")
        alpha, late = evaluate(self.types, self.deployments[alike], load[None])
        return int(alike[best(alpha[0] / (0.9 * alpha[0].max()), late[0])])

    def number_of(self, shapes: Any) -> int:
        """The number of a deployment given by the shapes (tp, pp) of its replicas.

        Raises:
            InvalidArgument: no replica, more GPUs than there are or fewer, or one that cannot serve every type.
        """
        gpus = int(self.deployments[0] @ [shape.gpus for shape in self.table.shapes])
        slots = layout(shapes, gpus, "initial")
        counts = np.array([sum(tuple(s) == tuple(shape) for s in shapes) for shape in self.table.shapes])
        same = np.flatnonzero((self.deployments == counts).all(axis=1))
        if not len(same) or counts.sum() != len(slots):
            raise InvalidArgument(
                f"initial={tuple(shapes)!r}: expected replicas that use all {gpus} GPUs, each with room for the weights, and for "
                f"requests of every type in some of them"
            )
        return int(same[0])

    def name_of(self, deployment: NDArray[np.int64]) -> str:
        """Such as "2 TP4 + 1 TP8"."""
        return " + ".join(f"{n} {shape}" for n, shape in zip(deployment, self.table.shapes, strict=True) if n)

    def control(self, deployment: int, demand: NDArray[np.float64]) -> NDArray[np.float64]:
        """An action of "control", float64 [1 + types].

        Args:
            deployment: its number.
            demand: float64 [types], arrivals a second to route for.
        """
        place = deployment / max(len(self.deployments) - 1, 1)
        return np.concatenate([[place], np.minimum(demand / (MOST_PLANNED * self.params.rate_scale), 1.0)])

    def _space(self) -> "Discrete[Any] | Box":
        if self.action == "menu":
            return Discrete(1 + len(self.menu))
        if self.action == "edit":
            return Discrete(1 + len(self.edits))
        if self.action == "plan":
            return Discrete(len(self.deployments))
        if self.action == "control":
            return Box(0.0, 1.0, (1 + self.requests.types,), np.float64)
        return Box(-1.0, 1.0, (self.places * self.requests.types,), np.float64)

    def _params(self, invalid_cost: float) -> Params:
        chosen, asked = self.scenario, self.requests
        shapes = self.table.shapes
        numbers = np.zeros(1, NUMBER)
        record = numbers[0]
        for name in (
            "gpus",
            "epochs",
            "history",
            "reroute",
            "epoch_s",
            "amplitude",
            "noise",
            "correlation",
            "ewma",
            "fix_s",
            "drain_s",
            "backlog_s",
            "switch_cost",
        ):
            record[name] = getattr(chosen, name)
        record["types"], record["streams"], record["classes"] = asked.types, len(asked.mix), len(asked.kinds)
        record["action"], record["reward"] = ACTIONS[self.action], REWARDS[self.reward]
        record["drift"], record["switching"] = DRIFTS[chosen.drift], SWITCHING[chosen.switching]
        record["dispatch"], record["initial"] = DISPATCH[chosen.dispatch], self.initial
        record["span_low"], record["span_high"] = chosen.span_epochs
        record["cv_low"], record["cv_high"] = chosen.cv
        record["load_low"], record["load_high"] = chosen.load
        record["period"] = chosen.period_epochs
        record["reload_s"] = self.model.weight_bytes / (1e9 * chosen.disk_gb_per_s)
        record["gpu_bytes_per_s"] = 1e9 * chosen.nvlink_gb_per_s
        record["node_bytes_per_s"] = 1e9 * chosen.infiniband_gb_per_s
        record["part_bytes"] = self.model.weight_bytes / PARTS**2
        record["kv_token_bytes"] = self.model.kv_bytes
        record["latency_ref_s"], record["invalid_cost"] = self.latency_ref_s, invalid_cost
        with np.errstate(divide="ignore"):
            work = np.where(self.table.rate > 0.0, 1.0 / self.table.rate, np.inf)
        slo = chosen.slo_scale * self.table.latency_s[self.deployments[self.static] > 0][0]
        menu = self.deployments[self.menu]
        record["day_rate"] = day_rate_rps(chosen, asked, self.types, menu)
        record["cap"] = min(1 + int(chosen.backlog_s * self.expected_rps), 2**31 - 1)
        known_work, known_tokens = known_at_arrival(asked, work)
        alpha, _ = evaluate(self.types, menu, self.mean_load[None])
        scale = 0.5 * sum(chosen.load) * float(alpha.max()) * self.mean_load
        return Params(
            numbers,
            np.array([shape.gpus for shape in shapes], np.int64),
            np.array(shapes, np.int64).reshape(len(shapes), 2),
            self.table.capacity,
            work,
            self.table.latency_s,
            self.table.prefill_s,
            np.array(asked.kinds, np.int64),
            asked.type_of,
            asked.guess,
            asked.split,
            known_work,
            known_tokens,
            slo,
            np.cumsum(asked.stream_class, axis=1),
            asked.stream_type,
            asked.mix,
            harmonics(len(asked.mix)),
            self.types.rate,
            self.types.latency_s,
            np.maximum(scale, 1e-6),
            self.deployments,
            self.menu,
            self.edits,
        )

    def _layout(self) -> Layout:
        chosen, types, shapes = self.scenario, self.requests.types, len(self.table.shapes)
        fields = [
            Field("epoch", 1, 0, 1, "episode", "epochs so far"),
            Field("since", 1, 0, 1, "20", "epochs since the last switch"),
            Field("stopped", 1, 0, 1, "min", "time until the switch under way is over"),
            Field("headroom", 1, 0, 1, "4", "multiple of the forecast that the deployment can serve"),
            Field("waiting", 1, 0, 1, "log(1 + cap)", "log(1 + requests waiting)"),
            Field("running", 1, 0, 1, "seats", "requests running"),
            Field("p99", 1, 0, 4, "8 latency_ref", "P99 of those that completed in the last epoch"),
            Field("open", 1, 0, 4, "mean epoch", "requests in the system over those that arrive in an epoch"),
            Field("day.cos", 1, -1.0001, 1.0001, "-", "cosine of the time of day (drift day)"),
            Field("day.sin", 1, -1.0001, 1.0001, "-", "sine of it"),
        ]
        assert sum(field.size for field in fields) == SCALARS
        if chosen.history:
            fields.append(
                Field(
                    "counts",
                    types * chosen.history,
                    0,
                    2,
                    "log(1 + 4 mean)",
                    "log(1 + arrivals), for each type the last epochs, newest first",
                )
            )
        fields += [
            Field("forecast", types, 0, 16, "mean", "arrivals to expect of each type, moving average"),
            Field(
                "backlog",
                types,
                0,
                1,
                "log(1 + cap)",
                "log(1 + requests waiting) of each type, or taken for it",
            ),
            Field("deployment", shapes, 0, 1, "GPUs", "share of the GPUs in replicas of each shape"),
        ]
        if self.action == "menu":
            fields.append(
                Field(
                    "candidates",
                    CANDIDATE_FIELDS * len(self.menu),
                    0,
                    4,
                    "see text",
                    "of each: headroom over the deployment's, halved; GPUs that change, share; unloaded latency, 4 latency_ref",
                )
            )
        fields.append(
            Field(
                "replicas",
                (shapes + SLOT_FIELDS) * self.places,
                0,
                16,
                "see text",
                "of each, large ones first: shape; load / 4, log of the line, cache, minutes of work, minutes until it serves",
            )
        )
        return Layout(fields)

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        chosen, types, shapes = self.scenario, self.requests.types, len(self.table.shapes)
        n, places, gpus = self.room, self.places, chosen.gpus
        rows, columns = scratch_size(shapes, types)
        return State(
            lane=np.zeros(lanes, LANE),
            slot=np.zeros((lanes, places), SLOT),
            request=np.zeros((lanes, n), REQUEST),
            heap_at=np.zeros((lanes, places, SEATS)),
            heap_id=np.zeros((lanes, places, SEATS), np.int32),
            demand=np.zeros((lanes, chosen.epochs, len(self.requests.mix))),
            counts=np.zeros((lanes, chosen.epochs, types), np.int32),
            waits=np.zeros((lanes, types), np.int32),
            forecast=np.zeros((lanes, types)),
            plan=np.zeros((lanes, types)),
            share=np.zeros((lanes, 2, types, places)),
            credit=np.zeros((lanes, types, places)),
            logit=np.zeros((lanes, types * places)),
            replicas=np.zeros((lanes, 3, shapes), np.int64),
            clock=np.zeros((lanes, 2)),
            flow=np.zeros((lanes, shapes, types)),
            scratch=np.zeros((lanes, rows, columns)),
            target=np.zeros((lanes, gpus, 2), np.int64),
            ranks=np.zeros((lanes, 2, gpus, 3), np.int64),
            traffic=np.zeros((lanes, gpus, 4)),
            ends=np.zeros((lanes, 4), np.int32),
            candidate=np.zeros((lanes, len(self.menu), CANDIDATE_FIELDS)),
            served=np.zeros((lanes, 3, n), np.float32),
            history=np.zeros((lanes, chosen.epochs + 1, HISTORY), np.float32),
        )

    hidden: ClassVar[dict[str, str]] = {
        "lane.requests": "at the end of the episode",
        "lane.checksum": "at the end of the episode",
        "request.arrival_s": "on arrival",
        "request.kind": "on arrival; what of it is no more than a type, on admission",
        "demand": "never: counts are",
    }
    shown: ClassVar[frozenset[str]] = frozenset(
        {
            *("clock", "plan", "flow", "scratch", "heap_at"),
            # how far a request has got: nowhere, where it is still to arrive
            *(f"request.{name}" for name in ("left", "began_s", "e2e_s", "ttft_s", "next", "node")),
        }
    )

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Other rates and arrivals from now on, other answers of what waits, as far as types differ; see `Simulation.redraw`.

        An engine reserves the answer when it admits a request, so the class of a running one is known.
        """
        episode, requests, params = state.lane[lane], state.request[lane], self.params
        rng = np.random.default_rng(key)
        other = self.world(key)
        arrived = int(episode["next"])
        drawn = other.request[0, : other.lane[0]["requests"]]
        coming = drawn[drawn["arrival_s"] >= episode["epoch"] * self.scenario.epoch_s]
        episode["requests"] = redraw_arrivals(requests, arrived, coming, rng)
        state.demand[lane] = other.demand[0]
        fits = np.isfinite(params.work_s)
        for r in np.flatnonzero((requests["began_s"][:arrived] < 0.0) & (requests["e2e_s"][:arrived] < 0.0)):
            c = requests["kind"][r]
            alike = (params.guess == params.guess[c]) & (params.lengths[:, 0] == params.lengths[c, 0])
            requests["kind"][r] = rng.choice(np.flatnonzero(alike & (fits == fits[:, [c]]).all(axis=0)))
        asked = requests[: episode["requests"]]
        episode["checksum"] = float((asked["arrival_s"] + asked["kind"]).sum())

    def rates(self, state: State, lane: int) -> NDArray[np.float64]:
        """True arrivals a second of each type in every epoch of this episode, float64 [epochs, types]: nobody can know them."""
        chosen, episode = self.scenario, state.lane[lane]
        requests = state.request[lane, : episode["requests"]]
        kinds = self.requests.type_of[requests["kind"]]
        epoch = np.minimum((requests["arrival_s"] / chosen.epoch_s).astype(np.int64), chosen.epochs - 1)
        flat = np.bincount(epoch * self.requests.types + kinds, minlength=chosen.epochs * self.requests.types)
        return np.asarray(flat.reshape(chosen.epochs, -1) / chosen.epoch_s)

    def audit(self, state: State, lane: int) -> dict[str, float]:
        """Recount requests, tokens and bytes from the raw arrays."""
        episode, slots = state.lane[lane], state.slot[lane]
        requests = state.request[lane, : episode["next"]]
        tokens = self.params.lengths.sum(axis=1)
        waiting: list[int] = []
        running: list[int] = []
        fullest, resident, used = 0.0, 0, 0
        for k, slot in enumerate(slots):
            if slot["shape"] < 0:
                continue
            r = int(slot["head"])
            for _ in range(slot["waiting"]):
                waiting.append(r)
                r = int(state.request["next"][lane, r])
            mine = state.heap_id[lane, k, : slot["running"]].tolist()
            running += mine
            resident += int(tokens[state.request["kind"][lane, mine]].sum())
            used += int(slot["kv"])
            fullest = max(fullest, float(slot["kv"]) / float(self.table.capacity[slot["shape"]]))
        found = np.array(waiting + running, np.int64)
        done = requests["e2e_s"] >= 0.0
        open_ = requests["arrival_s"][~done]
        sent = float(episode["weights_bytes"] + episode["kv_bytes"])
        gpus = np.zeros(self.scenario.gpus, np.int64)
        for slot in slots[slots["shape"] >= 0]:
            gpus[slot["gpu"] : slot["gpu"] + slot["gpus"]] += 1
        return {
            "arrived": float(episode["next"]),
            "waiting": float(len(waiting)),
            "waiting_counted": float(episode["waiting"]),
            "running": float(len(running)),
            "running_counted": float(episode["running"]),
            "done": float(done.sum()),
            "done_counted": float(episode["done"]),
            "live": float((~done).sum()),
            "distinct": float(len(np.unique(found))),
            "kv_used": float(used),
            "kv_resident": float(resident),
            "kv_fullest": fullest,
            "kv_capacity": float(self.table.capacity.max() * self.places),
            "gpus": float((gpus == 1).sum()),
            "gpus_counted": float(self.scenario.gpus),
            "types_waiting": float(state.waits[lane].sum()),
            "types_waiting_counted": float(len(waiting)),
            "bytes_sent": sent,
            "bytes_received": sent - float(episode["flying_bytes"]),
            "bytes_in_flight": float(episode["flying_bytes"]),
            "open_arrival_s": round(float(open_.sum()), 3),
            "clock_s": float(episode["epoch"] * self.scenario.epoch_s),
        }

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode from its metrics (see `reward`)."""
        if self.reward == "slo":
            return counted(metrics["slo_attainment"]) - metrics["penalty"]
        seconds = counted(metrics["system_mean_s" if self.reward == "latency" else "epoch_p99_mean_s"])
        return -seconds / self.latency_ref_s - metrics["penalty"]

    def render(self, state: State, lane: int, mode: str) -> Any:
        """A picture or a text of one lane."""
        from llmgym.envs.oserve.view import picture, text

        name = self.name_of(state.replicas[lane, 0])
        if mode == "ansi":
            return text(self.scenario, self.table, name, state, lane)
        return picture(self.scenario, self.table, self.requests.centroids, name, state, lane)

    def settings(self) -> dict[str, Any]:
        """The scenario with everything resolved, for reports."""
        return asdict(replace(self.scenario))


def _edits(shapes: tuple[Shape, ...]) -> NDArray[np.int64]:
    """All local moves, int64 [edits, 4]: up to two shapes to take away and up to two to add, -1 for none.

    Another strategy for a replica, a replica split into two equal ones, or two merged into one.
    """
    found = []
    for s, shape in enumerate(shapes):
        for t, other in enumerate(shapes):
            if s != t and shape.gpus == other.gpus:
                found.append((s, -1, t, -1))
            if shape.gpus == 2 * other.gpus:
                found.append((s, -1, t, t))
        for z in range(s, len(shapes)):
            for t, other in enumerate(shapes):
                if shape.gpus == shapes[z].gpus and other.gpus == 2 * shape.gpus:
                    found.append((s, z, t, -1))
    return np.array(found, np.int64).reshape(-1, 4)


class OServeEnv(LaneEnv):
    """Which replicas a cluster is made of, minute by minute, while the mix of request types drifts.

    ## Description
    One model on D GPUs, divided into replicas of different size and parallelism (tensor by pipeline). Requests with short answers
    are bound by arithmetic and like many small replicas; long answers are bound by memory and like few large ones. Requests come in
    a few types, and their mix drifts. Every minute the agent may change the deployment; the replicas that change stop for some
    seconds, their requests go to the others, drain or move with their caches. Routing follows a linear program: the shares
    with the largest headroom for the forecast of the next minute.

    Within a minute the cluster runs request by request: a line at each replica, admission while prompt and answer of all running
    requests fit into its cache (256 at most), and processor sharing at the rates of `llmgym.envs.oserve.shapes`.

    ## Action Space
    `action="menu"` (default): `Discrete(1 + K)`. 0 stays; i changes to candidate i. The candidates are few (`candidates`, 12 by
    default) and fixed: chosen once by a search over all deployments so that for every mix of types one of them is within 3 % of the
    best headroom and of its latency (`simulation.menu_loss` says how well that worked). Why this one: an action means the same in
    every state, the observation has three numbers for each, and every action is sensible for some load, so that what is left to
    learn is *when* a change pays: the forecast lags, a stop costs, the queue counts. In `edit` a good deployment can be many
    moves away, and most of `plan` is never good for anything.

    - `"edit"`: `Discrete(1 + E)`, local moves: 0 none, then another strategy for a replica, a split into two, a merge of two.
    - `"plan"`: `Discrete(N)`, the number of a deployment in `simulation.deployments`; that of the present one stays.
    - `"control"`: `Box` in [0, 1], a place in `deployments` (0 the first, 1 the last, rounded) and for each type the arrivals a
      second to route for, over 32 times its mean (`simulation.control` makes such rows): what planners with a forecast of their own
      need. While a switch is under way the deployment stays.
    - `"route"`: `Box` in [-1, 1], for each type and replica place an eighth of a logit: shares of a type by softmax over the
      replicas that can hold it; the deployment stays.

    Masked are, while a switch is under way, all changes; the present deployment in `menu`; and edits that cannot be made. A masked
    action changes nothing, is counted in `invalid_actions` and costs `invalid_cost`; `invalid_action="raise"` makes it an error.

    ## Observation Space
    A flat float32 `Box`; `env.unwrapped.layout["forecast"]` is the slice of a field, `layout.markdown()` prints the table. Counts
    of the last epochs by type, their moving average (the forecast), queues, the deployment, the candidates and every replica.
    Nothing in it depends on what is still to arrive, not even on how much that is, nor on the answers of waiting requests beyond
    what their type says. Cache in use and load of a replica are readings of its engine, which reserves the answer when it admits.

    ## Rewards
    - `"latency"` (default): minus the seconds that requests spent in the system during the epoch, over all requests of the
      episode and over `latency_ref_s`. The return is `-system_mean_s / latency_ref_s - penalty`: the mean time in the system,
      of unfinished requests so far, in units of a lone request on the static plan.
    - `"p99"`: minus the P99 of the requests that complete in the epoch; the return is `-epoch_p99_mean_s / latency_ref_s -
      penalty`.
    - `"slo"`: the return is `slo_attainment - penalty`: requests within `slo_scale` latencies of the static plan.
    Switches cost what they cost the requests; `switch_cost` can be added.

    ## Starting State
    The best uniform deployment for the mean mix (or `initial`), idle. The whole world (drift, arrivals, lengths) is drawn at reset
    from the seed, so two policies on one seed meet the same requests.

    ## Episode End
    1. Truncation: after `epochs` epochs.
    2. Termination: more requests wait than are expected to arrive in `backlog_s` (`unstable`), at the mean rate of the
       scenario, `simulation.expected_rps`. The rest of the episode is charged as if nobody were served any more (in `penalty`).

    ## Arguments
    ```python
    import gymnasium, llmgym
    env = gymnasium.make("llmgym/OServe-v0", scenario="paper", switching="reload")
    envs = gymnasium.make_vec("llmgym/OServe-v0", num_envs=64, scenario="small")
    ```

    Args:
        scenario: `small`, `paper`, `paper-long`, `real`, `stress`, or a `Scenario` (see `llmgym.envs.oserve.scenarios`). Each of
            its settings can be given as an argument of its own.
        action: see above.
        reward: see above.
        invalid_action: `penalize` or `raise`.
        invalid_cost: cost of a masked action.
        render_mode: `rgb_array` or `ansi`.

    Raises:
        UnknownName: a scenario, model, workload or setting that does not exist.
        InvalidArgument: a value out of range, more GPUs than there are, a model that fits nowhere; the message names it.

    ## Version History
    - v0: first version.
    """

    simulation_class = OServe


class OServeVectorEnv(LaneVectorEnv):
    """Many lanes of `OServeEnv`; see `llmgym.core.env.LaneVectorEnv` for the arguments of every vector environment."""

    simulation_class = OServe
