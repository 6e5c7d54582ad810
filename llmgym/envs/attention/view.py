"""Pictures of AttentionBudget: which kernel served whom when, what a kernel costs at a length, and how the ledger stands."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.envs.attention.costs import LONGEST, attention_us
from llmgym.envs.attention.kernels import allowed, service_s
from llmgym.envs.attention.scenarios import Scenario
from llmgym.envs.attention.state import Params, State

WIDTH, HEIGHT = 900, 560
EXACT = "#0072B2"
LINEAR = ("#E69F00", "#CC79A7", "#D55E00", "#F0E442", "#009E73", "#56B4E9")
LATE = "#CC0000"
PAST = 30.0
"""How much of the past the picture shows, in mean service times."""
CURVES = 7
"""Kernels whose times are drawn."""


def _family(name: str) -> str:
    """A kernel without its budget of features: `slay` of `slay 2 8 16`."""
    return name.partition(" ")[0]


def _families(scenario: Scenario) -> list[str]:
    """The families of the menu, each once, in its order."""
    return list(dict.fromkeys(_family(name) for name in scenario.menu or ()))


def _colours(scenario: Scenario, params: Params) -> list[str]:
    """A colour for each kernel: blue without loss, others by their family, of which a menu may have thirty members."""
    loss, families = params.tables.kernels["loss"], _families(scenario)
    alone = len(scenario.menu or ()) <= CURVES
    return [
        EXACT if loss[k] == 0.0 else LINEAR[(k if alone else families.index(_family(name))) % len(LINEAR)]
        for k, name in enumerate(scenario.menu or ())
    ]


def _told(scenario: Scenario, kernels: set[int]) -> dict[str, int]:
    """Names for a legend, and a kernel of each: kernels where the menu is short, else their families."""
    menu = scenario.menu or ()
    return {menu[k] if len(menu) <= CURVES else _family(menu[k]): k for k in sorted(kernels, reverse=True)}


def _waiting(state: State, lane: int) -> list[int]:
    """Numbers of the batches that wait, the oldest first."""
    batch, arrived = state.batch[lane], int(state.lane["arrived"][lane])
    return np.flatnonzero(batch["action"][:arrived] < 0).tolist()


def text(scenario: Scenario, params: Params, state: State, lane: int) -> str:
    """One lane in words: the clock, the ledger, and what each kernel would take for the head.

    Args:
        scenario: the settings, with the menu.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: the lane that is told.
    """
    episode, clock_s = state.lane[lane], float(state.lane["clock_s"][lane])
    tokens = float(episode["tokens"])
    mean = float(episode["spent"]) / tokens if tokens else 0.0
    lines = [
        f"{clock_s:.3f} s   served {episode['done']}/{scenario.batches}, {episode['on_time']} on time   "
        f"waiting {len(_waiting(state, lane))}   mean loss {mean:.4f} of {scenario.budget:g} nat"
    ]
    if episode["done"] == scenario.batches:
        return lines[0]
    batch = state.batch[lane, episode["head"]]
    lines.append(
        f"head: {batch['requests']} x {batch['length']:,} tokens, due in {1e3 * (batch['due_s'] - clock_s):.1f} ms, "
        f"accepts {batch['limit']:g} nat"
    )
    splits, menu = len(scenario.splits), scenario.menu or ()
    for action in range(len(menu) * splits):
        if allowed(params, batch, action):
            k = action // splits
            seconds = service_s(params, batch, action, 0.0)
            left = float(batch["due_s"]) - clock_s - seconds
            parts = f" in {scenario.splits[action % splits]}" if splits > 1 else ""
            lines.append(
                f"  {menu[k] + parts:<20} {1e3 * seconds:9.2f} ms   {'late by' if left < 0 else 'spare'} "
                f"{1e3 * abs(left):9.2f} ms   loss {params.tables.kernels['loss'][k]:.4f}"
            )
    return "\n".join(lines)


def picture(scenario: Scenario, params: Params, state: State, lane: int) -> NDArray[np.uint8]:
    """A picture of one lane: what was served when, the waiting batches against the costs of kernels, and the ledger.

    Args:
        scenario: the settings, with the menu.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: the lane that is drawn.

    Returns:
        The picture, uint8 [560, 900, 3].
    """
    episode, clock_s = state.lane[lane], float(state.lane["clock_s"][lane])
    figure = blank(WIDTH, HEIGHT)
    figure.subplots_adjust(left=0.075, right=0.985, top=0.89, bottom=0.085)
    grid = figure.add_gridspec(2, 2, height_ratios=[1.25, 1], hspace=0.36, wspace=0.2)
    served, costs, ledger = (
        figure.add_subplot(grid[0, :]),
        figure.add_subplot(grid[1, 0]),
        figure.add_subplot(grid[1, 1]),
    )
    colours = _colours(scenario, params)
    _draw_batches(served, scenario, params, state, lane, colours)
    _draw_costs(costs, scenario, params, state, lane, colours)
    _draw_ledger(ledger, scenario, params, state, lane)
    tokens = float(episode["tokens"])
    on_time = float(episode["tokens_on_time"]) / tokens if tokens else 0.0
    figure.suptitle(
        f"{clock_s:.2f} s: {episode['done']} of {scenario.batches} batches served, "
        f"{100 * on_time:.0f} % of tokens on time, {len(_waiting(state, lane))} waiting",
        fontsize=9,
        x=0.075,
        ha="left",
    )
    return pixels(figure, (served, costs, ledger))


def _draw_batches(
    axis: Any, scenario: Scenario, params: Params, state: State, lane: int, colours: list[str]
) -> None:
    """A bar for each served batch, as high as its tokens and as wide as its time; grey: waiting, up to its deadline."""
    mean_s, clock_s = float(params.config[0]["mean_s"]), float(state.lane["clock_s"][lane])
    start = max(clock_s - PAST * mean_s, 0.0)
    used: set[int] = set()
    for batch in state.batch[lane][state.batch[lane]["action"] >= 0]:
        if batch["end_s"] < start:
            continue
        k = int(batch["action"]) // len(scenario.splits)
        tokens = float(batch["length"]) * float(batch["requests"]) / 1000.0
        seconds = service_s(params, batch, int(batch["action"]), float(batch["noise"]))
        late = batch["end_s"] > batch["due_s"]
        axis.bar(
            batch["end_s"] - seconds,
            tokens,
            seconds,
            align="edge",
            color=colours[k],
            edgecolor=LATE if late else "white",
            linewidth=1.4 if late else 0.4,
        )
        used.add(k)
    end = clock_s + 0.3 * PAST * mean_s
    for n in _waiting(state, lane):
        batch = state.batch[lane, n]
        tokens = float(batch["length"]) * float(batch["requests"]) / 1000.0
        due = min(max(float(batch["due_s"]), clock_s), end)
        head = n == int(state.lane["head"][lane])
        axis.plot([clock_s, due], [tokens, tokens], color="black" if head else "0.6", linewidth=1.6)
        axis.plot(due, tokens, "|", color="black" if head else "0.6", markersize=9)
    axis.axvline(clock_s, color=LATE, linewidth=1)
    axis.set_xlim(start, end)
    axis.set_ylim(0, None)
    axis.set(
        xlabel="time, s (right of the red line: who waits, up to the deadline; black: the head)",
        ylabel="tokens of the batch, k",
    )
    for name, k in reversed(_told(scenario, used).items()):
        axis.bar(start - 1.0, 0.0, color=colours[k], label=name)
    axis.bar(start - 1.0, 0.0, color="white", edgecolor=LATE, label="late")
    axis.legend(fontsize=7, ncols=8, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False)
    axis.set_xlim(start, end)


def _draw_costs(
    axis: Any, scenario: Scenario, params: Params, state: State, lane: int, colours: list[str]
) -> None:
    """Time of one sequence by its length, for one kernel of each family, and the lengths that wait."""
    lengths = 2.0 ** np.linspace(9, 17, 65)
    for name, k in reversed(_told(scenario, set(range(len(scenario.menu or ())))).items()):
        times = [1e-3 * attention_us(params.tables, k, x, 1, 1) for x in lengths if x <= LONGEST]
        axis.plot(lengths / 1000.0, np.where(np.isfinite(times), times, np.nan), color=colours[k], label=name)
    for n in _waiting(state, lane):
        head = n == int(state.lane["head"][lane])
        axis.axvline(
            float(state.batch[lane, n]["length"]) / 1000.0,
            color="black" if head else "0.75",
            linewidth=1.2 if head else 0.8,
            zorder=0,
        )
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="length of a sequence, thousand tokens (lines: who waits)",
        ylabel="a layer of attention, ms",
    )
    axis.legend(fontsize=6, loc="lower right")


def _draw_ledger(axis: Any, scenario: Scenario, params: Params, state: State, lane: int) -> None:
    """Mean loss per token after each batch, beside the budget."""
    batch = state.batch[lane][state.batch[lane]["action"] >= 0]
    batch = batch[np.argsort(batch["end_s"])]
    tokens = batch["length"].astype(np.float64) * batch["requests"]
    loss = params.tables.kernels["loss"][batch["action"] // len(scenario.splits)]
    mean = np.cumsum(tokens * loss) / np.maximum(np.cumsum(tokens), 1.0)
    axis.plot(batch["end_s"], 1e3 * mean, color=LINEAR[0])
    axis.axhline(1e3 * scenario.budget, color=LATE, linewidth=1, linestyle="--", label="budget")
    top = 1e3 * max(2.0 * scenario.budget, float(mean.max(initial=0.0)))
    axis.set(xlabel="time, s", ylabel="mean loss per token, mnat", ylim=(0, 1.1 * top))
    axis.legend(fontsize=7, frameon=False, loc="upper right")
