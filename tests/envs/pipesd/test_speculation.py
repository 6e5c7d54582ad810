"""Uplinks, bandwidths, estimates and sources of drafted tokens, each against plain Python."""

import json
import math
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym.core.jit import kernel
from llmgym.envs.pipesd import bandwidth, draft_tokens, estimates, uplink
from llmgym.envs.pipesd.draft_tokens import Cursor, begin, draft, settle, skip
from llmgym.envs.pipesd.estimates import Estimate, Log
from llmgym.envs.pipesd.speculation import batch_plan, finish_time, next_end, wants_verdict
from llmgym.envs.pipesd.uplink import Batch, Uplink
from llmgym.errors import InvalidArgument, UnknownName

seconds = st.floats(0.001, 0.3)


@given(st.integers(1, 40), seconds, seconds, seconds)
def test_a_plan_covers_its_window(tokens: int, alpha: float, beta: float, gamma: float) -> None:
    sizes = batch_plan(tokens, alpha, beta, gamma)
    assert sum(sizes) == tokens and min(sizes) >= 1
    assert finish_time(sizes, alpha, beta, gamma) <= finish_time([tokens], alpha, beta, gamma) + 1e-12
    assert finish_time(sizes, alpha, beta, gamma) <= finish_time([1] * tokens, alpha, beta, gamma) + 1e-12


def test_a_plan_is_cyclic() -> None:
    ends = np.array([1, 4, 12], np.int32)  # 1, 3, 8
    got = [next_end.py_func(ends, 3, sent) for sent in (0, 1, 3, 4, 11, 12, 13, 16, 24)]
    assert got == [1, 4, 4, 12, 12, 13, 16, 24, 25]


def test_the_dual_threshold() -> None:
    fires = wants_verdict.py_func
    assert fires(0.9, 0.5, 0.4, 0.9) and fires(0.95, 0.4, 0.4, 0.9) and not fires(0.95, 0.5, 0.4, 0.9)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, 0.1, 0.1, 0.1), "tokens=0"),
        ((-3, 0.1, 0.1, 0.1), "tokens=-3"),
        ((4, -0.1, 0.1, 0.1), "alpha=-0.1"),
        ((4, 0.1, math.nan, 0.1), "beta=nan"),
        ((4, 0.1, 0.1, 0.0), "gamma=0.0"),
    ],
)
def test_plans_of_nonsense_are_refused(arguments: Any, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        batch_plan(*arguments)
    with pytest.raises(InvalidArgument, match="at least one"):
        finish_time([], 0.1, 0.1, 0.1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 9)), min_size=1, max_size=12), st.integers(0, 64))
def test_batches_go_one_after_the_other_and_nothing_is_lost(
    batches: list[tuple[int, int]], sixteenth: int
) -> None:
    end = sixteenth / 16  # fractions of two: nothing is rounded
    link = Uplink.zeros(1).view(np.recarray)
    line = Batch.zeros(16).view(np.recarray)
    rates = np.array([1.0, 2.0, 0.5], np.float32)
    now, free, expected = 0.0, 0.0, []
    for gap, tokens in batches:
        now += gap / 16
        start = max(now, free)
        free = start + 0.0625 + tokens * 0.125 / float(rates[int(start) % 3])
        expected.append((start, free, tokens))
        assert uplink.put.py_func(link[0], line, rates, now, tokens, 0.0625, 0.125, 1) == free
    kept = [batch for batch in expected if batch[0] < end]
    uplink.withdraw.py_func(link[0], line, end)
    assert link[0]["count"] == len(kept) and link[0]["queued"] == sum(batch[2] for batch in kept)
    if kept:
        assert link[0]["free_s"] == pytest.approx(kept[-1][1])
    while link[0]["count"]:
        place = uplink.take.py_func(link[0], line)
        assert (line[place]["start_s"], line[place]["end_s"]) == pytest.approx(kept.pop(0)[:2])
    assert link[0]["queued"] == link[0]["carried"]


@kernel
def rates_of(law: Any, levels: Any, key: np.uint64, out: Any) -> None:
    bandwidth.draw_rates(law[0], levels, key, out)


def drawn(law: Any, seconds: int, key: int = 1, scale: float = 1.0) -> Any:
    out = np.zeros(seconds, np.float32)
    rates_of(*bandwidth.pack(bandwidth.load(law), scale), np.uint64(key), out)
    return out * 8  # Mbit/s


