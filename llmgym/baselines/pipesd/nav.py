"""Rules for PipeSDNav: those PipeSD is compared with, PipeSD itself, and what is left of it without its parts.

PipeSD (ICML 2026, arXiv 2605.13319) compares with Vanilla speculative decoding (a verdict every n tokens), HSL (where a token is
unsure) and EdgeLLM (where the draft as a whole is unsure, with a threshold that follows the verdicts). Thresholds are those of
its text and of its authors' scripts, for HumanEval, or for GSM8K where the scenario has that text.

All read nothing but the observation.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Factory, RandomPolicy, Rule
from llmgym.core.checks import number, whole
from llmgym.core.policy import Policy
from llmgym.envs.pipesd.nav.env import PipeSDNav
from llmgym.envs.pipesd.nav.kernels import LENGTH
from llmgym.envs.pipesd.state import CONTINUE, UPLOAD, VERIFY
from llmgym.errors import InvalidArgument

Bools = NDArray[np.bool_]
IDLE = {"proactive": False}
"""What an environment needs to be made with for rules that do nothing while they wait."""
MOST_START, LEAST_LIMIT = 1.99, 1e-4
"""Largest and smallest R_1 of EdgeLLM; one above 1 asks for a verdict on every token."""
LEAST_POWER, IN_ITS_PLACE = 1e-12, 0.5
"""A power in EdgeLLM's rule that is as good as 0, and what is used in its place."""


def threshold(name: str, value: float, most: float = 1.0) -> float:
    """A confidence threshold, checked.

    Args:
        name: of the argument.
        value: of the argument.
        most: largest value that is allowed.

    Returns:
        The value.

    Raises:
        InvalidArgument: it is not between 0 and `most`.
    """
    if number(name, value, zero=True) > most:
        raise InvalidArgument(f"{name}={value!r}: expected a number from 0 to {most:g}")
    return float(value)


