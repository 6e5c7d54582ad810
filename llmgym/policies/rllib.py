"""RLlib's PPO on lanes: workers of a Ray cluster step native vector environments, this process learns.

RLlib wants vector environments in `NEXT_STEP` mode, and masks as a part of the observation. The network is an `mlp` under the
names of the own trainer, so what is trained here is loaded and compared without Ray. A worker that is killed is replaced, and the
steps of an update that it had taken are taken anew.

Not RLlib's, and so left out: normalised observations (those here are of the order of 1), an update that stops at `target_kl`
(RLlib has a penalty that aims at it) and the scatter of lanes. Rewards are divided by one number, measured before the training
with random actions.
"""

import functools
import itertools
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from ray.rllib.algorithms.ppo import PPOConfig as RLlibConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import (
    TorchCategorical,
    TorchDiagGaussian,
    TorchMultiCategorical,
)
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.tune.registry import register_env
from torch import nn

from llmgym.core.env import LaneVectorEnv
from llmgym.core.registered import Registered
from llmgym.errors import CheckpointError, InvalidArgument, LlmgymError
from llmgym.policies.cluster import connect
from llmgym.policies.config import Plan, PPOConfig, training_seed
from llmgym.policies.episodes import EPISODE_COLUMNS
from llmgym.policies.learner import LOSS_COLUMNS
from llmgym.policies.run import Run, TrainingResult, learning_threads

OBSERVATIONS, MASK = "observations", "action_mask"
NEVER = -1e9
"""Logit of an action that is masked: not infinite, whose products with zero are no numbers."""
TOO_LITTLE = 1e-8
"""A deviation of returns below this says nothing about their scale."""
IDLE_UPDATES = 20
"""So many updates may find all workers dead, while others take their place."""
LOGGED = {
    "policy_loss": "policy_loss",
    "value_loss": "vf_loss",
    "entropy": "entropy",
    "approx_kl": "mean_kl_loss",
    "explained_variance": "vf_explained_var",
    "learning_rate": "default_optimizer_learning_rate",
}


class RLlibLanes(VectorEnv[Any, Any, Any]):
    """Lanes as a worker of RLlib wants them: the mask in the observation, rewards scaled, seeds of the training.

    Args:
        env: lanes in `NEXT_STEP` mode.
        seed: what is added to the seeds that RLlib asks for, one a worker, which are among those held out.
        reward_scale: rewards are divided by it.
    """

    def __init__(self, env: LaneVectorEnv, seed: int, reward_scale: float) -> None:
        self.lanes, self._seed, self._scale = env, seed, reward_scale
        self.num_envs, self.metadata, self.render_mode = env.num_envs, env.metadata, None
        self.single_action_space, self.action_space = env.single_action_space, env.action_space
        self.single_observation_space = observation_space(env)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._masked = isinstance(self.single_observation_space, Dict)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every lane."""
        seed = None if seed is None else self._seed + int(seed) * self.num_envs
        obs, infos = self.lanes.reset(seed=seed)
        return self._joined(obs, infos), {}

    def step(self, actions: Any) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step every lane."""
        obs, rewards, terminated, truncated, infos = self.lanes.step(np.asarray(actions))
        return self._joined(obs, infos), rewards / self._scale, terminated, truncated, {}

    def _joined(self, obs: NDArray[np.float32], infos: Mapping[str, Any]) -> Any:
        return {OBSERVATIONS: obs, MASK: infos["action_mask"].copy()} if self._masked else obs

    def close_extras(self, **kwargs: Any) -> None:
        """Release the lanes."""
        self.lanes.close()


def observation_space(env: LaneVectorEnv) -> Any:
    """What RLlib sees of a lane: the observation, and the mask where actions have one."""
    actions = env.simulation.mask_size
    if not actions:
        return env.single_observation_space
    return Dict({OBSERVATIONS: env.single_observation_space, MASK: Box(0, 1, (actions,), np.int8)})


def make_worker_lanes(
    env: Registered, env_kwargs: Mapping[str, Any], lanes: int, seed: int, reward_scale: float, context: Any
) -> RLlibLanes:
    """Lanes of one worker of RLlib."""
    made = gymnasium.make_vec(
        env.register(), num_envs=lanes, autoreset_mode=AutoresetMode.NEXT_STEP, **env_kwargs
    )
    assert isinstance(made, LaneVectorEnv)
    return RLlibLanes(made, seed, reward_scale)


