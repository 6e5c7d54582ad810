"""What each attention kernel costs: measured times, memory and spread of one layer on a grid of lengths, and the loss it brings.

A call works on several sequences of one length. On an H200 (`data/batches.csv`) a linear kernel takes what one sequence of as many
tokens in all takes, and a quadratic one what a sequence of as many pairs of tokens takes, which is the root of n times as long. The
memory of a quadratic kernel is n times that of one sequence. Between measured lengths, logarithms are interpolated; below the
shortest its time is taken, and beyond the longest a kernel cannot be used.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.records import Record, Records, float64, int32
from llmgym.envs.attention import published
from llmgym.envs.attention.errors import loss_of
from llmgym.envs.attention.law import REFERENCE, Budget
from llmgym.errors import InvalidArgument, UnknownName
from llmgym.profiles.kernels import Kernels, load_kernels

Floats = NDArray[np.float64]

PUBLISHED = "a100/published"
"""In place of a kernel set: the figure of the SLAY paper (`llmgym.envs.attention.published`)."""
OP = "causal_attention"
LAYERS: dict[str, tuple[int, int]] = {"8x32": (8, 32), "32x128": (32, 128)}
"""Heads and entries of a head: the layer of the paper's figure, and that of a model of 8 billion parameters."""
FIRST_OCTAVE, LAST_OCTAVE, PER_OCTAVE = 7, 17, 16
POINTS = (LAST_OCTAVE - FIRST_OCTAVE) * PER_OCTAVE + 1
"""Grid of lengths from 128 to 131,072 tokens. Lengths that are measured are powers of two, so they are on it."""
LONGEST = 2**LAST_OCTAVE
QUADRATIC = ("fused", "softmax", "yat")
"""First words of variants whose time grows with the square of the length."""
IQR_OF_NORMAL = 1.349
"""Interquartile range of a normal law over its standard deviation."""
PREFILL_W = 690.0
"""Board power of an H100 or H200 in prefill, watts, by the `power` rows of their kernel sets."""
A100_W = 400.0
"""Limit of an A100's board, watts."""
REST = (
    ("gemm", "llama-3.1-8b tp1 qkv", 1.0),
    ("gemm", "llama-3.1-8b tp1 attention_output", 1.0),
    ("gemm", "llama-3.1-8b tp1 gate_up", 1.0),
    ("gemm", "llama-3.1-8b tp1 down", 1.0),
    ("elementwise", "llama-3.1-8b add_norm", 2.0),
    ("elementwise", "llama-3.1-8b rotary", 1.0),
    ("elementwise", "llama-3.1-8b gate", 1.0),
)
"""What a layer of Llama-3.1-8B does beside attention: op, variant, and how often."""


class Kernel(Record):
    """One attention kernel of a menu."""

    linear: int = int32("1: time grows with the length; 0: with its square.")
    longest: float = float64("Longest sequence that was measured, tokens.")
    loss: float = float64("Loss of the model over that of softmax, nat.")
    power_w: float = float64("Board power while it runs, watts.")


class Tables(NamedTuple):
    """A menu on the grid of lengths.

    Attributes:
        kernels: one a kernel, [kernels].
        log_us: logarithm of the time of a layer in microseconds, float64 [kernels, POINTS].
        log_bytes: logarithm of its memory beyond the input, float64 [kernels, POINTS].
        spread: standard deviation of the time over the time, float64 [kernels, POINTS].
        rest_us: time of the rest of a layer by tokens, microseconds, float64 [POINTS].
    """

    kernels: Records[Kernel]
    log_us: Floats
    log_bytes: Floats
    spread: Floats
    rest_us: Floats


class _Columns(NamedTuple):
    """What was measured of one kernel, by length."""

    length: Floats
    latency_us: Floats
    iqr_us: Floats
    peak_bytes: Floats
    power_w: float


