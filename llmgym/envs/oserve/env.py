"""OServe: which replicas a cluster is made of, decided minute by minute while the mix of requests drifts.

The problem of Jiang, Fu, Wang, He and Yoneki, "OServe: Accelerating LLM Serving via Spatial-Temporal Workload Orchestration", ICML
2026 (arXiv 2602.12151). The paper prints neither rates nor request mixes; `llmgym.envs.oserve.shapes` has formulas that stand for
them.
"""

from typing import Any

import numpy as np

from llmgym.core.checks import choice
from llmgym.core.env import LaneEnv, vector_env
from llmgym.core.lanes import Simulation
from llmgym.core.settings import settled
from llmgym.core.statistics import counted
from llmgym.envs.oserve.actions import ACTIONS, MOST_PLANNED, action_space, local_moves
from llmgym.envs.oserve.demand import day_rate_rps, expected_rps, harmonics, known_at_arrival, room
from llmgym.envs.oserve.deployments import (
    Counts,
    Floats,
    best_for_a_mix,
    candidates,
    catalogue,
    evaluate,
    scratch_size,
    serving_all,
    uniform,
)
from llmgym.envs.oserve.hidden import HIDDEN, SHOWN, redraw
from llmgym.envs.oserve.kernels import KERNELS
from llmgym.envs.oserve.metrics import Metrics
from llmgym.envs.oserve.observation import layout
from llmgym.envs.oserve.placement import PARTS, placed
from llmgym.envs.oserve.requests import requests_of, type_table
from llmgym.envs.oserve.scenarios import DISPATCH, DRIFTS, SCENARIOS, SWITCHING, Scenario
from llmgym.envs.oserve.shapes import MODELS, SEATS, deployment_name, rate_table
from llmgym.envs.oserve.state import (
    LATENCY,
    P99,
    SLO,
    Candidate,
    Config,
    Episode,
    Params,
    Past,
    Request,
    Slot,
    State,
)
from llmgym.errors import InvalidArgument

REWARDS = {"latency": LATENCY, "p99": P99, "slo": SLO}
MOST_DEPLOYMENTS = 20_000
_MOST_WAITING = 2**31 - 1
"""The largest number of an int32."""
_LEAST_SCALE_RPS = 1e-6
"""What observations are divided by where a type hardly ever comes."""


