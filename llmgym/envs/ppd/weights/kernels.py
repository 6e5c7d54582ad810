"""The compiled functions of PPDWeights: a weight is in force for an epoch. See `llmgym.envs.ppd.weights.env` for what they mean."""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.jit import kernel
from llmgym.core.lanes import Kernels
from llmgym.core.records import Record, shown
from llmgym.envs.ppd.events import advance
from llmgym.envs.ppd.metrics import earned, metrics_lane
from llmgym.envs.ppd.state import (
    BATCH_SCALE,
    MOST,
    OVERALL,
    QUEUE_SCALE,
    RATE_SCALE_RPS,
    ROLES,
    STEP_SCALE_S,
    TIME_SCALE_S,
    TRANSFER_SCALE,
    Params,
    State,
)
from llmgym.envs.ppd.turns import rate_rps
from llmgym.envs.ppd.world import begin_world

WEIGHTS = (0.0, 0.5, 1.0, 2.0, 3.0, 6.0, 10.0, 30.0)
"""w_tpot of each action; w_ttft is 1."""
FIRST_WEIGHT = WEIGHTS.index(1.0)
"""In force at the beginning."""
TIMEOUT_SCALE = 10.0
"""Timeouts of an epoch are divided by it in the observation."""


class Observation(Record):
    """What an operator sees: the last epoch, the load and the nodes."""

    rate: float = shown("requests a second, as the table is read by", unit="20", high=MOST)
    requests: float = shown(
        "later turns a second that were routed in the last epoch", unit="20", high=MOST, name="asked"
    )
    done: float = shown("later turns a second that completed in the last epoch", unit="20", high=MOST)
    met: float = shown("of these, within both objectives", unit="share")
    missed_ttft: float = shown("of these, over the objective for TTFT", unit="share", name="missed.ttft")
    missed_tpot: float = shown("of these, over the objective for TPOT", unit="share", name="missed.tpot")
    ttft: float = shown("mean TTFT of these", unit="objective", high=MOST)
    tpot: float = shown("mean TPOT of these", unit="objective", high=MOST)
    local: float = shown("of later turns routed in the last epoch, prefilled where they decode", unit="share")
    timeouts: float = shown("requests that timed out in the last epoch", unit="10")
    gate: float = shown("conversations that wait to be let in", unit="50", high=MOST)
    p_backlog: float = shown("work that waits at a P, mean", unit="10 s", high=MOST, name="p.backlog")
    p_queue: float = shown("requests at a P, mean", unit="50", high=MOST, name="p.queue")
    d_batch: float = shown("sequences that decode on a node, mean", unit="256", name="d.batch")
    d_active: float = shown(
        "tokens in its cache of sequences in the batch, mean", unit="capacity", name="d.active"
    )
    d_fullest: float = shown("the same of the fullest node", unit="capacity", name="d.fullest")
    d_step: float = shown(
        "moving average of the duration of steps that have ended, mean over nodes",
        unit="50 ms",
        high=MOST,
        name="d.step",
    )
    d_receives: float = shown("transfers under way, all nodes", unit="8", high=MOST, name="d.receives")
    nodes: NDArray[np.float32] = shown(
        "share of P, D, pD and R among the nodes", unit="share", high=1.0001, size=len(ROLES)
    )
    weight: NDArray[np.float32] = shown("1 at the weight in force (at reset: that of 1)", size=len(WEIGHTS))


@kernel
def reset_lane(state: State, params: Params, lane: int, key: np.uint64) -> None:
    """Draw an episode; nobody has come yet.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        key: seeds everything that is drawn in the episode, uint64.
    """
    begin_world(state, params, lane, key)
    state.lane[lane].weight = FIRST_WEIGHT


@kernel
def _remember(state: State, lane: int) -> None:
    """Note where the counts stand when an epoch begins."""
    episode = state.lane[lane]
    episode.before_done, episode.before_requests = episode.later_done, episode.later_requests
    episode.before_local, episode.before_met = episode.local, episode.met
    episode.before_ttft_missed, episode.before_tpot_missed = episode.ttft_missed, episode.tpot_missed
    episode.before_failed = episode.failed
    episode.before_ttft_s, episode.before_tpot_s = episode.later_ttft_s, episode.later_tpot_s


