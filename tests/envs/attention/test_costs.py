"""Costs of attention kernels: measured values come back, batches follow their laws, and the measured crossover is where it is."""

from typing import Any

import numpy as np
import pytest

from llmgym.envs.attention import published
from llmgym.envs.attention.costs import (
    LAYERS,
    PUBLISHED,
    QUADRATIC,
    attention_bytes,
    attention_us,
    budget_of,
    checkpoints,
    first_choice,
    loss_of_kernel,
    measured_columns,
    step_s,
    tables,
    variants,
)
from llmgym.envs.attention.env import AttentionBudget
from llmgym.envs.attention.errors import DATA, error_of, loss_of
from llmgym.envs.attention.law import REFERENCE, Budget
from llmgym.errors import InvalidArgument, UnknownName
from llmgym.profiles.kernels import load_kernels
from llmgym.profiles.tables import read_csv


def of(source: str, layer: str, *menu: str, rest: bool = False) -> Any:
    return tables(source, layer, menu, 0.1, rest)


@pytest.mark.parametrize("source", ["h100/kernels", "h200/kernels", PUBLISHED])
def test_measured_times_and_memory_come_back(source: str) -> None:
    for name in ("softmax", "elu", "slay 2 16 8", "slay 3 4 16"):
        found = of(source, "8x32", name)
        for length, us, used in zip(*measured_columns(source, name, "8x32"), strict=True):
            assert attention_us(found, 0, length, 1, 1) == pytest.approx(us, rel=1e-9)
            assert attention_bytes(found, 0, length, 1, 1) == pytest.approx(used, rel=1e-9)


def test_between_lengths_logarithms_are_interpolated_and_beyond_nothing_is_known() -> None:
    found = of("h100/kernels", "8x32", "fused softmax", "yat")
    lengths, us, _ = measured_columns("h100/kernels", "fused softmax", "8x32")
    for length in (200.0, 3000.0, 100_000.0):
        expected = np.exp(np.interp(np.log(length), np.log(lengths), np.log(us)))
        assert attention_us(found, 0, length, 1, 1) == pytest.approx(expected, rel=1e-9)
    assert attention_us(found, 0, 17.0, 1, 1) == attention_us(found, 0, 128.0, 1, 1)
    assert attention_us(found, 1, 8192.0, 1, 1) < np.inf
    assert attention_us(found, 1, 8193.0, 1, 1) == np.inf == attention_us(found, 1, 8000.0, 2, 1)


def test_several_sequences_cost_what_was_measured() -> None:
    """One call for n sequences on an H200: a linear kernel as one sequence of n L tokens, a quadratic one of sqrt(n) L."""
    off: dict[bool, list[float]] = {True: [], False: []}
    for _, row in read_csv(DATA / "batches.csv", ("variant", "batch", "latency_us")):
        layer = f"{row['heads']}x{row['head_dim']}"
        found = of("h200/kernels", layer, row["variant"])
        us = attention_us(found, 0, float(row["length"]), int(row["batch"]), 1)
        quadratic = row["variant"].split()[0] in QUADRATIC
        off[quadratic].append(us / float(row["latency_us"]))
        used = attention_bytes(found, 0, float(row["length"]), int(row["batch"]), 1) / float(
            row["peak_bytes"]
        )
        # short sequences of the fused kernel share what each needs alone
        assert (used > 0.95) if quadratic else (0.9 < used < 1.1), row
    assert len(off[True]) == 31 and len(off[False]) == 93
    assert np.median(off[False]) == pytest.approx(1.0, abs=0.02)
    assert min(off[False]) > 0.9 and max(off[False]) < 1.12
    assert np.median(off[True]) == pytest.approx(1.03, abs=0.05)
    assert min(off[True]) > 0.9 and max(off[True]) < 1.5


def test_parts_take_turns() -> None:
    """Seven sequences in three parts are 2 + 2 + 3; memory is that of the largest."""
    found = of("h100/kernels", "8x32", "slay 2 16 8", "fused softmax")
    for k in (0, 1):
        one = [attention_us(found, k, 4096.0, n, 1) for n in (2, 2, 3)]
        assert attention_us(found, k, 4096.0, 7, 3) == pytest.approx(sum(one), rel=1e-12)
        assert attention_bytes(found, k, 4096.0, 7, 3) == attention_bytes(found, k, 4096.0, 3, 1)


def test_the_rest_of_a_layer() -> None:
    """Products and elementwise work of Llama-3.1-8B; beyond what was measured, as many times as that."""
    with_rest, without = (of("h200/kernels", "32x128", "fused softmax", rest=x) for x in (True, False))
    kernels = load_kernels("h200/kernels")
    expected = 0.0
    for op, name, times in (
        ("gemm", "tp1 qkv", 1),
        ("gemm", "tp1 attention_output", 1),
        ("gemm", "tp1 gate_up", 1),
        ("gemm", "tp1 down", 1),
        ("elementwise", "add_norm", 2),
        ("elementwise", "rotary", 1),
        ("elementwise", "gate", 1),
    ):
        expected += times * kernels.time_us(op, f"llama-3.1-8b {name}", tokens=16384)
    more = {
        n: step_s(with_rest, 0, n, 1, 1, 32)[0] - step_s(without, 0, n, 1, 1, 32)[0]
        for n in (16384.0, 65536.0)
    }
    assert more[16384.0] == pytest.approx(32e-6 * expected, rel=1e-9)
    assert more[65536.0] == pytest.approx(4 * more[16384.0], rel=1e-9)


