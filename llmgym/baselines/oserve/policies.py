"""Rules for OServe: the paper's planner with several forecasts, its ablations, and what it compares with.

Jiang, Fu, Wang, He and Yoneki, "OServe: Accelerating LLM Serving via Spatial-Temporal Workload Orchestration", ICML 2026 (arXiv
2602.12151): every minute forecast the arrivals of each type, search a deployment and its routing, and switch if that pays.
Static and reloading vLLM, Llumnix (requests move between equal replicas) and Dynamo (routing by cache load) are modelled by what
they decide.

Planners act with `action="control"`: a deployment, and the demand to route for. The functions that this module takes from
`llmgym.baselines.oserve.search`, `llmgym.envs.oserve.shapes` and `llmgym.envs.oserve.placement` do the same outside of an
environment.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.oserve.forecast import WINDOW, Floats, Forecaster, padded
from llmgym.baselines.oserve.search import Routing, SearchResult, brute_force, route_lp, route_preflow, search
from llmgym.baselines.oserve.trained import forecaster
from llmgym.baselines.rule import Factory, Rule
from llmgym.core.checks import choice, number, whole
from llmgym.core.policy import Policy
from llmgym.envs.oserve.deployments import CLOSE, best, best_for_a_mix, evaluate, uniform
from llmgym.envs.oserve.env import OServe
from llmgym.envs.oserve.observation import CANDIDATE_FIELDS
from llmgym.envs.oserve.placement import SwitchPlan, switch_plan
from llmgym.envs.oserve.shapes import Rates, rate_table, rates
from llmgym.envs.oserve.state import Candidate
from llmgym.errors import InvalidArgument

__all__ = [
    "BASELINES",
    "GRIDS",
    "Rates",
    "Routing",
    "SearchResult",
    "SwitchPlan",
    "brute_force",
    "make",
    "rate_table",
    "rates",
    "route_lp",
    "route_preflow",
    "search",
    "switch_plan",
]

GAIN = 1.02
"""Ratio by which a switch must gain headroom, or latency at about the same headroom; our reading of "plan only when it changes"."""
FORECASTS = ("ewma", "last", "ridge", "lstm", "oracle")
CHANGED = Candidate.names().index("changed_gpus")
"""Place in a row of the observation's `candidates`."""
MOST_CANDIDATES = 19
"""Of the longest menu of a scenario."""
SCOPES = ("all", "uniform", "search", "preflow")