def budget_of(variant: str) -> Budget | None:
    """The budget of a variant such as "slay 2 16 8" (R, M, P); None for another kernel.

    Raises:
        InvalidArgument: SLAY without three whole numbers.
    """
    words = variant.split()
    if not words or words[0] != "slay":
        return None
    if len(words) != 4 or not all(word.isdigit() for word in words[1:]):
        raise InvalidArgument(f"kernel {variant!r}: expected 'slay R M P' with whole numbers")
    return Budget(*(int(word) for word in words[1:]))


def loss_of_kernel(variant: str, head_dim: int, slope: float) -> float:
    """Loss of a model with this kernel over that with softmax, nat: published, and for budgets of SLAY as `loss_of` says.

    Args:
        variant: a kernel.
        head_dim: entries of a head.
        slope: nat per unit of relative error.

    Returns:
        Nat; 0 for softmax.

    Raises:
        InvalidArgument: SLAY without three whole numbers.
    """
    budget = budget_of(variant)
    if budget is not None:
        return loss_of(budget, head_dim, slope)
    name = "softmax" if variant.startswith("fused") else variant.split()[0]
    return published.loss_gap(name)


def checkpoints(variants: Sequence[str]) -> int:
    """How many trained models a menu needs: one a kernel, as features are part of it; fused softmax is softmax."""
    return len({"softmax" if name.startswith("fused") else name for name in variants})


def variants(source: str, layer: str) -> tuple[str, ...]:
    """The kernels that a source has of a layer; of the published figure, with all budgets.

    Raises:
        UnknownName: no such kernel set.
    """
    if source == PUBLISHED:
        budgets = [Budget(r, m, p) for r in (1, 2, 3) for m in (4, 8, 16, 32) for p in (8, 16, 32)]
        return (*(name for name in published.LATENCY_MS if name != "slay"), *map(_named, budgets))
    heads, head_dim = LAYERS[layer]
    kernels = load_kernels(source)
    names = kernels.ops().get(OP, [])
    return tuple(name for name in names if _rows(kernels, name, heads, head_dim).any())


def _named(budget: Budget) -> str:
    return f"slay {budget.nodes} {budget.features} {budget.anchors}"


def _rows(kernels: Kernels, variant: str, heads: int, head_dim: int) -> NDArray[np.bool_]:
    columns = kernels.table(OP, variant)
    rows: NDArray[np.bool_] = (columns["heads"] == heads) & (columns["head_dim"] == head_dim)
    return rows


def _published(variant: str) -> _Columns:
    budget = budget_of(variant)
    name = "slay" if budget is not None else variant
    if name not in published.LATENCY_MS:
        raise UnknownName("kernel in menu", variant, variants(PUBLISHED, "8x32"))
    ms: Floats = np.array(published.LATENCY_MS[name])
    mib: Floats = np.array(published.MEMORY_MIB[name])
    if budget is not None and budget != REFERENCE:
        ms, mib = published.slay_ms(budget), published.slay_mib(budget)
    length: Floats = np.array(published.LENGTHS[: len(ms)], np.float64)
    return _Columns(length, 1e3 * ms, np.zeros(len(ms)), mib * 2.0**20, A100_W)


def _measured(kernels: Kernels, variant: str, layer: str) -> _Columns:
    heads, head_dim = LAYERS[layer]
    there = kernels.ops().get(OP, [])
    if variant not in there or not (keep := _rows(kernels, variant, heads, head_dim)).any():
        raise UnknownName(f"kernel in menu, for a layer {layer} by {kernels.name}", variant, there)
    columns = {name: values[keep] for name, values in kernels.table(OP, variant).items()}
    order = np.argsort(columns["length"])
    length, latency_us, iqr_us, peak_bytes = (
        columns[name][order] for name in ("length", "latency_us", "iqr_us", "peak_bytes")
    )
    power = columns["power_w"][np.isfinite(columns["power_w"])]
    mean_w = float(power.mean()) if len(power) else math.nan
    return _Columns(length, latency_us, iqr_us, peak_bytes, mean_w)


