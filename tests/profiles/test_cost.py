"""The compiled step cost: values, edges, monotonicity, and the four kinds."""

import math
from dataclasses import replace

import numba
import numpy as np
import pytest

from llmgym import profiles
from llmgym.errors import ProfileError, UnknownName
from llmgym.profiles import cost as kernels
from llmgym.profiles import laws
from llmgym.profiles.cost_changes import launches_ahead, slower

# Those made of laws; what is measured has a test of its own, as it is not smooth.
SHIPPED = [n for n in profiles.names() if not n.startswith("paper/") and not n.endswith("-measured")]


@numba.njit
def dense_many(cost, tokens, out):
    for i in range(tokens.size):
        out[i] = kernels.dense_s(cost, tokens[i])


@numba.njit
def host_many(cost, sequences, out):
    for i in range(sequences.size):
        out[i] = kernels.host_s(cost, sequences[i])


@numba.njit
def prefill_many(cost, chunk, context, out):
    for i in range(chunk.size):
        for j in range(context.size):
            out[i, j] = kernels.prefill_attention_s(cost, chunk[i], context[j])


@numba.njit
def decode_many(cost, batch, each, out):
    for i in range(batch.size):
        for j in range(each.size):
            out[i, j] = kernels.decode_attention_s(cost, batch[i], batch[i] * each[j])


def dense(cost, tokens):
    out = np.empty(len(tokens))
    dense_many(cost, tokens, out)
    return out


def prefill(cost, chunk, context):
    out = np.empty((len(chunk), len(context)))
    prefill_many(cost, chunk, context, out)
    return out


def decode(cost, batch, each):
    out = np.empty((len(batch), len(each)))
    decode_many(cost, batch, each, out)
    return out


def whole(knots):
    return np.array([int(knot) for knot in knots if knot == int(knot)])


@pytest.fixture(scope="module", params=SHIPPED)
def shipped(request):
    return profiles.load(request.param)


def test_exact_at_knots(shipped):
    cost = shipped.step_cost()
    _, knots = laws.law_range(shipped.laws, "test")
    chunk, context, batch, each = (whole(axis) for axis in knots[:4])
    assert len(chunk) > 10 and 0 in context and len(batch) > 8
    law = laws.prefill_law_s(shipped.laws, "test", chunk[:, None] * 1.0, context[None, :] * 1.0)
    np.testing.assert_allclose(prefill(cost, chunk, context), law, rtol=3e-6)
    law = laws.decode_law_s(shipped.laws, "test", batch[:, None] * 1.0, each[None, :] * 1.0)
    np.testing.assert_allclose(decode(cost, batch, each), law, rtol=3e-6)
    tokens = np.arange(1, int(cost.head[0]["dense_max"]) + 1)
    law = laws.dense_law_s(shipped.laws, "test", tokens * 1.0)
    np.testing.assert_allclose(dense(cost, tokens), law, rtol=1e-6)


def test_within_one_per_cent_between_knots(shipped):
    cost = shipped.step_cost()
    measured, _ = laws.law_range(shipped.laws, "test")
    rng = np.random.default_rng(1)

    def draw(low, high, n=200):
        return np.unique(np.exp(rng.uniform(np.log(low), np.log(high), n)).astype(np.int64))

    chunk = draw(1, measured.chunk[1])
    context = np.concatenate([np.arange(0, 66), draw(64, measured.context[1])])
    law = laws.prefill_law_s(shipped.laws, "test", chunk[:, None] * 1.0, context[None, :] * 1.0)
    np.testing.assert_allclose(prefill(cost, chunk, context), law, rtol=0.01)
    batch, each = draw(1, measured.batch[1]), draw(1, measured.kv[1])
    law = laws.decode_law_s(shipped.laws, "test", batch[:, None] * 1.0, each[None, :] * 1.0)
    np.testing.assert_allclose(decode(cost, batch, each), law, rtol=0.01)


