"""Measure vLLM 0.24 with Llama-3.1-8B shapes under several kinds of traffic, with the times of every request.

    python benchmarks/engine_vllm.py --dry-run                       # what would be asked; needs no vllm
    python benchmarks/engine_vllm.py --traffic DIR --out RUNS        # measure what `fidelity.py --predict DIR` wrote
    python benchmarks/engine_vllm.py --out RUNS --cases calibration,bursty --minutes 8
    python benchmarks/engine_vllm.py --traffic DIR --out RUNS --steps --minutes 7    # one engine, every step written down
    python benchmarks/engine_vllm.py --traffic benchmarks/results/deploy/h100 --cases deploy_1,deploy_2,deploy_3 --out RUNS/rule \
        --scheduler-cls llmgym.deploy.vllm.GymScheduler --policy rule.npz            # a policy of the gym; see docs/deploy.md

Needs a CUDA device and vllm 0.24 (https://github.com/vllm-project/vllm); no network, no weights, no tokenizer: weights are
random, prompts are token ids, outputs end at the asked length. One engine serves all cases that share its settings, in a
process of its own; before the first case it gets requests of all sizes to warm up. Each case is written when it is done, so a
run that was cut keeps what it had, and goes on with the rest when started again:

- `<case>_requests.csv`, a row a request in order of arrival: `arrival_s` (when it was handed to the engine), `prompt_tokens`,
  `output_tokens`, `first_token_s` and `last_token_s` (when the client had them), `asked_s` (when it should have been handed
  over), and as the engine's own process saw it `queued_s`, `scheduled_s`, `engine_first_s`, `engine_last_s`. One clock, s.
- `<case>_steps.csv`, a row an engine step that yielded tokens: `time_s` (when the client had them), `running`, `waiting`,
  `kv_usage`, `output_tokens`, `prompt_tokens` (of prompts that ended), `preempted`.
- `<case>_engine_steps.csv`, of cases that are logged: a row a step as the engine's own process sees it, see
  `ENGINE_COLUMNS`.
- `<case>_meta.json`: device, versions, date, settings, KV blocks, preemptions.
- `skipped.jsonl`: cases that could not be measured, and why.
"""

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from fidelity.cases import (
    ALL_CASES,
    BLOCK_TOKENS,
    CASES,
    DEPLOY_CASES,
    LONGEST_TOKENS,
    STEP_CASES,
    Case,
    Traffic,
    describe,
    draw,
    read_predictions,
    read_traffic,
    warm_up,
    write_rows,
)
from fidelity.scheduling import Scheduling, add_options, chosen

VOCABULARY = 128_256
AT_THE_END = 2**30
"""Tokens that are handed out together: all that follow the first. A client that reads them one by one takes longer than the
engine."""
DRAIN_S = 40.0
"""Time after the last arrival that a case is reckoned with."""

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "vocab_size": VOCABULARY,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
"""Shape of https://huggingface.co/meta-llama/Llama-3.1-8B (config.json), without the scaling of rotary frequencies, which costs
nothing at run time."""


REQUEST_COLUMNS = (
    "arrival_s",
    "prompt_tokens",
    "output_tokens",
    "first_token_s",
    "last_token_s",
    "asked_s",
    "queued_s",
    "scheduled_s",
    "engine_first_s",
    "engine_last_s",
)
STEP_COLUMNS = ("time_s", "running", "waiting", "kv_usage", "output_tokens", "prompt_tokens", "preempted")
ENGINE_COLUMNS = (
    "start_s",
    "planned_s",
    "launch_s",
    "launched_s",
    "sampled_s",
    "done_s",
    "tokens",
    "sequences",
    "prefill_tokens",
    "chunks",
    "chunk_cached",
    "decode_cached",
    "blocks",
    "waiting",
    "preempted",
    "device_gap_ms",
    "device_ms",
)
"""Columns of `<case>_engine_steps.csv`, a row a step, all times on the engine's monotonic clock:

- `start_s`, `planned_s`: the scheduler began and had planned the step;
- `launch_s`, `launched_s`, `sampled_s`: the worker began to launch it, had launched the model, and the sampler;
- `done_s`: its tokens were back at the scheduler;
- `tokens`, `sequences`: in the step; `prefill_tokens`, `chunks`: of these, tokens and sequences whose prompts are computed;
- `chunk_cached`, `decode_cached`: tokens cached before the step, of the chunks and of the others, in total;
- `blocks`: of the KV cache in use once it was planned; `waiting`: requests that wait; `preempted`: by this plan;
- `device_gap_ms`, `device_ms`: the device was idle before the step, and busy with it, sampler and gaps between kernels included.
"""


