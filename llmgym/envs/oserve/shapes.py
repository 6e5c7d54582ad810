"""Shapes of model replicas: what a replica of so many GPUs and such parallelism can serve, by request type.

A replica takes `tp * pp` GPUs: layers are divided among `pp` pipeline stages, every layer among `tp` GPUs. Serving nothing but
requests of one type it completes `rate` of them a second; one alone in it takes `latency_s`. Both follow from a roofline of prefill
and decode with communication between the GPUs, the memory that the weights leave, and up to 256 requests at once.

Jiang, Fu, Wang, He and Yoneki, "OServe: Accelerating LLM Serving via Spatial-Temporal Workload Orchestration", ICML 2026 (arXiv
2602.12151), profile these rates and print none. Formulas and constants here are ours; `MeasuredStages` takes dense layers and
attention from a kernel set instead.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.checks import choice, number, whole
from llmgym.errors import InvalidArgument
from llmgym.profiles.kernels import load_kernels
from llmgym.profiles.models import MODELS as SHAPES

Floats = NDArray[np.float64]

SEATS = 256
"""Requests that a replica runs at once."""
NODE_GPUS = 8
TENSOR = (1, 2, 4, 8)
DEEPEST = 8
SIZES = (1, 2, 4, 8, 16)
MOST_GPUS = 32
"""GPUs of a cluster: with more of them the deployments are too many to list."""
WEIGHT_BYTES = 2
KV_BYTES = 2


class Shape(NamedTuple):
    """Parallelism of a replica: GPUs that share a layer, and stages that share the layers."""

    tp: int
    pp: int

    @property
    def gpus(self) -> int:
        """GPUs it takes."""
        return self.tp * self.pp

    def __str__(self) -> str:
        return f"TP{self.tp}" if self.pp == 1 else f"TP{self.tp}xPP{self.pp}"


def deployment_name(shapes: Sequence[Shape], counts: Iterable[int]) -> str:
    """A deployment in words, such as "2 TP4 + 1 TP8", by how many replicas of each shape it has."""
    return " + ".join(f"{count} {shape}" for count, shape in zip(counts, shapes, strict=True) if count)


class RequestType(NamedTuple):
    """Lengths that stand for a type of requests, tokens."""

    prompt: int
    output: int


@dataclass(frozen=True)
class Model:
    """A dense decoder model in bf16.

    Attributes:
        parameters: number of weights.
        layers: number of layers.
        hidden: width of a layer.
        kv_width: key heads times their width.
        kernels: name of its shards in kernel sets; "" where nobody measured them.
    """

    parameters: float
    layers: int
    hidden: int
    kv_width: int
    kernels: str = ""

    @property
    def weight_bytes(self) -> float:
        """Weights of the whole model, bytes."""
        return WEIGHT_BYTES * self.parameters

    @property
    def kv_bytes(self) -> float:
        """Keys and values of a token in the cache, over all layers, bytes."""
        return 2.0 * KV_BYTES * self.layers * self.kv_width


MODELS = {
    "opt-30b": Model(30e9, 48, 7168, 7168),
    "opt-66b": Model(66e9, 64, 9216, 9216),
    "llama-30b": Model(32.5e9, 60, 6656, 6656),
    "llama-2-70b": Model(69e9, 80, 8192, 1024),
    "llama-3.1-70b": Model(float(SHAPES["llama-3.1-70b"].parameters), 80, 8192, 1024, "llama-3.1-70b"),
    "qwen2.5-14b": Model(float(SHAPES["qwen2.5-14b"].parameters), 48, 5120, 1024, "qwen2.5-14b"),
}
"""The paper's four models (section 5; shapes as published with the models), and two whose shards are in kernel sets."""


@dataclass(frozen=True)
class Device:
    """A GPU and its links.

    Attributes:
        flops: peak of bf16 arithmetic, operations a second.
        flops_share: share of the peak that large products reach.
        bytes_per_s: bandwidth of the memory, bytes a second.
        bytes_share: share of the bandwidth that reading weights and caches reaches.
        usable_bytes: memory for weights and caches, bytes.
        nvlink_bytes_per_s: bandwidth between GPUs of a node, as far as collectives reach it, bytes a second.
        all_reduce_s: latency of one all-reduce, seconds.
        hop_s: latency from one stage to the next, seconds.
        overhead_s: time that an engine step takes besides, seconds.
    """

    flops: float = 989e12
    flops_share: float = 0.55
    bytes_per_s: float = 3.35e12
    bytes_share: float = 0.70
    usable_bytes: float = 0.9 * 80e9 - 3e9
    nvlink_bytes_per_s: float = 0.75 * 400e9
    all_reduce_s: float = 9e-6
    hop_s: float = 20e-6
    overhead_s: float = 2e-3


H100 = Device()