def test_monotone_over_the_whole_grid_and_beyond(shipped):
    cost = shipped.step_cost()
    head = cost.head[0]
    tokens = np.arange(0, int(head["dense_max"]) * 2)
    assert (np.diff(dense(cost, tokens)) > 0).all()
    chunk = np.unique(np.geomspace(1, head["chunk_to"] * 4, 150).astype(np.int64))
    context = np.unique(np.geomspace(70, head["context_to"] * 4, 120).astype(np.int64))
    context = np.concatenate([np.arange(0, 70), context])
    times = prefill(cost, chunk, context)
    assert (np.diff(times, axis=0) > 0).all()
    # Beyond the last chunk each context keeps its own slope, and these cross: order in context ends there.
    assert (np.diff(times[chunk <= head["chunk_to"]], axis=1) > 0).all()
    batch = np.unique(np.geomspace(1, head["batch_to"] * 4, 150).astype(np.int64))
    each = np.unique(np.geomspace(1, head["kv_to"] * 4, 200).astype(np.int64))
    times = decode(cost, batch, each)
    assert (np.diff(times, axis=0) > 0).all()
    assert (np.diff(times, axis=1) > 0).all()
    assert np.isfinite(times).all() and (times > 0).all()
    host = np.empty(4000)
    host_many(cost, np.arange(4000), host)
    assert (np.diff(host[1:]) >= 0).all() and (host[1:] > 0).all()


def test_step_is_the_sum_of_its_parts(shipped):
    cost = shipped.step_cost()
    rng = np.random.default_rng(2)
    for _ in range(300):
        tokens = int(rng.integers(0, 3)) and int(rng.integers(1, 40_000))
        decodes = int(rng.integers(0, 3)) and int(rng.integers(1, 5_000))
        context = int(rng.integers(0, 200_000))
        kv = decodes * int(rng.integers(1, 200_000))
        sequences = decodes + int(tokens > 0)
        attention = kernels.prefill_attention_s(cost, tokens, context)
        parts = (
            kernels.dense_s(cost, tokens + decodes)
            + attention
            + kernels.decode_attention_s(cost, decodes, kv)
            + kernels.host_s(cost, sequences)
        )
        step = kernels.step_time_s(cost, tokens, attention, decodes, kv, sequences, kv)
        assert step == pytest.approx(parts, rel=1e-14, abs=0)


def test_an_empty_step_of_tables_takes_no_time():
    cost = profiles.load("h100/llama-3.1-8b").step_cost()
    assert kernels.step_time_s(cost, 0, 0.0, 0, 0, 0, 10_000) == 0.0
    for kernel, arguments in (
        (kernels.dense_s, (0,)),
        (kernels.prefill_attention_s, (0, 100)),
        (kernels.decode_attention_s, (0, 0)),
        (kernels.host_s, (0,)),
    ):
        assert kernel(cost, *arguments) == 0.0


def test_extrapolation_keeps_the_edge_slope():
    cost = profiles.load("h100/llama-3.1-8b", host="vidur-2024").step_cost()
    last = int(cost.head[0]["dense_max"])
    slope = math.log(kernels.dense_s(cost, last) / kernels.dense_s(cost, last // 2)) / math.log(2)
    assert kernels.dense_s(cost, 4 * last) == pytest.approx(kernels.dense_s(cost, last) * 4**slope, rel=1e-5)
    edge, before, after = (kernels.decode_attention_s(cost, 64, 64 * 65_536 * 2**k) for k in (0, -0.25, 2))
    assert after / edge == pytest.approx((edge / before) ** 8, rel=1e-4)
    edge, before, after = (kernels.prefill_attention_s(cost, 512, 16_384 * 2**k) for k in (0, -0.25, 2))
    assert after / edge == pytest.approx((edge / before) ** 8, rel=1e-4)
    edge, after = kernels.host_s(cost, 2048), kernels.host_s(cost, 4096)
    assert after - edge == pytest.approx(2048 * (edge - kernels.host_s(cost, 2047)), rel=1e-3)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((0, 0, 0, 0, 0), 0),
        ((2048, 512, 1536, 64, 64_000), 0),
        ((32_769, 0, 0, 0, 0), 1),
        ((0, 16_385, 0, 0, 0), 1),
        ((0, 16, 16_385, 0, 0), 1),
        ((0, 0, 99_999, 0, 0), 0),
        ((0, 0, 0, 2_049, 4_098), 1),
        ((0, 0, 0, 1, 65_535), 0),
        ((0, 0, 0, 1, 65_536), 1),
        ((0, 0, 0, 512, 512 * 1023), 0),
        ((0, 0, 0, 512, 512 * 4096), 1),
        ((0, 0, 0, 8, 7), 1),
    ],
)
def test_outside_flags_what_was_not_measured(shape, expected):
    cost = profiles.load("h100/llama-3.1-8b").step_cost()
    assert kernels.outside(cost, *shape) == expected