async def measure(
    engine: Any, traffic: Traffic, name: str, seed: int, told: Any = None, shortest: bool = False
) -> tuple[float, list[list[float]]]:
    """Send the requests at their times and note when their tokens come.

    Args:
        engine: of vLLM.
        traffic: the requests.
        name: of the case.
        seed: of the tokens.
        told: predicted length that each request says, int [n]; None: they say none.
        shortest: give each request its prediction as its priority.

    Returns:
        Zero of the case on the monotonic clock, s, and a row of `REQUEST_COLUMNS` for each request.
    """
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    priorities = told.tolist() if shortest and told is not None else [0] * len(traffic.asked_s)
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(1_000, 100_000, int(n)).tolist() for n in traffic.prompt_tokens]
    rows: list[list[float]] = [[] for _ in prompts]
    # A collection of garbage in the middle of a case would look like a slow engine.
    gc.collect()
    gc.freeze()
    gc.disable()
    start = time.monotonic() + 0.5

    async def one(i: int) -> None:
        asked_s = float(traffic.asked_s[i])
        await asyncio.sleep(start + asked_s - time.monotonic())
        params = SamplingParams(
            temperature=0.0,
            max_tokens=int(traffic.output_tokens[i]),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=None if told is None else {"predicted_output_tokens": int(told[i])},
        )
        arrival = time.monotonic()
        first = last = 0.0
        produced, stats = 0, None
        prompt = TokensPrompt(prompt_token_ids=prompts[i])
        async for output in engine.generate(prompt, params, f"{name}-{i}", priority=priorities[i]):
            last = time.monotonic()
            produced += len(output.outputs[0].token_ids)
            stats = output.metrics or stats
            if first == 0.0 and produced > 0:
                first = last
        own = [
            getattr(stats, key, 0.0) or float("nan")
            for key in ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
        ]
        rows[i] = [
            arrival - start,
            len(prompts[i]),
            produced,
            first - start,
            last - start,
            asked_s,
            *(stamp - start for stamp in own),
        ]

    try:
        await asyncio.gather(*(one(i) for i in range(len(prompts))))
    finally:
        gc.enable()
        gc.unfreeze()
    return start, sorted(rows)


