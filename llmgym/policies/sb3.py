"""stable-baselines3 on lanes: a `VecEnv` over the native vector environment, and a trainer with the own
trainer's interface.

stable-baselines3 knows no gymnasium vector environments; it wants the conventions of its own `VecEnv`: an ended episode restarts
in the same step, its last observation is `info["terminal_observation"]`, and `info["TimeLimit.truncated"]` says whether it was
cut off.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from llmgym.core.env import LaneVectorEnv
from llmgym.errors import CheckpointError, InvalidArgument
from llmgym.policies.checkpoint import whole_or_not_at_all
from llmgym.policies.config import Plan, training_seed
from llmgym.policies.episodes import EPISODE_COLUMNS, Episodes
from llmgym.policies.learner import LOSS_COLUMNS
from llmgym.policies.run import Run, TrainingResult, learning_threads

Indices = None | int | Iterable[int]

LOGGED = {
    "policy_loss": ("train/policy_gradient_loss", 1.0),
    "value_loss": ("train/value_loss", 0.5),  # theirs is the mean square, ours half of it
    "entropy": ("train/entropy_loss", -1.0),
    "approx_kl": ("train/approx_kl", 1.0),
    "clip_fraction": ("train/clip_fraction", 1.0),
    "explained_variance": ("train/explained_variance", 1.0),
    "learning_rate": ("train/learning_rate", 1.0),
}


class SB3VecEnv(VecEnv):
    """A `LaneVectorEnv` as stable-baselines3 wants it; PPO and MaskablePPO train on it.

    Every step returns fresh arrays and a fresh dict for each lane. The dict of a lane is empty unless its episode ended; then it
    has `terminal_observation`, `TimeLimit.truncated`, `episode` (`r` return, `l` steps, `t` seconds since this object was made,
    as `Monitor` writes them), `metrics`, `action_mask` (that of the terminal observation) and `dt`.

    Args:
        env: lanes in `SAME_STEP` mode.

    Raises:
        InvalidArgument: it is something else, or in another mode.
    """

    def __init__(self, env: LaneVectorEnv) -> None:
        if not isinstance(env, LaneVectorEnv):
            what = (
                "a single environment, which PPO takes as it is"
                if isinstance(env, gymnasium.Env)
                else "no native lanes"
            )
            raise InvalidArgument(
                f"env={env}: {what}; SB3VecEnv takes gymnasium.make_vec(id, num_envs, autoreset_mode=AutoresetMode.SAME_STEP)"
            )
        if env.device != "cpu":
            raise InvalidArgument(f"device={env.device}: stable-baselines3 takes lanes on the cpu")
        if env.autoreset_mode != AutoresetMode.SAME_STEP:
            raise InvalidArgument(
                f"autoreset_mode={env.autoreset_mode.name}: stable-baselines3 needs SAME_STEP"
            )
        self.venv = env
        self.render_mode = env.render_mode
        self._began = time.perf_counter()
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, np.int64)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> NDArray[np.float32]:
        """Start an episode in every lane, with the seeds that `seed` set for this one reset."""
        seeded = self._seeds[0] is not None
        obs, infos = self.venv.reset(seed=list(self._seeds) if seeded else None)
        self._returns[:], self._lengths[:] = 0.0, 0
        self.reset_infos = [{"action_mask": mask.copy(), "dt": 0.0} for mask in infos["action_mask"]]
        self._reset_seeds()
        self._reset_options()
        return obs.copy()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Remember the actions; `step_wait` carries them out."""
        self._actions = actions

    def step_wait(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Step every lane: observations, rewards (float32), dones and infos."""
        obs, rewards, terminated, truncated, infos = self.venv.step(self._actions)
        self._returns += rewards
        self._lengths += 1
        dones = terminated | truncated
        out: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if "final_obs" in infos:
            final = infos["final_info"]
            names = self.venv.simulation.metric_names
            elapsed = round(time.perf_counter() - self._began, 6)
            for lane in np.flatnonzero(dones).tolist():
                out[lane] = {
                    "terminal_observation": infos["final_obs"][lane].copy(),
                    "TimeLimit.truncated": bool(truncated[lane] and not terminated[lane]),
                    "episode": {"r": float(self._returns[lane]), "l": int(self._lengths[lane]), "t": elapsed},
                    "metrics": {name: float(final["metrics"][name][lane]) for name in names},
                    "action_mask": final["action_mask"][lane].copy(),
                    "dt": float(final["dt"][lane]),
                }
            self._returns[dones] = 0.0
            self._lengths[dones] = 0
        return obs.copy(), rewards.astype(np.float32), dones, out

    def close(self) -> None:
        """Release the lanes."""
        self.venv.close()

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are allowed now, bool [lanes, actions]."""
        return self.venv.action_masks()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """One picture a lane; None without `render_mode="rgb_array"`."""
        frames = self.venv.render() if self.render_mode == "rgb_array" else None
        return list(frames) if frames is not None else [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """An attribute of the environment, once for each lane asked for."""
        lanes = list(self._get_indices(indices))
        single = {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "num_envs": 1,
        }
        if attr_name in ("action_masks", "render", "metrics"):
            return [lambda lane=lane: self.env_method(attr_name, indices=lane)[0] for lane in lanes]
        value = single[attr_name] if attr_name in single else getattr(self.venv, attr_name)
        return [value] * len(lanes)

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of the environment, which all lanes share.

        Args:
            attr_name: name of the attribute.
            value: what to set it to.
            indices: None, or all lanes.

        Raises:
            InvalidArgument: `indices` leaves lanes out.
        """
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise InvalidArgument(
                f"set_attr({attr_name!r}, indices={indices!r}): lanes share attributes; leave indices out"
            )
        setattr(self.venv, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of single environments on lanes.

        Args:
            method_name: `action_masks`, `metrics`, `render`, `get_wrapper_attr` or `has_wrapper_attr`.
            method_args: for the last two, the name of the attribute; the others have none.
            indices: lanes, from 0; None: all.
            method_kwargs: not used.

        Returns:
            What the method returns, one entry for each lane asked for.

        Raises:
            AttributeError: there is no such method.
        """
        lanes = list(self._get_indices(indices))
        if method_name == "action_masks":
            masks = self.venv.action_masks()
            return list(masks) if indices is None else [masks[lane] for lane in lanes]
        if method_name == "metrics":
            self.venv._check_began("metrics")
            return [self.venv.lanes.metrics_now(lane) for lane in lanes]
        if method_name == "render":
            frames = self.venv.render()
            return [None if frames is None else frames[lane] for lane in lanes]
        if method_name == "get_wrapper_attr":
            return self.get_attr(method_args[0], indices=lanes)
        if method_name == "has_wrapper_attr":
            return [self.has_attr(method_args[0])] * len(lanes)
        raise AttributeError(
            f"lanes have no method {method_name!r}; known: action_masks, "
            "metrics, render, get_wrapper_attr, has_wrapper_attr"
        )

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: Indices = None
    ) -> list[bool]:
        """True for `Monitor`, whose work this class does (so that evaluation helpers do not warn), else False."""
        from stable_baselines3.common.monitor import Monitor

        return [issubclass(wrapper_class, Monitor)] * len(list(self._get_indices(indices)))


class _Recorder(BaseCallback):
    """Writes the learning curve and the checkpoints of a run; its hooks lie between two updates, when the state is whole."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self._episodes = Episodes(run.plan.lanes, run.env.simulation.metric_names)
        self._mark = time.perf_counter()
        self._env_s = 0.0
        self._over = False
        self.pending = False
        """Whether an update has not been recorded yet."""

    def _on_rollout_start(self) -> None:
        if self.pending:
            self.finish_update()
            self._over = self._run.finished
        self._mark = time.perf_counter()

    def _on_step(self) -> bool:
        if self._over:  # it ended with the update before; this step counts for nothing
            return False
        lanes = self._run.env.lanes
        self._episodes.step(lanes.buffers.reward, self.locals["dones"], lanes.metric_columns())
        self._run.stepped()
        return True

    def _on_rollout_end(self) -> None:
        now = time.perf_counter()
        # what a rollout spent outside the environment is inference and bookkeeping
        inside = self._run.seconds["env"] - self._env_s
        self._env_s = self._run.seconds["env"]
        self._run.seconds["inference"] += now - self._mark - inside
        self._run.rolled_out()
        self._mark, self.pending = now, True

    def finish_update(self, last: bool = False) -> None:
        """Record the update that has just ended, and save if it is time."""
        run = self._run
        run.seconds["learning"] += time.perf_counter() - self._mark
        run.steps = self.model.num_timesteps
        logged = self.model.logger.name_to_value
        row = {name: sign * float(logged[key]) for name, (key, sign) in LOGGED.items() if key in logged}
        self.pending = False
        run.end_update({**row, **self._episodes.averages()}, last)
        self._episodes.clear()


def train_sb3(plan: Plan) -> TrainingResult:
    """Train with stable-baselines3's PPO or sb3-contrib's MaskablePPO: same plan, same run folder, same
    checkpoints.

    Also writes `sb3.zip`, the archive that `PPO.load` and `MaskablePPO.load` take. `sb3-ppo` knows no masks: a masked action does
    what the environment's `invalid_action` says.

    Raises:
        CheckpointError: `plan.resume` is set and there is nothing that fits to resume from.
        InvalidArgument: the plan cannot be carried out.
    """
    if plan.config.network != "mlp":
        raise InvalidArgument(
            f'network="{plan.config.network}": stable-baselines3 gets an mlp here; use algo="ppo"'
        )
    if plan.config.imitate:
        raise InvalidArgument(
            f'imitate="{plan.config.imitate}": only the own trainer imitates; use algo="ppo"'
        )
    if plan.init:
        raise InvalidArgument(
            f'init="{plan.init}": only the own trainer begins with another policy; use algo="ppo"'
        )
    if plan.config.device != "cpu":
        raise InvalidArgument(
            f'device="{plan.config.device}": with stable-baselines3 it is the cpu here; use algo="ppo"'
        )
    if plan.config.env_device != "cpu":
        raise InvalidArgument(
            f'env_device="{plan.config.env_device}": with stable-baselines3 it is the cpu here; use algo="ppo"'
        )
    if plan.config.discount == "second":
        raise InvalidArgument('discount="second": stable-baselines3 discounts by steps; use algo="ppo"')
    minibatch = minibatch_size(plan.config.rollout_steps * plan.lanes, plan.config.minibatch)
    with Run(plan, (*EPISODE_COLUMNS, *LOSS_COLUMNS[:-1])) as run:
        if plan.algo == "sb3-maskable-ppo" and isinstance(run.env.single_action_space, Box):
            raise InvalidArgument(f"algo={plan.algo!r}: a Box action cannot be masked; use sb3-ppo or ppo")
        with learning_threads(plan.config.threads):
            _train(plan, run, minibatch)
        return run.result()


def minibatch_size(batch: int, wanted: int) -> int:
    """Transitions of a gradient step: as many as wanted, or the nearest number that leaves no last step with a single one.

    stable-baselines3 divides advantages by their deviation within each minibatch, which a single one does not have:
    MaskablePPO's networks become NaN.

    Args:
        batch: transitions of an update.
        wanted: `PPOConfig.minibatch`.

    Raises:
        InvalidArgument: `batch` or `wanted` is a single transition.
    """
    for name, value in (("rollout_steps * lanes", batch), ("minibatch", wanted)):
        if value < 2:
            raise InvalidArgument(
                f"{name}={value}: expected at least 2, as stable-baselines3 normalises advantages within a minibatch "
                '(algo="ppo" does so over all of them)'
            )
    wanted = min(wanted, batch)
    near = (size for far in range(batch) for size in (wanted - far, wanted + far) if 2 <= size <= batch)
    return next(size for size in near if batch % size != 1)


def _train(plan: Plan, run: Run, minibatch: int) -> None:
    config = plan.config
    vec = SB3VecEnv(run.env)
    _time_steps(vec, run)
    normaliser = VecNormalize(
        vec,
        norm_obs=config.normalise_observations,
        norm_reward=config.scale_rewards,
        clip_reward=np.inf,
        gamma=config.gamma,
    )
    model = (MaskablePPO if plan.algo == "sb3-maskable-ppo" else PPO)(
        "MlpPolicy",
        normaliser,
        learning_rate=(lambda left: config.learning_rate * max(left, 0.0))
        if config.anneal
        else config.learning_rate,
        n_steps=config.rollout_steps,
        batch_size=minibatch,
        n_epochs=config.epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip,
        ent_coef=config.entropy,
        vf_coef=config.value_weight,
        max_grad_norm=config.max_grad_norm,
        target_kl=config.target_kl,
        policy_kwargs={
            "net_arch": list(config.hidden),
            "activation_fn": torch.nn.Tanh if config.activation == "tanh" else torch.nn.ReLU,
        },
        seed=plan.seed,
        device="cpu",
    )
    if run.stored is not None:
        _restore(run.stored, model, normaliser)

    def state() -> dict[str, Any]:
        return {
            "model": model.policy.state_dict(),
            "optimizer": model.policy.optimizer.state_dict(),
            "normaliser": {
                "observations": _moments(getattr(normaliser, "obs_rms", None)),
                "returns": _moments(normaliser.ret_rms),
                "enabled": config.normalise_observations,
                "variance_floor": normaliser.epsilon,
                "clip": float(normaliser.clip_obs),
            },
            "rng": {
                "torch": torch.get_rng_state(),
                "numpy": _numpy_state(),
                "updates": int(model._n_updates),
            },
        }

    normaliser.seed(training_seed(plan.seed, run.steps))
    recorder = _Recorder(run)
    run.start(state)
    if not run.finished:
        model.learn(plan.timesteps - run.steps, callback=recorder, reset_num_timesteps=False)
        if recorder.pending:
            recorder.finish_update(last=True)
    archive, temporary = plan.out / "sb3.zip", plan.out / "sb3.tmp.zip"
    with whole_or_not_at_all(archive, temporary):
        model.save(temporary)
        temporary.replace(archive)


def _time_steps(vec: SB3VecEnv, run: Run) -> None:
    """Have the time that passes inside the environment added to the run's books."""
    inner = vec.step_wait

    def timed() -> Any:
        began = time.perf_counter()
        result = inner()
        run.seconds["env"] += time.perf_counter() - began
        return result

    vec.step_wait = timed  # type: ignore[method-assign]


def _moments(rms: Any) -> dict[str, Any]:
    if rms is None:
        return {}
    return {
        "mean": torch.as_tensor(rms.mean).clone(),
        "var": torch.as_tensor(rms.var).clone(),
        "count": float(rms.count),
    }


def _numpy_state() -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002  stable-baselines3 shuffles with it
    return {
        "name": str(name),
        "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "rest": [int(position), int(has_gauss), float(gauss)],
    }


def _restore(stored: dict[str, Any], model: Any, normaliser: VecNormalize) -> None:
    try:
        model.policy.load_state_dict(stored["model"])
        model.policy.optimizer.load_state_dict(stored["optimizer"])
        for rms, name in (
            (getattr(normaliser, "obs_rms", None), "observations"),
            (normaliser.ret_rms, "returns"),
        ):
            saved = stored["normaliser"][name]
            if rms is not None and saved:
                rms.mean, rms.var, rms.count = (
                    saved["mean"].numpy().copy(),
                    saved["var"].numpy().copy(),
                    saved["count"],
                )
        rng = stored["rng"]
        torch.set_rng_state(rng["torch"])
        numpy_state = rng["numpy"]
        keys = numpy_state["keys"].numpy().astype(np.uint32)
        np.random.set_state((numpy_state["name"], keys, *numpy_state["rest"]))  # noqa: NPY002
        model._n_updates = rng["updates"]
        model.num_timesteps = int(stored["meta"]["steps"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"the training state in the checkpoint cannot be restored: {error}") from error
