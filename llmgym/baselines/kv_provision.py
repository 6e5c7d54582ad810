"""Rules for KVProvision: the paper's provisioning law, what operators do without it, and bounds on both sides.

The law is that of Nie, Si and Zhou, "A Queueing-Theoretic Framework for Stability Analysis of LLM Inference with KV Cache
Memory Constraints", ICML 2026 (arXiv 2605.04595): G = ceil(lambda / (rho mu)) with mu = M / (b E[g]). The token rule is the
stability condition without a memory limit, lambda E[s + o] < K / t_K (Dai, Deng, Li, Peng, arXiv 2504.07347).

All rules but `static-*` and `oracle` read nothing but the observation.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Rule
from llmgym.core.policy import Policy
from llmgym.envs.kv_provision import UTILIZATION, KVProvision
from llmgym.errors import InvalidArgument
from llmgym.profiles.cost import prefill_attention_s, step_time_s
from llmgym.serving.capacity import UNLIMITED, gpus_needed


class _Rule(Rule[KVProvision]):
    """What every rule needs: targets that are allowed."""

    def __init__(self, env: Any, name: str) -> None:
        super().__init__(env, name, KVProvision)
        simulation = self._simulation
        self._number = simulation.params.number[0]
        self._least, self._most = simulation.scenario.min_replicas, simulation.scenario.max_replicas

    def _targets(self, replicas: NDArray[np.float64]) -> NDArray[np.int64]:
        """Replicas rounded up to an allowed target; what is above a whole number by rounding errors alone is not."""
        return np.clip(np.ceil(replicas - 1e-6), self._least, self._most).astype(np.int64)


class LawPolicy(_Rule):
    """`kv-law`: G = ceil(lambda / (rho mu)), with the estimates of lambda and mu = M / (b E[g]) that the observation holds.

    Args:
        env: the environment.
        name: of the policy.
        utilization: rho, the share of the replicas that the load shall use, in (0, 1].
    """

    def __init__(self, env: Any, name: str = "kv-law", utilization: float = UTILIZATION) -> None:
        super().__init__(env, name)
        if not 0.0 < utilization <= 1.0:
            raise InvalidArgument(f"utilization={utilization!r}: expected 0 < utilization <= 1")
        self.utilization = utilization

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Targets [lanes]."""
        return self._targets(self._read(obs, "need") * self._most / self.utilization)


class TokenRatePolicy(_Rule):
    """`token-rate`: as if tokens a second were all that counts: G = ceil(lambda E[s + o] / (0.9 K / t_K)).

    K is the token budget of a batch (without one, the larger of chunk and running requests), and t_K the time of a batch
    of K prompt tokens without context: the rate that a load test with short requests shows. The KV cache does not appear.
    """

    def __init__(self, env: Any, name: str = "token-rate") -> None:
        super().__init__(env, name)
        chosen = self._simulation.scenario
        tokens = chosen.budget if chosen.budget < UNLIMITED else max(chosen.chunk, chosen.seats)
        cost = self._simulation.profile.step_cost()
        batch_s = step_time_s(cost, tokens, prefill_attention_s(cost, tokens, 0), 0, 0, 1, tokens)
        self.tokens_per_s = tokens / batch_s

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Targets [lanes]."""
        rate = self._read(obs, "rate") * self._number["rate_scale"]
        tokens = self._read(obs, "tokens") * self._number["tokens_ref"]
        return self._targets(rate * tokens / (UTILIZATION * self.tokens_per_s))


class StaticPolicy(_Rule):
    """`static-mean` and `static-peak`: one number of replicas for the whole episode.

    Sized by the paper's law from the parameters of the workload: the mean, or the largest, work expected in an epoch. That
    is what a capacity plan knows in advance; the random course of this episode is not used.
    """

    def __init__(self, env: Any, name: str, peak: bool) -> None:
        super().__init__(env, name)
        load = self._simulation.nominal_load
        wanted = gpus_needed(float(load.max() if peak else load.mean()), 1.0, UTILIZATION)
        self.replicas = min(max(wanted, self._least), self._most)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Targets [lanes]."""
        return np.full(len(obs), self.replicas, np.int64)


