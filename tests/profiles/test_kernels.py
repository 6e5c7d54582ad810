"""Kernel sets: reading, writing, interpolation, and what physics says of the shipped ones."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from llmgym import profiles
from llmgym.errors import InvalidArgument, ProfileError, UnknownName
from llmgym.profiles.kernels import Kernels, Row, load_kernels, write_rows

META = {"format": 1, "device": "toy", "date": "2026-01-01", "method": "made up", "versions": {"torch": "0"}}


def row(op: str, time_us: float, **shape: int) -> Row:
    return Row(op, "toy", tuple(shape.items()), time_us, 0.1, -1, math.nan, 7)


def save(folder: Path, rows: list[Row], **meta: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "meta.json").write_text(json.dumps({**META, **meta}))
    write_rows(folder / "kernels.csv", rows)
    return folder


@pytest.fixture
def toy(tmp_path: Path) -> Kernels:
    rows = [row("line", 10.0 + 2.0 * n, tokens=n) for n in (1, 2, 4, 1024, 4096)]
    rows += [
        row("grid", 3.0 + c * 0.01 + n * 0.1, chunk=n, context=c) for n in (16, 64) for c in (0, 100, 400)
    ]
    rows += [row("floor", max(20.0, 0.5 * n), tokens=n) for n in (1, 4, 16, 40, 100, 1000, 10000)]
    rows += [row("one", 5.0, tokens=3)]
    return load_kernels(save(tmp_path / "set", rows))


def test_measured_values_come_back_and_what_lies_between_lies_between(toy: Kernels) -> None:
    assert toy.time_us("line", "toy", tokens=1024) == pytest.approx(2058.0)
    assert toy.time_us("grid", "toy", chunk=64, context=100) == pytest.approx(10.4, rel=1e-3)
    between = toy.time_us("line", "toy", tokens=2048)
    assert between == pytest.approx(math.sqrt(2058.0 * 8202.0), rel=1e-4)  # log-log
    assert 4.6 < toy.time_us("grid", "toy", chunk=16, context=50) < 5.6
    # from no context to the first, time is nearly linear in the context
    assert toy.time_us("grid", "toy", chunk=16, context=50) == pytest.approx(5.1, rel=0.01)
    assert toy.time_us("one", "toy", tokens=3) == 5.0


def test_crossover(tmp_path: Path) -> None:
    rows = [row("a", 0.01 * n * n, n=n, heads=1) for n in (10, 100, 1000)]
    rows += [row("a", 1.0 * n, n=n, heads=1)._replace(variant="other") for n in (10, 100, 1000)]
    rows += [row("a", 0.9 * n, n=n, heads=1)._replace(variant="third") for n in (10, 100, 1000)]
    kernels = load_kernels(save(tmp_path / "set", rows))
    assert kernels.crossover("a", "other", "toy", "n", heads=1) == pytest.approx(100.0)
    assert kernels.crossover("a", "third", "toy", "n") == pytest.approx(90.0)
    assert kernels.crossover("a", "third", "other", "n") == 10.0
    assert kernels.crossover("a", "other", "third", "n") == math.inf
    with pytest.raises(InvalidArgument, match="share 0 values of n"):
        kernels.crossover("a", "other", "toy", "n", heads=2)


def test_affine_law_leaves_out_the_floor(toy: Kernels) -> None:
    law = toy.affine("floor", "toy", "tokens")
    assert law.alpha_us == pytest.approx(0.5) and law.beta_us == pytest.approx(0.0, abs=0.2)
    assert law.low == 40 and law.high == 10000 and law.r_squared > 0.999
    law = toy.affine("line", "toy", "tokens")
    assert (law.alpha_us, law.beta_us, law.low) == (pytest.approx(2.0), pytest.approx(10.0), 1)
    product = (
        toy.affine("grid", "toy", "chunk", context=0)
        if False
        else toy.affine("grid", "toy", "context", chunk=16)
    )
    assert product.alpha_us == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (
            UnknownName,
            "unknown op 'lines'. Did you mean 'line'",
            lambda k: k.time_us("lines", "toy", tokens=2),
        ),
        (UnknownName, "unknown variant of line 'x'", lambda k: k.table("line", "x")),
        (InvalidArgument, "expected tokens", lambda k: k.time_us("line", "toy", batch=2)),
        (
            InvalidArgument,
            "tokens=5000 of line: measured from 1 to 4096",
            lambda k: k.time_us("line", "toy", tokens=5000),
        ),
        (InvalidArgument, "line has tokens", lambda k: k.affine("line", "toy", "kv")),
        (InvalidArgument, "three are needed", lambda k: k.affine("line", "toy", "tokens", tokens=4)),
        (UnknownName, "unknown kernel set 'h101/kernels'", lambda k: load_kernels("h101/kernels")),
    ],
)
def test_wrong_questions(toy: Kernels, error: type[Exception], words: str, call: object) -> None:
    with pytest.raises(error) as raised:
        call(toy)  # type: ignore[operator]
    assert words in str(raised.value)


def test_damaged_sets_name_the_place(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", [row("line", 1.0, tokens=1)], format=2)
    with pytest.raises(ProfileError, match=r"meta\.json: format 2; this version reads 1"):
        load_kernels(folder)
    folder = save(tmp_path / "b", [row("line", 1.0, tokens=1)], date="")
    with pytest.raises(ProfileError, match="'date' is missing"):
        load_kernels(folder)
    folder = save(tmp_path / "c", [row("line", 1.0, tokens=1), row("line", -2.0, tokens=2)])
    with pytest.raises(ProfileError, match=r"kernels.csv, row 3: .*latency_us > 0"):
        load_kernels(folder)
    folder = save(tmp_path / "d", [row("line", 1.0, tokens=1)] * 2)
    with pytest.raises(ProfileError, match="two of the same case"):
        load_kernels(folder)
    folder = save(tmp_path / "e", [row("line", 1.0, tokens=1)])
    (folder / "kernels.csv").write_text(
        (folder / "kernels.csv").read_text().replace("tokens=1", "tokens=few")
    )
    with pytest.raises(ProfileError, match="row 2"):
        load_kernels(folder)


SHIPPED = ("h100/kernels", "h200/kernels")


def test_kernel_sets_ship_and_are_no_profiles() -> None:
    assert profiles.kernel_names() == list(SHIPPED)
    assert not set(SHIPPED) & set(profiles.names())


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sets_have_provenance_and_every_family(name: str) -> None:
    kernels = load_kernels(name)
    assert {"torch", "cuda", "driver"} <= set(kernels.meta["versions"]) and "NVIDIA H" in kernels.meta[
        "device"
    ]
    assert all(
        skipped["reason"].startswith("RuntimeError: needs about") for skipped in kernels.meta["skipped"]
    )
    ops = kernels.ops()
    assert {
        "gemm",
        "moe",
        "paged_decode",
        "attention_part",
        "ffn_part",
        "causal_attention",
        "denoiser_layer",
    } <= set(ops)
    assert {"segment", "score", "top_k", "gather", "bm25", "copy_to_host", "host_step", "power"} <= set(ops)
    assert len(ops["gemm"]) == 60  # three models on one of 1, 2, 4, 8 GPUs, five products each
    spread = np.array([r.iqr_us / r.latency_us for r in kernels.rows if r.op not in ("host_step", "power")])
    assert np.median(spread) < 0.03


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_is_faster_than_the_device_can_be(name: str) -> None:
    """Peaks of the data sheets: 989 TFLOP/s bf16; 3.35 TB/s (H100), 4.8 TB/s (H200); 700 W."""
    kernels = load_kernels(name)
    bandwidth = {"h100": 3.35e6, "h200": 4.8e6}[name[:4]]  # bytes a us
    table = kernels.table("decode_attention", "32 query heads, 8 key heads of 128")
    moved = table["batch"] * table["kv"] * 2 * 8 * 128 * 2
    assert (moved / table["latency_us"] < bandwidth).all()
    table = kernels.table("gemm", "llama-3.1-8b tp1 gate_up")
    assert (2 * table["tokens"] * 4096 * 28672 / table["latency_us"] < 989e6).all()
    table = kernels.table("power", next(v for v in kernels.ops()["power"] if "training" in v))
    # a limit of 700 W; the energy counter moves in steps of a tenth of a second, 7 % of what is averaged over
    assert (table["power_w"] < 1.1 * 700).all() and (table["power_w"] > 300).all()


@pytest.mark.parametrize("name", SHIPPED)
def test_more_work_takes_longer(name: str) -> None:
    """Within 8 %; a product may be up to a quarter slower than a larger one, as cuBLAS chooses another kernel for every size."""
    kernels = load_kernels(name)
    least = {"gemm": 0.75, "ffn_part": 0.85, "copy_to_host": 0.8}
    for op, variants in kernels.ops().items():
        if op in ("top_k", "power"):  # other algorithms at other sizes; launches of their own
            continue
        for variant in variants:
            table = kernels.table(op, variant)
            names = [key for key in table if key not in ("latency_us", "iqr_us", "peak_bytes", "power_w")]
            for varied in names:
                rest = [table[key] for key in names if key != varied]
                groups = set(zip(*rest, strict=True)) if rest else {()}
                for group in groups:
                    keep = np.ones(len(table["latency_us"]), bool)
                    for column, value in zip(rest, group, strict=True):
                        keep &= column == value
                    order = np.argsort(table[varied][keep])
                    times = table["latency_us"][keep][order]
                    highest = np.maximum.accumulate(times)
                    assert (times > least.get(op, 0.92) * highest).all(), (op, variant, varied, group, times)


@pytest.mark.parametrize("name", SHIPPED)
def test_linear_attention_crosses_the_fused_kernel_far_later_than_the_unfused_one(name: str) -> None:
    """What slay's published figure compares with is the unfused kernel."""
    kernels = load_kernels(name)
    unfused, fused = (
        kernels.crossover("causal_attention", "slay 2 16 8", other, "length", heads=8)
        for other in ("softmax", "fused softmax")
    )
    assert 256 < unfused < 16384 < fused
