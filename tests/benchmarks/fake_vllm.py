"""As much of vLLM's interface as `benchmarks/engine_vllm.py` uses, with an engine that answers at once."""

import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any


class Engine:
    """Yields the first token and then all others; fails for requests of the case "bursty"."""

    started: list[Any] = []  # noqa: RUF012

    def __init__(self, arguments: Any, loggers: list[Any]) -> None:
        self.arguments, self.errored, self.stopped = arguments, False, False
        blocks = arguments.num_gpu_blocks_override or 28_171
        self.vllm_config = SimpleNamespace(
            cache_config=SimpleNamespace(num_gpu_blocks=blocks),
            scheduler_config=SimpleNamespace(async_scheduling=True),
            compilation_config=SimpleNamespace(cudagraph_mode="FULL_AND_PIECEWISE"),
        )
        self.loggers = [make(self.vllm_config) for make in loggers]
        self.output_processor = SimpleNamespace(stream_interval=arguments.stream_interval)
        self.intervals: list[int] = []
        self.told: list[tuple[Any, int]] = []
        self.steps: list[list[float]] = []
        Engine.started.append(self)

    @classmethod
    def from_engine_args(cls, arguments: Any, stat_loggers: list[Any]) -> "Engine":
        return cls(arguments, stat_loggers)

    async def generate(self, prompt: dict[str, Any], params: Any, request_id: str, priority: int = 0) -> Any:
        if request_id.startswith("bursty"):
            raise RuntimeError("out of memory")
        self.intervals.append(self.output_processor.stream_interval)
        self.told.append((params.extra_args, priority))
        prompt_tokens, left = len(prompt["prompt_token_ids"]), params.max_tokens
        now = time.monotonic()
        stats = SimpleNamespace(queued_ts=now, scheduled_ts=now, first_token_ts=now, last_token_ts=now)
        for tokens in filter(None, (1, left - 1)):
            self.steps.append([time.monotonic()] * 6 + [float(prompt_tokens)] * 9 + [0.25, float("nan")])
            for logger in self.loggers:
                logger.record(
                    SimpleNamespace(num_running_reqs=1, num_waiting_reqs=0, kv_cache_usage=0.25),
                    SimpleNamespace(
                        num_generation_tokens=tokens, num_prompt_tokens=prompt_tokens, num_preempted_reqs=1
                    ),
                    mm_cache_stats=None,
                    engine_idx=0,
                )
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[7] * tokens)], metrics=stats)

    async def collective_rpc(self, method: str) -> list[list[list[float]]]:
        assert method == "take_steps"
        found, self.steps = self.steps, []
        return [found]

    def shutdown(self) -> None:
        self.stopped = True


def install(monkeypatch: Any) -> None:
    """Put the modules in place of vllm's for one test."""
    parts = {
        "vllm": {},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": SimpleNamespace},
        "vllm.inputs": {"TokensPrompt": dict},
        "vllm.sampling_params": {
            "RequestOutputKind": SimpleNamespace(DELTA="delta"),
            "SamplingParams": SimpleNamespace,
        },
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": Engine},
        "vllm.v1.metrics": {},
        "vllm.v1.metrics.loggers": {"StatLoggerBase": object},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        for key, value in content.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)
    Engine.started = []
