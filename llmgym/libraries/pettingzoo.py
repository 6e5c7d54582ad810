"""PipeSDNav for PettingZoo: every client is an agent.

    from llmgym.libraries.pettingzoo import PipeSDClients
    env = PipeSDClients(scenario="shared", tokens=200)
    observations, infos = env.reset(seed=0)

The other environments have one decider, so they have no such view.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from numpy.typing import NDArray

from llmgym.core.lanes import observing
from llmgym.core.wrappers import PETTINGZOO
from llmgym.envs.pipesd.nav.env import PipeSDNavEnv
from llmgym.envs.pipesd.state import CONTINUE, DONE
from llmgym.errors import InvalidAction, MissingExtra, ResetNeeded

try:
    from pettingzoo import ParallelEnv
except ImportError as error:
    raise MissingExtra("PipeSDClients", "pettingzoo") from error


class PipeSDClients(ParallelEnv[str, dict[str, NDArray[Any]], int]):
    """The clients of `llmgym/PipeSDNav-v0` as the agents of a `pettingzoo.ParallelEnv`.

    Agents are `client_0`, `client_1` and so on; one that has made its tokens is terminated and leaves `agents`. In every step one
    client has a token to decide on, `turn`. Its action counts; all others see a mask that allows only 0 (go on), and what they
    choose changes nothing. The clients work together: each agent gets the reward of the environment, so the one
    that ends last has the return of the single environment with the same actions.

    An observation is a `Dict`: `observation`, float32 [d], what that client sees now, and `action_mask`, int8 [3]. The info of an
    agent has `dt`, the simulated seconds of the step, and at the end of the episode `metrics`.

    Args:
        render_mode: `rgb_array`, `ansi` or None.
        **kwargs: arguments of `llmgym.envs.pipesd.nav.env.PipeSDNavEnv`; `scenario` is `shared` unless another is given.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "llmgym/PipeSDNav-v0",
        "render_modes": ["rgb_array", "ansi"],
        "is_parallelizable": True,
    }

    def __init__(self, *, render_mode: str | None = None, **kwargs: Any) -> None:
        self.env = PipeSDNavEnv(render_mode=render_mode, **{"scenario": "shared", **kwargs})
        self.render_mode = render_mode
        simulation: Any = self.env.simulation
        self._observe = observing(simulation)
        self.possible_agents = [f"client_{k}" for k in range(simulation.scenario.clients)]
        self.agents: list[str] = []
        actions = simulation.mask_size
        self.observation_spaces = {
            agent: Dict(
                {
                    PETTINGZOO[0]: simulation.layout.box(),
                    PETTINGZOO[1]: Box(0, 1, (actions,), np.int8),
                }
            )
            for agent in self.possible_agents
        }
        self.action_spaces = {agent: gymnasium.spaces.Discrete(actions) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        """The space of an agent's observations, always the same object."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        """The space of an agent's actions, always the same object."""
        return self.action_spaces[agent]

    @property
    def turn(self) -> str | None:
        """The agent whose action counts in the next step; None where the episode is over. Raises `ResetNeeded`."""
        self.env._check_began("turn")
        k = int(self._episode["turn"])
        return self.possible_agents[k] if k >= 0 else None

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, dict[str, NDArray[Any]]], dict[str, dict[str, Any]]]:
        """Start an episode.

        Args:
            seed: as for the single environment, whose worlds are the same.
            options: not used.

        Returns:
            Observations and infos by agent.
        """
        _, info = self.env.reset(seed=seed)
        self.agents = list(self.possible_agents)
        return self._see(self.agents, info), {agent: {"dt": 0.0} for agent in self.agents}

    def step(
        self, actions: dict[str, int]
    ) -> tuple[
        dict[str, dict[str, NDArray[Any]]],
        dict[str, float],
        dict[str, bool],
        dict[str, bool],
        dict[str, dict[str, Any]],
    ]:
        """Do what the client whose turn it is has chosen, and run until the next token.

        Args:
            actions: by agent; that of `turn` has to be there.

        Returns:
            Observations, rewards, terminations, truncations and infos by agent, for all that were there before the step.

        Raises:
            InvalidAction: the agent whose turn it is has no action, or one outside the space.
            ResetNeeded: there is no running episode.
        """
        turn = self.turn
        if turn is None:
            raise ResetNeeded("the episode has ended; call reset() first")
        if turn not in actions:
            raise InvalidAction(f"actions of {sorted(actions)}: expected one of {turn!r}, whose turn it is")
        _, reward, terminated, truncated, info = self.env.step(actions[turn])
        there = self.agents
        phases = self.env.lanes.state.client["phase"][0]
        ended = {agent: terminated or bool(phases[self._number(agent)] == DONE) for agent in there}
        told: dict[str, Any] = {name: info[name] for name in ("dt", "metrics") if name in info}
        self.agents = [agent for agent in there if not (ended[agent] or truncated)]
        return (
            self._see(there, info),
            dict.fromkeys(there, reward),
            ended,
            dict.fromkeys(there, truncated),
            {agent: dict(told) for agent in there},
        )

    @property
    def _episode(self) -> Any:
        return self.env.lanes.state.lane[0]

    def _number(self, agent: str) -> int:
        return self.possible_agents.index(agent)

    def _see(self, agents: list[str], info: dict[str, Any]) -> dict[str, dict[str, NDArray[Any]]]:
        """What each of these clients sees now: the kernel tells it of the one whose turn it is."""
        turn = int(self._episode["turn"])
        seen = {}
        for agent in agents:
            k = self._number(agent)
            row = np.zeros(self.env.simulation.layout.size, np.float32)
            self._episode["turn"] = k
            self._observe(self.env.lanes.state, self.env.simulation.params, 0, row)
            mask = np.zeros(self.env.simulation.mask_size, np.int8)
            mask[CONTINUE] = 1
            seen[agent] = {
                PETTINGZOO[0]: row,
                PETTINGZOO[1]: info["action_mask"].copy() if k == turn else mask,
            }
        self._episode["turn"] = turn
        return seen

    def render(self) -> Any:
        """A picture (uint8 [height, width, 3]) or a text of the current state, as `render_mode` says."""
        return self.env.render()

    def close(self) -> None:
        """Release the environment."""
        self.env.close()
