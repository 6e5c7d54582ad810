"""How an epoch of AFDRatio passes: by formula, with Gaussian loads, or request by request.

Song et al., arXiv 2601.21351: mean field and step time from section 4 of version 1, Gaussian loads from the later versions,
slots and the two microbatches in flight from the simulator of section 5.
"""

import math
from typing import Any

from llmgym.core.jit import kernel
from llmgym.core.rng import normal, substream
from llmgym.envs.afd.ratio.state import GAUSSIAN, MEANFIELD, PIPELINE, Params, State
from llmgym.envs.afd.slots import NEVER, NONE, advance, clear, draw, draw_running, place

REQUESTS, SCHEDULE, COEFFICIENTS, AGES, WINDOW, NOISE = 0, 1, 2, 3, 4, 5
"""Sub-streams of the key of an episode."""


@kernel(inline=True)
def _tally(me: Any, sign: int, prompt: int, steps: int) -> None:
    """Add a request to the sums over the window, or take it out."""
    p, n = int(prompt), int(steps)
    me.sum_prompt += sign * p
    me.sum_steps += sign * n
    me.sum_load += sign * (p * n + n * (n - 1) // 2)
    me.sum_square += sign * (n * p * p + p * n * (n - 1) + n * (n - 1) * (2 * n - 1) // 6)


@kernel
def see(state: State, params: Params, lane: int, prompt: int, steps: int) -> None:
    """Put a finished request into the window, whose oldest one leaves when it is full."""
    me = state.lane[lane]
    size = params.number[0].window
    row = state.window[lane, me.newest]
    if me.seen == size:
        _tally(me, -1, row[0], row[1])
    else:
        me.seen += 1
    row[0], row[1] = prompt, steps
    _tally(me, 1, prompt, steps)
    me.newest = (me.newest + 1) % size


@kernel
def empty(state: State, params: Params, lane: int) -> None:
    """No instance holds a request, and the clock is at 0."""
    me = state.lane[lane]
    for t in range(state.table.shape[1]):
        clear(state.slot[lane, t], state.wheel[lane, t], state.table[lane, t])
    for i in range(state.worker.shape[1]):
        w = state.worker[lane, i]
        w.free, w.busy, w.occupied = 0.0, 0.0, 0
    for x in range(state.microbatch.shape[1]):
        state.microbatch[lane, x].back, state.microbatch[lane, x].tick = 0.0, 0
    me.clock, me.ffn_free = 0.0, 0.0


@kernel
def switch(state: State, params: Params, lane: int, choice: int, law: int) -> None:
    """Change the ratio: the pipeline runs empty and stands still for a while, then new instances begin with fresh requests.

    The first bundle is built for nothing. An instance that is taken out gets no more requests, but takes part in steps, and is
    paid for, until it has none.
    """
    me = state.lane[lane]
    number = params.number[0]
    first = me.built == 0
    if not first and choice == me.choice:
        return
    before = me.clock
    if not first:
        me.switches += 1
        for x in range(number.batches):
            me.clock = max(me.clock, state.microbatch[lane, x].back)
        me.clock += number.switch_cost
    me.choice, me.built = choice, 1
    me.workers, me.ffn = params.ratios[choice, 0], params.ratios[choice, 1]
    me.ffn_free = me.clock
    for x in range(number.batches):
        state.microbatch[lane, x].back = me.clock
    for i in range(number.workers):
        state.worker[lane, i].free = me.clock
    draining = 0
    if number.mode > GAUSSIAN:
        ages = substream(me.key, AGES)
        for i in range(number.workers):
            if i < me.workers:
                _fill(state, params, lane, i, law, first and number.stationary != 0, ages)
            elif state.worker[lane, i].occupied > 0:
                draining += 1
    elif number.mode == GAUSSIAN:
        for i in range(number.workers):
            table = state.table[lane, i]
            if i >= me.workers:
                table.occupied = 0
            elif table.occupied == 0:
                table.occupied = number.batch
                table.load = number.batch * params.law[law].mean_prompt
                if first and number.stationary != 0:
                    spread = params.law[law].nu * math.sqrt(number.batch)
                    table.load = number.batch * params.law[law].theta + spread * normal(
                        substream(me.key, AGES), i
                    )
    me.paid = me.workers + me.ffn + draining
    me.switch_time += me.clock - before
    me.instance_time += (me.clock - before) * me.paid


@kernel
def _fill(state: State, params: Params, lane: int, worker: int, law: int, running: bool, ages: Any) -> None:
    """Give every free slot of an attention instance a request: a fresh one, or one that is on its way."""
    me = state.lane[lane]
    number = params.number[0]
    requests = substream(me.key, REQUESTS)
    w = state.worker[lane, worker]
    for x in range(number.batches):
        t = x * number.workers + worker
        table = state.table[lane, t]
        tick = state.microbatch[lane, x].tick
        while table.free != NONE:
            age, began = 0, me.clock
            if running:
                row, age = draw_running(
                    params.law[law], params.until, ages, t * number.batch + table.occupied
                )
                began = NEVER
            else:
                row = draw(params.law[law], requests, me.taken)
            me.taken += 1
            prompt, steps = params.requests[row, 0], params.requests[row, 1]
            me.asked_steps += steps - age
            w.occupied += 1
            place(state.slot[lane, t], state.wheel[lane, t], table, tick, prompt, steps, age, began)


@kernel
def run(state: State, params: Params, lane: int, law: int) -> None:
    """Let an epoch pass."""
    me = state.lane[lane]
    mode = params.number[0].mode
    before = me.clock
    if mode == MEANFIELD:
        _flow(state, params, lane, law)
    elif mode == GAUSSIAN:
        _sample(state, params, lane, law)
    else:
        _serve(state, params, lane, law)
    me.cycle_time += me.clock - before


@kernel
def _others(state: State, params: Params, lane: int, requests: float) -> tuple[float, float]:
    """t_C and t_F of a step with so many requests in all."""
    me = state.lane[lane]
    number = params.number[0]
    c = state.coefficients[lane]
    each = requests / me.ffn
    sent = each if number.aggregate != 0 else float(number.batch)
    return c[4] * sent + c[5], c[2] * each + c[3]


@kernel
def _add(
    state: State,
    lane: int,
    cycles: int,
    slowest_load: float,
    mean_load: float,
    comm: float,
    ffn: float,
) -> float:
    """Book cycles that are alike, and return the time of the synchronous one: max(t_A, t_C, t_F)."""
    me = state.lane[lane]
    c = state.coefficients[lane]
    attention = c[0] * slowest_load + c[1]
    if attention >= comm and attention >= ffn:
        me.bound_attention += cycles
    elif comm >= ffn:
        me.bound_comm += cycles
    me.cycle += cycles
    me.excess += cycles * c[0] * (slowest_load - mean_load)
    return max(attention, max(comm, ffn))


@kernel
def _flow(state: State, params: Params, lane: int, law: int) -> None:
    """The mean field: every step is like every other."""
    me = state.lane[lane]
    number = params.number[0]
    c = state.coefficients[lane]
    load = number.batch * params.law[law].theta
    comm, ffn = _others(state, params, lane, float(me.workers * number.batch))
    tau = _add(state, lane, number.cycles, load, load, comm, ffn)
    me.clock += number.cycles * tau
    me.idle_attention = 1.0 - (c[0] * load + c[1]) / tau
    me.idle_ffn = 1.0 - ffn / tau
    me.load_mean, me.load_max = params.law[law].theta, params.law[law].theta
    me.load_sum += number.cycles * params.law[law].theta
    me.output += number.cycles * me.workers * number.batch
    me.instance_time += number.cycles * tau * me.paid


@kernel
def _sample(state: State, params: Params, lane: int, law: int) -> None:
    """Gaussian loads N(B theta, B nu^2) with a memory of exp(-1 / mean steps) a step, drawn every `stride` steps."""
    me = state.lane[lane]
    number = params.number[0]
    c = state.coefficients[lane]
    noise = substream(me.key, NOISE)
    comm, ffn = _others(state, params, lane, float(me.workers * number.batch))
    mean = number.batch * params.law[law].theta
    spread = params.law[law].nu * math.sqrt(number.batch)
    start, idle, done, average, slowest = me.clock, 0.0, 0, 0.0, 0.0
    draws = me.epoch * ((number.cycles + number.stride - 1) // number.stride)
    while done < number.cycles:
        n = min(number.stride, number.cycles - done)
        keep = math.exp(-n / params.law[law].mean_steps)
        fresh = spread * math.sqrt(1.0 - keep * keep)
        slowest, total = 0.0, 0.0
        for i in range(me.workers):
            table = state.table[lane, i]
            shock = fresh * normal(noise, draws * number.workers + i)
            load = mean + keep * (table.load - mean) + shock
            table.load = max(load, 0.0)
            slowest = max(slowest, table.load)
            total += table.load
        average = total / me.workers
        tau = _add(state, lane, n, slowest, average, comm, ffn)
        me.clock += n * tau
        idle += n * (tau - c[0] * average - c[1])
        me.load_sum += n * average / number.batch
        done += n
        draws += 1
    time = me.clock - start
    me.idle_attention, me.idle_ffn = idle / time, 1.0 - number.cycles * ffn / time
    me.load_mean, me.load_max = average / number.batch, slowest / number.batch
    me.output += number.cycles * me.workers * number.batch
    me.instance_time += time * me.paid


@kernel
def _serve(state: State, params: Params, lane: int, law: int) -> None:
    """Step by step: attention of every instance, FFN when the slowest has arrived, refill; microbatches in turn."""
    me = state.lane[lane]
    number = params.number[0]
    c = state.coefficients[lane]
    requests = substream(me.key, REQUESTS)
    top = me.workers
    for i in range(me.workers, number.workers):
        if state.worker[lane, i].occupied > 0:
            top = i + 1
    start, busy, worker_time, ffn_busy, cycles = me.clock, 0.0, 0.0, 0.0, 0
    while cycles < number.cycles:
        x = me.turn
        microbatch = state.microbatch[lane, x]
        first = x * number.workers
        slowest, total, active, busy_workers, arrived = 0.0, 0.0, 0, 0, 0.0
        for i in range(top):
            table = state.table[lane, first + i]
            if table.occupied == 0:
                continue
            w = state.worker[lane, i]
            attention = c[0] * table.load + c[1]
            w.free = max(microbatch.back, w.free) + attention
            w.busy += attention
            busy += attention
            arrived = max(arrived, w.free)
            slowest = max(slowest, table.load)
            total += table.load
            active += table.occupied
            busy_workers += 1
        comm, ffn = _others(state, params, lane, float(active))
        tau = _add(state, lane, 1, slowest, total / busy_workers, comm, ffn)
        before = me.clock
        if number.mode == PIPELINE:
            me.ffn_free = max(arrived + 0.5 * comm, me.ffn_free) + ffn
            me.clock = me.ffn_free
            microbatch.back = me.ffn_free + 0.5 * comm
        else:
            me.clock += tau
            microbatch.back = me.clock
        ffn_busy += ffn
        me.instance_time += (me.clock - before) * me.paid
        worker_time += (me.clock - before) * (me.paid - me.ffn)
        me.output += active
        me.tokens += active
        me.load_sum += total / active
        microbatch.tick += 1
        me.turn = (x + 1) % number.batches
        cycles += 1
        _finish(state, params, lane, law, x, top, requests)
        if number.stop > 0 and me.completed >= number.stop * me.workers:
            break
    time = me.clock - start
    me.idle_attention = min(max(1.0 - busy / worker_time, 0.0), 1.0)
    me.idle_ffn = min(max(1.0 - ffn_busy / time, 0.0), 1.0)
    me.load_mean, me.load_max = 0.0, 0.0
    for x in range(number.batches):
        for i in range(me.workers):
            load = state.table[lane, x * number.workers + i].load / number.batch
            me.load_mean += load / (number.batches * me.workers)
            me.load_max = max(me.load_max, load)


@kernel
def _finish(state: State, params: Params, lane: int, law: int, x: int, top: int, requests: Any) -> None:
    """After a step of a microbatch: what is done leaves, and its slots are refilled at once."""
    me = state.lane[lane]
    number = params.number[0]
    microbatch = state.microbatch[lane, x]
    early = math.ceil(0.8 * number.stop * me.workers)
    for i in range(top):
        t = x * number.workers + i
        table = state.table[lane, t]
        if table.occupied == 0:
            continue
        slots, wheel = state.slot[lane, t], state.wheel[lane, t]
        done = advance(slots, wheel, table, microbatch.tick)
        s = table.free
        for _ in range(done):
            slot = slots[s]
            me.completed += 1
            me.done_tokens += slot.steps
            if me.completed == early:
                me.early, me.early_tokens = microbatch.back, me.done_tokens
            if slot.began != NEVER:
                me.timed += 1
                me.tpot += (microbatch.back - slot.began) / slot.steps
            see(state, params, lane, slot.prompt, slot.steps)
            s = slot.next
        if i >= me.workers:
            w = state.worker[lane, i]
            w.occupied -= done
            if done > 0 and w.occupied == 0:
                me.paid -= 1
            continue
        for _ in range(done):
            row = draw(params.law[law], requests, me.taken)
            me.taken += 1
            prompt, steps = params.requests[row, 0], params.requests[row, 1]
            me.asked_steps += steps
            place(slots, wheel, table, microbatch.tick, prompt, steps, 0, microbatch.back)
