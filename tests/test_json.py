"""`--json` of every command: one JSON object on stdout and nothing else."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from llmgym import cli, profiles
from llmgym.core.told import as_json
from tests.workloads import samples

PROGRAMME = """
gpus = 2
[[student]]
name = "one"
size = "1B"
dataset = "math"
count = 3
"""

COMMANDS: dict[str, tuple[list[str], str]] = {
    "list": ([], "environments"),
    "settings": (["llmgym/KVQueue-v1"], "settings"),
    "compare": (
        [
            "llmgym/KVQueue-v1",
            "--policies",
            "vllm",
            "mc-sf",
            "--env-args",
            "requests=5",
            "--episodes",
            "2",
            "--no-progress",
        ],
        "summary",
    ),
    "leaderboard": (
        ["--only", "llmgym/MemPlace-v0/small", "--policies", "static", "gpu-only", "--episodes", "2"],
        "boards",
    ),
    "plan kv": (["--rate", "20", "--no-simulate"], "gpus"),
    "plan law": (["--rate", "5", "--batch-s", "0.02", "--kv-capacity", "50000"], "critical_rate_rps"),
    "plan afd": (["--no-simulate"], "mean_field"),
    "plan oserve": (["--gpus", "8"], "deployments"),
    "plan distill": (["programme.toml"], "jobs"),
    "replay": (["uniform-tiny", "--requests", "5"], "figures"),
    "validate": (["run.json"], "figures"),
    "profiles": (["h100/llama-3.1-8b"], "steps"),
    "throughput": (["llmgym/KVQueue-v1", "--lanes", "2", "--seconds", "0.01"], "steps_per_s"),
    "new": (["mine"], "written"),
    "compile": (["llmgym/AFDRefill-v0"], "seconds"),
    "export-policy": (["pick-area", "rule.npz"], "written"),
}
ELSEWHERE = {"profile", "convert", "check", "train", "room", "tune"}
"""Commands whose JSON has a test of its own, below or where the command is tested."""


def found(capsys: Any, words: list[str]) -> Any:
    def constant(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    assert cli.main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=constant)


def test_no_command_is_left_out() -> None:
    union = cli.Arguments.__dataclass_fields__["command"].type
    names = {get_args(one)[1].name for one in get_args(union)}
    assert names - {"plan"} == {name for name in COMMANDS if " " not in name} | ELSEWHERE
    plans = get_args(cli.Plan.__dataclass_fields__["what"].type)
    assert {f"plan {get_args(one)[1].name}" for one in plans} == {name for name in COMMANDS if " " in name}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command(tmp_path: Path, monkeypatch: Any, capsys: Any, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "programme.toml").write_text(PROGRAMME)
    (tmp_path / "run.json").write_text(samples.lines(samples.vllm()))
    words, key = COMMANDS[name]
    told = found(capsys, [*name.split(), *words])
    assert told[key]


def test_what_is_told_is_what_is_printed(capsys: Any) -> None:
    words = ["replay", "uniform-tiny", "--requests", "20", "--slo", "ttft=1"]
    told = found(capsys, words)
    assert cli.main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        f"{told['figures']['ttft_mean_s']:.4g}" in shown
        and f"{told['requests_per_s']:.2f} requests/s" in shown
    )
    assert f"Goodput: {told['slo']['goodput_rps']:.2f} requests/s" in shown


def test_mistakes_are_told_as_without_it(capsys: Any) -> None:
    assert cli.main(["replay", "nope", "--json"]) == 2
    output = capsys.readouterr()
    assert not output.out and output.err.startswith("llmgym: unknown workload 'nope'")


def test_a_profile_that_is_measured(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "mine"
    told = found(
        capsys, ["profile", str(out), "--quick", "--device", "cpu", "--no-progress", "--minutes", "0.01"]
    )
    assert told["written"] == [str(out)] and told["steps"][0]["decodes"] == 1


def test_the_test_kit(capsys: Any, monkeypatch: Any) -> None:
    from llmgym.errors import CheckFailed
    from llmgym.testing.kit import Report, Result

    report = Report("x/Y-v0", (Result("runs", "defaults", "failed", "why", 0.5),))

    def check(env_id: str, progress: bool) -> Report:
        raise CheckFailed("x/Y-v0", 1, ["runs: why"], report)

    monkeypatch.setattr("llmgym.testing.check", check)
    assert cli.main(["check", "x/Y-v0", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["passed"], told["failed"]) == (0, 1) and told["checks"][0]["reason"] == "why"
    monkeypatch.setattr("llmgym.testing.check", lambda *_, **__: report)
    assert found(capsys, ["check", "x/Y-v0"])["environment"] == "x/Y-v0"


def test_numbers_that_json_does_not_have() -> None:
    told = json.loads(
        as_json({"a": np.array([1.5, np.nan]), "b": (float("inf"), Path("x")), "c": np.int32(3), "d": object})
    )
    assert told == {"a": [1.5, None], "b": [None, "x"], "c": 3, "d": "<class 'object'>"}


def test_names_of_profiles(capsys: Any) -> None:
    assert found(capsys, ["profiles"])["profiles"] == list(profiles.names())
