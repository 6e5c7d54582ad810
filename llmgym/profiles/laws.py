"""Cost laws: small formulas fitted to measured kernels, and their values on the knots of a `StepCost`.

All kernel laws are smooth rooflines, t = (floor^p + work^p)^(1/p): a floor that small calls pay, work that
grows with bytes and operations, and `p`, how sharp the corner between them is. `laws.json` of a profile holds
their parameters:

- `gemm`: (t0^p + (bytes/B)^p + (flops/F)^p)^(1/p) for each product [rows, k] x [k, n] in `gemms`;
- `floor_linear`: (t0^p + (per_token n)^p)^(1/p);
- `all_reduce`: (alpha^p + (bytes/B)^p)^(1/p), bytes = bytes_per_token n;
- `stream`: bytes_per_token n / B, work bound by memory bandwidth;
- `chunk`: (t0^p + (flops/F + io/B + cached/C)^p)^(1/p), flops = flops_per_pair chunk (context + chunk/2), io
  and cached bytes proportional to chunk and to context: attention of a prefill chunk;
- `decode`: (t0^p + (per_kv_token batch kv + per_sequence batch)^p)^(1/p);
- `affine`: base + per_sequence n, host time;
- `by_sequences`: host time at some numbers of sequences, linear between them and constant beyond;
- `launch`: base, what the host takes to launch the kernels of a step of more than `above_tokens` tokens one by one, as an
  engine does whose largest CUDA graph has so many: with the host time of the other laws, the shortest that such a step takes;
- `floor`: base, the same of a step with a prompt and no more tokens, which is several graphs with work of the host between them.

With `ahead` in `launch`, an engine that plans a step while the one before runs has begun to launch it by then, so both count
from the plan on; where nothing is known of plans, as in the cost of a single step, they count in full.

- `clock`: an option of the dense laws may say that its clock follows the load: its other laws are those of steady load, the
  option `cool` is that of a device that was idle, and it goes from one to the other in `settle_ms`, under steps of more than
  `above_tokens` tokens. A replay follows it; the cost of a single step is that of steady load.

Each is multiplied by `count`, the calls of one step. Times in the parameters are ms, rates are per ms.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.errors import ProfileError
from llmgym.profiles.cost import (
    CONSTANT,
    LINEAR,
    STAIRCASE,
    Axes,
    Clock,
    Launches,
    Range,
    StepCost,
    axes,
    scalar_cost,
    table_cost,
)

Floats = NDArray[np.float64]
Law = Mapping[str, Any]

MAX_TOKENS = 16_384
"""Tokens of one step up to which dense time is stored for every count."""
MAX_SEQUENCES = 2_048
"""Sequences of one step up to which host time is stored for every count."""

SCALAR_KINDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "constant": (CONSTANT, ("c0_s",)),
    "linear": (LINEAR, ("c0_s", "c_kv_s", "c_tok_s")),
    "staircase": (STAIRCASE, ("c0_s", "tile_s", "tile_tokens")),
}
"""Kinds without tables and their parameters (s, s per token, tokens)."""


def _smooth(p: float, *parts: Floats | float) -> Floats:
    total = np.zeros(())
    for part in parts:
        total = total + np.asarray(part, np.float64) ** p
    result: Floats = total ** (1.0 / p)
    return result


def _gemm(law: Law, tokens: Floats) -> Floats:
    rows = np.minimum(tokens, law["rows_to"]) if "rows_to" in law else tokens
    total = np.zeros_like(tokens)
    for _, n, k in law["gemms"]:
        moved, flops = 2.0 * (rows * k + n * k + rows * n), 2.0 * rows * n * k
        total += _smooth(law["p"], law["t0_ms"], moved / law["bytes_per_ms"], flops / law["flops_per_ms"])
    return total


def _floor_linear(law: Law, tokens: Floats) -> Floats:
    return _smooth(law["p"], law["t0_ms"], law["per_token_ms"] * tokens)


def _all_reduce(law: Law, tokens: Floats) -> Floats:
    return _smooth(law["p"], law["alpha_ms"], law["bytes_per_token"] * tokens / law["bytes_per_ms"])


def _stream(law: Law, tokens: Floats) -> Floats:
    result: Floats = law["bytes_per_token"] * tokens / law["bytes_per_ms"]
    return result


def _chunk(law: Law, chunk: Floats, context: Floats) -> Floats:
    work = law["flops_per_pair"] * chunk * (context + chunk / 2) / law["flops_per_ms"]
    work = work + law["io_bytes_per_token"] * chunk / law["io_bytes_per_ms"]
    work = work + law["kv_bytes_per_token"] * context / law["kv_bytes_per_ms"]
    return _smooth(law["p"], law["t0_ms"], work)


def _decode(law: Law, batch: Floats, kv: Floats) -> Floats:
    return _smooth(
        law["p"], law["t0_ms"], law["per_kv_token_ms"] * batch * kv + law["per_sequence_ms"] * batch
    )


def _affine(law: Law, sequences: Floats) -> Floats:
    result: Floats = law["base_ms"] + law["per_sequence_ms"] * sequences
    return result


def _by_sequences(law: Law, sequences: Floats) -> Floats:
    result: Floats = np.interp(sequences, law["sequences"], law["knots_ms"])
    return result


def _constant(law: Law, sequences: Floats) -> Floats:
    return np.full_like(sequences, law["base_ms"])


_Formula = Callable[..., Floats]
_LAWS: dict[str, dict[str, tuple[_Formula, tuple[str, ...]]]] = {
    "dense": {
        "gemm": (_gemm, ("t0_ms", "bytes_per_ms", "flops_per_ms", "p", "gemms")),
        "floor_linear": (_floor_linear, ("t0_ms", "per_token_ms", "p")),
        "all_reduce": (_all_reduce, ("alpha_ms", "bytes_per_ms", "p", "bytes_per_token")),
        "stream": (_stream, ("bytes_per_token", "bytes_per_ms")),
    },
    "prefill_attention": {
        "chunk": (
            _chunk,
            (
                "t0_ms",
                "flops_per_ms",
                "io_bytes_per_ms",
                "kv_bytes_per_ms",
                "p",
                "flops_per_pair",
                "io_bytes_per_token",
                "kv_bytes_per_token",
            ),
        ),
    },
    "decode_attention": {"decode": (_decode, ("t0_ms", "per_kv_token_ms", "per_sequence_ms", "p"))},
    "host": {
        "affine": (_affine, ("base_ms", "per_sequence_ms")),
        "by_sequences": (_by_sequences, ("sequences", "knots_ms")),
        "launch": (_constant, ("base_ms", "above_tokens")),
        "floor": (_constant, ("base_ms",)),
    },
}
_MAY_BE_ZERO = frozenset({"per_sequence_ms", "base_ms", "c_kv_s", "c_tok_s", "kv_bytes_per_token"})


def number(value: object, where: str, *, zero: bool = False) -> float:
    """Check that a value of a profile is a finite number above 0.

    Args:
        value: what the file has.
        where: file and field; the message starts with it.
        zero: 0 is allowed too.

    Returns:
        `value` as a float.

    Raises:
        ProfileError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ProfileError(f"{where} is {value!r}; expected a finite number")
    if value < 0 or (value == 0 and not zero):
        raise ProfileError(f"{where} is {value!r}; expected a number {'>= 0' if zero else '> 0'}")
    return float(value)


