"""Shipped profiles, loading and saving, measured tables, and everything that must be refused."""

import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from llmgym import profiles
from llmgym.errors import InvalidArgument, ProfileError, UnknownName
from llmgym.profiles import cost as kernels
from llmgym.profiles.models import MODELS
from llmgym.profiles.named import DATA
from llmgym.profiles.profile import Profile, Provenance, Source
from llmgym.profiles.tables import REQUIRED_OPS, Table, read_tables

GPUS = ("a100", "h100", "h200", "b200", "l40s")
CONFIGURATIONS = (
    "llama-3.1-8b",
    "llama-2-70b-tp4",
    "llama-2-70b-tp8",
    "qwen2.5-7b",
    "qwen2.5-14b",
    "qwen2.5-72b-tp4",
)


def test_names():
    expected = {f"{gpu}/{model}" for gpu in GPUS for model in CONFIGURATIONS}
    assert expected <= set(profiles.names())
    assert {"paper/tiny", "paper/kv-queue-linear", "paper/kv-queue-1:1"} <= set(profiles.names())
    assert profiles.names() == sorted(profiles.names())


@pytest.mark.parametrize("name", profiles.names())
def test_every_shipped_profile_says_where_it_comes_from(name):
    profile = profiles.load(name)
    assert profile.name == name
    origin = profile.provenance
    assert origin.method in ("measured", "law", "paper", "synthetic") and origin.sources
    for source in origin.sources:
        assert source.title and source.licence and (source.url == "-" or source.url.startswith("https://"))
    if origin.method != "law":
        return
    assert {source.licence.split()[0] for source in origin.sources} >= {"Apache-2.0", "MIT"}
    used = [
        term["source"]
        for part in ("dense", "host")
        for terms in profile.laws[part].values()
        for term in terms
    ]
    used += [profile.laws[part][0]["source"] for part in ("prefill_attention", "decode_attention")]
    for source in used:
        if source.startswith(("aic/", "vidur/")):
            assert {"mape_pct", "p90_ape_pct", "n"} <= set(origin.errors[source]), source
    assert origin.errors["replay/conv_kv25600/tpot"]["mape_pct"] < 10
    assert [
        figures["mape_pct"] for key, figures in origin.errors.items() if key.startswith("closed loop")
    ] < [10]
    assert any("Default host law" in note for note in origin.notes)
    assert profile.weight_bytes < 0.9 * profile.memory_bytes
    assert 50_000 < profile.kv_capacity_tokens() < 5_000_000


@pytest.mark.parametrize("name", sorted(MODELS))
def test_model_sizes_match_the_published_parameter_counts(name):
    published = {
        "llama-3.1-8b": 8.03,
        "llama-3.1-70b": 70.55,
        "llama-2-70b": 68.98,
        "qwen2.5-7b": 7.62,
        "qwen2.5-14b": 14.77,
        "qwen2.5-72b": 72.71,
    }
    assert MODELS[name].parameters / 1e9 == pytest.approx(published[name], abs=0.005)
    for tp in (1, 2, 4):
        shard = sum(gemm.n * gemm.k for gemm in MODELS[name].gemms(tp)) * MODELS[name].layers
        assert shard * tp < MODELS[name].parameters


