"""Properties of the compiled draw: order, bounds, determinism, horizon, phases, replay, laws of time."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym.workloads import (
    Arrivals,
    Phase,
    RequestClass,
    Rows,
    Workload,
    burst,
    fixed,
    gamma,
    lognormal,
    mixture,
    on_off,
    poisson,
    quantiles,
    regular,
    replay,
    uniform,
)
from llmgym.workloads.traffic import Drawn, draw

ROWS = Rows(np.array([5.0, 5.0, 6.5, 9.0]), np.array([11, 12, 13, 14]), np.array([1, 2, 3, 4]))
UNIT = RequestClass(fixed(1), fixed(1))

rates = st.floats(0.1, 50.0)
spans = st.floats(0.5, 30.0)
levels = st.tuples(spans, st.floats(0.0, 2.0), st.floats(0.0, 0.95), st.sampled_from(["lognormal", "gamma"]))
arrivals = st.one_of(
    st.builds(poisson, rates),
    st.builds(gamma, rates, st.floats(0.3, 12.0)),
    st.builds(on_off, rates, spans, spans, st.floats(0.5, 3.0)),
    st.builds(regular, rates),
    st.builds(lambda r, m: gamma(r, 1.5).modulated(*m), rates, levels),
    st.builds(lambda r, a, b: poisson(r).shaped([0.0, 2.0, 5.0], [a, 0.0, b], 7.0), rates, spans, spans),
    st.builds(lambda r, a: regular(r).shaped([0.0, 3.0], [0.0, a]), rates, spans),
    st.builds(lambda r, first: replay(ROWS, r, from_start=first), rates, st.booleans()),
    st.just(burst()),
)
bounds = st.tuples(st.integers(1, 5000), st.integers(1, 5000)).map(sorted)
laws = st.one_of(
    bounds.map(lambda b: uniform(b[0], b[1])),
    st.builds(lognormal, st.floats(0.0, 9.0), st.floats(0.1, 2.5), st.integers(1, 20_000)),
    st.builds(lambda m: mixture([0.3, 0.7], [m, m + 2.0], [1.0, 0.3], 8000), st.floats(0.0, 6.0)),
    bounds.map(lambda b: quantiles([0, 0.25, 0.25, 0.9, 1], [b[0], b[0], sum(b) / 2, b[1], b[1]])),
)
classes = st.one_of(
    st.builds(RequestClass, laws, laws, st.sampled_from([0.0, -0.6, 0.9])), st.just(RequestClass(rows=ROWS))
)


@st.composite
def workloads(draw_from):
    kinds = draw_from(st.lists(classes, min_size=1, max_size=3))
    weights = st.lists(st.floats(0.01, 5.0), min_size=len(kinds), max_size=len(kinds)).map(tuple)
    by, second = draw_from(st.sampled_from([("time_s", 3.0), ("request", 7.0), ("fraction", 0.4)]))
    phases = (Phase(0.0, draw_from(weights)), Phase(second, draw_from(weights)))
    return Workload("any", draw_from(arrivals), tuple(kinds), phases, by)


def run(workload, key=7, n=60, horizon_s=math.inf, information="exact"):
    drawn = Drawn.zeros(n)
    for name in Drawn.declared:
        drawn[name] = -1
    count = draw(workload.traffic(information), np.uint64(key), horizon_s, drawn)
    assert all(np.all(drawn[name][count:] == -1) for name in Drawn.declared), "wrote past what it returned"
    return [drawn[name][:count].copy() for name in Drawn.declared]


@settings(max_examples=150, deadline=None)
@given(workloads(), st.integers(0, 2**64 - 1), st.sampled_from(["exact", "noisy", "mean", "none"]))
def test_requests_are_sorted_bounded_and_a_function_of_the_key(workload, key, information):
    first = run(workload, key, information=information)
    again = run(pickle.loads(pickle.dumps(workload)), key, information=information)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, again))
    arrival_s, prompt, output, predicted, kind = first
    assert np.all(np.isfinite(arrival_s)) and np.all(arrival_s >= 0.0) and np.all(np.diff(arrival_s) >= 0.0)
    for c, request_class in enumerate(workload.classes):
        mine = kind == c
        if request_class.rows is not None:
            assert set(zip(prompt[mine], output[mine])) <= set(zip(ROWS.prompt_tokens, ROWS.output_tokens))
        else:
            for tokens, law in ((prompt, request_class.prompt), (output, request_class.output)):
                assert np.all((law.low <= tokens[mine]) & (tokens[mine] <= law.high))
    assert np.all((kind >= 0) & (kind < len(workload.classes)))
    if information == "exact":
        assert np.array_equal(predicted, output)
    elif information == "none":
        assert np.all(predicted == 0)
    else:
        assert np.all(predicted >= 1)


@settings(max_examples=80, deadline=None)
@given(workloads(), st.integers(0, 2**64 - 1), st.floats(0.0, 20.0))
def test_a_horizon_cuts_and_a_longer_draw_continues(workload, key, horizon_s):
    if workload.phase_by == "fraction":
        workload = workload.with_requests(60)
    whole = run(workload, key)
    cut = run(workload, key, horizon_s=horizon_s)
    kept = int(np.searchsorted(whole[0], horizon_s, side="right"))
    assert len(cut[0]) == kept
    short = run(workload, key, n=25)
    for a, b, c in zip(whole, cut, short):
        assert a[:kept].tobytes() == b.tobytes()
        assert a[:25].tobytes() == c[: len(a)].tobytes()


def test_other_keys_give_other_worlds_and_the_rate_leaves_lengths_alone():
    w = Workload("w", poisson(1.0), (RequestClass(uniform(1, 10**6), uniform(1, 10**6)),))
    a, b, fast = run(w, 1), run(w, 2), run(w.with_rate(10.0), 1)
    assert not np.any(a[0] == b[0]) and np.mean(a[1] == b[1]) < 0.1
    assert np.array_equal(a[1], fast[1]) and np.array_equal(a[2], fast[2])
    assert np.allclose(a[0], 10.0 * fast[0])


def test_burst_and_regular():
    assert np.all(run(Workload("b", burst(), (UNIT,)))[0] == 0.0)
    assert np.array_equal(run(Workload("r", regular(4.0), (UNIT,)))[0], np.arange(60) / 4.0)


def test_one_shot_profile_maps_regular_arrivals_exactly():
    # 2 req/s for 3 s, silence for 2 s, then 4 req/s: operational times 0, 1, 2, ... by hand
    w = Workload("p", regular(2.0).shaped([0.0, 3.0, 5.0], [1.0, 0.0, 2.0]), (UNIT,))
    expected = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 5.25, 5.5, 5.75]
    assert np.allclose(run(w, n=10)[0], expected)


def test_periodic_profile_repeats_and_keeps_the_mean_rate():
    shape = regular(1.0).shaped([0.0, 10.0], [3.0, 1.0], 20.0)
    assert shape.profile.multipliers == (1.5, 0.5) and shape.rate_rps == 1.0
    t = run(Workload("p", shape, (UNIT,)), n=2001)[0]
    assert np.allclose(t[20:], t[:-20] + 20.0)
    assert t[2000] == pytest.approx(2000.0)


def test_silence_for_ever_ends_the_draw():
    w = Workload("p", poisson(5.0).shaped([0.0, 2.0], [1.0, 0.0]), (UNIT,))
    t = run(w, n=1000)[0]
    assert 0 < len(t) < 40 and t[-1] <= 2.0


def test_phases_by_time_request_and_fraction():
    ab = (RequestClass(fixed(1), fixed(1)), RequestClass(fixed(2), fixed(2)))
    then = ((0.0, (1.0, 0.0)), (5.0, (0.0, 1.0)))
    arrival_s, _, _, _, kind = run(Workload("t", regular(2.0), ab, then, "time_s"))
    assert np.array_equal(kind, (arrival_s >= 5.0).astype(int))
    kind = run(Workload("i", poisson(2.0), ab, then, "request"))[4]
    assert np.array_equal(kind, (np.arange(60) >= 5).astype(int))
    half = Workload("f", poisson(2.0), ab, ((0.0, (1.0, 0.0)), (0.5, (0.0, 1.0))), "fraction")
    for w, n in ((half, 60), (half.with_requests(60), 60), (half.with_requests(60), 45)):
        assert np.array_equal(run(w, n=n)[4], (np.arange(n) >= 30).astype(int))


def test_mixture_of_classes_has_its_weights():
    ab = (RequestClass(fixed(1), fixed(1)), RequestClass(fixed(2), fixed(2)))
    kind = run(Workload("m", poisson(1.0), ab, (Phase(0.0, (7.0, 3.0)),)), n=100_000)[4]
    assert kind.mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 100_000))


def test_replay_is_faithful_goes_round_and_scales():
    trace = Workload("t", replay(ROWS, from_start=True), (RequestClass(rows=ROWS),))
    cycle = 4.0 * 4 / 3
    arrival_s, prompt, output, _, kind = run(trace, n=9)
    assert np.allclose(arrival_s, [0, 0, 1.5, 4, cycle, cycle, cycle + 1.5, cycle + 4, 2 * cycle])
    assert prompt.tolist() == [11, 12, 13, 14, 11, 12, 13, 14, 11]
    assert output.tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 1] and not kind.any()
    assert trace.mean_rate_rps == pytest.approx(0.75)
    assert np.allclose(run(trace.with_rate(1.5), n=9)[0], arrival_s / 2.0)


def test_replay_begins_at_every_row_and_keeps_rows_whole():
    trace = Workload("t", replay(ROWS), (RequestClass(rows=ROWS),))
    firsts = set()
    for key in range(200):
        arrival_s, prompt, output, _, _ = run(trace, key, n=8)
        assert arrival_s[0] == 0.0 and np.array_equal(prompt - 10, output)
        assert np.array_equal(np.diff(prompt) % 4, np.ones(7))
        assert arrival_s[4] == pytest.approx(16 / 3)
        firsts.add(int(prompt[0]))
    assert firsts == {11, 12, 13, 14}


def test_trace_rows_at_other_arrivals_are_drawn_as_pairs():
    trace = Workload("t", replay(ROWS), (RequestClass(rows=ROWS),)).with_arrivals(poisson(1.0))
    _, prompt, output, _, _ = run(trace, n=4000)
    assert np.array_equal(prompt - 10, output)
    assert np.all(np.abs(np.bincount(output)[1:] - 1000) < 5 * math.sqrt(750))


def test_every_value_of_a_uniform_law_comes_equally_often():
    w = Workload("u", poisson(1.0), (RequestClass(uniform(3, 7), uniform(1, 2)),))
    _, prompt, output, _, _ = run(w, n=50_000)
    assert np.all(np.abs(np.bincount(prompt)[3:] - 10_000) < 5 * math.sqrt(8000))
    assert abs((output == 1).sum() - 25_000) < 5 * math.sqrt(12_500)


@pytest.mark.parametrize(
    "process",
    [
        poisson(8.0),
        gamma(8.0, 0.4),
        gamma(8.0, 5.0),
        on_off(40.0, 2.0, 8.0, cv=1.5),
        poisson(8.0).modulated(10.0, 0.3, 0.5),
        poisson(8.0).modulated(10.0, 2.0, 0.5, law="gamma"),
        poisson(8.0).shaped([0.0, 1.0], [0.0, 3.0], 4.0),
    ],
    ids=str,
)
def test_long_run_rate_and_rate_in_the_first_second(process: Arrivals):
    w = Workload("w", process, (UNIT,))
    rng = np.random.default_rng(11)
    runs = [w.sample(rng, horizon_s=200.0).arrival_s for _ in range(400)]
    counts = np.array([len(t) for t in runs])
    assert counts.mean() / 200.0 == pytest.approx(8.0, abs=max(4.5 * counts.std() / 20.0 / 200.0, 1e-3))
    if process.profile is None:
        early = np.array([np.sum(t <= 1.0) for t in runs])  # stationary from the start
        assert early.mean() == pytest.approx(8.0, abs=4.5 * early.std() / 20.0)
    else:
        phase = np.concatenate(runs) % 4.0
        assert np.all(phase >= 1.0 - 1e-9)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gaps_have_the_cv_asked_for(cv):
    gaps = np.diff(run(Workload("g", gamma(2.0, cv), (UNIT,)), n=300_000)[0])
    assert gaps.mean() == pytest.approx(0.5, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


@pytest.mark.parametrize("law", ["lognormal", "gamma"])
def test_modulation_has_its_variance_and_correlation(law):
    # regular arrivals at a high rate show the level itself, period by period
    w = Workload("m", regular(200.0).modulated(1.0, 0.25, 0.7, law=law), (UNIT,))
    rng = np.random.default_rng(3)
    counts = []
    for _ in range(40):
        t = w.sample(rng, horizon_s=500.0).arrival_s
        counts.append(np.bincount(t.astype(int), minlength=500)[:500] / 200.0)
    c = np.array(counts)
    # bins cut periods at a uniform phase u: E[u^2 + (1-u)^2] = 2/3 of the variance, the rest correlated
    lag = (np.exp(0.7 * np.log(1.25)) - 1.0) / 0.25 if law == "lognormal" else 0.69
    assert c.mean() == pytest.approx(1.0, abs=0.02)
    assert c.var() == pytest.approx(0.25 * (2.0 + lag) / 3.0, rel=0.08)
