"""Pictures of MemPipe: who was when on the GPU, the FPGA and the links, and how many were in the system."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.envs.memory.law import STAGES
from llmgym.envs.memory.pipe.scenarios import Scenario
from llmgym.envs.memory.pipe.state import ALL_PLACED, Params
from llmgym.envs.memory.place.view import about, short_time

WIDTH, HEIGHT = 860, 520
ROWS = ("GPU", "FPGA", "GPU to FPGA", "FPGA to GPU")
COLOURS = ("#E69F00", "#0072B2", "#56B4E9", "#009E73")
WINDOW = 14.0
"""Mean requests of time that the picture shows before the present."""


def text(scenario: Scenario, params: Params, state: Any, lane: int) -> str:
    """A line of state, a line for each device and link, and what is to be placed.

    Args:
        scenario: the settings.
        params: of the kernels.
        state: of all lanes.
        lane: which one.
    """
    episode = state.lane[lane]
    one = state.request[lane, episode["now"]]
    clock = float(episode["clock"])
    lines = [
        f"{short_time(clock)}   done {episode['first']}/{scenario.requests}   stages {episode['stages']}, "
        f"{episode['offloaded']} of them on the FPGA   {episode['joules']:.3g} J"
    ]
    for name, resource in zip(ROWS, state.resource[lane], strict=True):
        left = max(float(resource["until_s"]) - clock, 0.0)
        lines.append(f"{name:<12} {short_time(left) if left else 'idle':>9}   {resource['jobs']} jobs")
    if one["stage"] < ALL_PLACED:
        stage, cell = int(one["stage"]), params.cells[one["cell"]]
        times = " / ".join(short_time(float(cell["time_s"][device, stage])) for device in range(2))
        lines.append(f"to place: {STAGES[stage]} of {about(cell)}: GPU / FPGA {times}")
    return "\n".join(lines)


def _bars(state: Any, lane: int, start: float) -> list[tuple[int, int, float, float, int]]:
    """Row, stage, begin, length, request of everything that ends after `start`."""
    found = []
    for n, one in enumerate(state.request[lane]):
        for stage in range(4):
            copy_from, copy_to, begin, end = state.span[lane, n, stage]
            if end < max(start, 0.0):
                continue
            device = (int(one["placed"]) >> stage) & 1
            found.append((device, stage, begin, end - begin, n))
            if copy_to > copy_from:
                found.append((3 - device, stage, copy_from, copy_to - copy_from, n))
    return found


def picture(scenario: Scenario, params: Params, mean_s: float, state: Any, lane: int) -> NDArray[np.uint8]:
    """uint8 [520, 860, 3]: a Gantt chart of GPU, FPGA and both directions of the link, and the requests in the system.

    Args:
        scenario: the settings.
        params: of the kernels.
        mean_s: mean time of a request on its own, s.
        state: of all lanes.
        lane: which one.
    """
    episode, requests = state.lane[lane], state.request[lane]
    clock = float(episode["clock"])
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
    title = f"{short_time(clock)}: {episode['first']} of {scenario.requests} done, {episode['joules']:.3g} J"
    one = requests[episode["now"]]
    if one["stage"] < ALL_PLACED:
        cell = params.cells[one["cell"]]
        title += f"\nto place: {STAGES[int(one['stage'])]} of request {episode['now']}, {about(cell)}"
    figure.suptitle(title + "\nred: now; pale: booked", fontsize=9, x=0.11, ha="left")
    return pixels(figure, (chart, crowd))