def _seconds(part: str, terms: object, where: str, *variables: Floats) -> Floats:
    if not isinstance(terms, Sequence) or isinstance(terms, str) or not terms:
        raise ProfileError(f"{where}: field {part!r} must be a list of one or more laws, got {terms!r}")
    total = np.zeros(np.broadcast_shapes(*(variable.shape for variable in variables)))
    for at, term in enumerate(terms):
        here = f"{where}: {part}[{at}]"
        if not isinstance(term, Mapping) or term.get("law") not in _LAWS[part]:
            raise ProfileError(f"{here} must name a law, one of {sorted(_LAWS[part])}; got {term!r}")
        formula, fields = _LAWS[part][term["law"]]
        for field in (*fields, "count"):
            if field not in term:
                raise ProfileError(f"{here}: field {field!r} is missing")
            if field == "gemms":
                for gemm in term[field]:
                    number(gemm[1], f"{here}: n of {gemm[0]!r}")
                    number(gemm[2], f"{here}: k of {gemm[0]!r}")
            elif field == "knots_ms":
                _check_knots(term["sequences"], term[field], here)
            elif field != "sequences":
                number(term[field], f"{here}: field {field!r}", zero=field in _MAY_BE_ZERO)
        total += term["count"] * formula(term, *variables) * 1e-3
    return total


