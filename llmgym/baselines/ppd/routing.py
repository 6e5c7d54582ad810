"""Rules for PPDRouting: those of the PPD paper, those it compares with, and one that looks ahead.

Li, Liu, Xu, Zhang, Rabbani and Zhang, "Not All Prefills Are Equal: PPD Disaggregation for Multi-turn LLM Serving", ICML 2026 (arXiv
2603.13358): the table rule (Eq. 1, Algorithm 1), everything through P ("PD"), everything on D, a fixed share of the D nodes,
replicas. `threshold` is the short cut of the released code (github.com/freelulul/vllm-ppd), `queue-aware` decides by predicted
latencies from live queues, as AMPD does in the paper's discussion of related work.

All rules but `oracle` read nothing but the observation.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Factory, Rule
from llmgym.core.checks import number, whole
from llmgym.core.lanes import HOLD, Lanes
from llmgym.core.policy import Policy
from llmgym.envs.ppd.cells import lookup
from llmgym.envs.ppd.links import GB
from llmgym.envs.ppd.routing.env import PPDRouting
from llmgym.envs.ppd.state import (
    BATCH_SCALE,
    LOCAL,
    PREFILL_SCALE,
    RATE_SCALE_RPS,
    REMOTE,
    STEP_SCALE_S,
    TIME_SCALE_S,
    P,
)
from llmgym.envs.ppd.table import table_of
from llmgym.errors import InvalidArgument

BYPASS_TOKENS = 512
"""Later turns with fewer new tokens stay on D without a look at the table, in the released code."""


class _Rule(Rule[PPDRouting]):
    """What every rule needs: fields of observations in tokens, and routes that are allowed."""

    def __init__(self, env: Any, name: str) -> None:
        super().__init__(env, name, PPDRouting)
        self._log_longest = math.log1p(self._simulation.scenario.longest)

    def _tokens(self, obs: NDArray[np.float32], field: str) -> NDArray[np.float64]:
        """A field that is a logarithm of tokens, in tokens."""
        return np.rint(np.expm1(self._read(obs, field) * self._log_longest))

    def _allowed(self, routes: NDArray[Any], mask: NDArray[np.int8] | None) -> NDArray[np.int64]:
        """Routes, local where the other one is masked."""
        routes = np.asarray(routes, np.int64)
        return routes if mask is None else np.where(mask[:, REMOTE] == 1, routes, LOCAL)


class ConstantPolicy(_Rule):
    """`pd` (x = 0) and `local` (x = 1): every later turn through P, or on its D. `replica` is `local` on R nodes only."""

    def __init__(self, env: Any, name: str, route: int) -> None:
        super().__init__(env, name)
        self.route = route

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Routes [lanes]."""
        return self._allowed(np.full(len(obs), self.route), mask)


class PartialPolicy(_Rule):
    """`partial` (0 < x < 1): the last of the decoding nodes always prefill themselves, the others never; section 3.4 of the paper.

    Args:
        env: the environment.
        name: of the policy.
        share: share of the decoding nodes that prefill; it is rounded to whole nodes.

    Raises:
        InvalidArgument: `share` is not from 0 to 1.
    """

    def __init__(self, env: Any, name: str = "partial", share: float = 0.5) -> None:
        super().__init__(env, name)
        if not number("share", share, zero=True) <= 1.0:
            raise InvalidArgument(f"share={share!r}: expected a number from 0 to 1")
        self.decoders = int(np.sum(self._simulation.nodes != P))
        self.local_nodes = round(share * self.decoders)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Routes [lanes]."""
        node = np.rint(self._read(obs, "d.number") * max(self.decoders - 1, 1))
        return self._allowed(node >= self.decoders - self.local_nodes, mask)


class TablePolicy(_Rule):
    """`table`: local where S of the turn's cell is above 0; Eq. 1 and Algorithm 1 of the paper.

    The table is measured by running the simulation of this cluster, once, and kept on disk.

    Args:
        env: the environment.
        name: of the policy.
        w_ttft: weight of TTFT; None takes that of the environment.
        w_tpot: weight of TPOT; None takes that of the environment.
        bypass: turns with fewer new tokens are local in any case.

    Raises:
        InvalidArgument: a weight is below 0, or `bypass` is not a whole number from 0 on.
    """

    def __init__(
        self,
        env: Any,
        name: str = "table",
        w_ttft: float | None = None,
        w_tpot: float | None = None,
        bypass: int = 0,
    ) -> None:
        super().__init__(env, name)
        chosen = self._simulation.scenario
        self.bypass = whole("bypass", bypass, 0)
        self.table = table_of(self._simulation, PPDRouting)
        self.routes = self.table.routes(
            chosen.w_ttft if w_ttft is None else w_ttft, chosen.w_tpot if w_tpot is None else w_tpot
        )

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Routes [lanes]."""
        prompt = self._tokens(obs, "prompt")
        rows = np.stack(
            [
                self._tokens(obs, "context"),
                prompt,
                self._tokens(obs, "answer"),
                RATE_SCALE_RPS * self._read(obs, "rate"),
            ],
            axis=1,
        )
        routes = np.zeros(len(obs), np.int64)
        lookup(self.routes, self.table.rates, rows, routes)
        return self._allowed(np.where(prompt < self.bypass, LOCAL, routes), mask)


