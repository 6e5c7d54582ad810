"""Rules for Unmask that read what no scheduler has: how much positions tell of each other, or the tokens that are to come.

A denoiser gives laws of single positions. Whether two of them depend on each other cannot be read from these; here it is computed
from the language itself, by asking what the law of one becomes for every token of the other. Of measured text the table tells it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.unmask.sets import Seen, SetPolicy
from llmgym.core.checks import number
from llmgym.core.jit import kernel
from llmgym.core.policy import Policy
from llmgym.envs.unmask.denoiser import marginals
from llmgym.envs.unmask.env import Unmask
from llmgym.envs.unmask.excerpts import estimate
from llmgym.envs.unmask.kernels import choose_macro, fire
from llmgym.envs.unmask.planners import budget, next_level
from llmgym.envs.unmask.state import MACROS, Params, State
from llmgym.envs.unmask.tables import ENTROPY

LEAST_MASS = 1e-3
"""Tokens less likely than this are left out of a mutual information."""


@kernel
def falls_of_entropy(
    table: NDArray[np.float32], share: float, masked: NDArray[np.int8], out: NDArray[np.float64]
) -> None:
    """What the true token of every masked position of measured text takes from the entropy of every other one.

    Args:
        table: of the block, float32 [1 + block, block, 4].
        share: of the weaker effects of known positions on an entropy.
        masked: 1 where a token is not known, int8 [block]; written to, and put back.
        out: written, nats, 0 where nothing is taken, float64 [block, block].
    """
    for j in range(masked.shape[0]):
        before = estimate(table, ENTROPY, share, masked, j) if masked[j] != 0 else 0.0
        for i in range(masked.shape[0]):
            out[i, j] = 0.0
            if masked[i] != 0 and masked[j] != 0 and i != j:
                masked[i] = 0
                out[i, j] = max(before - estimate(table, ENTROPY, share, masked, j), 0.0)
                masked[i] = 1


def mutual_information(simulation: Unmask, state: State, lane: int) -> NDArray[np.float64]:
    """Mutual information of every two masked positions of the present block, given all that is known.

    Of measured text, where only the true tokens were tried, the mean of what each takes from the entropy of the other.

    Args:
        simulation: the environment's.
        state: arrays of all lanes.
        lane: which one.

    Returns:
        Nats, float64 [positions, positions]; symmetric up to the tokens that are left out, 0 where a position is known and
        between interleaved texts.
    """
    episode, params, s = state.lane[lane], simulation.params, simulation.scenario
    process, streams = int(episode["process"]), int(episode["streams"])
    begin = s.prompt + int(episode["block"]) * s.block
    out = np.zeros((s.block, s.block))
    if simulation.excerpts is not None:
        table = params.measured[int(episode["excerpt"])]
        falls_of_entropy(table, float(params.shares[ENTROPY]), state.masked[lane].copy(), out)
        return 0.5 * (out + out.T)
    scratch = (
        np.zeros((s.block + 1, s.topics, s.phrases)),
        np.zeros_like(params.start[process]),
        np.zeros(s.phrases),
    )
    for stream in range(streams):
        first = (stream - begin) % streams
        known = np.ascontiguousarray(state.token[lane, begin + first : begin + s.block : streams])
        if len(known) == 0:
            continue

        def laws(tokens: NDArray[np.int16], stream: int = stream) -> NDArray[np.float64]:
            found = np.zeros((len(tokens), s.vocabulary))
            marginals(
                tokens,
                state.prior[lane, stream],
                params.lengths[process],
                params.words[process],
                params.onward[process],
                params.back[process],
                s.noise,
                float(params.config[0]["miss"]),
                *scratch,
                found,
            )
            return found

        before = laws(known)
        for i in np.flatnonzero(known < 0).tolist():
            for token in np.flatnonzero(before[i] > LEAST_MASS).tolist():
                known[i] = token
                after = laws(known)
                divergence = after * np.log(np.maximum(after, 1e-300) / np.maximum(before, 1e-300))
                told = before[i, token] * divergence.sum(axis=1)
                told[i] = 0.0
                out[first + i * streams, first::streams] += told
            known[i] = -1
    shared: NDArray[np.float64] = 0.5 * (out + out.T)
    return shared


def independent_set(
    shared: NDArray[np.float64], masked: NDArray[np.int8], nats: float, out: NDArray[np.int8]
) -> None:
    """Mark positions that tell little of each other, as many as a budget allows.

    The first is the one that tells most of all others; then always the one that adds least.

    Args:
        shared: mutual information, nats, float64 [positions, positions].
        masked: 1 where a token is not known, int8 [positions].
        nats: what the marked positions may tell of each other, sum over pairs.
        out: written, int8 [positions].
    """
    out[:] = 0
    here = masked == 1
    out[int(np.where(here, (shared * here).sum(axis=1), -1.0).argmax())] = 1
    spent = 0.0
    while True:
        free = here & (out == 0)
        if not free.any():
            return
        added = np.where(free, shared @ out, np.inf)
        best = int(added.argmin())
        spent += float(added[best])
        if spent > nats:
            return
        out[best] = 1


class MutualInformationPolicy(SetPolicy):
    """`mi-greedy`, `mi-price`: positions that tell little of each other, by the mutual information of every pair.

    Args:
        env: the environment.
        name: of the policy.
        nats: what the positions of a call may tell of each other; with `priced` for lambda 1, of which lambda 2 buys half.
        priced: the budget is divided by lambda.
    """

    privileged = True

    def __init__(self, env: Any, name: str, nats: float = 0.1, priced: bool = False) -> None:
        super().__init__(env, name)
        self.nats, self.priced = number("nats", nats, zero=True), priced

    def plan(self, seen: Seen, out: NDArray[np.int8]) -> None:
        """Mark positions that tell little of each other."""
        shared = mutual_information(self._simulation, self._env.lanes.state, seen.lane)
        independent_set(shared, seen.masked, self.nats / seen.price if self.priced else self.nats, out)


def mi_greedy(env: Any, name: str = "mi-greedy", nats: float = 0.1, priced: bool = False) -> Policy:
    """`mi-greedy`, `mi-price`; see `MutualInformationPolicy`.

    Args:
        env: the environment.
        name: of the policy.
        nats: what the positions of a call may tell of each other; with `priced` for lambda 1.
        priced: the budget is divided by lambda.

    Returns:
        The policy.

    Raises:
        InvalidArgument: the environment is no Unmask, or `nats` is below 0.
    """
    return MutualInformationPolicy(env, name, nats, priced)


@kernel
def _play_on(state: State, params: Params, lane: int, gamma: float, score: NDArray[np.float64]) -> float:
    """Play a lane to its end by the EB sampler with this budget in bits, or by DUS where it is negative; returns the rewards."""
    total, ended = 0.0, state.lane[lane].revealed == params.config[0].tokens
    block = params.config[0].block
    while not ended:
        if gamma < 0.0:
            next_level(state.masked[lane], params.level, state.chosen[lane])
        else:
            entropy = state.tail[lane, :block]
            for i in range(block):
                entropy[i] = state.position[lane, i].entropy / np.log(2.0)
            budget(state.masked[lane], entropy, gamma, score, state.chosen[lane])
        reward, ended, _ = fire(state, params, lane)
        total += reward
    return total


@kernel
def _try_set(
    state: State,
    params: Params,
    chosen: NDArray[np.int8],
    macro: int,
    gamma: float,
    score: NDArray[np.float64],
) -> float:
    """The rewards of lane 0 if this set (or that of a macro, where it is 0 or more) is revealed and a rule goes on."""
    if macro >= 0:
        choose_macro(state, params, 0, macro)
        for i in range(chosen.shape[0]):
            chosen[i] = state.chosen[0, i]
    for i in range(chosen.shape[0]):
        state.chosen[0, i] = chosen[i]
    reward, ended, _ = fire(state, params, 0)
    if ended:
        return reward
    return reward + _play_on(state, params, 0, gamma, score)


class LookAheadPolicy(SetPolicy):
    """`look-ahead`: tries sets in a copy of the world, with the tokens that will be drawn, and takes the one that ends best.

    The sets are those of all macros and of `mi-greedy` with several budgets; after each a rule plays on, DUS or the EB sampler with
    a budget by price, whichever ends better. It knows what will be drawn, so it also profits from luck: that a text drawn from a
    wrong law happens to be a likely one.

    Args:
        env: the environment.
        name: of the policy.
        gamma: bits of the EB sampler for lambda 1.
    """

    privileged = True
    BUDGETS = (0.02, 0.1, 0.3, 1.0)
    """Of `mi-greedy`, nats for lambda 1."""

    def __init__(self, env: Any, name: str = "look-ahead", gamma: float = 1.0) -> None:
        super().__init__(env, name)
        self.gamma = number("gamma", gamma, zero=True)

    def plan(self, seen: Seen, out: NDArray[np.int8]) -> None:
        """Mark the set that ends best."""
        state, params = self._env.lanes.state, self._simulation.params
        kept = [array[seen.lane : seen.lane + 1] for array in state]
        copy = State(*(array.copy() for array in kept))
        arrays: tuple[Any, ...] = copy
        score = np.empty(self.block)
        shared = mutual_information(self._simulation, state, seen.lane)
        sets = [np.zeros(self.block, np.int8) for _ in self.BUDGETS]
        for one, nats in zip(sets, self.BUDGETS, strict=True):
            independent_set(shared, seen.masked, nats / seen.price, one)
        tries = [(one, -1) for one in sets]
        tries += [(np.zeros(self.block, np.int8), macro) for macro in range(len(MACROS))]
        best = -np.inf
        for chosen, macro in tries:
            for gamma in (-1.0, self.gamma / seen.price):
                for array, before in zip(arrays, kept, strict=True):
                    array[:] = before
                total = _try_set(copy, params, chosen, macro, gamma, score)
                if total > best:
                    best, out[:] = total, chosen
