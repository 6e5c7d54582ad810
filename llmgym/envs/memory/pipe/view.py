"""Pictures of MemPipe: who was when on the GPU, the FPGA and the links, and how many were in the system."""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.envs.memory.law import STAGES
from llmgym.envs.memory.pipe.scenarios import Scenario
from llmgym.envs.memory.pipe.state import ALL_PLACED, Params, State
from llmgym.envs.memory.place.view import about, short_time

WIDTH, HEIGHT = 860, 520
ROWS = ("GPU", "FPGA", "GPU to FPGA", "FPGA to GPU")
COLOURS = ("#E69F00", "#0072B2", "#56B4E9", "#009E73")
WINDOW = 14.0
"""How much of the past the picture shows, in mean times of a request."""


def text(scenario: Scenario, params: Params, state: State, lane: int) -> str:
    """One lane in words: a line of state, a line for each device and link, and what is to be placed.

    Args:
        scenario: the settings.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: the lane that is told.

    Returns:
        Lines of text without a line feed at the end.
    """
    episode = state.lane[lane]
    request = state.request[lane, episode["current"]]
    clock_s = float(episode["clock_s"])
    lines = [
        f"{short_time(clock_s)}   done {episode['oldest']}/{scenario.requests}   stages {episode['stages']}, "
        f"{episode['offloaded']} of them on the FPGA   {episode['energy_j']:.3g} J"
    ]
    for name, resource in zip(ROWS, state.resource[lane], strict=True):
        left = max(float(resource["until_s"]) - clock_s, 0.0)
        lines.append(f"{name:<12} {short_time(left) if left else 'idle':>9}   {resource['jobs']} jobs")
    if request["stage"] < ALL_PLACED:
        stage, cell = int(request["stage"]), params.cells[request["cell"]]
        times = " / ".join(short_time(float(cell["time_s"][device, stage])) for device in range(2))
        lines.append(f"to place: {STAGES[stage]} of {about(cell)}: GPU / FPGA {times}")
    return "\n".join(lines)


def _bars(state: State, lane: int, start: float) -> list[tuple[int, int, float, float, int]]:
    """Row, stage, begin, length and request of each kernel and copy that ends after `start`; times are seconds."""
    bars = []
    for n, request in enumerate(state.request[lane]):
        for stage in range(4):
            span = state.span[lane, n, stage]
            begin, end = span["begin_s"], span["end_s"]
            if end < max(start, 0.0):
                continue
            device = (int(request["placed"]) >> stage) & 1
            bars.append((device, stage, begin, end - begin, n))
            length = span["copy_end_s"] - span["copy_begin_s"]
            if length > 0.0:
                bars.append((3 - device, stage, span["copy_begin_s"], length, n))
    return bars


def picture(scenario: Scenario, params: Params, state: State, lane: int) -> NDArray[np.uint8]:
    """A picture of one lane: a Gantt chart of GPU, FPGA and both directions of the link, and the requests in the system.

    Args:
        scenario: the settings.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: the lane that is drawn.

    Returns:
        The picture, uint8 [520, 860, 3].
    """
    episode, requests = state.lane[lane], state.request[lane]
    clock, mean_s = float(episode["clock_s"]), float(params.config[0]["mean_s"])
    scale, unit = (1.0, "s") if mean_s >= 0.5 else (1e3, "ms") if mean_s >= 5e-4 else (1e6, "us")
    start = max(clock - WINDOW * mean_s, 0.0)
    stop = max(clock, float(state.resource["until_s"][lane].max()), start + WINDOW * mean_s)
    stop = min(stop, start + 2.5 * WINDOW * mean_s)
    figure = blank(WIDTH, HEIGHT)
    figure.subplots_adjust(left=0.11, right=0.98, top=0.86, bottom=0.09)
    chart, crowd = figure.subplots(2, 1, sharex=True, gridspec_kw={"hspace": 0.18, "height_ratios": [2.6, 1]})
    for row, stage, begin, length, n in _bars(state, lane, start):
        booked = begin > clock
        chart.barh(
            row,
            scale * length,
            left=scale * begin,
            height=0.72,
            color=COLOURS[stage],
            alpha=0.45 if booked else 1.0,
            edgecolor="white",
            linewidth=0.5,
        )
        if length > 0.05 * (stop - start):
            middle = max(begin, start) + 0.5 * (min(begin + length, stop) - max(begin, start))
            chart.text(scale * middle, row, str(n), ha="center", va="center", fontsize=7, color="white")
    for axis in (chart, crowd):
        axis.axvline(scale * clock, color="#CC0000", linewidth=1)
        axis.set_xlim(scale * start, scale * stop)
    chart.set_yticks(range(4), ROWS)
    chart.set_ylim(3.6, -0.6)
    for stage, name in enumerate(STAGES):
        chart.barh(-5, 0, color=COLOURS[stage], label=name)
    chart.legend(fontsize=7, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False)
    leaves = np.where(requests["stage"] == ALL_PLACED, requests["ready_s"], np.inf)
    moments = np.linspace(start, min(clock, stop), 300)
    inside = [(requests["arrival_s"] <= t).sum() - (leaves <= t).sum() for t in moments]
    crowd.fill_between(scale * moments, inside, step="post", color="#0072B2", alpha=0.35)
    crowd.set(ylabel="requests\ninside", xlabel=f"time, {unit}", ylim=(0, 1.15 * max([*inside, 1])))
    title = (
        f"{short_time(clock)}: {episode['oldest']} of {scenario.requests} done, {episode['energy_j']:.3g} J"
    )
    request = requests[episode["current"]]
    if request["stage"] < ALL_PLACED:
        cell = params.cells[request["cell"]]
        title += f"\nto place: {STAGES[int(request['stage'])]} of request {episode['current']}, {about(cell)}"
    figure.suptitle(title + "\nred: now; pale: booked", fontsize=9, x=0.11, ha="left")
    return pixels(figure, (chart, crowd))
