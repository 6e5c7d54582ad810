"""Rules for AFDRatio: the paper's closed forms on estimated lengths, feedback rules, fixed ratios, and a search by simulation.

The closed forms are those of Song et al., arXiv 2601.21351 (`llmgym.envs.afd.law`): the mean field of version 1 with mu_P + mu_D,
that of the later versions with theta, the barrier with theta and nu, and microbatches in flight. They read theta and nu from the
observation, which estimates them from the requests that finished last. Hill climbing and balancing idle times are what an operator
does without a model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Factory, Rule
from llmgym.core.checks import number
from llmgym.core.lanes import HOLD, Lanes
from llmgym.core.policy import Policy
from llmgym.envs.afd.costs import NAMES
from llmgym.envs.afd.law import expected_slowest, kappa
from llmgym.envs.afd.ratio.env import AFDRatio
from llmgym.errors import InvalidArgument

Floats = NDArray[np.float64]


class _Rule(Rule[AFDRatio]):
    """A rule whose actions name a ratio."""

    env_kwargs: Mapping[str, Any] = MappingProxyType({"action": "ratio"})

    def __init__(self, env: Any, name: str) -> None:
        super().__init__(env, name, AFDRatio)
        simulation = self._simulation
        if simulation.action_mode != "ratio":
            raise InvalidArgument(
                f"baseline {name!r} needs action='ratio', the environment was made with {simulation.action_mode!r}"
            )
        self._config = simulation.params.config[0]
        pairs = np.array(simulation.ratios, np.float64)
        self._workers, self._ffn = pairs[:, 0], pairs[:, 1]
        self._ratio = self._workers / self._ffn

    def _now(self, obs: NDArray[np.float32]) -> NDArray[np.int64]:
        """Index of the ratio that runs, [lanes]; -1 before the first decision."""
        ratio = self._read(obs, "ratio") * float(self._config["ratio_scale"])
        nearest = np.argmin(np.abs(ratio[:, None] - self._ratio), axis=1)
        return np.where(ratio > 0.0, nearest, -1)


class FormulaPolicy(_Rule):
    """`mean-field`, `v1`, `gaussian` and `pipeline`: the ratio with the best throughput by a closed form.

    Throughput is evaluated for every ratio that can be chosen; as it is unimodal, that is the better neighbour of r*.

    Args:
        env: the environment.
        name: of the policy.
        form: "mean-field" (theta), "v1" (mu_P + mu_D), "gaussian" (theta, nu, barrier), "pipeline" (theta, nu, and the microbatches
            that are in flight; the cheap form of "gaussian" where all communication is hidden).
        margin: share by which the throughput must rise for a change of the ratio.
    """

    def __init__(self, env: Any, name: str, form: str, margin: float = 0.0) -> None:
        super().__init__(env, name)
        self.form, self.margin = form, number("margin", margin, zero=True)

    def predict(self, obs: NDArray[np.float32]) -> Floats:
        """Throughput of each ratio by the formula, tokens per cycle and instance, float64 [lanes, ratios]."""
        simulation, scenario = self._simulation, self._simulation.scenario
        batch = float(scenario.batch)
        factors = self._rows(obs, "coefficients")
        alpha_a, beta_a, alpha_f, beta_f, alpha_c, beta_c = (
            factors * np.array(simulation.coefficients.values)
        ).T[:, :, None]
        mean = self._read(obs, "theta") * self._config["theta_ref"]
        if self.form == "v1":
            prompt = self._read(obs, "prompt.mean") * self._config["prompt_ref"]
            mean = prompt + self._read(obs, "steps.mean") * self._config["steps_ref"] - 1.0
        deviation = self._read(obs, "nu") * self._config["nu_ref"]
        attention = alpha_a * batch * mean[:, None] + beta_a
        sent = self._ratio if scenario.comm == "aggregate" else 1.0
        comm, ffn = alpha_c * batch * sent + beta_c, alpha_f * batch * self._ratio + beta_f
        spread = alpha_a * deviation[:, None] * np.sqrt(batch)
        if self.form in ("mean-field", "v1"):
            time = np.maximum(attention, np.maximum(comm, ffn))
        elif self.form == "gaussian":
            time = expected_slowest(np.maximum(comm, ffn), attention, spread, self._workers)
        else:
            wait = kappa(self._workers) * spread
            m = float(simulation.batches)
            if scenario.fidelity == "pipeline":
                time = np.maximum(attention + wait / np.sqrt(m), ffn)
                time = np.maximum(time, (attention + wait + comm + ffn) / m)
            else:  # a step of these is as if any number of them were in flight
                time = np.maximum(attention + wait, np.maximum(comm, ffn))
        return np.asarray(self._workers * batch / ((self._workers + self._ffn) * time))

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Indices of ratios [lanes]."""
        value = self.predict(obs)
        best, now, rows = value.argmax(axis=1), self._now(obs), np.arange(len(obs))
        stay = (now >= 0) & (value[rows, best] <= (1.0 + self.margin) * value[rows, now])
        return np.where(stay, now, best)