class PlannerPolicy(Rule[OServe]):
    """`oserve` and its variants: forecast, choose a deployment, switch if it gains.

    Args:
        env: the environment, made with `action="control"`.
        name: name of the policy.
        forecast: "ewma" (what the observation holds), "last", "ridge", "lstm" or "oracle" (true counts of the next epoch:
            privileged).
        scope: what is chosen from: "search" (the paper's local search), "all" deployments, those of "uniform" replicas, or
            "preflow" (the search with maximum flows below).
        gain: smallest ratio of new to old headroom, or of old to new latency at no less than 0.97 of the headroom.

    Raises:
        InvalidArgument: another action mode, a gain below 1, or no counts in the observation where the forecast needs them.
    """

    remembered = ("_past",)

    def __init__(
        self,
        env: Any,
        name: str = "oserve",
        forecast: str = "ewma",
        scope: str = "search",
        gain: float = GAIN,
    ) -> None:
        super().__init__(env, name, OServe)
        simulation = self._simulation
        if simulation.action != "control":
            raise InvalidArgument(f"baseline {name!r} needs action='control', not {simulation.action!r}")
        self.forecast = choice("forecast", forecast, FORECASTS)
        self.scope = choice("scope", scope, SCOPES)
        if number("gain", gain) < 1.0:
            raise InvalidArgument(f"gain={gain!r}: expected a number from 1 on")
        self.gain = gain
        self.privileged = forecast == "oracle"
        if forecast in ("last", "ridge", "lstm") and simulation.scenario.history < 1:
            raise InvalidArgument(f"baseline {name!r} needs history of 1 or more: it reads the newest counts")
        self._scale = simulation.params.rate_scale
        self._epoch_s = simulation.scenario.epoch_s
        self._learnt: list[Forecaster] = (
            forecaster(simulation, forecast) if forecast in ("ridge", "lstm") else []
        )
        self._past: dict[int, list[Floats]] = {}
        self._chosen = np.arange(len(simulation.deployments))
        if self.scope == "uniform":
            self._chosen = np.flatnonzero(uniform(simulation.deployments))
        self._number = {tuple(row.tolist()): d for d, row in enumerate(simulation.deployments)}
        self._known: dict[tuple[Any, ...], int] = {}
        self._truth: dict[int, tuple[float, Floats]] = {}

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Forget the counts of lanes whose episode just began."""
        for lane in np.flatnonzero(lanes).tolist():
            self._past.pop(lane, None)

    def demand(self, obs: NDArray[np.float32]) -> Floats:
        """Arrivals a second to expect of each type, float64 [lanes, types]."""
        expected = self._rows(obs, "forecast") * self._scale
        if self.forecast == "ewma":
            return expected
        epochs = np.rint(self._read(obs, "epoch") * self._simulation.scenario.epochs).astype(np.int64)
        if self.forecast == "oracle":
            return self._oracle(epochs, expected)
        history, types = self._simulation.scenario.history, len(self._scale)
        newest = self._rows(obs, "counts").reshape(len(obs), types, history)[:, :, 0]
        counts = np.rint(np.expm1(newest * np.log1p(4.0 * self._scale * self._epoch_s)))
        seen = epochs > 0
        if self.forecast == "last":
            return np.where(seen[:, None], counts / self._epoch_s, expected)
        for lane in np.flatnonzero(seen).tolist():
            past = self._past.setdefault(lane, [])
            past.append(counts[lane])
            del past[:-WINDOW]
            window = padded(np.array(past).T)
            for j, learnt in enumerate(self._learnt):
                expected[lane, j] = learnt(window[j : j + 1])[0] / self._epoch_s
        return expected

    def _oracle(self, epochs: NDArray[np.int64], expected: Floats) -> Floats:
        state = self._env.lanes.state
        for lane, epoch in enumerate(epochs.tolist()):
            world = float(state.lane[lane]["checksum"])
            if lane not in self._truth or self._truth[lane][0] != world:
                self._truth[lane] = world, self._simulation.rates(state, lane)
            expected[lane] = self._truth[lane][1][min(epoch, len(self._truth[lane][1]) - 1)]
        return expected

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Deployment and demand, float64 [lanes, 1 + types]."""
        simulation = self._simulation
        demand = self.demand(obs)
        sizes = simulation.params.sizes
        counts = np.rint(self._rows(obs, "deployment") * simulation.scenario.gpus / sizes).astype(np.int64)
        rows = zip(counts.tolist(), demand, strict=True)
        return np.array(
            [simulation.control(self._decide(tuple(now), arrivals), arrivals) for now, arrivals in rows]
        )

    def _decide(self, now: tuple[int, ...], demand: Floats) -> int:
        """Number of the deployment to have."""
        current = self._number[now]
        if demand.sum() <= 0.0:
            return current
        wanted = self._best(current, demand)
        if wanted == current:
            return current
        rows = self._simulation.deployments[[current, wanted]]
        alpha, latency_s = evaluate(self._simulation.types, rows, demand[None])
        old, new = alpha[0]
        faster = new >= (1.0 - CLOSE) * old and latency_s[0, 1] * self.gain < latency_s[0, 0]
        return wanted if new > self.gain * old or (faster and min(new, 1.0) >= min(old, 1.0)) else current

    def _best(self, current: int, demand: Floats) -> int:
        simulation = self._simulation
        if self.scope in ("all", "uniform"):
            rows = simulation.deployments[self._chosen]
            alpha, latency_s = evaluate(simulation.types, rows, demand[None])
            return int(self._chosen[best(alpha[0], latency_s[0])])
        solver = "preflow" if self.scope == "preflow" else "simplex"
        chosen = search(
            simulation.types, demand, simulation.scenario.gpus, simulation.deployments[current], solver=solver
        )
        return self._number[tuple(chosen.replicas.tolist())]


