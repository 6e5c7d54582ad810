"""What an episode of OServe is measured by."""

import math

from llmgym.core.jit import kernel
from llmgym.core.records import Record, metric
from llmgym.core.statistics import quantile, ratio
from llmgym.envs.oserve.state import Params, State


class Metrics(Record):
    """Metrics of an episode."""

    requests: float = metric("Requests that the whole episode brings.")
    completed: float = metric("Requests that have completed.")
    waiting_end: float = metric("Requests that wait at the end.")
    waiting_peak: float = metric("Largest number of requests that have waited at once.")
    e2e_mean_s: float = metric(
        "Mean end-to-end time of completed requests, seconds; NaN when there are none.", best="min"
    )
    e2e_p50_s: float = metric(
        "Median end-to-end time of completed requests, seconds; NaN when there are none."
    )
    e2e_p90_s: float = metric("P90 of the end-to-end time, seconds; NaN when no request has completed.")
    e2e_p99_s: float = metric(
        "P99 of the end-to-end time, seconds; NaN when no request has completed.", best="min"
    )
    ttft_mean_s: float = metric(
        "Mean time to the first token of completed requests, seconds; NaN when there are none."
    )
    ttft_p99_s: float = metric(
        "P99 of the time to the first token, seconds; NaN when no request has completed.", best="min"
    )
    tpot_mean_s: float = metric(
        "Mean time per output token, seconds; NaN when no completed request has two tokens or more."
    )
    tpot_p99_s: float = metric(
        "P99 of the time per output token, seconds; NaN when no completed request has two tokens or more."
    )
    system_mean_s: float = metric(
        "Mean time in the system, of open requests so far, seconds; NaN when no request came."
    )
    epoch_p99_mean_s: float = metric(
        "Mean over the epochs of the P99 in each, seconds; NaN when no request has completed."
    )
    throughput_rps: float = metric("Completed requests, requests a second; NaN over no time.", best="max")
    output_tokens_per_s: float = metric(
        "Output tokens of completed requests, tokens a second; NaN over no time."
    )
    goodput_rps: float = metric(
        "Requests that completed within their objective, requests a second; NaN over no time."
    )
    slo_attainment: float = metric(
        "Share of the requests that completed within their objective; NaN when no request came.", best="max"
    )
    utilization: float = metric("Share of the time that the stages have worked; NaN over no time.")
    kv_mean: float = metric("Mean used share of the caches; NaN over no time.")
    headroom_mean: float = metric(
        "Mean multiple of the planned load that the deployment can serve; NaN over no time."
    )
    switches: float = metric("Changes of the deployment.", best="min")
    changed_gpus: float = metric("GPUs whose replica has changed, summed over the switches.")
    stopped_gpu_s: float = metric("Time that GPUs have stood still for switches, GPU seconds.", best="min")
    weights_moved_bytes: float = metric("Weights that have moved, bytes.")
    kv_moved_bytes: float = metric("Caches that have moved, bytes.")
    migrated: float = metric("Running requests that have moved with their caches.")
    drained: float = metric("Running requests that have completed on a replica that stopped.")
    restarted: float = metric("Running requests that have lost their caches and begun anew.")
    rerouted: float = metric("Waiting requests that were handed out again because their replica stopped.")
    invalid_actions: float = metric("Masked actions.")
    penalty: float = metric("Part of the return that is not time, in the unit of the return.")
    unstable: float = metric("1 where too many requests waited, which ended the episode.")
    duration_s: float = metric("Length of the episode, seconds.")
    world_checksum: float = metric("Sum over the requests of arrival time (seconds) and class.")


@kernel
def metrics_lane(state: State, params: Params, lane: int, out: Metrics) -> None:
    """Write the metrics of the episode so far.

    Args:
        state: arrays of all lanes.
        params: numbers and tables that all lanes share.
        lane: which one.
        out: written.
    """
    episode, config = state.lane[lane], params.config[0]
    duration_s = episode.epoch * config.epoch_s
    served = state.served[lane]
    busy_gpu_s, kv_share_s = episode.busy_gpu_s, episode.kv_share_s
    for k in range(state.slot.shape[1]):
        slot = state.slot[lane, k]
        if slot.shape >= 0:
            busy_gpu_s += slot.gpus * slot.busy_s
            kv_share_s += slot.gpus * slot.kv_s
    out.requests = episode.requests
    out.completed = episode.done
    out.waiting_end = episode.waiting
    out.waiting_peak = episode.waiting_peak
    e2e = served[0, : episode.done]
    out.e2e_mean_s = ratio(episode.e2e_sum_s, episode.done)
    out.e2e_p50_s = quantile(e2e, 0.5)
    out.e2e_p90_s = quantile(e2e, 0.9)
    out.e2e_p99_s = quantile(e2e, 0.99)
    ttft = served[1, : episode.done]
    out.ttft_mean_s = ratio(episode.ttft_sum_s, episode.done)
    out.ttft_p99_s = quantile(ttft, 0.99)
    tpot = served[2, : episode.paced]
    out.tpot_mean_s = ratio(episode.tpot_sum_s, episode.paced)
    out.tpot_p99_s = quantile(tpot, 0.99)
    out.system_mean_s = ratio(episode.counted_s, episode.requests)
    out.epoch_p99_mean_s = episode.p99_sum_s / config.epochs if episode.done > 0 else math.nan
    out.throughput_rps = ratio(episode.done, duration_s)
    out.output_tokens_per_s = ratio(episode.output_tokens, duration_s)
    out.goodput_rps = ratio(episode.met, duration_s)
    out.slo_attainment = ratio(episode.met, episode.requests)
    out.utilization = ratio(busy_gpu_s, config.gpus * duration_s)
    out.kv_mean = ratio(kv_share_s, config.gpus * duration_s)
    out.headroom_mean = ratio(episode.headroom_sum, episode.epoch)
    out.switches = episode.switches
    out.changed_gpus = episode.changed_gpus
    out.stopped_gpu_s = episode.stopped_gpu_s
    out.weights_moved_bytes = episode.weights_bytes
    out.kv_moved_bytes = episode.kv_bytes
    out.migrated = episode.migrated
    out.drained = episode.drained
    out.restarted = episode.restarted
    out.rerouted = episode.rerouted
    out.invalid_actions = episode.invalid
    out.penalty = episode.penalty
    out.unstable = episode.unstable
    out.duration_s = duration_s
    out.world_checksum = episode.checksum