def test_kv_capacity():
    profile = profiles.load("h100/llama-3.1-8b")
    assert profile.kv_capacity_tokens() == int((0.9 * 85_899_345_920 - 2 * 8_030_261_248) // 131_072)
    assert profile.kv_capacity_tokens(0.5) < profile.kv_capacity_tokens(0.9)
    for bad in (0, -1, 1.5, math.nan):
        with pytest.raises(InvalidArgument, match="utilization"):
            profile.kv_capacity_tokens(bad)
    with pytest.raises(ProfileError, match="leave no KV cache"):
        profile.kv_capacity_tokens(0.1)
    assert profiles.load("paper/kv-queue-2:1").kv_capacity_tokens() == 131_000
    assert profiles.load("paper/tiny").kv_capacity_tokens() == 2_000
    with pytest.raises(InvalidArgument, match="no memory size"):
        profiles.constant(0.1).kv_capacity_tokens()
    assert profiles.constant(0.1, kv_capacity_tokens=77).kv_capacity_tokens() == 77


def test_options():
    default, old = profiles.load("a100/llama-3.1-8b"), profiles.load("a100/llama-3.1-8b", host="vidur-2024")
    assert default.options == {"dense": ("default", "vidur-2024"), "host": ("default", "vidur-2024")}
    assert kernels.host_s(old.step_cost(), 10) == pytest.approx(0.97547e-3 + 10 * 0.041676e-3, rel=1e-6)
    assert kernels.host_s(default.step_cost(), 10) < kernels.host_s(old.step_cost(), 10)
    two = profiles.load("a100/llama-2-70b-tp4", host="vidur-2024").step_cost()
    assert kernels.host_s(two, 10) == pytest.approx((0.97547 + 2 * 0.45274 + 0.41676) * 1e-3, rel=1e-5)
    layer = profiles.load("a100/llama-3.1-8b", dense="vidur-2024").step_cost()
    assert kernels.dense_s(layer, 4096) > 32 * 8.7e-3
    with pytest.raises(UnknownName, match=r"host option of profile h100/llama-3.1-8b 'vidur'.*vidur-2024"):
        profiles.load("h100/llama-3.1-8b", host="vidur")
    with pytest.raises(UnknownName, match="dense option"):
        profiles.load("h100/llama-3.1-8b", dense="vidur-2024")
    with pytest.raises(UnknownName, match="host option"):
        profiles.load("paper/tiny", host="vidur-2024")


def test_decode_step_of_an_h100_is_near_the_measured_engine():
    """vLLM 0.24.0, H100, Llama-3.1-8B shapes: TPOT p50 8.2 ms at about 8 decodes, prefills mixed in."""
    cost = profiles.load("h100/llama-3.1-8b").step_cost()
    step = kernels.step_time_s(cost, 0, 0.0, 8, 8 * 1300, 8, 8 * 1300)
    assert 6.2e-3 < step < 8.2e-3


def test_load_refuses_unknown_names_and_says_why():
    with pytest.raises(UnknownName, match=r"Did you mean 'h100/llama-3.1-8b'"):
        profiles.load("h100/llama-3.1-8")
    with pytest.raises(ProfileError, match=r"l40s/llama-2-70b'.*not shipped.*138.0 GB.*do not fit.*48.3 GB"):
        profiles.load("l40s/llama-2-70b")
    with pytest.raises(ProfileError, match=r"prompt:output ratio.*paper/kv-queue-1:1 \(0.0372 s\)"):
        profiles.load("paper/kv-queue-constant")


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan, "1", True])
def test_synthetic_constructors_refuse_bad_numbers(bad):
    with pytest.raises(InvalidArgument, match="c0_s"):
        profiles.linear(bad, 0, 0)
    with pytest.raises(InvalidArgument, match="c0_s"):
        profiles.constant(bad)


def test_synthetic_constructors_refuse_no_time_and_no_memory():
    with pytest.raises(InvalidArgument, match="must take time"):
        profiles.linear(0, 0, 0)
    with pytest.raises(InvalidArgument, match="kv_capacity_tokens"):
        profiles.constant(0.1, kv_capacity_tokens=0)
    assert profiles.constant(0.1).provenance.method == "synthetic"


# ---- measured profiles ----


def surface(op, shape):
    """A made-up machine, in microseconds, whose costs are straight in log-log space but for the host."""
    if op == "dense":
        return 300.0 * shape[0] ** 0.5
    if op == "prefill_attention":
        return 10.0 * shape[0] * (1 + shape[1]) ** 0.25
    if op == "decode_attention":
        return 5.0 * shape[0] ** 0.75 * (shape[1] / shape[0]) ** 0.5
    return 400.0 + 7.0 * shape[0]


