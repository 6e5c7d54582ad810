"""Rules for PipeSDTune: Bayesian optimisation as PipeSD does it, random and grid search, and fixed thresholds.

PipeSD (arXiv 2605.13319, and its released code): a Gaussian process with a Matern kernel over (R_1, R_2), expected improvement
with xi = 0.1, 16 evaluations of 20 tokens, the first at random; tuned anew when the mean time per token changes by more than a
fifth. The paper does not state nu; 5/2 is used. The Gaussian process is scikit-learn's. Random and grid search have as many
evaluations.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.pipesd.nav import threshold
from llmgym.baselines.rule import Factory, Rule
from llmgym.core.checks import number, whole
from llmgym.core.policy import Policy
from llmgym.envs.pipesd.nav.kernels import SPEED_S
from llmgym.envs.pipesd.tune.env import PipeSDTune

Floats = NDArray[np.float64]
EVALUATIONS = 16
"""Pairs that a search tries, as in the paper."""
GATE = 0.2
"""Change of the time per token after which a search begins anew: the paper's delta_1, of the released code."""
AVERAGED = 10
"""Steps that a mean time per token is taken over: a single step of 20 tokens varies by a fifth by itself."""
CANDIDATES, NEAR, SPREAD = 600, 100, 0.05
"""Pairs that expected improvement is compared at: uniform ones, ones around the best pair, and their standard deviation; chosen
here."""


class _Search(Rule[PipeSDTune], ABC):
    """Tries some pairs of thresholds, takes one of them, and begins anew when the time per token is no longer what it was."""

    draws = True
    remembered = ("_begun", "_tried", "_times", "_held", "_best", "_generators")

    def __init__(self, env: Any, name: str, evaluations: int = EVALUATIONS, seed: int = 0) -> None:
        super().__init__(env, name, PipeSDTune)
        self.evaluations = whole("evaluations", evaluations, 1, 4096)
        lanes = self._env.lanes.count
        self._seed = seed
        self._begun = np.zeros(lanes, np.int64)
        self._tried: list[list[tuple[float, float]]] = [[] for _ in range(lanes)]
        self._times: list[list[float]] = [[] for _ in range(lanes)]
        self._held: list[list[float]] = [[] for _ in range(lanes)]
        self._best: list[tuple[float, float] | None] = [None] * lanes
        self._generators = [np.random.default_rng([seed, lane]) for lane in range(lanes)]

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Nothing has been tried."""
        for lane in np.flatnonzero(lanes).tolist():
            self._anew(lane)
            self._begun[lane] += 1
            self._generators[lane] = np.random.default_rng([self._seed, lane, int(self._begun[lane])])

    def _anew(self, lane: int) -> None:
        self._tried[lane], self._times[lane], self._held[lane], self._best[lane] = [], [], [], None

    @abstractmethod
    def propose(self, tried: Floats, times: Floats, generator: np.random.Generator) -> tuple[float, float]:
        """The next pair of thresholds.

        Args:
            tried: pairs so far, float64 [n, 2].
            times: their times per token, float64 [n], seconds.
            generator: of the lane.

        Returns:
            R_1 and R_2, 0 to 1.
        """

    def choose(self, tried: Floats, times: Floats) -> int:
        """Which of the tried pairs to hold: here the fastest."""
        return int(np.argmin(times))

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Pairs of thresholds [lanes, 2]."""
        times = self._read(obs, "tpt") * SPEED_S
        return np.array([self._one(lane, time) for lane, time in enumerate(times.tolist())])

    def _one(self, lane: int, time: float) -> tuple[float, float]:
        """The pair for one lane, whose last step took `time` seconds a token (0 before the first)."""
        best = self._best[lane]
        tried, times, held = self._tried[lane], self._times[lane], self._held[lane]
        if best is not None:
            held.append(time)
            if len(held) >= 2 * AVERAGED:
                then, now = np.mean(held[:AVERAGED]), np.mean(held[-AVERAGED:])
                if abs(now - then) > GATE * then:
                    self._anew(lane)
                    return self._one(lane, 0.0)
            return best
        if len(times) < len(tried):
            times.append(time)
        points, seconds = np.array(tried).reshape(-1, 2), np.array(times)
        if len(tried) == self.evaluations:
            best = self._best[lane] = tried[self.choose(points, seconds)]
            return best
        tried.append(self.propose(points, seconds, self._generators[lane]))
        return tried[-1]


