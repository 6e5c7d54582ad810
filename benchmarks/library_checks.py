"""Checks of one library of reinforcement learning, in an environment that has it; `benchmarks/libraries.py` runs this.

    python benchmarks/library_checks.py sb3 --out results/sb3.json

Learners and lanes are those of the examples in `docs/libraries`. Each is trained on native lanes and on single environments in a
loop, with the same budget and seeds, and plays the same held-out worlds, one episode in each, sampling its actions.
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs" / "libraries"))

from llmgym.core.wrappers import RLLIB, TIANSHOU, MaskInObservation  # noqa: E402

ENV = "llmgym:llmgym/KVQueue-v1"
ARGUMENTS: dict[str, Any] = {"requests": 20, "max_episode_steps": 400}
LANES, SEEDS, WORLDS, HELD_OUT = 8, (0, 1, 2), 64, 10_000

Acting = Callable[[Any, Any], Any]
"""Observations [lanes, d] and masks int8 [lanes, actions] -> actions [lanes]."""
Ended = tuple[int, list[int], Any]
"""A seed, the actions of its episode, and the last observation that the library has of it."""


@dataclass
class Learner:
    """One algorithm of a library.

    Attributes:
        native: makes native lanes.
        looped: makes single environments in a loop.
        learn: trains on what one of these made, for so many steps, with a seed.
        acting: what it has learned, as a function.
        steps: budget.
    """

    native: Callable[[], Any]
    looped: Callable[[], Any]
    learn: Callable[[Any, int, int], Any]
    acting: Callable[[Any], Acting]
    steps: int = 8_192


def single() -> Any:
    """One environment."""
    return gymnasium.make(ENV, **ARGUMENTS)


def looped(mode: str, wrap: Callable[[Any], Any] = lambda env: env) -> Any:
    """Gymnasium's loop over single environments."""
    autoreset = gymnasium.vector.AutoresetMode[mode]
    return gymnasium.vector.SyncVectorEnv([lambda: wrap(single())] * LANES, autoreset_mode=autoreset)


def evaluate(act: Acting) -> tuple[float, float]:
    """Mean return of one episode in each held-out world, and the share of actions that were masked."""
    envs = gymnasium.make_vec(ENV, WORLDS, **ARGUMENTS)
    obs, infos = envs.reset(seed=HELD_OUT)
    total, going, steps, masked = np.zeros(WORLDS), np.ones(WORLDS, bool), 0, 0
    while going.any():
        actions = np.asarray(act(obs, infos["action_mask"])).astype(np.int64)
        steps += int(going.sum())
        masked += int((infos["action_mask"][np.arange(WORLDS), actions][going] == 0).sum())
        obs, rewards, terminated, truncated, infos = envs.step(actions)
        total += np.where(going, rewards, 0.0)
        going &= ~(terminated | truncated)
    return float(total.mean()), masked / steps


def last_observation(seed: int, actions: list[int], resets: int = 1) -> Any:
    """The last observation of an episode of the single environment; None if it does not end with the last action."""
    env = single()
    obs, _ = env.reset(seed=seed)
    for _ in range(resets - 1):
        obs, _ = env.reset()
    done = False
    for action in actions:
        if done:
            return None
        obs, _, terminated, truncated, _ = env.step(int(action))
        done = terminated or truncated
    return obs if done else None


def right(ended: list[Ended], resets: int = 1) -> bool:
    """Whether the library's last observations are those of single environments."""
    assert len(ended) == LANES, f"{len(ended)} episodes, expected {LANES}"
    return all(
        np.array_equal(np.asarray(last), last_observation(seed, actions, resets))
        for seed, actions, last in ended
    )


def played(
    reset: Callable[[], Any], step: Callable[[Any], tuple[Any, Any, Any]], base: int = 0
) -> list[Ended]:
    """Play any actions until every lane has ended an episode.

    Args:
        reset: starts, lane i with seed `base + i`.
        step: takes actions [lanes]; tells dones, and last observations by lane.
        base: the first seed.
    """
    rng = np.random.default_rng(0)
    reset()
    actions: list[list[int]] = [[] for _ in range(LANES)]
    ended: dict[int, Ended] = {}
    while len(ended) < LANES:
        chosen = rng.integers(25, size=LANES)
        dones, last = step(chosen)
        for lane in range(LANES):
            if lane not in ended:
                actions[lane].append(int(chosen[lane]))
                if dones[lane]:
                    ended[lane] = (base + lane, actions[lane], np.array(last[lane]))
    return list(ended.values())