def table(op, shapes):
    latency = np.array([surface(op, shape) for shape in shapes])
    power = np.where(np.arange(len(shapes)) % 2, 412.5, np.nan)
    return Table(np.array(shapes, np.int64), latency, latency * 0.013, power, ("bf16",) * len(shapes))


def measured_profile(**changes):
    powers = [2**k for k in range(11)]
    tables = {
        "dense": table("dense", [(n,) for n in powers]),
        "prefill_attention": table("prefill_attention", [(c, k) for c in powers for k in (0, 64, 512, 4096)]),
        "decode_attention": table(
            "decode_attention", [(b, b * k) for b in powers for k in powers if b * k <= 2**17]
        ),
        "host": table("host", [(n,) for n in (1, 16, 256)]),
        "send_recv": table("host", [(n,) for n in (1024, 1 << 20)]),
    }
    source = Source("a test", "https://example.org", "MIT")
    errors = {"dense": {"iqr_median_pct": 1.3}}
    values = {
        "name": "test/machine",
        "gpu": "test",
        "model": "none",
        "tensor_parallel": 1,
        "dtype": "bf16",
        "provenance": Provenance(
            "measured", "2026-11-24", (source,), errors, {"driver": "1.0"}, ("made up",)
        ),
        "memory_bytes": 10**9,
        "weight_bytes": 10**8,
        "kv_bytes_per_token": 1000,
        "tables": tables,
    }
    return Profile(**{**values, **changes})


@pytest.fixture
def folder(tmp_path):
    return measured_profile().save(tmp_path / "machine")


def test_round_trip_of_measured_tables(folder):
    profile, again = measured_profile(), profiles.load(folder)
    assert replace(again, tables={}) == replace(profile, tables={})
    assert list(again.tables) == list(profile.tables)
    for op, rows in profile.tables.items():
        for one, other in zip(rows, again.tables[op]):
            np.testing.assert_array_equal(one, other)
    for one, other in zip(profile.step_cost(), again.step_cost()):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    "name", ["h100/llama-2-70b-tp4", "paper/kv-queue-linear", "paper/kv-queue-1:2", "paper/tiny"]
)
def test_round_trip_of_laws(name, tmp_path):
    profile = profiles.load(name)
    again = profiles.load(profile.save(tmp_path / "copy"))
    assert again == profile
    for one, other in zip(profile.step_cost(), again.step_cost()):
        assert one.tobytes() == other.tobytes()


def test_saving_replaces_the_other_kind(folder):
    profiles.constant(0.1).save(folder)
    assert profiles.load(folder).kind == "constant"
    measured_profile().save(folder)
    assert profiles.load(folder).kind == "tables"


def test_measured_tables_are_interpolated(folder):
    cost = profiles.load(folder).step_cost()
    for op, kernel in (
        ("dense", kernels.dense_s),
        ("prefill_attention", kernels.prefill_attention_s),
        ("decode_attention", kernels.decode_attention_s),
        ("host", kernels.host_s),
    ):
        rows = measured_profile().tables[op]
        for shape, latency in zip(rows.shape.tolist(), rows.latency_us):
            assert kernel(cost, *shape) == pytest.approx(latency * 1e-6, rel=1e-5), (op, shape)
    assert kernels.dense_s(cost, 700) == pytest.approx(surface("dense", (700,)) * 1e-6, rel=1e-5)
    assert kernels.dense_s(cost, 5000) == pytest.approx(surface("dense", (5000,)) * 1e-6, rel=1e-5)
    shape = (48, 48 * 90)
    assert kernels.decode_attention_s(cost, *shape) == pytest.approx(
        surface("decode_attention", shape) * 1e-6, rel=1e-5
    )
    assert kernels.host_s(cost, 100) == pytest.approx(1.1e-3, rel=1e-6)
    corner = (1024, 1024 * 1024)
    assert kernels.decode_attention_s(cost, *corner) == pytest.approx(
        surface("decode_attention", corner) * 1e-6, rel=1e-4
    )
    assert kernels.outside(cost, 0, 0, 0, *corner) == 1
    assert kernels.outside(cost, 0, 0, 0, 64, 64 * 1024) == 0
    assert kernels.outside(cost, 1025, 0, 0, 0, 0) == 1