class ProbePolicy(_Rule):
    """`probe`: hill climbing on the measured throughput: go on in a direction while it pays, else turn round.

    Args:
        env: the environment.
        name: of the policy.
        tolerance: share of the throughput; what changes it by less is no change, and the ratio stays.
        patience: epochs that a ratio is kept before it is judged, so that instances that drain are not counted against it.
    """

    remembered = ("_before", "_age", "_direction")

    def __init__(self, env: Any, name: str = "probe", tolerance: float = 0.01, patience: float = 2) -> None:
        super().__init__(env, name)
        self.tolerance = number("tolerance", tolerance, zero=True)
        self.patience = int(number("patience", patience))
        self._start = FormulaPolicy(env, "start", "v1")
        self._lanes(0)

    def _lanes(self, lanes: int) -> None:
        self._before, self._age = np.zeros(lanes), np.zeros(lanes, np.int64)
        self._direction = np.ones(lanes, np.int64)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Indices of ratios [lanes]."""
        if len(self._before) != len(obs):
            self._lanes(len(obs))
        now, seen = self._now(obs), self._read(obs, "throughput")
        self._age += now >= 0
        judge = (now >= 0) & (self._age >= self.patience)
        worse = seen < self._before * (1.0 - self.tolerance)
        equal = np.abs(seen - self._before) <= self._before * self.tolerance
        self._direction = np.where(judge & worse, -self._direction, self._direction)
        # where nothing changed it rests for a round, and looks again when something has
        step = np.where(judge & ~equal, self._direction, 0)
        self._before = np.where(judge, seen, self._before)
        self._age = np.where(judge, 0, self._age)
        last = len(self._ratio) - 1
        wanted = now + step
        self._direction = np.where((wanted < 0) | (wanted > last), -self._direction, self._direction)
        return np.where(now < 0, self._start.act(obs, mask), np.clip(wanted, 0, last))

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Forget what was measured in lanes whose episode just began."""
        if len(self._before) == len(lanes):
            self._before[lanes], self._age[lanes], self._direction[lanes] = 0.0, 0, 1


class IdleBalancePolicy(_Rule):
    """`idle-balance`: one place up if the FFN idles more than attention by `epsilon`, one down in the opposite case.

    Args:
        env: the environment.
        name: of the policy.
        epsilon: difference of the idle shares that is tolerated.
    """

    def __init__(self, env: Any, name: str = "idle-balance", epsilon: float = 0.05) -> None:
        super().__init__(env, name)
        self.epsilon = number("epsilon", epsilon, zero=True)
        self._start = FormulaPolicy(env, "start", "v1")

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Indices of ratios [lanes]."""
        now = self._now(obs)
        gap = self._read(obs, "idle.ffn") - self._read(obs, "idle.attention")
        step = (gap > self.epsilon).astype(np.int64) - (gap < -self.epsilon)
        return np.where(now < 0, self._start.act(obs, mask), np.clip(now + step, 0, len(self._ratio) - 1))


class FixedPolicy(_Rule):
    """`fixed-1`, `fixed-4`, `fixed-8`, `fixed-16`: the ratio closest to this one, throughout.

    Args:
        env: the environment.
        name: of the policy.
        ratio: r.
    """

    def __init__(self, env: Any, name: str, ratio: float) -> None:
        super().__init__(env, name)
        self.choice = int(np.argmin(np.abs(self._ratio - number("ratio", ratio))))

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Indices of ratios [lanes]."""
        return np.full(len(obs), self.choice, np.int64)


