"""How an epoch of AFDRatio passes: by formula, with Gaussian loads, or request by request.

Song et al., arXiv 2601.21351: mean field and step time from section 4 of version 1, Gaussian loads from the later versions, slots
and the two microbatches in flight from the simulator of section 5.
"""

import math

import numpy as np

from llmgym.core.jit import kernel
from llmgym.core.rng import normal, substream
from llmgym.envs.afd.costs import ALPHA_A, ALPHA_C, ALPHA_F, BETA_A, BETA_C, BETA_F
from llmgym.envs.afd.ratio.state import GAUSSIAN, MEANFIELD, PIPELINE, Params, State
from llmgym.envs.afd.slots import NEVER, NONE, advance, clear, draw, draw_running, place

REQUESTS, SCHEDULE, COEFFICIENTS, AGES, WINDOW, NOISE = 0, 1, 2, 3, 4, 5
"""Sub-streams of the key of an episode."""
EARLY_SHARE = 0.8
"""Share of the completions that Thr80, the throughput of Song et al., section 5, is taken over."""
ONE_WAY = 0.5
"""Part of t_C, the time of a round trip, that each way takes."""


@kernel(inline=True)
def remember(state: State, params: Params, lane: int, prompt: int, steps: int) -> None:
    """Put a finished request into the window, whose oldest one leaves when it is full; `tally` adds the window up.

    Args:
        state: of all lanes.
        params: of all lanes.
        lane: which one.
        prompt: of the request, tokens.
        steps: that it stayed.
    """
    episode = state.lane[lane]
    size = params.config[0].window
    row = state.window[lane, episode.newest]
    row[0], row[1] = prompt, steps
    episode.seen = min(episode.seen + 1, size)
    episode.newest = episode.newest + 1 if episode.newest + 1 < size else 0


@kernel
def tally(state: State, lane: int) -> None:
    """Add up the requests in the window, once an epoch: far more requests pass through it than it holds.

    Args:
        state: of all lanes.
        lane: which one.
    """
    episode = state.lane[lane]
    prompts, steps, load, square = 0, 0, 0, 0
    for i in range(episode.seen):
        p, n = int(state.window[lane, i, 0]), int(state.window[lane, i, 1])
        prompts += p
        steps += n
        load += p * n + n * (n - 1) // 2
        square += n * p * p + p * n * (n - 1) + n * (n - 1) * (2 * n - 1) // 6
    episode.sum_prompt, episode.sum_steps, episode.sum_load, episode.sum_square = prompts, steps, load, square


@kernel
def empty(state: State, lane: int) -> None:
    """Take all requests out of the instances of a lane, at time 0."""
    for t in range(state.table.shape[1]):
        clear(state.slot[lane, t], state.wheel[lane, t], state.table[lane, t])
    for i in range(state.worker.shape[1]):
        state.worker[lane, i].free, state.worker[lane, i].occupied = 0.0, 0
    for m in range(state.microbatch.shape[1]):
        state.microbatch[lane, m].back, state.microbatch[lane, m].tick = 0.0, 0


@kernel
def switch(state: State, params: Params, lane: int, choice: int, law: int) -> None:
    """Change the ratio: the pipeline runs empty and stands still for a while, then new instances begin with fresh requests.

    The first bundle is built for nothing. An instance that is taken out gets no more requests, but takes part in steps, and is paid
    for, until it has none.

    Args:
        state: of all lanes.
        params: of all lanes.
        lane: which one.
        choice: index of the ratio.
        law: number of the law that fresh requests come from.
    """
    episode = state.lane[lane]
    config = params.config[0]
    first = episode.built == 0
    if not first and choice == episode.choice:
        return
    before = episode.clock
    if not first:
        episode.switches += 1
        for m in range(config.batches):
            episode.clock = max(episode.clock, state.microbatch[lane, m].back)
        episode.clock += config.switch_cost
    episode.choice, episode.built = choice, 1
    episode.workers, episode.ffn = params.ratios[choice, 0], params.ratios[choice, 1]
    episode.ffn_free = episode.clock
    for m in range(config.batches):
        state.microbatch[lane, m].back = episode.clock
    for i in range(config.workers):
        state.worker[lane, i].free = episode.clock
    draining = 0
    if config.mode > GAUSSIAN:
        ages = substream(episode.key, AGES)
        for i in range(config.workers):
            if i < episode.workers:
                _fill(state, params, lane, i, law, first and config.stationary != 0, ages)
            elif state.worker[lane, i].occupied > 0:
                draining += 1
    elif config.mode == GAUSSIAN:
        for i in range(config.workers):
            table = state.table[lane, i]
            if i >= episode.workers:
                table.occupied = 0
            elif table.occupied == 0:
                table.occupied = config.batch
                table.load = config.batch * params.law[law].mean_prompt
                if first and config.stationary != 0:
                    spread = params.law[law].nu * math.sqrt(config.batch)
                    table.load = config.batch * params.law[law].theta + spread * normal(
                        substream(episode.key, AGES), i
                    )
    episode.paid = episode.workers + episode.ffn + draining
    episode.switch_time += episode.clock - before
    episode.instance_time += (episode.clock - before) * episode.paid


