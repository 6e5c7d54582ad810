"""Write the parameter files of the named workloads (`llmgym/workloads/data/*.json`) from the public traces.

    python benchmarks/build_workloads.py DATA_FOLDER

DATA_FOLDER holds the traces as `azure_llm_2023/{code,conv}.csv.gz` (arrival_s, prompt_tokens, output_tokens;
from https://github.com/Azure/AzurePublicDataset), `mooncake_fast25/{conversation,synthetic}_trace.jsonl.gz`
(from https://github.com/kvcache-ai/Mooncake), `sarathi_serve/sharegpt_8k_lengths.csv.gz` (prompt_tokens,
output_tokens; from https://github.com/microsoft/sarathi-serve) and
`vidur_opt_scheduler/sharegpt_lengths_with_prediction.csv.gz` (prompt_tokens, output_tokens,
predicted_output_tokens; from https://github.com/AKafakA/vidur_opt_scheduler).

Lengths become quantile tables (218 knots, finer in the upper tail) with the copula correlation that has the
rank correlation of the trace. Arrivals:

- conversation traces: gamma or Poisson gaps, and a lognormal rate level per minute whose variance is set by
  simulation so that the index of dispersion of requests per minute, over stretches as long as the trace, is
  that of the trace;
- code: on/off. A pause is a gap over 3 s; the shares of on and off time and the CV of the gaps while on are
  those of the trace, and both mean durations are scaled together until the index of dispersion is that of the
  trace.

The report printed at the end compares simulation and trace.
"""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from llmgym.workloads import Arrivals, RequestClass, Workload, fixed, gamma, load, on_off, poisson

OUT = Path(__file__).resolve().parent.parent / "llmgym" / "workloads" / "data"
KNOTS = np.concatenate([np.arange(196) * 0.005, 0.98 + np.arange(20) * 0.001, [0.9995, 1.0]])
PAUSE_S = 3.0
LEVEL_CORRELATION = (
    0.85  # per minute: lag-one correlation of the Azure conversation trace's counts per minute
)
AZURE = {
    "source": "Azure LLM inference trace 2023, released with Splitwise (ISCA 2024).",
    "url": "https://github.com/Azure/AzurePublicDataset",
    "licence": "CC-BY-4.0",
    "attribution": "Patel, Choukse, Zhang, Shah, Goiri, Maleki, Bianchini: "
    '"Splitwise: Efficient generative LLM inference using phase splitting", ISCA 2024. '
    "Data by Microsoft Azure. "
    "Changes: fitted parameters and quantiles only.",
    "date": "2023-11-16",
}
MOONCAKE = {
    "source": "Mooncake traces, FAST'25 release.",
    "url": "https://github.com/kvcache-ai/Mooncake",
    "licence": "Apache-2.0",
    "attribution": 'Qin et al., "Mooncake: Trading More Storage for Less Computation", FAST 2025 '
    "(Moonshot AI, Tsinghua University). Changes: fitted parameters and quantiles only.",
    "date": "FAST 2025",
}
SHAREGPT = {
    "source": "ShareGPT lengths with predicted lengths, from a fork of Vidur.",
    "url": "https://github.com/AKafakA/vidur_opt_scheduler",
    "licence": "MIT",
    "attribution": "Copyright (c) Microsoft Corporation; fork with additions. Changes: quantiles only.",
    "date": "commit 845f97cab98968fc9c1c2635c1d7feca7f98bf67",
}
SHAREGPT_8K = {
    "source": "ShareGPT lengths, 8k filter, Llama-2 tokenizer, from Sarathi-Serve (OSDI 2024).",
    "url": "https://github.com/microsoft/sarathi-serve",
    "licence": "Apache-2.0",
    "attribution": "Copyright Microsoft Corporation. Changes: quantiles only.",
    "date": "2026-01-07 (commit 72339db5b120614033b317880ad3a05a5e4c9415)",
}
NO_ARRIVALS = "The source has no arrival times: Poisson at 1 req/s until another rate is set."


def read_csv(path: Path) -> np.ndarray:
    with gzip.open(path, "rt", newline="") as text:
        rows = csv.reader(text)
        next(rows)
        return np.array([[float(x) for x in row] for row in rows])


def read_mooncake(path: Path) -> np.ndarray:
    with gzip.open(path, "rt") as text:
        rows = [json.loads(line) for line in text]
    return np.array([[r["timestamp"] / 1000.0, r["input_length"], r["output_length"]] for r in rows])