class OraclePolicy(_Rule):
    """`oracle`: knows the law of the coming epoch, and the ratio that is best for it in a simulation of every ratio.

    Privileged. Not an optimum: it does not weigh what a change costs. Each law is simulated on every ratio in the
    environment's own fidelity, in the long run; with coefficients that vary from episode to episode, once for each.

    Args:
        env: the environment.
        name: of the policy.
        stays: length of a simulation, in mean stays of a request; as much before it is not counted.
        least: fewest cycles of a simulation.
    """

    privileged = True

    def __init__(self, env: Any, name: str = "oracle", stays: float = 4.0, least: int = 500) -> None:
        super().__init__(env, name)
        self.stays, self.least = number("stays", stays), least
        self._known: dict[tuple[int, tuple[float, ...]], int] = {}

    def search(self, law: int, values: Sequence[float]) -> Floats:
        """Simulated throughput of every ratio.

        Args:
            law: number of the law.
            values: the six coefficients, in the order of `NAMES`.

        Returns:
            Tokens per cycle and instance, float64 [ratios].
        """
        simulation, requests = self._simulation, self._simulation.laws[law]
        cycles = max(self.least, round(self.stays * requests.mean_steps)) * simulation.batches
        pairs = simulation.ratios
        costs: dict[str, Any] = dict(zip(NAMES, values, strict=True))
        quiet = replace(
            simulation.scenario,
            requests=(requests,),
            coefficients=replace(simulation.coefficients, **costs),
            ratios=pairs,
            instances=None,
            initial=None,
            cycles=cycles,
            epochs=2,
            stop=0,
            start="stationary",
            switch_epochs=None,
            spread=0.0,
            window=1,
        )
        trial = Lanes(AFDRatio(scenario=quiet), len(pairs))
        trial.reset(None, [0] * len(pairs))
        trial.load_actions(np.arange(len(pairs)))
        trial.step(HOLD)
        before = trial.state.lane[["output", "instance_time"]].copy()
        trial.step(HOLD)
        after = trial.state.lane
        made = (after["output"] - before["output"]) / (after["instance_time"] - before["instance_time"])
        return np.asarray(made, np.float64)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Indices of ratios [lanes]."""
        state = self._env.lanes.state
        chosen = np.zeros(len(obs), np.int64)
        for lane in range(len(obs)):
            epoch = min(int(state.lane[lane]["epoch"]), state.law.shape[1] - 1)
            key = int(state.law[lane, epoch]), tuple(state.coefficients[lane].tolist())
            if key not in self._known:
                self._known[key] = int(np.argmax(self.search(*key)))
            chosen[lane] = self._known[key]
        return chosen


_ACTION = {"action": "ratio"}


def _formula(name: str) -> Factory:
    def make(env: Any, label: str, margin: float = 0.0) -> Policy:
        return FormulaPolicy(env, label, name, margin)

    return Factory(name, make, {"margin": float}, _ACTION)


def _fixed(ratio: int) -> Factory:
    def make(env: Any, label: str) -> Policy:
        return FixedPolicy(env, label, float(ratio))

    return Factory(f"fixed-{ratio}", make, env_kwargs=_ACTION)


BASELINES: dict[str, Callable[[Any], Policy]] = {
    "mean-field": _formula("mean-field"),
    "v1": _formula("v1"),
    "gaussian": _formula("gaussian"),
    "pipeline": _formula("pipeline"),
    "probe": Factory("probe", ProbePolicy, {"tolerance": float, "patience": int}, _ACTION),
    "idle-balance": Factory("idle-balance", IdleBalancePolicy, {"epsilon": float}, _ACTION),
    "fixed-1": _fixed(1),
    "fixed-4": _fixed(4),
    "fixed-8": _fixed(8),
    "fixed-16": _fixed(16),
    "oracle": Factory("oracle", OraclePolicy, env_kwargs=_ACTION),
}

_MARGINS = (0.0, 0.01, 0.02, 0.05, 0.1)
GRIDS: dict[str, tuple[str, ...]] = {
    **{
        name: tuple(f"{name}:margin={m}" for m in _MARGINS)
        for name in ("mean-field", "v1", "gaussian", "pipeline")
    },
    "probe": tuple(f"probe:tolerance={t},patience={p}" for t in (0.0, 0.005, 0.02) for p in (1, 2, 4)),
    "idle-balance": tuple(f"idle-balance:epsilon={e}" for e in (0.05, 0.1, 0.2, 0.3)),
}
"""The values over which each rule is tuned before it is compared (`llmgym.evaluation.tune`)."""
BOARDS: dict[str, tuple[str, ...]] = {"small": (), "real": ()}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""