def _device() -> tuple[str, str]:
    """Name of the first GPU and its driver's version."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown", "unknown"
    name, _, driver = line.partition(", ")
    return name, driver


async def taken(engine: Any) -> list[list[float]]:
    """The steps that an engine has written down since it was asked last, a row of `ENGINE_COLUMNS` each."""
    await asyncio.sleep(0.3)
    (rows,) = await engine.collective_rpc("take_steps")
    return list(rows)


def engine_row(row: Sequence[float], start_s: float) -> list[str]:
    """A row of `<case>_engine_steps.csv`: six times from the start of the case, nine counts, two times of the device."""
    times, counts, device = row[:6], row[6:15], row[15:]
    return [
        *(f"{value - start_s:.6f}" for value in times),
        *(f"{value:.0f}" for value in counts),
        *(f"{value:.4f}" for value in device),
    ]


def _skip(out: Path, case: str, reason: str) -> None:
    print(f"{case}: skipped, {reason}", flush=True)
    with (out / "skipped.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"case": case, "reason": reason}) + "\n")


async def serve(
    cases: Sequence[Case],
    traffic: Sequence[Traffic],
    told: Sequence[Any],
    out: Path,
    until: float,
    scheduling: Scheduling,
) -> None:
    """Start one engine and measure cases on it.

    Args:
        cases: of one engine.
        traffic: of each.
        told: predicted lengths of each; None: there are none.
        out: folder for the runs.
        until: no case begins that would end later, s on the monotonic clock.
        scheduling: who orders the requests.
    """
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from importlib.metadata import version

    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import StatLoggerBase

    steps: list[list[float]] = []

    class Steps(StatLoggerBase):
        """Notes every step."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            if scheduler_stats is None or iteration_stats is None:
                return
            steps.append(
                [
                    time.monotonic(),
                    scheduler_stats.num_running_reqs,
                    scheduler_stats.num_waiting_reqs,
                    scheduler_stats.kv_cache_usage,
                    iteration_stats.num_generation_tokens,
                    iteration_stats.num_prompt_tokens,
                    iteration_stats.num_preempted_reqs,
                ]
            )

        def log_engine_initialized(self) -> None:
            pass

    blocks, seats, budget_tokens, logged = cases[0].engine
    own = scheduling.arguments()
    if logged:
        own |= {
            "scheduler_cls": "fidelity.engine_steps.Scheduler",
            "worker_extension_cls": "fidelity.engine_steps.Steps",
        }
    longest = max(int((one.prompt_tokens + one.output_tokens).max()) for one in traffic)
    longest = max(LONGEST_TOKENS, -(-longest // 1_024) * 1_024)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as model:
        (Path(model) / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=model,
                load_format="dummy",
                skip_tokenizer_init=True,
                dtype="bfloat16",
                max_model_len=longest,
                max_num_seqs=seats,
                max_num_batched_tokens=budget_tokens,
                block_size=BLOCK_TOKENS,
                num_gpu_blocks_override=blocks,
                gpu_memory_utilization=0.9,
                enable_prefix_caching=False,
                stream_interval=AT_THE_END,
                disable_log_stats=True,
                seed=0,
                **own,
            ),
            stat_loggers=[Steps],
        )
        try:
            config = engine.vllm_config
            found = int(config.cache_config.num_gpu_blocks or 0)
            print(f"engine with {found} KV blocks is up after {time.monotonic() - began:.0f} s", flush=True)
            await measure(engine, warm_up(seats, found), "warm-up", 0)
            name, driver = _device()
            for case, asked, lengths in zip(cases, traffic, told, strict=True):
                need_s = float(asked.asked_s[-1]) + DRAIN_S
                if time.monotonic() + need_s > until:
                    _skip(out, case.name, f"needs about {need_s:.0f} s, which were not left")
                    continue
                engine.output_processor.stream_interval = 1 if case.stream else AT_THE_END
                if logged:
                    await taken(engine)
                steps.clear()
                try:
                    start, rows = await measure(
                        engine, asked, case.name, case.seed, lengths, scheduling.shortest
                    )
                except Exception as error:  # one case must not take the others with it
                    _skip(out, case.name, f"{type(error).__name__}: {error}")
                    if getattr(engine, "errored", False):
                        raise
                    continue
                meta = {
                    "engine": f"vllm {version('vllm')}",
                    "gpu": name,
                    "driver": driver,
                    "torch": version("torch"),
                    "date": datetime.now(UTC).isoformat(timespec="seconds"),
                    "model": "Llama-3.1-8B shapes, dummy weights, bf16",
                    "blocks": found,
                    "block_size": BLOCK_TOKENS,
                    "max_num_batched_tokens": budget_tokens,
                    "max_num_seqs": seats,
                    "max_model_len": longest,
                    "prefix_caching": False,
                    "asynchronous_scheduling": bool(config.scheduler_config.async_scheduling),
                    "cuda_graphs": str(getattr(config.compilation_config, "cudagraph_mode", "unknown")),
                    "sampler": "greedy, end of sequence ignored, no detokenisation",
                    "preemptions": int(sum(step[6] for step in steps)),
                    "case": asdict(case),
                    "scheduling": asdict(scheduling),
                }
                write_rows(
                    out / f"{case.name}_steps.csv",
                    STEP_COLUMNS,
                    ([f"{step[0] - start:.6f}", *step[1:3], f"{step[3]:.5f}", *step[4:]] for step in steps),
                )
                if logged:
                    found_steps = await taken(engine)
                    write_rows(
                        out / f"{case.name}_engine_steps.csv",
                        ENGINE_COLUMNS,
                        (engine_row(row, start) for row in found_steps),
                    )
                (out / f"{case.name}_meta.json").write_text(
                    json.dumps(meta, indent=1) + "\n", encoding="utf-8"
                )
                write_rows(
                    out / f"{case.name}_requests.csv",
                    REQUEST_COLUMNS,
                    (
                        [value if k in (1, 2) else f"{value:.6f}" for k, value in enumerate(row)]
                        for row in rows
                    ),
                )
                print(
                    f"{case.name}: {len(rows)} requests in {max(row[4] for row in rows):.1f} s, "
                    f"{meta['preemptions']} preemptions",
                    flush=True,
                )
        finally:
            engine.shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the runs")
    parser.add_argument("--cases", default=",".join(CASES), help="names, with commas (default: all)")
    parser.add_argument("--steps", action="store_true", help=f"measure {', '.join(STEP_CASES)} instead")
    parser.add_argument("--minutes", type=float, default=30.0, help="start no case that would end later")
    parser.add_argument(
        "--traffic", type=Path, help="folder with <case>_traffic.csv; drawn with llmgym otherwise"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the traffic and stop")
    parser.add_argument("--again", action="store_true", help="measure cases that are there already too")
    add_options(parser)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    until = time.monotonic() + 60 * asked.minutes
    names = list(STEP_CASES) if asked.steps else [name for name in asked.cases.split(",") if name]
    unknown = [name for name in names if name not in ALL_CASES]
    if unknown or not names:
        parser.error(f"--cases {asked.cases!r}: expected names out of {', '.join(ALL_CASES)}")
    if not asked.minutes > 0:
        parser.error(f"--minutes {asked.minutes}: expected a number > 0")
    if asked.out is None and not asked.dry_run:
        parser.error("--out is needed, unless this is a --dry-run")
    scheduling = chosen(parser, asked, any(ALL_CASES[name].logged for name in names))
    cases = [ALL_CASES[name] for name in names]
    if asked.traffic is None and any(name in DEPLOY_CASES for name in names):
        parser.error(
            f"--traffic is needed for {', '.join(DEPLOY_CASES)}: benchmarks/results/deploy/h100 has it, for one"
        )
    traffic, told = {}, {}
    for case in cases:
        path = asked.traffic / f"{case.name}_traffic.csv" if asked.traffic else None
        if path is not None and not path.is_file():
            parser.error(f"--traffic: {path} is missing")
        traffic[case.name] = draw(case) if path is None else read_traffic(path)
        told[case.name] = None if path is None else read_predictions(path)
        if asked.shortest and told[case.name] is None:
            parser.error(f"--shortest: the traffic of {case.name} has no predicted_tokens")
    if asked.dry_run:
        for case in cases:
            print(describe(case, traffic[case.name]))
        engines = {case.engine for case in cases}
        seconds = sum(float(traffic[case.name].asked_s[-1]) for case in cases)
        print(f"{len(engines)} engines; {seconds / 60:.1f} minutes of arrivals")
        return 0
    asked.out.mkdir(parents=True, exist_ok=True)
    left = [case for case in cases if asked.again or not (asked.out / f"{case.name}_requests.csv").is_file()]
    if asked.in_process:
        lists = [[by_name[case.name] for case in left] for by_name in (traffic, told)]
        asyncio.run(serve(left, *lists, asked.out, until, scheduling))
        return 0
    for settings in dict.fromkeys(case.engine for case in left):
        group = [case.name for case in left if case.engine == settings]
        minutes = (until - time.monotonic()) / 60
        if minutes <= 0:
            for name in group:
                _skip(asked.out, name, "no time was left")
            continue
        command = [
            sys.executable,
            __file__,
            "--in-process",
            "--out",
            str(asked.out),
            "--cases",
            ",".join(group),
        ]
        command += ["--minutes", f"{minutes:.3f}"]
        command += ["--traffic", str(asked.traffic)] if asked.traffic else []
        command += ["--again"] if asked.again else []
        command += scheduling.options()
        before = len(_lines(asked.out / "skipped.jsonl"))
        code = subprocess.run(command).returncode
        said = {json.loads(line)["case"] for line in _lines(asked.out / "skipped.jsonl")[before:]}
        for name in group:
            if code != 0 and name not in said and not (asked.out / f"{name}_requests.csv").is_file():
                _skip(asked.out, name, f"the engine's process ended with {code}")
    return 0


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


if __name__ == "__main__":
    sys.exit(main())
