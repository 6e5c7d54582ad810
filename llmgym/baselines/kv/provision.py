"""Rules for KVProvision: the paper's provisioning law, what operators do without it, and bounds on both sides.

The law is that of Nie, Si and Zhou, "A Queueing-Theoretic Framework for Stability Analysis of LLM Inference with KV Cache
Memory Constraints", ICML 2026 (arXiv 2605.04595): G = ceil(lambda / (rho mu)) with mu = M / (b E[g]). The token rule is the
stability condition without a memory limit, lambda E[s + o] < K / t_K (Dai, Deng, Li, Peng, arXiv 2504.07347).

`kv-law-trend` and `kv-law-queue` add to the law what it leaves out: where the load will be when a start serves, and the queue. They
are of no paper: to extrapolate the load over the start-up time and to work off a backlog are common in autoscalers.

All rules but `static-*` and `oracle` read nothing but the observation.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Factory, Rule
from llmgym.core.checks import number, whole
from llmgym.core.lanes import HOLD, Lanes
from llmgym.core.memory import copy_lanes
from llmgym.core.policy import Policy
from llmgym.envs.kv.provision.env import UTILIZATION, KVProvision
from llmgym.errors import InvalidArgument
from llmgym.profiles.cost import prefill_attention_s, step_time_s
from llmgym.serving.capacity import UNLIMITED, gpus_needed

Floats = NDArray[np.float64]
Targets = NDArray[np.int64]

TRENDS = (-0.5, 1.0)
"""A rate may be taken to fall by half or to double until a start serves, and no more: two noisy epochs make any trend."""
BLOCKS = (1, 2, 4, 8)
"""Epochs for which the oracle tries other targets."""
TOGETHER = 32
"""Lanes whose plans the oracle makes at once: as many as bounds its memory."""


def _share(utilization: float) -> float:
    if not 0.0 < utilization <= 1.0:
        raise InvalidArgument(f"utilization={utilization!r}: expected 0 < utilization <= 1")
    return utilization


class _Rule(Rule[KVProvision]):
    """What every rule needs: targets that are allowed."""

    def __init__(self, env: Any, name: str) -> None:
        super().__init__(env, name, KVProvision)
        simulation = self._simulation
        self._config = simulation.params.config[0]
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
        self.utilization = _share(utilization)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Targets [lanes]."""
        return self._targets(self._read(obs, "need") * self._most / self.utilization)


class TokenRatePolicy(_Rule):
    """`token-rate`: as if tokens a second were all that counts: G = ceil(lambda E[s + o] / (0.9 K / t_K)).

    K is the token budget of a batch (without one, the larger of chunk and running requests), and t_K the time of a batch
    of K prompt tokens without context: the rate that a load test with short requests shows. The KV cache does not appear.

    Args:
        env: the environment.
        name: of the policy.
        utilization: the share of that rate that the load shall use, in (0, 1]; 0.9 above.
    """

    def __init__(self, env: Any, name: str = "token-rate", utilization: float = UTILIZATION) -> None:
        super().__init__(env, name)
        self.utilization = _share(utilization)
        chosen = self._simulation.scenario
        tokens = chosen.budget if chosen.budget < UNLIMITED else max(chosen.chunk, chosen.seats)
        cost = self._simulation.profile.step_cost()
        batch_s = step_time_s(cost, tokens, prefill_attention_s(cost, tokens, 0), 0, 0, 1, tokens)
        self.tokens_per_s = tokens / batch_s

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Targets [lanes]."""
        rate = self._read(obs, "rate") * self._config["rate_scale"]
        tokens = self._read(obs, "tokens") * self._config["tokens_ref"]
        return self._targets(rate * tokens / (self.utilization * self.tokens_per_s))


class StaticPolicy(_Rule):
    """`static-mean` and `static-peak`: one number of replicas for the whole episode.

    Sized by the paper's law from the parameters of the workload: the mean, or the largest, work expected in an epoch. That
    is what a capacity plan knows in advance; the random course of this episode is not used.

    Args:
        env: the environment.
        name: of the policy.
        peak: the largest work counts, else the mean.
        utilization: rho, the share of the replicas that this work shall use, in (0, 1].
    """

    def __init__(self, env: Any, name: str, peak: bool, utilization: float = UTILIZATION) -> None:
        super().__init__(env, name)
        load = self._simulation.nominal_load
        wanted = gpus_needed(float(load.max() if peak else load.mean()), 1.0, _share(utilization))
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

    remembered = ("_quiet",)

    def __init__(
        self, env: Any, name: str = "reactive", up: float = 4.0, low: float = 0.6, patience: int = 3
    ) -> None:
        super().__init__(env, name)
        self.up, self.low = number("up", up, zero=True), number("low", low, zero=True)
        self.patience = whole("patience", patience)
        self._quiet: NDArray[np.int64] = np.zeros(0, np.int64)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Targets [lanes]."""
        if len(self._quiet) != len(obs):
            self._quiet = np.zeros(len(obs), np.int64)
        target = np.rint(self._read(obs, "target") * self._most)
        serving = np.maximum(np.rint(self._read(obs, "on") * self._most), 1.0)
        waiting = self._read(obs, "waiting") * self._config["waiting_cap"]
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