def test_lookups_are_deterministic():
    first, second = (profiles.load("a100/qwen2.5-14b") for _ in range(2))
    assert first is not second
    for one, other in zip(first.step_cost(), second.step_cost()):
        assert one.tobytes() == other.tobytes()
    assert first.step_cost() is first.step_cost()
    values = [kernels.decode_attention_s(first.step_cost(), 37, 41_234) for _ in range(5)]
    assert len(set(values)) == 1


def test_arrays_are_read_only():
    for array in profiles.load("h100/llama-3.1-8b").step_cost():
        with pytest.raises(ValueError, match="read-only"):
            array[:] = array


def test_constant_step():
    cost = profiles.constant(0.0372).step_cost()
    assert kernels.step_time_s(cost, 0, 0.0, 0, 0, 0, 0) == 0.0372
    assert kernels.step_time_s(cost, 9000, 5.0, 77, 10**6, 99, 10**6) == 0.0372
    assert (
        kernels.dense_s(cost, 100)
        == kernels.prefill_attention_s(cost, 10, 5)
        == kernels.host_s(cost, 3)
        == 0.0
    )
    assert kernels.decode_attention_s(cost, 3, 99) == 0.0
    assert kernels.outside(cost, 10**9, 10**9, 10**9, 10**9, 1) == 0


def test_linear_step():
    cost = profiles.linear(0.0163, 1.05e-7, 7.13e-5).step_cost()
    assert kernels.step_time_s(cost, 512, 1.0, 100, 50_000, 101, 131_000) == pytest.approx(
        0.0163 + 1.05e-7 * 131_000 + 7.13e-5 * 512, rel=1e-15
    )
    assert kernels.step_time_s(cost, 0, 0.0, 0, 0, 0, 0) == 0.0163


def test_linear_law_gives_the_papers_three_step_times():
    """With mean prompt s and output o, a saturated step holds M tokens and prefills M s / E[area] of them."""
    cost = profiles.load("paper/kv-queue-linear").step_cost()
    for ratio, (prompt, output) in {"1:1": (1600, 1600), "2:1": (2133, 1066), "1:2": (1066, 2133)}.items():
        s, o = np.arange(10, prompt + 1.0), np.arange(10, output + 1.0)
        area = s.mean() * o.mean() + (o * (o + 1) / 2).mean()
        prefill_tokens = 131_000 * s.mean() / area
        step = kernels.step_time_s(cost, round(prefill_tokens), 0.0, 0, 0, 0, 131_000)
        assert step == pytest.approx(profiles.load(f"paper/kv-queue-{ratio}").laws["c0_s"], rel=0.015)


