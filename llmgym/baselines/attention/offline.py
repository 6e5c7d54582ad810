"""`offline-dp`: with arrivals and times known, the best kernel of every batch in the order of arrival, by dynamic programming.

After each batch a label is a clock, a ledger and a return; one that is later, has spent more and earned less than another is
dropped (a search over Pareto-optimal labels). With all labels kept this is the optimum among policies that do not defer.
"""

from bisect import bisect_right
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Rule
from llmgym.core.checks import whole
from llmgym.envs.attention.env import AttentionBudget
from llmgym.envs.attention.kernels import allowed, service_s
from llmgym.envs.attention.state import State

Floats = NDArray[np.float64]


class Labels(NamedTuple):
    """Ways to serve all batches so far; arrays [labels].

    Attributes:
        clock_s: time at the end of the last batch, seconds.
        spent: ledger, nat times tokens.
        value: return so far.
        before: index of the label that each came from.
        action: what served the last batch.
    """

    clock_s: Floats
    spent: Floats
    value: Floats
    before: NDArray[np.int64]
    action: NDArray[np.int64]

    def take(self, rows: Any) -> "Labels":
        """The labels of some rows."""
        return Labels(*(column[rows] for column in self))


def undominated(labels: Labels) -> NDArray[np.int64]:
    """Rows that no other beats in clock, ledger and return together; of equal ones the first."""
    order = np.lexsort((labels.spent, labels.clock_s, -labels.value))
    clocks: list[float] = []  # a staircase: clocks rise, ledgers fall
    ledgers: list[float] = []
    kept = []
    for row in order.tolist():
        clock, spent = float(labels.clock_s[row]), float(labels.spent[row])
        at = bisect_right(clocks, clock)
        if at > 0 and ledgers[at - 1] <= spent:
            continue
        kept.append(row)
        stop = at
        while stop < len(clocks) and ledgers[stop] >= spent:
            stop += 1
        clocks[at:stop], ledgers[at:stop] = [clock], [spent]
    return np.array(kept, np.int64)


def thinned(labels: Labels, most: int) -> Labels:
    """At most so many labels: the best return of each cell of a grid over clock and ledger."""
    if len(labels.value) <= most:
        return labels
    side = max(int(most**0.5), 1)
    cells = np.zeros(len(labels.value), np.int64)
    for column in (labels.clock_s, labels.spent):
        low, high = column.min(), column.max()
        part = (column - low) / (high - low) if high > low else np.zeros_like(column)
        cells = cells * side + np.minimum((part * side).astype(np.int64), side - 1)
    order = np.lexsort((-labels.value, cells))
    first = np.ones(len(order), np.bool_)
    first[1:] = cells[order][1:] != cells[order][:-1]
    return labels.take(order[first])


def plan(simulation: AttentionBudget, state: State, lane: int, most: int) -> tuple[Floats, float, bool]:
    """The best actions of all batches that are left, in the order of arrival.

    Args:
        simulation: the environment's.
        state: arrays of all lanes.
        lane: whose batches.
        most: labels that are kept after each batch.

    Returns:
        The action of each batch, float64 [batches] with -1 for those that are served; the return from here on; and whether that is
        an optimum, as no label was thinned out.
    """
    params, config = simulation.params, simulation.params.config[0]
    episode, batches = state.lane[lane], simulation.scenario.batches
    kernels, splits = params.tables.kernels, len(simulation.splits)
    left = np.flatnonzero(state.batch[lane]["action"] < 0).tolist()
    start: NDArray[np.int64] = np.zeros(1, np.int64)
    labels = Labels(
        np.array([float(episode["clock_s"])]), np.array([float(episode["spent"])]), np.zeros(1), start, start
    )
    layers, whole_front, total = [], True, float(episode["tokens"])
    for n in left:
        batch = state.batch[lane, n]
        tokens = float(batch["length"]) * float(batch["requests"])
        weight = (1.0 if config["even"] else tokens / config["mean_tokens"]) / batches
        total += tokens
        grown = []
        for action in range(simulation.defer):
            if not allowed(params, batch, action):
                continue
            one = kernels[action // splits]
            seconds = service_s(params, batch, action, float(batch["noise"]))
            clock_s = np.maximum(labels.clock_s, batch["arrival_s"]) + seconds
            late = clock_s > batch["due_s"]
            gain = np.where(late, -config["late_weight"] * weight, weight)
            gain = gain - config["excess_weight"] * weight * max(one["loss"] - float(batch["limit"]), 0.0)
            gain = gain - config["energy_weight"] * seconds * one["power_w"] / (batches * config["mean_j"])
            grown.append(
                Labels(
                    clock_s,
                    labels.spent + tokens * one["loss"],
                    labels.value + gain,
                    np.arange(len(clock_s)),
                    np.full(len(clock_s), action),
                )
            )
        every = Labels(*(np.concatenate(columns) for columns in zip(*grown, strict=True)))
        every = every.take(undominated(every))
        labels = thinned(every, most)
        whole_front &= len(labels.value) == len(every.value)
        layers.append(labels)
    above = np.maximum(labels.spent / (total * config["budget"]) - 1.0, 0.0)
    final = labels.value - config["overspend_weight"] * above
    row = int(np.argmax(final))
    actions: Floats = np.full(batches, -1.0)
    for n, layer in zip(reversed(left), reversed(layers), strict=True):
        actions[n] = layer.action[row]
        row = int(layer.before[row])
    return actions, float(final.max()), whole_front


class OfflinePolicy(Rule[AttentionBudget]):
    """`offline-dp`: plays the plan that is best with all arrivals and times known, in the order of arrival.

    Args:
        env: the environment.
        name: of the policy.
        labels: most labels that are kept after each batch; with fewer than there are the plan is good but no optimum.
    """

    privileged = True

    def __init__(self, env: Any, name: str = "offline-dp", labels: int = 1000) -> None:
        super().__init__(env, name, AttentionBudget)
        self.labels = whole("labels", labels)
        self._plans: dict[int, Floats] = {}

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The actions of all lanes, int64 [lanes]; 0 where an episode is over."""
        state, batches = self._env.lanes.state, self._simulation.scenario.batches
        actions: NDArray[np.int64] = np.zeros(len(obs), np.int64)
        for lane in range(len(obs)):
            if state.lane["done"][lane] == batches:
                continue
            if lane not in self._plans:
                self._plans[lane] = plan(self._simulation, state, lane, self.labels)[0]
            actions[lane] = int(self._plans[lane][int(state.lane["head"][lane])])
        return actions

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Plans of these lanes are made anew."""
        self._plans = {lane: kept for lane, kept in self._plans.items() if not lanes[lane]}
