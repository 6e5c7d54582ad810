"""How much is left to win: the best tuned rule and privileged ones on the same worlds, scenario by scenario.

python benchmarks/room.py SegmentedPrefill --scenarios small paper --set requests=24
python benchmarks/room.py AttentionBudget --scenarios paper --set batches=128 --privileged rollout:loss=0.1,time=1,pace=2
python benchmarks/room.py DistillProgramme
python benchmarks/room.py KVQueue-v1 --scenarios tiers --worlds 16 --privileged rollout:tail=1

Rules are tuned on worlds of their own, then all are played on the worlds of the comparison; the one with the best mean is the rule
that a privileged one is compared with, world by world. A privileged rule knows the future or what is hidden, and tries every action
in a copy of the world. What it gains is a lower bound of what that knowledge is worth, and no promise for a policy without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import gymnasium
import numpy as np
import tyro

import llmgym
from llmgym import baselines
from llmgym.evaluation import run_episodes, tuned
from llmgym.evaluation.statistics import bootstrap


@dataclass(frozen=True)
class Arguments:
    """What to measure.

    Attributes:
        name: of the environment, without namespace; one that ships, of version 0 if none is given.
        scenarios: empty: all.
        privileged: baselines, with numbers or without; empty: all privileged ones.
        worlds: on which rules and privileged ones are compared.
        tuning: worlds on which rules are tuned.
        seed: of the first world.
        leave_out: rules that are not compared, such as those that take long and do badly.
        set: whole numbers that replace settings of the scenario, `name=value`.
    """

    name: Annotated[str, tyro.conf.Positional]
    scenarios: Sequence[str] = ()
    privileged: Sequence[str] = ()
    worlds: int = 24
    tuning: int = 40
    seed: int = 10_000
    leave_out: Sequence[str] = ()
    set: Sequence[str] = ()


def main(arguments: Arguments) -> None:
    """Print the mean return of every rule, and what each privileged one gains over the best."""
    env_id = f"llmgym/{arguments.name}" + ("" if "-v" in arguments.name else "-v0")
    for scenario in arguments.scenarios or llmgym.spec(env_id).scenario_names():
        kwargs = {"scenario": scenario}
        kwargs |= {key: int(value) for key, _, value in (one.partition("=") for one in arguments.set)}
        env = gymnasium.make(env_id, **kwargs)
        names = [name for name in baselines.names(env_id) if name not in (*arguments.leave_out, "random")]
        knowing = [name for name in names if baselines.make(name, env).privileged]
        rules = tuned(
            env_id,
            [name for name in names if name not in knowing],
            episodes=arguments.tuning,
            seed=arguments.seed,
            progress=False,
            **kwargs,
        )
        played = {
            name: run_episodes(env_id, name, arguments.worlds, arguments.seed, kwargs).returns
            for name in rules
        }
        for name in sorted(played, key=lambda name: -played[name].mean()):
            print(f"{scenario}: {name} {played[name].mean():.4g}", flush=True)
        best = max(played, key=lambda name: played[name].mean())
        for name in arguments.privileged or knowing:
            told = []
            for n in range(arguments.worlds):
                told.append(float(run_episodes(env_id, name, 1, arguments.seed + n, kwargs).returns[0]))
                print(
                    f"  world {arguments.seed + n}: {told[n]:.4g}, {best} {played[best][n]:.4g}", flush=True
                )
            gains = np.array(told) - played[best]
            gained = bootstrap(gains)
            share = 100.0 * gains.mean() / abs(played[best].mean())
            print(
                f"{scenario}: {name} {np.mean(told):.4g}, {best} {played[best].mean():.4g}, gain {gains.mean():.3g} "
                f"[{gained.low:.3g}, {gained.high:.3g}], {share:.1f} %, {len(gains)} worlds",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