@pytest.mark.parametrize(("tokens", "tiles"), [(1, 1), (128, 1), (129, 2), (512, 4), (513, 5)])
def test_staircase_step(tokens, tiles):
    cost = profiles.load("paper/token-batch-codellama-34b").step_cost()
    for prefill_tokens in (0, tokens // 2, tokens):
        step = kernels.step_time_s(cost, prefill_tokens, 0.0, tokens - prefill_tokens, 0, 0, 0)
        assert step == pytest.approx(0.01128 + 0.03547 * tiles, rel=1e-12)


def test_all_kinds_share_one_compiled_type():
    kinds = [
        profiles.constant(0.1),
        profiles.linear(0.1, 0, 0),
        profiles.load("paper/token-batch-codellama-34b"),
    ]
    types = {numba.typeof(profile.step_cost()) for profile in [*kinds, profiles.load("l40s/qwen2.5-7b")]}
    assert len(types) == 1


def test_a_step_that_is_no_graph_takes_the_launches_or_longer() -> None:
    """The longer of device and launches, and the host time of its sequences."""
    law = profiles.load("h100/llama-3.1-8b", host="vllm-0.24")
    host = law.laws["host"]["vllm-0.24"]
    every_s, launch_s = (1e-3 * one["base_ms"] for one in host)
    bare = {**law.laws, "host": {"vllm-0.24": [{**host[0], "base_ms": 0.0}]}}
    cost, device = law.step_cost(), replace(law, laws=bare).step_cost()
    step = kernels.step_time_s
    for prompt, decodes in ((0, 8), (64, 0), (512, 0), (500, 12), (513, 0), (505, 8), (600, 100), (8192, 0)):
        shape = (prompt, 0.0, decodes, 1000 * decodes, decodes + (prompt > 0), 0)
        device_s = step(device, *shape)
        if prompt + decodes > 512:
            device_s = max(device_s, launch_s)
        assert step(cost, *shape) == pytest.approx(device_s + every_s, rel=1e-6)
    assert step(device, 513, 0.0, 0, 0, 1, 0) < launch_s < step(device, 8192, 0.0, 0, 0, 1, 0)
    twice = {**law.laws, "host": {"vllm-0.24": [*host, host[1]]}}
    with pytest.raises(ProfileError, match="has 2 laws 'launch'; expected one at most"):
        replace(law, laws=twice).step_cost()


def test_a_step_with_a_prompt_takes_the_floor_or_longer() -> None:
    """Beside the launches; neither is there in the cost that a replay counts them apart from."""
    law = profiles.load("h100/llama-3.1-8b", dense="sustained", host="vllm-0.24-steps")
    knots, launch, floor = law.laws["host"]["vllm-0.24-steps"]
    bare_cost, found = launches_ahead(law.step_cost(), True)
    assert found == (512, 1e-3 * launch["base_ms"], 1e-3 * floor["base_ms"], True)
    kept = law.step_cost()
    assert launches_ahead(kept, False) == (kept, kernels.NO_LAUNCHES)
    step = kernels.step_time_s
    for prompt, decodes in ((0, 8), (0, 400), (64, 0), (500, 12), (513, 0), (505, 8), (600, 100), (8192, 0)):
        sequences = decodes + (prompt > 0)
        shape = (prompt, 0.0, decodes, 1000 * decodes, sequences, 0)
        host_s = 1e-3 * np.interp(sequences, knots["sequences"], knots["knots_ms"])
        assert kernels.host_s(bare_cost, sequences) == pytest.approx(host_s, rel=1e-6)
        least_s = found.launch_s if prompt + decodes > 512 else found.floor_s if prompt > 0 else 0.0
        expected = max(step(bare_cost, *shape), least_s + host_s)
        assert step(law.step_cost(), *shape) == pytest.approx(expected, rel=1e-6)
    assert step(bare_cost, 64, 0.0, 0, 0, 1, 0) < found.floor_s < step(bare_cost, 500, 0.0, 12, 12_000, 13, 0)


def test_a_device_that_was_idle_is_faster_in_steps_that_heat() -> None:
    """By the difference of the two options; a step alone costs what it costs under steady load."""
    law = profiles.load("h100/llama-3.1-8b", dense="following")
    steady, single = (replace(law, dense=name).step_cost() for name in ("sustained", "default"))
    cost = law.step_cost()
    for tokens in (1, 512, 513, 700, 2048, 8192, 16_384, 20_000):
        less_s = max(kernels.dense_s(steady, tokens) - kernels.dense_s(single, tokens), 0.0)
        heats = 512 < tokens <= 16_384
        assert kernels.cooler_s(cost, tokens) == (pytest.approx(less_s, abs=1e-9) if heats else 0.0)
        shape = (tokens, 1e-3, 0, 0, 1, 0)
        assert kernels.step_time_s(cost, *shape) == kernels.step_time_s(steady, *shape)
        assert kernels.cooler_s(steady, tokens) == 0.0
    assert kernels.cooler_s(cost, 2048) > 3e-3
    slow = kernels.cooler_s(slower(cost, 1.0), 2048)
    assert slow == kernels.cooler_s(cost, 2048)  # host time is another matter


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settle_ms": 0}, "field 'settle_ms' of 'clock' is 0; expected a number > 0"),
        ({"cool": "cold"}, "dense has no option 'cold'"),
        ({"above_tokens": None}, "or one without 'above_tokens'"),
    ],
)
def test_a_wrong_clock_is_told(change, said) -> None:
    law = profiles.load("h100/llama-3.1-8b", dense="following")
    *terms, clock = law.laws["dense"]["following"]
    clock = {key: value for key, value in {**clock, **change}.items() if value is not None}
    dense = {**law.laws["dense"], "following": [*terms, clock]}
    with pytest.raises(ProfileError, match=said):
        replace(law, laws={**law.laws, "dense": dense}).step_cost()
    twice = {**law.laws["dense"], "following": [*terms, clock, clock]}
    with pytest.raises(ProfileError, match="has 2 laws 'clock'"):
        replace(law, laws={**law.laws, "dense": twice}).step_cost()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"launch": None}, "has a law 'floor'; expected a law 'launch' too"),
        ({"launch": {"ahead": 1}}, "field 'ahead' is 1; expected true or false"),
        ({"launch": {"base_ms": -1.0}}, r"host\[0\]: field 'base_ms' is -1.0; expected a number >= 0"),
        ({"by_sequences": {"sequences": [1, 3, 2]}}, r"field 'sequences' is \[1, 3, 2\]; expected 3 numbers"),
        ({"by_sequences": {"sequences": [1, 2]}}, "expected 3 numbers, one for each of knots_ms, that grow"),
        ({"by_sequences": {"knots_ms": [0.1, "x", 0.2]}}, r"knots_ms\[1\] is 'x'; expected a finite number"),
        ({"by_sequences": {"knots_ms": 0.1}}, "field 'knots_ms' is 0.1; expected a list of numbers"),
        ({"by_sequences": {"sequences": None}}, "field 'sequences' is missing"),
    ],
)
def test_wrong_laws_of_the_host_are_told(changes, said) -> None:
    law = profiles.load("h100/llama-3.1-8b")
    terms = {
        "by_sequences": {"count": 1, "sequences": [1, 2, 4], "knots_ms": [0.0, 0.2, 0.1]},
        "launch": {"count": 1, "base_ms": 30.0, "above_tokens": 512, "ahead": True},
        "floor": {"count": 1, "base_ms": 11.0},
    }
    for name, change in changes.items():
        terms[name] = None if change is None else {**terms[name], **change}
    host = [
        {"law": name, **{key: value for key, value in term.items() if value is not None}}
        for name, term in terms.items()
        if term is not None
    ]
    laws = {**law.laws, "host": {"default": host}}
    with pytest.raises(ProfileError, match=said):
        replace(law, laws=laws).step_cost()


