"""The shipped kernel sets against AIConfigurator's tables of the same GPUs, and linear attention against the fused kernel.

    pip install 'llmgym[aiconfigurator]'
    python benchmarks/kernel_check.py [--data DIR] --out benchmarks/results/kernel_check.md

Both are measured, by different people with different libraries: ours with torch 2.11 (FlashAttention 2; cold cache; random data),
theirs with vLLM 0.24 (FlashAttention 3). Ratios are ours over theirs, at our shapes, theirs interpolated log-log.

DIR is a folder with measurements of others; with `vidur/compute/h100/llama-2-70b_mlp.csv.gz` in it (Microsoft Vidur, MIT) the
products of a layer are compared with that too: Llama-2-70B has the layer shapes of Llama-3.1-70B, on 1, 2, 4 and 8 GPUs.
"""

import argparse
import csv
import gzip
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

import llmgym
from llmgym.profiles import load_kernels
from llmgym.profiles.aiconfigurator import KernelTables
from llmgym.profiles.models import MODELS

HEADS = (32, 8, 128)
VARIANT = "32 query heads, 8 key heads of 128"
VIDUR = Path("vidur") / "compute" / "h100" / "llama-2-70b_mlp.csv.gz"
VIDUR_COLUMNS = {
    "qkv": "attn_pre_proj_ms",
    "attention_output": "attn_post_proj_ms",
    "gate_up": "mlp_up_proj_ms",
    "down": "mlp_down_proj_ms",
}


def ratios(gpu: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """Operator, which shapes, and ratios of ours over theirs."""
    ours, theirs = load_kernels(f"{gpu}/kernels"), KernelTables(f"{gpu}_sxm", "vllm")
    products: dict[str, list[float]] = {
        "1 to 64 tokens": [],
        "128 to 1,024 tokens": [],
        "2,048 tokens and more": [],
    }
    for variant in ours.ops()["gemm"]:
        model, shard, name = variant.split(" ")
        shape, tp = MODELS[model], int(shard.removeprefix("tp"))
        gemm = next(g for g in (*shape.gemms(tp), shape.output_head(tp)) if g.name == name)
        table = ours.table("gemm", variant)
        other = 1e6 * theirs.gemm_s(table["tokens"], gemm.n, gemm.k)
        for tokens, ratio in zip(table["tokens"], table["latency_us"] / other, strict=True):
            group = (
                "1 to 64 tokens"
                if tokens <= 64
                else "128 to 1,024 tokens"
                if tokens <= 1024
                else "2,048 tokens and more"
            )
            products[group].append(float(ratio))
    for group, found in products.items():
        yield "matrix product", group, np.array(found)
    decode = theirs.attention("generation_attention", "step", *HEADS)
    for op in ("decode_attention", "paged_decode"):
        table = ours.table(op, VARIANT)
        ratio = table["latency_us"] / (1e6 * decode(table["batch"], table["kv"]))
        large = table["batch"] * table["kv"] >= 65536
        yield op, "below 65,536 cached tokens", ratio[~large]
        yield op, "65,536 cached tokens and more", ratio[large]
    prompt = theirs.attention("context_attention", "isl", *HEADS)
    table = ours.table("prefill_attention", VARIANT)
    first = table["context"] == 0
    yield (
        "prefill_attention",
        "no context",
        table["latency_us"][first] / (1e6 * prompt(table["batch"][first], table["chunk"][first])),
    )


def layer_ratios(path: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """Product, which shapes, and ratios of ours over Vidur's on an H100, at the token counts of ours that it reaches."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ours = load_kernels("h100/kernels")
    for low, high in ((1, 64), (128, 1024), (2048, 4096)):
        for name, column in VIDUR_COLUMNS.items():
            found = []
            for tp in (1, 2, 4, 8):
                theirs = {
                    int(row["num_tokens"]): 1e3 * float(row[column])
                    for row in rows
                    if int(row["num_tensor_parallel_workers"]) == tp
                }
                known = np.log(sorted(theirs))
                us = np.log([theirs[n] for n in sorted(theirs)])
                table = ours.table("gemm", f"llama-3.1-70b tp{tp} {name}")
                chosen = (table["tokens"] >= low) & (table["tokens"] <= high)
                other = np.exp(np.interp(np.log(table["tokens"][chosen]), known, us))
                found.extend(table["latency_us"][chosen] / other)
            yield name, f"{low:,} to {high:,} tokens", np.array(found)


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--data", type=Path, help="folder with measurements of others")
    args = parser.parse_args()
    if args.data and not (args.data / VIDUR).is_file():
        parser.error(f"--data: {args.data / VIDUR} is missing")
    lines = [
        "# Kernel sets against AIConfigurator's tables",
        "",
        f"{date.today()}, llmgym {llmgym.__version__}, aiconfigurator-core {version('aiconfigurator-core')}, vLLM tables. "
        "Ratio of our time to theirs.",
        "",
        "| GPU | operator | shapes | number | median | 10th to 90th percentile |",
        "|---|---|---|---|---|---|",
    ]
    for gpu in ("h100", "h200"):
        for op, shapes, found in ratios(gpu):
            low, middle, high = np.quantile(found, [0.1, 0.5, 0.9])
            lines.append(
                f"| {gpu} | {op} | {shapes} | {len(found)} | {middle:.2f} | {low:.2f} to {high:.2f} |"
            )
    if args.data:
        lines += [
            "",
            "Products of a layer of Llama-3.1-70B against Vidur's of Llama-2-70B (the same shapes, kernels of 2024, time of a",
            "call in a running layer) on an H100, 1 to 8 GPUs. Ratio of our time to theirs.",
            "",
            "| product | shapes | number | median | 10th to 90th percentile |",
            "|---|---|---|---|---|",
        ]
        for op, shapes, found in layer_ratios(args.data / VIDUR):
            low, middle, high = np.quantile(found, [0.1, 0.5, 0.9])
            lines.append(f"| {op} | {shapes} | {len(found)} | {middle:.2f} | {low:.2f} to {high:.2f} |")
    lines += [
        "",
        "Length from which linear attention is faster, by heads x head_dim; never within what was measured, which is",
        "131,072 tokens, and 32,768 for 32 x 128 on the H100.",
        "",
        "| GPU | kernel | than softmax written out, 8 x 32 | than fused softmax, 8 x 32 | than fused softmax, 32 x 128 |",
        "|---|---|---|---|---|",
    ]
    for gpu in ("h100", "h200"):
        kernels = load_kernels(f"{gpu}/kernels")
        for kernel in ("elu", "favor 256", "slay 1 8 8", "slay 2 16 8", "slay 2 16 32"):
            found = [
                kernels.crossover("causal_attention", kernel, other, "length", heads=heads)
                for other, heads in (("softmax", 8), ("fused softmax", 8), ("fused softmax", 32))
            ]
            cells = " | ".join("never" if np.isinf(x) else f"{x:,.0f}" for x in found)
            lines.append(f"| {gpu} | {kernel} | {cells} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
