"""Every environment on a GPU plays what it plays on the CPU, where there is a GPU."""

import pytest

import llmgym
from benchmarks.gpu import difference
from llmgym.core import spec

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
