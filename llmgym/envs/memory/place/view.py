"""Pictures of MemPlace: the stages of the request on both devices, what every placement would take, and what has been gained."""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.envs.memory.law import STAGES
from llmgym.envs.memory.place.scenarios import Scenario
from llmgym.envs.memory.place.state import Params, State
from llmgym.envs.memory.placement import PLACEMENTS, Cell, costs, letters
from llmgym.envs.memory.published import NAMES

WIDTH, HEIGHT = 760, 520


def about(cell: Cell) -> str:
    """Workload, size and batch of a request in words."""
    size = float(cell["size"])
    return f"{NAMES[cell['workload']]}, {size:,.0f} entries, batch {cell['batch']}"


def short_time(seconds: float) -> str:
    """A time in words, with three digits and the unit that suits: s, ms or us."""
    if seconds >= 1.0:
        return f"{seconds:.3g} s"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"


def text(scenario: Scenario, params: Params, state: State, lane: int) -> str:
    """One lane in words: a line of state, the stages on both devices, and the best placements by predicted times.

    Args:
        scenario: the settings.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: the lane that is told.

    Returns:
        Lines of text without a line feed at the end.
    """
    episode = state.lane[lane]
    cell = params.cells[episode["cell"]]
    rows = costs(cell, params.links, float(episode["scale"]))[:, 0]
    order = np.argsort(rows)[:4]
    stages = "   ".join(
        f"{name} {short_time(float(cell['time_s'][0, i]))} / {short_time(float(cell['time_s'][1, i]))}"
        if not (cell["empty"] >> i) & 1
        else f"{name} -"
        for i, name in enumerate(STAGES)
    )
    best = ", ".join(f"{letters(int(i))} {short_time(float(rows[i]))}" for i in order if np.isfinite(rows[i]))
    return "\n".join(
        [
            f"request {episode['request']:4d}/{scenario.requests}   "
            f"speed-up {np.exp(episode['log_speedup'] / max(episode['request'], 1)):.3f}   "
            f"regret {episode['regret'] / max(episode['request'], 1):.4f}",
            f"{about(cell)}, link x {episode['scale']:.2g}",
            f"GPU / FPGA: {stages}",
            f"predicted: {best}",
        ]
    )


def picture(scenario: Scenario, params: Params, state: State, lane: int) -> NDArray[np.uint8]:
    """A picture of one lane: stages on both devices, every placement by predicted times, and speed-ups over the episode.

    Args:
        scenario: the settings.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: the lane that is drawn.

    Returns:
        The picture, uint8 [520, 760, 3].
    """
    episode = state.lane[lane]
    cell = params.cells[episode["cell"]]
    rows = costs(cell, params.links, float(episode["scale"]))
    unit, scale = (
        ("s", 1.0) if cell["gpu_s"] >= 1.0 else ("ms", 1e3) if cell["gpu_s"] >= 1e-3 else ("us", 1e6)
    )
    figure = blank(WIDTH, HEIGHT)
    figure.subplots_adjust(left=0.1, right=0.98, top=0.87, bottom=0.09)
    stages, placements, past = figure.subplots(
        3, 1, gridspec_kw={"hspace": 0.75, "height_ratios": [1, 1.3, 1]}
    )
    ticks = np.arange(4)
    stages.bar(ticks - 0.18, scale * cell["time_s"][0], 0.34, color="#0072B2", label="GPU")
    stages.bar(ticks + 0.18, scale * cell["time_s"][1], 0.34, color="#D55E00", label="FPGA")
    stages.set_yscale("log")
    stages.set_xticks(
        ticks, [name + (" (empty)" if (cell["empty"] >> i) & 1 else "") for i, name in enumerate(STAGES)]
    )
    stages.set(ylabel=unit)
    stages.legend(fontsize=7, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False)
    best = int(np.nanargmin(rows[:, 0]))
    height = scale * np.nan_to_num(rows[:, 0])
    copying = scale * np.nan_to_num(rows[:, 1])
    colours = ["#009E73" if i == best else "#56B4E9" for i in range(PLACEMENTS)]
    placements.bar(range(PLACEMENTS), height - copying, color=colours)
    placements.bar(range(PLACEMENTS), copying, bottom=height - copying, color="#E69F00", label="copies")
    placements.axhline(scale * cell["gpu_s"], color="#888888", linestyle="--", linewidth=1, label="GPU alone")
    limit = 3.0 * scale * float(cell["gpu_s"])
    for i in range(PLACEMENTS):
        if not np.isfinite(rows[i, 0]):
            placements.text(i, 0.05 * limit, "not\nallowed", ha="center", fontsize=6, color="#888888")
        elif height[i] > limit:
            placements.text(i, 0.86 * limit, f"{rows[i, 0] / cell['gpu_s']:.3g}x", ha="center", fontsize=6)
    placements.set(ylabel=unit, ylim=(0, limit))
    names = [letters(i).replace(" fused", "\nfused") for i in range(PLACEMENTS)]
    placements.set_xticks(range(PLACEMENTS), names)
    placements.legend(fontsize=7, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False)
    done = int(episode["request"])
    history = state.history[lane, :done]
    gained = np.exp(history["log_speedup"])
    possible = np.exp(history["log_speedup"] + history["regret"]) if scenario.energy_weight == 0.0 else None
    past.bar(range(done), gained, color="#0072B2", label="speed-up")
    if possible is not None:
        past.plot(range(done), possible, "_", color="#D55E00", markersize=6, label="best there was")
    past.axhline(1.0, color="#888888", linestyle="--", linewidth=1)
    past.set(ylabel="x", xlabel="request", xlim=(-0.6, min(scenario.requests, 200) - 0.4))
    past.legend(fontsize=7, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.suptitle(
        f"request {done}/{scenario.requests}: {about(cell)}, link x {episode['scale']:.2g}\n"
        f"speed-up so far {np.exp(episode['log_speedup'] / max(done, 1)):.3f} (geometric mean), "
        f"best placement chosen for {episode['optimal']} of {done}",
        fontsize=9,
    )
    return pixels(figure, (stages, placements, past))
