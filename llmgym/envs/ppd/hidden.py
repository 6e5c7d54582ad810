"""What a router of a PPD cluster cannot know, and how it is drawn anew (see `Simulation.redraw`).

Conversations are known once they have come, a turn's prompt once it comes, its answer when it completes, whether another turn
follows when it comes; that a conversation is not over is known while the user thinks, as `max_inflight` counts those.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.envs.ppd.state import (
    FAILED,
    FAR,
    GATE,
    OVER,
    THINK,
    Conversation,
    Entry,
    Params,
    Request,
    State,
    p_entry,
    turn_number,
)
from llmgym.envs.ppd.turns import refer
from llmgym.envs.ppd.world import OUTPUT_WEIGHT

HIDDEN = {
    "lane.key": "never: pauses to come",
    "lane.conversations": "at the end of the episode",
    "lane.later": "at the end of the episode",
    "lane.checksum": "at the end of the episode",
    "node.at_s": "when the step (or the prefill) ends",
    "node.busy_s": "when the step ends, to whose end it is booked",
    "node.next_finish": "when the answer ends",
    "conversation.arrival_s": "on arrival",
    "conversation.at_s": "when the turn comes, or the delivery ends",
    "conversation.later": "at the end of the episode: where turns are kept",
    "conversation.turns": "when the conversation is over",
    "conversation.p": "on arrival",
    "conversation.d": "on arrival",
    "conversation.prompt": "when the turn comes",
    "conversation.output": "when the answer ends",
    "conversation.predicted": "when the turn comes",
    "conversation.finish": "when the answer ends",
    "conversation.ttft_ref_s": "when the answer ends: it depends on its length",
    "conversation.tpot_ref_s": "when the answer ends: it depends on its length",
    "request.arrival_s": "when the turn comes",
    "request.prompt": "when the turn comes",
    "request.output": "when the answer ends",
    "request.predicted": "when the turn comes",
    "heap": "when turns come and deliveries end: in which order they will",
}
_PAST = {
    "lane": "clock_s current requests gate next open size sent done d_tokens p_tokens output_tokens evictions "
    "rate_sum rate_at_s first_sum first_at_s",
    "node": "head tail waiting oldest newest idle serving backlog_s running decoding active context tick oldest_request_s admitted "
    "mean_step_s steps kv_peak since_s",
    "conversation": "stage turn next route moving request_s first_s work_s context previous base age full",
    # the rows of what is over move as the number of turns to come changes; nothing reads the class once lengths are drawn
    "request": "route ttft_s e2e_s moved_bytes request_class",
}
SHOWN = frozenset(
    {f"{array}.{field}" for array, fields in _PAST.items() for field in fields.split()}
    | {"link", "cache", "running", "scratch"}
)
"""What has happened until the first decision, which nodes and router know."""


def redraw(params: Params, state: State, lane: int, other: State, rng: np.random.Generator) -> None:
    """Give a lane other answers, further turns, pauses and conversations to come, and other ends of what is under way.

    Args:
        params: shared by all lanes.
        state: arrays of all lanes.
        lane: number of the lane.
        other: arrays of one lane, another world.
        rng: draws what the other world does not say.
    """
    episode, conversations, requests = state.lane[lane], state.conversation[lane], state.request[lane]
    now, arrived = float(episode["clock_s"]), int(episode["next"])
    scripts, others = _scripts(state, lane)[:arrived], _scripts(other, 0)
    law = _Law(params, other, others, rng)
    produced = conversations["kept"].copy()
    for node, batch in zip(state.node[lane], state.running[lane], strict=True):
        decoding = batch[: node["decoding"]]
        produced[decoding] = node["tick"] - conversations["base"][decoding]
    for c, script in enumerate(scripts):
        if conversations["stage"][c] not in (OVER, FAILED):
            scripts[c] = law.other_script(conversations[c], script, int(produced[c]))
    begins = other.conversation["arrival_s"][0, : len(others)]
    coming = np.flatnonzero(begins >= now)[: len(conversations) - arrived]
    if len(coming) > 1:
        coming = coming[: rng.integers(1, len(coming) + 1)]
    scripts += [_fresh(others[c]) for c in coming]
    count = total = len(scripts)
    for c, script in enumerate(scripts):
        requests[c] = script[0]
        requests[total : total + len(script) - 1] = script[1:]
        conversations["later"][c], conversations["turns"][c] = total, len(script)
        total += len(script) - 1
    _not_yet_here(conversations[arrived:count], requests[arrived:count], other.conversation[0, coming])
    state.cache[lane, p_entry(arrived) : p_entry(count)] = Entry.blank[0]
    episode["key"], episode["conversations"], episode["later"] = other.lane["key"][0], count, total - count
    episode["checksum"] = _checksum(requests[:total], conversations[:count])
    _redraw_answers(params, state, lane, arrived)
    _redraw_ends(params, state, lane, rng)


def _checksum(requests: NDArray[Any], conversations: NDArray[Any]) -> float:
    """What `llmgym.envs.ppd.world` makes of a world that is told in full."""
    work = requests["prompt"] + OUTPUT_WEIGHT * requests["output"]
    return float(work.sum() + conversations["arrival_s"].sum())


def _scripts(state: State, lane: int) -> list[NDArray[Any]]:
    """Of each conversation of an episode the records of all its turns, the first one included."""
    conversations = state.conversation[lane, : state.lane["conversations"][lane]]
    later, turns = conversations["later"].tolist(), conversations["turns"].tolist()
    return [
        state.request[lane][[c, *range(first, first + count - 1)]]
        for c, (first, count) in enumerate(zip(later, turns, strict=True))
    ]


def _fresh(script: NDArray[Any]) -> NDArray[Any]:
    """Turns that have not come yet."""
    script = script.copy()
    for name in ("route", "ttft_s", "e2e_s", "moved_bytes"):
        script[name] = Request.blank[name]
    return script


class _Law:
    """Turns as they come in another world: their lengths, and how many there are.

    Args:
        params: shared by all lanes.
        other: arrays of one lane, the other world.
        scripts: the turns of its conversations.
        rng: draws among them.
    """

    def __init__(
        self, params: Params, other: State, scripts: list[NDArray[Any]], rng: np.random.Generator
    ) -> None:
        none = other.request[0, :0]
        self._opening = np.concatenate([script[:1] for script in scripts] or [none])
        self._following = _fresh(np.concatenate([script[1:] for script in scripts] or [none]))
        self._turns = [len(script) for script in scripts] or [1]
        self._longest = int(params.config["longest"][0])
        self._rng = rng

    def _turn(self, context: int) -> NDArray[Any]:
        """A turn behind so many tokens: a record [1], or [0] where the conversation ends for its length."""
        if len(self._following) == 0:
            return self._following
        turn = self._following[[self._rng.integers(len(self._following))]]
        turn["predicted"] = np.minimum(turn["predicted"], self._longest - context - turn["prompt"])
        return turn[context + turn["prompt"] + turn["output"] <= self._longest]

    def other_script(self, conversation: Conversation, script: NDArray[Any], produced: int) -> NDArray[Any]:
        """Other turns of a conversation that is not over; the turn that has come stays, with another answer.

        Args:
            conversation: its record.
            script: records of its turns.
            produced: tokens of the present answer that are there; the other answer is longer.

        Returns:
            Records of its turns, those that are over as they were.
        """
        turn, context = int(conversation["turn"]), int(conversation["context"])
        parts = [script[:turn], script[turn : turn + 1]]
        if conversation["stage"] == THINK:  # there is another turn, and nothing more is known of it
            drawn = self._turn(context)
            parts[1] = drawn if len(drawn) else parts[1]
        else:
            answers = (self._opening if turn == 0 else self._following)["output"]
            room = self._longest - context - int(parts[1]["prompt"][0])
            if len(answers):
                parts[1]["output"] = np.clip(self._rng.choice(answers), produced + 1, room)
        for _ in range(turn + 1, int(self._rng.choice(self._turns))):
            context += int((parts[-1]["prompt"] + parts[-1]["output"])[0])
            drawn = self._turn(context)
            if len(drawn) == 0:
                break
            parts.append(drawn)
        return np.concatenate(parts)


def _not_yet_here(conversations: NDArray[Any], opening: NDArray[Any], others: NDArray[Any]) -> None:
    """Write conversations that have not arrived, with what the other world says of them."""
    later, turns = conversations["later"].copy(), conversations["turns"].copy()
    conversations[:] = Conversation.blank[0]
    conversations["later"], conversations["turns"] = later, turns
    for name in ("arrival_s", "p", "d"):
        conversations[name] = others[name]
    for name in ("prompt", "output", "predicted"):
        conversations[name] = opening[name]


def _redraw_answers(params: Params, state: State, lane: int, arrived: int) -> None:
    """Draw anew what running turns and their nodes have of the lengths of answers."""
    conversations, requests = state.conversation[lane], state.request[lane]
    for c, conversation in enumerate(conversations[:arrived]):
        if conversation["stage"] in (THINK, OVER, FAILED):
            continue
        conversation["output"] = requests["output"][turn_number(conversation, c)]
        if conversation["stage"] != GATE and (conversation["turn"] > 0 or params.config["shaped"][0]):
            refer(state, params, lane, c)
    for node, batch in zip(state.node[lane], state.running[lane], strict=True):
        decoding = batch[: node["decoding"]]
        conversations["finish"][decoding] = (
            conversations["base"][decoding] + conversations["output"][decoding]
        )
        node["next_finish"] = conversations["finish"][decoding].min(initial=FAR)


def _redraw_ends(params: Params, state: State, lane: int, rng: np.random.Generator) -> None:
    """Draw anew when steps, prefills, deliveries and pauses under way end."""
    episode, conversations, config = state.lane[lane], state.conversation[lane], params.config[0]
    now = float(episode["clock_s"])
    for node in state.node[lane]:
        if math.inf > node["at_s"] > now:
            more = rng.uniform(-0.5, 1.0) * (float(node["at_s"]) - now)
            node["at_s"] += more
            node["busy_s"] += more
    queue = state.heap[lane, : episode["size"]]
    queued = conversations[queue]
    ends = now + rng.uniform(0.5, 2.0, len(queue)) * (queued["at_s"] - now)
    pause = config["think_s"] * np.exp(config["think_sigma"] * rng.standard_normal(len(queue)))
    # of a pause some is left, nobody knows how much
    ends = np.where(queued["stage"] == THINK, now + rng.uniform(0.0, 1.0, len(queue)) * pause, ends)
    conversations["at_s"][queue] = np.where(queued["at_s"] > now, ends, queued["at_s"])
    queue[:] = queue[np.lexsort((queue, conversations["at_s"][queue]))]  # ordered rows are a heap
