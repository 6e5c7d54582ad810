"""The pictures of the documentation: a moment of each environment under one of its rules.

python benchmarks/pictures.py [NAME ...]
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from PIL import Image

import llmgym

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
COLOURS = 256
"""Of a picture: lines and letters have few, and such a file is a third of the size. Rare colours are kept (`MAXCOVERAGE`)."""


class Moment(NamedTuple):
    """What is shown: the environment with its arguments, who decides, in which world, after how many decisions."""

    env: str
    kwargs: dict[str, Any]
    rule: str
    seed: int
    steps: int


MOMENTS = {
    "kv_queue": Moment("KVQueue-v0", {"scenario": "tiny-overload"}, "wc-fcfs", 2, 160),
    "kv_queue_v1": Moment("KVQueue-v1", {"scenario": "azure-conv-tight"}, "vllm", 2, 2600),
    "kv_provision": Moment("KVProvision-v0", {"scenario": "small"}, "reactive", 1, 116),
    "afd_ratio": Moment("AFDRatio-v0", {"scenario": "small"}, "idle-balance", 3, 57),
    "afd_refill": Moment("AFDRefill-v0", {"scenario": "small"}, "fcfs", 1, 300),
    "ppd_routing": Moment("PPDRouting-v0", {"scenario": "stress"}, "queue-aware", 1, 150),
    "ppd_weights": Moment("PPDWeights-v0", {"scenario": "stress"}, "reactive", 1, 8),
    "oserve": Moment("OServe-v0", {"scenario": "small"}, "menu-greedy", 0, 38),
    "pipesd_nav": Moment("PipeSDNav-v0", {"scenario": "compressed"}, "pipesd", 3, 140),
    "pipesd_batch": Moment("PipeSDBatch-v0", {"scenario": "s1", "tokens": (14, 14)}, "greedy", 0, 10),
    "pipesd_tune": Moment("PipeSDTune-v0", {"scenario": "small"}, "bo", 1, 12),
    "mem_place": Moment("MemPlace-v0", {"scenario": "small"}, "batch-aware", 1, 30),
    "mem_pipe": Moment("MemPipe-v0", {"scenario": "small"}, "earliest-finish", 3, 90),
    "attention_budget": Moment("AttentionBudget-v0", {"scenario": "small"}, "priced", 3, 78),
    "unmask": Moment("Unmask-v0", {"scenario": "small"}, "eb", 3, 51),
    "unmask_real": Moment("Unmask-v0", {"scenario": "real"}, "dus", 3, 70),
    "forage": Moment("Forage-v0", {"scenario": "sources", "facts": (0, 0, 1, 0)}, "scout", 4, 22),
    "segmented_prefill": Moment("SegmentedPrefill-v0", {"scenario": "paper"}, "triage", 3, 110),
    "distill_programme": Moment("DistillProgramme-v0", {"scenario": "small"}, "thrifty", 13, 22),
}


def frame(moment: Moment) -> np.ndarray:
    """The picture at that moment, uint8 [height, width, 3]; an episode that ends earlier is shown at its end."""
    env_id = f"llmgym/{moment.env}"
    kwargs = {**llmgym.baselines.env_kwargs(env_id, moment.rule), **moment.kwargs}
    env = gymnasium.make(env_id, render_mode="rgb_array", **kwargs)
    policy = llmgym.baselines.make(moment.rule, env)
    obs, info = env.reset(seed=moment.seed)
    policy.reset(np.ones(1, np.bool_))
    for _ in range(moment.steps):
        mask = info["action_mask"][None] if "action_mask" in info else None
        obs, _, terminated, truncated, info = env.step(policy.act(obs[None], mask)[0])
        if terminated or truncated:
            break
    return np.asarray(env.render())


def main(names: list[str]) -> None:
    """Draw these, or all of them."""
    for name in names or MOMENTS:
        picture = Image.fromarray(frame(MOMENTS[name])).quantize(
            COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
        picture.save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
