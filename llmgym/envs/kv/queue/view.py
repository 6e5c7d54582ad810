"""Pictures of KVQueue: the cache with its residents, and the line of waiting requests."""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.envs.kv.queue.scenarios import Scenario
from llmgym.envs.kv.queue.state import Params, State
from llmgym.serving.queue import FIRST, HEAD, TAIL

WIDTH, HEIGHT = 760, 420
BAR = 40
"""Characters of a bar of text."""
SHOWN = 40
"""Waiting requests of a picture."""


def text(scenario: Scenario, params: Params, state: State, lane: int) -> str:
    """One line of state and one bar each for cache and queue.

    Args:
        scenario: the settings.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: which one.
    """
    episode, capacity = state.lane[lane], int(params.config["kv_capacity"][0])
    full = round(BAR * episode["used"] / capacity)
    return (
        f"t {episode['clock_s']:9.3f} s   batch {episode['batches']:6d} of {1e3 * episode['batch_s']:6.1f} ms   "
        f"done {episode['done']}/{episode['requests']}\n"
        f"cache [{'#' * full}{'.' * (BAR - full)}] {episode['used']:,}/{capacity:,} tokens, {episode['residents']} residents"
        f"{', ' + str(episode['paused']) + ' paused' if episode['paused'] else ''}\n"
        f"queue [{('=' * min(BAR, int(episode['waiting']))).ljust(BAR, '.')}] {episode['waiting']} waiting, "
        f"{episode['preemptions']} preemptions"
    )


def picture(scenario: Scenario, params: Params, state: State, lane: int) -> NDArray[np.uint8]:
    """Residents as bars in the cache, waiting requests below, the numbers above.

    Args:
        scenario: the settings.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: which one.

    Returns:
        uint8 [420, 760, 3].
    """
    episode, capacity = state.lane[lane], int(params.config["kv_capacity"][0])
    figure = blank(WIDTH, HEIGHT)
    cache, line = figure.subplots(2, 1, gridspec_kw={"height_ratios": [2, 1.2], "hspace": 0.75})
    left = 0.0
    for resident in state.resident[lane, : episode["residents"]]:
        if resident["paused"]:
            continue
        produced, held = int(resident["kept"]), int(resident["prefilled"])
        if resident["decoding"]:
            produced = int(episode["tick"] - resident["base"])
            held = int(resident["prompt"] - resident["kept"] + produced)
        colour = "#0072B2" if resident["decoding"] else "#E69F00"
        cache.bar(
            left,
            min(1.0, produced / max(int(resident["predicted"]), 1)),
            held,
            0,
            align="edge",
            color=colour,
            alpha=0.85,
        )
        cache.bar(left, 1.0, held, 0, align="edge", fill=False, edgecolor="#444444", linewidth=0.6)
        left += held
    cache.axvline(capacity, color="#D55E00", linewidth=2)
    cache.set(
        xlim=(0, capacity * 1.02),
        ylim=(0, 1.05),
        xlabel="tokens in the KV cache (red: capacity)",
        ylabel="output so far\nof predicted",
    )
    cache.set_title(
        f"t = {episode['clock_s']:.2f} s    batch {episode['batches']} ({1e3 * episode['batch_s']:.1f} ms)    "
        f"{episode['residents']} running ({episode['paused']} paused)    {episode['waiting']} waiting    "
        f"{episode['done']}/{episode['requests']} done    {episode['preemptions']} preemptions",
        fontsize=9,
    )
    queue = state.queue[lane, 0]
    waiting = queue[FIRST + queue[HEAD] : FIRST + queue[TAIL]][:SHOWN]
    requests = state.request[lane, waiting]
    prompt = requests["prompt"] + requests["kept"]
    line.bar(range(len(waiting)), prompt, color="#E69F00", label="prompt")
    line.bar(
        range(len(waiting)),
        requests["predicted"],
        bottom=prompt,
        color="#56B4E9",
        label="predicted output",
    )
    line.set(
        xlim=(-0.6, SHOWN - 0.4),
        xlabel=f"waiting requests, next first (at most {SHOWN} shown)",
        ylabel="tokens",
    )
    if len(waiting):
        line.legend(fontsize=7, loc="upper right", ncols=2)
    return pixels(figure, (cache, line))