def test_bandwidths_are_what_they_are_called() -> None:
    assert drawn(20.0, 1).tolist() == [20.0]
    steps = drawn("10-80-mbps", 1000)
    assert set(steps.tolist()) == {float(m) for m in range(10, 81, 10)}
    assert all(len(set(steps[s : s + 20].tolist())) == 1 for s in range(0, 1000, 20))
    # long enough that the floor and the ceiling matter little: the medians are those of the fits
    for name in ("4g-driving", "4g-walking"):
        x = np.log(drawn(name, 60_000))
        law = bandwidth.NAMED[name]
        assert np.median(x) == pytest.approx(law.mu, abs=0.06)
        assert np.corrcoef(x[1:], x[:-1])[0, 1] == pytest.approx(law.rho, abs=0.03)
        assert np.std(x) == pytest.approx(law.innovation / math.sqrt(1 - law.rho**2), rel=0.12)
    walk = drawn("5g-driving", 1000)
    assert walk.min() >= 0.5 - 1e-6 and walk.max() <= 400.0 + 1e-3
    assert np.allclose(drawn("4g-driving", 50, scale=0.5), 0.5 * drawn("4g-driving", 50))
    assert (drawn("4g-driving", 50, key=2) != drawn("4g-driving", 50)).all()


def test_a_bandwidth_trace(tmp_path: Any) -> None:
    path = tmp_path / "uplink.csv"
    path.write_text("second,mbps\n0,12.5\n1,3\n2,40\n")
    law = bandwidth.trace(path, "mbps")
    assert law.levels_mbps == (12.5, 3.0, 40.0) and law.seconds == 3
    assert drawn(law, law.seconds).tolist() == [12.5, 3.0, 40.0]
    path.write_text("7\n\n8.5\n")
    assert bandwidth.trace(path).levels_mbps == (7.0, 8.5)
    for content, named in (
        ("5\n0\n", "line 2: 0.0 Mbit/s"),
        ("5\n-1\n", "line 2: -1.0"),
        ("5\nx\n", "line 2"),
        ("", "empty"),
    ):
        path.write_text(content)
        with pytest.raises(InvalidArgument, match=named):
            bandwidth.trace(path)
    with pytest.raises(InvalidArgument, match="no column 'speed'"):
        bandwidth.trace(path, "speed")
    with pytest.raises(InvalidArgument, match="no-such"):
        bandwidth.trace(tmp_path / "no-such.csv")


@pytest.mark.parametrize("law", [0, 0.0, -3.0, math.nan, math.inf])
def test_a_link_without_bandwidth_is_refused(law: float) -> None:
    with pytest.raises(InvalidArgument, match="bandwidth="):
        bandwidth.load(law)
    with pytest.raises(InvalidArgument, match="bandwidth="):
        bandwidth.levels((10.0, law))
    with pytest.raises(UnknownName, match="6g"):
        bandwidth.load("6g")


class Edge:
    """An estimate with its arrays, as an environment holds them."""

    def __init__(self, alpha: float = 0.05, beta: float = 0.1, gamma: float = 0.04) -> None:
        self.estimate, self.log = Estimate.blank.copy(), Log.zeros(100)
        self.ends, self.work = np.zeros(140, np.int32), np.zeros(140)
        begin_estimates(self.estimate, self.log, alpha, beta, gamma)

    def __getitem__(self, name: str) -> Any:
        return self.estimate[0][name]


@kernel
def begin_estimates(estimate: Any, log: Any, alpha: float, beta: float, gamma: float) -> None:
    estimates.begin(estimate[0], log, alpha, beta, gamma)


@kernel
def note(estimate: Any, log: Any, ends: Any, work: Any, what: int, tokens: int, seconds: float) -> int:
    if what == 0:
        estimates.drafted(estimate[0], log, seconds)
    elif what == 1:
        estimates.uploaded(estimate[0], log, tokens, seconds)
    elif what == 2:
        estimates.judged(estimate[0], log, tokens)
    estimates.replan(estimate[0], ends, work)
    return estimates.window(estimate[0])


def tell(edge: Edge, what: int, tokens: int = 0, seconds: float = 0.0) -> int:
    return note(edge.estimate, edge.log, edge.ends, edge.work, what, tokens, seconds)


