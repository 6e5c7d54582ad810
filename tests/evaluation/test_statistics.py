import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llmgym.errors import InvalidArgument
from llmgym.evaluation import statistics as ours

finite = st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=40)


def coverage(draw, truth, statistic=ours.mean, strata=None, repeats=400):
    rng = np.random.default_rng(7)
    hits = 0
    for seed in range(repeats):
        interval = ours.bootstrap(draw(rng), statistic, resamples=1000, seed=seed, strata=strata)
        hits += interval.low <= truth <= interval.high
    return hits / repeats


def test_iqm_by_hand():
    assert ours.iqm(np.array([100.0, 1.0, 2.0, 3.0, 4.0, -50.0, 7.0, 5.0])) == (2 + 3 + 4 + 5) / 4
    assert (
        ours.iqm(np.array([9.0, 1.0, 2.0, 3.0, 4.0, -5.0])) == (1 + 2 + 3 + 4) / 4
    )  # floor(6 / 4) at each end
    assert ours.iqm(np.array([1.0, 2.0, 6.0])) == 3.0  # too few to drop any


def test_iqm_of_a_fixed_sample_sorted_by_hand():
    values = np.random.default_rng(0).normal(size=30)
    assert ours.iqm(values) == pytest.approx(sum(sorted(values)[7:23]) / 16, rel=1e-14)


@given(finite)
def test_iqm_lies_in_the_middle_half_and_reduces_the_last_axis(values):
    array = np.array(values)
    cut, kept = len(array) // 4, np.sort(array)
    kept = kept[cut : len(array) - cut]
    slack = 1e-9 * max(1.0, np.abs(array).max())
    assert kept[0] - slack <= ours.iqm(array) <= kept[-1] + slack
    assert np.allclose(ours.iqm(np.stack([array, array + 1.0])), [ours.iqm(array), ours.iqm(array) + 1.0])


@settings(max_examples=25)
@given(finite, st.floats(0.1, 100.0), st.floats(-1e3, 1e3))
def test_interval_moves_and_scales_with_the_values(values, factor, shift):
    array = np.array(values)
    a = ours.bootstrap(array, resamples=200)
    b = ours.bootstrap(array * factor + shift, resamples=200)
    scale = 1e-8 * max(1.0, np.abs(array).max() * factor + abs(shift))
    assert b == pytest.approx((a.low * factor + shift, a.high * factor + shift), abs=scale)


def test_interval_is_the_same_for_the_same_seed_and_for_any_block_size(monkeypatch):
    values = np.random.default_rng(2).normal(size=50)
    once = ours.bootstrap(values)
    assert ours.bootstrap(values) == once
    assert ours.bootstrap(values, seed=1) != once
    whole = ours.resample(values, resamples=1000)
    monkeypatch.setattr(ours, "BLOCK", 50 * 70)
    assert np.array_equal(ours.resample(values, resamples=1000), whole)


def test_interval_of_the_mean_agrees_with_scipy_and_with_student():
    values = np.random.default_rng(3).normal(2.0, 3.0, size=400)
    mine = ours.bootstrap(values, resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, random_state=0)
    width = mine.high - mine.low
    assert mine == pytest.approx(theirs.confidence_interval, abs=0.03 * width)
    small = values[:12]
    student = stats.t.interval(0.95, 11, small.mean(), stats.sem(small))
    expanded = ours.bootstrap(small, resamples=20_000)
    assert expanded.high - expanded.low == pytest.approx(student[1] - student[0], rel=0.1)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_interval_of_very_few_values_is_students(count):
    values = np.array([1.0, 4.0, 2.5, 7.0])[:count]
    student = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert ours.bootstrap(values, resamples=20_000) == pytest.approx(
        student, abs=0.01 * (student[1] - student[0])
    )


@pytest.mark.parametrize("count", [3, 10, 30])
def test_coverage_on_normal_data(count):
    assert 0.915 <= coverage(lambda rng: rng.normal(size=count), 0.0) <= 0.985


def test_coverage_on_lognormal_data():
    truth = math.exp(0.5)
    assert 0.84 <= coverage(lambda rng: rng.lognormal(size=30), truth) <= 0.95  # skewed: known to fall short
    assert 0.91 <= coverage(lambda rng: rng.lognormal(size=200), truth, repeats=300) <= 0.985
    # Quartile ends of the lognormal, integrated: the interquartile mean.
    low, high = stats.norm.ppf([0.25, 0.75])
    iqm = 2.0 * truth * (stats.norm.cdf(high - 1.0) - stats.norm.cdf(low - 1.0))
    assert 0.92 <= coverage(lambda rng: rng.lognormal(size=30), iqm, ours.iqm) <= 0.99


