"""Published numbers on memory processing with an FPGA beside the GPU.

He, Ma, Sun and Cong, "Understand and Accelerate Memory Processing Pipeline for Large Language Model Inference", ICML 2026 (arXiv
2603.29002), and the cost model of its authors. The totals of the placement instance were worked out from the latter. What is not
reached is a row of `docs/deviations.csv`, with the reason.
"""

import functools
from collections.abc import Callable

import numpy as np
import pytest

from llmgym.envs.memory.costs import BATCHES, REFERENCE_SIZE, cells, size_of
from llmgym.envs.memory.devices import DOWN, U55C, UP, copy_s, pcie
from llmgym.envs.memory.law import (
    FPGA,
    GPU,
    LONG,
    RAG,
    SHORT,
    SPARSE,
    WORKLOADS,
    amdahl,
    band_devices,
    batch_odds,
    energy_ratio,
    envelope_share,
    mapped_speedup,
    moving_odds,
    moving_speedup,
    odds_of,
    share_of,
)
from llmgym.envs.memory.placement import FUSED, costs, letters, parse
from llmgym.envs.memory.published import NAMES, PAGED_BYTES, PAGED_FLOP, published_cell
from tests.papers.deviations import KNOWN, Deviation, check, every_deviation

LINKS = pcie()
ONE_PAGED = 8192 * 16
"""Tokens of the published instance's 8,192 pages."""

# placement in the order prep, comp, ret, apply: total and, of it, transfer, us
TOTALS = {
    "GFFG": (279.536, 0.871),
    "GFGG": (324.403, 19.663),
    "GGFG": (366.524, 16.299),
    "GGGG": (376.300, 0.0),
    "GFFF": (1031.576, 732.422),
    "GFGF": (1078.793, 753.563),
    "GGFF": (1118.565, 747.850),
    "GGGF": (1130.690, 733.900),
    "FFFF": (1157.733, 0.0),
    "FFGF": (1204.950, 21.141),
    "FFFG": (1828.288, 691.044),
    "FFGG": (1873.155, 709.836),
    "FGFF": (2157.089, 927.796),
    "FGGF": (2169.214, 913.846),
    "FGFG": (2827.644, 1618.840),
    "FGGG": (2837.420, 1602.541),
}


def placement_us(name: str) -> np.ndarray:
    """Total and transfer of a placement of the published instance, us."""
    return 1e6 * costs(published_cell("paged", ONE_PAGED, 1), LINKS)[parse(name), :2]


def test_all_sixteen_totals_of_the_placement_instance() -> None:
    """To 0.001 us."""
    rows = 1e6 * costs(published_cell("paged", ONE_PAGED, 1), LINKS)
    for name, (total, transfer) in TOTALS.items():
        assert placement_us(name)[1] == pytest.approx(transfer, abs=1e-3), name
        if f"memory/total {name}" not in KNOWN:
            assert placement_us(name)[0] == pytest.approx(total, abs=1e-3), name
    assert letters(int(np.argmin(rows[:16, 0]))) == "GFFG"
    assert letters(int(np.argmin(rows[:, 0]))) == "GFFG fused"
    alone = rows[parse("GGGG"), 0]
    assert alone / rows[parse("GFFG"), 0] == pytest.approx(1.346, abs=5e-4)
    assert rows[FUSED, 0] == pytest.approx(269.200, abs=1e-3)
    assert alone / rows[FUSED, 0] == pytest.approx(1.398, abs=5e-4)


def test_without_the_build_stage_and_with_the_copy_of_the_index() -> None:
    rows = 1e6 * costs(published_cell("paged-decode", ONE_PAGED, 1), LINKS)
    assert rows[0, 0] == pytest.approx(126.3, abs=1e-3)
    assert rows[parse("GFFG"), 0] == pytest.approx(29.53, abs=0.01)
    assert rows[FUSED, 0] == pytest.approx(19.20, abs=0.005)
    assert rows[0, 0] / rows[parse("GFFG"), 0] == pytest.approx(4.28, abs=0.005)
    assert rows[0, 0] / rows[FUSED, 0] == pytest.approx(6.58, abs=0.005)
    charged = published_cell("paged", ONE_PAGED, 1)
    charged["memory_down"] = 4 * 2**20
    rows = 1e6 * costs(charged, LINKS)
    best = int(np.nanargmin(rows[:, 0]))
    assert letters(best) == "GGFG" and rows[best, 0] == pytest.approx(366.52, abs=0.005)
    assert rows[0, 0] / rows[best, 0] == pytest.approx(1.03, abs=0.005)


