"""Memory and time of segmented execution, measured beside the formulas, on whatever device is there.

    python benchmarks/segmented_attention.py                                   # a small model on the CPU, minutes
    python benchmarks/segmented_attention.py --device cuda --model llama-2-7b  # the paper's shapes, needs 120 GiB for 128K tokens

A model of random weights (`llmgym.envs.segmented.reference`) prefills prompts whole and in segments. Peak memory is what
torch's allocator says on a GPU, and the sum of the tensors that are alive on a CPU; it is compared with
`llmgym.envs.segmented.reference_memory.predicted_bytes`, in which nothing is fitted. Times are medians on a GPU; on a CPU, which
others may use as well, they are the least CPU time of one thread, in float32. The formula of time has three constants (rate of
the layers' products, rate of attention, time of a segment beside both), which are fitted to the shorter prompts of each kind.
The longest prompt of each is held out. What does not fit into memory is told, and left out.

Writes a JSON file with device, versions, date and every row, and prints the table.
"""

import argparse
import importlib.metadata
import json
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from llmgym.envs.segmented.law import GIB, HEAD_DIM, MODELS, MULTIPLY_ADD, Model, pairs_flop, visible_prefix
from llmgym.envs.segmented.reference import (
    Weights,
    pool_layers,
    prefill_full,
    prefill_segmented,
)
from llmgym.envs.segmented.reference_memory import peak_of, predicted_bytes

SMALL = Model(0.0, 0.0, 4 * HEAD_DIM, 1376, 4096, 4, 2, layers=6)
"""Shapes for a CPU: 23 million parameters, 4 heads."""
RESULTS = Path(__file__).parent / "results" / "segmented_attention"


def shape_of(name: str) -> Model:
    """The shapes of a model by its name."""
    return SMALL if name == "small" else MODELS[name]


def parameters(shape: Model) -> int:
    """Of all products of a forward pass: the layers and the head, counted."""
    kv = shape.kv_heads * HEAD_DIM
    layer = 2 * shape.width * shape.width + 2 * shape.width * kv + 3 * shape.width * shape.ff
    return shape.layers * layer + shape.width * shape.vocabulary


def work(
    shape: Model, tokens: int, segment: int | None, tail: int, retrieved: int
) -> tuple[float, float, float]:
    """FLOP of products and of attention, and segments, of one prefill; the latter two as the law has them."""
    dense = float(MULTIPLY_ADD * parameters(shape) * tokens)
    if segment is None:
        return dense, float(pairs_flop(shape)) * tokens * tokens, 0.0
    long = shape.long_heads / shape.kv_heads
    prefix = (1.0 - long) * tail + pool_layers(shape) / shape.layers * long * retrieved
    if shape in MODELS.values() and retrieved and tail:
        assert np.isclose(prefix, visible_prefix(shape, tail, retrieved))
    pairs = tokens * segment + 2.0 * (tokens - segment) * prefix
    return dense, pairs_flop(shape) * pairs, tokens / segment


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measured(
    weights: Weights, timed: Weights, device: str, given: argparse.Namespace, tokens: int, segment: int | None
) -> dict[str, Any]:
    """Peak memory and time of one case."""
    prompt = torch.randint(0, weights.shape.vocabulary, (tokens,), device=device)

    def prefill(model: Weights) -> None:
        if segment is None:
            prefill_full(model, prompt)
        else:
            prefill_segmented(model, prompt, segment, given.tail, given.retrieved, given.first)

    prefill(weights)
    with peak_of(device) as peak:
        prefill(weights)
    prefill(timed)
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    seconds = []
    for _ in range(given.repetitions):
        synchronize(device)
        begin = clock()
        prefill(timed)
        synchronize(device)
        seconds.append(clock() - begin)
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    retrieved = 0 if segment is None else given.retrieved
    return {
        "tokens": tokens,
        "segment": segment,
        "memory_bytes": int(peak[0]),
        "memory_formula_bytes": predicted_bytes(
            weights.shape, tokens, segment, given.tail, retrieved, given.first
        ),
        "time_s": float(middle if device.startswith("cuda") else min(seconds)),
        "time_iqr_s": float(high - low),
        "repetitions": given.repetitions,
    }


