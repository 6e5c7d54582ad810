"""Profiles from tables in LLMServingSim's format: made-up ones here, the published ones where they are present."""

import gzip
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmgym import cli, profiles
from llmgym.errors import InvalidArgument, ProfileError, UnknownName
from llmgym.profiles import Link, ModelShape, Profile, cost, from_llmservingsim
from llmgym.profiles.configs import read_config, shape_of
from llmgym.profiles.llmservingsim import known_models, mixed_attention
from llmgym.profiles.models import MODELS

DATA = Path(os.environ.get("LLMGYM_DATA", "")) / "llmservingsim" / "RTXPRO6000"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="LLMGYM_DATA names no folder with llmservingsim/RTXPRO6000"
)
SHAPE = ModelShape("toy", "-", 10, 1000, 400, 8, 4, 16, 500)
MIXTURE = replace(SHAPE, name="toy-moe", experts=16, experts_per_token=2)
LINK = Link(bandwidth_gb_per_s=10.0, latency_us=7.0)
HOST_S = 0.85e-3
QWEN3_32B = {
    "model_type": "qwen3",
    "num_hidden_layers": 64,
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "use_sliding_window": False,
}
QWEN3_30B_A3B = QWEN3_32B | {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


def write(path: Path, header: str, rows: Iterable[tuple[Any, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


def write_tables(
    place: Callable[[str], Path], scale: float = 1.0, experts: bool = False, mixed: bool = True
) -> None:
    """Tables in which a dense layer takes 10 us and 0.1 us a token, times `scale`."""
    layers = ["embedding", "layernorm", "qkv_proj", "rotary_emb", "o_proj", "final_layernorm"]
    layers += [] if experts else ["gate_up_proj", "act_fn", "down_proj"]
    dense = [(layer, n, scale * (10 + 0.1 * n)) for layer in layers for n in (1, 4, 64, 1024)]
    write(place("dense"), "layer,tokens,time_us", dense)
    head = [(layer, n, scale * 100.0) for layer in ("lm_head", "sampler") for n in (1, 64)]
    write(place("per_sequence"), "layer,sequences,time_us", head)
    chunks, contexts, batches, kvs = (16, 64, 256), (0, 64, 256), (1, 4, 16, 64), (64, 256, 1024)
    rows: list[tuple[Any, ...]] = [
        (c, k, 0, 0, scale * (2.0 * c + 0.5 * k)) for c in chunks for k in contexts
    ]
    rows += [(0, 0, b, m, scale * 0.01 * b * m) for b in batches for m in kvs]
    if mixed:
        rows += [
            (c, k, b, m, scale * (2.0 * c + 0.5 * k + 0.03 * b * m))
            for c in chunks
            for k in contexts
            for b in batches[:2]
            for m in kvs
        ]
    write(place("attention"), "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A GPU with a dense model on 1 and 2 GPUs, as the profiler writes it, and a mixture of experts in one folder."""
    gpu = tmp_path / "GPU"
    for tp, scale in ((1, 1.0), (2, 0.6)):
        write_tables(lambda table, tp=tp: gpu / f"org/toy/bf16/tp{tp}/{table}.csv", scale)  # type: ignore[misc]
    write_tables(lambda table: gpu / f"toy-moe_tp1_{table}.csv.gz", experts=True)
    write_tables(lambda table: gpu / f"toy-moe_tp2_{table}.csv.gz", 0.6, experts=True)
    moe = [(n, e, 3.0 * e + 0.5 * n) for n in (1, 4, 64, 1024) for e in (2, 4, 8, 16) if e <= 2 * n]
    write(gpu / "toy-moe_tp1_moe.csv.gz", "tokens,activated_experts,time_us", moe)
    return gpu


def step_s(profile: Profile, decodes: int, kv: int, chunk: int = 0) -> float:
    """Seconds of a step of decodes with `kv` cached tokens each, and perhaps a prefill chunk."""
    of = profile.step_cost()
    attention = cost.prefill_attention_s(of, chunk, 0)
    return cost.step_time_s(of, chunk, attention, decodes, decodes * kv, decodes + (chunk > 0), 0)


def by_hand_s(tokens: int, decodes: int, kv: int, scale: float = 1.0) -> float:
    """The same for `SHAPE`, without chunks: eight calls of dense layers in each of 10 layers, and two more."""
    dense_us = (10 * 8 + 2) * (10 + 0.1 * tokens)
    return 1e-6 * scale * (dense_us + 10 * 0.01 * decodes * kv + 200) + HOST_S


# --- what a step takes ---


def test_a_step_is_the_sum_of_its_tables(folder: Path) -> None:
    found = from_llmservingsim(folder, "org/toy", SHAPE, memory_bytes=10**9)
    assert step_s(found, 4, 256) == pytest.approx(by_hand_s(4, 4, 256), rel=1e-5)
    assert step_s(found, 64, 1024) == pytest.approx(by_hand_s(64, 64, 1024), rel=1e-5)
    assert (found.name, found.gpu, found.model, found.tensor_parallel) == ("GPU/toy", "GPU", "toy", 1)
    assert found.kv_bytes_per_token == 2 * 10 * 4 * 16 * 2
    assert found.memory_bytes == 10**9 and found.weight_bytes == SHAPE.weight_bytes


def test_decodes_beside_a_chunk_take_what_was_measured_there(folder: Path) -> None:
    found = from_llmservingsim(folder, "org/toy", SHAPE)
    alone, beside = (found.tables[op].latency_us for op in ("decode_attention", "decode_attention_beside"))
    np.testing.assert_allclose(
        beside, 3 * alone
    )  # also of 16 and 64 decodes, which no chunk was measured with
    assert found.provenance.errors["decode_attention_beside"] == {
        "mape_pct": 0.0,
        "p90_ape_pct": 0.0,
        "n": 54,
    }


def test_two_gpus_take_their_shard_and_two_all_reduces_a_layer(folder: Path) -> None:
    found = from_llmservingsim(folder, "org/toy", SHAPE, tensor_parallel=2, link=LINK, memory_bytes=10**9)
    for n in (4, 64):
        sent = 2 * (2 - 1) / 2 * 2 * 1000 * n  # bytes: both ways of a ring of two, 16-bit numbers, width 1000
        link_s = 10 * 2 * (sent / 10e9 + 7e-6)
        assert step_s(found, n, 256) == pytest.approx(by_hand_s(n, n, 256, 0.6) + link_s, rel=1e-5)
    assert found.name == "GPU/toy-tp2" and found.memory_bytes == 2 * 10**9
    assert found.weight_bytes == SHAPE.weight_bytes  # over both GPUs


def test_less_bandwidth_and_more_latency_take_longer(folder: Path) -> None:
    def taken(link: Link) -> float:
        return step_s(from_llmservingsim(folder, "org/toy", SHAPE, tensor_parallel=2, link=link), 64, 256)

    assert taken(Link(5.0, 7.0)) > taken(LINK) > taken(Link(20.0, 7.0))
    assert taken(Link(10.0, 8.0)) - taken(LINK) == pytest.approx(10 * 2 * 1e-6, rel=1e-3)


def test_collectives_of_a_ring() -> None:
    size = np.array([8e9])
    for gpus in (2, 4):
        part = (gpus - 1) / gpus * 8e9 / 10e9
        np.testing.assert_allclose(LINK.all_reduce_s(size, gpus), 2 * part + 7e-6)
        np.testing.assert_allclose(LINK.all_gather_s(size, gpus), part + 7e-6)
        np.testing.assert_allclose(LINK.reduce_scatter_s(size, gpus), part + 7e-6)


def test_experts_of_one_gpu_and_of_two(folder: Path) -> None:
    """64 tokens of 2 out of 16 experts activate nearly all; half of the pairs on half of the experts, where two GPUs share them."""
    dense_us = (10 * 5 + 2) * (10 + 0.1 * 64)
    rest_s = 1e-6 * (dense_us + 10 * 0.01 * 64 * 256 + 200) + HOST_S

    def experts_s(tokens: float, held: float, of_tokens: int) -> float:
        active = held * (1 - (1 - 2 / 16) ** of_tokens)
        low, high = np.log(
            [3.0 * held / 2 + 0.5 * tokens, 3.0 * held + 0.5 * tokens]
        )  # a table of logarithms
        return float(1e-6 * 10 * np.exp(low + (high - low) * np.log2(active / (held / 2))))

    one = from_llmservingsim(folder, "toy-moe", MIXTURE)
    assert step_s(one, 64, 256) == pytest.approx(rest_s + experts_s(64, 16, 64), rel=1e-4)
    shared = from_llmservingsim(folder, "toy-moe", MIXTURE, expert_ranks=2, link=LINK)
    both_s = 10 * 2 * (0.5 * 2 * 64 * 2 * 1000 / 10e9 + 7e-6)
    assert step_s(shared, 64, 256) == pytest.approx(rest_s + experts_s(64, 8, 128) + both_s, rel=1e-4)
    assert one.weight_bytes - shared.weight_bytes == MIXTURE.expert_parameters  # half of them, two bytes each
    split = from_llmservingsim(folder, "toy-moe", MIXTURE, tensor_parallel=2, link=LINK)
    assert split.weight_bytes == one.weight_bytes
    assert step_s(split, 64, 256) < step_s(one, 64, 256)


def test_shards_of_experts_are_left_out(folder: Path) -> None:
    """Newer tables have rows of shards of experts beside those of whole ones."""
    path = folder / "toy-moe_tp1_moe.csv.gz"
    before = from_llmservingsim(folder, "toy-moe", MIXTURE)
    rows = [line.split(",") for line in gzip.decompress(path.read_bytes()).decode().splitlines()[1:]]
    new = [("1", *row) for row in rows] + [("2", *row[:2], "1.0") for row in rows]
    write(path, "ep,tokens,activated_experts,time_us", new)
    after = from_llmservingsim(folder, "toy-moe", MIXTURE)
    np.testing.assert_array_equal(before.tables["dense"].latency_us, after.tables["dense"].latency_us)


def test_tables_without_mixed_batches(tmp_path: Path) -> None:
    write_tables(lambda table: tmp_path / f"toy_tp1_{table}.csv", mixed=False)
    found = from_llmservingsim(tmp_path, "toy", SHAPE)
    assert "decode_attention_beside" not in found.tables
    assert step_s(found, 4, 256) == pytest.approx(by_hand_s(4, 4, 256), rel=1e-5)


def test_a_missing_far_corner_is_filled_and_a_hole_is_told(folder: Path) -> None:
    path = folder / "org/toy/bf16/tp1/attention.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("0,0,64,1024,")))
    found = from_llmservingsim(folder, "org/toy", SHAPE)
    assert step_s(found, 64, 1024) == pytest.approx(by_hand_s(64, 64, 1024), rel=1e-5)
    path.write_text("\n".join(line for line in lines if not line.startswith("0,0,4,256,")))
    with pytest.raises(ProfileError, match="'decode_attention' has a hole at batch=4, kv_tokens=256"):
        from_llmservingsim(folder, "org/toy", SHAPE)


def test_chunks_that_are_no_powers_of_two(tmp_path: Path) -> None:
    rows = [(c, k, 0, 0, 1.0 * c + k) for c in (16, 24, 36, 54, 81, 122, 182, 256) for k in (0, 64)]
    rows += [(0, 0, b, m, 1.0 * b * m) for b in (1, 2) for m in (16, 24)]
    write(tmp_path / "a.csv", "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", rows)
    np.testing.assert_array_equal(
        mixed_attention(tmp_path / "a.csv").chunk, [16, 24, 36, 54, 81, 122, 182, 256]
    )


def test_it_is_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    (folder / "org/toy/bf16/meta.yaml").write_text("profiler_version: 1.0.0\nvllm_version: 0.19.0\n")
    made = from_llmservingsim(folder, "org/toy", SHAPE, tensor_parallel=2, link=LINK)
    again = profiles.load(made.save(tmp_path / "saved"))
    for kept, new in zip(made.step_cost(), again.step_cost(), strict=True):
        np.testing.assert_array_equal(kept, new)
    assert again.provenance == made.provenance and again.provenance.versions == {"vLLM": "0.19.0"}
    assert "Link(bandwidth_gb_per_s=10.0, latency_us=7.0)" in " ".join(again.provenance.notes)


# --- wrong input ---


def test_what_there_is(folder: Path) -> None:
    assert known_models(folder) == {"org/toy": [1, 2], "toy-moe": [1, 2]}


@pytest.mark.parametrize(
    ("model", "arguments", "error", "said"),
    [
        ("org/toi", {}, UnknownName, r"model='org/toi'.*Did you mean 'org/toy'\? Known: org/toy, toy-moe"),
        ("org/toy", {"tensor_parallel": 2}, InvalidArgument, r"link=None: 2 GPUs need the link.*Link\("),
        ("org/toy", {"tensor_parallel": 2, "link": 50.0}, InvalidArgument, "link=50.0: 2 GPUs need the link"),
        ("org/toy", {"tensor_parallel": 4, "link": LINK}, InvalidArgument, "tensor_parallel=4: .* for 1, 2"),
        (
            "org/toy",
            {"tensor_parallel": 3, "link": LINK},
            InvalidArgument,
            "must divide the 8 query and 4 KV",
        ),
        ("org/toy", {"tensor_parallel": 0}, InvalidArgument, "tensor_parallel=0: expected a whole number"),
        ("org/toy", {"expert_ranks": 2, "link": LINK}, InvalidArgument, "expert_ranks=2: needs .* not 0"),
        ("org/toy", {"memory_bytes": -1}, InvalidArgument, "memory_bytes=-1"),
        ("org/toy", {"shape": MIXTURE}, ProfileError, r"moe\.csv is missing"),
        ("org/toy", {"shape": "gpt-2"}, UnknownName, "shape='gpt-2'.*Known: llama-2-70b"),
        ("org/toy", {"shape": "no.json"}, ProfileError, "shape='no.json': no.json: no such file"),
        ("org/toy", {"shape": 7}, InvalidArgument, "shape=7: expected a ModelShape"),
        ("org/toy", {"host_from": "nope"}, UnknownName, "'nope'"),
        ("toy-moe", {}, ProfileError, "layer 'gate_up_proj' is missing"),
        ("toy-moe", {"shape": MIXTURE, "expert_ranks": 3, "link": LINK}, InvalidArgument, "expert_ranks=3"),
        ("toy-moe", {"shape": MIXTURE, "expert_ranks": 2}, InvalidArgument, "link=None"),
    ],
)
def test_wrong_arguments(
    folder: Path, model: str, arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        from_llmservingsim(folder, model, **{"shape": SHAPE, **arguments})


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="nowhere': there is no such folder"):
        from_llmservingsim(tmp_path / "nowhere", "toy", SHAPE)


@pytest.mark.parametrize("bandwidth", [0, -1.0, float("inf"), float("nan"), "50", True])
def test_wrong_bandwidth(bandwidth: Any) -> None:
    with pytest.raises(InvalidArgument, match="bandwidth_gb_per_s="):
        Link(bandwidth, 1.0)


@pytest.mark.parametrize("latency", [-1.0, float("nan"), None])
def test_wrong_latency(latency: Any) -> None:
    with pytest.raises(InvalidArgument, match="latency_us="):
        Link(1.0, latency)


@pytest.mark.parametrize(
    ("table", "change", "said"),
    [
        ("dense", lambda text: "", "column 'layer' is missing"),
        ("dense", lambda text: text.replace("time_us", "time"), "column 'time_us' is missing"),
        ("dense", lambda text: text.partition("\n")[0], "there are no rows"),
        (
            "dense",
            lambda text: text.replace("qkv_proj", "in_proj"),
            "layer 'in_proj' is not known; known are",
        ),
        ("dense", lambda text: text.replace("qkv_proj,1,", "qkv_proj,0,"), "tokens=0; expected"),
        (
            "dense",
            lambda text: text.replace("qkv_proj,1,", "qkv_proj,x,"),
            "'tokens' is 'x'; expected a finite",
        ),
        (
            "dense",
            lambda text: text.replace("qkv_proj,1,", "qkv_proj,1.5,"),
            "'tokens' is '1.5'; expected a whole",
        ),
        ("dense", lambda text: text.replace("qkv_proj,4,", "qkv_proj,1,"), "the same shape was there before"),
        ("dense", lambda text: text.replace("qkv_proj,1024,", "qkv_proj,512,"), "expected the same for all"),
        ("dense", lambda text: text.replace(",10.1\n", ",0\n"), "'time_us' is '0'; expected a number > 0"),
        ("dense", lambda text: text.replace(",10.1\n", ",nan\n"), "'time_us' is 'nan'; expected a finite"),
        ("dense", lambda text: text.replace(",10.1\n", "\n"), "row 2: expected 3 values"),
        (
            "per_sequence",
            lambda text: text.replace("lm_head,1,", "sampler,2,").replace("lm_head", "sampler"),
            "before",
        ),
        ("per_sequence", None, "per_sequence.csv is missing"),
        ("attention", None, "attention.csv is missing"),
        ("attention", lambda text: text.replace("n_decode", "decodes"), "column 'n_decode' is missing"),
        (
            "attention",
            lambda text: text[: text.index("\n0,0,1,")],
            "alone of n_decode and kv_decode, are needed",
        ),
        (
            "attention",
            lambda text: text.replace("\n64,0,0,0,", "\n65,0,0,0,"),
            "every prefill_chunk alone is needed",
        ),
    ],
)
def test_wrong_tables(folder: Path, table: str, change: Callable[[str], str] | None, said: str) -> None:
    path = folder / f"org/toy/bf16/tp1/{table}.csv"
    if change is None:
        path.unlink()
    else:
        changed = change(path.read_text())
        assert changed != path.read_text()
        path.write_text(changed)
    with pytest.raises(ProfileError, match=said):
        from_llmservingsim(folder, "org/toy", SHAPE)


@pytest.mark.parametrize(
    "content",
    [b"layer,tokens,time_us\n", gzip.compress(b"layer,tokens" * 99, mtime=0)[:40]],
    ids=["no archive", "cut off"],
)
def test_a_broken_archive_is_told(folder: Path, content: bytes) -> None:
    (folder / "toy-moe_tp1_dense.csv.gz").write_bytes(content)
    with pytest.raises(ProfileError, match=r"dense\.csv\.gz cannot be read: "):
        from_llmservingsim(folder, "toy-moe", MIXTURE)


# --- shapes ---


def config(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "config.json"


def test_shapes_of_published_models(tmp_path: Path) -> None:
    """Billions of parameters as the pages of the models have them."""
    dense = shape_of(config(tmp_path / "qwen3-32b", QWEN3_32B).parent)
    assert dense.name == "qwen3-32b" and dense.parameters / 1e9 == pytest.approx(32.8, abs=0.05)
    mixture = read_config(config(tmp_path / "moe", QWEN3_30B_A3B))
    assert mixture.parameters / 1e9 == pytest.approx(30.5, abs=0.05)
    assert (mixture.parameters - 120 / 128 * mixture.expert_parameters) / 1e9 == pytest.approx(3.3, abs=0.06)
    assert shape_of("llama-3.1-8b") is MODELS["llama-3.1-8b"] and shape_of(SHAPE) is SHAPE


def test_what_a_config_may_leave_out(tmp_path: Path) -> None:
    content = QWEN3_32B | {"head_dim": None, "model_type": "qwen2", "tie_word_embeddings": True}
    del content["num_key_value_heads"]
    found = read_config(config(tmp_path / "x", content))
    assert (found.kv_heads, found.head_dim, found.qkv_bias, found.tied) == (64, 80, True, True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": None}, "field 'hidden_size' is missing"),
        ({"num_hidden_layers": 0}, "field 'num_hidden_layers' is 0; expected a whole number >= 1"),
        ({"vocab_size": "many"}, "field 'vocab_size' is 'many'"),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"text_config": {"hidden_size": 1}}, "more than text"),
        ({"quantization_config": {"bits": 4}}, "not 16-bit"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention: layers differ"),
        ({"sliding_window": 4096, "use_sliding_window": True}, "attention forgets"),
        ({"num_experts": 8}, "field 'num_experts_per_tok' is missing"),
        ({"decoder_sparse_step": 2}, "layers differ"),
    ],
)
def test_wrong_configs(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ProfileError, match=said):
        shape_of(config(tmp_path / "x", QWEN3_32B | change))


# --- command line ---


def test_convert(folder: Path, tmp_path: Path, capsys: Any) -> None:
    """The whole way: tables and a config.json to a folder that loads."""
    shape = config(tmp_path / "toy-model", QWEN3_32B | {"num_hidden_layers": 10})
    arguments = ["convert", str(folder), str(tmp_path / "out"), "--model", "org/toy", "--shape", str(shape)]
    assert cli.main([*arguments, "--tensor-parallel", "2", "--link-gb-per-s", "50", "--link-us", "8"]) == 0
    assert "GPU/toy-tp2" in capsys.readouterr().out
    found = profiles.load(tmp_path / "out")
    assert (found.model, found.tensor_parallel, found.memory_bytes) == ("toy-model", 2, 0)
    expected = from_llmservingsim(folder, "org/toy", shape, tensor_parallel=2, link=Link(50.0, 8.0))
    assert step_s(found, 4, 256) == step_s(expected, 4, 256)
    assert cli.main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"profile": "GPU/toy", "written": [str(tmp_path / "out")]}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--tensor-parallel", "2"], "link_gb_per_s=None, link_us=None: a link between GPUs needs both"),
        (["--tensor-parallel", "2", "--link-us", "3"], "link_gb_per_s=None, link_us=3.0"),
        (["--link-us", "3"], "link_gb_per_s=None, link_us=3.0"),
        (["--memory-gib", "-1"], "memory_gib=-1.0"),
        (["--shape", "nope"], "shape='nope'"),
    ],
)
def test_mistakes_of_convert(folder: Path, tmp_path: Path, capsys: Any, more: list[str], said: str) -> None:
    arguments = ["convert", str(folder), str(tmp_path / "out"), "--model", "org/toy"]
    assert cli.main([*arguments, *([] if "--shape" in more else ["--shape", "llama-3.1-8b"]), *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("llmgym: ") and said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- published tables ---


@pytest.mark.data
@needs_data
def test_a_larger_model_on_two_gpus(tmp_path: Path) -> None:
    """Qwen3-32B: 32 decodes on two GPUs take more than half of what one takes, and less than that and the link."""
    shape = read_config(config(tmp_path / "qwen3-32b", QWEN3_32B))
    one = from_llmservingsim(DATA, "Qwen3-32B", shape)

    def two(link: Link) -> float:
        return step_s(from_llmservingsim(DATA, "Qwen3-32B", shape, tensor_parallel=2, link=link), 32, 1024)

    link = Link(bandwidth_gb_per_s=50.0, latency_us=10.0)
    link_s = float(64 * 2 * link.all_reduce_s(np.array(2.0 * 32 * 5120), 2))
    assert 0.5 * step_s(one, 32, 1024) < two(link) < step_s(one, 32, 1024) + link_s
    assert two(Link(25.0, 10.0)) > two(link)
    assert two(Link(50.0, 20.0)) - two(link) == pytest.approx(64 * 2 * 10e-6, rel=1e-3)


@pytest.mark.data
@needs_data
@pytest.mark.parametrize("tp", [1, 2])
def test_every_published_model_loads(tmp_path: Path, tp: int) -> None:
    shapes = {
        "Llama-3.1-8B": MODELS["llama-3.1-8b"],
        "Qwen3-32B": read_config(config(tmp_path / "a", QWEN3_32B)),
        "Qwen3-30B-A3B-Instruct-2507": read_config(config(tmp_path / "b", QWEN3_30B_A3B)),
    }
    assert set(known_models(DATA)) == set(shapes)
    for model, shape in shapes.items():
        made = from_llmservingsim(DATA, model, shape, tensor_parallel=tp, link=Link(50.0, 10.0))
        again = profiles.load(made.save(tmp_path / f"{model}-{tp}"))
        assert step_s(again, 32, 1024) == step_s(made, 32, 1024)
