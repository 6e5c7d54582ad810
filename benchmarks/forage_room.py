"""What is left to gain in Forage: the best tuned rule against rules that know the truth, scenario by scenario.

python benchmarks/forage_room.py --scenarios small paper

`clairvoyant` tries every allowed action in a copy of the world, with all that is hidden as it is, and after it the best tuned rule,
or an answer. It is a lower bound of what knowing the truth is worth; `oracle` is another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

from llmgym import baselines
from llmgym.baselines.rule import Rule
from llmgym.core.lanes import HOLD, LOOK
from llmgym.envs.forage.env import Forage, ForageEnv, ForageVectorEnv
from llmgym.envs.forage.scenarios import SCENARIOS
from llmgym.envs.forage.state import ACTIONS, ANSWER, ANSWER_CONTEXT
from llmgym.evaluation import run_episodes, tuned
from llmgym.evaluation.statistics import bootstrap

ID = "llmgym/Forage-v0"
RULES = ("scout", "corroborate", "hybrid", "top-k", "iterative", "read-all")


@dataclass(frozen=True)
class Arguments:
    """What to measure.

    Attributes:
        scenarios: names; empty: all.
        worlds: on which rules are compared.
        tuning: worlds on which they are tuned.
        seed: of the first world.
        compared: other worlds for rules and oracle, without the clairvoyant.
    """

    scenarios: Sequence[str] = ()
    worlds: int = 30
    tuning: int = 60
    seed: int = 10_000
    compared: int = 600


class Stop(Rule[Forage]):
    """Answer at once, from E or from all that was read."""

    def __init__(self, env: Any, action: int) -> None:
        super().__init__(env, "stop", Forage)
        self._action = action

    def act(self, obs: Any, mask: Any) -> Any:
        """The actions of all lanes."""
        return np.full(len(obs), self._action)


def clairvoyant(scenario: str, rule: str, seed: int) -> float:
    """The return of one world if every action is chosen by trying all of them, each with the rule or an answer after it.

    The best way that was found is gone on until a better one is.
    """
    env = ForageEnv(scenario=scenario)
    tries = ForageVectorEnv(ACTIONS, scenario=scenario)
    after = [baselines.make(rule, tries), Stop(tries, ANSWER), Stop(tries, ANSWER_CONTEXT)]
    tries.reset(seed=0)
    _, info = env.reset(seed=seed)
    total, ended = 0.0, False
    plan: list[int] = []
    promised = -np.inf
    while not ended:
        for policy in after:
            value, way = _best(env, tries, policy, info["action_mask"])
            if value > promised + 1e-9:
                promised, plan = value, way
        _, reward, terminated, truncated, info = env.step(plan.pop(0))
        total, ended = total + reward, terminated or truncated
        promised -= reward
    return total


def _best(env: ForageEnv, tries: ForageVectorEnv, policy: Any, mask: Any) -> tuple[float, list[int]]:
    """The most that an action is worth with a policy after it, and all actions of that way."""
    lanes = tries.lanes
    for copies, array in zip(lanes.state, env.lanes.state):
        copies[:] = array[0]
    lanes.buffers.ended[:] = mask == 0
    lanes.buffers.action[:, 0] = np.arange(ACTIONS)
    lanes.step(LOOK)
    lanes.step(HOLD)
    total = lanes.buffers.reward.copy()
    ways = [lanes.buffers.action[:, 0].copy()]
    policy.reset(np.ones(ACTIONS, np.bool_))
    while not lanes.buffers.ended.all():
        lanes.buffers.action[:, 0] = policy.act(lanes.buffers.obs, lanes.buffers.mask)
        ways.append(lanes.buffers.action[:, 0].copy())
        lanes.step(HOLD)
        total += lanes.buffers.reward
    total[mask == 0] = -np.inf
    best = int(total.argmax())
    return float(total[best]), [int(actions[best]) for actions in ways]


def main(arguments: Arguments) -> None:
    """Print a row for each scenario."""
    print("| scenario | best tuned rule | its return | clairvoyant | oracle | other rules |")
    print("|---|---|---|---|---|---|")
    for scenario in arguments.scenarios or SCENARIOS:
        names = tuned(
            ID, RULES, episodes=arguments.tuning, seed=arguments.seed, progress=False, scenario=scenario
        )
        kwargs = {"scenario": scenario}
        means = {
            name: run_episodes(ID, name, arguments.compared, arguments.seed, kwargs).returns
            for name in [*names, "oracle"]
        }
        best = max(names, key=lambda name: means[name].mean())
        with_truth = np.array(
            [clairvoyant(scenario, best, arguments.seed + i) for i in range(arguments.worlds)]
        )
        same = means[best][: arguments.worlds]
        gained = bootstrap(with_truth - same)
        others = ", ".join(f"`{name}` {means[name].mean():.3f}" for name in names if name != best)
        print(
            f"| `{scenario}` | `{best}` | {means[best].mean():.3f} ({same.mean():.3f} on {arguments.worlds}) "
            f"| {np.mean(with_truth):.3f}, {np.mean(with_truth - same):.3f} [{gained.low:.3f}, {gained.high:.3f}] more "
            f"| {means['oracle'].mean():.3f} | {others} |",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