@pytest.mark.parametrize(
    ("direction", "size", "expected_us"),
    [
        (UP, 256, 0.871),
        (UP, 1024, 3.138),
        (UP, 128 * 1024, 22.53),
        (DOWN, 1024, 4.670),
        (DOWN, 32 * 1024, 15.43),
        (DOWN, 4 * 2**20, 976.6),
    ],
)
def test_times_of_copies(direction: int, size: int, expected_us: float) -> None:
    assert 1e6 * copy_s(LINKS[direction], float(size), 1.0) == pytest.approx(expected_us, rel=5e-3)


def test_roofline_of_the_fpga() -> None:
    assert U55C.cycles(PAGED_BYTES[1] - 32768, PAGED_FLOP[1]) == pytest.approx(4194816 / 1564)
    assert U55C.cycles(4227584, PAGED_FLOP[1]) == pytest.approx(2703.06, abs=0.005)
    assert 1e6 * U55C.time_s(4227584, PAGED_FLOP[1]) == pytest.approx(10.81, abs=0.005)
    assert U55C.cycles(PAGED_BYTES[0], PAGED_FLOP[0]) == pytest.approx(277137.7, abs=0.05)
    assert 1e6 * U55C.time_s(PAGED_BYTES[0], PAGED_FLOP[0]) == pytest.approx(1108.55, abs=0.005)
    assert pytest.approx(3.85, abs=0.005) == U55C.ridge
    assert U55C.bytes_per_cycle * U55C.clock_hz == pytest.approx(391e9, rel=1e-3)
    assert U55C.flop_per_cycle * U55C.clock_hz == pytest.approx(1.50e12, rel=5e-3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dsa", 1.20),
        ("seer-topk", 1.25),
        ("seer-threshold", 1.47),
        ("lserve", 1.49),
        ("dragin", 1.92),
        ("flare", 2.11),
        ("fs-rag", 2.10),
        ("two-stage-rag", 1.37),
        ("memory-as-context", 1.60),
        ("memagent", 1.85),
    ],
)
def test_best_reported_speedups(name: str, expected: float) -> None:
    w = WORKLOADS[name]
    share = w.share if w.best_share is None else w.best_share
    assert amdahl(share, w.speedup) == pytest.approx(expected, abs=0.01)
    if w.best_share is not None:  # the batch of 32 takes the share there
        assert share_of(moving_odds(w, 20e6, 32)) == pytest.approx(w.best_share, abs=0.002)


UPPER = (1.19, 1.34, 1.51, 1.67, 1.83)
RANGES = {1: (1.14, 1.26), 2: (1.20, 1.32), 4: (1.28, 1.42), 8: (1.32, 1.58), 32: (1.37, 2.11)}
POINTS = (1, 2, 4, 8, 32)


def test_speedups_by_batch() -> None:
    """Within 4 % of the paper; retrieval inside its ranges within 4 %."""
    for batch, paper in zip(POINTS, UPPER, strict=True):
        odds = batch_odds(odds_of(0.293), batch)
        assert amdahl(share_of(odds), 2.2) == pytest.approx(paper, rel=0.04)
    for name, row in (
        ("memagent", (1.85, 1.65, 0.93, 0.49, 0.13)),
        ("memory-as-context", (1.48, 1.47, 1.45, 1.38, 1.15)),
    ):
        for batch, paper in zip(POINTS, row, strict=True):
            assert mapped_speedup(WORKLOADS[name], LONG, batch) == pytest.approx(paper, rel=0.04), (
                name,
                batch,
            )
    for w in WORKLOADS.values():
        if w.family == RAG:
            for batch, (low, high) in RANGES.items():
                assert 0.96 * low <= mapped_speedup(w, 20e6, batch) <= 1.04 * high, (w.name, batch)
    agent = WORKLOADS["memagent"]
    assert mapped_speedup(agent, LONG, 2) > 1.0 > mapped_speedup(agent, LONG, 4)


def test_the_cells_take_what_the_laws_say_and_batch_aware_never_loses() -> None:
    """With copies: the paper's mapping of every published request has the speed-up of the law."""
    table = cells()
    for name, w in WORKLOADS.items():
        mapping = parse("FGGG") if name == "memagent" else FUSED
        for i in range(REFERENCE_SIZE + 1):
            for j, batch in enumerate(BATCHES):
                rows = costs(table[NAMES.index(name), i, j], LINKS)
                if name == "ttt":
                    assert np.nanargmin(rows[:, 0]) == 0
                    continue
                speedup = rows[0, 0] / rows[mapping, 0]
                assert speedup == pytest.approx(mapped_speedup(w, size_of(name, i), batch), rel=1e-9)
                if not (name == "memagent" and batch > 2):
                    assert speedup >= 1.0