def _check_knots(sequences: object, knots_ms: object, where: str) -> None:
    for name, values in (("sequences", sequences), ("knots_ms", knots_ms)):
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise ProfileError(f"{where}: field {name!r} is {values!r}; expected a list of numbers")
        for at, value in enumerate(values):
            number(value, f"{where}: {name}[{at}]", zero=name == "knots_ms")
    assert isinstance(sequences, Sequence) and isinstance(knots_ms, Sequence)
    if len(sequences) != len(knots_ms) or any(a >= b for a, b in itertools.pairwise(sequences)):
        raise ProfileError(
            f"{where}: field 'sequences' is {sequences!r}; expected {len(knots_ms)} numbers, one for each of knots_ms, that grow"
        )


def _launches(terms: list[Law], host: str, where: str) -> Launches:
    """The laws `launch` and `floor` of a host option."""
    found: dict[str, Law] = {}
    for term in terms:
        if term["law"] in found:
            several = sum(one["law"] == term["law"] for one in terms)
            raise ProfileError(
                f"{where}: host option {host!r} has {several} laws {term['law']!r}; expected one at most"
            )
        found[term["law"]] = term
    if not found:
        return Launches()
    if "launch" not in found:
        raise ProfileError(f"{where}: host option {host!r} has a law 'floor'; expected a law 'launch' too")
    ahead = found["launch"].get("ahead", False)
    if not isinstance(ahead, bool):
        raise ProfileError(
            f"{where}: host option {host!r}: field 'ahead' is {ahead!r}; expected true or false"
        )
    times = {name: float(_seconds("host", [term], where, np.ones(1))[0]) for name, term in found.items()}
    return Launches(int(found["launch"]["above_tokens"]), times["launch"], times.get("floor", 0.0), ahead)


def option(laws: Law, part: str, name: str, where: str) -> object:
    """Find the terms of a part under one of its options; a part without options has only 'default'.

    Args:
        laws: content of `laws.json`.
        part: a part with options, such as `dense`.
        name: of the option.
        where: the file they come from, for messages.

    Returns:
        The terms, as the file has them: not checked.

    Raises:
        ProfileError: the part is missing, or has no such option.
    """
    choices = laws.get(part)
    if not isinstance(choices, Mapping) or not choices:
        raise ProfileError(f"{where}: field {part!r} is missing or is not a table of options with laws")
    if name not in choices:
        raise ProfileError(f"{where}: {part} has no option {name!r}; it has {sorted(choices)}")
    return choices[name]


def _range(laws: Law, where: str) -> Range:
    measured = laws.get("measured")
    if not isinstance(measured, Mapping):
        raise ProfileError(f"{where}: field 'measured' (the ranges the laws were fitted on) is missing")
    pairs = {}
    for name in Range._fields[:-1]:
        pair = measured.get(name)
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise ProfileError(f"{where}: measured.{name} must be [first, last], got {pair!r}")
        low = number(pair[0], f"{where}: measured.{name}[0]", zero=name == "context")
        pairs[name] = (low, number(pair[1], f"{where}: measured.{name}[1]"))
        if low >= pairs[name][1]:
            raise ProfileError(f"{where}: measured.{name} is {pair!r}; expected first < last")
    return Range(**pairs, kv_total=number(measured.get("kv_total"), f"{where}: measured.kv_total"))


def law_range(laws: Law, where: str) -> tuple[Range, Axes]:
    """The fitted ranges of `laws` and the knots that enclose them."""
    measured = _range(laws, where)
    return measured, axes(measured)


