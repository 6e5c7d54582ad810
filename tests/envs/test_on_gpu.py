"""Every environment on a GPU plays what it plays on the CPU, where there is a GPU."""

import pytest

import llmgym
from benchmarks.gpu import difference
from llmgym.core import spec
from llmgym.evaluation import room

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("torch finds no GPU here", allow_module_level=True)
pytest.importorskip("cuda.bindings")


@pytest.mark.parametrize("env_id", llmgym.env_ids())
def test_lanes_on_a_gpu_are_those_of_the_cpu(env_id: str) -> None:
    """In exact arithmetic rewards and observations are those of the CPU but for the last bits of log, exp and pow."""
    kwargs = next(iter(spec.spec(env_id).test_cases().values()))
    found = difference(env_id, kwargs, 16, 20.0, exact=True)
    assert found["lanes_apart"] == 0, found
    assert found["reward"] < 1e-9 and found["obs"] < 1e-5, found


@pytest.mark.parametrize("env_id", ["llmgym/MemPlace-v0", "llmgym/PPDRouting-v0", "llmgym/AFDRefill-v0"])
def test_copies_on_a_gpu_find_the_room_of_the_cpu(env_id: str) -> None:
    against = {"llmgym/MemPlace-v0": "static", "llmgym/PPDRouting-v0": "pd", "llmgym/AFDRefill-v0": "fcfs"}
    asked = {"worlds": 4, "tuning": 2, "against": [against[env_id]], "stride": 4, "progress": False}
    here, there = (room(env_id, scenario="small", device=where, **asked) for where in ("cpu", "cuda"))
    assert here.gain != 0
    assert there.gains == pytest.approx(here.gains, rel=1e-9, abs=1e-12)
