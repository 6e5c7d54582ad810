"""Placement costs by hand, measured kernels, resources in order, and wrong input."""

import numpy as np
import pytest

from llmgym import profiles
from llmgym.envs.memory.costs import HARDWARE, SIZES, cells, size_of
from llmgym.envs.memory.devices import DOWN, U55C, UP, Roofline, copy_s, pcie
from llmgym.envs.memory.law import (
    DOCUMENTS_FITTING,
    TOKENS_FITTING,
    WORKLOADS,
    amdahl,
    energy_ratio,
    envelope_share,
    moving_odds,
    workload,
)
from llmgym.envs.memory.measured import MEASURED, measured, measured_cell
from llmgym.envs.memory.placement import FUSED, PLACEMENTS, allowed, costs, letters, parse
from llmgym.envs.memory.published import NAMES, published_cell
from llmgym.envs.memory.resources import IDLE, backlog_s, book
from llmgym.errors import InvalidArgument, UnknownName


def test_a_placement_by_hand() -> None:
    """DSA at 65,536 tokens: relevancy on the FPGA, retrieval on the GPU moves query, entry, and back all scores."""
    cell = published_cell("dsa", 65536.0, 2)
    links = pcie(setup_s=1e-6)
    times = cell["time_s"]
    down = copy_s(links[DOWN], 2 * 4096.0, 1.0) + copy_s(links[DOWN], 2 * 256.0, 1.0)
    up = copy_s(links[UP], 2 * 4 * 65536.0, 1.0)
    expected = times[0, 0] + times[1, 1] + times[0, 2] + times[0, 3] + down + up
    row = costs(cell, links)[parse("GFGG")]
    assert row[0] == pytest.approx(expected, rel=1e-12) and row[1] == pytest.approx(down + up, rel=1e-12)
    assert row[3] == 2 * (4096 + 256 + 4 * 65536)
    watts = cell["power_w"]
    assert row[2] == pytest.approx(
        times[0, 0] * watts[0, 0]
        + times[1, 1] * watts[1, 1]
        + times[0, 2] * watts[0, 2]
        + times[0, 3] * watts[0, 3],
        rel=1e-12,
    )
    slower = costs(cell, links, 0.5)[parse("GFGG")]
    assert slower[0] - row[0] == pytest.approx(down + up - 3e-6, rel=1e-9)


def test_nothing_is_placed_that_is_empty_or_does_not_fit() -> None:
    agent = published_cell("memagent", 1e6, 1)
    assert [p for p in range(PLACEMENTS) if allowed(agent, p)] == [0b0000, 0b0001, 0b1000, 0b1001]
    fits, beyond = (published_cell("lserve", size, 1) for size in (TOKENS_FITTING, 2 * TOKENS_FITTING))
    assert all(allowed(fits, p) for p in range(PLACEMENTS))
    assert [p for p in range(PLACEMENTS) if allowed(beyond, p)] == [0b0000, 0b0001, 0b1000, 0b1001]
    assert not allowed(published_cell("dragin", DOCUMENTS_FITTING + 1, 1), FUSED)
    assert np.isnan(costs(beyond, pcie())[FUSED]).all()


def test_data_of_an_empty_stage_flows_through_it() -> None:
    """MemAgent: decoding on the FPGA sends back ids and not what lies between."""
    cell = published_cell("memagent", 1e6, 1)
    rows = costs(cell, pcie())
    assert rows[parse("FGGG"), 3] == cell["raw_build"] + cell["index"]
    assert rows[parse("FGGF"), 3] == cell["raw_build"] and rows[0, 3] == 0.0


@pytest.mark.parametrize("hardware", HARDWARE)
def test_tables(hardware: str) -> None:
    table = cells(hardware)
    for index, name in enumerate(NAMES):
        some = table[index]
        if name not in HARDWARE[hardware]:
            assert not some["gpu_s"].any()
            continue
        assert (some["gpu_s"] > 0).all() and (some["gpu_j"] > 0).all() and (some["workload"] == index).all()
        assert np.isfinite(some["time_s"]).all() and (some["time_s"] >= 0).all()
        if hardware == "mi210+u55c":  # the measured top-k is slower for 16,384 scores than for 65,536
            assert (np.diff(some["gpu_s"], axis=0) >= -1e-15).all()
        assert [float(x) for x in some["size"][:, 0]] == [size_of(name, i) for i in range(SIZES)]
        empty = np.array([[(bits >> stage) & 1 for stage in range(4)] for bits in some["empty"].ravel()])
        assert (some["time_s"].reshape(-1, 2, 4)[:, 0][empty == 1] == 0).all()