class Rates(NamedTuple):
    """What a replica does with one type of requests.

    Attributes:
        rate_rps: completions if it serves nothing else, requests a second; 0 where not even one request fits.
        latency_s: latency of a lone request, seconds.
        prefill_s: part of the latency until the first token, seconds.
    """

    rate_rps: float
    latency_s: float
    prefill_s: float


def strategies(gpus: int) -> tuple[Shape, ...]:
    """All shapes of a replica with this many GPUs; tensor parallelism stays in a node of eight."""
    return tuple(Shape(tp, gpus // tp) for tp in reversed(TENSOR) if gpus % tp == 0 and gpus // tp <= DEEPEST)


def capacity_tokens(model: Model, shape: Shape, device: Device = H100) -> float:
    """Cache that the weights leave; below zero where they do not even fit themselves.

    Args:
        model: the model.
        shape: of the replica.
        device: its GPUs.

    Returns:
        Tokens.
    """
    return (shape.gpus * device.usable_bytes - model.weight_bytes) / model.kv_bytes


def _communication(model: Model, shape: Shape, tokens: float, device: Device) -> tuple[float, float]:
    """Time of the all-reduces of one stage, and of the way to the next stage, for so many tokens, seconds."""
    moved = tokens * model.hidden * WEIGHT_BYTES / device.nvlink_bytes_per_s
    reduce_s = 0.0
    if shape.tp > 1:
        ring = 2.0 * (shape.tp - 1) / shape.tp * moved
        reduce_s = 2.0 * (model.layers / shape.pp) * (device.all_reduce_s + ring)
    return reduce_s, 0.0 if shape.pp == 1 else moved + device.hop_s


def _batch(model: Model, shape: Shape, lengths: RequestType, device: Device) -> float:
    """Requests of a type that run at once."""
    tokens = lengths.prompt + lengths.output
    return min(float(SEATS), capacity_tokens(model, shape, device) / tokens)


def rates(model: str | Model, tp: int, pp: int, lengths: tuple[int, int], device: Device = H100) -> Rates:
    """Rate and latency of a replica for a type of requests, by the roofline.

    With N = tp pp GPUs, B requests at once (memory or 256) and b = B / pp of them in a stage, a decode step of a stage takes
    `max(2 P b / (N F), W / N / BW) + b (prompt + output / 2) kv / N / BW` and communication and overhead, a prefill `(2 P prompt +
    2 L h prompt^2) / (N F)` and its all-reduces; the rate is 1 / (prefill + output decode / b).

    Args:
        model: a name in `MODELS`, or a `Model`.
        tp: GPUs that share a layer.
        pp: pipeline stages.
        lengths: prompt and output of a request, tokens.
        device: the GPUs.

    Returns:
        Rate in requests a second, latency and its part until the first token in seconds; rate 0 where no request fits.

    Raises:
        UnknownName: no such model.
        InvalidArgument: a shape or a length that cannot be.
    """
    model, shape, request = _checked(model, tp, pp, lengths)
    n, prompt, output = shape.gpus, float(request.prompt), float(request.output)
    flops, reads = device.flops * device.flops_share, device.bytes_per_s * device.bytes_share
    together = _batch(model, shape, request, device)
    if together < 1.0:
        return Rates(0.0, math.inf, math.inf)
    b = together / pp
    reduce_s, hop_s = _communication(model, shape, b, device)
    weights_s = model.weight_bytes / n / reads
    decode_s = max(2.0 * model.parameters * b / (n * flops), weights_s)
    decode_s += b * (prompt + output / 2) * model.kv_bytes / n / reads
    decode_s += reduce_s + hop_s + device.overhead_s / pp
    work = 2.0 * model.parameters * prompt + 2.0 * model.layers * model.hidden * prompt * prompt
    prefill_s = work / (n * flops) + _communication(model, shape, prompt, device)[0]
    alone_s = weights_s + device.overhead_s / pp
    if tp > 1:
        alone_s += 2.0 * (model.layers / pp) * device.all_reduce_s
    first_s = prefill_s * pp
    return Rates(1.0 / (prefill_s + output * decode_s / b), first_s + output * pp * alone_s, first_s)


def _checked(
    model: str | Model, tp: int, pp: int, lengths: tuple[int, int]
) -> tuple[Model, Shape, RequestType]:
    model = MODELS[choice("model", model, MODELS)] if not isinstance(model, Model) else model
    whole("tp", tp)
    whole("pp", pp, 1, DEEPEST)
    if tp not in TENSOR:
        raise InvalidArgument(f"tp={tp!r}: expected one of {', '.join(map(str, TENSOR))}")
    return model, Shape(tp, pp), check_lengths(lengths)


def check_lengths(lengths: Any, name: str = "lengths") -> RequestType:
    """Prompt and output as a `RequestType`; `name` is the argument that they come from. Raises `InvalidArgument`."""
    try:
        prompt, output = lengths
    except (TypeError, ValueError):
        raise InvalidArgument(f"{name}: {lengths!r}: expected prompt and output tokens") from None
    return RequestType(whole(f"prompt in {name}", prompt), whole(f"output in {name}", output))


class RateTable(NamedTuple):
    """What every shape does with every class of requests.

    Attributes:
        shapes: of replicas that can hold the weights and at least one request of some class.
        classes: lengths of the requests of each class.
        rate: float64 [shapes, classes], completions, requests a second; 0 where none fits.
        latency_s: float64 [shapes, classes], latency of a lone request, seconds; infinite where none fits.
        prefill_s: float64 [shapes, classes], part of the latency until the first token, seconds.
        capacity: int64 [shapes], cache of a replica, tokens.
    """

    shapes: tuple[Shape, ...]
    classes: tuple[RequestType, ...]
    rate: Floats
    latency_s: Floats
    prefill_s: Floats
    capacity: NDArray[np.int64]


def rate_table(
    model: str | Model,
    classes: Sequence[tuple[int, int]],
    gpus: int,
    kernels: str | None = None,
    device: Device = H100,
) -> RateTable:
    """The shapes of up to `gpus` GPUs with their rates.

    Args:
        model: a name in `MODELS`, or a `Model`.
        classes: prompt and output of the requests of each class, tokens.
        gpus: GPUs that a replica may take at most.
        kernels: name of a kernel set, for times of dense layers and attention; None for the roofline.
        device: the GPUs.

    Returns:
        The table; shapes that can serve no class are left out.

    Raises:
        UnknownName: no such model or kernel set.
        InvalidArgument: no class, or a model that fits into no replica of this size.
    """
    whole("gpus", gpus, 1, MOST_GPUS)
    checked = tuple(check_lengths(lengths) for lengths in classes)
    if not checked:
        raise InvalidArgument("classes=(): expected prompt and output tokens of one class or more")
    resolved = MODELS[choice("model", model, MODELS)] if not isinstance(model, Model) else model
    measured = None if kernels is None else MeasuredStages(resolved, kernels, device)
    rows: list[tuple[Shape, list[Rates]]] = []
    for size in SIZES:
        for shape in strategies(size) if size <= gpus else ():
            row = [
                rates(resolved, shape.tp, shape.pp, lengths, device)
                if measured is None
                else measured.rates(shape, lengths)
                for lengths in checked
            ]
            if any(cell.rate_rps > 0.0 for cell in row):
                rows.append((shape, row))
    if not rows:
        need = math.ceil(resolved.weight_bytes / device.usable_bytes)
        raise InvalidArgument(
            f"model={model!r}: its {resolved.weight_bytes / 1e9:.0f} GB and one request fit into no replica of at most gpus={gpus} "
            f"GPUs (weights alone take {need})"
        )
    shapes = tuple(shape for shape, _ in rows)
    cells = np.array([row for _, row in rows], np.float64)
    capacity = np.array([int(capacity_tokens(resolved, shape, device)) for shape in shapes], np.int64)
    return RateTable(
        shapes, checked, cells[..., 0].copy(), cells[..., 1].copy(), cells[..., 2].copy(), capacity
    )


class MeasuredStages:
    """Rates from the measured kernels of a model's shards; communication and engine overhead as in the roofline.

    A stage is L / pp layers: the products of a layer's shard, the operations between them (measured for Llama-3.1-8B, scaled by the
    bytes that they move), and attention. Of attention the sets hold 32 query heads with 1, 2, 8 and 32 key heads: decoding is
    bound by the cache it reads and is taken linear in the key heads; prefill is bound by arithmetic and is taken proportional to
    the query heads. Beyond the measured shapes times grow in proportion.

    Args:
        model: a model whose shards are in kernel sets.
        kernels: name of the kernel set.
        device: memory, links and overhead of the GPUs.

    Raises:
        InvalidArgument: the model's shards were not measured.
    """

    def __init__(self, model: Model, kernels: str, device: Device = H100) -> None:
        if not model.kernels:
            known = ", ".join(name for name, one in MODELS.items() if one.kernels)
            raise InvalidArgument(f"kernels={kernels!r}: measured for {known}")
        self.model, self.device = model, device
        self.size = SHAPES[model.kernels]
        measured = load_kernels(kernels)
        self._dense: dict[int, tuple[Floats, Floats, Floats]] = {}
        reference = SHAPES["llama-3.1-8b"]
        between = 2.0 * self._line(measured, "elementwise", "llama-3.1-8b add_norm")[1]
        for part in ("rotary", "gate"):
            between = between + self._line(measured, "elementwise", f"llama-3.1-8b {part}")[1]
        for tp in TENSOR:
            tokens, layer = self._line(measured, "gemm", f"{model.kernels} tp{tp} qkv")
            for part in ("attention_output", "gate_up", "down"):
                layer = layer + self._line(measured, "gemm", f"{model.kernels} tp{tp} {part}")[1]
            head = self._line(measured, "gemm", f"{model.kernels} tp{tp} output_head")[1]
            moved = self.size.elementwise_bytes_per_token(tp) / reference.elementwise_bytes_per_token(1)
            layer = layer + np.maximum(between * moved, between[0])
            self._dense[tp] = (tokens, 1e-6 * layer, 1e-6 * head)
        prefill = measured.table("prefill_attention", "32 query heads, 8 key heads of 128")
        fresh = (prefill["context"] == 0) & (prefill["batch"] == 1)
        order = np.argsort(prefill["chunk"][fresh])
        self._chunk = prefill["chunk"][fresh][order], 1e-6 * prefill["latency_us"][fresh][order]
        self._read = {heads: self._decode_plane(measured, heads) for heads in (1, 2, 8, 32)}

    @staticmethod
    def _line(measured: object, op: str, variant: str) -> tuple[Floats, Floats]:
        columns = measured.table(op, variant)  # type: ignore[attr-defined]
        order = np.argsort(columns["tokens"])
        return columns["tokens"][order], columns["latency_us"][order]

    @staticmethod
    def _decode_plane(measured: object, heads: int) -> tuple[float, float]:
        """Floor and time per token of cache of a batch that decodes, s; the line through the origin of the largest cases."""
        columns = measured.table("decode_attention", f"32 query heads, {heads} key heads of 128")  # type: ignore[attr-defined]
        tokens, time_s = columns["batch"] * columns["kv"], 1e-6 * columns["latency_us"]
        large = tokens >= 0.1 * tokens.max()
        return float(time_s.min()), float(np.sum(time_s[large]) / np.sum(tokens[large]))

    def _dense_s(self, tp: int, tokens: float, head: bool = False) -> float:
        """One layer's shard (or the output head's) for so many tokens, s."""
        counts, layer, last = self._dense[tp]
        return _along(counts, last if head else layer, tokens)

    def _decode_s(self, tp: int, batch: float, context: float) -> float:
        """Attention of one layer of a batch, s."""
        heads = max(self.size.kv_heads / tp, 1.0)
        known = np.array(sorted(self._read))
        floor = float(np.interp(heads, known, [self._read[int(k)][0] for k in known]))
        token = float(np.interp(heads, known, [self._read[int(k)][1] for k in known]))
        return max(floor, token * batch * context)

    def rates(self, shape: Shape, lengths: RequestType) -> Rates:
        """Rate and latency of a replica of a shape for requests of these lengths."""
        model, device, size = self.model, self.device, self.size
        together = _batch(model, shape, lengths, device)
        if together < 1.0:
            return Rates(0.0, math.inf, math.inf)
        b, layers = together / shape.pp, model.layers / shape.pp
        context = lengths.prompt + lengths.output / 2

        def step_s(batch: float) -> float:
            reduce_s, hop_s = _communication(model, shape, batch, device)
            one = self._dense_s(shape.tp, batch) + self._decode_s(shape.tp, batch, context)
            head_s = self._dense_s(shape.tp, batch, head=True) / shape.pp
            return layers * one + head_s + reduce_s + hop_s + device.overhead_s / shape.pp

        heads = size.q_heads / shape.tp / 32.0
        attention = heads * _along(*self._chunk, float(lengths.prompt))
        prefill_s = layers * (self._dense_s(shape.tp, lengths.prompt) + attention)
        prefill_s += _communication(model, shape, lengths.prompt, device)[0]
        first_s = prefill_s * shape.pp
        rate = 1.0 / (prefill_s + lengths.output * step_s(b) / b)
        return Rates(rate, first_s + lengths.output * shape.pp * step_s(1.0), first_s)


def _along(points: Floats, values: Floats, x: float) -> float:
    """A measured value at x: straight in the logarithms between the points, proportional beyond the last, flat before the first."""
    if x >= points[-1]:
        return float(values[-1] * x / points[-1])
    return float(np.exp(np.interp(np.log(max(x, points[0])), np.log(points), np.log(values))))


def positive_demand(demand: Sequence[float] | Floats, count: int, name: str = "demand") -> Floats:
    """A demand, checked.

    Args:
        demand: requests a second of each type.
        count: number of types.
        name: of the argument, for messages.

    Returns:
        float64 [count].

    Raises:
        InvalidArgument: a rate below 0 or none that is finite, or another number of them.
    """
    values = np.array([number(name, float(value), zero=True) for value in demand], np.float64)
    if len(values) != count:
        raise InvalidArgument(f"{name} has {len(values)} entries, expected one for each of {count} types")
    return values