def rewrite(folder, change):
    path = folder / "tables.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


def cell(column, value, row=3):
    """Replace one cell of a row (row 1 is the header)."""

    def change(lines):
        columns = lines[0].split(",")
        cells = lines[row - 1].split(",")
        cells[columns.index(column)] = value
        return [*lines[: row - 1], ",".join(cells), *lines[row:]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cell("latency_us", "nan"), r"tables.csv, row 3: field 'latency_us' is 'nan'"),
        (cell("latency_us", "0"), r"tables.csv, row 3: field 'latency_us' is 0.0; expected a number > 0"),
        (cell("latency_us", "-5"), r"row 3: field 'latency_us' is -5.0"),
        (cell("latency_us", ""), r"row 3: field 'latency_us' is ''"),
        (cell("latency_us", "fast"), r"row 3: field 'latency_us' is 'fast'"),
        (cell("iqr_us", "inf"), r"row 3: field 'iqr_us' is 'inf'"),
        (cell("iqr_us", "-1"), r"row 3: field 'iqr_us' is -1.0"),
        (cell("power_w", "0"), r"row 3: field 'power_w' is 0.0"),
        (cell("power_w", "x"), r"row 3: field 'power_w' is 'x'"),
        (cell("tokens", "0"), r"row 3: field 'tokens' is '0'; expected a whole number >= 1"),
        (cell("tokens", "1.5"), r"row 3: field 'tokens' is '1.5'"),
        (cell("tokens", ""), r"row 3: field 'tokens' is ''"),
        (cell("tokens", "1"), r"op 'dense' has the shape \{'tokens': 1\} twice"),
        (cell("op", "magic"), r"row 3: field 'op' is 'magic'; expected one of dense"),
        (cell("context", "-1", row=14), r"row 14: field 'context' is '-1'; expected a whole number >= 0"),
        (
            lambda lines: [line for line in lines if "prefill" not in line],
            r"no row with op 'prefill_attention'",
        ),
        (lambda lines: [line for line in lines if "host" not in line], r"no row with op 'host'"),
        (
            lambda lines: [
                line
                for line in lines
                if not line.startswith("dense,bf16,") or line.startswith("dense,bf16,1,")
            ],
            r"op 'dense' has one row only",
        ),
        (lambda lines: [lines[0].replace("iqr_us", "spread"), *lines[1:]], r"column 'iqr_us' is missing"),
        (cell("tokens", "1e300"), r"row 3: field 'tokens' is '1e300'"),
        (cell("dtype", '"bf16'), r"row 3: unexpected end of data"),
        (cell("dtype", '"bf16"x'), r"row 3: ',' expected after"),
        (lambda lines: [*lines[:2], lines[2] + ",1", *lines[3:]], r"row 3: expected 12 values"),
        (lambda lines: [*lines[:2], lines[2].rpartition(",")[0], *lines[3:]], r"row 3: expected 12 values"),
        (
            lambda lines: [line for line in lines if not line.startswith("prefill_attention,bf16,,4,64,")],
            r"hole at chunk=4, context=64; only the far corner",
        ),
        (
            lambda lines: [line for line in lines if not line.startswith("decode_attention,bf16,,,,8,32,")],
            r"hole at batch=8, kv_tokens=4 a sequence",
        ),
        (
            lambda lines: [
                line for line in lines if not (line.startswith("prefill") and line.split(",")[4] == "0")
            ],
            r"starts at context=64; it must have context 0",
        ),
    ],
)
def test_wrong_tables_are_refused(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ProfileError, match=message):
        profiles.load(folder)


