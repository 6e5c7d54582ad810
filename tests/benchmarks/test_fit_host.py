"""Host times that are found in the log of an engine's steps, where they were put in."""

import json
from dataclasses import replace

import fit_host
import numpy as np
import pytest
from engine_vllm import ENGINE_COLUMNS
from fidelity import steps
from fidelity.kernels import summed_step
from fidelity.runs import Engine, Run

from llmgym import profiles
from llmgym.errors import InvalidArgument

KV_TOKENS = 16_000
BARE = profiles.load("h100/llama-3.1-8b", dense="sustained")
BARE = replace(BARE, laws={**BARE.laws, "host": {"default": fit_host.NO_HOST}})


def write_run(folder, name, decodes, small_ms=9.0, large_ms=25.0, rest_ms=2.0, beyond_ms=0.7):
    """A run of an engine that decodes all the time, with a prompt every 30 steps: of 100 and of 600 tokens in turn.

    The launches of a prompt lie in the step before it. Where the device waits for them (600 tokens), the step and the decode after
    it take `rest_ms` more than a decode.
    """
    step = summed_step(BARE)
    usage = 0.5
    every_ms = 1e3 * step([], decodes, int(usage * KV_TOKENS)) + beyond_ms
    rows, at_s = [], 0.0
    for i in range(600):
        taken_ms, prompt = every_ms, 0
        large = (i // 30) % 2 == 1
        if i % 30 == 19:
            taken_ms = large_ms if large else small_ms
        elif i % 30 == 20:
            taken_ms, prompt = 3.0, 600 - decodes if large else 100
        elif i % 30 == 21 and large:
            taken_ms = every_ms + rest_ms - 3.0
        at_s += 1e-3 * taken_ms
        rows.append(f"{at_s:.9f},{decodes},0,{usage},{decodes},{prompt},0")
    text = "time_s,running,waiting,kv_usage,output_tokens,prompt_tokens,preempted"
    (folder / f"{name}_steps.csv").write_text("\n".join([text, *rows]) + "\n", encoding="utf-8")
    (folder / f"{name}_requests.csv").write_text(
        "arrival_s,prompt_tokens,output_tokens,first_token_s,last_token_s\n0,1,1,1,1\n", encoding="utf-8"
    )
    meta = {
        "engine": "vllm 0.24.0",
        "gpu": "NVIDIA H100",
        "date": "2026-11-25T00:00",
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 256,
        "blocks": KV_TOKENS // 16,
        "block_size": 16,
    }
    (folder / f"{name}_meta.json").write_text(json.dumps(meta), encoding="utf-8")


def test_host_times_are_found_and_make_an_option(tmp_path, capsys):
    write_run(tmp_path, "few", 5)
    write_run(tmp_path, "many", 70, beyond_ms=0.9)
    assert fit_host.main([str(tmp_path)]) == 0
    found = json.loads((tmp_path / "host.json").read_text(encoding="utf-8"))
    knots, launch, floor = found["laws"]
    assert (found["runs"], found["profile"], found["dense"]) == (["few", "many"], BARE.name, "sustained")
    assert knots["sequences"] == [4.5, 79.5]
    assert knots["knots_ms"] == pytest.approx([0.7, 0.9], abs=2e-3)
    assert launch["base_ms"] == pytest.approx(27.0, abs=0.02) and launch["ahead"] is True
    assert floor["base_ms"] == pytest.approx(11.0, abs=0.02)
    cost = replace(BARE, laws={**BARE.laws, "host": {"default": found["laws"]}}).step_cost()
    assert cost.head["launch_s"][0] == 1e-3 * launch["base_ms"]
    assert "vllm 0.24.0 on NVIDIA H100" in capsys.readouterr().out
    assert fit_host.main([str(tmp_path), "--cases", "many", "--out", str(tmp_path / "one.json")]) == 0
    assert json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))["runs"] == ["many"]