class ReactivePolicy(_Rule):
    """`reactive`: an autoscaler on the queue, with hysteresis.

    One replica more while more than `up` requests wait for each replica that serves (two more from ten times as many), unless
    one is starting already; one less after `patience` epochs in a row with nobody waiting and caches below `low`.

    Args:
        env: the environment.
        name: of the policy.
        up: waiting requests a replica.
        low: share of the cache, mean over the replicas.
        patience: epochs.
    """

    def __init__(
        self, env: Any, name: str = "reactive", up: float = 4.0, low: float = 0.6, patience: int = 3
    ) -> None:
        super().__init__(env, name)
        self.up, self.low, self.patience = up, low, patience
        self._quiet: NDArray[np.int64] = np.zeros(0, np.int64)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Targets [lanes]."""
        if len(self._quiet) != len(obs):
            self._quiet = np.zeros(len(obs), np.int64)
        target = np.rint(self._read(obs, "target") * self._most)
        serving = np.maximum(np.rint(self._read(obs, "on") * self._most), 1.0)
        waiting = self._read(obs, "waiting") * self._number["waiting_cap"]
        idle = (waiting < 0.5) & (self._read(obs, "kv.mean") < self.low)
        self._quiet = np.where(idle, self._quiet + 1, 0)
        high = (waiting > self.up * serving) & (self._read(obs, "starting") == 0.0)
        step = np.where(high, np.where(waiting > 10.0 * self.up * serving, 2.0, 1.0), 0.0)
        down = self._quiet >= self.patience
        self._quiet[down] = 0
        return self._targets(target + step - down)

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Forget the quiet epochs of lanes whose episode just began."""
        if len(self._quiet) == len(lanes):
            self._quiet[lanes] = 0


class HoldPolicy(_Rule):
    """`hold`: the target stays what it is."""

    def __init__(self, env: Any, name: str = "hold") -> None:
        super().__init__(env, name)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Targets [lanes]."""
        return self._targets(np.rint(self._read(obs, "target") * self._most))


class OraclePolicy(_Rule):
    """`oracle`: the law with the true work (arrivals and lengths) of every epoch until a start ordered now would serve.

    Privileged. Not an optimum, but what perfect forecasts are worth to the law. It also orders what works the queue off
    within `clear` epochs.

    Args:
        env: the environment.
        name: of the policy.
        utilization: rho.
        clear: epochs.
    """

    privileged = True

    def __init__(
        self, env: Any, name: str = "oracle", utilization: float = UTILIZATION, clear: float = 2.0
    ) -> None:
        super().__init__(env, name)
        self.utilization, self.clear = utilization, clear
        self._loads: dict[int, tuple[float, NDArray[np.float64]]] = {}

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Targets [lanes]."""
        state = self._env.lanes.state
        ahead = self._simulation.scenario.startup_epochs + 1
        wanted = np.zeros(len(obs))
        for lane in range(len(obs)):
            world = float(state.lane[lane]["checksum"])
            if lane not in self._loads or self._loads[lane][0] != world:
                self._loads[lane] = (world, self._simulation.loads(state, lane))
            epoch = int(state.lane[lane]["epoch"])
            coming = self._loads[lane][1][epoch : epoch + ahead]
            wanted[lane] = coming.max(initial=0.0) / self.utilization
        mu = self._read(obs, "mu") * self._number["mu_ref"]
        waiting = self._read(obs, "waiting") * self._number["waiting_cap"]
        return self._targets(wanted + waiting / (mu * self.clear * self._simulation.scenario.epoch_s))


def _law(name: str, utilization: float) -> Callable[[Any], Policy]:
    return lambda env: LawPolicy(env, name, utilization)


def _static(name: str, peak: bool) -> Callable[[Any], Policy]:
    return lambda env: StaticPolicy(env, name, peak)


BASELINES: dict[str, Callable[[Any], Policy]] = {
    "kv-law": _law("kv-law", UTILIZATION),
    "kv-law-0.8": _law("kv-law-0.8", 0.8),
    "token-rate": TokenRatePolicy,
    "static-mean": _static("static-mean", False),
    "static-peak": _static("static-peak", True),
    "reactive": ReactivePolicy,
    "hold": HoldPolicy,
    "oracle": OraclePolicy,
}


def make(name: str, env: Any) -> Policy:
    """A rule for an environment; see `BASELINES`.

    Raises:
        UnknownName: no rule of that name.
    """
    from llmgym import baselines

    return baselines.make(name, env)