def _process(points: Floats, times: Floats, seed: int) -> Any:
    """A Gaussian process of the standardised times, its length scales and noise by marginal likelihood."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    kernel = ConstantKernel(1.0, (0.05, 20.0)) * Matern([0.3, 0.3], (0.05, 5.0), nu=2.5)
    process = GaussianProcessRegressor(
        kernel + WhiteKernel(0.1, (1e-4, 2.0)), n_restarts_optimizer=1, random_state=seed
    )
    spread = float(times.std())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a bound was met: with few points it will be
        return process.fit(points, (times - times.mean()) / (spread if spread > 0 else 1.0))


class BayesianPolicy(_Search):
    """`bo:evaluations=16,xi=0.1`: Bayesian optimisation; holds the evaluated pair with the lowest posterior mean.

    Expected improvement is maximised over 600 uniform pairs and 100 around the best pair so far.
    """

    def __init__(
        self, env: Any, name: str = "bo", evaluations: int = EVALUATIONS, xi: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__(env, name, evaluations, seed)
        self.xi = number("xi", xi, zero=True)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Pairs of thresholds [lanes, 2]; matrices are so small that several threads would only wait for each other."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # scikit-learn needs it

        with threadpool_limits(1, "blas"):
            return super().act(obs, mask)

    def propose(self, tried: Floats, times: Floats, generator: np.random.Generator) -> tuple[float, float]:
        """Where the improvement that can be expected is largest; at random at first.

        Args:
            tried: pairs of thresholds so far, float64 [n, 2], 0 to 1.
            times: their times per token, float64 [n], seconds.
            generator: of the lane.

        Returns:
            R_1 and R_2, 0 to 1.
        """
        from scipy.stats import norm

        if len(tried) == 0:
            first, second = generator.random(2)
            return float(first), float(second)
        process = _process(tried, times, int(generator.integers(2**31)))
        best = tried[int(np.argmin(process.predict(tried)))]
        near = np.clip(best + SPREAD * generator.standard_normal((NEAR, 2)), 0.0, 1.0)
        candidates = np.concatenate([generator.random((CANDIDATES, 2)), near])
        mean, deviation = process.predict(candidates, return_std=True)
        gain = float(process.predict(tried).min()) - mean - self.xi
        deviation = np.maximum(deviation, 1e-9)
        expected = gain * norm.cdf(gain / deviation) + deviation * norm.pdf(gain / deviation)
        first, second = candidates[int(np.argmax(expected))]
        return float(first), float(second)

    def choose(self, tried: Floats, times: Floats) -> int:
        """The lowest posterior mean: a single fast measurement may be luck."""
        if len(tried) < 2:
            return 0
        return int(np.argmin(_process(tried, times, self._seed).predict(tried)))


class RandomSearchPolicy(_Search):
    """`random-search:evaluations=16`: pairs at random, then the fastest of them."""

    def __init__(
        self, env: Any, name: str = "random-search", evaluations: int = EVALUATIONS, seed: int = 0
    ) -> None:
        super().__init__(env, name, evaluations, seed)

    def propose(self, tried: Floats, times: Floats, generator: np.random.Generator) -> tuple[float, float]:
        """Uniform in the unit square.

        Args:
            tried: pairs of thresholds so far, float64 [n, 2], 0 to 1.
            times: their times per token, float64 [n], seconds.
            generator: of the lane.

        Returns:
            R_1 and R_2, 0 to 1.
        """
        first, second = generator.random(2)
        return float(first), float(second)


class GridSearchPolicy(_Search):
    """`grid-search:side=4`: the middles of side x side cells, then the fastest of them."""

    def __init__(self, env: Any, name: str = "grid-search", side: int = 4) -> None:
        super().__init__(env, name, whole("side", side, 1, 64) ** 2)
        self.side = side

    def propose(self, tried: Floats, times: Floats, generator: np.random.Generator) -> tuple[float, float]:
        """The next cell, row by row.

        Args:
            tried: pairs of thresholds so far, float64 [n, 2], 0 to 1.
            times: their times per token, float64 [n], seconds.
            generator: of the lane.

        Returns:
            R_1 and R_2, 0 to 1.
        """
        row, column = divmod(len(tried), self.side)
        return (row + 0.5) / self.side, (column + 0.5) / self.side


class FixedPolicy(Rule[PipeSDTune]):
    """`fixed:sequence=0.95,token=0.9`: the same pair throughout; by default the authors' for the text."""

    def __init__(
        self, env: Any, name: str = "fixed", sequence: float | None = None, token: float | None = None
    ) -> None:
        super().__init__(env, name, PipeSDTune)
        unsure = self._simulation.text.name == "gsm8k"
        self.sequence = threshold("sequence", (0.5 if unsure else 0.95) if sequence is None else sequence)
        self.token = threshold("token", (0.8 if unsure else 0.9) if token is None else token)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Pairs of thresholds [lanes, 2]."""
        return np.tile([self.sequence, self.token], (len(obs), 1))


BASELINES: dict[str, Callable[[Any], Policy]] = {
    "bo": Factory("bo", BayesianPolicy, {"evaluations": int, "xi": float}),
    "random-search": Factory("random-search", RandomSearchPolicy, {"evaluations": int}),
    "grid-search": Factory("grid-search", GridSearchPolicy, {"side": int}),
    "fixed": FixedPolicy,
    "fixed-tuned": Factory("fixed-tuned", FixedPolicy, {"sequence": float, "token": float}),
}
GRIDS: dict[str, tuple[str, ...]] = {
    "fixed-tuned": tuple(
        f"fixed-tuned:sequence={s:g},token={t:g}"
        for s in (0.3, 0.5, 0.65, 0.8, 0.9, 0.95)
        for t in (0.0, 0.97, 0.999)
    )
}
"""`fixed-tuned` is the best of these on other episodes of the same world, which a tuner on its first episode does not know."""
BOARDS: dict[str, tuple[str, ...]] = {"small": (), "mobile": ()}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""
