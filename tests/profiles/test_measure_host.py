"""The speed of a host, and what becomes of an engine's host laws with it."""

from dataclasses import asdict

import pytest

from llmgym import profiles
from llmgym.cli import main
from llmgym.errors import InvalidArgument
from llmgym.profiles import measure_host
from llmgym.profiles.measure import Settings, _Bench
from llmgym.profiles.measure_host import ENGINE_OPTION, SEQUENCES, Speed, scaled

torch = pytest.importorskip("torch")
QUICK = Settings(quick=True, device="cpu", minutes=0.001)
HERE = Speed((0.2, 0.2, 0.4, 0.8), 12.0, 5.0)
ENGINE = [
    {"law": "by_sequences", "count": 1, "sequences": [1, 8], "knots_ms": [0.4, 0.6]},
    {"law": "launch", "count": 1, "base_ms": 30.0, "above_tokens": 512, "ahead": True},
    {"law": "floor", "count": 1, "base_ms": 11.0},
]


def test_without_a_gpu_it_says_what_it_needs(tmp_path, capsys):
    arguments = ["profile", str(tmp_path / "new"), "--host", "here", "--device", "cpu", "--quick"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "device='cpu'" in said and "expected a CUDA device" in said
    assert not (tmp_path / "new").exists()
    assert main([*arguments, "--kernels"]) == 2
    assert "give either --host or --kernels" in capsys.readouterr().err


def test_the_three_measurements_run():
    """On a processor they mean nothing, but every part of them is there; the toy has two layers."""
    found = measure_host._speed(_Bench(QUICK), 0.0)
    assert len(found.step_ms) == len(SEQUENCES) and min(found.step_ms) > 0
    assert found.launch_ms > 0 and found.graph_ms > 0


def test_an_engine_is_as_much_slower_as_the_host():
    there = {**ENGINE[1], "speed": asdict(Speed((0.1, 0.1, 0.2, 0.4), 8.0, 4.0))}
    laws, note = scaled([ENGINE[0], there, ENGINE[2]], HERE, "x")
    knots, launch, floor = laws
    assert knots["knots_ms"] == pytest.approx([0.8, 1.2]) and knots["sequences"] == [1, 8]
    assert launch["base_ms"] == pytest.approx(45.0) and floor["base_ms"] == pytest.approx(13.75)
    assert launch["above_tokens"] == 512 and launch["ahead"] is True and launch["speed"] == asdict(HERE)
    assert note.startswith("steps 2.00, launches 1.50 and graphs 1.25 times those")
    again, _ = scaled(laws, HERE, "x")
    assert again == laws  # its own speed is the one it was scaled to


def test_without_a_speed_to_compare_with_times_are_written_as_they_are():
    (knots, launch, floor), note = scaled(ENGINE, HERE, "x")
    assert knots["knots_ms"] == [0.2, 0.2, 0.4, 0.8] and knots["sequences"] == list(SEQUENCES)
    assert (launch["base_ms"], floor["base_ms"]) == (12.0, 5.0)
    assert "less than an engine takes" in note


def test_the_option_is_in_a_profile_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(measure_host, "host_speed", lambda settings: HERE)
    found = measure_host.measure_host("here", QUICK, tmp_path)
    assert found.host == "here" and "default" in found.options["host"]
    again = profiles.load(tmp_path, dense="sustained", host="here")
    head = again.step_cost().head[0]
    assert head["launch_ahead"] == 1 and head["launch_s"] > head["floor_s"] > 0.0
    assert "Option host='here'" in again.provenance.notes[-1]
    other = Settings(quick=True, device="cpu", minutes=0.001, host_from=str(tmp_path))
    both = measure_host.measure_host("there", other, tmp_path).options["host"]
    assert {"here", "there", ENGINE_OPTION} <= set(both)


@pytest.mark.parametrize(
    ("name", "host_from", "said"),
    [
        ("", "h100/llama-3.1-8b", "host='': expected a name"),
        ("default", "h100/llama-3.1-8b", "other than 'default'"),
        (ENGINE_OPTION, "h100/llama-3.1-8b", "other than 'default'"),
        ("here", "a100/llama-3.1-8b", "it has no host option 'vllm-0.24-steps' to scale"),
        ("here", "h100/llama-3.1-8b-measured", "it has no host option 'vllm-0.24-steps' to scale"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_measured(name, host_from, said, tmp_path):
    with pytest.raises(InvalidArgument, match=said):
        measure_host.measure_host(name, Settings(quick=True, device="cpu", host_from=host_from), tmp_path)