def test_shares_by_context() -> None:
    for tokens, low, high in ((SHORT, 0.010, 0.11), (LONG, 0.22, 0.81)):
        assert envelope_share(tokens, upper=False) == pytest.approx(low, abs=0.005)
        assert envelope_share(tokens, upper=True) == pytest.approx(high, abs=0.005)
    for name, slope in (
        ("dsa", 3.89e-7),
        ("seer-topk", 5.22e-7),
        ("seer-threshold", 6.10e-7),
        ("lserve", 6.05e-7),
    ):
        w = WORKLOADS[name]
        rise = (moving_odds(w, LONG, 1) - moving_odds(w, SHORT, 1)) / (LONG - SHORT)
        assert rise == pytest.approx(slope, rel=0.005)
        assert moving_odds(w, SHORT, 1) == pytest.approx(0.035)
        assert share_of(moving_odds(w, LONG, 1)) == pytest.approx(w.share)


# J per request with the FPGA, on the GPU alone
JOULES = {
    "dsa": (15.86, 25.62),
    "seer-threshold": (0.30, 0.34),
    "seer-topk": (0.32, 0.36),
    "lserve": (0.29, 0.43),
    "dragin": (328.16, 362.57),
    "flare": (241.99, 275.53),
    "fs-rag": (259.88, 315.25),
    "memory-as-context": (16.55, 27.31),
    "memagent": (3202.0, 13662.0),
}


def energy_by_law(name: str) -> float:
    """Energy on the GPU alone over that with the FPGA, by share and speed-up of the moved stages."""
    return energy_ratio(WORKLOADS[name].energy_share, WORKLOADS[name].speedup)


@pytest.mark.parametrize("name", [name for name in JOULES if f"memory/energy {name}" not in KNOWN])
def test_energy_ratios(name: str) -> None:
    """Within 1 %."""
    both, alone = JOULES[name]
    assert energy_by_law(name) == pytest.approx(alone / both, rel=0.01)


def test_joules_and_further_energy_ratios() -> None:
    """MemAgent with the speed-up of its batch law; two-stage RAG, of which only a ratio is printed."""
    assert {name: WORKLOADS[name].joules for name in JOULES} == {name: row[1] for name, row in JOULES.items()}
    agent = WORKLOADS["memagent"]
    assert energy_ratio(agent.energy_share, moving_speedup(agent, 1)) == pytest.approx(13662 / 3202, rel=0.01)
    two_stage = WORKLOADS["two-stage-rag"]
    assert energy_ratio(two_stage.energy_share, two_stage.speedup) == pytest.approx(1.07, rel=0.01)


def energy_of_cell(name: str) -> float:
    """The same in the cell of a batch of one at the reference size, with the paper's mapping."""
    rows = costs(cells()[NAMES.index(name), REFERENCE_SIZE, 0], LINKS)
    return float(rows[0, 2] / rows[parse("FGGG") if name == "memagent" else FUSED, 2])


@pytest.mark.parametrize("name", JOULES)
def test_energy_of_the_gpu_in_the_cells(name: str) -> None:
    assert cells()[NAMES.index(name), REFERENCE_SIZE, 0]["gpu_j"] == pytest.approx(JOULES[name][1], rel=1e-9)


@pytest.mark.parametrize("name", [name for name in JOULES if f"memory/energy-cells {name}" not in KNOWN])
def test_energy_of_the_cells(name: str) -> None:
    """Within 1 %."""
    both, alone = JOULES[name]
    assert energy_of_cell(name) == pytest.approx(alone / both, rel=0.01)


def test_copies_are_a_small_part_of_the_optimum() -> None:
    rows = costs(published_cell("paged", ONE_PAGED, 1), LINKS)
    best = int(np.nanargmin(rows[:, 0]))
    assert rows[best, 1] / rows[best, 0] == pytest.approx(0.0032, abs=0.0001)
    assert rows[best, 1] / rows[best, 0] < 0.01


def test_band_rule() -> None:
    for w in WORKLOADS.values():
        for batch in BATCHES:
            devices = band_devices(w, batch)
            if w.family in (SPARSE, RAG):
                assert devices == (GPU, FPGA, FPGA, GPU)
            elif w.name == "memagent":
                assert devices == ((FPGA if batch <= 3 else GPU), GPU, GPU, GPU)
            elif w.name == "ttt":
                assert devices == (GPU, GPU, GPU, GPU)
            else:
                assert devices == (GPU, FPGA if batch <= 3 else GPU, FPGA, GPU)


OURS: dict[str, Callable[[], float]] = {
    "memory/total FFFF": lambda: placement_us("FFFF")[0],
    "memory/energy memagent": functools.partial(energy_by_law, "memagent"),
    "memory/energy-cells memagent": functools.partial(energy_of_cell, "memagent"),
    "memory/energy-cells memory-as-context": functools.partial(energy_of_cell, "memory-as-context"),
}


@every_deviation("memory")
def test_deviations(row: Deviation) -> None:
    check(row, OURS)
