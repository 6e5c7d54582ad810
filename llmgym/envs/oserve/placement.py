"""Where replicas stand on the GPUs of a cluster, and what has to move when they change shape.

GPUs are numbered node by node. A replica of d GPUs (a power of two) stands on d neighbours that begin at a multiple of d, so it
never straddles two nodes unless it is larger than one, and whatever set of replicas has no more GPUs than the cluster fits.
Within a replica the GPUs of a stage are neighbours: GPU i is tensor rank i mod tp of stage i / tp.

Weights move as in OServe (Jiang et al., arXiv 2602.12151, section 5): of the GPUs that hold a slice of parameters which a target
GPU needs and lacks, one in its node goes before all others, then the one that has the least to send so far. A slice is an eighth
of the layers times an eighth of every layer, fine enough for all shapes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import number, whole
from llmgym.core.jit import kernel
from llmgym.core.records import Record, Records, int32
from llmgym.envs.oserve.shapes import DEEPEST, NODE_GPUS, TENSOR, Shape
from llmgym.errors import InvalidArgument

PARTS = 8
"""Parts of the layers, and of each layer. As many as the deepest pipeline has stages and the widest shape GPUs."""
NVLINK_GB_PER_S = 400.0
INFINIBAND_GB_PER_S = 200.0
"""Of a GPU inside a node, and of a node to the others: section 6 of the paper, as printed."""


class Place(Record):
    """A place for a replica: the fields that `place` reads."""

    shape: int = int32("Number of its shape; -1 where there is no replica.", blank=-1)
    gpu: int = int32("Its first GPU.")
    gpus: int = int32("GPUs that it takes.")


@kernel
def place(
    slots: Records[Any],
    sizes: NDArray[np.int64],
    wanted: NDArray[np.int64],
    gpus: int,
    target: NDArray[np.int64],
) -> int:
    """Where the replicas of a deployment go, moving as few as possible.

    Large ones first. A replica that exists and is wanted stays where it is; a new one goes where it disturbs the fewest that could
    stay.

    Args:
        slots: records with the fields of `Place` [places], the replicas now.
        sizes: int64 [shapes], GPUs of each shape.
        wanted: int64 [shapes], replicas of each shape.
        gpus: of the cluster.
        target: int64 [gpus, 2], written: for the first GPU of each replica its shape, and 1 if it stands there now; -1 elsewhere.

    Returns:
        GPUs that change hands.
    """
    for g in range(gpus):
        target[g, 0], target[g, 1] = -1, 0
    moved = 0
    size = 1
    while size * 2 <= gpus:
        size *= 2
    while size >= 1:
        for s in range(sizes.shape[0]):
            if sizes[s] == size:
                left = wanted[s]
                for k in range(slots.shape[0]):
                    slot = slots[k]
                    if left > 0 and slot.shape == s and _free(target, sizes, slot.gpu, size):
                        target[slot.gpu, 0], target[slot.gpu, 1] = s, 1
                        left -= 1
        for s in range(sizes.shape[0]):
            if sizes[s] == size:
                standing = 0
                for g in range(gpus):
                    if target[g, 0] == s and target[g, 1] == 1:
                        standing += 1
                for _ in range(wanted[s] - standing):
                    chosen, least = -1, gpus + 1
                    for g in range(0, gpus - size + 1, size):
                        if _free(target, sizes, g, size):
                            disturbed = _disturbed(slots, wanted, g, size)
                            if disturbed < least:
                                chosen, least = g, disturbed
                    target[chosen, 0], target[chosen, 1] = s, 0
                    moved += size
        size //= 2
    return moved


@kernel
def _free(target: NDArray[np.int64], sizes: NDArray[np.int64], gpu: int, size: int) -> bool:
    """Whether no replica has been put on these GPUs."""
    free = True
    for g in range(target.shape[0]):
        if target[g, 0] >= 0 and g < gpu + size and g + sizes[target[g, 0]] > gpu:
            free = False
    return free


@kernel
def _disturbed(slots: Records[Any], wanted: NDArray[np.int64], gpu: int, size: int) -> int:
    """GPUs of smaller replicas whose shape is wanted, among `size` GPUs from `gpu` on."""
    disturbed = 0
    for k in range(slots.shape[0]):
        slot = slots[k]
        if slot.shape >= 0 and slot.gpus < size and gpu <= slot.gpu < gpu + size and wanted[slot.shape] > 0:
            disturbed += slot.gpus
    return disturbed


@kernel
def holds(tp: int, pp: int, rank: int, layer: int, slice_: int) -> bool:
    """Whether a GPU of a replica holds a part of the weights.

    Args:
        tp: GPUs that share a layer.
        pp: pipeline stages.
        rank: of the GPU within its replica.
        layer: part of the layers, 0 to 7.
        slice_: part of each layer, 0 to 7.

    Returns:
        True if the GPU holds that part.
    """
    stage, tensor = rank // tp, rank % tp
    return layer * pp // PARTS == stage and slice_ * tp // PARTS == tensor


@kernel
def ship(
    before: NDArray[np.int64],
    after: NDArray[np.int64],
    part_bytes: float,
    node_gpus: int,
    traffic: NDArray[np.float64],
) -> float:
    """The paper's greedy plan: who sends which part of the weights to whom.

    Args:
        before: int64 [gpus, 3]: tp, pp and rank within its replica of each GPU now; tp 0: holds nothing.
        after: int64 [gpus, 3]: the same afterwards.
        part_bytes: of one of the 64 parts.
        node_gpus: GPUs of a node.
        traffic: float64 [gpus, 4], written: bytes sent and received by each GPU, and how much of it crosses nodes.

    Returns:
        Bytes that move; -1 where some part has no holder.
    """
    gpus = before.shape[0]
    for g in range(gpus):
        for i in range(4):
            traffic[g, i] = 0.0
    total = 0.0
    for g in range(gpus):
        if after[g, 0] == 0:
            continue
        for layer in range(PARTS):
            for slice_ in range(PARTS):
                if not holds(after[g, 0], after[g, 1], after[g, 2], layer, slice_):
                    continue
                if before[g, 0] > 0 and holds(before[g, 0], before[g, 1], before[g, 2], layer, slice_):
                    continue
                source, near = -1, False
                for h in range(gpus):
                    if before[h, 0] == 0 or not holds(
                        before[h, 0], before[h, 1], before[h, 2], layer, slice_
                    ):
                        continue
                    here = h // node_gpus == g // node_gpus
                    if (
                        source < 0
                        or (here and not near)
                        or (here == near and traffic[h, 0] < traffic[source, 0])
                    ):
                        source, near = h, here
                if source < 0:
                    return -1.0
                traffic[source, 0] += part_bytes
                traffic[g, 1] += part_bytes
                if not near:
                    traffic[source, 2] += part_bytes
                    traffic[g, 3] += part_bytes
                total += part_bytes
    return total


@kernel
def shipping_s(
    traffic: NDArray[np.float64], node_gpus: int, gpu_bytes_per_s: float, node_bytes_per_s: float
) -> float:
    """How long a plan takes, seconds: the busiest GPU's sending or receiving, or the busiest node's to or from other nodes.

    Args:
        traffic: float64 [gpus, 4], as `ship` writes it, bytes.
        node_gpus: GPUs of a node.
        gpu_bytes_per_s: bandwidth of a GPU inside its node, each way, bytes a second.
        node_bytes_per_s: bandwidth of a node to the others, each way, bytes a second.

    Returns:
        Seconds; 0 where nothing moves.
    """
    longest = 0.0
    gpus = traffic.shape[0]
    for g in range(gpus):
        longest = max(longest, max(traffic[g, 0], traffic[g, 1]) / gpu_bytes_per_s)
    for node in range((gpus + node_gpus - 1) // node_gpus):
        out, come = 0.0, 0.0
        for g in range(node * node_gpus, min((node + 1) * node_gpus, gpus)):
            out += traffic[g, 2]
            come += traffic[g, 3]
        longest = max(longest, max(out, come) / node_bytes_per_s)
    return longest


@dataclass(frozen=True)
class SwitchPlan:
    """What moves when a cluster changes its replicas.

    Attributes:
        total_bytes: weights that move, bytes.
        between_nodes_bytes: weights that move from node to node, bytes.
        seconds: time that the transfer takes; stopping and starting engines comes on top.
        sent_bytes: float64 [gpus], weights that each GPU sends, bytes.
        received_bytes: float64 [gpus], weights that each GPU receives, bytes.
        kept: replicas that stay as they are.
        changed_gpus: GPUs whose replica changes.
    """

    total_bytes: float
    between_nodes_bytes: float
    seconds: float
    sent_bytes: NDArray[np.float64]
    received_bytes: NDArray[np.float64]
    kept: int
    changed_gpus: int


def placed(shapes: Sequence[tuple[int, int]], gpus: int, name: str) -> Records[Place]:
    """Replicas placed on an empty cluster, large ones first.

    Args:
        shapes: shapes (tp, pp) of the replicas.
        gpus: of the cluster.
        name: of the argument that the shapes come from, for messages.

    Returns:
        Records [replicas], whose `shape` is their number in this order.

    Raises:
        InvalidArgument: no replica, a shape that cannot be, or more GPUs than there are.
    """
    checked = [check_shape(shape, name) for shape in shapes]
    if not checked:
        raise InvalidArgument(f"{name}=(): expected one replica (tp, pp) or more")
    taken = sum(shape.gpus for shape in checked)
    if taken > gpus:
        raise InvalidArgument(f"{name}={tuple(map(tuple, checked))}: takes {taken} GPUs, but gpus={gpus}")
    slots: Records[Place] = Place.zeros(len(checked))
    gpu = 0
    for k, shape in enumerate(sorted(checked, key=lambda shape: -shape.gpus)):
        slots[k] = (k, gpu, shape.gpus)
        gpu += shape.gpus
    return slots


def check_shape(shape: Any, name: str) -> Shape:
    """A pair (tp, pp) as a `Shape`; `name` is the argument that it comes from. Raises `InvalidArgument`."""
    try:
        tp, pp = (whole(name, part) for part in shape)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{name}: {shape!r} is no shape (tp, pp)") from None
    size = tp * pp
    if tp not in TENSOR or pp > DEEPEST or size & (size - 1):
        raise InvalidArgument(
            f"{name}: ({tp}, {pp}) is no shape; tp is one of {', '.join(map(str, TENSOR))}, pp a power of two up to {DEEPEST}"
        )
    return Shape(tp, pp)


def switch_plan(
    before: Sequence[tuple[int, int]],
    after: Sequence[tuple[int, int]],
    weight_bytes: float,
    gpus: int,
    *,
    nvlink_gb_per_s: float = NVLINK_GB_PER_S,
    infiniband_gb_per_s: float = INFINIBAND_GB_PER_S,
    node_gpus: int = NODE_GPUS,
) -> SwitchPlan:
    """Plan the transfers of one change of deployment; the replicas before are placed on an empty cluster, large ones first.

    Args:
        before: shapes (tp, pp) of the replicas now.
        after: shapes (tp, pp) of the replicas that are wanted.
        weight_bytes: weights of the model, bytes.
        gpus: of the cluster.
        nvlink_gb_per_s: bandwidth of a GPU inside its node, GB/s, each way.
        infiniband_gb_per_s: bandwidth of a node to the others, GB/s, each way.
        node_gpus: GPUs of a node.

    Returns:
        What moves, between which GPUs, and for how long.

    Raises:
        InvalidArgument: no replicas, more GPUs than there are, or a bandwidth that is not above zero.
    """
    whole("gpus", gpus, 1, 1024)
    whole("node_gpus", node_gpus)
    number("weight_bytes", weight_bytes)
    nvlink = 1e9 * number("nvlink_gb_per_s", nvlink_gb_per_s)
    infiniband = 1e9 * number("infiniband_gb_per_s", infiniband_gb_per_s)
    old, new = placed(before, gpus, "before"), placed(after, gpus, "after")
    names = sorted({check_shape(s, "before") for s in before} | {check_shape(s, "after") for s in after})
    ordered = sorted((check_shape(s, "before") for s in before), key=lambda shape: -shape.gpus)
    old["shape"] = [names.index(shape) for shape in ordered]
    sizes = np.array([shape.gpus for shape in names], np.int64)
    wanted = np.array([sum(check_shape(s, "after") == name for s in after) for name in names], np.int64)
    target = np.zeros((gpus, 2), np.int64)
    place(old, sizes, wanted, gpus, target)
    ranks = np.array([(shape.tp, shape.pp) for shape in names], np.int64)
    now, then = np.zeros((gpus, 3), np.int64), np.zeros((gpus, 3), np.int64)
    for slot in old:
        for i in range(slot["gpus"]):
            now[slot["gpu"] + i] = (*ranks[slot["shape"]], i)
    for g in np.flatnonzero(target[:, 0] >= 0):
        for i in range(sizes[target[g, 0]]):
            then[g + i] = (*ranks[target[g, 0]], i)
    traffic = np.zeros((gpus, 4))
    total = ship(now, then, weight_bytes / PARTS**2, node_gpus, traffic)
    kept = int(target[:, 1].sum())
    stays = sizes[target[target[:, 1] == 1, 0]].sum()
    return SwitchPlan(
        total,
        float(traffic[:, 2].sum()),
        shipping_s(traffic, node_gpus, nvlink, infiniband),
        traffic[:, 0].copy(),
        traffic[:, 1].copy(),
        kept,
        int(math.fsum(slot["gpus"] for slot in new) - stays),
    )