class StaticPolicy(PlannerPolicy):
    """One deployment throughout; the routing, where the environment routes by type, follows the forecast of the observation.

    Args:
        env: the environment, made with `action="control"`.
        name: name of the policy.
        which: "uniform", the best equal replicas for the mean mix; "best", the best of all for it; or "tp4", "tp8".

    Raises:
        InvalidArgument: replicas that do not use all GPUs.
    """

    def __init__(self, env: Any, name: str, which: str = "uniform") -> None:
        super().__init__(env, name)
        simulation = self._simulation
        if which == "uniform":
            self.deployment = simulation.static
        elif which == "best":
            load = simulation.mean_load
            alpha, latency_s = evaluate(simulation.types, simulation.deployments, load[None])
            self.deployment = best_for_a_mix(alpha[0], latency_s[0])
        else:
            tensor = int(which.removeprefix("tp"))
            self.deployment = simulation.number_of(((tensor, 1),) * (simulation.scenario.gpus // tensor))

    def _decide(self, now: tuple[int, ...], demand: Floats) -> int:
        return self.deployment


class MenuPolicy(Rule[OServe]):
    """`menu-greedy`: in the environment's own action space, the candidate with the largest headroom if it gains enough.

    What there is to learn beyond it is when that does not pay. `menu-least-work` is the same where each request goes to the replica
    that has the least work before it, a common heuristic, in place of the shares of a linear program.

    Args:
        env: the environment, made with `action="menu"`.
        name: name of the policy.
        gain: smallest ratio of its headroom to that of the deployment.
    """

    def __init__(self, env: Any, name: str = "menu-greedy", gain: float = 1.05) -> None:
        super().__init__(env, name, OServe)
        if self._simulation.action != "menu":
            raise InvalidArgument(f"baseline {name!r} needs action='menu', not {self._simulation.action!r}")
        if number("gain", gain) < 1.0:
            raise InvalidArgument(f"gain={gain!r}: expected a number from 1 on")
        self.gain = gain

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Actions [lanes]."""
        rows = self._rows(obs, "candidates").reshape(len(obs), -1, CANDIDATE_FIELDS)
        ratio = 2.0 * rows[:, :, 0]
        near = ratio >= (1.0 - CLOSE) * ratio.max(axis=1, keepdims=True)
        chosen = np.argmin(np.where(near, rows[:, :, 2], np.inf), axis=1)
        lanes = np.arange(len(obs))
        actions = np.where(ratio[lanes, chosen] > self.gain, chosen + 1, 0)
        return actions if mask is None else np.where(mask[lanes, actions] == 1, actions, 0)


class MenuOncePolicy(Rule[OServe]):
    """`menu-once`: one candidate of the menu for good, which tuning finds; what there is to learn beyond it is to follow the mix.

    `menu-once-last` plays with `ewma=1`: requests are routed for the types of the last minute.

    Args:
        env: the environment, made with `action="menu"`.
        name: name of the policy.
        candidate: which one, from 1 on; a menu that is shorter has none to change to.
    """

    def __init__(self, env: Any, name: str = "menu-once", candidate: int = 1) -> None:
        super().__init__(env, name, OServe)
        if self._simulation.action != "menu":
            raise InvalidArgument(f"baseline {name!r} needs action='menu', not {self._simulation.action!r}")
        self.candidate = whole("candidate", candidate, 1)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Actions [lanes]."""
        rows = self._rows(obs, "candidates").reshape(len(obs), -1, CANDIDATE_FIELDS)
        if self.candidate > rows.shape[1]:
            return np.zeros(len(obs), np.int64)
        actions = np.where(rows[:, self.candidate - 1, CHANGED] > 0.0, self.candidate, 0)
        return actions if mask is None else np.where(mask[np.arange(len(obs)), actions] == 1, actions, 0)


class StayPolicy(Rule[OServe]):
    """`stay`: the first deployment, with routing by type; action 0 throughout."""

    def __init__(self, env: Any, name: str = "stay") -> None:
        super().__init__(env, name, OServe)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Actions [lanes]."""
        return np.zeros(len(obs), np.int64)


_CONTROL: Mapping[str, Any] = MappingProxyType({"action": "control"})


def _planner(
    name: str,
    forecast: str = "ewma",
    scope: str = "search",
    other_world: str | None = None,
    **env_kwargs: Any,
) -> Factory:
    def build(env: Any, name: str, **numbers: float) -> Policy:
        return PlannerPolicy(env, name, forecast, scope, **numbers)

    return Factory(name, build, {"gain": float}, {**_CONTROL, **env_kwargs}, other_world)


def _static(name: str, which: str = "uniform", **env_kwargs: Any) -> Factory:
    def build(env: Any, name: str) -> Policy:
        return StaticPolicy(env, name, which)

    return Factory(name, build, None, {**_CONTROL, **env_kwargs})


BASELINES: dict[str, Callable[[Any], Policy]] = {
    "static-uniform": _static("static-uniform", dispatch="round-robin"),
    "static-tp4": _static("static-tp4", "tp4", dispatch="round-robin"),
    "static-tp8": _static("static-tp8", "tp8", dispatch="round-robin"),
    "static-best": _static("static-best", "best"),
    "reload-uniform": _planner("reload-uniform", scope="uniform", dispatch="round-robin", switching="reload"),
    "reload-adhoc": _planner("reload-adhoc", scope="uniform", dispatch="round-robin"),
    "llumnix-like": _static("llumnix-like", dispatch="least-work"),
    "autoscale-like": _static("autoscale-like", dispatch="least-kv"),
    "hetero-only": _planner("hetero-only", dispatch="blind"),
    "round-robin": _planner("round-robin", dispatch="round-robin"),
    "route-only": _static("route-only"),
    "oserve": _planner("oserve"),
    "oserve-last": _planner("oserve-last", "last"),
    "oserve-ridge": _planner("oserve-ridge", "ridge"),
    "oserve-lstm": _planner("oserve-lstm", "lstm"),
    "oserve-preflow": _planner("oserve-preflow", scope="preflow"),
    "brute-force": _planner("brute-force", scope="all"),
    "no-switch-cost": _planner("no-switch-cost", other_world="switches take no time", switching="free"),
    "oserve-oracle": _planner("oserve-oracle", "oracle", "all"),
    "menu-greedy": Factory("menu-greedy", MenuPolicy, {"gain": float}),
    "menu-least-work": Factory("menu-least-work", MenuPolicy, {"gain": float}, {"dispatch": "least-work"}),
    "menu-once": Factory("menu-once", MenuOncePolicy, {"candidate": int}),
    "menu-once-last": Factory("menu-once-last", MenuOncePolicy, {"candidate": int}, {"ewma": 1.0}),
    "stay": Factory("stay", StayPolicy),
}

GRIDS: dict[str, tuple[str, ...]] = {
    name: tuple(f"{name}:gain={gain}" for gain in (1.02, 1.05, 1.1, 1.2, 1.4))
    for name in (
        *(
            "reload-uniform",
            "reload-adhoc",
            "hetero-only",
            "round-robin",
            "oserve",
            "oserve-last",
            "oserve-ridge",
        ),
        *("oserve-lstm", "oserve-preflow", "brute-force", "no-switch-cost", "oserve-oracle", "menu-greedy"),
        "menu-least-work",
    )
}
"""Every rule that switches is tuned by how much a switch must gain: the reload-bound ones need far more than the others."""
GRIDS |= {
    name: tuple(f"{name}:candidate={number}" for number in range(1, MOST_CANDIDATES + 1))
    for name in ("menu-once", "menu-once-last")
}
BOARDS: dict[str, tuple[str, ...]] = {"small": (), "real": ()}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""


def make(name: str, env: Any) -> Policy:
    """A rule for an environment; see `BASELINES`.

    Raises:
        UnknownName: no rule of that name.
    """
    from llmgym import baselines

    return baselines.make(name, env)
