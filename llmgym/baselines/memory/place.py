"""Rules for MemPlace: the paper's static mappings, the band of arithmetic intensity, greedy and exhaustive search on predictions.

The mappings are those of He, Ma, Sun and Cong, "Understand and Accelerate Memory Processing Pipeline for Large Language Model
Inference", ICML 2026 (arXiv 2603.29002). Sparse attention, RAG and memory as context have relevancy and retrieval fused on the
FPGA. MemAgent decodes on the FPGA, but stays on the GPU in batches above two. Training at test time has nothing on the FPGA. Where
the FPGA cannot hold the index, all rules fall back to the GPU. All read nothing but the observation, except `oracle`.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.baselines.rule import Factory, RandomPolicy, Rule
from llmgym.core.jit import kernel
from llmgym.core.layout import Layout
from llmgym.core.policy import Policy
from llmgym.core.records import Records
from llmgym.envs.memory.costs import BATCHES, SIZES
from llmgym.envs.memory.devices import Link
from llmgym.envs.memory.law import AGENT, WORKLOADS, band_devices, paper_devices
from llmgym.envs.memory.place.env import MemPlace
from llmgym.envs.memory.place.state import LINK_OCTAVES
from llmgym.envs.memory.placement import FUSED, GENERAL, PLACEMENTS, Cell, allowed, copies_s, place
from llmgym.envs.memory.published import NAMES

AGENT_BATCH = 2
"""Largest batch in which MemAgent decodes on the FPGA."""
ALONE, EVERYWHERE = 0b0000, 0b1111
"""Placements with every stage on one device."""


def _of_family(name: str, devices: Callable[[Any], tuple[int, ...]]) -> int:
    """The placement of a workload from the devices of its four stages; the paged instances count as sparse attention."""
    bits = sum(device << stage for stage, device in enumerate(devices(WORKLOADS.get(name, WORKLOADS["dsa"]))))
    return FUSED if bits == GENERAL else bits


def gpu_only(name: str, batch: int) -> int:
    """`gpu-only`: nothing on the FPGA."""
    return ALONE


def fpga_all(name: str, batch: int) -> int:
    """`fpga-all`: every stage on the FPGA."""
    return EVERYWHERE


def static(name: str, batch: int) -> int:
    """`static`: the paper's mapping of the workload, whatever the batch."""
    return _of_family(name, paper_devices)


def batch_aware(name: str, batch: int) -> int:
    """`batch-aware`: the paper's mapping of the workload, but MemAgent stays on the GPU in batches above two."""
    agent = name in WORKLOADS and WORKLOADS[name].family == AGENT
    return ALONE if agent and batch > AGENT_BATCH else static(name, batch)


def band(name: str, batch: int) -> int:
    """`band`: stages of at most 10 FLOP per byte on the FPGA."""
    return _of_family(name, lambda w: band_devices(w, batch))


FIXED: Mapping[str, Callable[[str, int], int]] = {
    "gpu-only": gpu_only,
    "fpga-all": fpga_all,
    "static": static,
    "batch-aware": batch_aware,
    "band": band,
}
"""Rules that look at the workload and the batch alone."""


def possible(cell: Cell, placement: int) -> int:
    """The placement with those stages moved back to the GPU that are empty or do not fit the FPGA."""
    if allowed(cell, placement):
        return placement
    bits = (GENERAL if placement == FUSED else placement) & ~int(cell["empty"])
    return bits if cell["fits"] else bits & ~GENERAL


def placements(rule: Callable[[str, int], int], cells: Records[Cell]) -> NDArray[np.int64]:
    """The placement of every workload, size and batch by a rule of `FIXED`, int64 [14, 10, 6]; 0 for those not in `cells`."""
    table = np.zeros((len(NAMES), SIZES, len(BATCHES)), np.int64)
    for cell in cells:
        name, batch = NAMES[cell["workload"]], int(cell["batch"])
        table[cell["workload"], cell["size_index"], cell["batch_index"]] = possible(cell, rule(name, batch))
    return table


def positions(cells: Records[Cell]) -> NDArray[np.int64]:
    """Where each workload, size and batch is in `cells`, int64 [14, 10, 6]; -1 for those not in `cells`."""
    table = np.full((len(NAMES), SIZES, len(BATCHES)), -1, np.int64)
    table[cells["workload"], cells["size_index"], cells["batch_index"]] = np.arange(len(cells))
    return table


@kernel
def best_placements(
    cells: Records[Cell],
    which: NDArray[np.int64],
    links: Records[Link],
    scale: NDArray[np.float64],
    weight: float,
    errors: NDArray[np.float64],
    out: NDArray[np.int64],
) -> None:
    """Write for each lane the placement with the largest reward.

    Args:
        cells: what each request costs, [cells].
        which: the request of each lane, int64 [lanes].
        links: both directions of the link, [2].
        scale: bandwidth over that of `links`, float64 [lanes].
        weight: weight of the logarithm of energy in the reward.
        errors: true over predicted times of kernels, by device and stage, float64 [lanes, 2, 4].
        out: the placements, int64 [lanes].
    """
    for lane in range(out.shape[0]):
        cell = cells[which[lane]]
        alone_s, _, alone_j, _ = place(cell, links, scale[lane], 0, errors[lane])
        best = 0.0
        out[lane] = 0
        for placement in range(PLACEMENTS):
            if allowed(cell, placement):
                time, _, joules, _ = place(cell, links, scale[lane], placement, errors[lane])
                worth = math.log(alone_s / time) + weight * math.log(alone_j / joules)
                if worth > best:
                    out[lane], best = placement, worth