def dispersion(times: np.ndarray, minutes: int) -> float:
    """Variance over mean of the requests in each of the first `minutes` minutes."""
    counts = np.bincount((times // 60.0).astype(int), minlength=minutes)[:minutes]
    return float(counts.var() / counts.mean())


def window_cv(times: np.ndarray, window_s: float = 300.0) -> float:
    """Median over windows of the coefficient of variation of the gaps inside a window."""
    values = []
    for start in np.arange(0.0, times[-1], window_s):
        gaps = np.diff(times[(times >= start) & (times < start + window_s)])
        if gaps.size > 10 and gaps.mean() > 0.0:
            values.append(gaps.std() / gaps.mean())
    return float(np.median(values))


def simulate(arrivals: Arrivals, minutes: int, stretches: int = 600) -> list[np.ndarray]:
    """Arrival times of independent stretches of the given length."""
    one = Workload("fit", arrivals, (RequestClass(fixed(1), fixed(1)),))
    rng = np.random.default_rng(2023)
    return [one.sample(rng, horizon_s=60.0 * minutes).arrival_s for _ in range(stretches)]


def solve(
    make: Callable[[float], Arrivals], minutes: int, target: float, low: float, high: float
) -> Arrivals:
    """Bisect the parameter of `make` until the simulated mean index of dispersion is `target`."""
    for _ in range(14):
        middle = 0.5 * (low + high)
        simulated = np.mean([dispersion(s, minutes) for s in simulate(make(middle), minutes, 150)])
        low, high = (middle, high) if simulated < target else (low, middle)
    return make(round(0.5 * (low + high), 6))


def fit_level(times: np.ndarray, cv: float) -> Arrivals:
    minutes = int(times[-1] // 60.0)
    base = gamma((len(times) - 1) / times[-1], cv)
    return solve(
        lambda v: base.modulated(60.0, v, LEVEL_CORRELATION), minutes, dispersion(times, minutes), 0.0, 0.2
    )


def fit_on_off(times: np.ndarray) -> Arrivals:
    minutes = int(times[-1] // 60.0)
    gaps = np.diff(times)
    pause = gaps > PAUSE_S
    short = gaps[~pause]
    bursts = pause.sum() + 1
    on_s, off_s = short.sum() / bursts, gaps[pause].mean()
    cv = short.std() / short.mean()
    rate_rps = (len(times) - 1) / times[-1]

    def make(scale: float) -> Arrivals:
        return on_off(1.0, on_s * scale, off_s * scale, cv).with_rate(rate_rps)

    return solve(make, minutes, dispersion(times, minutes), 0.5, 4.0)


def rounded(x: float) -> float:
    return float(f"{x:.6g}")


def arrivals_json(a: Arrivals) -> dict[str, Any]:
    out: dict[str, Any] = {"process": a.process, "rate_rps": rounded(a.rate_rps), "cv": rounded(a.cv)}
    if a.process == "on-off":
        out |= {"mean_on_s": rounded(a.mean_on_s), "mean_off_s": rounded(a.mean_off_s)}
    if a.modulation is not None:
        m = a.modulation
        out["modulation"] = {
            "period_s": m.period_s,
            "variance": rounded(m.variance),
            "correlation": m.correlation,
            "law": m.law,
        }
    return out


def knots(tokens: np.ndarray) -> list[float]:
    values = np.quantile(np.maximum(tokens, 1.0), KNOTS, method="hazen")
    return [float(f"{v:.1f}") for v in values]


def statistics(tokens: np.ndarray) -> dict[str, float]:
    p50, p90, p99 = np.quantile(tokens, [0.5, 0.9, 0.99])
    return {
        "mean": rounded(tokens.mean()),
        "p50": rounded(p50),
        "p90": rounded(p90),
        "p99": rounded(p99),
        "max": float(tokens.max()),
    }


def write(
    name: str, description: str, origin: dict[str, str], arrivals: Arrivals, lengths: np.ndarray
) -> None:
    rank = spearmanr(lengths[:, 0], lengths[:, 1]).statistic
    data = {
        "name": name,
        "description": description,
        **origin,
        "arrivals": arrivals_json(arrivals),
        "correlation": round(float(2.0 * np.sin(np.pi * rank / 6.0)), 4),
        "requests": len(lengths),
        "prompt_statistics": statistics(lengths[:, 0]),
        "output_statistics": statistics(lengths[:, 1]),
        "probabilities": [round(float(p), 6) for p in KNOTS],
        "prompt_tokens": knots(lengths[:, 0]),
        "output_tokens": knots(lengths[:, 1]),
    }
    OUT.mkdir(exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(data, separators=(",", ":")).replace(',"', ',\n"') + "\n")


def write_prediction(rows: np.ndarray) -> None:
    """Quantiles of ln(predicted / true), knots finer at both ends, where most of the spread is."""
    errors = np.sort(np.log(np.maximum(rows[:, 2], 1.0) / np.maximum(rows[:, 1], 1.0)))
    tail = np.array([0.0, 5e-5, 1e-4, 2.5e-4, 5e-4, 0.001, 0.002, 0.005])
    grid = np.concatenate([tail, np.arange(1, 100) * 0.01, 1.0 - tail[::-1]])
    data = {
        "name": "length-prediction",
        "description": "Quantiles of ln(predicted / true output tokens) of a predictor, 40,000 rows.",
        **SHAREGPT,
        "statistics": {"mean": rounded(errors.mean()), "sd": rounded(errors.std())},
        "probabilities": [round(float(p), 6) for p in grid],
        "log_ratio": [round(float(e), 4) for e in np.quantile(errors, grid, method="hazen")],
    }
    (OUT / "length-prediction.json").write_text(
        json.dumps(data, separators=(",", ":")).replace(',"', ',\n"') + "\n"
    )


def report(name: str, lengths: np.ndarray, times: np.ndarray | None, table: Table) -> None:
    w = load(name)
    sample = w.sample(np.random.default_rng(1), n=400_000)
    for side, real, drawn in (
        ("prompt", lengths[:, 0], sample.prompt_tokens),
        ("output", lengths[:, 1], sample.output_tokens),
    ):
        for key, value in statistics(real).items():
            table.add_row(name, f"{side} {key}", f"{value:.0f}", f"{statistics(drawn)[key]:.0f}")
    if times is not None:
        minutes = int(times[-1] // 60.0)
        stretches = simulate(w.arrivals, minutes)
        rate = sum(map(len, stretches)) / (60.0 * minutes * len(stretches))
        table.add_row(name, "rate (req/s)", f"{(len(times) - 1) / times[-1]:.3f}", f"{rate:.3f}")
        mean = np.mean([dispersion(s, minutes) for s in stretches])
        table.add_row(
            name,
            "I/min over stretches of the trace's length",
            f"{dispersion(times, minutes):.1f}",
            f"{mean:.1f}",
        )
        long = w.sample(np.random.default_rng(2), horizon_s=3600.0 * 300).arrival_s
        table.add_row(name, "I/min over 300 h", "", f"{dispersion(long, 300 * 60):.1f}")
        cv = np.median([window_cv(s) for s in stretches[:50]])
        table.add_row(name, "median CV of gaps in 5 min", f"{window_cv(times):.2f}", f"{cv:.2f}")


def main(data_folder: tyro.conf.Positional[Path]) -> None:
    """Build every parameter file and print how well it matches.

    Args:
        data_folder: holds the trace files named at the top of this script.
    """
    conv, code = (read_csv(data_folder / "azure_llm_2023" / f"{n}.csv.gz") for n in ("conv", "code"))
    talk, synthetic = (
        read_mooncake(data_folder / "mooncake_fast25" / f"{n}_trace.jsonl.gz")
        for n in ("conversation", "synthetic")
    )
    predicted = read_csv(data_folder / "vidur_opt_scheduler" / "sharegpt_lengths_with_prediction.csv.gz")
    filtered = read_csv(data_folder / "sarathi_serve" / "sharegpt_8k_lengths.csv.gz")

    gaps = np.diff(conv[:, 0])
    inner = [gaps[i : i + 400].std() / gaps[i : i + 400].mean() for i in range(0, len(gaps) - 400, 400)]
    write(
        "azure-conv-2023",
        "Conversation service of Azure, 58 minutes of November 2023; gamma gaps under a slowly varying rate.",
        AZURE, fit_level(conv[:, 0], float(np.median(inner))), conv[:, 1:],
    )  # fmt: skip
    write(
        "azure-code-2023",
        "Coding service of Azure, 57 minutes of November 2023; bursts and silences, short outputs.",
        AZURE, fit_on_off(code[:, 0]), code[:, 1:],
    )  # fmt: skip
    write(
        "mooncake-conversation",
        "Conversation traffic of Kimi, one hour, long prompts. The trace's timestamps are ticks of 3 s; "
        "arrivals here are Poisson within a minute, under a slowly varying rate.",
        MOONCAKE, fit_level(talk[:, 0], 1.0), talk[:, 1:],
    )  # fmt: skip
    write(
        "mooncake-synthetic",
        "Mixture of public data sets, Poisson arrivals, long prompts; longer prompts have shorter outputs.",
        MOONCAKE, poisson((len(synthetic) - 1) / synthetic[-1, 0]), synthetic[:, 1:],
    )  # fmt: skip
    write(
        "sharegpt",
        f"ShareGPT, 40,000 requests. {NO_ARRIVALS} Prompts of zero tokens count as one.",
        SHAREGPT, poisson(1.0), predicted[:, :2],
    )  # fmt: skip
    write(
        "sharegpt-8k",
        "ShareGPT, the conversation so far in the prompt, at most 8k tokens, 30,731 requests. " + NO_ARRIVALS,
        SHAREGPT_8K, poisson(1.0), filtered,
    )  # fmt: skip
    write_prediction(predicted)

    table = Table("workload", "what", "trace", "simulated")
    for name, rows, times in (
        ("azure-conv-2023", conv[:, 1:], conv[:, 0]),
        ("azure-code-2023", code[:, 1:], code[:, 0]),
        ("mooncake-conversation", talk[:, 1:], talk[:, 0]),
        ("mooncake-synthetic", synthetic[:, 1:], synthetic[:, 0]),
        ("sharegpt", predicted[:, :2], None),
        ("sharegpt-8k", filtered, None),
    ):
        report(name, rows, times, table)
    Console(width=120).print(table)


if __name__ == "__main__":
    tyro.cli(main)