class ThresholdPolicy(_Rule):
    """`threshold`: local where the turn has fewer than `tokens` new tokens.

    Args:
        env: the environment.
        name: of the policy.
        tokens: later turns with fewer new tokens are local.

    Raises:
        InvalidArgument: `tokens` is not a whole number from 0 on.
    """

    def __init__(self, env: Any, name: str = "threshold", tokens: int = BYPASS_TOKENS) -> None:
        super().__init__(env, name)
        self.tokens = whole("tokens", tokens, 0)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Routes [lanes]."""
        return self._allowed(self._tokens(obs, "prompt") < self.tokens, mask)


class QueueAwarePolicy(_Rule):
    """`queue-aware`: local where the TTFT it is expected to save outweighs what it takes from those that decode.

    TTFT of both routes is predicted by the latency law from the live queues; what a route adds to the running step (a prefill
    beyond what hides in a memory-bound step, or a receive) is spread over the tokens of all sequences in the batch. With a
    profile the law still has the constants of `latencies`: the rule knows no better.

    Args:
        env: the environment.
        name: of the policy.
        caution: how many times what the turn takes from others counts; 0: only the turn itself counts.
        typical: 1: what others lose is spread over as many tokens as answers have on the mean, for it is their answers that last
            longer; 0: over as many as this turn's answer is expected to have.

    Raises:
        InvalidArgument: `caution` is below 0, or `typical` is neither 0 nor 1.
    """

    def __init__(self, env: Any, name: str = "queue-aware", caution: float = 1.0, typical: int = 0) -> None:
        super().__init__(env, name)
        self.caution = number("caution", caution, zero=True)
        self.typical = whole("typical", typical, 0, 1)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Routes [lanes]."""
        chosen, law = self._simulation.scenario, self._simulation.latencies
        token_s = law.receive_token_s
        if chosen.link_gb_per_s is not None:
            token_s = max(token_s, self._simulation.kv_bytes / (GB * chosen.link_gb_per_s))
        u_d, u_p = self._tokens(obs, "d.tokens"), self._tokens(obs, "p.tokens")
        tokens = self._tokens(obs, "context") + self._tokens(obs, "prompt")
        batch = BATCH_SCALE * self._read(obs, "d.batch")
        step_s = STEP_SCALE_S * self._read(obs, "d.step")
        # half a step in progress, on the mean
        wait_s = np.where(batch > 0.0, 0.5 * step_s, 0.0)
        pending = PREFILL_SCALE * self._read(obs, "d.prefill")
        prefill_s = np.maximum(law.step_s, law.prefill_step_s + law.prefill_token_s * u_d)
        local_s = (
            law.local_s + law.local_token_s * tokens + wait_s + law.prefill_token_s * pending + prefill_s
        )
        receive_s = law.receive_s + token_s * tokens
        remote_s = TIME_SCALE_S * self._read(obs, "p.backlog") + law.handoff_s + law.prefill_token_s * u_p
        remote_s += law.remote_s + law.remote_token_s * tokens + wait_s + receive_s + law.step_s
        held_up_s = np.maximum(prefill_s - law.step_s, 0.0) - receive_s
        answer = np.maximum(self._tokens(obs, "answer"), 1.0)
        if self.typical:
            answer = np.full_like(answer, self._simulation.params.config[0]["default_output"])
        gain = chosen.w_ttft * (remote_s - local_s) / remote_s
        loss = chosen.w_tpot * batch * held_up_s / (law.step_s * answer)
        return self._allowed(gain > self.caution * loss, mask)