class MaskedMLP(TorchRLModule, ValueFunctionAPI):
    """Layers for the policy and layers for the value, which share nothing; masked actions are never taken."""

    def setup(self) -> None:
        """Make the layers, as RLlib has it."""
        config, space = self.model_config, self.action_space
        seen = self.observation_space
        inputs = int(np.prod((seen[OBSERVATIONS] if isinstance(seen, Dict) else seen).shape or ()))
        self.actor = layers(inputs, config["hidden"], config["outputs"], config["activation"], 0.01)
        self.critic = layers(inputs, config["hidden"], 1, config["activation"], 1.0)
        self.log_std = nn.Parameter(torch.zeros(config["outputs"])) if isinstance(space, Box) else None
        if isinstance(space, Box):
            self.action_dist_cls = TorchDiagGaussian
        elif isinstance(space, Discrete):
            self.action_dist_cls = TorchCategorical
        else:
            self.action_dist_cls = TorchMultiCategorical.get_partial_dist_cls(input_lens=space.nvec.tolist())

    def _forward(self, batch: Mapping[str, Any], **others: Any) -> dict[str, Any]:
        seen = batch[Columns.OBS]
        masked = isinstance(seen, Mapping)
        out = self.actor(seen[OBSERVATIONS] if masked else seen)
        if self.log_std is not None:
            out = torch.cat([out, self.log_std.expand_as(out)], dim=-1)
        elif masked:
            out = out.masked_fill(seen[MASK] == 0, NEVER)
        return {Columns.ACTION_DIST_INPUTS: out}

    def compute_values(self, batch: Mapping[str, Any], embeddings: Any = None) -> Any:
        """The value of each observation, float32 [n]."""
        seen = batch[Columns.OBS]
        return self.critic(seen[OBSERVATIONS] if isinstance(seen, Mapping) else seen).squeeze(-1)


def layers(inputs: int, hidden: Sequence[int], outputs: int, activation: str, last_gain: float) -> Any:
    """Linear layers with orthogonal weights and a non-linearity between them, as the own trainer has them."""
    widths, made = [inputs, *hidden, outputs], []
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        last = index == len(hidden)
        layer = nn.Linear(before, after)
        nn.init.orthogonal_(layer.weight, last_gain if last else 2**0.5)
        nn.init.zeros_(layer.bias)
        made += [layer] if last else [layer, nn.Tanh() if activation == "tanh" else nn.ReLU()]
    return nn.Sequential(*made)


def train_rllib(plan: Plan) -> TrainingResult:
    """Train with RLlib's PPO: same plan, same run folder, same checkpoints; what RLlib saves itself is in the folder `rllib`.

    Raises:
        CheckpointError: `plan.resume` is set and there is nothing that fits to resume from.
        InvalidArgument: the plan cannot be carried out, or no cluster answers at its address.
    """
    check(plan)
    workers = plan.workers or max(1, (os.cpu_count() or 2) - 1)
    if plan.lanes % workers:
        raise InvalidArgument(
            f"lanes={plan.lanes}: expected a multiple of the {workers} workers, each of which steps as many"
        )
    with Run(plan, (*EPISODE_COLUMNS, *LOSS_COLUMNS[:-1])) as run:
        space = run.env.single_action_space
        if isinstance(space, MultiDiscrete) and len(space.shape) != 1:
            raise InvalidArgument(f"{plan.env_id}: RLlib takes a row of choices, not {space}")
        for name in ("ray", "ray.rllib", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
        ray, connected = connect("the backend rllib", "rllib", workers, plan.address)
        try:
            with learning_threads(plan.config.threads):
                _train(plan, run, workers)
        finally:
            if connected:
                ray.shutdown()
        return run.result()


def check(plan: Plan) -> None:
    """Raise `InvalidArgument` for what RLlib's PPO does not do here."""
    config = plan.config
    wrong = {
        "network": config.network != "mlp",
        "imitate": bool(config.imitate),
        "device": config.device != "cpu",
        "env_device": config.env_device != "cpu",
        "discount": config.discount != "step",
    }
    for name in (name for name, given in wrong.items() if given):
        value = getattr(config, name)
        raise InvalidArgument(f"{name}={value!r}: RLlib does not do that here; leave --backend rllib out")
    if plan.init:
        raise InvalidArgument(f"init={plan.init!r}: only the own trainer begins with another policy")


def reward_scale(env: LaneVectorEnv, config: PPOConfig, seed: int) -> float:
    """The deviation of the discounted return while lanes act at random, by which rewards are divided."""
    env.reset(seed=seed)
    env.action_space.seed(seed % 2**32)
    generator = np.random.default_rng(seed)
    running, seen = np.zeros(env.num_envs), []
    space = env.single_action_space
    for _ in range(max(config.rollout_steps, 64)):
        masks = env.action_masks() if env.simulation.mask_size else None
        if isinstance(space, Discrete) and masks is not None:
            actions: Any = (generator.random(masks.shape) * masks).argmax(axis=1)
        else:
            actions = env.action_space.sample()
        _, rewards, terminated, truncated, _ = env.step(actions)
        running = running * config.gamma + rewards
        seen.append(running.copy())
        running[terminated | truncated] = 0.0
    deviation = float(np.std(seen))
    return deviation if deviation > TOO_LITTLE else 1.0


def rllib_config(plan: Plan, run: Run, workers: int, scale: float) -> Any:
    """The settings of the plan in RLlib's words."""
    config, space = plan.config, run.env.single_action_space
    batch = config.rollout_steps * plan.lanes
    lanes = plan.lanes // workers
    create = functools.partial(
        make_worker_lanes,
        Registered.of(plan.env_id),
        dict(plan.env_kwargs),
        lanes,
        training_seed(plan.seed, run.steps),  # what is resumed meets other episodes
        scale,
    )
    name = f"llmgym-{os.getpid()}-{time.time_ns()}"
    register_env(name, create)
    outputs = int(np.prod(space.shape)) if isinstance(space, Box) else run.env.simulation.mask_size
    model = {"hidden": list(config.hidden), "activation": config.activation, "outputs": outputs}
    falling = [[0, config.learning_rate], [max(plan.timesteps, 1), 0.0]]
    return (
        RLlibConfig()
        .environment(name, disable_env_checking=True)
        .env_runners(
            num_env_runners=workers,
            num_envs_per_env_runner=lanes,
            gym_env_vectorize_mode=gymnasium.VectorizeMode.VECTOR_ENTRY_POINT,
            rollout_fragment_length=config.rollout_steps,
            num_cpus_per_env_runner=1,
        )
        .learners(num_learners=0, num_gpus_per_learner=0)
        .resources(num_cpus_for_main_process=0)
        .training(
            gamma=config.gamma,
            lr=falling if config.anneal else config.learning_rate,
            lambda_=config.gae_lambda,
            clip_param=config.clip,
            entropy_coeff=config.entropy,
            vf_loss_coeff=config.value_weight,
            vf_clip_param=float("inf"),
            grad_clip=config.max_grad_norm,
            grad_clip_by="global_norm",
            use_kl_loss=config.target_kl is not None,
            kl_target=config.target_kl or 0.01,
            train_batch_size_per_learner=batch,
            minibatch_size=min(config.minibatch, batch),
            num_epochs=config.epochs,
        )
        .fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=0.0)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=MaskedMLP, model_config=model))
        .debugging(seed=plan.seed, log_level="ERROR")
    )