def test_two_runs_count_the_same_however_long(tmp_path):
    write_run(tmp_path, "a", 5, beyond_ms=0.4)
    write_run(tmp_path, "b", 5, beyond_ms=0.8)
    log = steps.read_log(tmp_path / "a_steps.csv")
    short = steps.Log(*(column[:200] for column in log))
    run = Run("a", *(np.zeros(1) for _ in range(5)), Engine(kv_tokens=KV_TOKENS))
    host = steps.fit([(run, short), (run, steps.read_log(tmp_path / "b_steps.csv"))], BARE)
    assert host.knots_ms == pytest.approx([0.6], abs=2e-3)


def test_a_recomputed_request_is_no_launch(tmp_path):
    write_run(tmp_path, "a", 5)
    log = steps.read_log(tmp_path / "a_steps.csv")
    run = Run("a", *(np.zeros(1) for _ in range(5)), Engine(kv_tokens=KV_TOKENS))
    preempted = np.zeros_like(log.preempted)
    preempted[np.flatnonzero(log.prompt > 500)[2:] - 10] = 1
    fitted = steps.fit([(run, log._replace(preempted=preempted))], BARE)
    assert fitted.steps[1] == 2 and fitted.launch_ms == pytest.approx(27.0, abs=0.02)
    with pytest.raises(InvalidArgument, match=r"0 above and 0 that the host holds up; expected some of each"):
        steps.fit([(run, log._replace(prompt=np.minimum(log.prompt, 100)))], BARE)


def test_the_clock_that_was_put_in_is_found(tmp_path):
    """Steps of 2,000 tokens, one to six in turn between decodes, on a device whose clock settles in 60 ms."""
    hot = replace(BARE, dense="sustained")
    cool = replace(BARE, dense="default")
    step = [summed_step(profile)([(2000, 0)], 0, 0) for profile in (hot, cool)]
    decode_s = summed_step(cool)([], 5, 500)
    rows, at_s, warmth = [], 0.0, 0.0
    for i in range(60):
        run = [2000] * (1 + i % 6) + [5] * 12
        for tokens in run:
            taken_s = decode_s if tokens == 5 else step[1] + warmth * (step[0] - step[1]) + 1e-3
            at_s += taken_s
            load = float(tokens > 512)
            warmth = load + (warmth - load) * np.exp(-taken_s / 0.06)
            prompt = tokens if tokens > 5 else 0
            row = [0.0] * 5 + [
                at_s,
                tokens,
                1 if prompt else 5,
                prompt,
                int(prompt > 0),
                0,
                0 if prompt else 500,
            ]
            rows.append([*row, 50, 0, 0, 0.0, 1e3 * taken_s])
    text = ",".join(ENGINE_COLUMNS)
    lines = [",".join(map(repr, map(float, row))) for row in rows]
    path = tmp_path / "a_engine_steps.csv"
    path.write_text("\n".join([text, *lines]) + "\n", encoding="utf-8")
    found = steps.fit_clock(path, hot, cool)
    assert found.settle_ms == pytest.approx(60.0, rel=0.05) and found.steps == 210
    assert found.beyond_ms == pytest.approx(1.0, abs=0.05)
    assert found.left_ms[0] < 0.1 < 0.5 < found.left_ms[1]
    path.write_text("\n".join([text, *lines[:5]]) + "\n", encoding="utf-8")
    with pytest.raises(InvalidArgument, match="steps of 1,500 tokens and more; expected 10 at least"):
        steps.fit_clock(path, hot, cool)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cases", "other"], "expected names out of a"),
        (["--profile", "b200/qwen2.5-7b"], "unknown dense option"),
    ],
)
def test_wrong_arguments_are_told(arguments, said, tmp_path, capsys):
    write_run(tmp_path, "a", 5)
    with pytest.raises(SystemExit) as stopped:
        fit_host.main([str(tmp_path), *arguments])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
