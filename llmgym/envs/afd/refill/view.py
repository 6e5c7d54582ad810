"""Pictures of AFDRefill: the instances with their slots, who waits for whom, and the waiting requests."""

import numpy as np
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.envs.afd.refill.scenarios import Scenario
from llmgym.envs.afd.refill.state import Params, State

WIDTH, HEIGHT = 760, 520
WIDE = 16
"""With more attention instances than this the bars have no names."""
SHOWN_CYCLES = 300
"""Cycles that fit into the picture."""
SHOWN_PROMPTS = 12
"""Waiting requests that fit into the line of text."""


def text(scenario: Scenario, params: Params, state: State, lane: int) -> str:
    """A line of state, a bar for the load of each instance, and the prompts that wait.

    Args:
        scenario: the settings.
        params: of all lanes.
        state: of all lanes.
        lane: which one.

    Returns:
        Lines of text without a line feed at the end.
    """
    episode = state.lane[lane]
    loads = state.table["load"][lane]
    most = max(float(loads.max()), 1.0)
    free = scenario.batch - state.table["occupied"][lane]
    bars = [
        f"A{i + 1:<3} [{('#' * round(40 * load / most)).ljust(40, '.')}] {int(load):9,} tokens, {int(free[i])} free"
        for i, load in enumerate(loads)
    ]
    waiting = ", ".join(str(int(p)) for p in state.waiting["prompt"][lane][:SHOWN_PROMPTS])
    return "\n".join(
        [
            f"cycle {episode['cycle']:5d}/{scenario.cycles}   tau {episode['tau']:.1f} cycles   "
            f"excess {episode['excess'] / max(episode['cycle'], 1):.2f} cycles",
            *bars,
            f"waiting prompts: {waiting}",
        ]
    )


def picture(scenario: Scenario, params: Params, state: State, lane: int) -> NDArray[np.uint8]:
    """Time of each instance with what it waits, waiting requests, slowest and mean over time: uint8 [520, 760, 3].

    Args:
        scenario: the settings.
        params: of all lanes.
        state: of all lanes.
        lane: which one.

    Returns:
        The picture, RGB, uint8 [height, width, 3].
    """
    episode, config = state.lane[lane], params.config[0]
    times = config["alpha_attention"] * state.table["load"][lane] + config["beta_attention"]
    comm = float(config["comm"])
    ffn = float(config["alpha_ffn"] * (scenario.ratio * scenario.batch) + config["beta_ffn"])
    longest = max(float(times.max()), ffn, comm)
    figure = blank(WIDTH, HEIGHT)
    figure.subplots_adjust(left=0.09, right=0.98, top=0.88, bottom=0.09)
    step, line, past = figure.subplots(3, 1, gridspec_kw={"hspace": 0.6, "height_ratios": [1.4, 1, 1]})
    heights = np.concatenate([times, [comm, ffn]])
    colours = ["#0072B2"] * len(times) + ["#E69F00", "#009E73"]
    step.bar(range(len(heights)), heights, color=colours)
    step.bar(
        range(len(heights)),
        longest - heights,
        bottom=heights,
        color="#DDDDDD",
        hatch="///",
        edgecolor="#BBBBBB",
    )
    free = scenario.batch - state.table["occupied"][lane]
    for i in np.flatnonzero(free):
        step.text(i, 0.03 * longest, f"+{free[i]}", ha="center", fontsize=8, color="white", weight="bold")
    names = [f"A{i + 1}" for i in range(len(times))] if len(times) <= WIDE else [""] * len(times)
    step.set_xticks(range(len(heights)), [*names, "link", "FFN"])
    step.set(ylabel="cycles", ylim=(0, 1.08 * longest))
    waiting = state.waiting[lane]
    colours = ["#D55E00" if request["skips"] >= scenario.patience else "#E69F00" for request in waiting]
    line.bar(range(len(waiting)), waiting["prompt"], color=colours, label="prompt (red: due)")
    if scenario.information != "none":
        line.bar(
            range(len(waiting)),
            waiting["predicted"],
            bottom=waiting["prompt"],
            color="#56B4E9",
            label="predicted steps",
        )
    line.set(ylabel="tokens", xlabel="waiting requests, oldest first")
    line.set(xlim=(-0.6, len(waiting) - 0.4), ylim=(0, 1.45 * line.get_ylim()[1]))
    line.legend(fontsize=7, loc="upper right", ncols=2)
    done = int(episode["cycle"])
    first = max(done - SHOWN_CYCLES, 0)
    rows = state.history[lane, first:done]
    past.plot(range(first, done), rows["slowest"], color="#D55E00", label="slowest instance")
    past.plot(range(first, done), rows["mean"], color="#0072B2", label="mean")
    past.axhline(max(ffn, comm), color="#009E73", linestyle="--", linewidth=1, label="FFN or link")
    past.set(ylabel="attention\n(cycles)", xlabel="cycle", xlim=(first, first + SHOWN_CYCLES))
    low, high = past.get_ylim()
    past.set_ylim(low, high + 0.35 * (high - low))
    past.legend(fontsize=7, loc="upper right", ncols=3)
    step.set_title(
        f"cycle {done}/{scenario.cycles}    tau {episode['tau']:.1f} cycles    {episode['left']} slots to fill    "
        f"excess {episode['excess'] / max(done, 1):.2f} cycles a cycle\n"
        "one step: attention (white: free slots), link and FFN; hatched: waits for the slowest",
        fontsize=9,
    )
    return pixels(figure, (step, line, past))