def test_estimates_are_least_squares_over_the_last_hundred() -> None:
    edge, rng = Edge(), np.random.default_rng(0)
    uploads: list[tuple[int, float]] = [(k, 0.05 + 0.1 * k) for k in range(1, 9)]
    drafts: list[float] = [0.04] * 8
    assert edge["alpha"] == pytest.approx(0.05) and edge["beta"] == pytest.approx(0.1)
    for step in range(300):
        k, took = int(rng.integers(1, 12)), float(rng.uniform(0.03, 0.06))
        upload = 0.07 + 0.02 * k * rng.uniform(0.8, 1.2)
        uploads.append((k, upload))
        drafts.append(took)
        tell(edge, 1, k, upload)
        tell(edge, 0, 0, took)
        recent = uploads[-100:]
        sizes = sorted({size for size, _ in recent})
        means = [np.mean([s for size, s in recent if size == k]) for k in sizes]
        if step % 20 == 0:
            slope, intercept = np.polyfit(sizes, means, 1)
            assert edge["beta"] == pytest.approx(max(slope, 0.0), rel=1e-4, abs=1e-6)
            assert edge["alpha"] == pytest.approx(max(intercept, 0.0), rel=1e-3, abs=1e-6)
        assert edge["gamma"] == pytest.approx(np.mean(drafts[-100:]), rel=1e-5)


def test_with_fewer_than_eight_sizes_the_line_stays() -> None:
    edge = Edge()
    for _ in range(92):
        tell(edge, 1, 3, 9.0)
    assert edge["beta"] != pytest.approx(0.1)  # the probes still give eight sizes
    for _ in range(100):
        tell(edge, 1, 3, 1.0)
    assert edge["uploads_seen"] == 200
    kept = edge["alpha"], edge["beta"]
    for _ in range(50):
        tell(edge, 1, 4, 7.0)
    assert (edge["alpha"], edge["beta"]) == kept


def test_the_plan_is_made_anew_by_the_gates() -> None:
    edge = Edge()
    tell(edge, 3)
    assert edge["plans"] == 1 and edge["planned_tokens"] == 20
    assert tuple(np.diff(edge.ends[: edge["batches"]], prepend=0)) == batch_plan(20, 0.05, 0.1, 0.04)
    tell(edge, 2, 20)
    assert edge["plans"] == 1  # N^ is the same
    lengths = [20] * 99
    for _ in range(60):
        lengths.append(5)
        expected = max(math.floor(sum(lengths[-100:]) / 100 + 0.5), 1)
        assert tell(edge, 2, 5) == expected == edge["planned_tokens"]
    plans = edge["plans"]
    for _ in range(8):
        tell(edge, 0, 0, 0.04)
    assert edge["plans"] == plans
    before = edge["planned_gamma"]
    while edge["gamma"] <= 1.2 * before:
        assert edge["plans"] == plans
        tell(edge, 0, 0, 0.08)
    assert edge["plans"] == plans + 1 and edge["planned_gamma"] == edge["gamma"]


@kernel
def along(cursor: Any, text: Any, key: np.uint64, out: Any) -> None:
    """Confidence and acceptance of every position."""
    begin(cursor[0], text, key)
    for i in range(out.shape[0]):
        confidence, accepted = draft(cursor[0], text, key)
        settle(cursor[0])
        out[i, 0], out[i, 1] = confidence, 1.0 if accepted else 0.0


@kernel
def wander(cursor: Any, text: Any, key: np.uint64, lengths: Any, out: Any) -> int:
    """Draft blocks of given lengths, as an edge does; writes what the positions of the path were, and returns how many."""
    begin(cursor[0], text, key)
    position = 0
    for n in lengths:
        right, rejected = 0, False
        for _ in range(n):
            confidence, accepted = draft(cursor[0], text, key)
            if not rejected and position + right < out.shape[0]:
                out[position + right, 0], out[position + right, 1] = confidence, 1.0 if accepted else 0.0
            if not accepted:
                rejected = True
            elif not rejected:
                right += 1
        if not rejected:
            skip(cursor[0], text, key)
        settle(cursor[0])
        position += right + 1
    return position


def path(source: Any, key: int, positions: int) -> Any:
    out = np.zeros((positions, 2))
    along(Cursor.zeros(1), draft_tokens.pack(draft_tokens.load(source)), np.uint64(key), out)
    return out


@pytest.mark.parametrize("source", draft_tokens.names())
def test_the_text_does_not_depend_on_what_is_drafted(source: str) -> None:
    """Lossless speculative decoding: blocks of any length meet the same path."""
    rng = np.random.default_rng(1)
    truth = path(source, 9, 400)
    for _ in range(5):
        seen = np.full((400, 2), np.nan)
        packed = draft_tokens.pack(draft_tokens.load(source))
        lengths = rng.integers(1, 9, 60)
        reached = wander(Cursor.zeros(1), packed, np.uint64(9), lengths, seen)
        met = ~np.isnan(seen[:, 0])
        assert 50 < met.sum() < reached <= 400 + 9 * 60
        assert (seen[met] == truth[met]).all()


