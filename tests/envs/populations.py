"""What each metric of an environment is taken of: a metric is NaN exactly where that is empty, and finite elsewhere.

`population(env, metrics)` counts it for the metrics that can be NaN: requests, batches, seconds, ... as the raw arrays or other
metrics tell. A metric that is not named there is always finite.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from llmgym.envs.ppd.state import turn_numbers
from llmgym.envs.segmented.state import DONE

Counts = dict[str, float]


def _all(names: str, count: float) -> Counts:
    return dict.fromkeys(names.split(), float(count))


def _kv_queue(env: Any, m: Counts) -> Counts:
    state = env.lanes.state
    requests = state.request[0, : state.lane["next"][0]]
    several = (requests["e2e_s"] >= 0) & (requests["output"] > 1)
    return {
        **_all("e2e_mean_s e2e_p50_s e2e_p99_s", m["completed"]),
        **_all("ttft_mean_s ttft_p50_s ttft_p99_s", np.sum(requests["ttft_s"] >= 0)),
        **_all("tpot_mean_s tpot_p99_s", several.sum()),
        "latency_mean_s": m["requests"] - m["rejected"],
        "slo_attainment": m["requests"],
        **_all("throughput_rps output_tokens_per_s goodput_rps waiting_mean", m["duration_s"]),
        **_all("kv_mean batch_mean_s", m["batches"]),
    }


def _kv_queue_v1(env: Any, m: Counts) -> Counts:
    lane = env.lanes.state.lane[0]
    return {
        **_kv_queue(env, m),
        "e2e_p90_s": m["completed"],
        "late": m["requests"],
        "goodput": float(lane["weight"]),
        "reused": float(lane["prefilled"] + lane["reused"]),
    }


def _kv_provision(env: Any, m: Counts) -> Counts:
    counts = {
        "wait_mean_s": m["requests"] - m.get("rejected", 0.0),
        "utilization": m["gpu_hours"],
        **_all("waiting_mean throughput_rps gpus_mean", m["duration_s"]),
    }
    if "rejected" in m:
        several = np.isfinite(env.lanes.state.served[0, 2, : int(m["completed"])])
        counts |= {
            **_all("e2e_mean_s e2e_p50_s e2e_p99_s ttft_mean_s ttft_p50_s ttft_p99_s", m["completed"]),
            **_all("tpot_mean_s tpot_p99_s", several.sum()),
            **_all("goodput_rps output_tokens_per_s", m["duration_s"]),
            "slo_attainment": m["requests"],
            "kv_mean": env.lanes.state.engine.lane["busy_s"].sum(),
        }
    return counts


def _ppd(env: Any, m: Counts) -> Counts:
    state, simulation = env.lanes.state, env.simulation
    turns = state.request[0, turn_numbers(state, 0)]
    first = turns[: int(m["conversations"])]
    later = turns[int(m["conversations"]) :]
    done = later["e2e_s"] >= 0
    p_nodes = simulation.params.config["ps"][0]
    return {
        **_all("ttft_mean_s ttft_p50_s ttft_p99_s e2e_mean_s e2e_p50_s e2e_p99_s", done.sum()),
        **_all("ttft_gain tpot_loss crowd_loss", done.sum()),
        **_all("tpot_mean_s tpot_p99_s", np.sum(done & (later["output"] > 1))),
        "ttft_first_mean_s": np.sum(first["e2e_s"] >= 0),
        "success": m["completed"] + m["timeouts"],
        "local_fraction": m["later_turns"] - (state.lane["current"][0] >= 0),
        "slo_attainment": len(later),
        **_all("goodput_rps throughput_rps output_tokens_per_s d_utilization", m["duration_s"]),
        "p_utilization": m["duration_s"] * p_nodes,
    }


def _oserve(env: Any, m: Counts) -> Counts:
    several = np.isfinite(env.lanes.state.served[0, 2, : int(m["completed"])])
    return {
        **_all("e2e_mean_s e2e_p50_s e2e_p90_s e2e_p99_s ttft_mean_s ttft_p99_s", m["completed"]),
        "epoch_p99_mean_s": m["completed"],
        **_all("tpot_mean_s tpot_p99_s", several.sum()),
        **_all("system_mean_s slo_attainment", m["requests"]),
        **_all("throughput_rps output_tokens_per_s goodput_rps utilization kv_mean", m["duration_s"]),
        "headroom_mean": m["duration_s"],
    }


def _afd_ratio(env: Any, m: Counts) -> Counts:
    episode = env.lanes.state.lane[0]
    single = env.simulation.scenario.fidelity in ("slot", "pipeline")
    return {
        **_all("relative_throughput throughput_tokens_per_cycle throughput_tokens_per_s", m["epochs"]),
        **_all("tau_mean_cycles barrier_excess_cycles load_mean_tokens idle_attention idle_ffn", m["epochs"]),
        **_all("bound_attention bound_communication bound_ffn ratio_mean instances_mean", m["epochs"]),
        "thr80_tokens_per_cycle": float(episode["early"]),
        "tpot_mean_s": float(episode["timed"]) if single else m["epochs"],
    }


def _afd_refill(env: Any, m: Counts) -> Counts:
    return {
        **_all("relative_excess barrier_excess_cycles tau_mean_cycles relative_throughput", m["cycles"]),
        **_all("throughput_tokens_per_cycle throughput_tokens_per_s load_mean_tokens", m["cycles"]),
        "tpot_mean_s": float(env.lanes.state.lane["timed"][0]),
        "skips_mean": m["placed"],
    }


def _mem_pipe(env: Any, m: Counts) -> Counts:
    return {
        **_all("latency_mean_s e2e_p50_s e2e_p99_s slowdown_mean energy_mean_j", m["requests"]),
        "offloaded_share": float(env.lanes.state.lane["stages"][0]),
        **_all("throughput_rps gpu_utilization fpga_utilization link_utilization", m["duration_s"]),
    }


def _mem_place(env: Any, m: Counts) -> Counts:
    return {
        **_all("speedup_geomean energy_saving_geomean regret_mean optimal_share", m["requests"]),
        **_all("request_mean_s energy_mean_j offloaded_share", m["requests"]),
        "copy_share": m["duration_s"],
    }


def _attention(env: Any, m: Counts) -> Counts:
    return {
        **_all("goodput_share slo_attainment loss_mean_nat overspent_nat exact_share", m["batches"]),
        **_all("e2e_p50_s e2e_p99_s", m["batches"]),
        **_all("throughput_tokens_per_s utilization", m["duration_s"]),
    }


def _unmask(env: Any, m: Counts) -> Counts:
    episode, simulation = env.lanes.state.lane[0], env.simulation
    complete = m["output_tokens"] == simulation.scenario.tokens
    return {
        **_all("speedup worst_call_nats", m["nfe"]),
        "typical": float(complete and simulation.excerpts is None),
        "scorer_nats": float(simulation.excerpts is not None),
        "accuracy": m["output_tokens"] * (simulation.scenario.mode == "score"),
        "nll_nats_per_token": float(episode["block"]),
        "spacing_mean_tokens": float(episode["neighbours"]),
    }


def _segmented(env: Any, m: Counts) -> Counts:
    requests = env.lanes.state.request[0]
    done = requests["status"] == DONE
    return {
        **_all("ttft_mean_s ttft_p50_s ttft_p99_s", np.sum(requests["first_s"] >= 0)),
        "tpot_mean_s": np.sum(done & (requests["output"] > 1)),
        **_all("e2e_mean_s quality_mean", m["completed"]),
        **_all("slo_attainment good_share", m["completed"] + m["rejected"] + m["lost"] + m["forfeited"]),
        **_all("utilization goodput_rps", m["duration_s"]),
    }


def _pipesd(env: Any, m: Counts) -> Counts:
    state = env.lanes.state
    return {
        "tpt_ms": float(state.client["made"][0].min()),
        **_all("nav_per_token ecs_j_per_100_tokens", m["output_tokens"]),
        **_all("draft_mean_tokens accepted_mean_tokens rollback_rate", state.client["verdicts_all"][0].sum()),
        "acceptance": float(state.client["judged"][0].sum()),
        "upload_wasted_share": float(state.link["queued"][0].sum()),
        **_all("link_utilisation cloud_utilisation", m["duration_s"]),
        **({"step_tpt_mean_ms": m["steps"]} if "steps" in m else {}),
    }


def _forage(env: Any, m: Counts) -> Counts:
    episode = env.lanes.state.lane[0]
    return {
        "accuracy": float(episode["answers"]),
        "tokens_per_correct_k": float(episode["answers"] and episode["accuracy"] > 0),
    }


def _distill(env: Any, m: Counts) -> Counts:
    state = env.lanes.state
    students = state.student[0][: int(m["students"])]
    return {
        "energy_per_met_kwh": float(state.lane["met"][0]),
        "co2_g_per_kwh": m["energy_kwh"],
        "reuse_mean": m["artefacts"],
        "distilled_share": float((students["pipeline"] >= 0).sum()),
        "capped_share": float(state.lane["jobs"][0]),
        "quality_mean": m["completed"],
        "gpu_utilization": m["duration_s"],
        **_all("value_share met_share", m["students"]),
    }


_COUNTS: dict[str, Callable[[Any, Counts], Counts]] = {
    "llmgym/KVQueue-v0": _kv_queue,
    "llmgym/KVQueue-v1": _kv_queue_v1,
    "llmgym/KVProvision-v0": _kv_provision,
    "llmgym/PPDRouting-v0": _ppd,
    "llmgym/PPDWeights-v0": _ppd,
    "llmgym/OServe-v0": _oserve,
    "llmgym/AFDRatio-v0": _afd_ratio,
    "llmgym/AFDRefill-v0": _afd_refill,
    "llmgym/MemPipe-v0": _mem_pipe,
    "llmgym/MemPlace-v0": _mem_place,
    "llmgym/AttentionBudget-v0": _attention,
    "llmgym/Forage-v0": _forage,
    "llmgym/SegmentedPrefill-v0": _segmented,
    "llmgym/DistillProgramme-v0": _distill,
    "llmgym/PipeSDBatch-v0": lambda env, m: {"link_utilisation": m["finish_s"]},
    "llmgym/PipeSDNav-v0": _pipesd,
    "llmgym/PipeSDTune-v0": _pipesd,
    "llmgym/Unmask-v0": _unmask,
}


def counting(env_id: str) -> Callable[[Any, Counts], Counts]:
    """What the metrics of an environment are taken of, for `llmgym.testing.checks.check_metrics`.

    An environment that is not named here has no metric that can be NaN.
    """
    return _COUNTS.get(env_id, lambda env, metrics: {})