class QueueLawPolicy(_Rule):
    """`kv-law-queue`: the law for the load that a start ordered now will meet, and what works the queue off.

    `kv-law-trend` is the same without the queue.

    G = ceil(need (1 + trend) / rho + queue / service): need is lambda / mu as in `kv-law`; the trend goes on as the moving average
    of the rate did over the last epochs, until a replica that starts now would serve; service is what one replica serves in
    `clear` epochs. Remembers the rates that it saw.

    Args:
        env: the environment.
        name: of the policy.
        utilization: rho, in (0, 1].
        window: epochs over which the trend is taken; 0: none.
        clear: epochs in which the queue is to be gone; 0: it is not looked at.

    Raises:
        InvalidArgument: a number out of range.
    """

    remembered = ("_rates",)

    def __init__(
        self,
        env: Any,
        name: str = "kv-law-queue",
        utilization: float = UTILIZATION,
        window: int = 2,
        clear: float = 1.0,
    ) -> None:
        super().__init__(env, name)
        self.utilization = _share(utilization)
        self.window, self.clear = whole("window", window, 0, 1000), number("clear", clear, zero=True)
        self._rates: NDArray[np.float64] = np.zeros((0, 0))

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Targets [lanes]."""
        rate = self._read(obs, "rate")
        if len(self._rates) != len(obs):
            self._rates = np.full((len(obs), self.window + 1), np.nan)
        self._rates = np.concatenate([self._rates[:, 1:], rate[:, None]], axis=1)
        trend = np.zeros(len(obs))
        if self.window > 0:
            old = np.where(np.isnan(self._rates[:, 0]), rate, self._rates[:, 0])
            ahead = self._simulation.scenario.startup_epochs + 1
            trend = np.clip((rate / np.maximum(old, 1e-9) - 1.0) * ahead / self.window, *TRENDS)
        need = self._read(obs, "need") * self._most
        waiting = self._read(obs, "waiting") * self._config["waiting_cap"]
        mu = self._read(obs, "mu") * self._config["mu_ref"]
        wanted = need * (1.0 + trend) / self.utilization
        if self.clear > 0.0:
            wanted += waiting / np.maximum(mu * self.clear * self._simulation.scenario.epoch_s, 1e-9)
        return self._targets(wanted)

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Forget the rates of lanes whose episode just began."""
        if len(self._rates) == len(lanes):
            self._rates[lanes] = np.nan


