"""Pictures of a PPD cluster: nodes with their queues, caches and batches, the routes of late, and who waits."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.envs.ppd.scenarios import Scenario
from llmgym.envs.ppd.state import D_WAIT, LOCAL, MOVE, REMOTE, ROLES, P, Params, State, turn_numbers

WIDTH, HEIGHT = 860, 520
SHOWN_ROUTES = 24


def _pending(state: State, lane: int) -> str:
    episode = state.lane[lane]
    if episode["current"] < 0:
        return "no turn waits for its route"
    turn = state.conversation[lane, episode["current"]]
    return (
        f"conversation {episode['current']}, turn {turn['turn'] + 1}: {turn['prompt']} new tokens behind {turn['context']}, "
        f"through P {turn['p']} or on node {turn['d']}?"
    )


def text(scenario: Scenario, params: Params, state: State, lane: int) -> str:
    """Two lines of state, then one for each node.

    Args:
        scenario: the settings.
        params: shared by all lanes.
        state: arrays of all lanes.
        lane: number of the lane.

    Returns:
        The lines.
    """
    kv_capacity = params.config[0]["kv_capacity"]
    episode = state.lane[lane]
    lines = [
        f"t {episode['clock_s']:8.2f} s   {episode['done']} done, {episode['failed']} timed out"
        f"   {episode['open']} conversations open, "
        f"{episode['next'] - episode['gate']} at the gate   {episode['local']} of {episode['later_requests']} later turns local",
        _pending(state, lane),
    ]
    for n, role in enumerate(params.role):
        node = state.node[lane, n]
        if role == P:
            work = "blocked" if node["blocked"] else "busy" if node["serving"] >= 0 else "idle"
            lines.append(
                f"{n} {ROLES[role]:>2} {work:8s} {'=' * min(int(node['waiting']), 60)} {node['waiting']} wait"
            )
            continue
        full = round(30 * (node["active"] + node["idle"]) / kv_capacity)
        used = min(round(30 * node["active"] / kv_capacity), full)
        lines.append(
            f"{n} {ROLES[role]:>2} [{('#' * used + '-' * (full - used)).ljust(30, '.')}] {node['decoding']} decode, "
            f"{node['running'] - node['decoding']} enter, {node['waiting']} wait, {state.link[lane, n]['in_flight']} transfers"
        )
    return "\n".join(lines)


def picture(scenario: Scenario, params: Params, state: State, lane: int) -> NDArray[np.uint8]:
    """P nodes on the left, decoding nodes on the right, transfers between, latest later turns below.

    Args:
        scenario: the settings.
        params: shared by all lanes.
        state: arrays of all lanes.
        lane: number of the lane.

    Returns:
        uint8 [520, 860, 3].
    """
    from matplotlib.patches import Patch, Rectangle

    episode, kv_capacity = state.lane[lane], params.config[0]["kv_capacity"]
    figure = blank(WIDTH, HEIGHT)
    cluster, turns = figure.subplots(2, 1, gridspec_kw={"height_ratios": [2.6, 1], "hspace": 0.12})
    figure.subplots_adjust(left=0.07, right=0.98, top=0.87, bottom=0.07)
    cluster.set(xlim=(0, 10), ylim=(0, 1))
    cluster.axis("off")
    sides = {True: np.flatnonzero(params.role == P), False: np.flatnonzero(params.role != P)}
    middle: dict[int, float] = {}
    for left, here in sides.items():
        for i, n in enumerate(here.tolist()):
            height = 0.8 / max(len(here), 1)
            bottom = 0.93 - (i + 1) * (0.93 / max(len(here), 1)) + 0.05 / len(here)
            middle[n] = bottom + height / 2
            node = state.node[lane, n]
            x = 0.1 if left else 5.2
            cluster.add_patch(
                Rectangle((x, bottom), 2.7 if left else 4.7, height, fill=False, edgecolor="#444444")
            )
            cluster.text(
                x + 0.05, bottom + height - 0.012, f"{ROLES[params.role[n]]} {n}", fontsize=8, va="top"
            )
            if left:
                _prefill_node(cluster, node, x, bottom, height)
            else:
                _decode_node(cluster, kv_capacity, node, x, bottom, height)
    conversations = state.conversation[lane, : episode["conversations"]]
    for n in sides[False].tolist():
        flying = int(state.link[lane, n]["in_flight"])
        here = conversations[conversations["d"] == n]
        sent = (here["moving"] == 1) & np.isin(here["stage"], (MOVE, D_WAIT))
        senders = {int(p) for p in here["p"][sent]}
        for p in senders:
            cluster.annotate(
                "",
                (5.15, middle[n]),
                (2.85, middle[p]),
                arrowprops={"arrowstyle": "->", "color": "#0072B2", "lw": 1.4},
            )
        if flying:
            cluster.text(4.95, middle[n] + 0.02, f"{flying} KV", fontsize=7, color="#0072B2", ha="right")
    if episode["current"] >= 0:
        d = int(state.conversation[lane, episode["current"]]["d"])
        cluster.plot(5.05, middle[d] + 0.06, marker="*", color="#D55E00", markersize=13)
    key = {
        "#E69F00": "P works" if not np.any(state.node["blocked"][lane]) else "P works (red: blocked)",
        "#999999": "a request that waits",
        "#0072B2": "KV cache of running sequences, KV on its way",
        "#9CCBE8": "KV cache that may be used again",
        "#EEEEEE": "free KV cache",
    }
    cluster.legend(
        handles=[Patch(color=colour, label=label) for colour, label in key.items()],
        loc="upper center",
        bbox_to_anchor=(0.5, 1.06),
        ncols=5,
        fontsize=7,
        frameon=False,
        columnspacing=1.2,
        handlelength=1.2,
    )
    figure.suptitle(
        f"t = {episode['clock_s']:.2f} s "
        f"   {episode['open']} conversations open, {episode['next'] - episode['gate']} at the gate    "
        f"{episode['done']} requests "
        f"done, {episode['failed']} timed out\n{_pending(state, lane)}",
        fontsize=9,
    )
    _latest(turns, scenario.ttft_slo_s, state, lane)
    return pixels(figure, (turns,))


def _bar(axis: Any, x: float, y: float, width: float, height: float, colour: str) -> None:
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle((x, y), width, height, color=colour, linewidth=0))


def _prefill_node(axis: Any, node: Any, x: float, bottom: float, height: float) -> None:
    """What P works on (orange; red: blocked), and who waits, a mark each."""
    if node["serving"] >= 0:
        _bar(
            axis,
            x + 2.25,
            bottom + 0.2 * height,
            0.35,
            0.5 * height,
            "#D55E00" if node["blocked"] else "#E69F00",
        )
    waiting = int(node["waiting"])
    for k in range(min(waiting, 24)):
        _bar(axis, x + 2.12 - 0.08 * k, bottom + 0.25 * height, 0.05, 0.4 * height, "#999999")
    axis.text(
        x + 0.4,
        bottom + height - 0.012,
        f"   {waiting} wait, {node['backlog_s']:.2f} s",
        fontsize=7,
        va="top",
    )


def _decode_node(axis: Any, kv_capacity: int, node: Any, x: float, bottom: float, height: float) -> None:
    """The cache (blue: running sequences, pale: conversations that may come back) and the batch in numbers."""
    width = 4.5
    active, idle = (width * float(node[name]) / kv_capacity for name in ("active", "idle"))
    _bar(axis, x + 0.1, bottom + 0.15 * height, width, 0.3 * height, "#EEEEEE")
    _bar(axis, x + 0.1, bottom + 0.15 * height, active, 0.3 * height, "#0072B2")
    _bar(axis, x + 0.1 + active, bottom + 0.15 * height, idle, 0.3 * height, "#9CCBE8")
    for k in range(min(int(node["waiting"]), 40)):
        _bar(axis, x + 0.1 + 0.11 * k, bottom + 0.55 * height, 0.07, 0.15 * height, "#999999")
    entering = int(node["running"] - node["decoding"])
    step = f"{1e3 * node['mean_step_s']:.1f} ms a step" if node["at_s"] < math.inf else "idle"
    axis.text(
        x + 0.4,
        bottom + height - 0.012,
        f"   {node['decoding']} decode, {entering} enter, {node['waiting']} wait, {step}, "
        f"cache {(node['active'] + node['idle']) / kv_capacity:.0%}",
        fontsize=7,
        va="top",
    )


def _latest(axis: Any, ttft_slo_s: float, state: State, lane: int) -> None:
    """TTFT of the later turns that completed last, by route."""
    from matplotlib.patches import Patch

    later = turn_numbers(state, lane)[state.lane["conversations"][lane] :]
    requests = state.request[lane, later]
    done = requests[requests["e2e_s"] >= 0.0]
    done = done[np.argsort(done["arrival_s"] + done["e2e_s"], kind="stable")][-SHOWN_ROUTES:]
    routes = {LOCAL: ("#009E73", "on D"), REMOTE: ("#E69F00", "through P")}
    for route, (colour, _) in routes.items():
        places = np.flatnonzero(done["route"] == route)
        axis.bar(places, 1e3 * done["ttft_s"][places], 0.8, color=colour)
    objective_ms = 1e3 * ttft_slo_s
    axis.axhline(objective_ms, color="#D55E00", linewidth=1)
    axis.set(
        xlim=(-0.6, SHOWN_ROUTES - 0.4),
        xticks=[],
        ylim=(0, 1.4 * max(1e3 * float(done["ttft_s"].max(initial=0.0)), objective_ms)),
        ylabel="TTFT, ms",
        xlabel=f"later turns that completed last, newest right (red: objective); {state.lane['local'][lane]} of "
        f"{state.lane['later_requests'][lane]} on D so far",
    )
    axis.legend(
        handles=[Patch(color=colour, label=label) for colour, label in routes.values()],
        fontsize=7,
        loc="upper left",
        ncols=2,
        frameon=False,
    )