@kernel
def _fill(
    state: State, params: Params, lane: int, worker: int, law: int, running: bool, ages: np.uint64
) -> None:
    """Give every free slot of an attention instance a request: a fresh one, or one that is on its way (`running`)."""
    episode = state.lane[lane]
    config = params.config[0]
    requests = substream(episode.key, REQUESTS)
    for m in range(config.batches):
        t = m * config.workers + worker
        table = state.table[lane, t]
        tick = state.microbatch[lane, m].tick
        while table.free != NONE:
            age, began = 0, episode.clock
            if running:
                row, age = draw_running(
                    params.law[law], params.until, ages, t * config.batch + table.occupied
                )
                began = NEVER
            else:
                row = draw(params.law[law], requests, episode.taken)
            episode.taken += 1
            prompt, steps = params.requests[row, 0], params.requests[row, 1]
            episode.demand_steps += steps - age
            state.worker[lane, worker].occupied += 1
            place(state.slot[lane, t], state.wheel[lane, t], table, tick, prompt, steps, age, began)


@kernel
def run(state: State, params: Params, lane: int, law: int) -> None:
    """Let an epoch pass.

    Args:
        state: of all lanes.
        params: of all lanes.
        lane: which one.
        law: number of the law that fresh requests come from.
    """
    episode = state.lane[lane]
    mode = params.config[0].mode
    before = episode.clock
    if mode == MEANFIELD:
        _run_by_formula(state, params, lane, law)
    elif mode == GAUSSIAN:
        _run_gaussian(state, params, lane, law)
    else:
        _run_slots(state, params, lane, law)
    episode.cycle_time += episode.clock - before


@kernel(inline=True)
def _comm_and_ffn(state: State, params: Params, lane: int, requests: float) -> tuple[float, float]:
    """t_C and t_F of a step with so many requests in all, cycles."""
    config = params.config[0]
    c = state.coefficients[lane]
    each = requests / state.lane[lane].ffn
    sent = each if config.aggregate != 0 else float(config.batch)
    return c[ALPHA_C] * sent + c[BETA_C], c[ALPHA_F] * each + c[BETA_F]


@kernel(inline=True)
def _book(
    state: State, lane: int, cycles: int, slowest_load: float, mean_load: float, comm: float, ffn: float
) -> float:
    """Book cycles that are alike, and return the time of a synchronous one: max(t_A, t_C, t_F)."""
    episode = state.lane[lane]
    c = state.coefficients[lane]
    attention = c[ALPHA_A] * slowest_load + c[BETA_A]
    if attention >= comm and attention >= ffn:
        episode.bound_attention += cycles
    elif comm >= ffn:
        episode.bound_comm += cycles
    episode.cycle += cycles
    episode.excess += cycles * c[ALPHA_A] * (slowest_load - mean_load)
    return max(attention, max(comm, ffn))


@kernel
def _run_by_formula(state: State, params: Params, lane: int, law: int) -> None:
    """An epoch of the mean field: every step is like every other."""
    episode = state.lane[lane]
    config = params.config[0]
    c = state.coefficients[lane]
    theta = params.law[law].theta
    load = config.batch * theta
    comm, ffn = _comm_and_ffn(state, params, lane, float(episode.workers * config.batch))
    tau = _book(state, lane, config.cycles, load, load, comm, ffn)
    episode.clock += config.cycles * tau
    episode.idle_attention = 1.0 - (c[ALPHA_A] * load + c[BETA_A]) / tau
    episode.idle_ffn = 1.0 - ffn / tau
    episode.load_mean, episode.load_max = theta, theta
    episode.load_sum += config.cycles * theta
    episode.output += config.cycles * episode.workers * config.batch
    episode.instance_time += config.cycles * tau * episode.paid


