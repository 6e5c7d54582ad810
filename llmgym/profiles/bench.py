"""Timing kernels on one device: what `llmgym.profiles.measure` and `llmgym.profiles.families` share.

How a call is timed on a GPU: three calls to warm up, then repetitions with device events around each, the second-level cache
flushed before every one. Calls are replayed as one CUDA graph, as serving engines do, so that no gap between launches counts. On
a CPU: a wall clock around each call.
"""

import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.errors import InvalidArgument, MissingExtra

FLUSH_BYTES = 256 * 2**20
FEWEST, MOST = 5, 200
"""Repetitions of a call."""


class Case(NamedTuple):
    """One shape of one op; `make()` gives the call to time.

    `graph`: as one CUDA graph; `sustained`: back to back, at the clock that is left then; `memory`, `power`: measure those too.
    """

    op: str
    variant: str
    shape: tuple[tuple[str, int], ...]
    needs_bytes: float
    make: Callable[[], Callable[[], Any]]
    graph: bool = True
    sustained: bool = False
    memory: bool = False
    power: bool = False


def case(op: str, variant: str, needs: float, make: Callable[[], Callable[[], Any]], /, **shape: int) -> Case:
    """A case to measure, with its shape as named arguments.

    Args:
        op: name of the op.
        variant: name of the variant of the op.
        needs: memory that it takes, bytes.
        make: gives the call to time.
        shape: a value for each name of the shape, in this order.

    Returns:
        The case, with the other fields of `Case` at their defaults.
    """
    return Case(op, variant, tuple(shape.items()), needs, make)


class Device:
    """A torch device with random data and a clock.

    Args:
        name: a torch device, such as "cuda" or "cpu".

    Raises:
        InvalidArgument: it cannot be used.
        MissingExtra: torch is not installed.
    """

    def __init__(self, name: str) -> None:
        try:
            import torch
        except ImportError as error:
            raise MissingExtra("measuring a profile", "train") from error
        self.torch: Any = torch
        try:
            self.device = torch.device(name)
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise InvalidArgument(f"device={name!r} cannot be used: {error}") from error
        self.cuda = self.device.type == "cuda"
        self.generator = torch.Generator(self.device).manual_seed(0)
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=self.device) if self.cuda else None

    @property
    def title(self) -> str:
        """Name of the hardware."""
        if self.cuda:
            return str(self.torch.cuda.get_device_name(self.device))
        return platform.processor() or platform.machine()

    @property
    def gpu(self) -> str:
        """Short name, as in the names of profiles: "h100", "cpu"."""
        return self.title.removeprefix("NVIDIA ").split()[0].lower() if self.cuda else "cpu"

    def versions(self) -> dict[str, str]:
        """Versions of torch, Python, the device and its driver."""
        versions = {
            "torch": str(self.torch.__version__),
            "python": platform.python_version(),
            "device": self.title,
        }
        if self.cuda:
            versions |= {"cuda": str(self.torch.version.cuda), "driver": _driver()}
        return versions

    def random(self, *size: int, scale: float = 1.0) -> Any:
        """Normal numbers, bf16."""
        out = self.torch.empty(size, dtype=self.torch.bfloat16, device=self.device)
        return out.normal_(0.0, scale, generator=self.generator)

    def time_us(self, call: Callable[[], Any], budget_s: float, graph: bool = True) -> NDArray[np.float64]:
        """Time a call again and again.

        Args:
            call: what to time.
            budget_s: stop after this time, s.
            graph: replay a CUDA graph; False times the launches as they come, for what cannot be captured.

        Returns:
            Microseconds of each call, float64 [repetitions], `FEWEST` to `MOST` of them.
        """
        for _ in range(3):
            call()
        times_us: list[float] = []
        start = time.perf_counter()

        def more() -> bool:
            return len(times_us) < MOST and (len(times_us) < FEWEST or time.perf_counter() - start < budget_s)

        if not self.cuda:
            while more():
                began = time.perf_counter()
                call()
                times_us.append(1e6 * (time.perf_counter() - began))
            return np.array(times_us)
        torch = self.torch
        run = self.captured(call) if graph else call
        torch.cuda.synchronize()
        while more():
            pairs = []
            for _ in range(5):
                assert self._flush is not None
                self._flush.zero_()
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                first.record()
                run()
                last.record()
                pairs.append((first, last))
            torch.cuda.synchronize()
            times_us += [1e3 * first.elapsed_time(last) for first, last in pairs]
        return np.array(times_us)

    def time_sustained_us(self, call: Callable[[], Any], seconds: float) -> NDArray[np.float64]:
        """Microseconds a call of calls back to back, float64 [groups], after `seconds` of such calls that are not counted.

        A GPU under steady load runs at the clock that its power limit leaves, and at the bandwidth that a cache gives which nobody
        flushes: what an engine meets that is never idle, and single calls do not show.
        """
        for _ in range(3):
            call()
        run = self.captured(call) if self.cuda else call
        group = max(int(0.01 / max(self._seconds(run, 3), 1e-9)), 1)
        times_us: list[float] = []
        for keep in (False, True):
            start = time.perf_counter()
            while time.perf_counter() - start < seconds or (keep and len(times_us) < FEWEST):
                each = self._seconds(run, group)
                if keep:
                    times_us.append(1e6 * each)
        return np.array(times_us)

    def captured(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call as one CUDA graph, to be replayed."""
        self.torch.cuda.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            call()
        replay: Callable[[], Any] = graph.replay
        return replay

    def _seconds(self, run: Callable[[], Any], times: int) -> float:
        """Seconds a call, of so many back to back."""
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(times):
                run()
            return (time.perf_counter() - start) / times
        first, last = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(times):
            run()
        last.record()
        last.synchronize()
        return float(1e-3 * first.elapsed_time(last) / times)

    def peak_bytes(self, call: Callable[[], Any]) -> int:
        """Memory a call needs at its peak, beyond what was allocated before it; 0 on a CPU."""
        if not self.cuda:
            return 0
        torch = self.torch
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)

    def power_w(self, call: Callable[[], Any], seconds: float) -> float:
        """Mean board power over so many seconds of calls back to back, W; NaN where it cannot be read.

        From the energy counter of NVML (nvidia-ml-py), after a tenth of the time to settle.
        """
        if not self.cuda:
            return math.nan
        try:
            import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

            pynvml.nvmlInit()
            uuid = str(self.torch.cuda.get_device_properties(self.device).uuid)
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
            energy_j = 0.0
            for share, counts in ((0.1, False), (1.0, True)):
                before, start = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), time.perf_counter()
                while time.perf_counter() - start < share * seconds:
                    for _ in range(4):
                        call()
                    self.torch.cuda.synchronize()
                elapsed = time.perf_counter() - start
                if counts:
                    energy_j = 1e-3 * (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before)
            return energy_j / elapsed
        except Exception:  # NVML is missing, or this device has no counter: a figure less, not a failure
            return math.nan


def _driver() -> str:
    path = Path("/proc/driver/nvidia/version")
    text = path.read_text(encoding="utf-8").split("\n")[0] if path.is_file() else ""
    words = [word for word in text.split() if word[:1].isdigit() and "." in word]
    return words[0] if words else "unknown"