def sb3_like(example: str, names: tuple[str, ...]) -> tuple[dict[str, Learner], bool]:
    """Learners of stable-baselines3 and sb3-contrib, and whether last observations are right."""
    from stable_baselines3.common.env_util import make_vec_env

    module = importlib.import_module(example)

    def loop() -> Any:
        return make_vec_env(ENV, LANES, env_kwargs=ARGUMENTS)

    def acting(model: Any) -> Acting:
        if "Maskable" in type(model).__name__:
            return lambda obs, mask: model.predict(obs, action_masks=mask > 0, deterministic=False)[0]
        memory: dict[str, Any] = {"state": None}  # of a recurrent policy: every world is played once

        def act(obs: Any, mask: Any) -> Any:
            start = np.full(len(obs), memory["state"] is None)
            actions, memory["state"] = model.predict(obs, memory["state"], start, deterministic=False)
            return actions

        return act

    envs = module.lanes(LANES)

    def reset() -> None:
        envs.seed(0)
        envs.reset()

    def step(actions: Any) -> tuple[Any, Any]:
        _, _, dones, infos = envs.step(actions)
        return dones, [info.get("terminal_observation") for info in infos]

    learners = {
        name: Learner(
            module.lanes, loop, getattr(module, name), acting, 4_096 if "recurrent" in name else 8_192
        )
        for name in names
    }
    return learners, right(played(reset, step))


def sb3() -> tuple[dict[str, Learner], bool]:
    """stable-baselines3."""
    return sb3_like("sb3", ("ppo", "dqn"))


def sb3_masks() -> tuple[dict[str, Learner], bool]:
    """sb3-contrib."""
    return sb3_like("sb3_masks", ("maskable_ppo", "recurrent_ppo"))


def torchrl() -> tuple[dict[str, Learner], bool]:
    """TorchRL."""
    import torch
    import torchrl_ppo as module
    from tensordict import TensorDict
    from torchrl.envs import DTypeCastTransform, GymWrapper, TransformedEnv
    from torchrl.envs.utils import ExplorationType, set_exploration_type

    def loop() -> Any:
        env = GymWrapper(looped("DISABLED", MaskInObservation), categorical_action_encoding=True)
        return TransformedEnv(env, DTypeCastTransform(torch.int8, torch.bool, in_keys=["action_mask"]))

    def acting(actor: Any) -> Acting:
        def act(obs: Any, mask: Any) -> Any:
            rows = {"observation": torch.as_tensor(obs), "action_mask": torch.as_tensor(mask > 0)}
            with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
                return actor(TensorDict(rows, batch_size=[len(obs)]))["action"].numpy()

        return act

    env = module.lanes(LANES)
    env.set_seed(0)
    rollout = env.rollout(400, break_when_any_done=False)
    ended: list[Ended] = []
    for lane in range(LANES):
        steps = int(rollout["next", "done"][lane, :, 0].nonzero()[0]) + 1
        last = rollout["next", "observation"][lane, steps - 1].numpy()
        ended.append((lane, rollout["action"][lane, :steps].tolist(), last))
    # seeding resets, and so does a rollout
    return {"ppo": Learner(module.lanes, loop, module.ppo, acting)}, right(ended, resets=2)


def rllib() -> tuple[dict[str, Learner], bool]:
    """RLlib."""
    import rllib_ppo as module
    import torch

    modes = gymnasium.VectorizeMode

    def learn(mode: Any, steps: int, seed: int) -> Any:
        return module.ppo(steps, seed, LANES, mode)

    def acting(algorithm: Any) -> Acting:
        network = algorithm.get_module()

        def act(obs: Any, mask: Any) -> Any:
            entries = {RLLIB[0]: torch.as_tensor(obs), RLLIB[1]: torch.as_tensor(mask)}
            with torch.no_grad():
                logits = network.forward_exploration({"obs": entries})["action_dist_inputs"]
            return torch.distributions.Categorical(logits=logits).sample().numpy()

        return act

    algorithm = module.ppo(0, 0, LANES)
    firsts = {single().reset(seed=seed)[0].tobytes(): seed for seed in range(200)}
    ended = []
    for episode in algorithm.env_runner.sample(num_episodes=4 * LANES, random_actions=True):
        seen = np.asarray(episode.get_observations()[RLLIB[0]], np.float32)
        if (seed := firsts.get(seen[0].tobytes())) is not None and episode.is_done:
            ended.append((seed, [int(action) for action in episode.get_actions()], seen[-1]))
    algorithm.stop()
    ppo = Learner(lambda: modes.VECTOR_ENTRY_POINT, lambda: modes.SYNC, learn, acting, 8_192)
    return {"ppo": ppo}, right(ended[:LANES])


