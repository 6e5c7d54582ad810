"""Measuring a profile: it runs on a CPU, goes on where it was, and what it times computes what it says."""

import csv

import numpy as np
import pytest

from llmgym import profiles
from llmgym.cli import main
from llmgym.errors import InvalidArgument
from llmgym.profiles.cost import step_time_s
from llmgym.profiles.measure import Settings, attention, measure

torch = pytest.importorskip("torch")

QUICK = Settings(device="cpu", quick=True, minutes=0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("measured") / "cpu"
    measure(QUICK, out)
    return out


def test_a_measured_profile_loads_says_where_it_is_from_and_gives_step_costs(folder):
    profile = profiles.load(folder)
    assert profile.provenance.method == "measured" and profile.model == "small"
    assert {"torch", "device"} <= set(profile.provenance.versions)
    assert any("Host time is not measured" in note for note in profile.provenance.notes)
    assert set(profile.tables) == {"dense", "prefill_attention", "decode_attention", "host"}
    for op in ("dense", "prefill_attention", "decode_attention"):
        assert profile.provenance.errors[op]["n"] == len(profile.tables[op].latency_us)
    assert step_time_s(profile.step_cost(), 0, 0.0, 4, 256, 4, 256) > 0


def test_a_stopped_run_goes_on_where_it_was(folder, tmp_path):
    lines = (folder / "rows.csv").read_text().splitlines()
    (tmp_path / "rows.csv").write_text(
        "\n".join(lines[:-2]) + "\n" + lines[-2][:-12]
    )  # killed while it wrote
    asked = []
    measure(QUICK, tmp_path, progress=lambda at, total, what: asked.append(what))
    assert len(asked) == 2
    again = (tmp_path / "rows.csv").read_text().splitlines()
    assert again[: len(lines) - 2] == lines[:-2]
    assert len(profiles.load(tmp_path).tables["decode_attention"].latency_us) == 4


def test_measurements_of_another_device_or_model_are_not_mixed_in(folder, tmp_path):
    (tmp_path / "rows.csv").write_text("# llama-3.1-8b, tp 1, NVIDIA H100\n")
    with pytest.raises(InvalidArgument, match=r"llama-3.1-8b.*name another folder"):
        measure(QUICK, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "gpt-9"}, "model='gpt-9': known small, llama-3.1-8b"),
        ({"tensor_parallel": 3}, "must divide the 8 KV heads"),
        ({"tensor_parallel": 0}, "tensor_parallel=0"),
        ({"minutes": 0}, "minutes=0"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(InvalidArgument, match=message):
        Settings(**wrong)


def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(InvalidArgument, match="device='cuda:77' cannot be used"):
        measure(Settings(device="cuda:77", quick=True), tmp_path)


@pytest.mark.parametrize(("queries", "keys"), [(1, 7), (3, 3), (3, 8)])
def test_attention_is_causal_at_the_last_key_with_grouped_heads(queries, keys):
    rng = torch.Generator().manual_seed(0)
    q = torch.randn(2, queries, 4, 8, generator=rng, dtype=torch.float64)
    k, v = (torch.randn(2, keys, 2, 8, generator=rng, dtype=torch.float64) for _ in range(2))
    expected = np.zeros(q.shape)
    for b in range(2):
        for h in range(4):
            for i in range(queries):
                seen = keys - queries + i + 1
                score = k[b, :seen, h // 2].numpy() @ q[b, i, h].numpy() / np.sqrt(8)
                weight = np.exp(score - score.max())
                expected[b, i, h] = weight @ v[b, :seen, h // 2].numpy() / weight.sum()
    assert np.allclose(attention(torch, q, k, v).numpy(), expected, atol=1e-12)


def test_the_command(tmp_path, capsys):
    arguments = [
        "profile",
        str(tmp_path / "p"),
        "--device",
        "cpu",
        "--quick",
        "--minutes",
        "0.02",
        "--no-progress",
    ]
    assert main(arguments) == 0
    assert "method: measured" in capsys.readouterr().out
    with (tmp_path / "p" / "tables.csv").open() as file:
        assert {row["op"] for row in csv.DictReader(file)} >= {"dense", "host"}
    assert main(["profile", str(tmp_path / "q"), "--device", "nonsense", "--quick"]) == 2
    assert "device='nonsense' cannot be used" in capsys.readouterr().err