class OraclePolicy(_Rule):
    """`oracle`: the cheapest sequence of targets that a search finds by playing copies of the true world to their end.

    Privileged. All unprivileged rules and every variant that they are tuned over are played first; the best of these sequences is
    then improved, target by target: one replica more, or one less, for 1, 2, 4 or 8 epochs, where that costs less in the end. The
    world is known and answers the same targets in the same way, so the plan never costs more than the best of those rules on
    this world. It is a local optimum. A plan costs some 10,000 epochs of the simulation a sweep: seconds in `small`, up to a
    minute where a replica serves thousands of requests.

    Args:
        env: the environment.
        name: of the policy.
        sweeps: times that the search goes through the episode; 0: the best of the rules.
    """

    privileged = True

    def __init__(self, env: Any, name: str = "oracle", sweeps: int = 1) -> None:
        super().__init__(env, name)
        self.sweeps = whole("sweeps", sweeps, 0, 100)
        self._plans: dict[int, tuple[float, int, Targets]] = {}

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Targets [lanes]."""
        lanes = self._env.lanes
        episode = lanes.state.lane
        live = np.flatnonzero(~lanes.buffers.ended).tolist()
        new = [lane for lane in live if not self._planned(episode[lane], lane)]
        for first in range(0, len(new), TOGETHER):
            which = new[first : first + TOGETHER]
            for lane, plan in zip(which, self._search(np.array(which)), strict=True):
                self._plans[lane] = float(episode["checksum"][lane]), int(episode["epoch"][lane]), plan
        targets = np.maximum(episode["target"], self._least).astype(np.int64)
        for lane in live:
            _, start, plan = self._plans[lane]
            targets[lane] = plan[int(episode["epoch"][lane]) - start]
        return targets

    def _planned(self, episode: Any, lane: int) -> bool:
        """Whether the plan of a lane is for this world, and has been followed so far."""
        if lane not in self._plans:
            return False
        world, start, plan = self._plans[lane]
        past = int(episode["epoch"]) - start
        if world != float(episode["checksum"]) or not 0 <= past < len(plan):
            return False
        return past == 0 or bool(plan[past - 1] == episode["target"])

    def _search(self, which: NDArray[np.int64]) -> Targets:
        """Plans for some lanes from where they are now, int64 [lanes, epochs that are left at most]."""
        true, simulation = self._env.lanes, self._simulation
        left = simulation.scenario.epochs - int(true.state.lane["epoch"][which].min())
        trunk, branch = _Copies(simulation, len(which)), _Copies(simulation, len(which))
        best = np.full(len(which), -np.inf)
        plan = np.full((len(which), left), self._least, np.int64)
        for name in unprivileged():
            rule = _factory(name)(self._env)
            branch.take(true, which)
            tried = np.full_like(plan, self._least)
            for t in range(left):
                tried[:, t] = rule.act(branch.lanes.buffers.obs, branch.lanes.buffers.mask)
                branch.step(tried[:, t])
            better = branch.earned > best
            plan[better], best[better] = tried[better], branch.earned[better]
        for _ in range(self.sweeps):
            branch.take(true, which)
            course = branch.play(plan)
            trunk.take(true, which)
            tried = self._sweep(trunk, branch, plan, *course)
            # what met its old course again was not followed to the end there
            branch.take(true, which)
            branch.play(tried)
            better = branch.earned > best
            plan[better], best[better] = tried[better], branch.earned[better]
        return plan

    def _sweep(
        self, trunk: "_Copies", branch: "_Copies", plan: Targets, earned: Floats, stand: Floats
    ) -> Targets:
        """The plan with every change of targets that pays, one after the other from the first epoch to the last.

        Args:
            trunk: copies of the lanes as they are now; they follow the plan.
            branch: copies for trying.
            plan: int64 [lanes, epochs].
            earned: its return up to each epoch, float64 [lanes, epochs + 1].
            stand: how its replicas and its queue stand then, float64 [lanes, epochs + 1, 4].
        """
        plan, everyone = plan.copy(), np.arange(len(plan))
        for t in range(plan.shape[1]):
            for block, change in itertools.product(BLOCKS, (1, -1)):
                tried = plan.copy()
                tried[:, t : t + block] = np.clip(tried[:, t : t + block] + change, self._least, self._most)
                differs = (tried != plan).any(axis=1) & ~trunk.lanes.buffers.ended
                if not differs.any():
                    continue
                branch.take(trunk.lanes, everyone)
                branch.earned[:] = earned[:, t]
                branch.lanes.buffers.ended[~differs] = True
                new_earned, new_stand = branch.play(tried, t, t + block, earned, stand)
                pays = differs & (new_earned[:, -1] > earned[:, -1] + 1e-9)
                plan[pays], earned[pays], stand[pays] = tried[pays], new_earned[pays], new_stand[pays]
            trunk.step(plan[:, t])
        return plan


class _Copies:
    """Copies of lanes that go their own way.

    Attributes:
        lanes: the copies.
        earned: return of each since it was taken, float64 [lanes].
    """

    def __init__(self, simulation: KVProvision, count: int) -> None:
        self.lanes = Lanes(simulation, count)
        self.earned = np.zeros(count)

    def take(self, lanes: Lanes, which: NDArray[np.int64]) -> None:
        """Become what the lanes `which` of others are now."""
        copy_lanes(lanes, which, self.lanes)
        self.earned[:] = 0.0

    def step(self, targets: NDArray[np.int64]) -> None:
        """Let an epoch pass in those that have not ended."""
        buffers = self.lanes.buffers
        live = ~buffers.ended
        if live.any():
            buffers.action[:, 0] = targets
            self.lanes.step(HOLD)
            self.earned[live] += buffers.reward[live]

    def stand(self) -> Floats:
        """Replicas that serve, start and drain, and requests that wait, float64 [lanes, 4]."""
        episode = self.lanes.state.lane
        return np.stack([episode[name] for name in ("on", "starting", "draining", "waiting")], axis=1).astype(
            float
        )

    def play(
        self,
        plan: Targets,
        first: int = 0,
        until: int = 0,
        earned: Floats | None = None,
        stand: Floats | None = None,
    ) -> tuple[Floats, Floats]:
        """Follow a plan, to its end or to where all stands as it did on a known course.

        Args:
            plan: int64 [lanes, epochs].
            first: epoch from which it is followed.
            until: epoch from which a lane that stands as on the known course counts as being on it again.
            earned: return of the known course up to each epoch, float64 [lanes, epochs + 1]; None: there is no such course.
            stand: how its replicas and its queue stand then, float64 [lanes, epochs + 1, 4].

        Returns:
            Return and stand up to each epoch, float64 [lanes, epochs + 1] and [lanes, epochs + 1, 4].
        """
        buffers = self.lanes.buffers
        apart = ~buffers.ended
        if earned is None or stand is None:
            new_earned = np.zeros((len(plan), plan.shape[1] + 1))
            new_stand = np.repeat(self.stand()[:, None], plan.shape[1] + 1, axis=1)
        else:
            new_earned, new_stand = earned.copy(), stand.copy()
        for t in range(first, plan.shape[1]):
            if not apart.any():
                break
            self.step(plan[:, t])
            now = self.stand()
            new_earned[apart, t + 1 :] = self.earned[apart, None]
            new_stand[apart, t + 1] = now[apart]
            apart &= ~buffers.ended
            if earned is not None and stand is not None and t + 1 >= until:
                met = apart & (now == stand[:, t + 1]).all(axis=1)
                # the rest is as it was
                gain = self.earned[met] - earned[met, t + 1]
                new_earned[met, t + 2 :] = earned[met, t + 2 :] + gain[:, None]
                buffers.ended[met] = True
                apart &= ~met
        return new_earned, new_stand


def _law(env: Any, name: str, utilization: float = UTILIZATION) -> Policy:
    return LawPolicy(env, name, utilization)


def _static(peak: bool) -> Callable[..., Policy]:
    return lambda env, name, **numbers: StaticPolicy(env, name, peak, **numbers)


BASELINES: dict[str, Factory] = {
    "kv-law": Factory("kv-law", _law, {"utilization": float}),
    "kv-law-0.8": Factory("kv-law-0.8", _law, utilization=0.8),
    "kv-law-queue": Factory(
        "kv-law-queue", QueueLawPolicy, {"utilization": float, "window": int, "clear": float}
    ),
    "kv-law-trend": Factory("kv-law-trend", QueueLawPolicy, {"utilization": float, "window": int}, clear=0.0),
    "token-rate": Factory("token-rate", TokenRatePolicy, {"utilization": float}),
    "static-mean": Factory("static-mean", _static(False), {"utilization": float}),
    "static-peak": Factory("static-peak", _static(True), {"utilization": float}),
    "reactive": Factory("reactive", ReactivePolicy, {"up": float, "low": float, "patience": int}),
    "hold": Factory("hold", HoldPolicy),
    "oracle": Factory("oracle", OraclePolicy, {"sweeps": int}),
}

GRIDS: dict[str, tuple[str, ...]] = {
    "kv-law": tuple(f"kv-law:utilization={rho}" for rho in (0.7, 0.8, 0.9, 1.0)),
    "kv-law-queue": tuple(
        f"kv-law-queue:utilization={rho},window={window}"
        for rho in (0.8, 0.9, 0.95, 1.0)
        for window in (0, 1, 2, 4)
    ),
    "kv-law-trend": tuple(
        f"kv-law-trend:utilization={rho},window={window}" for rho in (0.7, 0.8, 0.9) for window in (1, 2)
    ),
    **{
        name: tuple(f"{name}:utilization={rho}" for rho in rhos)
        for name, rhos in (
            ("token-rate", (0.2, 0.3, 0.4, 0.5, 0.6, 0.9)),
            ("static-mean", (0.5, 0.6, 0.7, 0.9)),
            ("static-peak", (0.8, 0.9, 1.0)),
        )
    },
    "reactive": tuple(
        f"reactive:up={up},patience={patience}" for up in (1.0, 4.0, 16.0) for patience in (2, 3, 5)
    ),
}
"""The values over which a rule is tuned before it is compared (`llmgym.evaluation.tuned`)."""
BOARDS: dict[str, tuple[str, ...]] = {"small": (), "fluid-small": (), "daily": ("oracle",)}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""


def unprivileged() -> list[str]:
    """Every rule that reads nothing but the observation and the settings, and every variant that it is tuned over."""
    return [*(name for name in BASELINES if name != "oracle"), *itertools.chain.from_iterable(GRIDS.values())]


def _factory(name: str) -> Factory:
    factory = BASELINES[name.partition(":")[0]]
    return factory.variant(name) if ":" in name else factory


def make(name: str, env: Any) -> Policy:
    """A rule for an environment; see `BASELINES`.

    Raises:
        UnknownName: no rule of that name.
    """
    from llmgym import baselines

    return baselines.make(name, env)