@kernel
def greedy_placement(cell: Cell, links: Records[Link], scale: float) -> int:
    """Give each stage to the device that is done first, copies included, one after the other.

    Args:
        cell: the request.
        links: both directions of the link, [2].
        scale: bandwidth over that of `links`.

    Returns:
        The placement; relevancy and retrieval, where they alone are on the FPGA, are fused.
    """
    placed = 0
    for stage in range(4):
        if (cell.empty >> stage) & 1:
            if stage > 0 and (placed >> (stage - 1)) & 1:
                placed |= 1 << stage
            continue
        down, up, _, _ = copies_s(cell, links, scale, placed, stage, 0)
        on_gpu = cell.time_s[0, stage] + down + up
        down, up, _, _ = copies_s(cell, links, scale, placed, stage, 1)
        on_fpga = cell.time_s[1, stage] + down + up
        free = cell.fits != 0 or stage == 0 or stage == 3
        if free and on_fpga < on_gpu:
            placed |= 1 << stage
    placed &= ~cell.empty
    return FUSED if placed == GENERAL and cell.empty == 0 else placed


def requested(
    layout: Layout, obs: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Indices of workload, size and batch of the requests in observations of `layout`, int64 [lanes] each."""
    size, batch = obs[:, layout["size"].start], obs[:, layout["batch"].start]
    return (
        obs[:, layout["workload"]].argmax(axis=1),
        np.rint(size.astype(np.float64) * (SIZES - 1)).astype(np.int64),
        np.rint(batch.astype(np.float64) * (len(BATCHES) - 1)).astype(np.int64),
    )


class _Rule(Rule[MemPlace]):
    """A rule that finds the request in the table of all requests, from what the observation says of it."""

    def __init__(self, env: Any, name: str) -> None:
        super().__init__(env, name, MemPlace)
        self._cells = self._simulation.params.cells
        self._links = self._simulation.params.links
        self._positions = positions(self._cells)

    def _which(self, obs: NDArray[np.float32]) -> NDArray[np.int64]:
        """Index of the request in the table of cells, int64 [lanes]."""
        return self._positions[requested(self._simulation.layout, obs)]

    def _scale(self, obs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Bandwidth over the published one, float64 [lanes]."""
        return np.exp2(LINK_OCTAVES * self._read(obs, "link"))


class FixedPolicy(_Rule):
    """`gpu-only`, `fpga-all`, `static`, `batch-aware`, `band`: a placement by workload and batch alone.

    Args:
        env: the environment.
        name: one of `FIXED`.
    """

    def __init__(self, env: Any, name: str) -> None:
        super().__init__(env, name)
        self.table = placements(FIXED[name], self._cells)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The placements of all lanes, int64 [lanes]."""
        return self.table[requested(self._simulation.layout, obs)]


class EarliestFinishPolicy(_Rule):
    """`earliest-finish`: stage by stage the device that is predicted to be done first, copies included."""

    def __init__(self, env: Any, name: str = "earliest-finish") -> None:
        super().__init__(env, name)

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The placements of all lanes, int64 [lanes]."""
        chosen = [
            greedy_placement(self._cells[which], self._links, scale)
            for which, scale in zip(self._which(obs), self._scale(obs), strict=True)
        ]
        return np.array(chosen, np.int64)


class BruteForcePolicy(_Rule):
    """`brute-force`: the best of all placements by predicted times."""

    def __init__(self, env: Any, name: str = "brute-force") -> None:
        super().__init__(env, name)
        self._weight = self._simulation.scenario.energy_weight

    def _errors(self, lanes: int) -> NDArray[np.float64]:
        """True over predicted times of kernels as far as the policy knows, by device and stage, float64 [lanes, 2, 4]."""
        return np.ones((lanes, 2, 4))

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """The placements of all lanes, int64 [lanes]."""
        out = np.zeros(len(obs), np.int64)
        which, scale, errors = self._which(obs), self._scale(obs), self._errors(len(obs))
        best_placements(self._cells, which, self._links, scale, self._weight, errors, out)
        return out


class OraclePolicy(BruteForcePolicy):
    """`oracle`: the best of all placements by true times. It is privileged, and nothing does better."""

    privileged = True

    def __init__(self, env: Any, name: str = "oracle") -> None:
        super().__init__(env, name)

    def _errors(self, lanes: int) -> NDArray[np.float64]:
        errors: NDArray[np.float64] = self._env.lanes.state.error[:lanes]
        return errors


BASELINES: dict[str, Callable[[Any], Policy]] = {
    **{name: (lambda env, name=name: FixedPolicy(env, name)) for name in FIXED},  # type: ignore[misc]
    "earliest-finish": EarliestFinishPolicy,
    "brute-force": BruteForcePolicy,
    "oracle": OraclePolicy,
    "random": Factory("random", partial(RandomPolicy, simulation_class=MemPlace)),
}
BOARDS: dict[str, tuple[str, ...]] = {"small": (), "paper": (), "h100": ()}
"""Scenarios of the leaderboard, each with the rules that are too slow to run on many of its worlds."""