@kernel
def step_lane(
    state: State, params: Params, lane: int, action: NDArray[np.float64]
) -> tuple[float, bool, bool, float]:
    """Route by the table under a weight for one epoch.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        action: float64 [1], number of the weight.

    Returns:
        Reward, whether the episode is over, whether it is cut, and the time that passed, seconds.
    """
    episode = state.lane[lane]
    config = params.config[0]
    start_s = episode.clock_s
    _remember(state, lane)
    episode.weight = int(action[0])
    episode.epoch += 1
    reason = advance(state, params, lane, min(episode.epoch * config.epoch_s, config.limit_s), episode.weight)
    total = earned(config, episode)
    reward = total - episode.paid
    episode.paid = total
    over = reason == OVERALL
    cut = not over and (episode.epoch >= config.epochs or episode.clock_s >= config.limit_s)
    return reward, over, cut, episode.clock_s - start_s


@kernel
def observe_lane(
    state: State, params: Params, lane: int, out: Observation, rest: NDArray[np.float32]
) -> None:
    """Write the observation.

    Args:
        state: arrays of all lanes.
        params: shared by all lanes.
        lane: number of the lane.
        out: the record of the observation, written.
        rest: float32 [0], not used: the record is the whole observation.
    """
    episode = state.lane[lane]
    config = params.config[0]
    done = episode.later_done - episode.before_done
    failed = episode.failed - episode.before_failed
    requests = episode.later_requests - episode.before_requests
    ends = max(done, 1)
    out.rate = min(rate_rps(config, episode) / RATE_SCALE_RPS, MOST)
    out.requests = min(requests / config.epoch_s / RATE_SCALE_RPS, MOST)
    out.done = min(done / config.epoch_s / RATE_SCALE_RPS, MOST)
    out.met = (episode.met - episode.before_met) / ends
    out.missed_ttft = (episode.ttft_missed - episode.before_ttft_missed) / ends
    out.missed_tpot = (episode.tpot_missed - episode.before_tpot_missed) / ends
    out.ttft = min((episode.later_ttft_s - episode.before_ttft_s) / ends / config.ttft_slo_s, MOST)
    out.tpot = min((episode.later_tpot_s - episode.before_tpot_s) / ends / config.tpot_slo_s, MOST)
    out.local = (episode.local - episode.before_local) / max(requests, 1)
    out.timeouts = min(failed / TIMEOUT_SCALE, 1.0)
    out.gate = min((episode.next - episode.gate) / QUEUE_SCALE, MOST)
    for k in range(len(WEIGHTS)):
        out.weight[k] = 0.0
    out.weight[episode.weight] = 1.0
    _observe_nodes(state, params, lane, out)


@kernel(inline=True)
def _observe_nodes(state: State, params: Params, lane: int, out: Observation) -> None:
    """Write how the nodes are: means of their queues, batches and caches."""
    config = params.config[0]
    for role in range(len(ROLES)):
        out.nodes[role] = 0.0
    backlog_s, prompts, decoding, active, steps_s, fullest, receives = 0.0, 0, 0, 0, 0.0, 0.0, 0
    for n in range(config.nodes):
        node = state.node[lane, n]
        if n < config.ps:
            backlog_s += node.backlog_s
            prompts += node.waiting + (1 if node.serving >= 0 else 0)
        else:
            decoding += node.decoding
            active += node.active
            fullest = max(fullest, node.active / config.kv_capacity)
            steps_s += node.mean_step_s
            receives += state.link[lane, n].in_flight
        out.nodes[params.role[n]] += np.float32(1.0 / config.nodes)
    ds = float(config.nodes - config.ps)
    out.p_backlog = min(backlog_s / max(config.ps, 1) / TIME_SCALE_S, MOST)
    out.p_queue = min(prompts / max(config.ps, 1) / QUEUE_SCALE, MOST)
    out.d_batch = min(decoding / ds / BATCH_SCALE, 1.0)
    out.d_active = active / ds / config.kv_capacity
    out.d_fullest = fullest
    out.d_step = min(steps_s / ds / STEP_SCALE_S, MOST)
    out.d_receives = min(receives / TRANSFER_SCALE, MOST)


KERNELS = Kernels.of(reset_lane, step_lane, observe_lane, metrics_lane)
