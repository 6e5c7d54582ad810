"""Machine code for a GPU, made without one: what compiles, what does not, and how it is kept."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmgym.core import cache_folder
from llmgym.core.device import one_lane
from llmgym.core.jit import kernel
from llmgym.errors import KernelError
from tests import toy

pytest.importorskip("numba.cuda.dispatcher", reason="numba-cuda is not installed")
pytest.importorskip("cuda.bindings")
cuda = pytest.importorskip("llmgym.core.cuda")

SM_90 = (9, 0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("LLMGYM_CACHE_DIR", str(tmp_path))
    cache_folder.cache_dir.cache_clear()
    yield tmp_path / "kernels" / "cuda"
    cache_folder.cache_dir.cache_clear()


def compiler(exact: bool = False, **kernels: Any) -> Any:
    return cuda.Compiler(toy.Toy.kernels._replace(**kernels), None, None, SM_90, exact, [True])


def test_all_that_a_thread_does_becomes_machine_code_and_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LLMGYM_QUIET", raising=False)
    arrays = one_lane(toy.Toy())
    for name in ("step", "finish", "begin", "measure"):
        code = compiler().code(name, arrays)
        assert code.image.startswith(b"\x7fELF") and 8 <= code.registers <= 255 and code.spill_bytes == 0
        assert code.name.encode() in code.image
    assert len(list(folder.iterdir())) == 4
    told = capsys.readouterr().err
    assert "llmgym: compiling step of tests.toy for sm_90 (once; the result is kept in" in told


def test_what_is_on_disk_is_used_unless_it_is_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = one_lane(toy.Toy())
    first = compiler().code("finish", arrays)
    linked = cuda._linked
    monkeypatch.setattr(cuda, "_linked", None)
    assert compiler().code("finish", arrays) == first
    monkeypatch.setattr(cuda, "_linked", linked)
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert compiler().code("finish", arrays).registers == first.registers


def test_other_code_another_gpu_and_other_rounding_have_other_names(folder: Path) -> None:
    @kernel
    def metrics_lane(state: Any, params: Any, lane: int, out: Any) -> None:
        out[0] = out[1] = state.lane[lane].waited

    arrays = one_lane(toy.Toy())
    compiler().code("finish", arrays)
    compiler(metrics_lane=metrics_lane).code("finish", arrays)
    compiler(exact=True).code("finish", arrays)
    cuda.Compiler(toy.Toy.kernels, None, None, (8, 0), False, [True]).code("finish", arrays)
    compiler().code("finish", arrays, registers=64)
    cuda.Compiler(toy.Toy.kernels, None, None, SM_90, False, [False]).code("finish", arrays)
    assert len(list(folder.iterdir())) == 6


@kernel
def _root(x: float) -> float:
    if x < 0.0:
        raise ValueError("below 0")
    return x**0.5


def test_a_kernel_that_raises_or_makes_arrays_is_told_by_name() -> None:
    arrays = one_lane(toy.Toy())

    @kernel
    def raising(state: Any, params: Any, lane: int, out: Any) -> None:
        out[0] = _root(state.lane[lane].waited)

    with pytest.raises(KernelError, match="_root raises an error, which a device cannot"):
        compiler(metrics_lane=raising).code("finish", arrays)

    @kernel(allocates=True)
    def allocating(state: Any, params: Any, lane: int, out: Any) -> None:
        times = np.zeros(3)
        out[0] = times[0]

    with pytest.raises(KernelError, match="allocating makes arrays, which a device cannot"):
        compiler(metrics_lane=allocating).code("finish", arrays)


def test_exact_arithmetic_rounds_products_and_sums_apart() -> None:
    arrays = one_lane(toy.Toy())

    @kernel
    def metrics_lane(state: Any, params: Any, lane: int, out: Any) -> None:
        episode = state.lane[lane]
        out[0] = episode.waited * episode.clock_s + out[1]

    def ptx(exact: bool) -> str:
        made = compiler(exact, metrics_lane=metrics_lane)
        thread = made._threads.finish
        made._use()
        return made._ptx(thread, cuda.numba.typeof(arrays))[0].decode()

    assert "fma.rn.f64" in ptx(False)
    exact = ptx(True)
    assert "fma.rn.f64" not in exact and "mul.rn.f64" in exact and "add.rn.f64" in exact