def test_strata_take_the_difference_between_kinds_of_worlds_out():
    kinds = np.repeat([0.0, 50.0, 100.0], 10)
    values = kinds + np.random.default_rng(4).normal(size=30)
    plain, stratified = ours.bootstrap(values), ours.bootstrap(values, strata=kinds)
    assert stratified.high - stratified.low < 0.05 * (plain.high - plain.low)
    assert 0.915 <= coverage(lambda rng: kinds + rng.normal(size=30), 50.0, strata=kinds) <= 0.985


def test_a_stratum_of_one_falls_back_to_a_single_stratum():
    values = np.random.default_rng(5).normal(size=9)
    assert ours.bootstrap(values, strata=[0] * 8 + [1]) == ours.bootstrap(values)


def test_paired_interval_is_much_narrower_than_unpaired():
    rng = np.random.default_rng(6)
    world = rng.lognormal(2.0, 1.0, 40)
    a, b = world + rng.normal(0.3, 0.2, 40), world + rng.normal(0.0, 0.2, 40)
    together = ours.paired(a - b)
    apart = ours.resample(a, seed=1) - ours.resample(b, seed=2)
    low, high = np.quantile(apart, [0.025, 0.975])
    assert together.interval.high - together.interval.low < 0.05 * (high - low)
    assert together.interval.excludes_zero and low < 0.0 < high
    assert together.p_wilcoxon < 0.01


def test_paired_by_hand():
    differences = np.array([1.0, 2.0, 3.0, 0.0, -4.0, 6.0])
    one = ours.paired(differences)
    assert (one.mean, one.median, one.count) == (8.0 / 6.0, 1.5, 6)
    assert one.probability == (4 + 0.5) / 6
    # Sign test: 4 of 5 non-zero ones are positive; P(X >= 4 or X <= 1) = 12 / 32.
    assert one.p_sign == pytest.approx(12 / 32)
    # Signed ranks of 1 2 3 -4 6: W- = 4; 7 of the 32 sign patterns have a rank sum of at most 4; two-sided.
    assert one.p_wilcoxon == pytest.approx(14 / 32)
    assert 0.0 <= one.probability_interval.low <= one.probability <= one.probability_interval.high <= 1.0


def test_equal_policies_are_a_tie_and_a_constant_gap_is_not():
    zero = ours.paired(np.zeros(5))
    assert zero.interval == (0.0, 0.0) and zero.p_wilcoxon == zero.p_sign == 1.0 and zero.probability == 0.5
    assert not zero.interval.excludes_zero
    assert ours.paired(np.full(5, -0.1)).interval.excludes_zero


def test_false_wins_are_as_rare_as_promised():
    rng = np.random.default_rng(8)
    wrong = sum(ours.paired(rng.normal(size=20), resamples=1000).interval.excludes_zero for _ in range(400))
    assert 0.02 <= wrong / 400 <= 0.085


def test_holm_by_hand():
    assert ours.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert ours.holm([0.9, 0.8]) == [1.0, 1.0]
    assert ours.holm([]) == []


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=15))
def test_holm_keeps_the_order_and_lies_between_raw_and_bonferroni(p_values):
    corrected = ours.holm(p_values)
    for raw, one in zip(p_values, corrected):
        assert raw <= one <= min(1.0, len(p_values) * raw) or one == 1.0
    by_raw = [one for _, one in sorted(zip(p_values, corrected))]
    assert by_raw == sorted(by_raw)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ours.bootstrap([1.0]), "at least 2"),
        (lambda: ours.bootstrap([[1.0, 2.0]]), r"shape \(1, 2\)"),
        (lambda: ours.bootstrap([1.0, math.nan]), "1 NaN"),
        (lambda: ours.bootstrap([1.0, 2.0], confidence=95), "confidence=95"),
        (lambda: ours.bootstrap([1.0, 2.0], confidence=True), "confidence=True"),
        (lambda: ours.bootstrap([1.0, 2.0], resamples=5), "resamples=5"),
        (lambda: ours.bootstrap([1.0, 2.0], strata=[1]), "one label for each of the 2"),
        (lambda: ours.paired([1.0, math.inf]), "differences"),
    ],
)
def test_wrong_input_says_what_is_wrong(call, words):
    with pytest.raises(InvalidArgument, match=words):
        call()
