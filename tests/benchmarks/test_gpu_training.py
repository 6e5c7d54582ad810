"""The table of trainings on a card and on a core, and its two kinds of jobs, without a card."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_training

SCRIPT = Path(gpu_training.__file__)


def test_lanes_take_a_fourth_of_the_memory_at_most():
    big, small = "llmgym/KVProvision-v0", "llmgym/PipeSDBatch-v0"
    assert gpu_training.lanes_that_fit(small, {}, 32_768, 140e9) == 32_768
    few = gpu_training.lanes_that_fit(big, {}, 2**30, 1e9)
    assert few < 2**30 and few & (few - 1) == 0
    assert gpu_training.lanes_that_fit(big, {}, 2**30, 4e9) == 4 * few
    assert gpu_training.lanes_that_fit(big, {}, 2**30, 0.0) == 1


def test_the_table_tells_what_failed_and_how_far_seeds_lie_apart():
    rate = {"lanes": 64, "steps_per_s": 50.0, "parts_s": {"env": 1.0, "learning": 2.0}}
    text = gpu_training.table(
        {
            "rates": [
                {
                    "env": "A",
                    "kwargs": {"scenario": "s"},
                    "gpu": rate | {"steps_per_s_second_half": 100.0},
                    "cpu": rate | {"steps_per_s_second_half": 4.0},
                },
                {"env": "B", "kwargs": {}, "gpu": {"failed": "no memory"}},
            ],
            "seeds": [
                {"device": "cpu", "seed": 0, "steps": 5, "wall_s": 1.0, "mean": 1.0},
                {"device": "cpu", "seed": 1, "steps": 5, "wall_s": 1.0, "mean": 3.0},
                {"device": "cuda", "seed": 0, "failed": "no card"},
            ],
        }
    )
    assert "| A s | 64 | 100 | 50 | 1.0, 2.0 | 4 | 25 |" in text
    assert "no memory" in text and "no card" in text
    assert "cpu: mean 2, deviation of seeds 1.4" in text and "cuda: mean" not in text


@pytest.mark.slow
def test_both_kinds_of_training_run_on_a_cpu(tmp_path):
    words = [
        "--out", str(tmp_path), "--device", "none", "--processes", "2", "--seeds", "1", "--timesteps", "20000",
        "--cpu-lanes", "32",
    ]  # fmt: skip
    for what, more in (("rates", ["--only", "PipeSDBatch"]), ("seeds", [])):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), what, *words, *more], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "training.json").read_text())
    assert [row["env"] for row in found["rates"]] == ["llmgym/PipeSDBatch-v0"]
    assert found["rates"][0]["cpu"]["steps_per_s_second_half"] > 0
    assert found["seeds"][0]["steps"] >= 20_000 and "mean" in found["seeds"][0]
