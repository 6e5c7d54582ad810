"""The Python side: expectations against brute force, scaling, one draw of the generator, refusals."""

import copy
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym.errors import InvalidArgument
from llmgym.workloads import (
    Modulation,
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

ROWS = Rows(np.array([0.0, 1.0, 4.0]), np.array([10, 20, 30]), np.array([3, 2, 1]))


def area(s, o):
    """A memory area of the kind schedulers use: grows with the square of the output, with a ceiling in it."""
    return s * o + o * (o + 1) / 2 + np.ceil(s / 512)


def one(prompt, output, correlation=0.0):
    return Workload("w", poisson(1.0), (RequestClass(prompt, output, correlation),))


def test_expectation_of_uniform_laws_is_exact():
    brute = sum(area(s, o) for s in range(5, 51) for o in range(3, 20)) / (46 * 17)
    assert one(uniform(5, 50), uniform(3, 19)).expectation(area) == pytest.approx(brute, rel=1e-12)
    assert one(fixed(7), fixed(9)).expectation(area) == area(7, 9)


@pytest.mark.parametrize(
    "workload",
    [
        one(lognormal(6.0, 1.2, max=8000), lognormal(5.0, 0.9, max=2000)),
        one(lognormal(6.0, 1.2, max=8000), lognormal(5.0, 0.9, max=2000), 0.6),
        one(uniform(10, 1600), uniform(10, 1600), -0.5),
        one(uniform(1, 4000), uniform(1, 4000)),
        one(
            mixture([0.3, 0.7], [3.0, 6.0], [1.0, 0.4], max=3000),
            quantiles([0, 0.5, 0.5, 1], [1, 9, 50, 700]),
        ),
    ],
)
def test_expectation_agrees_with_a_large_sample(workload):
    r = workload.sample(np.random.default_rng(1), n=1_000_000)
    drawn = area(r.prompt_tokens.astype(float), r.output_tokens.astype(float))
    error = drawn.std() / 1000.0
    assert workload.expectation(area) == pytest.approx(drawn.mean(), abs=4 * error + 1e-3 * drawn.mean())


def test_expectation_of_rows_classes_and_phases():
    assert Workload("t", replay(ROWS), (RequestClass(rows=ROWS),)).expectation(
        lambda s, o: s * o
    ) == pytest.approx(100 / 3)
    ab = (RequestClass(fixed(1), fixed(1)), RequestClass(fixed(5), fixed(5)))
    assert Workload("m", poisson(1.0), ab, ((0.0, (3.0, 1.0)),)).expectation(lambda s, o: s) == 2.0
    then = ((0.0, (1.0, 0.0)), (0.25, (0.0, 1.0)))
    assert Workload("f", poisson(1.0), ab, then, "fraction").expectation(lambda s, o: o) == 4.0
    by_time = Workload("p", poisson(1.0), ab, then, "time_s")
    assert by_time.expectation(lambda s, o: o, phase_weights=(1, 1)) == 3.0
    with pytest.raises(InvalidArgument, match="phase_weights"):
        by_time.expectation(lambda s, o: o)
    with pytest.raises(InvalidArgument, match="phase_weights"):
        by_time.expectation(lambda s, o: o, phase_weights=(1,))


@settings(max_examples=60, deadline=None)
@given(st.floats(0.0, 8.0), st.floats(0.1, 2.0), st.integers(1, 5000))
def test_mean_of_a_law_is_that_of_its_quantiles(mu, sigma, top):
    law = lognormal(mu, sigma, max=top)
    u = (np.arange(400_000) + 0.5) / 400_000
    x = law.quantile(u)
    assert x.min() >= 1 and x.max() <= top and np.all(np.diff(x) >= 0)
    assert law.mean_tokens == pytest.approx(x.mean(), rel=2e-4)


def test_lognormal_and_mixture_have_their_quantiles():
    law = lognormal(6.0, 1.0, max=10**6)
    assert law.quantile([0.5, 0.84134475, 0.97724987]) == pytest.approx(np.exp([6.0, 7.0, 8.0]), rel=2e-3)
    assert law.mean_tokens == pytest.approx(math.exp(6.5), rel=2e-3)
    two = mixture([1, 3], [2.0, 7.0], [0.2, 0.1], max=10**6)
    assert two.mean_tokens == pytest.approx(0.25 * math.exp(2.02) + 0.75 * math.exp(7.005), rel=2e-3)


def test_sample_takes_one_number_and_repeats():
    w = one(uniform(1, 9), uniform(1, 9))
    a, b = np.random.default_rng(3), np.random.default_rng(3)
    first, second = w.sample(a, n=50), w.sample(b, n=50)
    assert all(np.array_equal(x, y) for x, y in zip(first, second))
    b = np.random.default_rng(3)
    b.integers(0, 2**64, dtype=np.uint64)
    assert a.integers(1 << 60) == b.integers(1 << 60)
    assert first.session.tolist() == list(range(50)) and not first.turn.any()
    assert [x.dtype for x in first] == [np.float64] + [np.int32] * 7 + [np.float64]


def test_sample_by_horizon_grows_until_it_holds_every_request():
    w = one(fixed(1), fixed(1)).with_arrivals(on_off(1000.0, 1.0, 50.0))
    counts = [len(w.sample(np.random.default_rng(s), horizon_s=20.0).arrival_s) for s in range(40)]
    assert max(counts) > 64 + 1.1 * 20.0 * w.mean_rate_rps
    assert len(w.sample(np.random.default_rng(0), n=0).arrival_s) == 0


@pytest.mark.parametrize(
    "process", [poisson(1.0), gamma(1.0, 3.0), on_off(4.0, 1.0, 3.0), regular(1.0), replay(ROWS)]
)
def test_with_rate_sets_the_mean_rate(process):
    w = Workload("w", process, (RequestClass(fixed(1), fixed(1)),)).with_rate(7.0)
    assert w.mean_rate_rps == 7.0
    counts = [len(w.sample(np.random.default_rng(s), horizon_s=400.0).arrival_s) for s in range(30)]
    assert np.mean(counts) / 400.0 == pytest.approx(7.0, rel=0.05)


def test_workloads_are_values():
    w = one(uniform(1, 9), lognormal(3.0, 1.0, max=99), 0.3)
    assert w == pickle.loads(pickle.dumps(w)) == copy.deepcopy(w)
    assert w != w.with_rate(2.0)
    traced = pickle.loads(pickle.dumps(Workload("t", replay(ROWS), (RequestClass(rows=ROWS),))))
    assert traced.arrivals.rows is traced.classes[0].rows


CLASS = RequestClass(fixed(1), fixed(1))
REFUSED = [
    (lambda: poisson(-1.0), "rate_rps=-1.0"),
    (lambda: poisson(0.0), "rate_rps=0.0"),
    (lambda: poisson(math.nan), "rate_rps=nan"),
    (lambda: poisson("fast"), "rate_rps='fast'"),
    (lambda: regular(math.inf), "rate_rps=inf"),
    (lambda: gamma(1.0, 0.0), "cv=0.0"),
    (lambda: on_off(1.0, 0.0, 1.0), "mean_on_s=0.0"),
    (lambda: on_off(1.0, 1.0, -2.0), "mean_off_s=-2.0"),
    (lambda: burst().with_rate(2.0), "rate_rps=2.0"),
    (lambda: burst().modulated(1.0, 0.1), "burst"),
    (lambda: replay(ROWS).shaped([0.0], [1.0]), "replay"),
    (lambda: replay(Rows(np.zeros(2), np.ones(2), np.ones(2)), rate_rps=2.0), "rate_rps=2.0"),
    (lambda: Rows(np.array([1.0, 0.0]), np.ones(2), np.ones(2)), "arrival_s"),
    (lambda: Rows(np.zeros(2), np.array([1.5, 1.0]), np.ones(2)), "prompt_tokens"),
    (lambda: Rows(np.zeros(0), np.zeros(0), np.zeros(0)), "prompt_tokens"),
    (lambda: Modulation(0.0, 1.0), "period_s=0.0"),
    (lambda: Modulation(1.0, -1.0), "variance=-1.0"),
    (lambda: Modulation(1.0, 101.0), "variance=101.0"),
    (lambda: Modulation(1.0, 1.0, 1.0), "correlation=1.0"),
    (lambda: Modulation(1.0, 1.0, law="normal"), "law='normal'"),
    (lambda: poisson(1.0).shaped([1.0], [1.0]), "starts_s"),
    (lambda: poisson(1.0).shaped([0.0, 2.0], [1.0]), "multipliers"),
    (lambda: poisson(1.0).shaped([0.0, 2.0], [0.0, 0.0]), "multipliers"),
    (lambda: poisson(1.0).shaped([0.0, 2.0], [1.0, 1.0], 2.0), "period_s=2.0"),
    (lambda: uniform(5, 4), "low=5, high=4"),
    (lambda: uniform(0, 4), "low=0"),
    (lambda: fixed(2.5), "2.5"),
    (lambda: lognormal(1.0, 0.0, max=9), "sigma=0.0"),
    (lambda: lognormal(math.nan, 1.0, max=9), "mu="),
    (lambda: mixture([], [], [], max=9), "weights="),
    (lambda: mixture([0.0], [1.0], [1.0], max=9), "weights="),
    (lambda: mixture([1.0, -1.0], [1.0, 1.0], [1.0, 1.0], max=9), "weights=-1.0"),
    (lambda: quantiles([0.0, 1.0], [5.0, 4.0]), "tokens"),
    (lambda: quantiles([0.1, 1.0], [1.0, 4.0]), "probabilities"),
    (lambda: quantiles([0.0], [1.0]), "probabilities"),
    (lambda: RequestClass(fixed(1)), "output=None"),
    (lambda: RequestClass(fixed(1), fixed(1), correlation=1.0), "correlation=1.0"),
    (lambda: RequestClass(fixed(1), fixed(1), rows=ROWS), "rows"),
    (lambda: Workload("w", poisson(1.0), ()), "classes=()"),
    (lambda: Workload("w", 2.0, (CLASS,)), "arrivals=2.0"),
    (lambda: Workload("w", poisson(1.0), (CLASS,), ((0.0, (0.0,)),)), "weights="),
    (lambda: Workload("w", poisson(1.0), (CLASS,), ((0.0, (1.0, 2.0)),)), "weights="),
    (lambda: Workload("w", poisson(1.0), (CLASS,), ((1.0, (1.0,)),)), "start"),
    (lambda: Workload("w", poisson(1.0), (CLASS,), ((0.0, (1.0,)), (2.0, (1.0,))), "fraction"), "fractions"),
    (lambda: Workload("w", poisson(1.0), (CLASS,), phase_by="day"), "phase_by='day'"),
    (lambda: one(fixed(1), fixed(1)).traffic("guess"), "information='guess'"),
    (lambda: one(fixed(1), fixed(1)).traffic(noise_scale=-1.0), "noise_scale=-1.0"),
    (lambda: one(fixed(1), fixed(1)).sample(np.random.default_rng(0)), "n=None"),
    (lambda: one(fixed(1), fixed(1)).sample(np.random.default_rng(0), n=-1), "n=-1"),
    (lambda: one(fixed(1), fixed(1)).sample(np.random.default_rng(0), horizon_s=math.nan), "horizon_s=nan"),
    (
        lambda: (
            one(fixed(1), fixed(1)).with_arrivals(burst()).sample(np.random.default_rng(0), horizon_s=1.0)
        ),
        "n=None",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_is_refused_and_how(make, message):
    with pytest.raises(InvalidArgument) as error:
        make()
    assert message in str(error.value)


def test_importing_workloads_stays_light():
    code = (
        "import sys, llmgym.workloads as w; w.load('sharegpt'); "
        "print({'numba', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "set()\n"
    )


KNOWN = Rows(
    np.array([0.0, 1.0, 4.0, 4.5]),
    np.array([10, 20, 30, 40]),
    np.array([3, 2, 1, 7]),
    predicted_tokens=np.array([4, 4, 2, 9]),
    priority=np.array([0, -5, 2, 0]),
)


@pytest.mark.parametrize("from_start", [True, False])
@pytest.mark.parametrize("random", [True, False])
def test_a_sample_carries_what_the_trace_says_of_each_request(from_start, random):
    """Predictions and priorities go with their row, in the trace's order and where rows are drawn at random."""
    arrivals = poisson(1.0) if random else replay(KNOWN, from_start=from_start)
    drawn = Workload("t", arrivals, (RequestClass(rows=KNOWN),)).sample(
        np.random.default_rng(3), n=200, information="rows"
    )
    row = drawn.prompt_tokens // 10 - 1
    assert len(set(row.tolist())) == 4
    assert (drawn.output_tokens == KNOWN.output_tokens[row]).all()
    assert (drawn.predicted_tokens == KNOWN.predicted_tokens[row]).all()
    assert (drawn.priority == KNOWN.priority[row]).all() and drawn.priority.dtype == np.int32
    exact = Workload("t", arrivals, (RequestClass(rows=KNOWN),)).sample(np.random.default_rng(3), n=200)
    assert (exact.predicted_tokens == exact.output_tokens).all()
    assert (exact.priority == drawn.priority).all() and (exact.prompt_tokens == drawn.prompt_tokens).all()


def test_priorities_of_a_mixture_are_those_of_its_rows():
    law = RequestClass(fixed(7), fixed(2))
    mixed = Workload("m", poisson(1.0), (law, RequestClass(rows=KNOWN)))
    drawn = mixed.sample(np.random.default_rng(0), n=100)
    of = drawn.request_class == 1
    assert (drawn.priority[~of] == 0).all() and of.any() and (~of).any()
    assert (drawn.priority[of] == KNOWN.priority[drawn.prompt_tokens[of] // 10 - 1]).all()
    assert not mixed.has_predictions
    for workload in (mixed, Workload("t", replay(ROWS), (RequestClass(rows=ROWS),))):
        with pytest.raises(InvalidArgument, match=r"information='rows'.*predicted_tokens"):
            workload.sample(np.random.default_rng(0), n=3, information="rows")
    assert (
        Workload("t", replay(ROWS), (RequestClass(rows=ROWS),)).sample(np.random.default_rng(0), n=3).priority
        == 0
    ).all()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"predicted_tokens": [1, 2]}, "predicted_tokens: shape"),
        ({"predicted_tokens": [1, 2, 0]}, "predicted_tokens: must be whole numbers from 1"),
        ({"predicted_tokens": [1, 2, 1.5]}, "predicted_tokens"),
        ({"priority": [1, 2]}, "priority: shape"),
        ({"priority": [1, 2, 0.5]}, "priority: must be whole numbers from -2147483648"),
        ({"priority": [1, 2, 2**31]}, "priority"),
    ],
)
def test_what_rows_refuse_of_predictions_and_priorities(columns, message):
    with pytest.raises(InvalidArgument, match=message):
        Rows([0.0, 1.0, 2.0], [1, 1, 1], [1, 1, 1], **columns)


def test_a_rate_that_is_over_for_good_ends_a_draw_without_a_horizon():
    """One shot that ends with nothing, under levels and switches that would go on changing it for ever."""
    for arrivals in (poisson(5.0).modulated(1.0, 0.5), on_off(9.0, 1.0, 1.0), gamma(5.0, 2.0)):
        shot = Workload("s", arrivals.shaped((0.0, 10.0), (1.0, 0.0)), (RequestClass(fixed(1), fixed(1)),))
        drawn = shot.sample(np.random.default_rng(0), n=1000)
        assert 5 < len(drawn.arrival_s) < 200 and drawn.arrival_s[-1] <= 10.0


@pytest.mark.parametrize(
    "arrivals",
    [
        poisson(1e-9).modulated(1.0, 0.5),
        on_off(1.0, 1e-12, 1e-9),
        poisson(1.0).shaped((0.0, 1e-8), (1.0, 2.0), 2e-8),
        poisson(1.0).modulated(1.0, 0.5).shaped((0.0, 10.0), (1.0, 1e-9)),
    ],
    ids=["modulated", "on-off", "periodic", "one-shot"],
)
def test_a_rate_that_changes_too_often_between_two_requests_is_refused(arrivals):
    """A draw goes from change to change; a billion of them for one request would never end."""
    with pytest.raises(InvalidArgument, match="times between two requests"):
        Workload("w", arrivals, (RequestClass(fixed(1), fixed(1)),)).traffic()