def test_a_batch_that_does_not_divide_its_tokens_is_refused(folder):
    rewrite(folder, lambda lines: [*lines, "decode_attention,bf16,,,,8,33,,,5.0,0.1,"])
    with pytest.raises(ProfileError, match=r"field 'kv_tokens' is 33; expected a multiple of batch 8"):
        read_tables(folder / "tables.csv")


def test_missing_far_corner_is_filled_without_falling(folder):
    rows = profiles.load(folder).tables["decode_attention"]
    assert len(rows.shape) < 11 * 11
    cost = profiles.load(folder).step_cost()
    for batch in (256, 512, 1024):
        times = [kernels.decode_attention_s(cost, batch, batch * 2**k) for k in range(11)]
        assert all(first < second for first, second in pairwise(times))


# ---- meta.json and laws.json ----


def dig(content, path, value):
    *parents, last = path
    for key in parents:
        content = content[key]
    if value is KeyError:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["provenance"], KeyError, r"meta.json: field 'provenance' is missing; no number without provenance"),
        (["provenance", "sources"], [], r"provenance.sources is empty; no number without provenance"),
        (["provenance", "sources"], KeyError, r"field 'provenance.sources' is missing"),
        (
            ["provenance", "sources", 0, "licence"],
            KeyError,
            r"provenance.sources\[0\]: field 'licence' is missing",
        ),
        (["provenance", "sources", 0, "licence"], "", r"provenance.sources\[0\].licence is empty"),
        (["provenance", "sources", 0, "colour"], "red", r"unknown field 'colour'"),
        (["provenance", "sources", 0], "vidur", r"provenance.sources\[0\] must be an object"),
        (["provenance", "method"], "guess", r"provenance.method is 'guess'; expected one of measured, law"),
        (["provenance", "date"], "yesterday", r"provenance.date is 'yesterday'; expected a date"),
        (["provenance", "date"], KeyError, r"field 'provenance.date' is missing"),
        (["provenance", "errors"], {}, r"provenance.errors is empty"),
        (["provenance", "errors"], [1], r"field 'provenance.errors' must be an object"),
        (["provenance", "errors", "x"], 3, r"field 'provenance.errors.x' must be an object"),
        (["provenance", "errors", "x"], {"mape_pct": math.nan}, r"provenance.errors.x.mape_pct is nan"),
        (["format"], 99, r"field 'format' is 99; this version reads format 1"),
        (["gpu"], KeyError, r"field 'gpu' is missing"),
        (["tensor_parallel"], "4", r"field 'tensor_parallel' is missing or is not a int"),
        (["tensor_parallel"], 0, r"tensor_parallel is 0"),
        (["memory_bytes"], -1, r"memory_bytes is -1"),
        (["stated_kv_tokens"], 0, r"stated_kv_tokens is 0"),
    ],
)
def test_wrong_meta_is_refused(tmp_path, path, value, message):
    folder = tmp_path / "copy"
    shutil.copytree(DATA / "h100" / "llama-3.1-8b", folder)
    content = json.loads((folder / "meta.json").read_text())
    dig(content, path, value)
    (folder / "meta.json").write_text(json.dumps(content))
    with pytest.raises(ProfileError, match=message):
        profiles.load(folder)


