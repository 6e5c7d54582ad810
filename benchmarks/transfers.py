"""What shipped policies are worth away from where they were trained: under another load, on another trace, on another GPU.

    python benchmarks/transfers.py --episodes 100                      every case that is not there yet
    python benchmarks/transfers.py --only MemPipe-v0 --again

Of the seeds of an environment and a scenario the one that did best in validation is taken. Rules are tuned where it is tested, on
worlds of their own, so they are at home and the policy is not. Writes benchmarks/results/transfers.json, whenever a case is done,
and transfers.md.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium

from llmgym import baselines, policies
from llmgym.errors import LlmgymError
from llmgym.evaluation import compare, tuned
from llmgym.evaluation.paired import members
from llmgym.evaluation.tables import estimate
from llmgym.policies import shipped

OUT = Path(__file__).parent / "results"
TUNING_EPISODES = 30


@dataclass(frozen=True)
class Case:
    """A test away from home.

    Attributes:
        policy: as `llmgym.policies.load` takes it: environment and scenario of its training.
        scenario: where it is tested.
        what: what is different there.
        changed: further arguments of the environment, pairs of names and values.
    """

    policy: str
    scenario: str
    what: str
    changed: tuple[tuple[str, Any], ...] = ()

    @property
    def env_id(self) -> str:
        """The environment."""
        return f"llmgym/{self.policy.partition('/')[0]}"

    @property
    def kwargs(self) -> dict[str, Any]:
        """Arguments of the environment."""
        return {"scenario": self.scenario, **dict(self.changed)}

    @property
    def key(self) -> str:
        """Its name in the file."""
        return " ".join([self.policy, *(f"{name}={value}" for name, value in self.kwargs.items())])


def loads(policy: str, scenario: str, *factors: float) -> tuple[Case, ...]:
    """Tests under other loads."""
    return tuple(Case(policy, scenario, f"load {factor:g}", (("load", factor),)) for factor in factors)


CASES: tuple[Case, ...] = (
    *loads("KVQueue-v1/azure-conv-tight", "azure-conv-tight", 0.9, 1.5),
    Case(
        "KVQueue-v1/azure-conv-tight", "azure-conv-tight", "code completions",
        (("workload", "azure-code-2023"),),
    ),
    Case(
        "KVQueue-v1/azure-conv-tight", "azure-conv-tight", "an H200", (("profile", "h200/llama-3.1-8b"),),
    ),
    *loads("KVQueue-v1/tiers", "tiers", 1.0, 1.8),
    Case("KVQueue-v1/tiers", "tiers", "an H200", (("profile", "h200/llama-3.1-8b"),)),
    *loads("MemPipe-v0/small", "small", 1.0, 1.8),
    Case("MemPipe-v0/small", "h100", "measured kernels of an H100"),
    *loads("AttentionBudget-v0/small", "small", 0.9, 1.6),
    Case("AttentionBudget-v0/small", "small", "an H200", (("profile", "h200/kernels"),)),
    *loads("SegmentedPrefill-v0/small", "small", 0.7, 1.4),
    *loads("SegmentedPrefill-v0/real", "real", 0.7, 1.4),
    Case("Unmask-v0/small", "small", "a denoiser that errs", (("denoiser_error", 0.1),)),
    Case("Unmask-v0/small", "columns", "several texts interleaved"),
    Case("Forage-v0/small", "short", "a document of 64,000 tokens"),
    Case("Forage-v0/small", "sources", "facts that repeat and contradict each other"),
    Case("Forage-v0/real", "small", "made text of 128,000 tokens"),
    Case("DistillProgramme-v0/small", "small", "four GPUs", (("gpus", 4),)),
    Case("DistillProgramme-v0/real", "carbon", "carbon by the hour"),
    Case("PPDRouting-v0/small", "paper", "the paper's cluster and chat"),
    Case("PPDRouting-v0/small", "stress", "long passages, caches that forget"),
    Case("PPDRouting-v0/small", "real", "conversations of Mooncake on H100"),
    Case("PPDWeights-v0/small", "real", "conversations of Mooncake on H100"),
    Case("PPDWeights-v0/small", "stress", "long passages, caches that forget"),
    Case("AFDRatio-v0/small", "small-gaussian", "Gaussian loads"),
    Case("AFDRatio-v0/small", "real", "measured kernels and traces"),
    Case(
        "AFDRefill-v0/small", "small", "prompts twice as long",
        (("requests", "geometric:prompt=240,decode=30,prompt_law=lognormal,prompt_cv=1.5"),),
    ),
    Case("AFDRefill-v0/small", "real", "code completions on H100"),
    Case("PipeSDNav-v0/small", "small-far", "a cloud far away"),
    Case("PipeSDNav-v0/small", "mobile", "a 4G uplink that varies"),
    Case("PipeSDTune-v0/small", "mobile", "a 4G uplink that varies"),
    Case("MemPlace-v0/small", "h100", "times known, links as published"),
    Case("PipeSDBatch-v0/small", "s1", "the paper's laptop"),
)  # fmt: skip


def measured(case: Case, episodes: int, seed: int) -> dict[str, Any]:
    """Play a case: the policy beside every rule that acts there, tuned.

    Args:
        case: what is tested where.
        episodes: worlds.
        seed: of the first.

    Returns:
        What the table tells; `failed` where the policy does not fit.
    """
    env_id, kwargs = case.env_id, case.kwargs
    base = {"case": asdict(case), "episodes": episodes}
    path = shipped.path_of(case.policy)[0]
    label = f"{case.policy.partition('/')[0]}/{path.stem}"
    try:
        policies.load(label, gymnasium.make_vec(env_id, 1, **kwargs))
    except LlmgymError as error:
        return {**base, "failed": str(error).replace(str(path), label)}
    slow = baselines.boards(env_id).get(case.scenario, ())
    rules = [rule for rule in members(env_id, ("rules",), kwargs) if rule not in (*slow, "random")]
    chosen = tuned(env_id, rules, episodes=TUNING_EPISODES, seed=seed, progress=False, **kwargs)
    result = compare(env_id, [*chosen, label], episodes=episodes, seed=seed, progress=False, **kwargs)
    best, gain = result.reference, result.difference(label)
    return {
        **base,
        "policy": label,
        "best": best,
        "best_return": result.mean(best)[0],
        "difference": gain.mean,
        "interval": [gain.interval.low, gain.interval.high],
        "text": estimate(gain.mean, gain.interval, sign=True),
        "verdict": gain.verdict,
    }


def page(found: dict[str, dict[str, Any]]) -> str:
    """All cases as Markdown."""
    lines = [
        "# Policies away from home",
        "",
        "Written by `benchmarks/transfers.py`. A policy is tested where it was not trained, against the rules of the place, "
        "tuned there on worlds of their own. Paired differences of the mean return to the best of them, 95 % intervals; "
        f"{', '.join(sorted({str(one['episodes']) for one in found.values()}))} worlds each.",
        "",
        "| policy | tested on | what differs | best tuned rule, its return | difference | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for one in found.values():
        case = one["case"]
        where = ", ".join(
            [f"`{case['scenario']}`", *(f"`{name}={value}`" for name, value in case["changed"])]
        )
        start = f"| `{case['policy']}` | {where} | {case['what']}"
        if "failed" in one:
            lines.append(f"{start} | - | does not fit: other fields or actions | - |")
            continue
        lines.append(
            f"{start} | `{one['best']}` {one['best_return']:.4g} | {one['text']} | {one['verdict']} |"
        )
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of policies")
    parser.add_argument("--again", action="store_true", help="measure cases that are there already too")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    path = args.out / "transfers.json"
    old: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for case in CASES:
        asked = not args.only or any(part in case.policy for part in args.only)
        if asked and (args.again or case.key not in old):
            old[case.key] = measured(case, args.episodes, args.seed)
            print(case.key, old[case.key].get("text", old[case.key].get("failed")), flush=True)
            path.write_text(json.dumps(old, indent=1) + "\n", encoding="utf-8")
    found = {case.key: old[case.key] for case in CASES if case.key in old}
    (args.out / "transfers.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