def fit(shape: Model, rows: list[dict[str, Any]], given: argparse.Namespace) -> dict[str, float]:
    """Fit the three constants to the rows that are not held out, by relative error, and write the formula's time into all rows."""
    for row in rows:
        same = [other["tokens"] for other in rows if other["segment"] == row["segment"]]
        row["held_out"] = row["tokens"] == max(same) and len(same) > 1
    terms = np.array(
        [work(shape, row["tokens"], row["segment"], given.tail, given.retrieved) for row in rows]
    )
    scale = terms.max(axis=0)
    times, used = np.array([row["time_s"] for row in rows]), np.array([not row["held_out"] for row in rows])
    found, _ = nnls(terms[used] / scale / times[used, None], np.ones(used.sum()))
    for row, predicted in zip(rows, terms / scale @ found, strict=True):
        row["time_formula_s"] = float(predicted)
    per = found / scale
    rates = {
        name: float(1.0 / one) if one > 0 else None
        for name, one in zip(("dense", "attention"), per[:2], strict=True)
    }
    return {"dense_flops": rates["dense"], "attention_flops": rates["attention"], "segment_s": float(per[2])}  # type: ignore[dict-item]


def provenance(device: str) -> dict[str, Any]:
    """Device, versions, date."""
    told = {
        "date": datetime.now(UTC).date().isoformat(),
        "script": "benchmarks/segmented_attention.py",
        "llmgym": importlib.metadata.version("llmgym") if _installed("llmgym") else "source",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    if device.startswith("cuda"):
        _, total = torch.cuda.mem_get_info()
        told |= {
            "device": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "memory_gib": total / GIB,
        }
    return told


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def table(result: dict[str, Any]) -> str:
    """The rows for people."""
    lines = [
        "| tokens | segment | memory, GiB | by formula | error | time, s | by formula | error | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        memory, time_s = row["memory_bytes"] / GIB, row["time_s"]
        by_memory, by_time = row["memory_formula_bytes"] / GIB, row["time_formula_s"]
        errors = [f"{100 * (by / real - 1):+.1f} %" for by, real in ((by_memory, memory), (by_time, time_s))]
        lines.append(
            f"| {row['tokens']:,} | {row['segment'] or 'whole'} | {memory:.4g} | {by_memory:.4g} | {errors[0]} "
            f"| {time_s:.4g} | {by_time:.4g} | {errors[1]} | {'held out' if row['held_out'] else ''} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, fit, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", choices=["small", *MODELS], default="small")
    parser.add_argument("--lengths", type=int, nargs="+", help="of prompts, tokens")
    parser.add_argument("--segments", type=int, nargs="+", help="S, tokens")
    parser.add_argument("--tail", type=int, help="M, tokens")
    parser.add_argument("--retrieved", type=int, help="R, tokens")
    parser.add_argument("--first", type=int, help="entries of the pool's buffer at the beginning")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, help="file; default: results/segmented_attention/MODEL-DEVICE.json"
    )
    given = parser.parse_args()
    small = given.model == "small"
    given.lengths = given.lengths or (
        [512, 1024, 2048, 4096] if small else [8192, 16_384, 32_768, 65_536, 131_072]
    )
    given.segments = given.segments or ([256, 512] if small else [2048, 4096, 8192])
    given.tail = (64 if small else 512) if given.tail is None else given.tail
    given.retrieved = (64 if small else 512) if given.retrieved is None else given.retrieved
    given.first = (256 if small else 8192) if given.first is None else given.first
    shape = shape_of(given.model)
    weights = timed = Weights.random(shape, given.device)
    if not given.device.startswith("cuda"):
        torch.set_num_threads(1)
        timed = Weights.random(shape, given.device, "float32")
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    for segment in (None, *given.segments):
        for tokens in given.lengths:
            if segment is not None and tokens < 2 * segment:
                continue
            try:
                rows.append(measured(weights, timed, given.device, given, tokens, segment))
            except torch.OutOfMemoryError as error:
                skipped.append(f"{tokens} tokens, segment {segment}: {str(error).splitlines()[0]}")
                torch.cuda.empty_cache()
            else:
                print(rows[-1], flush=True)
    settings = {name: getattr(given, name) for name in ("model", "tail", "retrieved", "first")}
    result = {
        **provenance(given.device),
        **settings,
        "shape": vars(shape),
        "weights_bytes": sum(one.numel() * one.element_size() for one in weights.tensors()),
        "constants": fit(shape, rows, given),
        "skipped": skipped,
        "rows": rows,
    }
    out = given.out or RESULTS / f"{given.model}-{given.device.partition(':')[0]}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(json.dumps(result["constants"]), *skipped, sep="\n")


if __name__ == "__main__":
    main()