def test_a_measured_profile_states_its_versions(folder):
    content = json.loads((folder / "meta.json").read_text())
    content["provenance"]["versions"] = {}
    (folder / "meta.json").write_text(json.dumps(content))
    with pytest.raises(ProfileError, match=r"provenance.versions is empty"):
        profiles.load(folder)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["kind"], "magic", r"field 'kind' is 'magic'"),
        (["measured"], KeyError, r"field 'measured'.*is missing"),
        (["measured", "tokens"], [5, 5], r"measured.tokens is \[5, 5\]; expected first < last"),
        (["measured", "kv"], KeyError, r"measured.kv must be \[first, last\]"),
        (["measured", "kv_total"], "many", r"measured.kv_total is 'many'"),
        (["dense"], KeyError, r"field 'dense' is missing"),
        (
            ["host", "default"],
            KeyError,
            r"host has no option 'default'; it has \['vidur-2024', 'vllm-0.24', 'vllm-0.24-steps'\]",
        ),
        (["dense", "default"], [], r"field 'dense' must be a list"),
        (["dense", "default", 0, "law"], "magic", r"dense\[0\] must name a law"),
        (["dense", "default", 0, "p"], KeyError, r"dense\[0\]: field 'p' is missing"),
        (["dense", "default", 0, "t0_ms"], 0, r"dense\[0\]: field 't0_ms' is 0; expected a number > 0"),
        (["dense", "default", 0, "gemms", 1, 1], -4, r"dense\[0\]: n of 'attention_output' is -4"),
        (["prefill_attention"], KeyError, r"field 'prefill_attention' must be a list"),
        (
            ["decode_attention", 0, "per_kv_token_ms"],
            math.nan,
            r"decode_attention\[0\]: field 'per_kv_token_ms' is nan",
        ),
        (["host", "default", 0, "base_ms"], "2", r"host\[0\]: field 'base_ms' is '2'"),
    ],
)
def test_wrong_laws_are_refused(tmp_path, path, value, message):
    folder = tmp_path / "copy"
    shutil.copytree(DATA / "h100" / "llama-3.1-8b", folder)
    content = json.loads((folder / "laws.json").read_text())
    dig(content, path, value)
    (folder / "laws.json").write_text(json.dumps(content))
    with pytest.raises(ProfileError, match=rf"laws\.json.*{message}"):
        profiles.load(folder)


def test_missing_files_are_named(tmp_path, folder):
    with pytest.raises(ProfileError, match=r"meta.json: no such file; a profile is"):
        profiles.load(tmp_path)
    for path in (tmp_path / "none", Path("none") / "such" / "folder", Path("..") / "none", "./none"):
        with pytest.raises(ProfileError, match=r"none.*: no such file or folder"):
            profiles.load(path)
    with pytest.raises(UnknownName, match=r"unknown profile \(there is no such folder either\) 'h100/none'"):
        profiles.load("h100/none")
    with pytest.raises(ProfileError, match=r"meta.json is a file; a profile is a folder"):
        profiles.load(folder / "meta.json")
    (folder / "meta.json").write_text("[" * 100_000)
    with pytest.raises(ProfileError, match=r"meta.json is not JSON"):
        profiles.load(folder)
    (folder / "meta.json").write_text('{"format": ' + "1" * 5000 + "}")
    with pytest.raises(ProfileError, match=r"meta.json is not JSON"):
        profiles.load(folder)
    (folder / "meta.json").write_text("{")
    with pytest.raises(ProfileError, match=r"meta.json is not JSON"):
        profiles.load(folder)
    (folder / "meta.json").write_text("[]")
    with pytest.raises(ProfileError, match=r"expected an object, got list"):
        profiles.load(folder)
    measured_profile().save(folder)
    (folder / "laws.json").write_text("{}")
    with pytest.raises(ProfileError, match=r"both tables.csv and laws.json"):
        profiles.load(folder)
    (folder / "laws.json").unlink()
    (folder / "tables.csv").unlink()
    with pytest.raises(ProfileError, match=r"neither tables.csv nor laws.json"):
        profiles.load(folder)


def test_saving_without_provenance_is_refused(tmp_path):
    with pytest.raises(ProfileError, match=r"sources is empty"):
        measured_profile(provenance=Provenance("measured", "2026-11-24", ())).save(tmp_path / "none")
    with pytest.raises(ProfileError, match="either tables or laws"):
        measured_profile(tables={}).save(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_required_ops_are_what_a_step_needs():
    assert set(REQUIRED_OPS) <= set(measured_profile().tables)
