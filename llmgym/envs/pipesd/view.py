"""Pictures of PipeSDNav and PipeSDTune: edge, uplink and cloud against time.

`text` and `picture` are what `llmgym.core.lanes.Simulation.view` asks for, with its arguments.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.envs.pipesd.scenarios import Scenario
from llmgym.envs.pipesd.state import (
    AHEAD,
    ASK,
    CHECK,
    DONE,
    DRAFT,
    DROPPED,
    GUESS,
    PROMOTED,
    SEND,
    WAITING,
    Interval,
    Params,
    State,
)

WIDTH, HEIGHT = 820, 420
SPAN_S = 3.0
"""Time that a picture shows, seconds."""
SHOWN = 4
"""Clients that a picture shows, at most."""
NARROWEST_S = 0.045
"""Activities that take longer have their tokens written on them."""
STYLES: dict[int, tuple[str, str, str]] = {
    DRAFT: ("#0072B2", "", "drafting"),
    GUESS: ("#CC79A7", "", "guess of the target's token"),
    AHEAD: ("#56B4E9", "///", "drafting ahead of a verdict"),
    SEND: ("#E69F00", "", "upload"),
    ASK: ("#D55E00", "", "upload with request"),
    CHECK: ("#009E73", "", "verification"),
}


def intervals(state: State, lane: int) -> NDArray[Any]:
    """What is remembered of a lane, the oldest first, with what is still in line on the uplinks: records `Interval`."""
    count, ring = int(state.lane["intervals"][lane]), state.interval[lane]
    rows = ring[:count] if count <= len(ring) else np.roll(ring, -(count % len(ring)), axis=0)
    pending = []
    for k, (link, line) in enumerate(zip(state.link[lane], state.line[lane], strict=True)):
        for place in range(int(link["first"]), int(link["first"] + link["count"])):
            batch = line[place % len(line)]
            activity = SEND if batch["measured"] else ASK
            pending.append((activity, k, batch["tokens"], batch["start_s"], batch["end_s"]))
    return np.concatenate([rows, np.array(pending, Interval.dtype)])


def text(scenario: Scenario, params: Params, state: State, lane: int) -> str:
    """A line of the cloud, and one for each client.

    Args:
        scenario: the settings.
        params: shared by all lanes.
        state: arrays of all lanes.
        lane: number of the lane that is shown.

    Returns:
        Lines of text without a line feed at the end.
    """
    episode, clients, links = state.lane[lane], state.client[lane], state.link[lane]
    now = episode["clock_s"]
    lines = [f"{now:9.3f} s   cloud {'busy' if episode['cloud_free_s'] > now else 'idle'}"]
    for k, client in enumerate(clients):
        phase = (
            "waits" if client["phase"] == WAITING else ("is done" if client["phase"] == DONE else "drafts")
        )
        at_cloud = f", {client['awaited']} with the cloud" if client["phase"] == WAITING else ""
        busy = max(links[k]["free_s"] - now, 0.0)
        lines.append(
            f"client {k} {phase}: {client['block']} drafted, {client['sent']} of them sent{at_cloud}, "
            f"C = {client['product']:.3f}, uplink busy for {busy:.3f} s, {client['made']}/{scenario.tokens} tokens"
        )
    return "\n".join(lines)


def picture(
    scenario: Scenario, params: Params, state: State, lane: int, about: str = ""
) -> NDArray[np.uint8]:
    """The last seconds of each edge, its uplink, and the cloud, with verdicts as lines: uint8 [420, 820, 3]; `about` goes above.

    Args:
        scenario: the settings.
        params: shared by all lanes.
        state: arrays of all lanes.
        lane: number of the lane that is shown.
        about: a line above the picture; none if it is empty.

    Returns:
        The picture, RGB, uint8 [height, width, 3].
    """
    from matplotlib.patches import Patch

    episode = state.lane[lane]
    now = float(episode["clock_s"])
    low = max(now - 0.85 * SPAN_S, 0.0)
    rows = intervals(state, lane)
    rows = rows[(rows["end_s"] >= low) & (rows["client"] < SHOWN)]
    clients = min(scenario.clients, SHOWN)
    names = [f"{part} {k + 1}" if clients > 1 else part for k in range(clients) for part in ("edge", "link")]
    names.append("cloud")
    figure = blank(WIDTH, HEIGHT)
    axis = figure.add_axes((0.08, 0.23, 0.9, 0.65))
    for row in rows:
        activity, client = int(row["activity"]), int(row["client"])
        if activity in (PROMOTED, DROPPED):
            colour = "#009E73" if activity == PROMOTED else "#BB0000"
            axis.plot([row["start_s"]] * 2, [2 * client - 0.45, 2 * client + 1.45], color=colour, linewidth=2)
            if row["tokens"]:
                sign = "+" if activity == PROMOTED else "-"
                axis.text(
                    row["start_s"],
                    2 * client - 0.47,
                    f"{sign}{row['tokens']}",
                    color=colour,
                    fontsize=7,
                    ha="center",
                )
            continue
        place = 2 * clients if activity == CHECK else 2 * client + (activity in (SEND, ASK))
        colour, hatch, _ = STYLES[activity]
        width = row["end_s"] - row["start_s"]
        axis.barh(
            place,
            width,
            left=row["start_s"],
            height=0.7,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.6,
        )
        if activity in (SEND, ASK, CHECK) and width > NARROWEST_S and row["start_s"] >= low:
            axis.text(
                row["start_s"] + width / 2,
                place,
                int(row["tokens"]),
                color="white",
                fontsize=7,
                ha="center",
                va="center",
                clip_on=True,
            )
    axis.axvline(now, color="black", linewidth=1, linestyle=":")
    axis.set_yticks(range(len(names)), names)
    axis.set(ylim=(2 * clients + 0.6, -0.85), xlim=(low, low + SPAN_S), xlabel="s")
    handles = [Patch(facecolor=c, hatch=h, edgecolor="white", label=label) for c, h, label in STYLES.values()]
    handles += [
        Patch(color="#009E73", label="waiting tokens promoted"),
        Patch(color="#BB0000", label="dropped"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=4, fontsize=7, frameon=False)
    made, output = state.client["made"][lane].sum(), state.client["output"][lane].sum()
    verdicts = state.client["verdicts_all"][lane].sum()
    axis.set_title(
        f"{now:.2f} s    {made}/{scenario.tokens * scenario.clients} tokens    {verdicts} verdicts for {output} tokens    "
        f"{1000 * now * scenario.clients / max(made, 1):.0f} ms per token    {episode['energy_j']:.0f} J"
        + (f"\n{about}" if about else ""),
        fontsize=9,
    )
    return pixels(figure, (axis,))