def law_cost(laws: Law, where: str, dense: str = "default", host: str = "default") -> StepCost:
    """The compiled cost of the laws of a profile.

    Args:
        laws: content of `laws.json`.
        where: the file they come from, for messages.
        dense: option of the dense laws.
        host: option of the host laws.

    Returns:
        The cost.

    Raises:
        ProfileError: something is missing, is not a number, or has no such option.
    """
    kind = laws.get("kind")
    if kind in SCALAR_KINDS:
        code, fields = SCALAR_KINDS[kind]
        values = {}
        for field in fields:
            if field not in laws:
                raise ProfileError(f"{where}: field {field!r} is missing")
            values[field] = number(laws[field], f"{where}: field {field!r}", zero=field != "tile_tokens")
        return scalar_cost(code, **values)
    if kind != "components":
        raise ProfileError(
            f"{where}: field 'kind' is {kind!r}; expected 'components' or one of {sorted(SCALAR_KINDS)}"
        )
    measured, knots = law_range(laws, where)
    tokens = np.arange(1.0, min(MAX_TOKENS, int(measured.tokens[1])) + 1)
    sequences = np.arange(1.0, MAX_SEQUENCES + 1)
    dense_time = dense_law_s(laws, where, tokens, dense)
    every: Any = option(laws, "host", host, where)
    launches: list[Law] = []
    if isinstance(every, Sequence):
        launches = [
            law for law in every if isinstance(law, Mapping) and law.get("law") in ("launch", "floor")
        ]
        every = [law for law in every if law not in launches]
    host_time = _seconds("host", every, where, sequences)
    return table_cost(
        dense=np.concatenate([[0.0], dense_time]),
        prefill=prefill_law_s(laws, where, knots.chunk[:, None], knots.context[None, :]),
        decode=decode_law_s(laws, where, knots.batch[:, None], knots.kv[None, :]),
        host=np.concatenate([[0.0], host_time]),
        knots=knots,
        measured=measured,
        launch=_launches(launches, host, where),
        clock=_clock(laws, where, tokens, dense),
    )


def dense_law_s(laws: Law, where: str, tokens: Floats, dense: str = "default") -> Floats:
    """Time of the dense part of a step, straight from the laws.

    Args:
        laws: content of `laws.json`.
        where: the file they come from, for messages.
        tokens: of the step, float64 of any shape.
        dense: option of the dense laws.

    Returns:
        Seconds, float64 of the shape of `tokens`.

    Raises:
        ProfileError: something is missing, is not a number, or has no such option.
    """
    terms: Any = option(laws, "dense", dense, where)
    if isinstance(terms, Sequence):
        terms = [law for law in terms if not _is_clock(law)]
    return _seconds("dense", terms, where, tokens)


def _is_clock(law: object) -> bool:
    return isinstance(law, Mapping) and law.get("law") == "clock"


def _clock(laws: Law, where: str, tokens: Floats, dense: str) -> Clock | None:
    """The law `clock` of a dense option, with the dense time of the option that it names as cool."""
    terms: Any = option(laws, "dense", dense, where)
    found = [law for law in terms if _is_clock(law)]
    if not found:
        return None
    for field in ("cool", "settle_ms", "above_tokens"):
        if len(found) > 1 or field not in found[0]:
            raise ProfileError(
                f"{where}: dense option {dense!r} has {len(found)} laws 'clock' or one without {field!r}"
            )
    settle_ms, above = (
        number(found[0][field], f"{where}: dense option {dense!r}: field {field!r} of 'clock'")
        for field in ("settle_ms", "above_tokens")
    )
    cool = dense_law_s(laws, where, tokens, found[0]["cool"])
    return Clock(np.concatenate([[0.0], cool]), 1e-3 * settle_ms, int(above))


def prefill_law_s(laws: Law, where: str, chunk: Floats, context: Floats) -> Floats:
    """Time of prefill attention of all layers, straight from the laws.

    Args:
        laws: content of `laws.json`.
        where: the file they come from, for messages.
        chunk: tokens of the chunk, float64.
        context: tokens cached already, float64; broadcast with `chunk`.

    Returns:
        Seconds, float64 of the broadcast shape.

    Raises:
        ProfileError: something is missing, or is not a number.
    """
    return _seconds("prefill_attention", laws.get("prefill_attention"), where, chunk, context)


def decode_law_s(laws: Law, where: str, batch: Floats, kv: Floats) -> Floats:
    """Time of decode attention of all layers, straight from the laws.

    Args:
        laws: content of `laws.json`.
        where: the file they come from, for messages.
        batch: sequences, float64.
        kv: cached tokens of each sequence, float64; broadcast with `batch`.

    Returns:
        Seconds, float64 of the broadcast shape.

    Raises:
        ProfileError: something is missing, or is not a number.
    """
    return _seconds("decode_attention", laws.get("decode_attention"), where, batch, kv)