@pytest.mark.parametrize("chain", draft_tokens.CHAINS.values(), ids=lambda chain: chain.name)
def test_chains_have_the_statistics_of_their_laws(chain: Any) -> None:
    p, accepted = path(chain, 3, 60_000).T
    deficit = -np.log(p)
    assert deficit.max() <= draft_tokens.LARGEST_DEFICIT + 1e-9
    hard = chain.to_hard / (chain.to_hard + chain.to_easy)
    rng = np.random.default_rng(0)
    sample = np.where(
        rng.random(400_000) < hard,
        np.exp(chain.hard_mu + chain.hard_sigma * rng.standard_normal(400_000)),
        chain.easy_mean * rng.exponential(size=400_000),
    )
    sample = np.exp(-np.minimum(sample, 6.0))
    for level in (0.3, 0.7, 0.9, 0.99):
        assert (p < level).mean() == pytest.approx((sample < level).mean(), abs=0.01)
    expected = chain.most_accepted * p**chain.power
    for low, high in ((0.0, 0.5), (0.5, 0.9), (0.9, 1.01)):
        part = (p >= low) & (p < high)
        assert accepted[part].mean() == pytest.approx(expected[part].mean(), abs=0.015)


def test_the_measured_pair_is_what_was_measured() -> None:
    """Shares of accepted tokens by confidence are those of its meta.json, over all positions of a stream."""
    folder = files("llmgym.envs.pipesd") / "data" / "draft_pair"
    meta = json.loads((folder / "meta.json").read_text())
    data = (folder / "draft_target.npz").read_bytes()
    assert len(data) < 500_000
    names = [name for name in draft_tokens.names() if name.startswith("pair-")]
    assert names == ["pair-code", "pair-prose", "pair-code-sampled", "pair-prose-sampled"]
    for t, temperature in enumerate((0, 1)):
        for d, domain in enumerate(("code", "prose")):
            table = draft_tokens.read_pair(data, meta, "x", d, t)
            group = meta["measured"]["groups"][f"{domain}, temperature {temperature}"]
            assert len(table.confidence) == group["streams"]
            assert table.accepted.mean() == pytest.approx(group["acceptance"], abs=1e-4)
            assert table.confidence.mean() == pytest.approx(group["confidence_mean"], abs=2e-3)
            new = np.arange(table.accepted.shape[1]) < table.length[:, None]
            assert table.accepted[new].mean() == pytest.approx(group["fresh_acceptance"], abs=1e-3)
            assert ((table.accepted == 0) == (table.beside_row >= 0)).all()
            assert sorted(table.beside_row[table.beside_row >= 0]) == list(range(len(table.beside)))
            assert table.beside.shape[1] == 12 and table.beside.min() > 0 and table.beside.max() <= 1
    loaded = draft_tokens.load("pair-code")
    assert "H100" in loaded.about["machine"]["device"]


def test_a_trace_of_tokens(tmp_path: Any) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("confidence,accepted\n0.5,0\n0.9,1\n1.0,1\n0.25,0\n")
    table = draft_tokens.from_trace(file)
    assert table.name == "mine"
    got = path(table, 1, 8)
    assert got[:, 0].tolist() == [0.5, np.float32(0.9), 1.0, 0.25] * 2
    assert got[:, 1].tolist() == [0, 1, 1, 0] * 2
    assert table.beside[0].tolist() == [np.float32(0.9), 1.0, 0.25, 0.5]
    for content, named in (
        ("confidence,accepted\n1.5,1\n", "confidence=1.5|confidence=np.float64"),
        ("confidence,accepted\n0.5,2\n", "accepted=2.0|accepted=np.float64"),
        ("p,accepted\n0.5,1\n", "expected columns"),
        ("confidence,accepted\n", "same length"),
    ):
        file.write_text(content)
        with pytest.raises(InvalidArgument, match=named):
            draft_tokens.from_trace(file)
    with pytest.raises(UnknownName, match="mbpp"):
        draft_tokens.load("mbpp")
    with pytest.raises(InvalidArgument, match="text=7"):
        draft_tokens.load(7)
    with pytest.raises(InvalidArgument, match=r"to_hard=1.2"):
        draft_tokens.Chain("x", 1.2, 0.1, 0.1, 0.0, 1.0, 1.0, 1.0)