class OraclePolicy(_Rule):
    """`oracle`: both routes are tried in copies of the world that run to the end, and the one that earns more is taken.

    Privileged: it sees the lengths and arrivals to come. It looks one decision ahead: after it a copy goes on as `local` does and
    another as `queue-aware` does, and a route is worth the better of the two (parallel rollout: Chang, Givan and Chong, "Parallel
    rollout for online solution of partially observable Markov decision processes", Discrete Event Dynamic Systems 14, 2004).
    As the worlds are known, it never earns less than either of these two, but for rounding; it is no optimum.

    An episode of n decisions takes 2 n^2 steps of the simulation: a second in `small`, about a minute in `stress`.

    Args:
        env: the environment.
        name: of the policy.
        decisions: copies end after so many decisions; 0: with the episode. A short look does not see what is paid later: a
            choice that delays completions delays what they cost, so that the rule can do worse than those it follows.

    Raises:
        InvalidArgument: `decisions` is not a whole number from 0 on.
    """

    privileged = True

    def __init__(self, env: Any, name: str = "oracle", decisions: int = 0) -> None:
        super().__init__(env, name)
        self.decisions = whole("decisions", decisions, 0)
        self._copies: Lanes | None = None
        self._follow = QueueAwarePolicy(env)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Routes [lanes]."""
        lanes, count = self._env.lanes, len(obs)
        if self._copies is None or self._copies.count != 4 * count:
            self._copies = Lanes(self._simulation, 4 * count)
        copies = self._copies
        for copied, array in zip(copies.state, lanes.state, strict=True):
            copied.reshape(4, *array.shape)[:] = array
        buffers = copies.buffers
        # nothing is to be decided where an episode is over
        buffers.ended[:] = np.tile(lanes.state.lane["current"] < 0, 4)
        routes = np.repeat([REMOTE, LOCAL, REMOTE, LOCAL], count)
        if mask is not None:
            routes = np.where(np.tile(mask[:, REMOTE], 4) == 1, routes, LOCAL)
        buffers.action[:, 0] = routes
        total = np.zeros(4 * count)
        steps = 0
        while not buffers.ended.all() and (steps <= self.decisions or self.decisions == 0):
            running = ~buffers.ended
            copies.step(HOLD)
            total[running] += buffers.reward[running]
            buffers.action[: 2 * count] = LOCAL
            later = slice(2 * count, None)
            buffers.action[later, 0] = self._follow.act(buffers.obs[later], buffers.mask[later])
            steps += 1
        best = total.reshape(2, 2, count).max(axis=0)
        return self._allowed(best[LOCAL] >= best[REMOTE], mask)


def _constant(route: int) -> Callable[..., Policy]:
    return lambda env, name: ConstantPolicy(env, name, route)


_TABLE = {"w_ttft": float, "w_tpot": float, "bypass": int}
BASELINES: dict[str, Callable[[Any], Policy]] = {
    "pd": Factory("pd", _constant(REMOTE)),
    "local": Factory("local", _constant(LOCAL)),
    "partial": Factory("partial", PartialPolicy, {"share": float}),
    "replica": Factory(
        "replica",
        _constant(LOCAL),
        env_kwargs={"allocation": "4R", "gpus": 4},
        other_world="four GPUs that all do both",
    ),
    "table": Factory("table", TablePolicy, _TABLE),
    "table-bypass": Factory("table-bypass", TablePolicy, _TABLE, bypass=BYPASS_TOKENS),
    "threshold": Factory("threshold", ThresholdPolicy, {"tokens": int}),
    "queue-aware": Factory("queue-aware", QueueAwarePolicy, {"caution": float, "typical": int}),
    "oracle": Factory("oracle", OraclePolicy, {"decisions": int}),
}

GRIDS: dict[str, tuple[str, ...]] = {
    "threshold": tuple(f"threshold:tokens={m}" for m in (64, 128, 256, 512, 1024)),
    "partial": tuple(f"partial:share={x}" for x in (0.25, 0.5, 0.75)),
    "table": ("table", *(f"table:w_tpot={w}" for w in (0, 1, 3, 10))),
    "queue-aware": (
        *(f"queue-aware:caution={x}" for x in (0, 0.25, 0.5, 1, 2)),
        *(f"queue-aware:caution={x},typical=1" for x in (0.1, 0.25, 0.5, 1)),
    ),
}
"""The values over which a rule is tuned before it is compared (`llmgym.evaluation.tuned`)."""
BOARDS: dict[str, tuple[str, ...]] = {
    "small": (),
    "stress": ("replica", "oracle"),
    "paper": ("oracle",),
    "real": ("replica", "oracle"),
}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""
