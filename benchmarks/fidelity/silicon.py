"""Many measured servers, from kernel tables alone: TTFT and TPOT of a closed loop of `b` requests of equal lengths.

The servers are those AIConfigurator publishes (https://github.com/ai-dynamo/aiconfigurator, `e2e_silicon`): each keeps `b` requests
in flight, a new one starts when one ends. With prompt s and output o, in steady state every request sees b - 1 other prompts
while it decodes:

    TPOT = D(b, s + o / 2) + (b - 1) P(s) / o
    TTFT = n M + (M or D) / 2 + (D, with asynchronous scheduling),  n = ceil(s / budget)

D is a step of decodes alone, M a step with a prefill chunk and the decodes, P the time the chunks of a prompt add to steps. The
closed form lets no prompt wait for another. `loop` replays the client too (`llmgym.serving.replay`): b requests at once, each
replaced when it ends, ten for every one in flight, TTFT as the mean over all, and `SERVER_WAY_S` later. Some clients sent each
request only once, all together (`BURSTS`). The rows of Llama-3.1-70B have the lengths,
concurrencies and date of InferenceMAX (https://github.com/InferenceMAX/InferenceMAX), whose client draws lengths uniformly from
0.8 to 1 times the nominal ones; that they are its rows is inferred, not stated. What the other clients did is not known; equal
lengths are assumed, and then requests that started together stay together, so waiting depends on it.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from fidelity.aiconfigurator import SHAPES, Kernels, Server, load_kernels, measured_servers
from llmgym.profiles import Profile
from llmgym.serving.replay import replay
from llmgym.workloads.arrivals import Rows

BUDGET_TOKENS = 8_192
"""Tokens of a batch: the default of all three engines on GPUs of 80 GB and more."""
PER_SLOT = 10
"""Requests a client sends for each one in flight."""
BURSTS = {("sglang", "Qwen3-32B")}
"""Engines and models whose client sends so many requests as are in flight, all at once, and no more. Inferred, as no client is
told: TTFT is then 15 % off, in a loop of ten for each 78 %, and TPOT of the same replays, by which nothing was chosen, 9 and
19 %."""
SERVER_WAY_S = 23e-3
"""Way through a server and its client: what TTFT of servers with up to 4 requests in flight exceeds the loop by; median of 18 of
vLLM (22.6 ms) and 11 of TensorRT-LLM (23.1 ms)."""
SPREAD = {"Llama-3.1-70B": 0.8}
"""Shortest length over nominal length, of the clients that draw lengths."""


@dataclass(frozen=True)
class Point:
    """One measured server and what the closed forms say.

    Attributes:
        system: GPU.
        model: without its organisation.
        backend: engine.
        gpus: of the tensor-parallel group.
        ttft_s: (predicted, measured).
        tpot_s: (predicted, measured).
        loop_ttft_s: mean TTFT of the replayed loop; NaN where it was not replayed.
        lengths: prompt tokens, output tokens, requests in flight.
    """

    system: str
    model: str
    backend: str
    gpus: int
    ttft_s: tuple[float, float]
    tpot_s: tuple[float, float]
    loop_ttft_s: float
    lengths: tuple[int, int, int]


def server_of(row: dict[str, str], kernels: Kernels) -> Server:
    """The server of a row. TensorRT-LLM keeps an fp8 cache with fp8 weights, the others a 16-bit one."""
    gemm = row["gemm_quant_mode"] or "bfloat16"
    kv = "fp8" if row["backend"] == "trtllm" and gemm != "bfloat16" else "bf16"
    return Server(kernels, SHAPES[row["model_path"]], int(row["tp_size"]), gemm, kv)


def closed_form(
    server: Server, prompt: int, output: int, batch: int, asynchronous: bool
) -> tuple[float, float]:
    """TTFT and TPOT of a closed loop, s; see the module.

    Args:
        server: the model on its GPUs.
        prompt: tokens.
        output: tokens.
        batch: requests in flight.
        asynchronous: whether a batch is put together while the one before runs.
    """
    kv = prompt + output / 2
    decodes_s = (
        server.host_s + server.head_s(batch) + server.decode_attention_s(batch, kv) + server.dense_s(batch)
    )
    chunks = math.ceil(prompt / BUDGET_TOKENS)
    chunk = prompt / chunks
    beside = server.dense_s(chunk + batch) - server.dense_s(batch)
    adds_s = sum(beside + server.prefill_attention_s(chunk, i * chunk) for i in range(chunks))
    tpot_s = decodes_s + (batch - 1) * adds_s / output
    with_chunk_s = decodes_s + adds_s / chunks
    busy = min((batch - 1) * chunks / output, 1.0)  # share of the steps that have a chunk
    step_s = busy * with_chunk_s + (1 - busy) * decodes_s
    ttft_s = chunks * with_chunk_s + (1.5 if asynchronous else 0.5) * step_s
    return ttft_s, tpot_s


def loop(
    profile: Profile,
    prompt: int,
    output: int,
    batch: int,
    asynchronous: bool,
    shortest: float,
    each: int = PER_SLOT,
) -> float:
    """Mean TTFT of a closed loop, s.

    Args:
        profile: what a step costs.
        prompt: nominal tokens.
        output: nominal tokens.
        batch: requests in flight, and seats of the engine.
        asynchronous: whether a batch is put together while the one before runs.
        shortest: lengths are drawn from this times the nominal ones to these.
        each: requests for each one in flight.
    """
    n = each * batch
    rng = np.random.default_rng(0)
    lengths = [rng.integers(int(shortest * nominal), nominal + 1, n) for nominal in (prompt, output)]
    found = replay(
        Rows(np.zeros(n), *lengths),
        profile,
        kv_capacity=2**24,
        budget=BUDGET_TOKENS,
        seats=batch,
        scheduling="async" if asynchronous else "sync",
        clients=batch,
    )
    return float(np.mean(found.first_s - found.arrival_s)) + SERVER_WAY_S


def points(data: Path, with_loop: bool = True) -> list[Point]:
    """Every measured dense server, predicted; `with_loop` replays their clients too."""
    kernels: dict[str, Kernels] = {}
    costs: dict[Server, Profile] = {}
    found = []
    for row in track(measured_servers(data), description="measured servers", transient=True):
        system = row["system"]
        kernels.setdefault(system, load_kernels(data, system))
        server = server_of(row, kernels[system])
        prompt, output, batch = int(row["isl"]), int(row["osl"]), int(row["batch_size"])
        asynchronous = row["backend"] == "vllm"
        ttft_s, tpot_s = closed_form(server, prompt, output, batch, asynchronous)
        model = row["model_path"].split("/")[1]
        loop_s = math.nan
        if with_loop:
            if server not in costs:
                costs[server] = server.profile()
            each = 1 if (row["backend"], model) in BURSTS else PER_SLOT
            shortest = SPREAD.get(model, 1.0)
            loop_s = loop(costs[server], prompt, output, batch, asynchronous, shortest, each)
        found.append(
            Point(
                system,
                model,
                row["backend"],
                server.gpus,
                (ttft_s, 1e-3 * float(row["silicon_ttft_ms"])),
                (tpot_s, 1e-3 * float(row["silicon_tpot_ms"])),
                loop_s,
                (prompt, output, batch),
            )
        )
    return found


def errors(found: list[Point], by: tuple[str, ...]) -> list[tuple[str, ...]]:
    """For each group: its names, its size, and per cent of TPOT, TTFT in closed form and TTFT of the loop, each as the median
    absolute and the median signed error; last how many loops there were.
    """
    groups: dict[tuple[Any, ...], list[Point]] = defaultdict(list)
    for point in found:
        groups[tuple(getattr(point, name) for name in by)].append(point)
    rows = []
    for names, group in sorted(groups.items()):
        tpot = np.array([p.tpot_s[0] / p.tpot_s[1] for p in group])
        ttft = np.array([p.ttft_s[0] / p.ttft_s[1] for p in group])
        looped = np.array([p.loop_ttft_s / p.ttft_s[1] for p in group if not math.isnan(p.loop_ttft_s)])
        cells = [*map(str, names), str(len(group))]
        for ratio in (tpot, ttft, looped):
            wrong = 100 * (ratio - 1)
            cells += (
                [f"{np.median(np.abs(wrong)):.1f}", f"{np.median(wrong):+.1f}"] if len(wrong) else ["-", "-"]
            )
        rows.append((*cells, str(len(looped))))
    return rows