def _train(plan: Plan, run: Run, workers: int) -> None:
    stored = run.stored
    if stored is None:
        scale = reward_scale(run.env, plan.config, training_seed(plan.seed, 0))
    else:
        scale = float(stored["normaliser"]["reward_scale"])
    algorithm = rllib_config(plan, run, workers, scale).build_algo()
    folder = run.path.parent / "rllib"
    kept = ""
    if stored is not None:
        kept = stored["rng"]["rllib"]
        if not (folder / kept).is_dir():
            raise CheckpointError(f"{folder / kept} is gone, which {run.path} goes on from")
        algorithm.restore_from_path(str((folder / kept).resolve()))

    def saving() -> None:
        nonlocal kept
        kept = f"{run.steps:015d}"
        temporary = folder / "tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        algorithm.save_to_path(str(temporary.resolve()))
        shutil.rmtree(folder / kept, ignore_errors=True)
        temporary.replace(folder / kept)
        for old in sorted(folder.iterdir())[:-3]:  # the checkpoint before this one may need the second
            shutil.rmtree(old, ignore_errors=True)

    def state() -> dict[str, Any]:
        weights = algorithm.get_module().get_state()
        return {
            "model": {name: torch.as_tensor(np.array(value)) for name, value in weights.items()},
            "optimizer": {},
            "normaliser": {"enabled": False, "reward_scale": scale},
            "rng": {"rllib": kept},
        }

    folder.mkdir(exist_ok=True)
    run.saving = saving
    run.start(state)
    try:
        idle = 0  # updates in which all workers were dead
        while not run.finished:
            before = run.steps
            row = _update(algorithm, run, scale)
            if run.steps > before:
                run.end_update(row)
                idle = 0
                continue
            idle += 1  # nothing was learned
            if idle > IDLE_UPDATES:
                raise LlmgymError(
                    f"{IDLE_UPDATES} updates without a step: the workers are gone and are not replaced. Mend the cluster and "
                    "go on with --resume"
                )
    finally:
        algorithm.stop()


def _update(algorithm: Any, run: Run, scale: float) -> dict[str, float]:
    """One update of RLlib, as a row of the learning curve."""
    began = time.perf_counter()
    try:
        found = algorithm.train()
    except RuntimeError as error:
        raise LlmgymError(f"RLlib has stopped: {str(error).strip().splitlines()[-1]}") from error
    spent = time.perf_counter() - began
    learning = float(found.get("timers", {}).get("learner_update_timer", 0.0))
    run.seconds["learning"] += learning
    run.seconds["env"] += spent - learning
    # both are missing where all workers were lost in this update
    runners, learner = found.get("env_runners", {}), found.get("learners", {}).get("default_policy", {})
    run.steps = int(runners.get("num_env_steps_sampled_lifetime", run.steps))
    row = {name: float(learner[key]) for name, key in LOGGED.items() if key in learner}
    row["episodes"] = float(runners.get("num_episodes", 0.0))
    if (
        "episode_return_mean" in runners
    ):  # none that has ended is known of a worker that has just replaced another
        row["return_mean"] = scale * float(runners["episode_return_mean"])
        row["episode_steps"] = float(runners["episode_len_mean"])
    return row
