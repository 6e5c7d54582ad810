"""What the simulations of PipeSDNav and PipeSDTune share: the world of a scenario, its arrays, and what is hidden in it."""

from abc import ABC
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np

from llmgym.core.lanes import Simulation
from llmgym.core.settings import settled
from llmgym.envs.pipesd import bandwidth, draft_tokens
from llmgym.envs.pipesd import hidden as pipesd_hidden
from llmgym.envs.pipesd.draft_tokens import Chain, Cursor
from llmgym.envs.pipesd.estimates import FIRST_LENGTH, MEMORY, Estimate, Log
from llmgym.envs.pipesd.scenarios import COUNTS, Scenario, link_of
from llmgym.envs.pipesd.state import INTERVALS, Client, Config, Episode, Interval, Params, State
from llmgym.envs.pipesd.uplink import Batch, Uplink

NO_CHANGE = 2**60
"""Tokens that no client makes: speeds never change."""
LONG_TRACE = 100
"""A law of more levels is told by their number alone."""


class CloudEdge(Simulation, ABC):
    """A cloud and its clients.

    Args:
        scenario: a name in `known`, or a scenario.
        changes: settings that were given as arguments of their own, by name.
        known: the scenarios of the environment by name.
        invalid_action: what a masked action is: `penalize` or `raise`.
        invalid_cost: price of a masked action, at least 0.
        **numbers: what the scenario does not say of `Config`, or what is to be used instead.

    Attributes:
        scenario: the settings.
        text: the source of tokens.
    """

    scenario: Scenario
    view = "llmgym.envs.pipesd.view"
    hidden: ClassVar[Mapping[str, str]] = pipesd_hidden.HIDDEN
    shown: ClassVar[frozenset[str]] = pipesd_hidden.SHOWN

    def __init__(
        self,
        scenario: str | Scenario,
        changes: Mapping[str, Any],
        known: Mapping[str, Scenario],
        *,
        invalid_action: str,
        invalid_cost: float = 0.0,
        **numbers: float,
    ) -> None:
        super().__init__(invalid_action=invalid_action, invalid_cost=invalid_cost)
        chosen: Scenario = settled(scenario, known, changes, type(self).__name__, ("about",))
        self.scenario = chosen
        self.text = draft_tokens.load(chosen.text)
        link = link_of(chosen)
        packed = {
            "count": COUNTS[chosen.count],
            "gamma_wait_s": chosen.gamma_s if chosen.gamma_wait_s is None else chosen.gamma_wait_s,
            "change_at": NO_CHANGE if chosen.change_at is None else chosen.change_at,
            "alpha_s": link.alpha_s,
            "token_mb": link.token_mb,
            "verify_s": link.verify_s,
            "verify_token_s": link.verify_token_s,
            "energy_weight": 0.0,
            "invalid_cost": self.invalid_cost,
            "step_tokens": 0,
            "steps": 0,
        }
        law, levels = bandwidth.pack(bandwidth.load(chosen.bandwidth), chosen.bandwidth_scale)
        self.params = Params(
            Config.pack(chosen, **{**packed, **numbers}), draft_tokens.pack(self.text), law, levels
        )

    def allocate(self, lanes: int) -> State:
        """New arrays for this number of lanes."""
        chosen = self.scenario
        shape = (lanes, chosen.clients)
        longest = max(chosen.max_draft, FIRST_LENGTH) + 2
        return State(
            lane=Episode.zeros(lanes),
            client=Client.zeros(*shape),
            cursor=Cursor.zeros(*shape),
            link=Uplink.zeros(*shape),
            line=Batch.zeros(*shape, 2 * chosen.max_draft + 8),
            rates=np.zeros((*shape, bandwidth.load(chosen.bandwidth).seconds), np.float32),
            estimate=Estimate.zeros(*shape),
            log=Log.zeros(*shape, MEMORY),
            ends=np.zeros((*shape, longest), np.int32),
            work=np.zeros((lanes, longest)),
            interval=Interval.zeros(lanes, INTERVALS),
        )

    def redraw(self, state: State, lane: int, key: int) -> None:
        """Other verdicts, texts and times to come; see `Simulation.redraw`.

        Args:
            state: arrays of all lanes.
            lane: number of the lane.
            key: seeds the other world, 0 to 2**63 - 1.
        """
        pipesd_hidden.redraw(self.params, state, lane, self.world(key), np.random.default_rng(key))

    def settings(self) -> dict[str, Any]:
        """The scenario with text, bandwidth and link resolved, for reports."""
        chosen, text = self.scenario, self.text
        law = asdict(bandwidth.load(chosen.bandwidth))
        if len(law["levels_mbps"]) > LONG_TRACE:
            law["levels_mbps"] = f"{len(law['levels_mbps'])} seconds"
        plain = asdict(replace(chosen, text=text.name, bandwidth=0.0, link="paper"))
        return plain | {
            "text": asdict(text) if isinstance(text, Chain) else {"name": text.name, **text.about},
            "bandwidth": law,
            "link": asdict(link_of(chosen)),
        }
