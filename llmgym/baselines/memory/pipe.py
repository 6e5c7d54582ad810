"""Rules for MemPipe: the paper's static mappings, the band of arithmetic intensity, and greedy choice with the queues in view.

The mappings are those of `llmgym.baselines.memory.place` (He, Ma, Sun and Cong, ICML 2026, arXiv 2603.29002), stage by stage: they
know the request and not who else waits. `earliest-finish` gives a stage to the device that will have done it first. All rules read
nothing but the observation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.memory.place import FIXED, best_placements, placements, positions, requested
from llmgym.baselines.rule import Factory, RandomPolicy, Rule
from llmgym.core.checks import number
from llmgym.core.policy import Policy
from llmgym.envs.memory.pipe.env import MemPipe
from llmgym.envs.memory.pipe.state import TO_FPGA, TO_GPU, WAIT
from llmgym.envs.memory.placement import FUSED, GENERAL


class MappedPolicy(Rule[MemPipe]):
    """`gpu-only`, `fpga-all`, `static`, `batch-aware`, `band`, `brute-force`: a placement for each workload, size and batch.

    Args:
        env: the environment.
        name: of the policy.
        table: makes the placements of a simulation by workload, size and batch, int64 [14, 10, 6].
    """

    def __init__(self, env: Any, name: str, table: Callable[[MemPipe], NDArray[np.int64]]) -> None:
        super().__init__(env, name, MemPipe)
        placed = table(self._simulation)
        self.table = np.where(placed == FUSED, GENERAL, placed)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The devices of all lanes, int64 [lanes]."""
        placed = self.table[requested(self._simulation.layout, obs)]
        device: NDArray[Any] = (placed >> self._rows(obs, "stage").argmax(axis=1)) & 1
        return device


def _fixed(env: Any, name: str) -> Policy:
    return MappedPolicy(env, name, lambda s: placements(FIXED[name], s.params.cells))


def search(simulation: MemPipe) -> NDArray[np.int64]:
    """The best placement of each request as if it were alone, by workload, size and batch, int64 [14, 10, 6].

    The best one has the largest sum of the logarithm of the speed-up and the weighted logarithm of the saving of energy.
    """
    cells = simulation.params.cells
    out = np.zeros(len(cells), np.int64)
    best_placements(
        cells,
        np.arange(len(cells)),
        simulation.params.links,
        np.ones(len(cells)),
        simulation.scenario.energy_weight,
        np.ones((len(cells), 2, 4)),
        out,
    )
    return np.where(positions(cells) >= 0, out[positions(cells)], 0)


def _brute_force(env: Any, name: str) -> Policy:
    return MappedPolicy(env, name, search)


class EarliestFinishPolicy(Rule[MemPipe]):
    """`earliest-finish`: the device that will have done the stage first, with queues, copies and kernel.

    Args:
        env: the environment.
        name: of the policy.
        favour: how many times as long as the GPU the FPGA may take. Above 1 it is favoured, as it needs less power and leaves the
            GPU to others; below 1 it is not, as what it works on must be copied.
    """

    def __init__(self, env: Any, name: str = "earliest-finish", favour: float = 1.0) -> None:
        super().__init__(env, name, MemPipe)
        self.favour = number("favour", favour)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The devices of all lanes, int64 [lanes]."""
        seen = self._rows(obs, "finish")
        # x / (1 + x) in the observation
        finish = seen / np.maximum(1.0 - seen, 1e-9)
        sooner = finish[:, TO_FPGA] < self.favour * finish[:, TO_GPU]
        free = np.ones(len(obs), np.bool_) if mask is None else mask[:, TO_FPGA] == 1
        return np.where(sooner & free, TO_FPGA, TO_GPU)


BASELINES: dict[str, Callable[[Any], Policy]] = {
    **{name: Factory(name, _fixed) for name in FIXED},
    "brute-force": Factory("brute-force", _brute_force),
    "earliest-finish": Factory("earliest-finish", EarliestFinishPolicy, {"favour": float}),
    "random": Factory(
        "random", partial(RandomPolicy, simulation_class=MemPipe, actions=WAIT)
    ),  # it never waits
}

GRIDS: dict[str, tuple[str, ...]] = {
    "earliest-finish": tuple(f"earliest-finish:favour={x}" for x in (0.5, 0.7, 0.85, 1, 1.2, 1.5, 2)),
}
"""The values over which a rule is tuned before it is compared (`llmgym.evaluation.tuned`); the mappings have nothing to tune."""
BOARDS: dict[str, tuple[str, ...]] = {"small": (), "paper": (), "h100": ()}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""
