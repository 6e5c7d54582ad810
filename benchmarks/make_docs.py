"""Write the parts of the documentation that come out of the code: observation tables, scenario tables, pictures.

python benchmarks/make_docs.py
"""

import re
from pathlib import Path

import gymnasium
import numpy as np
from matplotlib import image

import llmgym
from llmgym.envs.kv_queue_scenarios import SCENARIOS

DOCS = Path(__file__).parent.parent / "docs"


def fill(page: Path, mark: str, text: str) -> None:
    """Replace what stands between `<!-- mark -->` and `<!-- end -->` in a page."""
    old = page.read_text()
    new = re.sub(
        rf"(<!-- {mark} -->\n).*?(<!-- end -->)", lambda m: m[1] + text + "\n" + m[2], old, flags=re.S
    )
    if mark not in old:
        raise SystemExit(f"{page}: no mark {mark!r}")
    page.write_text(new)


def scenario_table() -> str:
    """The scenarios of KVQueue with what the closed forms say about them."""
    rows = [
        "| scenario | what | M, tokens | rate, req/s | predicted capacity, req/s | binds |",
        "|---|---|---|---|---|---|",
    ]
    for name, scenario in SCENARIOS.items():
        simulation = gymnasium.make("llmgym/KVQueue-v0", scenario=name).unwrapped.simulation
        found = simulation.predicted
        rows.append(
            f"| `{name}` | {scenario.about} | {simulation.scenario.kv_capacity:,} | {simulation.scenario.rate_rps:.2f} "
            f"| {found.rate_rps:.2f} | {found.binding} |"
        )
    return "\n".join(rows)


def queue_picture() -> None:
    """A frame of KVQueue under overload."""
    env = gymnasium.make("llmgym/KVQueue-v0", scenario="tiny-overload", render_mode="rgb_array")
    policy = llmgym.baselines.make("wc-fcfs", env)
    obs, info = env.reset(seed=2)
    for _ in range(160):
        obs, _, _, _, info = env.step(policy.act(obs[None], info["action_mask"][None])[0])
    image.imsave(DOCS / "pictures" / "kv_queue.png", np.asarray(env.render()))


def main() -> None:
    """Write everything."""
    for env_id, name in (("llmgym/KVQueue-v0", "kv_queue"), ("llmgym/KVProvision-v0", "kv_provision")):
        page = DOCS / "envs" / f"{name}.md"
        if "<!-- observation -->" in page.read_text():
            fill(page, "observation", gymnasium.make(env_id).unwrapped.layout.markdown())
    fill(DOCS / "envs" / "kv_queue.md", "scenarios", scenario_table())
    queue_picture()


if __name__ == "__main__":
    main()