@kernel
def _run_gaussian(state: State, params: Params, lane: int, law: int) -> None:
    """An epoch of Gaussian loads N(B theta, B nu^2) with a memory of exp(-1 / mean steps) a step, drawn every `stride` steps."""
    episode = state.lane[lane]
    config = params.config[0]
    c = state.coefficients[lane]
    noise = substream(episode.key, NOISE)
    comm, ffn = _comm_and_ffn(state, params, lane, float(episode.workers * config.batch))
    mean = config.batch * params.law[law].theta
    spread = params.law[law].nu * math.sqrt(config.batch)
    start, idle, done, average, slowest = episode.clock, 0.0, 0, 0.0, 0.0
    draws = episode.epoch * ((config.cycles + config.stride - 1) // config.stride)
    while done < config.cycles:
        n = min(config.stride, config.cycles - done)
        keep = math.exp(-n / params.law[law].mean_steps)
        fresh = spread * math.sqrt(1.0 - keep * keep)
        slowest, total = 0.0, 0.0
        for i in range(episode.workers):
            table = state.table[lane, i]
            shock = fresh * normal(noise, draws * config.workers + i)
            load = mean + keep * (table.load - mean) + shock
            table.load = max(load, 0.0)
            slowest = max(slowest, table.load)
            total += table.load
        average = total / episode.workers
        tau = _book(state, lane, n, slowest, average, comm, ffn)
        episode.clock += n * tau
        idle += n * (tau - c[ALPHA_A] * average - c[BETA_A])
        episode.load_sum += n * average / config.batch
        done += n
        draws += 1
    time = episode.clock - start
    episode.idle_attention, episode.idle_ffn = idle / time, 1.0 - config.cycles * ffn / time
    episode.load_mean, episode.load_max = average / config.batch, slowest / config.batch
    episode.output += config.cycles * episode.workers * config.batch
    episode.instance_time += time * episode.paid


@kernel
def _run_slots(state: State, params: Params, lane: int, law: int) -> None:
    """An epoch step by step: attention of every instance, FFN when the slowest has arrived, refill; microbatches in turn."""
    episode = state.lane[lane]
    config = params.config[0]
    c = state.coefficients[lane]
    requests = substream(episode.key, REQUESTS)
    top = episode.workers
    for i in range(episode.workers, config.workers):
        if state.worker[lane, i].occupied > 0:
            top = i + 1
    start, busy, worker_time, ffn_busy, cycles = episode.clock, 0.0, 0.0, 0.0, 0
    while cycles < config.cycles:
        m = episode.turn
        microbatch = state.microbatch[lane, m]
        first = m * config.workers
        slowest, total, active, busy_workers, arrived = 0.0, 0.0, 0, 0, 0.0
        for i in range(top):
            table = state.table[lane, first + i]
            if table.occupied == 0:
                continue
            worker = state.worker[lane, i]
            attention = c[ALPHA_A] * table.load + c[BETA_A]
            worker.free = max(microbatch.back, worker.free) + attention
            busy += attention
            arrived = max(arrived, worker.free)
            slowest = max(slowest, table.load)
            total += table.load
            active += table.occupied
            busy_workers += 1
        comm, ffn = _comm_and_ffn(state, params, lane, float(active))
        tau = _book(state, lane, 1, slowest, total / busy_workers, comm, ffn)
        before = episode.clock
        if config.mode == PIPELINE:
            episode.ffn_free = max(arrived + ONE_WAY * comm, episode.ffn_free) + ffn
            episode.clock = episode.ffn_free
            microbatch.back = episode.ffn_free + ONE_WAY * comm
        else:
            episode.clock += tau
            microbatch.back = episode.clock
        ffn_busy += ffn
        episode.instance_time += (episode.clock - before) * episode.paid
        worker_time += (episode.clock - before) * (episode.paid - episode.ffn)
        episode.output += active
        episode.tokens += active
        episode.load_sum += total / active
        microbatch.tick += 1
        episode.turn = (m + 1) % config.batches
        cycles += 1
        _refill(state, params, lane, law, m, top, requests)
        if config.stop > 0 and episode.completed >= config.stop * episode.workers:
            break
    time = episode.clock - start
    episode.idle_attention = min(max(1.0 - busy / worker_time, 0.0), 1.0)
    episode.idle_ffn = min(max(1.0 - ffn_busy / time, 0.0), 1.0)
    episode.load_mean, episode.load_max = 0.0, 0.0
    for m in range(config.batches):
        for i in range(episode.workers):
            load = state.table[lane, m * config.workers + i].load / config.batch
            episode.load_mean += load / (config.batches * episode.workers)
            episode.load_max = max(episode.load_max, load)


@kernel(inline=True)
def _refill(state: State, params: Params, lane: int, law: int, m: int, top: int, requests: np.uint64) -> None:
    """After a step of microbatch m: the requests that are done leave, and their slots are refilled at once.

    Instances from `top` on hold nothing; `requests` is the key of the stream of fresh ones.
    """
    episode = state.lane[lane]
    config = params.config[0]
    microbatch = state.microbatch[lane, m]
    early = math.ceil(EARLY_SHARE * config.stop * episode.workers)
    completed, taken, demand = episode.completed, episode.taken, episode.demand_steps
    for i in range(top):
        t = m * config.workers + i
        table = state.table[lane, t]
        if table.occupied == 0:
            continue
        slots, wheel = state.slot[lane, t], state.wheel[lane, t]
        done = advance(slots, wheel, table, microbatch.tick)
        s = table.free
        for _ in range(done):
            slot = slots[s]
            completed += 1
            episode.done_tokens += slot.steps
            if completed == early:
                episode.early, episode.early_tokens = microbatch.back, episode.done_tokens
            if slot.began != NEVER:
                episode.timed += 1
                episode.tpot += (microbatch.back - slot.began) / slot.steps
            remember(state, params, lane, slot.prompt, slot.steps)
            s = slot.next
        if i >= episode.workers:
            worker = state.worker[lane, i]
            worker.occupied -= done
            if done > 0 and worker.occupied == 0:
                episode.paid -= 1
            continue
        for k in range(done):
            row = draw(params.law[law], requests, taken + k)
            prompt, steps = params.requests[row, 0], params.requests[row, 1]
            demand += steps
            place(slots, wheel, table, microbatch.tick, prompt, steps, 0, microbatch.back)
        taken += done
    episode.completed, episode.taken, episode.demand_steps = completed, taken, demand
