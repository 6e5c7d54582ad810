"""Another truth behind the same observations: where the facts are, which claims are true, what scores and evaluations are to come.

What was shown stays as it was: how many passages a term listed, their scores, which of them made a claim, and whether two claims
agree. The rest is drawn anew, in proportion to the posteriors that the scores leave.
"""

from typing import Any

import numpy as np

from llmgym.envs.forage.candidates import order
from llmgym.envs.forage.state import KEYS, NOTHING, OPENED, OUTDATED, PASSAGES, SCANNED, TRUE, WRONG, State

_TURNS = 0.7
"""How often a claim that was read is another one in the other truth."""


def redraw(simulation: Any, state: State, lane: int, key: int) -> None:
    """Give a lane another truth; see `llmgym.envs.forage.env.Forage.redraw`.

    Args:
        simulation: the environment's.
        state: arrays of all lanes, changed in place.
        lane: which.
        key: seeds the other world.
    """
    other = simulation.world(key)
    rng = np.random.default_rng(key)
    episode = state.lane[lane]
    episode["key"] = other.lane[0]["key"]
    for j in range(KEYS):
        _redraw_key(simulation, state, lane, j, other, rng)
    checksum = episode["facts"] + (1.0 if episode["chain"] else 0.0) + episode["price"]
    for j in range(KEYS):
        live = state.passage[lane, j, : state.key[lane, j]["passages"]]
        checksum += float(
            (live["chunk"].astype(np.float64) + live["listed"] + 0.001 * live["claims"] + live["line"]).sum()
        )
    episode["checksum"] = checksum
    order(state, simulation.params, lane)


def _redraw_key(
    simulation: Any, state: State, lane: int, j: int, other: State, rng: np.random.Generator
) -> None:
    """Draw the passages of a key anew; keep those that were shown, with what was shown of them."""
    key, config = state.key[lane, j], simulation.params.config[0]
    mine = state.passage[lane, j, : key["passages"]].copy()
    theirs = other.passage[0, j, : other.key[0, j]["passages"]].copy()
    used = (1 << int(key["term"])) - 1
    shown = (mine["seen"] != 0) | ((mine["listed"] & used) != 0)
    kept = mine[shown]
    _turn_claims(key, kept, rng)
    opened = (kept["seen"] & OPENED) != 0
    scanned = (kept["seen"] & SCANNED) != 0
    for at in np.flatnonzero(~opened & np.isin(kept["claims"], (TRUE, OUTDATED))):
        kept["claims"][at] = NOTHING
        kept["line"][at] = kept["snippet"][at]
    kept["listed"] &= used
    kept["glance"] = np.where(scanned, kept["scan"], rng.normal(size=len(kept)))
    kept["rated"] = np.where(opened, kept["rated"], rng.normal(size=len(kept)))
    if not (kept["claims"] == TRUE).any():
        _find(config, key, kept, ~opened, theirs, rng)
    right = bool((kept["claims"] == TRUE).any())
    # what was not shown comes from the other world; there is one right passage more only where there was none
    theirs["listed"] &= 255 ^ used
    fresh = theirs[~np.isin(theirs["chunk"], kept["chunk"])]
    speaks = np.isin(fresh["claims"], (TRUE, OUTDATED))
    if right:
        fresh = fresh[fresh["claims"] != TRUE]
    elif not (fresh["claims"] == TRUE).any():
        copy = theirs[:1].copy()
        copy["chunk"] = np.setdiff1d(np.arange(config["chunks"]), [*kept["chunk"], *fresh["chunk"]])[0]
        copy["claims"] = TRUE
        fresh = np.concatenate([copy, fresh])
    speaks = np.isin(fresh["claims"], (TRUE, OUTDATED))
    fresh = fresh[speaks | (fresh["listed"] != 0)]
    table = np.concatenate([kept, fresh])
    # passages that speak of the fact come first, the right ones before all
    rank = np.where(table["claims"] == TRUE, 0, np.where(table["claims"] == OUTDATED, 1, 2))
    table = table[np.argsort(rank, kind="stable")][:PASSAGES]
    state.passage[lane, j] = 0
    state.passage[lane, j, : len(table)] = table
    key["passages"] = len(table)


def _turn_claims(key: Any, kept: Any, rng: np.random.Generator) -> None:
    """Perhaps let the claim in E, or the pending one, be true where it was false, or the other way round."""
    read = int(key["seen_true"]) + int(key["seen_false"])
    before = {int(key["claim"]), int(key["pending"])} - {NOTHING}
    if not before or rng.random() >= _TURNS:
        return
    wrong = [claim for claim in before if claim >= WRONG]
    if TRUE not in before and OUTDATED not in before:
        # one of the wrong ones is right; what was right was misread
        swap = {wrong[0]: TRUE, TRUE: OUTDATED}
    else:
        swap = {TRUE: OUTDATED, OUTDATED: TRUE}
    kept["claims"] = [swap.get(int(claim), int(claim)) for claim in kept["claims"]]
    for name in ("claim", "pending"):
        key[name] = swap.get(int(key[name]), int(key[name]))
    key["seen_true"] = TRUE in (int(key["claim"]), int(key["pending"]))
    key["seen_false"] = max(read - int(key["seen_true"]), 0)


def _find(config: Any, key: Any, kept: Any, free: Any, theirs: Any, rng: np.random.Generator) -> None:
    """Perhaps let one of the passages that were listed and not opened be the right one, as likely as its scores say."""
    if key["term"] == 0 or not free.any():
        return
    listed = float(config["listed"][key["term"] - 1])
    scores = config["snippet_gap"] * kept["snippet"] - 0.5 * config["snippet_gap"] ** 2
    scans = config["scan_gap"] * kept["scan"] - 0.5 * config["scan_gap"] ** 2
    weights = (
        np.exp(scores + np.where(kept["seen"] & SCANNED, scans, 0.0))
        * free
        * listed
        / max(int(key["hits"]), 1)
    )
    chances = np.append(weights, 1.0 - listed)
    at = int(rng.choice(len(chances), p=chances / chances.sum()))
    if at < len(kept):
        kept["claims"][at] = TRUE
        kept["readable"][at] = rng.random() < config["extract"]
        kept["line"][at] = kept["snippet"][at] - config["snippet_gap"]
        if kept["seen"][at] & SCANNED:
            kept["glance"][at] = kept["scan"][at] - config["scan_gap"]
        kept["rank"][at] = theirs["rank"][0]