def tianshou() -> tuple[dict[str, Learner], bool]:
    """Tianshou."""
    import tianshou_dqn as module
    from tianshou.data import Batch, Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv

    def loop() -> Any:
        return DummyVectorEnv([lambda: _answering(MaskInObservation(single(), TIANSHOU))] * LANES)

    def acting(algorithm: Any) -> Acting:
        policy = algorithm.policy
        policy.set_eps_inference(0.05)

        def act(obs: Any, mask: Any) -> Any:
            batch = Batch(obs=Batch(obs=obs, mask=mask), info={})
            return policy.add_exploration_noise(policy(batch).act, batch)

        return act

    envs = module.lanes(LANES)
    envs.seed(0)
    collector = Collector(module.dqn(module.lanes(LANES), 128), envs, VectorReplayBuffer(8_000, LANES))
    collector.reset()
    ended: list[Ended] = []
    collector.collect(n_step=410 * LANES, random=True)
    for lane, buffer in enumerate(collector.buffer.buffers):
        steps = int(np.flatnonzero(buffer.done)[0]) + 1
        ended.append((lane, buffer.act[:steps].tolist(), buffer.obs_next.obs[steps - 1]))
    return {"dqn": Learner(module.lanes, loop, module.dqn, acting)}, right(ended, resets=2)


def _answering(env: Any) -> Any:
    """Tianshou asks the innermost environment for its space of observations; tell it that of the wrapper."""
    env.unwrapped.observation_space = env.observation_space
    return env


def skrl() -> tuple[dict[str, Learner], bool]:
    """Skrl."""
    import skrl_ppo as module
    import torch
    from skrl.envs.wrappers.torch import wrap_env
    from skrl.utils import set_seed

    def native() -> Any:
        set_seed(0)  # lanes take the seed that holds when they are wrapped
        return module.lanes(LANES)

    def loop() -> Any:
        set_seed(0)
        return wrap_env(looped("SAME_STEP"), verbose=False)

    def acting(agent: Any) -> Acting:
        def act(obs: Any, mask: Any) -> Any:
            with torch.no_grad():
                return agent.policy.act({"observations": torch.as_tensor(obs)})[0][:, 0].numpy()

        return act

    envs = module.lanes(LANES)
    envs._seed = 0

    def step(actions: Any) -> tuple[Any, Any]:
        obs, _, terminated, truncated, _ = envs.step(torch.as_tensor(actions)[:, None])
        return (terminated | truncated)[:, 0].numpy(), obs.numpy()

    return {"ppo": Learner(native, loop, module.ppo, acting)}, right(played(envs.reset, step))


def cleanrl() -> tuple[dict[str, Learner], bool]:
    """One file in CleanRL's style."""
    import cleanrl_style as module
    import torch

    def acting(actor: Any) -> Acting:
        def act(obs: Any, mask: Any) -> Any:
            with torch.no_grad():
                return module.masked(actor(torch.as_tensor(obs)), torch.as_tensor(mask > 0)).sample().numpy()

        return act

    ppo = Learner(module.lanes, lambda: looped("NEXT_STEP"), module.ppo, acting)
    return {"ppo": ppo}, _next_step(module.lanes(LANES))


def _next_step(envs: Any) -> bool:
    def step(actions: Any) -> tuple[Any, Any]:
        obs, _, terminated, truncated, _ = envs.step(actions)
        return terminated | truncated, obs

    return right(played(lambda: envs.reset(seed=0), step))


def envpool() -> tuple[dict[str, Learner], bool]:
    """A loop in EnvPool's style, which learns nothing: any legal action."""
    import envpool_style as module

    def acting(returns: Any) -> Acting:
        rng = np.random.default_rng(0)
        return lambda obs, mask: (rng.random(mask.shape) * mask).argmax(axis=1)

    loop = Learner(module.lanes, lambda: looped("NEXT_STEP"), module.play, acting)
    return {"any legal action": loop}, _next_step(module.lanes(LANES))


CHECKS = {
    check.__name__: check for check in (sb3, sb3_masks, rllib, torchrl, tianshou, cleanrl, skrl, envpool)
}


def measured(learner: Learner) -> dict[str, Any]:
    """Train on both kinds of lanes with every seed."""
    out: dict[str, Any] = {"steps": learner.steps, "masked": 0.0}
    for kind in ("native", "looped"):
        out[kind] = {"returns": [], "steps_per_s": []}
    for seed in SEEDS:
        for kind in ("native", "looped"):
            envs = getattr(learner, kind)()
            began = time.perf_counter()
            model = learner.learn(envs, learner.steps, seed)
            rate = learner.steps / (time.perf_counter() - began)
            np.random.seed(seed)  # noqa: NPY002 - Tianshou draws from this one
            if "torch" in sys.modules:
                sys.modules["torch"].manual_seed(seed)
            mean, masked = evaluate(learner.acting(model))
            out[kind]["returns"].append(mean)
            out[kind]["steps_per_s"].append(rate)
            out["masked"] = max(out["masked"], masked)
            if hasattr(model, "stop"):
                model.stop()
    return out


def main() -> None:
    """Check one library."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=CHECKS)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    gymnasium.make_vec(ENV, 2, **ARGUMENTS).reset(seed=0)  # compiled before anything is timed
    learners, terminal = CHECKS[arguments.library]()
    result = {
        "terminal": terminal,
        "learners": {name: measured(learner) for name, learner in learners.items()},
    }
    arguments.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
