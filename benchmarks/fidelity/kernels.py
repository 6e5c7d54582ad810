"""Step costs of published kernel tables (see `llmgym.profiles.llmservingsim`), and NCCL as AIConfigurator measured it."""

import csv
import gzip
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.errors import InvalidArgument
from llmgym.profiles import Profile
from llmgym.profiles.cost import prefill_attention_s, step_time_s
from llmgym.profiles.models import BF16_BYTES, MODELS, ModelShape

Step = Callable[[Sequence[tuple[int, int]], int, int], float]
"""Seconds of a batch: chunks as (tokens, tokens of the request cached before), number of decodes, tokens they read in total."""
HOST_S = 0.85e-3
"""Host time of a step: the default host law of `h100/llama-3.1-8b`, from a run on another GPU with another version of vLLM."""
SHAPES = {
    "Llama-3.1-8B": MODELS["llama-3.1-8b"],
    "Qwen3-30B-A3B-Instruct-2507": ModelShape(
        "qwen3-30b-a3b",
        "https://huggingface.co/Qwen/Qwen3-30B-A3B-Instruct-2507/blob/main/config.json",
        layers=48,
        hidden=2_048,
        intermediate=768,
        q_heads=32,
        kv_heads=4,
        head_dim=128,
        vocab=151_936,
        qk_norm=True,
        experts=128,
        experts_per_token=8,
    ),
}
"""Models of the published runs."""


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, gzipped or not.

    Raises:
        InvalidArgument: there is no such file.
    """
    if not path.is_file():
        raise InvalidArgument(f"data: {path} is missing")
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return list(csv.DictReader(file))


def columns(path: Path, *names: str) -> Any:
    """Columns of a CSV file as one float64 array, [rows, names]."""
    return np.array([[float(row[name]) for name in names] for row in rows_of(path)])


class Nccl:
    """Collectives of NCCL on one system, 16-bit numbers, as AIConfigurator measured them.

    Args:
        data: folder with `aiconfigurator`.
        system: its folder, such as "rtx_pro_6000_server".
    """

    def __init__(self, data: Path, system: str) -> None:
        self.path = data / "aiconfigurator" / system / "nccl.csv.gz"
        self._points = cache(self._read)

    def __repr__(self) -> str:
        return "NCCL as AIConfigurator measured it"

    def _read(self, name: str, gpus: int) -> Any:
        """Logarithms of numbers and of us of one collective, [2, sizes]."""
        asked = (name, "half", str(gpus))
        points = sorted(
            (float(row["message_size"]), 1e3 * float(row["latency_ms"]))
            for row in rows_of(self.path)
            if (row["op_name"], row["nccl_dtype"], row["num_gpus"]) == asked
        )
        return np.log(np.array(points)).T

    def _s(self, name: str, size_bytes: Any, gpus: int) -> Any:
        size, time = self._points(name, gpus)
        return 1e-6 * np.exp(np.interp(np.log(size_bytes / BF16_BYTES), size, time))

    def all_reduce_s(self, size_bytes: Any, gpus: int) -> Any:
        """Seconds of an all-reduce."""
        return self._s("all_reduce", size_bytes, gpus)

    def all_gather_s(self, size_bytes: Any, gpus: int) -> Any:
        """Seconds of an all-gather of so many bytes together."""
        return self._s("all_gather", size_bytes, gpus)

    def reduce_scatter_s(self, size_bytes: Any, gpus: int) -> Any:
        """Seconds of a reduce-scatter of so many bytes together."""
        return self._s("reduce_scatter", size_bytes, gpus)


def summed_step(profile: Profile) -> Step:
    """Duration of a batch as the compiled engine has it."""
    cost = profile.step_cost()

    def step(chunks: Sequence[tuple[int, int]], decodes: int, kv_tokens: int) -> float:
        attention = sum(prefill_attention_s(cost, tokens, context) for tokens, context in chunks)
        return float(
            step_time_s(
                cost,
                sum(tokens for tokens, _ in chunks),
                attention,
                decodes,
                kv_tokens,
                decodes + len(chunks),
                0,
            )
        )

    return step