def test_products_under_steady_load_are_slower_where_they_are_bound_by_arithmetic() -> None:
    for name in ("h100/llama-3.1-8b", "h200/qwen2.5-14b"):
        steady, single = (profiles.load(name, dense=dense).step_cost() for dense in ("sustained", "default"))
        ratio = [kernels.dense_s(steady, n) / kernels.dense_s(single, n) for n in (2048, 8192)]
        assert 1.1 < ratio[0] < ratio[1] < 1.25
    with pytest.raises(UnknownName, match="unknown dense option of profile a100"):
        profiles.load("a100/llama-3.1-8b", dense="sustained")


def test_decodes_cost_more_beside_a_chunk() -> None:
    step = kernels.step_time_s
    measured = profiles.load("h100/llama-3.1-8b-measured")
    tables = dict(measured.tables)
    alone = tables["decode_attention"]
    tables["decode_attention_beside"] = alone._replace(latency_us=alone.latency_us * 1.5)
    mixed, apart = replace(measured, tables=tables).step_cost(), measured.step_cost()
    attention = kernels.decode_attention_s(apart, 32, 32000)
    assert step(mixed, 0, 0.0, 32, 32000, 32, 0) == step(apart, 0, 0.0, 32, 32000, 32, 0)
    both = step(mixed, 512, 1e-3, 32, 32000, 33, 0) - step(apart, 512, 1e-3, 32, 32000, 33, 0)
    assert both == pytest.approx(0.5 * attention, rel=1e-3)
    wrong = dict(tables, decode_attention_beside=tables["prefill_attention"])
    with pytest.raises(ProfileError, match="must have the shapes of 'decode_attention'"):
        replace(measured, tables=wrong).step_cost()