class OServe(Simulation):
    """The simulation behind `llmgym/OServe-v0`; see `OServeEnv` for the arguments.

    Attributes:
        scenario: the settings, resolved.
        requests: classes, types and streams of the requests.
        table: rates of every shape for every class.
        types: rates of every shape for every type.
        deployments: int64 [deployments, shapes], replicas of each shape, of those deployments that can serve every type.
        mean_load: float64 [types], share of each type in the mean mix.
        menu: int64 [candidates], numbers of the candidates (action "menu"): between them they reach all but `menu_loss` of the
            headroom of the best deployment on every mix of types.
        static: number of the best uniform deployment for the mean mix.
        initial: number of the first deployment.
        places: places for replicas.
        latency_ref_s: mean latency of a lone request in a replica of the static deployment, seconds.
        expected_rps: mean arrivals over the worlds of the scenario, requests a second; what `backlog_s` is counted in.
        room: requests that an episode has room for.
        most: requests that an epoch has room for.
        rows: requests that may be in the system at once.
    """

    kernels = KERNELS
    metrics = Metrics
    view = "llmgym.envs.oserve.view"
    hidden = HIDDEN
    shown = SHOWN

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
        chosen: Scenario = settled(scenario, SCENARIOS, settings, "OServe", ("about",))
        self.action = choice("action", action, ACTIONS)
        self.reward = choice("reward", reward, REWARDS)
        super().__init__(invalid_action=invalid_action, invalid_cost=invalid_cost)
        self.scenario = chosen
        self.model = MODELS[chosen.model]
        self.requests = requests_of(chosen)
        self.table = rate_table(chosen.model, self.requests.classes, chosen.gpus, chosen.kernels)
        self.types = type_table(self.table, self.requests)
        self.deployments = self._serving_deployments()
        self.mean_load = self.requests.mix @ self.requests.stream_type
        self.static = self.best_uniform(self.mean_load)
        menu, self.menu_loss = candidates(self.types, self.deployments, chosen.candidates, (self.static,))
        self.menu = np.array(menu, np.int64)
        self.initial = self.static if chosen.initial is None else self.number_of(chosen.initial)
        alone_s = self.types.latency_s[self.deployments[self.static] > 0][0]
        self.latency_ref_s = float(alone_s @ self.mean_load)
        self.places = chosen.gpus // min(shape.gpus for shape in self.table.shapes)
        demand = (chosen, self.requests, self.types, self.deployments[self.menu])
        self.expected_rps = expected_rps(*demand)
        self.room, self.most = room(*demand)
        self.params = self._params(day_rate_rps(*demand))
        in_system = int(self.params.config[0]["cap"]) + self.places * SEATS + self.most
        self.rows = min(self.room, in_system)
        shapes, types = self.types.rate.shape
        self.layout = layout(chosen.history, types, shapes, len(menu) if action == "menu" else 0, self.places)
        edits = len(self.params.edits)
        self.action_space = action_space(action, len(menu), edits, len(self.deployments), types, self.places)

    def _serving_deployments(self) -> Counts:
        """All deployments that can serve every type, int64 [deployments, shapes]."""
        gpus, types = self.scenario.gpus, self.requests.centroids
        rows = catalogue(self.table.shapes, gpus)
        rows = np.ascontiguousarray(rows[serving_all(self.types, rows)])
        if not len(rows):
            raise InvalidArgument(
                f"gpus={gpus}: no division into replicas of {self.scenario.model} can serve every type of {types}"
            )
        if len(rows) > MOST_DEPLOYMENTS:
            raise InvalidArgument(f"gpus={gpus}: {len(rows):,} deployments are too many to list")
        return rows

    def best_uniform(self, load: Floats) -> int:
        """Number of the best deployment of equal replicas for a load (float64 [types], only its mix counts)."""
        equal = np.flatnonzero(uniform(self.deployments))
        if not len(equal):
            raise InvalidArgument(f"no set of equal replicas uses all GPUs for {self.requests.centroids}")
        alpha, latency_s = evaluate(self.types, self.deployments[equal], load[None])
        return int(equal[best_for_a_mix(alpha[0], latency_s[0])])

    def number_of(self, shapes: Any) -> int:
        """The number of a deployment given by the shapes (tp, pp) of its replicas.

        Raises:
            InvalidArgument: no replica, more GPUs than there are or fewer, or one that cannot serve every type.
        """
        gpus = self.scenario.gpus
        replicas = placed(shapes, gpus, "initial")
        counts = np.array([sum(tuple(s) == tuple(shape) for s in shapes) for shape in self.table.shapes])
        same = np.flatnonzero((self.deployments == counts).all(axis=1))
        if not len(same) or counts.sum() != len(replicas):
            raise InvalidArgument(
                f"initial={tuple(shapes)!r}: expected replicas that use all {gpus} GPUs, each with room for the weights, and for "
                f"requests of every type in some of them"
            )
        return int(same[0])

    def name_of(self, deployment: Counts) -> str:
        """A deployment, int64 [shapes], in words, such as "2 TP4 + 1 TP8"."""
        return deployment_name(self.table.shapes, deployment)

    def control(self, deployment: int, demand: Floats) -> Floats:
        """An action of "control", float64 [1 + types].

        Args:
            deployment: its number.
            demand: float64 [types], arrivals to route for, requests a second.
        """
        place = deployment / max(len(self.deployments) - 1, 1)
        return np.concatenate([[place], np.minimum(demand / (MOST_PLANNED * self.params.rate_scale), 1.0)])

    def _params(self, day_rate_rps: float) -> Params:
        chosen, requests, table, model = self.scenario, self.requests, self.table, self.model
        config = Config.pack(
            chosen,
            types=requests.types,
            streams=len(requests.mix),
            classes=len(requests.classes),
            action=ACTIONS[self.action],
            reward=REWARDS[self.reward],
            drift=DRIFTS[chosen.drift],
            switching=SWITCHING[chosen.switching],
            dispatch=DISPATCH[chosen.dispatch],
            initial=self.initial,
            cap=min(1 + int(chosen.backlog_s * self.expected_rps), _MOST_WAITING),
            most=self.most,
            day_rate_rps=day_rate_rps,
            reload_s=model.weight_bytes / (1e9 * chosen.disk_gb_per_s),
            gpu_bytes_per_s=1e9 * chosen.nvlink_gb_per_s,
            node_bytes_per_s=1e9 * chosen.infiniband_gb_per_s,
            part_bytes=model.weight_bytes / PARTS**2,
            kv_token_bytes=model.kv_bytes,
            latency_ref_s=self.latency_ref_s,
            invalid_cost=self.invalid_cost,
        )
        with np.errstate(divide="ignore"):
            work_s = np.where(table.rate > 0.0, 1.0 / table.rate, np.inf)
        known_work_s, known_tokens = known_at_arrival(requests, work_s)
        alpha, _ = evaluate(self.types, self.deployments[self.menu], self.mean_load[None])
        mean_rps = 0.5 * sum(chosen.load) * float(alpha.max()) * self.mean_load
        return Params(
            config=config,
            sizes=np.array([shape.gpus for shape in table.shapes], np.int64),
            parallel=np.array(table.shapes, np.int64).reshape(-1, 2),
            capacity=table.capacity,
            work_s=work_s,
            latency_s=table.latency_s,
            prefill_s=table.prefill_s,
            lengths=np.array(requests.classes, np.int64),
            type_lengths=np.array(requests.centroids, np.int64),
            guess=requests.guess,
            split=requests.split,
            known_work_s=known_work_s,
            known_tokens=known_tokens,
            slo_s=chosen.slo_scale * table.latency_s[self.deployments[self.static] > 0][0],
            stream_cdf=np.cumsum(requests.stream_class, axis=1),
            stream_type=requests.stream_type,
            mix=requests.mix,
            day=harmonics(len(requests.mix)),
            type_rate=self.types.rate,
            type_latency_s=self.types.latency_s,
            rate_scale=np.maximum(mean_rps, _LEAST_SCALE_RPS),
            deployments=self.deployments,
            menu=self.menu,
            edits=local_moves(table.shapes),
        )

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        epochs, gpus, places, n = self.scenario.epochs, self.scenario.gpus, self.places, self.room
        shapes, types = self.types.rate.shape
        return State(
            lane=Episode.zeros(lanes),
            slot=Slot.zeros(lanes, places),
            arrival_s=np.zeros((lanes, n)),
            arrival_class=np.zeros((lanes, n), np.int16),
            request=Request.zeros(lanes, self.rows),
            heap_at=np.zeros((lanes, places, SEATS)),
            heap_id=np.zeros((lanes, places, SEATS), np.int32),
            demand=np.zeros((lanes, epochs, len(self.requests.mix))),
            counts=np.zeros((lanes, epochs, types), np.int32),
            waits=np.zeros((lanes, types), np.int32),
            forecast=np.zeros((lanes, types)),
            plan=np.zeros((lanes, types)),
            share=np.zeros((lanes, 2, types, places)),
            credit=np.zeros((lanes, types, places)),
            logit=np.zeros((lanes, types * places)),
            replicas=np.zeros((lanes, 3, shapes), np.int64),
            clock=np.zeros((lanes, 2)),
            flow=np.zeros((lanes, shapes, types)),
            scratch=np.zeros((lanes, *scratch_size(shapes, types))),
            target=np.zeros((lanes, gpus, 2), np.int64),
            ranks=np.zeros((lanes, 2, gpus, 3), np.int64),
            traffic=np.zeros((lanes, gpus, 4)),
            ends=np.zeros((lanes, 4), np.int32),
            candidate=Candidate.zeros(lanes, len(self.menu)),
            served=np.zeros((lanes, 3, n), np.float32),
            history=Past.zeros(lanes, epochs),
        )

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Give a lane other rates and arrivals from now on, and what waits other answers; see `Simulation.redraw`.

        Args:
            state: arrays of all lanes.
            lane: number of the lane.
            key: seeds the other world, 0 to 2**63 - 1.
        """
        redraw(self.params, state, lane, self.world(key), np.random.default_rng(key))

    def rates(self, state: State, lane: int) -> Floats:
        """True arrivals of each type in every epoch of this episode, which nobody can know.

        Returns:
            float64 [epochs, types], requests a second.
        """
        epochs, epoch_s, types = self.scenario.epochs, self.scenario.epoch_s, self.requests.types
        count = state.lane[lane]["requests"]
        type_of = self.requests.type_of[state.arrival_class[lane, :count]]
        epoch = np.minimum((state.arrival_s[lane, :count] / epoch_s).astype(np.int64), epochs - 1)
        flat = np.bincount(epoch * types + type_of, minlength=epochs * types)
        return np.asarray(flat.reshape(epochs, -1) / epoch_s)

    def expected_return(self, metrics: dict[str, float]) -> float:
        """The return of an episode from its metrics (see `reward`)."""
        if self.reward == "slo":
            return counted(metrics["slo_attainment"]) - metrics["penalty"]
        seconds = counted(metrics["system_mean_s" if self.reward == "latency" else "epoch_p99_mean_s"])
        return -seconds / self.latency_ref_s - metrics["penalty"]


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


OServeVectorEnv = vector_env(OServeEnv)
