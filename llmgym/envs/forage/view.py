"""Pictures of Forage: the document with what was opened, the candidates of the key in focus, E, and what was paid."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.core.canvas import blank, pixels
from llmgym.envs.forage.scenarios import Scenario
from llmgym.envs.forage.state import (
    GAPS,
    NOTHING,
    OPENED,
    OUTDATED,
    SCANNED,
    SUFFICIENT,
    TERMS,
    TRUE,
    Params,
    State,
)

WIDTH, HEIGHT = 900, 560
COLOURS = {
    "listed": "#9AA0A6",
    "scanned": "#56B4E9",
    "opened": "#E69F00",
    "right": "#009E73",
    "outdated": "#CC79A7",
}
VERDICTS = {SUFFICIENT: "sufficient", GAPS: "gaps"}


def _claim(key: Any) -> str:
    """What E holds for a key, or what is pending, in words for people, who may see whether it is true."""
    if key["claim"] != NOTHING:
        truth = "true" if key["claim"] == TRUE else "outdated" if key["claim"] == OUTDATED else "false"
        return f"{truth}, part {key['source']}" + (
            f", {key['support']} sources" if key["support"] > 1 else ""
        )
    return "pending" if key["pending"] != NOTHING else "missing"


def text(scenario: Scenario, params: Params, state: State, lane: int) -> str:
    """One lane in words: what was paid, E, and the candidates of the key in focus.

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
        f"{episode['tokens'] / 1000:.1f}k tokens, {episode['clock_s']:.1f} s   {episode['greps']} searches, "
        f"{episode['scans']} scans, {episode['reads']} reads, {episode['retrievals']} retrievals, "
        f"{episode['evaluations']} evaluations"
        f"   last evaluation: {VERDICTS.get(int(episode['verdict']), 'none')}"
    ]
    for j in range(int(episode["facts"])):
        key = state.key[lane, j]
        mark = ">" if j == episode["focus"] else " "
        lines.append(f"{mark} fact {j}: {_claim(key)}; {key['term']} of {TERMS} terms used")
    for slot in range(int(episode["candidates"])):
        passage = state.passage[lane, episode["focus"], state.slot[lane, slot]]
        scan = f"{passage['scan']:+.1f}" if passage["seen"] & SCANNED else "   -"
        lines.append(
            f"  {slot:>2} part {passage['chunk']:>4}  line {passage['snippet']:+.1f}  scan {scan}  posterior "
            f"{state.posterior[lane, slot]:.2f}"
        )
    if episode["answers"]:
        lines.append(f"answered: right with probability {episode['accuracy']:.2f}")
    return "\n".join(lines)


def _document(axis: Any, scenario: Scenario, state: State, lane: int) -> None:
    """The document as a strip for each fact: where it stands, what was listed, scanned and opened."""
    episode = state.lane[lane]
    facts = int(episode["facts"])
    for j in range(facts):
        key, table = state.key[lane, j], state.passage[lane, j, : state.key[lane, j]["passages"]]
        used = (1 << int(key["term"])) - 1
        axis.barh(j, scenario.chunks, left=-0.5, height=0.62, color="#F1F3F4", zorder=0)
        for passage in table:
            seen = int(passage["seen"])
            kind = "opened" if seen & OPENED else "scanned" if seen & SCANNED else "listed"
            if seen or passage["listed"] & used:
                axis.plot(passage["chunk"], j, "|", color=COLOURS[kind], markersize=17, markeredgewidth=2.2)
            if passage["claims"] in (TRUE, OUTDATED):
                mark = COLOURS["right" if passage["claims"] == TRUE else "outdated"]
                axis.plot(passage["chunk"], j - 0.42, "v", color=mark, markersize=6)
        axis.text(1.01 * scenario.chunks, j, _claim(key), va="center", fontsize=8)
    for kind in ("listed", "scanned", "opened"):
        axis.plot([], [], "|", color=COLOURS[kind], markersize=9, markeredgewidth=2.2, label=kind)
    for kind in ("right", "outdated"):
        axis.plot(
            [], [], "v", color=COLOURS[kind], markersize=6, label=f"{kind} passage (hidden)", linestyle=""
        )
    if episode["next_chunk"] > 0:
        axis.axvline(episode["next_chunk"] % scenario.chunks, color="#CC0000", linewidth=1)
    axis.set(xlim=(-1, scenario.chunks), ylim=(facts - 0.5, -0.75), xlabel="part of the document")
    axis.set_yticks(range(facts), [f"fact {j}{' *' if j == episode['focus'] else ''}" for j in range(facts)])
    axis.legend(fontsize=7, ncols=5, loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False)


def picture(scenario: Scenario, params: Params, state: State, lane: int) -> NDArray[np.uint8]:
    """A picture of one lane: the document fact by fact, the candidates with their posteriors, and what was paid for what.

    Args:
        scenario: the settings.
        params: what all lanes share.
        state: arrays of all lanes.
        lane: the lane that is drawn.

    Returns:
        The picture, uint8 [560, 900, 3].
    """
    episode = state.lane[lane]
    figure = blank(WIDTH, HEIGHT)
    figure.subplots_adjust(left=0.08, right=0.8, top=0.85, bottom=0.09)
    document, candidates = figure.subplots(2, 1, gridspec_kw={"hspace": 0.4, "height_ratios": [1.3, 1]})
    _document(document, scenario, state, lane)
    count = int(episode["candidates"])
    table = state.passage[lane, episode["focus"]]
    for slot in range(count):
        passage = table[state.slot[lane, slot]]
        colour = COLOURS["scanned" if passage["seen"] & SCANNED else "listed"]
        candidates.bar(slot, state.posterior[lane, slot], color=colour)
        candidates.text(
            slot, state.posterior[lane, slot], f"{passage['chunk']}", ha="center", va="bottom", fontsize=7
        )
    candidates.bar(count, episode["null"], color="#DADCE0", hatch="//", edgecolor="white")
    candidates.set_xticks([*range(count), count], [*map(str, range(count)), "none\nof them"])
    candidates.set(
        ylim=(0, 1.12),
        xlim=(-0.6, max(count, 12) + 0.6),
        ylabel=f"posterior, fact {episode['focus']}",
        xlabel="candidate (above it: its part)",
    )
    chain = "a chain of" if episode["chain"] and episode["facts"] > 1 else "a question of"
    title = (
        f"{chain} {episode['facts']} facts on {scenario.chunks * scenario.chunk_tokens:,} tokens: "
        f"{episode['tokens'] / 1000:.1f}k tokens paid, {episode['clock_s']:.1f} s; {episode['greps']} searches, "
        f"{episode['scans']} scans, {episode['reads']} reads"
    )
    if episode["verdict"] in VERDICTS:
        title += f"; last evaluation: {VERDICTS[int(episode['verdict'])]}"
    if episode["answers"]:
        title += f"\nanswered: right with probability {episode['accuracy']:.2f}"
    figure.suptitle(title, fontsize=9, x=0.08, ha="left")
    return pixels(figure, (document, candidates))
