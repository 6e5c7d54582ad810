"""How much is there to win in SegmentedPrefill: the best tuned rule and a clairvoyant on the same worlds, scenario by scenario.

python benchmarks/segmented_room.py --worlds 24 --requests 24 small

The clairvoyant tries every action with the requests that are really to come (`llmgym.baselines.segmented.clairvoyant`), which takes
minutes a world. What it gains over the best rule is a lower bound of what perfect foresight is worth, and no promise for a policy
without it.
"""

import argparse

import numpy as np

import llmgym
from llmgym.baselines.segmented import BASELINES
from llmgym.envs.segmented.scenarios import SCENARIOS
from llmgym.evaluation import run_episodes, tuned

ENV = "llmgym/SegmentedPrefill-v0"
PRIVILEGED = "clairvoyant"
RESAMPLES = 10_000
"""Of the worlds, for the interval of a mean."""


def main() -> None:
    """Print every world, and a summary of each scenario."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS))
    parser.add_argument("--worlds", type=int, default=24)
    parser.add_argument("--requests", type=int, default=24, help="of an episode")
    parser.add_argument("--tuning", type=int, default=40, help="worlds that rules are tuned on")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    for scenario in given.scenarios:
        kwargs = {"scenario": scenario, "requests": given.requests}
        rules = [name for name in BASELINES if name not in (PRIVILEGED, "random")]
        rules = tuned(ENV, rules, episodes=given.tuning, seed=given.seed, progress=False, **kwargs)
        compared = llmgym.compare(ENV, rules, episodes=given.worlds, seed=given.seed, **kwargs)
        print(compared.table(), flush=True)
        best = compared.ranked()[0]
        pairs = []
        for world in range(given.seed, given.seed + given.worlds):
            one = [float(run_episodes(ENV, name, 1, world, kwargs).returns[0]) for name in (best, PRIVILEGED)]
            pairs.append(one)
            print(f"{scenario} world {world}: {best} {one[0]:.3f}, {PRIVILEGED} {one[1]:.3f}", flush=True)
        gains = np.diff(np.array(pairs), axis=1)[:, 0]
        means = rng.choice(gains, (RESAMPLES, len(gains))).mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        mean = np.mean(pairs, axis=0)
        print(
            f"{scenario}: {best} {mean[0]:.2f}, {PRIVILEGED} {mean[1]:.2f}, gain {gains.mean():.2f} [{low:.2f}, {high:.2f}], "
            f"{100 * gains.mean() / abs(mean[0]):.1f} % of the rule's return, {len(pairs)} worlds",
            flush=True,
        )


if __name__ == "__main__":
    main()
