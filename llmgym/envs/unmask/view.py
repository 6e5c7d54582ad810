"""Pictures of Unmask: which call revealed which position, what the denoiser says of the rest, and what each call lost."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.envs.unmask.scenarios import Scenario
from llmgym.envs.unmask.state import Params, State

WIDTH, HEIGHT = 860, 560
MASKED_COLOUR, CHOSEN_COLOUR, SURE_COLOUR, UNSURE_COLOUR = "#E6E6E6", "#CC0000", "#0072B2", "#E69F00"
SYMBOLS = "0123456789abcdefghijklmnopqrstuvwxyz"
SHOWN_ROWS = 8
"""Blocks that the picture shows: the present one and those before it."""


def _here(scenario: Scenario, state: State, lane: int) -> int:
    """Number of the block that is being filled; the last one where the text is complete."""
    return min(int(state.lane[lane]["block"]), scenario.tokens // scenario.block - 1)


def _calls_of_blocks(scenario: Scenario, state: State, lane: int) -> NDArray[np.int64]:
    """The call that revealed each position, counted within its block, -1 where none did, int64 [blocks, positions]."""
    calls = state.call_of[lane].astype(np.int64).reshape(-1, scenario.block)
    for row in calls:
        known = row >= 0
        if known.any():
            row[known] -= row[known].min()
    return calls


def text(scenario: Scenario, params: Params, state: State, lane: int) -> str:
    """One lane in words: a line of state, and a line for each block, with the call that revealed each position.

    Args:
        scenario: the settings.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: the lane that is told.

    Returns:
        Lines of text.
    """
    episode = state.lane[lane]
    lines = [
        f"{episode['revealed']}/{scenario.tokens} tokens in {episode['calls']} calls, {episode['clock_s']:.3g} s   "
        f"divergence {episode['kl']:.3g} nats at {episode['price']:.3g} calls a nat"
    ]
    here = _here(scenario, state, lane)
    for number, row in enumerate(_calls_of_blocks(scenario, state, lane)):
        marks = [SYMBOLS[min(call, len(SYMBOLS) - 1)] if call >= 0 else "." for call in row.tolist()]
        if number == here:
            marks = ["+" if chosen else mark for mark, chosen in zip(marks, state.chosen[lane], strict=True)]
        lines.append(f"block {number:>3}  {''.join(marks)}")
    lines.append(". masked, + chosen for the next call, otherwise the call of the block that revealed it")
    return "\n".join(lines)


def _draw_blocks(axis: Any, scenario: Scenario, state: State, lane: int) -> None:
    """The text, a row a block, coloured by the call that revealed each position."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    calls, here = _calls_of_blocks(scenario, state, lane), _here(scenario, state, lane)
    first = max(0, min(here - SHOWN_ROWS + 2, len(calls) - SHOWN_ROWS))
    last = min(first + SHOWN_ROWS, len(calls))
    most = max(int(calls.max()), 4)
    for y, number in enumerate(range(first, last)):
        for x in range(scenario.block):
            call = int(calls[number, x])
            colour: Any = MASKED_COLOUR if call < 0 else colormaps["viridis"](1.0 - call / most)
            axis.add_patch(Rectangle((x, y), 0.94, 0.86, color=colour, linewidth=0))
            if call >= 0 and scenario.block <= 32:
                shade = "white" if call > 0.4 * most else "black"
                axis.text(
                    x + 0.47, y + 0.46, str(call + 1), ha="center", va="center", fontsize=7, color=shade
                )
            if number == here and state.chosen[lane, x]:
                box = Rectangle((x, y), 0.94, 0.86, fill=False, edgecolor=CHOSEN_COLOUR, linewidth=2)
                axis.add_patch(box)
    axis.set(xlim=(-0.06, scenario.block), ylim=(last - first, -0.1))
    axis.set_yticks(np.arange(last - first) + 0.43, [f"block {n + 1}" for n in range(first, last)])
    axis.set_xticks([])
    for side in axis.spines.values():
        side.set_visible(False)
    axis.set_title(
        "the text, a row a block: the call that revealed each position (grey: masked; red: chosen for the next call)",
        fontsize=8,
        loc="left",
    )


def picture(scenario: Scenario, params: Params, state: State, lane: int) -> NDArray[np.uint8]:
    """A picture of one lane: the text by the calls that revealed it, the present block, and what the calls lost.

    Args:
        scenario: the settings.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: the lane that is drawn.

    Returns:
        The picture, uint8 [560, 860, 3].
    """
    episode, positions = state.lane[lane], state.position[lane]
    figure = blank(WIDTH, HEIGHT)
    figure.subplots_adjust(left=0.09, right=0.98, top=0.88, bottom=0.08)
    blocks, law, gaps = figure.subplots(3, 1, gridspec_kw={"hspace": 0.42, "height_ratios": [1.5, 1, 1]})
    _draw_blocks(blocks, scenario, state, lane)
    place = np.arange(scenario.block) + 0.47
    masked = state.masked[lane] == 1
    scale = np.log(params.config[0]["vocabulary"])
    law.bar(
        place[masked],
        positions["confidence"][masked],
        width=0.8,
        color=SURE_COLOUR,
        label="likeliest token, probability",
    )
    law.plot(
        place[masked],
        positions["entropy"][masked] / scale,
        "o",
        color=UNSURE_COLOUR,
        markersize=4,
        label="entropy over ln V",
    )
    for x in place[state.chosen[lane] == 1]:
        law.axvspan(x - 0.47, x + 0.47, color=CHOSEN_COLOUR, alpha=0.15, linewidth=0)
    law.set(xlim=(-0.06, scenario.block), ylim=(0, 1.05), ylabel=f"block {_here(scenario, state, lane) + 1}")
    law.set_xticks([])
    law.legend(fontsize=7, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 0.98), frameon=False)
    law.set_title("what the denoiser says of the masked positions", fontsize=8, loc="left")
    calls = int(episode["calls"])
    lost = state.gap[lane, :calls]
    gaps.bar(np.arange(calls) + 1, lost, width=0.8, color=np.where(lost > 0, UNSURE_COLOUR, SURE_COLOUR))
    gaps.axhline(0, color="black", linewidth=0.5)
    gaps.set(xlim=(0.4, max(calls, 12) + 0.6), ylabel="nats lost", xlabel="call")
    if calls == 0:
        gaps.set_ylim(0, 1)
    figure.suptitle(
        f"{episode['revealed']} of {scenario.tokens} tokens in {calls} calls ({episode['clock_s']:.3g} s)   "
        f"divergence {episode['kl']:.2f} nats   lambda {episode['price']:.3g} calls a nat",
        fontsize=10,
        x=0.09,
        ha="left",
    )
    return pixels(figure, (blocks, law, gaps))
