"""A run replayed by the compiled engine of llmgym, through the public environment `llmgym/KVQueue-v0`.

vLLM V1 as that environment has it: the rule "vllm" (whole prompt must fit, no watermark), recompute of the youngest, first token
with the last chunk, blocks of 16 tokens, batches planned while the one before runs. What the environment does not know is how
long a request takes on its way to the scheduler and its tokens on their way back; a constant for that moves every request
alike, so it is added to the token times.
"""

import gymnasium
import numpy as np

from fidelity.runs import Engine, Floats, Run
from llmgym.profiles import Profile
from llmgym.workloads import RequestClass, Workload
from llmgym.workloads.arrivals import Rows
from llmgym.workloads.arrivals import replay as replay_rows

ENV_ID = "llmgym/KVQueue-v0"


def settings(engine: Engine) -> dict[str, object]:
    """Arguments of the environment for an engine."""
    return {
        "kv_capacity": engine.kv_tokens,
        "chunk": engine.budget_tokens,
        "budget": engine.budget_tokens,
        "seats": engine.seats,
        "block": engine.block_tokens,
        "scheduling": "async",
        "overflow": "recompute",
        "first_token": "with-prefill",
        "information": "none",
        "action": "rule",
        "rules": (f"vllm:watermark={engine.watermark}",),
        "every": 2**30,
        "horizon_s": 1e6,
        "waiting_cap": 2**20,
    }


def serve(
    run: Run, profile: Profile, way_s: float = 0.0, **changes: object
) -> tuple[Floats, Floats, dict[str, float]]:
    """Replay the requests of a run.

    Args:
        run: the requests and the engine's settings.
        profile: what a step costs.
        way_s: a request's way in plus its tokens' way out, s.
        changes: arguments of the environment that differ from `settings`.

    Returns:
        When the first and the last output token of each request are there (s, float64 [n], on the clock of the
        arrivals), and the metrics of the episode.
    """
    rows = Rows(run.arrival_s, run.prompt_tokens, run.output_tokens)
    workload = Workload(run.name, replay_rows(rows, from_start=True), (RequestClass(rows=rows),))
    env = gymnasium.make(
        ENV_ID,
        scenario="azure-conv",
        workload=workload,
        profile=profile,
        rate_rps=workload.mean_rate_rps,
        requests=len(rows),
        **(settings(run.engine) | changes),
    )
    env.reset(seed=0)
    *_, info = env.step(0)
    asked = env.unwrapped.lanes.state.request[0]  # type: ignore[attr-defined]
    assert np.array_equal(asked["prompt"], run.prompt_tokens), "the environment did not replay these requests"
    first_s = run.arrival_s + asked["ttft_s"].astype(np.float64) + way_s
    last_s = run.arrival_s + asked["e2e_s"].astype(np.float64) + way_s
    return first_s, last_s, info["metrics"]
