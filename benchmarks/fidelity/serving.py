"""A run replayed by the compiled engine of llmgym, `llmgym.serving.replay`, with the settings of the engine that was measured.

What the engine does not know is how long tokens take to the client: see `llmgym.serving.replay.WAYS`.
"""

from typing import Any

from fidelity.runs import Engine, Floats, Run
from llmgym.profiles import Profile
from llmgym.serving.replay import Replayed, replay
from llmgym.workloads.arrivals import Rows


def settings(engine: Engine) -> dict[str, Any]:
    """Arguments of the replay for an engine: vLLM V1, which plans a batch while the one before runs, and frees what a completed
    request held one plan later.
    """
    return {
        "kv_capacity": engine.kv_tokens,
        "budget": engine.budget_tokens,
        "seats": engine.seats,
        "block": engine.block_tokens,
        "scheduling": "async-held",
        "rule": f"vllm:watermark={engine.watermark}",
    }


def serve(run: Run, profile: Profile, **changes: Any) -> tuple[Floats, Floats, Replayed]:
    """Replay the requests of a run.

    Args:
        run: the requests and the engine's settings.
        profile: what a step costs.
        changes: arguments of the replay that differ from `settings`.

    Returns:
        When the first and the last output token of each request are there (s, float64 [n], on the clock of the
        arrivals), and what else the replay tells.
    """
    rows = Rows(run.arrival_s, run.prompt_tokens, run.output_tokens)
    found = replay(rows, profile, **(settings(run.engine) | changes))
    return found.first_s + run.arrival_s[0], found.last_s + run.arrival_s[0], found