class _Rule(Rule[PipeSDNav], ABC):
    """A rule says when to ask, and when to upload before that."""

    def __init__(self, env: Any, name: str) -> None:
        super().__init__(env, name, PipeSDNav)
        self._unsure = self._simulation.text.name == "gsm8k"

    def _tokens(self, obs: NDArray[np.float32], field: str) -> NDArray[np.int64]:
        """A field that counts tokens, int64 [lanes]."""
        return np.rint(self._read(obs, field) * LENGTH).astype(np.int64)

    @abstractmethod
    def asks(self, obs: NDArray[np.float32]) -> Bools:
        """Whether a verdict is wanted, bool [lanes]."""

    def uploads(self, obs: NDArray[np.float32]) -> Bools:
        """Whether what is unsent goes up, bool [lanes]; here never."""
        return np.zeros(len(obs), np.bool_)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Actions [lanes]; where the draft must end, ask."""
        action = np.where(self.asks(obs), VERIFY, np.where(self.uploads(obs), UPLOAD, CONTINUE))
        return action if mask is None else np.where(mask[:, CONTINUE] == 0, VERIFY, action)


class VanillaPolicy(_Rule):
    """`vanilla:n=8`: a verdict every n tokens, nothing before it, nothing while waiting.

    The paper states 6 tokens for code and 4 for mathematics; its own runs for code verified every 8, and its figures are those
    of 8.
    """

    def __init__(self, env: Any, name: str = "vanilla", n: int | None = None) -> None:
        super().__init__(env, name)
        self.n = (4 if self._unsure else 8) if n is None else whole("n", n)

    def asks(self, obs: NDArray[np.float32]) -> Bools:
        """At n tokens."""
        return self._tokens(obs, "block") >= self.n


class HslPolicy(_Rule):
    """`hsl:token=0.99`: a verdict where P(D_n) < R_2, nothing before it, nothing while waiting."""

    def __init__(self, env: Any, name: str = "hsl", token: float | None = None) -> None:
        super().__init__(env, name)
        self.token = threshold("token", (0.7 if self._unsure else 0.99) if token is None else token)

    def asks(self, obs: NDArray[np.float32]) -> Bools:
        """Where a token is unsure."""
        return self._read(obs, "confidence") < self.token


class EdgeLlmPolicy(_Rule):
    """`edgellm:start=0.92,factor=0.95,batch=0`: a verdict where C_1 < R_1, and R_1 follows the verdicts.

    All n accepted: R_1 becomes factor R_1. Otherwise R_1 / C^((n - a) / n), C being the product of the confidences of that
    draft (1/2 in place of the power where that is 0), at most 1.99, at least 1e-4. While waiting it drafts on and uploads every
    `batch` tokens; 0 stands for N^.

    The authors' scripts upload every token (`batch=1`) and have factors of 0.95 (code) and 0.7 (mathematics).
    """

    remembered = ("_limit",)

    def __init__(
        self,
        env: Any,
        name: str = "edgellm",
        start: float | None = None,
        factor: float | None = None,
        batch: int = 0,
    ) -> None:
        super().__init__(env, name)
        self.start = threshold(
            "start", (0.5 if self._unsure else 0.92) if start is None else start, MOST_START
        )
        self.factor = threshold("factor", (0.7 if self._unsure else 0.95) if factor is None else factor)
        self.batch = whole("batch", batch, 0)
        self._clients = self._simulation.scenario.clients
        self._limit = np.full((self._env.lanes.count, self._clients), self.start)

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """The threshold starts anew."""
        self._limit[np.flatnonzero(lanes)] = self.start

    def _follow(self, obs: NDArray[np.float32]) -> NDArray[np.float64]:
        """R_1 of the clients whose turn it is, after the verdicts they were told, float64 [lanes]."""
        client = np.rint(self._read(obs, "client") * self._clients).astype(np.int64)
        rows = np.arange(len(obs))
        old = self._limit[rows, client]
        tokens, accepted = self._tokens(obs, "last.tokens"), self._tokens(obs, "last.accepted")
        power = self._read(obs, "last.product") ** ((tokens - accepted) / np.maximum(tokens, 1))
        raised = np.minimum(old / np.where(power > LEAST_POWER, power, IN_ITS_PLACE), MOST_START)
        new = np.maximum(np.where(accepted == tokens, old * self.factor, raised), LEAST_LIMIT)
        self._limit[rows, client] = np.where(self._read(obs, "verdicts") > 0, new, old)
        return self._limit[rows, client]

    def asks(self, obs: NDArray[np.float32]) -> Bools:
        """Where the draft is unsure."""
        return self._read(obs, "product") < self._follow(obs)

    def uploads(self, obs: NDArray[np.float32]) -> Bools:
        """While waiting, every `batch` tokens."""
        size = self._tokens(obs, "window") if self.batch == 0 else self.batch
        return (self._read(obs, "waiting") > 0) & (self._tokens(obs, "unsent") >= size)


class DualPolicy(_Rule):
    """`pipesd:sequence=0.95,token=0.9`: a verdict where C_1 <= R_1 or P(D_n) <= R_2, uploads as the plan of batches says.

    With R_2 <= R_1 the second threshold never fires alone; the setting for HumanEval is such a one.

    Args:
        env: the environment.
        name: name of the policy.
        sequence: threshold R_1 of the product; None: the authors' for the text.
        token: threshold R_2 of a confidence; None: the authors' for the text.
        send: when to upload before a verdict: `plan`, `all` (every token at once), `none`, or `free` (whatever is ready when
            the link is free).
    """

    def __init__(
        self,
        env: Any,
        name: str = "pipesd",
        sequence: float | None = None,
        token: float | None = None,
        send: str = "plan",
    ) -> None:
        super().__init__(env, name)
        self.sequence = threshold(
            "sequence", (0.5 if self._unsure else 0.95) if sequence is None else sequence
        )
        self.token = threshold("token", (0.8 if self._unsure else 0.9) if token is None else token)
        self.send = send

    def asks(self, obs: NDArray[np.float32]) -> Bools:
        """Where the draft or its last token is unsure."""
        fired = self._read(obs, "confidence") <= self.token
        return fired | (self._read(obs, "product") <= self.sequence)

    def uploads(self, obs: NDArray[np.float32]) -> Bools:
        """As `send` says."""
        if self.send == "plan":
            return self._read(obs, "plan") <= 0
        if self.send == "free":
            return self._read(obs, "link") <= 0
        return np.full(len(obs), self.send == "all")


class FixedLengthPolicy(DualPolicy):
    """`pipesd-fixed:n=8`: a verdict every n tokens, uploads by plan, drafting on while waiting."""

    def __init__(self, env: Any, name: str = "pipesd-fixed", n: int | None = None) -> None:
        super().__init__(env, name)
        self.n = (4 if self._unsure else 8) if n is None else whole("n", n)

    def asks(self, obs: NDArray[np.float32]) -> Bools:
        """At n tokens."""
        return self._tokens(obs, "block") >= self.n


def _sending(send: str, **fixed: float) -> Callable[..., Policy]:
    return lambda env, name, **numbers: DualPolicy(env, name, send=send, **fixed, **numbers)


_BOTH: dict[str, type] = {"sequence": float, "token": float}
BASELINES: dict[str, Callable[[Any], Policy]] = {
    "vanilla": Factory("vanilla", VanillaPolicy, {"n": int}, IDLE),
    "hsl": Factory("hsl", HslPolicy, {"token": float}, IDLE),
    "edgellm": Factory("edgellm", EdgeLlmPolicy, {"start": float, "factor": float, "batch": int}),
    "pipesd": Factory("pipesd", DualPolicy, _BOTH),
    "pipesd-nopipe": Factory("pipesd-nopipe", _sending("none"), _BOTH, IDLE),
    "pipesd-fixed": Factory("pipesd-fixed", FixedLengthPolicy, {"n": int}),
    "pipesd-token": Factory("pipesd-token", _sending("plan", sequence=0.0), {"token": float}),
    "pipesd-seq": Factory("pipesd-seq", _sending("plan", token=0.0), {"sequence": float}),
    "immediate": Factory("immediate", _sending("all"), _BOTH),
    "single-batch": Factory("single-batch", _sending("none"), _BOTH),
    "greedy": Factory("greedy", _sending("free"), _BOTH),
    "fixed-1": Factory("fixed-1", lambda env, name: VanillaPolicy(env, name, 1), {}, IDLE),
    "random": Factory("random", partial(RandomPolicy, simulation_class=PipeSDNav)),
}

_LENGTHS = (1, 2, 4, 6, 8, 12, 16)
_SEQUENCES = (0.3, 0.5, 0.65, 0.8, 0.9, 0.95)
_TOKENS = (0.0, 0.7, 0.9, 0.97, 0.99)
_DUAL = tuple(f"sequence={s:g},token={t:g}" for s in _SEQUENCES for t in (0.0, 0.97))
GRIDS: dict[str, tuple[str, ...]] = {
    "vanilla": tuple(f"vanilla:n={n}" for n in _LENGTHS),
    "hsl": tuple(f"hsl:token={t:g}" for t in (0.5, 0.7, 0.8, 0.9, 0.97, 0.99)),
    "edgellm": tuple(f"edgellm:start={s:g},factor={m:g}" for s in (0.5, 0.92) for m in (0.5, 0.7, 0.95)),
    "pipesd-fixed": tuple(f"pipesd-fixed:n={n}" for n in _LENGTHS),
    "pipesd-token": tuple(f"pipesd-token:token={t:g}" for t in _TOKENS[1:]),
    "pipesd-seq": tuple(f"pipesd-seq:sequence={s:g}" for s in _SEQUENCES),
    **{
        name: tuple(f"{name}:{numbers}" for numbers in _DUAL)
        for name in ("pipesd", "pipesd-nopipe", "immediate", "single-batch", "greedy")
    },
}
"""What the rules are tuned over before they are compared; the paper tunes PipeSD and states single settings of the others."""
BOARDS: dict[str, tuple[str, ...]] = {"small": (), "small-far": (), "s1": (), "mobile": ()}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""
