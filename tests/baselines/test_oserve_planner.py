"""The planner of OServe as functions: shapes and their rates, deployments, placement, routing, search, and its command line."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmgym.baselines.oserve import search as oserve_search
from llmgym.baselines.oserve.policies import (
    brute_force,
    rate_table,
    route_lp,
    route_preflow,
    search,
    switch_plan,
)
from llmgym.cli import main
from llmgym.envs.oserve.deployments import (
    best,
    candidates,
    catalogue,
    cover,
    evaluate,
    flows,
    mixes,
    serving_all,
)
from llmgym.envs.oserve.placement import Place, place
from llmgym.envs.oserve.scenarios import CORNERS
from llmgym.envs.oserve.shapes import MODELS, Shape, capacity_tokens, rates, strategies
from llmgym.errors import InvalidArgument, UnknownName

TABLE = rate_table("opt-66b", CORNERS, 16)


# -------------------------------------------------------------------------------------------------- shapes, deployments


def test_strategies_of_a_size() -> None:
    assert strategies(8) == (Shape(8, 1), Shape(4, 2), Shape(2, 4), Shape(1, 8))
    assert strategies(16) == (Shape(8, 2), Shape(4, 4), Shape(2, 8))
    assert strategies(1) == (Shape(1, 1),)


def test_measured_rates_are_near_the_roofline() -> None:
    """Llama-3.1-70B from kernels measured on an H100 against the roofline: within 30 % everywhere, mean within 10 %."""
    measured = rate_table("llama-3.1-70b", CORNERS, 16, "h100/kernels")
    roofline = rate_table("llama-3.1-70b", CORNERS, 16)
    assert measured.shapes == roofline.shapes
    ratio = measured.rate / roofline.rate
    assert ratio.min() > 0.7 and ratio.max() < 1.3 and abs(ratio.mean() - 1.0) < 0.1
    assert (measured.prefill_s < measured.latency_s).all()


def test_memory_decides_what_fits() -> None:
    assert capacity_tokens(MODELS["opt-66b"], Shape(1, 1)) < 0.0
    assert rates("opt-66b", 2, 1, (2455, 510)).rate_rps == 0.0 < rates("opt-66b", 2, 1, (496, 18)).rate_rps
    assert not any(shape.gpus == 1 for shape in TABLE.shapes)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100.0))
def test_headroom_properties(seed: int, scale: float) -> None:
    """It scales inversely with the load, grows with replicas, and its flows use up what binds and no more."""
    rng = np.random.default_rng(seed)
    replicas = rng.integers(0, 3, len(TABLE.shapes))
    load = rng.exponential(1.0, 4) * (rng.random(4) < 0.8)
    assume(load.any() and serving_all(TABLE, replicas[None])[0])
    alpha, flow = flows(TABLE, replicas, load)
    assert flows(TABLE, replicas, scale * load)[0] == pytest.approx(alpha / scale, rel=1e-7)
    more = replicas.copy()
    more[rng.integers(len(more))] += 1
    assert flows(TABLE, more, load)[0] >= alpha * (1.0 - 1e-9)
    np.testing.assert_allclose(flow.sum(axis=0), alpha * load, rtol=1e-7, atol=1e-9)
    with np.errstate(divide="ignore", invalid="ignore"):
        used = np.where(flow > 0, flow / TABLE.rate, 0.0).sum(axis=1)
    assert (used <= replicas + 1e-7).all() and used.max() > 0.0


def test_headroom_without_load_and_without_room() -> None:
    replicas = np.zeros(len(TABLE.shapes), np.int64)
    replicas[TABLE.shapes.index((2, 1))] = 8
    assert flows(TABLE, replicas, np.zeros(4))[0] == np.inf
    alpha, flow = flows(TABLE, replicas, np.array([1.0, 1.0, 0.0, 1.0]))
    assert alpha == 0.0 and flow[:, 3].sum() == 0.0 and flow[:, 0].sum() > 0.0


def test_best_goes_by_order() -> None:
    assert best(np.array([1.2, 1.19, 0.99]), np.array([9.0, 5.0, 1.0])) == 1
    assert best(np.array([1.01, 0.99]), np.array([9.0, 1.0])) == 0  # what serves everything first
    assert (
        best(np.array([1.2, 1.1]), np.array([9.0, 1.0])) == 0
    )  # 8 % of headroom are not given up for latency
    assert best(np.array([1.20, 1.21]), np.array([5.0, 5.0000001])) == 1  # equal latency: the headroom


def test_candidates_do_for_every_mix() -> None:
    rows = catalogue(TABLE.shapes, 16)
    rows = rows[serving_all(TABLE, rows)]
    chosen, lost = candidates(TABLE, rows, 8)
    assert len(set(chosen)) == len(chosen) <= 8 and lost < 0.03
    fewer, more_lost = candidates(TABLE, rows, 3, keep=(5,))
    assert fewer[0] == 5 and len(fewer) == 3 and more_lost > lost
    alpha, late = evaluate(TABLE, rows, mixes(4, 4))
    assert len(cover(alpha, late, 1)) == 1


def test_a_catalogue_of_nothing() -> None:
    with pytest.raises(InvalidArgument, match="gpus=3"):
        catalogue((Shape(2, 1),), 3)
    with pytest.raises(InvalidArgument, match="fit into no replica"):
        rate_table("opt-66b", CORNERS, 1)
    with pytest.raises(InvalidArgument, match="classes"):
        rate_table("opt-66b", (), 8)


# ------------------------------------------------------------------------------------------------------------ placement


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_deployment_finds_room(seed: int) -> None:
    """From any deployment to any other: all GPUs once, aligned, whole replicas; to the same one nothing moves."""
    rng = np.random.default_rng(seed)
    gpus = int(rng.choice([8, 16, 24, 32]))
    sizes = np.array([1, 2, 4, 4, 8, 16])
    slots = Place.zeros(32)
    slots["shape"] = -1
    target = np.zeros((gpus, 2), np.int64)
    for _ in range(4):
        wanted, left = np.zeros(len(sizes), np.int64), gpus
        while left:
            s = int(rng.choice(np.flatnonzero(sizes <= left)))
            wanted[s] += 1
            left -= sizes[s]
        before = {(int(s["shape"]), int(s["gpu"])) for s in slots if s["shape"] >= 0}
        moved = place(slots, sizes, wanted, gpus, target)
        first = np.flatnonzero(target[:, 0] >= 0)
        np.testing.assert_array_equal(np.bincount(target[first, 0], minlength=len(sizes)), wanted)
        taken = np.concatenate([np.arange(g, g + sizes[target[g, 0]]) for g in first])
        assert sorted(taken.tolist()) == list(range(gpus))
        assert all(g % sizes[target[g, 0]] == 0 for g in first)
        kept = {(int(target[g, 0]), int(g)) for g in first if target[g, 1]}
        assert kept <= before
        assert moved == gpus - sum(int(sizes[s]) for s, _ in kept)
        slots["shape"] = -1
        for k, g in enumerate(first):
            slots[k] = (target[g, 0], g, sizes[target[g, 0]])
        assert place(slots, sizes, wanted, gpus, target) == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_transfers_add_up(seed: int) -> None:
    """What is sent is received, every GPU gets exactly what it lacks, and the greedy plan is no worse than one sender for all."""
    rng = np.random.default_rng(seed)
    rows = catalogue(TABLE.shapes, 16)
    before, after = (
        [s for s, n in zip(TABLE.shapes, rows[rng.integers(len(rows))], strict=True) for _ in range(n)]
        for _ in range(2)
    )
    plan = switch_plan(before, after, 128e9, 16)
    assert (
        plan.sent_bytes.sum() == pytest.approx(plan.received_bytes.sum()) == pytest.approx(plan.total_bytes)
    )
    assert 0.0 <= plan.between_nodes_bytes <= plan.total_bytes
    lower = max(plan.received_bytes.max() / 400e9, plan.between_nodes_bytes / 400e9)
    assert lower - 1e-12 <= plan.seconds <= plan.total_bytes / 200e9 + 1e-12
    both = [s.gpus for s in TABLE.shapes for _ in range(min(before.count(s), after.count(s)))]
    assert 16 - plan.changed_gpus in {sum(kept) for kept in itertools.combinations(both, plan.kept)}
    assert switch_plan(before, before, 128e9, 16).total_bytes == 0.0


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"before": ()}, "before"),
        ({"after": ()}, "after"),
        ({"after": ((8, 1), (8, 1), (8, 1))}, "gpus=16"),
        ({"nvlink_gb_per_s": 0.0}, "nvlink_gb_per_s"),
        ({"infiniband_gb_per_s": -3.0}, "infiniband_gb_per_s"),
        ({"weight_bytes": 0.0}, "weight_bytes"),
        ({"before": ((5, 1),)}, "shape"),
        ({"before": (8,)}, "shape"),
    ],
)
def test_wrong_plans(kwargs: dict[str, Any], named: str) -> None:
    plan = {"before": ((8, 1),), "after": ((4, 1),) * 2, "weight_bytes": 1e9, "gpus": 16}
    with pytest.raises(InvalidArgument, match=named):
        switch_plan(**{**plan, **kwargs})


# -------------------------------------------------------------------------------------------------- routing and search


def test_a_program_that_cannot_serve_all_serves_the_most() -> None:
    replicas = np.zeros(len(TABLE.shapes), np.int64)
    replicas[TABLE.shapes.index((8, 1))] = 2
    demand = np.array([30.0, 10.0, 10.0, 5.0])
    routing = route_lp(TABLE, replicas, demand)
    assert routing.headroom < 1.0 and routing.headroom <= routing.served < 1.0
    assert (routing.flow.sum(axis=0) <= demand + 1e-9).all()
    assert routing.utilization.max() == pytest.approx(1.0)


def test_plain_flow_is_exact_where_replicas_differ_by_a_factor() -> None:
    rate = np.outer([1.0, 2.0], [3.0, 3.0, 3.0, 3.0])
    twin = TABLE._replace(
        shapes=TABLE.shapes[:2], rate=rate, latency_s=1.0 / rate, capacity=TABLE.capacity[:2]
    )
    demand = np.array([2.0, 1.0, 3.0, 2.5])
    plain, exact = (route(twin, np.array([1, 1]), demand) for route in (route_preflow, route_lp))
    assert plain.served == pytest.approx(exact.served, abs=1e-3) == pytest.approx(1.0, abs=1e-3)
    assert plain.utilization.max() <= 1.0 + 1e-3


@pytest.mark.parametrize("route", [route_lp, route_preflow])
def test_wrong_routing(route: Any) -> None:
    some = np.ones(len(TABLE.shapes), np.int64)
    with pytest.raises(InvalidArgument, match="demand"):
        route(TABLE, some, np.array([1.0, -1.0, 0.0, 0.0]))
    with pytest.raises(InvalidArgument, match="4 types"):
        route(TABLE, some, np.ones(3))
    with pytest.raises(InvalidArgument, match="replicas"):
        route(TABLE, np.zeros(len(some), np.int64), np.ones(4))
    with pytest.raises(InvalidArgument, match="replicas"):
        route(TABLE, np.ones(2, np.int64), np.ones(4))
    assert route(TABLE, some, np.zeros(4)).served == 1.0


def test_search_by_every_solver() -> None:
    demand = np.array([3.0, 1.0, 1.0, 0.5])
    exact, program = (search(TABLE, demand, 16, solver=solver, seed=3) for solver in ("simplex", "lp"))
    assert exact.most == pytest.approx(program.most, rel=1e-6)
    plain = search(TABLE, demand, 16, solver="preflow", seed=3)
    assert plain.replicas @ [s.gpus for s in TABLE.shapes] == 16
    again = search(TABLE, demand, 16, exact.replicas, seed=3)
    assert again.headroom >= exact.headroom * 0.97 and brute_force(TABLE, demand, 16).most >= exact.most
    with pytest.raises(UnknownName, match="solver"):
        search(TABLE, demand, 16, solver="guess")
    with pytest.raises(InvalidArgument, match="demand"):
        search(TABLE, -demand, 16)
    with pytest.raises(InvalidArgument, match="gpus=3"):
        search(TABLE, demand, 3)


def test_moves_keep_all_gpus() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([s.gpus for s in TABLE.shapes])
    rows = catalogue(TABLE.shapes, 16)
    seen = dict.fromkeys(("move", "merge", "split", "swap", "restrategy"), 0)
    for row in rows[::7]:
        for move in seen:
            near = oserve_search._neighbours(TABLE, row, np.ones(4), move, rng)
            seen[move] += len(near)
            assert (near @ sizes == 16).all() and (near >= 0).all()
    assert min(seen.values()) > 20, seen


# --------------------------------------------------------------------------------------------------------- command line


def test_plan_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "oserve", "--model", "opt-66b", "--rates", "9", "0.2", "3", "0.1"]) == 0
    text = capsys.readouterr().out
    assert "headroom" in text and "routing" in text and "GPUs change" in text
    assert main(["plan", "oserve", "--rates", "900", "900", "900", "900"]) == 0
    assert "Overload" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--rates", "1", "-1", "1", "1"], "rates"),
        (["--rates", "1", "1"], "rates"),
        (["--rates", "0", "0", "0", "0"], "rates"),
        (["--gpus", "1"], "gpus=1"),
        (["--gpus", "64"], "gpus=64"),
        (["--model", "gpt-2"], "gpt-2"),
        (["--outputs", "1"], "outputs"),
        (["--kernels", "h100/kernels"], "kernels"),
    ],
)
def test_wrong_plans_on_the_command_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "oserve", *arguments]) == 2
    assert named in capsys.readouterr().err