def measured_columns(source: str, variant: str, layer: str) -> tuple[Floats, Floats, Floats]:
    """Lengths (tokens), times of a layer (microseconds) and memory (bytes) as they were measured.

    Args:
        source: a kernel set, or `PUBLISHED`.
        variant: a kernel of it.
        layer: one of `LAYERS`.

    Returns:
        Three arrays, float64 [lengths], by rising length.

    Raises:
        UnknownName: no such kernel set, or no such kernel in it.
    """
    columns = _published(variant) if source == PUBLISHED else _measured(load_kernels(source), variant, layer)
    return columns.length, columns.latency_us, columns.peak_bytes


def tables(source: str, layer: str, menu: Sequence[str], slope: float, rest: bool) -> Tables:
    """A menu of kernels on the grid.

    Args:
        source: a kernel set, or `PUBLISHED`.
        layer: one of `LAYERS`.
        menu: kernels of it.
        slope: nat per unit of relative error, for the loss of SLAY's budgets.
        rest: whether what a layer of Llama-3.1-8B does beside attention counts.

    Returns:
        Costs of the kernels, in the order of the menu.

    Raises:
        UnknownName: no such kernel set, or no such kernel in it.
        InvalidArgument: the published figure has no such layer, or no rest.
    """
    if source == PUBLISHED and (layer != "8x32" or rest):
        raise InvalidArgument(
            f"profile={source!r}: is of layer='8x32' with rest=False, not {layer!r}, {rest}"
        )
    kernels = None if source == PUBLISHED else load_kernels(source)
    columns = [_published(name) if kernels is None else _measured(kernels, name, layer) for name in menu]
    grid = np.arange(POINTS) / PER_OCTAVE + FIRST_OCTAVE
    records = Kernel.zeros(len(menu))
    log_us, log_bytes, spread = (np.zeros((len(menu), POINTS)) for _ in range(3))
    slays = [
        one.power_w
        for name, one in zip(menu, columns, strict=True)
        if name.startswith("slay") and one.power_w > 0
    ]
    for i, (name, one) in enumerate(zip(menu, columns, strict=True)):
        at = np.log2(one.length)
        log_us[i] = np.interp(grid, at, np.log(one.latency_us))
        log_bytes[i] = np.interp(grid, at, np.log(np.maximum(one.peak_bytes, 1.0)))
        spread[i] = np.interp(grid, at, one.iqr_us / IQR_OF_NORMAL / one.latency_us)
        power = one.power_w
        if math.isnan(power):
            power = float(np.mean(slays)) if slays and name.startswith("slay") else PREFILL_W
        loss = loss_of_kernel(name, LAYERS[layer][1], slope)
        linear = name.split()[0] not in QUADRATIC
        records[i : i + 1] = Kernel.pack(linear=linear, longest=one.length[-1], loss=loss, power_w=power)
    rest_us = _rest_us(kernels, grid) if rest and kernels is not None else np.zeros(POINTS)
    return Tables(records, log_us, log_bytes, spread, rest_us)


def _rest_us(kernels: Kernels, grid: Floats) -> Floats:
    """Time of the rest of a layer by tokens; beyond the most that was measured as many times as that."""
    total = np.zeros(len(grid))
    for op, variant, times in REST:
        columns: dict[str, Any] = kernels.table(op, variant)
        order = np.argsort(columns["tokens"])
        at, us = np.log2(columns["tokens"][order]), columns["latency_us"][order]
        inside = np.exp(np.interp(grid, at, np.log(us)))
        total += times * np.where(grid > at[-1], us[-1] * 2.0 ** (grid - at[-1]), inside)
    return total