def test_losses_of_kernels() -> None:
    assert loss_of_kernel("fused softmax", 32, 0.1) == 0.0 == loss_of_kernel("softmax", 32, 0.1)
    assert loss_of_kernel("favor 256", 32, 0.1) == 0.8107
    assert loss_of_kernel("slay 2 16 8", 32, 0.1) == 0.0343
    small = loss_of_kernel("slay 1 4 8", 32, 0.1)
    assert small == pytest.approx(0.0343 + 0.1 * (error_of(Budget(1, 4, 8), 32) - error_of(REFERENCE, 32)))
    assert loss_of_kernel("slay 1 4 8", 32, 0.0) == 0.0343
    assert loss_of(Budget(3, 32, 32), 32, 100.0) == 0.0
    assert checkpoints(("fused softmax", "softmax", "slay 2 16 8", "slay 1 8 8", "elu")) == 4
    assert budget_of("elu") is None and budget_of("slay 1 4 8") == (1, 4, 8)
    for wrong in ("slay", "slay 1 2", "slay a b c"):
        with pytest.raises(InvalidArgument, match="expected 'slay R M P'"):
            budget_of(wrong)
    with pytest.raises(InvalidArgument, match=r"measured are R of 1 to 3"):
        loss_of_kernel("slay 9 9 9", 32, 0.1)


def test_the_first_choice_is_the_least_loss() -> None:
    found = of("h100/kernels", "8x32", "elu", "softmax", "fused softmax", "slay 2 16 8")
    splits = np.array([1, 2, 4], np.int32)
    action, seconds = first_choice(found, splits, 2048.0, 4, 12, 1e12)
    assert (action // 3, action % 3) == (2, 0)
    assert seconds == step_s(found, 2, 2048.0, 4, 1, 12)[0]
    tight = attention_bytes(found, 2, 2048.0, 2, 1)
    assert first_choice(found, splits, 2048.0, 4, 12, tight)[0] == 2 * 3 + 1
    assert first_choice(found, splits, 2048.0, 4, 12, 1.0) == (-1, np.inf)


def test_menus() -> None:
    """Budgets and kernels of each source; H200 has all budgets of both layers."""
    for source, layer, count in (
        ("h100/kernels", "8x32", 42),
        ("h200/kernels", "8x32", 42),
        ("h200/kernels", "32x128", 42),
        ("h100/kernels", "32x128", 10),
        (PUBLISHED, "8x32", 41),
    ):
        found = variants(source, layer)
        assert len(found) == len(set(found)) == count
        of(source, layer, *found)
    assert set(LAYERS) == {"8x32", "32x128"}
    with pytest.raises(UnknownName, match="fused softmax"):
        of(PUBLISHED, "8x32", "fused softmax")
    with pytest.raises(UnknownName, match="slay 4 4 4"):
        of("h100/kernels", "8x32", "slay 4 4 4")
    with pytest.raises(InvalidArgument, match="is of layer='8x32'"):
        of(PUBLISHED, "32x128", "elu")


@pytest.mark.parametrize(
    ("scenario", "exact", "linear", "tokens"),
    [
        ("h100", "fused softmax", "slay 2 16 8", 25_174),
        ("h200", "fused softmax", "slay 2 16 8", 21_734),
        ("h100", "softmax", "slay 2 16 8", 1_453),
        ("h200", "fused softmax", "slay 1 8 8", 10_495),
        ("real", "fused softmax", "slay 2 16 8", 18_561),
        ("paper", "softmax", "slay 2 16 8", 3_190),
    ],
)
def test_crossover(scenario: str, exact: str, linear: str, tokens: float) -> None:
    """The measured crossover against the fused kernel is seven times that of the paper's figure."""
    simulation = AttentionBudget(scenario=scenario)
    assert simulation.crossover(linear, exact) == pytest.approx(
        tokens, rel=1e-3 if scenario != "paper" else 0.05
    )


def test_power_is_measured_where_it_was() -> None:
    """On an H200 fused softmax draws 690 W and SLAY 540 W; published figures have the limit of the board."""
    watts = {
        name: float(of("h200/kernels", "32x128", name, "slay 2 16 8").kernels["power_w"][0])
        for name in ("fused softmax", "slay 2 16 8", "slay 2 4 8")
    }
    assert watts["fused softmax"] == pytest.approx(690, abs=3)
    assert watts["slay 2 16 8"] == watts["slay 2 4 8"] == pytest.approx(544, abs=3)
    assert of(PUBLISHED, "8x32", "elu").kernels["power_w"][0] == 400.0
    assert published.LENGTHS[-1] == 131_072
