"""The compiled cost of an engine step: a few arrays and kernels that read them in nanoseconds.

A `StepCost` is what a simulation holds; a `Profile` (see `llmgym.profiles.profile`) makes one. Four kinds share the type, so an
environment is compiled once whichever profile it runs on:

- constant: every step takes `c0_s`;
- linear: `c0_s + c_kv_s * resident_tokens + c_tok_s * prefill_tokens`;
- staircase: `c0_s + tile_s * ceil(batch_tokens / tile_tokens)`, batch_tokens = prefill_tokens + decodes;
- tables: dense work by token count, attention of a prefill chunk by (chunk, context), attention of the decodes by (batch, cached
  tokens a sequence) and host time by sequence count, added up. Where it is known, what decodes cost beside a prefill chunk is a
  grid of its own (in one kernel the two are not the sum of each alone), and a step that the host launches in pieces takes no less
  than that: one of more tokens than the engine's largest CUDA graph, kernel by kernel, or one with a prompt, between the graphs.

Dense and host time are stored for every whole count, so a lookup is one load. Attention is stored as the
natural logarithm of seconds on axes that are uniform in log2, so a cell is found without a search, and is
bilinear in log-log space. Outside the stored range the slope at the nearest edge is kept; `outside` tells
whether a step left the measured range.

The sum of parts is the additive model of Vidur (Agrawal et al., MLSys 2024; https://arxiv.org/abs/2405.05465).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.records import Record, Records, float64, int32, int64

CONSTANT, LINEAR, STAIRCASE, TABLES = 0, 1, 2, 3
NEVER_TOKENS = 2**62
"""More tokens than any step has."""


class Head(Record):
    """Scalars of a `StepCost`."""

    kind: int = int64("`CONSTANT`, `LINEAR`, `STAIRCASE` or `TABLES`.")
    c0_s: float = float64("Constant of a step of the kinds without tables, seconds.")
    c_kv_s: float = float64("Time for each resident token of `LINEAR`, seconds.")
    c_tok_s: float = float64("Time for each prompt token of `LINEAR`, seconds.")
    tile_s: float = float64("Time of a tile of `STAIRCASE`, seconds.")
    tile_tokens: float = float64("Tokens of a tile of `STAIRCASE`.")
    dense_max: int = int64("Most tokens in the table of dense time.")
    dense_slope: float = float64("Exponent with which dense time grows beyond that table.")
    host_at: int = int64("Where host time begins in `lines`.")
    host_max: int = int64("Most sequences in the table of host time.")
    host_slope_s: float = float64("Host time of each further sequence, seconds.")
    launch_above: int = int64(
        "A step of more tokens takes `launch_s` and the host time of its sequences, or more."
    )
    launch_s: float = float64(
        "Time that the host needs to launch the kernels of such a step one by one, seconds."
    )
    floor_s: float = float64(
        "The same of a step with a prompt and no more tokens than that, seconds; 0 if it is none."
    )
    settle_s: float = float64("Time in which the clock follows the load, seconds; 0: always steady load.")
    heating_above: int = int64("Steps of more tokens are the load that the clock follows, and follow it.")
    cool_at: int = int64("Where dense time at the clock of single calls begins in `lines`.")
    launch_ahead: int = int32("1 if launches begin when a step is planned, maybe while another one runs.")
    chunk_low: float = float64("First knot of the chunk, log2 of tokens.")
    chunk_knots: int = int64("Knots of the chunk.")
    context_low: float = float64("Second knot of the context, log2 of tokens; the first one is 0 tokens.")
    context_step: float = float64("Width of the first cell of the context, tokens; it is linear in tokens.")
    context_knots: int = int64("Knots of the context.")
    decode_at: int = int64("Where the grid of decode attention begins in `grids`.")
    beside_at: int = int64(
        "Where the grid of decode attention beside a chunk begins; -1 where it is that of decodes alone."
    )
    batch_low: float = float64("First knot of the batch, log2 of sequences.")
    batch_knots: int = int64("Knots of the batch.")
    kv_low: float = float64("First knot of cached tokens of a sequence, log2.")
    kv_knots: int = int64("Knots of cached tokens of a sequence.")
    per_octave: float = float64("Knots for each doubling.")
    tokens_from: float = float64("Fewest tokens of a step that were measured.")
    tokens_to: float = float64("Most tokens of a step that were measured.")
    chunk_from: float = float64("Smallest chunk that was measured, tokens.")
    chunk_to: float = float64("Largest chunk that was measured, tokens.")
    context_to: float = float64("Largest context that was measured, tokens.")
    batch_from: float = float64("Fewest decodes that were measured.")
    batch_to: float = float64("Most decodes that were measured.")
    kv_from: float = float64("Fewest cached tokens of a sequence that were measured.")
    kv_to: float = float64("Most cached tokens of a sequence that were measured.")
    kv_total_to: float = float64("Most cached tokens of all decodes that were measured.")


class StepCost(NamedTuple):
    """What a step costs, as arrays that compiled code reads. Frozen; shared by all lanes.

    Attributes:
        head: scalars, [1].
        lines: float32 seconds; dense time at 0..dense_max tokens, then host time at 0..host_max sequences, then maybe dense time
            of a device that was idle, at 0..dense_max tokens.
        grids: float32 ln(seconds); prefill attention [chunk_knots, context_knots], then decode attention
            [batch_knots, kv_knots], then maybe decode attention beside a chunk, of the same shape; all flattened row by row.
    """

    head: Records[Head]
    lines: NDArray[np.float32]
    grids: NDArray[np.float32]


@kernel(inline=True)
def _read(grids: NDArray[np.float32], at: int, rows: int, columns: int, row: float, column: float) -> float:
    """Exp of the bilinear value at (row, column), in knots; beyond an edge the slope at that edge is kept."""
    i = min(max(int(row), 0), rows - 2)
    j = min(max(int(column), 0), columns - 2)
    u = row - i
    v = column - j
    first = at + i * columns + j
    f00 = grids[first]
    f01 = grids[first + 1]
    f10 = grids[first + columns]
    f11 = grids[first + columns + 1]
    u_in = min(max(u, 0.0), 1.0)
    v_in = min(max(v, 0.0), 1.0)
    low = f00 + v_in * (f01 - f00)
    high = f10 + v_in * (f11 - f10)
    along_column = (1.0 - u_in) * (f01 - f00) + u_in * (f11 - f10)
    return math.exp(low + u * (high - low) + (v - v_in) * along_column)


@kernel(inline=True)
def dense_s(cost: StepCost, tokens: int) -> float:
    """All work of a forward pass over `tokens` tokens but attention: every layer, collectives and output head.

    Returns:
        Seconds; 0 without tokens, and for kinds other than tables.
    """
    head = cost.head[0]
    if head.kind != TABLES or tokens <= 0:
        return 0.0
    if tokens <= head.dense_max:
        return float(cost.lines[tokens])
    return float(cost.lines[head.dense_max] * math.exp(head.dense_slope * math.log(tokens / head.dense_max)))


@kernel(inline=True)
def cooler_s(cost: StepCost, tokens: int) -> float:
    """By how much the dense work of a step is shorter on a device that was idle than under steady load.

    Returns:
        Seconds; 0 where the clock does not follow the load, for steps that do not heat, and for more tokens than are stored.
    """
    head = cost.head[0]
    if head.settle_s <= 0.0 or tokens <= head.heating_above or tokens > head.dense_max:
        return 0.0
    return max(float(cost.lines[tokens]) - float(cost.lines[head.cool_at + tokens]), 0.0)


@kernel(inline=True)
def prefill_attention_s(cost: StepCost, chunk: int, context: int) -> float:
    """Time of the attention of all layers for one prefill chunk.

    Args:
        cost: cost of a step.
        chunk: tokens of the chunk.
        context: tokens of its request that are cached already.

    Returns:
        Seconds; 0 without a chunk, and for kinds other than tables.
    """
    head = cost.head[0]
    if head.kind != TABLES or chunk <= 0:
        return 0.0
    if context < head.context_step:
        column = max(context, 0) / head.context_step
    else:
        column = 1.0 + (math.log2(context) - head.context_low) * head.per_octave
    row = (math.log2(chunk) - head.chunk_low) * head.per_octave
    return _read(cost.grids, 0, head.chunk_knots, head.context_knots, row, column)


@kernel(inline=True)
def decode_attention_s(cost: StepCost, batch: int, kv_tokens: int) -> float:
    """Time of the attention of all layers for the decodes of one step.

    Args:
        cost: cost of a step.
        batch: decode tokens, one a sequence.
        kv_tokens: cached tokens that all of them read in total.

    Returns:
        Seconds; 0 without decodes, and for kinds other than tables.
    """
    head = cost.head[0]
    if head.kind != TABLES or batch <= 0:
        return 0.0
    sequences = math.log2(batch)
    each = math.log2(max(kv_tokens, batch)) - sequences
    row = (sequences - head.batch_low) * head.per_octave
    column = (each - head.kv_low) * head.per_octave
    return _read(cost.grids, head.decode_at, head.batch_knots, head.kv_knots, row, column)


@kernel(inline=True)
def host_s(cost: StepCost, sequences: int) -> float:
    """Host time of one engine step with `sequences` sequences in it (scheduling, inputs, sampling, launch
    gaps).

    Returns:
        Seconds; 0 without sequences, and for kinds other than tables.
    """
    head = cost.head[0]
    if head.kind != TABLES or sequences <= 0:
        return 0.0
    if sequences <= head.host_max:
        return float(cost.lines[head.host_at + sequences])
    return float(cost.lines[head.host_at + head.host_max] + (sequences - head.host_max) * head.host_slope_s)


@kernel(inline=True)
def step_time_s(
    cost: StepCost,
    prefill_tokens: int,
    prefill_attention_s: float,
    decodes: int,
    decode_kv_tokens: int,
    sequences: int,
    resident_tokens: int,
) -> float:
    """Duration of one engine step.

    Kinds other than tables ignore the arguments their law does not name, and charge their constant to an empty step too: a caller
    that has nothing to run should not start a step.

    Args:
        cost: the compiled cost.
        prefill_tokens: prompt tokens processed in this step, over all chunks.
        prefill_attention_s: sum of `prefill_attention_s` over the chunks of this step, s.
        decodes: sequences that decode one token in this step.
        decode_kv_tokens: cached tokens those decodes read, in total.
        sequences: sequences in the step (decodes and chunks).
        resident_tokens: tokens held in the KV cache during the step.

    Returns:
        Seconds.
    """
    # The parts are written out rather than called: numba counts references at each call that takes arrays, which would double the
    # time of a lookup. A test holds the two ways equal.
    head = cost.head[0]
    seconds = float(head.c0_s)
    if head.kind == TABLES:
        tokens = prefill_tokens + decodes
        tokens_in = min(max(tokens, 0), head.dense_max)
        sequences_in = min(max(sequences, 0), head.host_max)
        seconds = float(cost.lines[tokens_in])
        if tokens > tokens_in:
            seconds *= math.exp(head.dense_slope * math.log(tokens / tokens_in))
        seconds += prefill_attention_s + cost.lines[head.host_at + sequences_in]
        if sequences > sequences_in:
            seconds += (sequences - sequences_in) * head.host_slope_s
        decode_at = head.decode_at
        if prefill_tokens > 0 and head.beside_at >= 0:
            decode_at = head.beside_at
        if decodes > 0:
            batch = math.log2(decodes)
            each = math.log2(max(decode_kv_tokens, decodes)) - batch
            row = (batch - head.batch_low) * head.per_octave
            column = (each - head.kv_low) * head.per_octave
            seconds += _read(cost.grids, decode_at, head.batch_knots, head.kv_knots, row, column)
        launch_s = 0.0
        if tokens > head.launch_above:
            launch_s = head.launch_s
        elif prefill_tokens > 0:
            launch_s = head.floor_s
        if launch_s > 0.0:
            launch_s += cost.lines[head.host_at + sequences_in]
            if sequences > sequences_in:
                launch_s += (sequences - sequences_in) * head.host_slope_s
            seconds = max(seconds, launch_s)
    elif head.kind == LINEAR:
        seconds += head.c_kv_s * resident_tokens + head.c_tok_s * prefill_tokens
    elif head.kind == STAIRCASE:
        seconds += head.tile_s * math.ceil((prefill_tokens + decodes) / head.tile_tokens)
    return seconds


@kernel(inline=True)
def outside(cost: StepCost, tokens: int, chunk: int, context: int, batch: int, kv: int) -> int:
    """Whether any part of a step lies outside the range the tables were measured in.

    Args:
        cost: the compiled cost.
        tokens: tokens of the forward pass (prefill and decode); 0 skips the check.
        chunk: tokens of one prefill chunk; 0 skips the check of chunk and context.
        context: tokens cached before that chunk.
        batch: decodes; 0 skips the check of batch and kv.
        kv: cached tokens the decodes read in total; the mean a decode is what is checked.

    Returns:
        1 if some value is an extrapolation, else 0 (always 0 for kinds other than tables).
    """
    head = cost.head[0]
    if head.kind != TABLES:
        return 0
    if tokens > 0 and (tokens < head.tokens_from or tokens > head.tokens_to):
        return 1
    if chunk > 0 and (chunk < head.chunk_from or chunk > head.chunk_to or context > head.context_to):
        return 1
    if batch > 0:
        if batch < head.batch_from or batch > head.batch_to:
            return 1
        if kv < batch * head.kv_from or kv > batch * head.kv_to or kv > head.kv_total_to:
            return 1
    return 0


def scalar_cost(
    kind: int,
    c0_s: float,
    c_kv_s: float = 0.0,
    c_tok_s: float = 0.0,
    tile_s: float = 0.0,
    tile_tokens: float = 1.0,
) -> StepCost:
    """A `StepCost` of a kind without tables (CONSTANT, LINEAR or STAIRCASE).

    Args:
        kind: CONSTANT, LINEAR or STAIRCASE.
        c0_s: floor of a step, s.
        c_kv_s: s for each resident token, of LINEAR.
        c_tok_s: s for each prompt token, of LINEAR.
        tile_s: s for each tile, of STAIRCASE.
        tile_tokens: tokens of a tile, of STAIRCASE.

    Returns:
        The cost.
    """
    head = Head.packed(
        kind=kind,
        c0_s=c0_s,
        c_kv_s=c_kv_s,
        c_tok_s=c_tok_s,
        tile_s=tile_s,
        tile_tokens=tile_tokens,
        beside_at=-1,
        launch_above=NEVER_TOKENS,
    )
    return frozen(head, np.zeros(1, np.float32), np.zeros(4, np.float32))


class Launches(NamedTuple):
    """What the host takes to launch a step in pieces.

    Attributes:
        above_tokens: a step of more tokens is no CUDA graph.
        launch_s: its launches, s.
        floor_s: those of a step with a prompt and no more tokens, s; 0 for none.
        ahead: whether they begin when the step is planned; a replay with asynchronous scheduling then counts from there.
    """

    above_tokens: int = NEVER_TOKENS
    launch_s: float = 0.0
    floor_s: float = 0.0
    ahead: bool = False


NO_LAUNCHES = Launches()


class Clock(NamedTuple):
    """How the clock of a device follows what it does.

    Attributes:
        cool: dense time of a device that was idle, seconds at 0..n tokens, as `dense` of `table_cost` is of one under steady load.
        settle_s: time in which it goes 1 - 1/e of the way from one to the other, s.
        above_tokens: steps of more tokens are load, and they alone depend on the clock.
    """

    cool: NDArray[np.float64]
    settle_s: float
    above_tokens: int


class Axes(NamedTuple):
    """Where the tables of a `StepCost` have their knots; all in tokens or sequences.

    Attributes:
        chunk: powers of 2**(1/per_octave).
        context: 0, then such powers.
        batch: such powers.
        kv: such powers; cached tokens of one sequence.
        per_octave: knots for each doubling.
    """

    chunk: NDArray[np.float64]
    context: NDArray[np.float64]
    batch: NDArray[np.float64]
    kv: NDArray[np.float64]
    per_octave: int


class Range(NamedTuple):
    """What was measured, in tokens or sequences: the first and the last value of each variable.

    `kv` is cached tokens of one sequence, `kv_total` the most that one call read over all its sequences (a
    large batch is never measured with a long context: memory ends before).
    """

    tokens: tuple[float, float]
    chunk: tuple[float, float]
    context: tuple[float, float]
    batch: tuple[float, float]
    kv: tuple[float, float]
    kv_total: float


def _octaves(low: float, high: float, per_octave: int) -> NDArray[np.float64]:
    """Powers of 2 with `per_octave` knots a doubling that enclose low..high; whole powers where the ends are."""
    first, last = math.floor(math.log2(low) + 1e-9), math.ceil(math.log2(high) - 1e-9)
    return np.exp2(np.linspace(first, max(last, first + 1), (max(last, first + 1) - first) * per_octave + 1))


def axes(measured: Range, per_octave: int = 4) -> Axes:
    """Knots that enclose what was measured, `per_octave` of them for each doubling."""
    context = _octaves(
        min(64.0, max(measured.context[1] / 2, 1.0)), max(measured.context[1], 2.0), per_octave
    )
    return Axes(
        chunk=_octaves(*measured.chunk, per_octave),
        context=np.concatenate([[0.0], context]),
        batch=_octaves(*measured.batch, per_octave),
        kv=_octaves(*measured.kv, per_octave),
        per_octave=per_octave,
    )


def table_cost(
    dense: NDArray[np.float64],
    prefill: NDArray[np.float64],
    decode: NDArray[np.float64],
    host: NDArray[np.float64],
    knots: Axes,
    measured: Range,
    beside: NDArray[np.float64] | None = None,
    launch: Launches = NO_LAUNCHES,
    clock: Clock | None = None,
) -> StepCost:
    """A `StepCost` of tables.

    Args:
        dense: seconds at 0..n tokens, shape [n + 1].
        prefill: seconds at the knots, shape [chunk, context].
        decode: seconds at the knots, shape [batch, kv].
        host: seconds at 0..m sequences, shape [m + 1].
        knots: where the knots are.
        measured: what `outside` compares with.
        beside: seconds of decode attention beside a prefill chunk, as `decode`; None: as without one.
        launch: what the host takes to launch a step in pieces.
        clock: how the clock follows the load; None: it does not.

    Returns:
        The cost.
    """
    last = len(dense) - 1
    half = max(last // 2, 1)
    places: dict[str, float] = {}
    for name, knot in (("chunk", knots.chunk), ("batch", knots.batch), ("kv", knots.kv)):
        places[f"{name}_low"], places[f"{name}_knots"] = math.log2(knot[0]), len(knot)
    for name in ("tokens", "chunk", "batch", "kv"):
        places[f"{name}_from"], places[f"{name}_to"] = getattr(measured, name)
    head = Head.packed(
        **places,
        kind=TABLES,
        per_octave=knots.per_octave,
        dense_max=last,
        dense_slope=math.log(dense[last] / dense[half]) / math.log(last / half),
        host_at=len(dense),
        host_max=len(host) - 1,
        host_slope_s=host[-1] - host[-2],
        context_low=math.log2(knots.context[1]),
        context_step=knots.context[1],
        context_knots=len(knots.context),
        context_to=measured.context[1],
        decode_at=prefill.size,
        kv_total_to=measured.kv_total,
        launch_above=launch.above_tokens,
        launch_s=launch.launch_s,
        floor_s=launch.floor_s,
        launch_ahead=int(launch.ahead),
        settle_s=0.0 if clock is None else clock.settle_s,
        heating_above=NEVER_TOKENS if clock is None else clock.above_tokens,
        cool_at=len(dense) + len(host),
        beside_at=-1 if beside is None else prefill.size + decode.size,
    )
    lines = np.concatenate([dense, host, [] if clock is None else clock.cool]).astype(np.float32)
    grids = [prefill, decode] if beside is None else [prefill, decode, beside]
    return frozen(head, lines, np.log(np.concatenate([grid.ravel() for grid in grids])).astype(np.float32))


def frozen(head: Records[Head], lines: NDArray[np.float32], grids: NDArray[np.float32]) -> StepCost:
    """A `StepCost` of these arrays, which nobody can change any more; see there for the shapes."""
    for array in (head, lines, grids):
        array.setflags(write=False)
    return StepCost(head, lines, grids)