@kernel(inline=True)
def _between(row: Floats, length: float) -> float:
    """A row of the grid at a length, in tokens."""
    at = (math.log2(length) - FIRST_OCTAVE) * PER_OCTAVE
    at = min(max(at, 0.0), POINTS - 1.0)
    i = min(int(at), POINTS - 2)
    return row[i] + (at - i) * (row[i + 1] - row[i])


@kernel(inline=True)
def _as_one(linear: int, length: float, requests: int) -> float:
    """The sequence that takes as long as so many sequences of a length, tokens."""
    return length * requests if linear != 0 else length * math.sqrt(float(requests))


@kernel
def attention_us(tables: Tables, k: int, length: float, requests: int, parts: int) -> float:
    """Time of one attention layer; infinite where that was not measured.

    Args:
        tables: the menu.
        k: index of the kernel.
        length: of each sequence, tokens.
        requests: sequences.
        parts: calls that they are divided among, one after the other, as evenly as can be; at most `requests`.

    Returns:
        Microseconds.
    """
    one = tables.kernels[k]
    small, larger = requests // parts, requests % parts
    most = small + 1 if larger > 0 else small
    if length > one.longest or _as_one(one.linear, length, most) > one.longest:
        return math.inf
    total_us = (parts - larger) * math.exp(_between(tables.log_us[k], _as_one(one.linear, length, small)))
    if larger > 0:
        total_us += larger * math.exp(_between(tables.log_us[k], _as_one(one.linear, length, most)))
    return total_us


@kernel
def attention_bytes(tables: Tables, k: int, length: float, requests: int, parts: int) -> float:
    """Memory of one attention layer: that of the largest of its calls.

    Args:
        tables: the menu.
        k: index of the kernel.
        length: of each sequence, tokens.
        requests: sequences.
        parts: calls that they are divided among, one after the other, as evenly as can be; at most `requests`.

    Returns:
        Bytes.
    """
    most = (requests + parts - 1) // parts
    if tables.kernels[k].linear != 0:
        return math.exp(_between(tables.log_bytes[k], length * most))
    return most * math.exp(_between(tables.log_bytes[k], length))


@kernel
def step_s(
    tables: Tables, k: int, length: float, requests: int, parts: int, layers: int
) -> tuple[float, float]:
    """Time of all layers.

    Args:
        tables: the menu.
        k: index of the kernel.
        length: of each sequence, tokens.
        requests: sequences.
        parts: calls of attention in each layer.
        layers: of the model.

    Returns:
        Seconds, and the standard deviation of the time over the time.
    """
    us = attention_us(tables, k, length, requests, parts)
    most = (requests + parts - 1) // parts
    sigma = _between(tables.spread[k], _as_one(tables.kernels[k].linear, length, most))
    return 1e-6 * layers * (us + _between(tables.rest_us, length * requests)), sigma


@kernel
def first_choice(
    tables: Tables, splits: NDArray[np.int32], length: float, requests: int, layers: int, free_bytes: float
) -> tuple[int, float]:
    """What serves a batch at the least loss: the faster of those that lose equally little.

    Args:
        tables: the menu.
        splits: numbers of parts that a batch can be divided into, rising.
        length: of each sequence, tokens.
        requests: sequences.
        layers: of the model.
        free_bytes: memory that there is.

    Returns:
        Index of the action, which is kernel x len(splits) + split, and seconds; -1 and infinity where nothing can.
    """
    best, best_s, best_loss = -1, math.inf, math.inf
    for k in range(tables.kernels.shape[0]):
        loss = tables.kernels[k].loss
        if loss > best_loss:
            continue
        for j in range(splits.shape[0]):
            parts = splits[j]
            if parts > requests or attention_bytes(tables, k, length, requests, parts) > free_bytes:
                continue
            seconds, _ = step_s(tables, k, length, requests, parts, layers)
            if seconds < math.inf and (loss < best_loss or seconds < best_s):
                best, best_s, best_loss = k * splits.shape[0] + j, seconds, loss
    return best, best_s
