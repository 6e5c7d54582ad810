"""Pictures of SegmentedPrefill: who ran when and in which mode, how full the memory is, and who waits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.envs.segmented.law import GIB
from llmgym.envs.segmented.modes import parse
from llmgym.envs.segmented.observing import request_bytes
from llmgym.envs.segmented.scenarios import Scenario
from llmgym.envs.segmented.state import DECODE, DONE, PREFILL, WAITING, Params, State

WIDTH, HEIGHT = 900, 600
COLOURS = {
    "full": "#D55E00",
    "chunked": "#E69F00",
    "duo": "#CC79A7",
    "streaming": "#009E73",
    "segmented": "#0072B2",
    "decode": "#999999",
}
"""Colours of the families of modes, and of decoding."""
MOST_SHOWN = 14
"""Requests that have a line of their own."""
BEFORE = 40
"""Steps of the past that are shown, at most."""


def _tokens(count: int) -> str:
    return f"{count / 1024:.1f}K"


def text(scenario: Scenario, params: Params, state: State, lane: int) -> str:
    """One lane in words: a line of state, a line for each admitted request, and the oldest that wait.

    Args:
        scenario: the settings.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: the lane that is told.

    Returns:
        Lines of text.
    """
    episode, config = state.lane[lane], params.config[0]
    clock_s = float(episode["clock_s"])
    used = (int(config["weights_bytes"]) + int(episode["resident_bytes"])) / GIB
    card = (int(config["weights_bytes"]) + int(config["room_bytes"])) / GIB
    lines = [
        f"{clock_s:.1f} s   done {episode['done']}/{scenario.requests}, rejected {episode['rejected']}, lost {episode['lost']}   "
        f"memory {used:.1f} of {card:.0f} GiB   value {episode['value']:.2f}"
    ]
    for n in state.slot[lane][: int(episode["admitted"])]:
        request = state.request[lane, n]
        left_s = float(request["arrival_s"] + request["limit_s"]) - clock_s
        what = f"{_tokens(int(request['done']))} of {_tokens(int(request['prompt']))}, {left_s:+.1f} s"
        if request["status"] == DECODE:
            what = f"decodes, {request['made']} tokens"
        lines.append(f"#{n:<4} {scenario.modes[int(request['mode'])]:<24} {what}")
    waiting = [
        f"#{n} {_tokens(int(state.request[lane, n]['prompt']))} (at least {float(state.request[lane, n]['quality']):.2f})"
        for n in state.window[lane]
        if n >= 0
    ]
    lines.append(f"waiting: {', '.join(waiting) or 'nobody'}")
    return "\n".join(lines)


def _lines(state: State, lane: int, start_s: float) -> list[int]:
    """The requests that are shown: those that arrived and were not finished at `start_s`, the last of them."""
    requests, clock_s = state.request[lane], float(state.lane[lane]["clock_s"])
    here = requests["arrival_s"] <= clock_s
    open_ = (requests["status"] < DONE) | (requests["end_s"] >= start_s)
    inside = np.flatnonzero(here & open_ & (requests["status"] <= DONE))
    return [int(n) for n in inside[:MOST_SHOWN]]


def picture(scenario: Scenario, params: Params, state: State, lane: int) -> NDArray[np.uint8]:
    """A picture of one lane: a line for each request with its steps and its limit, and the memory of the card below.

    Args:
        scenario: the settings.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: the lane that is drawn.

    Returns:
        The picture, uint8 [600, 900, 3].
    """
    episode = state.lane[lane]
    clock_s = float(episode["clock_s"])
    past = state.past[lane]
    past = past[past["end_s"] >= 0.0]
    past = past[np.argsort(past["begin_s"], kind="stable")][-BEFORE:]
    start_s = float(past["begin_s"][0]) if len(past) else 0.0
    stop_s = max(clock_s, start_s + 1.0)
    stop_s += 0.35 * (stop_s - start_s)
    figure = blank(WIDTH, HEIGHT)
    figure.subplots_adjust(left=0.17, right=0.98, top=0.88, bottom=0.08)
    chart, memory = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"hspace": 0.12, "height_ratios": [2.4, 1]}
    )
    shown = _lines(state, lane, start_s)
    _draw_requests(chart, scenario, state, lane, shown, past)
    _draw_memory(memory, params, state, lane, past, stop_s)
    for axis in (chart, memory):
        axis.axvline(clock_s, color="black", linewidth=1)
        axis.set_xlim(start_s, stop_s)
    memory.set_xlabel("time, s")
    families = {parse(mode).family for mode in scenario.modes}
    for family, colour in COLOURS.items():
        if family in families or family == "decode":
            chart.barh(-9, 0, color=colour, label=family)
    chart.legend(fontsize=7, ncols=6, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False)
    waiting = int(
        (state.request[lane]["status"][state.request[lane]["arrival_s"] <= clock_s] == WAITING).sum()
    )
    figure.suptitle(
        f"{clock_s:.1f} s: {episode['done']} of {scenario.requests} done, {waiting} wait, {episode['rejected']} rejected, "
        f"{episode['lost']} lost, value {episode['value']:.1f}\n"
        "pale: waits; red tick: limit on the first token; line: now",
        fontsize=9,
        x=0.02,
        ha="left",
    )
    return pixels(figure, (chart, memory))


def _draw_requests(
    chart: Any, scenario: Scenario, state: State, lane: int, shown: list[int], past: NDArray[Any]
) -> None:
    """A line for each request: since when it is there, its steps in the colour of its mode, and its limit."""
    clock_s = float(state.lane[lane]["clock_s"])
    names = []
    for row, n in enumerate(shown):
        request = state.request[lane, n]
        first_s, end_s = float(request["first_s"]), float(request["end_s"])
        begin_s = float(request["arrival_s"])
        chart.barh(
            row, (end_s if end_s >= 0.0 else clock_s) - begin_s, left=begin_s, height=0.72, color="#E8E8E8"
        )
        if first_s >= 0.0:
            chart.barh(
                row,
                (end_s if end_s >= 0.0 else clock_s) - first_s,
                left=first_s,
                height=0.24,
                color=COLOURS["decode"],
            )
        limit_s = begin_s + float(request["limit_s"])
        chart.plot([limit_s, limit_s], [row - 0.42, row + 0.42], color="#CC0000", linewidth=1.6)
        for step in past[past["request"] == n]:
            colour = COLOURS[parse(scenario.modes[int(step["mode"])]).family]
            width = step["end_s"] - step["begin_s"]
            chart.barh(
                row, width, left=step["begin_s"], height=0.72, color=colour, edgecolor="white", linewidth=0.5
            )
        name = f"#{n} {_tokens(int(request['prompt']))}, q {float(request['quality']):.2f}"
        if request["status"] == PREFILL:
            name += f" {100 * int(request['done']) // int(request['prompt'])} %"
        names.append(name)
    chart.set_yticks(range(len(names)), names)
    chart.set_ylim(max(len(names), 6) - 0.4, -0.6)


def _draw_memory(
    memory: Any, params: Params, state: State, lane: int, past: NDArray[Any], stop_s: float
) -> None:
    """Memory in use during each step, with the weights below, and what each admitted request holds now, to the right of now."""
    episode, config = state.lane[lane], params.config[0]
    weights, room = int(config["weights_bytes"]) / GIB, int(config["room_bytes"]) / GIB
    for step in past:
        width = float(step["end_s"] - step["begin_s"])
        colour = "#999999" if step["request"] == -1 else "#56B4E9"
        memory.bar(
            step["begin_s"], step["held_bytes"] / GIB, width, bottom=weights, align="edge", color=colour
        )
    clock_s, below = float(episode["clock_s"]), weights
    for k, n in enumerate(state.slot[lane][: int(episode["admitted"])]):
        held = request_bytes(params, state.request[lane, n]) / GIB
        memory.bar(
            clock_s,
            held,
            stop_s - clock_s,
            bottom=below,
            align="edge",
            color=("#0072B2", "#56B4E9")[k % 2],
            alpha=0.5,
        )
        if held > 0.06 * (weights + room):
            memory.text(clock_s, below + 0.5 * held, f" #{n}", fontsize=7, va="center")
        below += held
    memory.axhspan(0.0, weights, color="#DDDDDD")
    memory.text(
        0.01,
        0.5 * weights / (1.08 * (weights + room)),
        "weights",
        fontsize=7,
        transform=memory.transAxes,
        va="center",
    )
    memory.axhline(weights + room, color="#CC0000", linestyle="--", linewidth=1)
    memory.set(ylabel="GiB", ylim=(0.0, 1.08 * (weights + room)))