def test_measured_kernels_are_those_of_the_set() -> None:
    kernels = profiles.load_kernels("h100/kernels")
    m = measured(kernels)
    for op, variant in (("score", "16 heads of 128"), ("bm25", "8 terms, documents of 128 words")):
        for entries in (4096, 50_000, 1_048_576):
            expected = 1e-6 * kernels.time_us(op, variant, entries=entries)
            assert m.time_s(op, entries) == pytest.approx(expected, rel=1e-9)
        assert m.time_s(op, 100) == m.time_s(op, 4096)
        assert m.time_s(op, 3 * 1_048_576) == pytest.approx(3 * m.time_s(op, 1_048_576))
    cell = measured_cell(m, "fs-rag", 1_048_576, 1)
    assert cell["time_s"][0, 1] == pytest.approx(7834.5e-6)
    assert cell["fused_s"] == pytest.approx(U55C.time_s(512.0 * 1_048_576, 0.0))


def test_who_wins_on_an_h100() -> None:
    """A scan in plain torch loses to the FPGA at any size; an index of keys wins there only while it is small."""
    table, links = cells("h100+u55c"), pcie()
    for name, wins in (("fs-rag", {0: 6, 8: 5}), ("seer-topk", {0: 1.5}), ("lserve", {0: 1.2})):
        for i, least in wins.items():
            rows = costs(table[NAMES.index(name), i, 0], links)
            assert rows[0, 0] / rows[FUSED, 0] > least, (name, i)
    for name, i in (("dsa", 4), ("dsa", 8), ("lserve", 8), ("memagent", 8)):
        assert np.nanargmin(costs(table[NAMES.index(name), i, 0], links)[:, 0]) == 0, (name, i)


def test_a_resource_does_one_job_after_the_other() -> None:
    resource = IDLE.copy()[0]
    assert book(resource, 1.0, 2.0) == 3.0
    assert book(resource, 0.0, 1.0) == 4.0  # it keeps its place
    assert book(resource, 6.0, 0.5) == 6.5
    assert backlog_s(resource, 6.25) == 0.25 and backlog_s(resource, 9.0) == 0.0
    assert (resource["busy_s"], resource["jobs"]) == (3.5, 3)


def test_links() -> None:
    links = pcie(2.0, 1e-6)
    assert copy_s(links[DOWN], 0.0, 1.0) == 0.0
    assert copy_s(links[DOWN], 2.0**30, 1.0) == pytest.approx(0.125 + 1e-6)
    for direction in (DOWN, UP):
        times = [copy_s(links[direction], float(size), 1.0) for size in np.geomspace(64, 1e9, 200)]
        assert (np.diff(times) > 0).all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: pcie(0.0), "scale=0.0"),
        (lambda: pcie(setup_s=-1.0), "setup_s=-1.0"),
        (lambda: pcie(float("nan")), "scale=nan"),
        (lambda: Roofline(bytes_per_cycle=0.0), "bytes_per_cycle=0.0"),
        (lambda: U55C.time_s(-1.0, 0.0), "moved_bytes=-1.0"),
        (lambda: workload("dsaa"), "dsaa.*Did you mean 'dsa'"),
        (lambda: published_cell("bert", 1.0, 1), "bert"),
        (lambda: published_cell("dsa", 0.0, 1), "size=0.0"),
        (lambda: published_cell("dsa", 4096.0, 0), "batch=0"),
        (lambda: published_cell("dsa", 4096.0, 1.5), "batch=1.5"),
        (lambda: cells("tpu+u55c"), "tpu"),
        (lambda: cells("h100+u55c", "no/kernels"), "no/kernels"),
        (lambda: size_of("dsa", 10), "index=10"),
        (lambda: amdahl(1.5, 2.0), "share=1.5"),
        (lambda: amdahl(0.5, 0.0), "speedup=0.0"),
        (lambda: energy_ratio(0.5, 2.0, -0.4), "power_ratio=-0.4"),
        (lambda: envelope_share(-1.0, True), "tokens=-1.0"),
        (lambda: moving_odds(WORKLOADS["dsa"], 4096, 0), "batch=0"),
        (lambda: parse("GXFG"), "GXFG"),
        (lambda: letters(17), "17"),
    ],
)
def test_wrong_input_is_named(call, match: str) -> None:
    with pytest.raises((InvalidArgument, UnknownName), match=match):
        call()


def test_an_operator_that_was_not_measured() -> None:
    with pytest.raises(UnknownName, match="memory-as-context"):
        measured_cell(measured(profiles.load_kernels("h100/kernels")), "memory-as-context", 4096, 1)
    assert set(MEASURED) < set(NAMES)
