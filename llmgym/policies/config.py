"""What a training run is told: the hyperparameters of PPO and the plan of the run. Needs no learning library."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmgym.core.checks import whole
from llmgym.errors import InvalidArgument

ALGORITHMS = ("ppo", "sb3-ppo", "sb3-maskable-ppo")
"""`ppo` is this package's own trainer; the others are stable-baselines3 and sb3-contrib behind the same
interface."""

FIRST_TRAINING_SEED = 2**32
"""Training resets environments with seeds from here up only; every seed below is held out for evaluation."""


@dataclass(frozen=True)
class PPOConfig:
    """Hyperparameters of proximal policy optimisation (Schulman et al., arXiv:1707.06347)."""

    rollout_steps: int = 32
    """Steps taken in every lane before each update; an update learns from `rollout_steps * lanes`
    transitions."""
    epochs: int = 4
    """Passes over those transitions in one update."""
    minibatch: int = 4096
    """Transitions in one gradient step. With stable-baselines3 the nearest number that leaves no last step with a single one."""
    learning_rate: float = 1e-3
    """Step size of Adam at the start."""
    anneal: bool = True
    """Let the learning rate fall linearly to zero at the last step of the run."""
    gamma: float = 0.99
    """Discount factor, for one step or for one simulated second as `discount` says."""
    discount: Literal["step", "second"] = "step"
    """`step`: every decision discounts by gamma. `second`: a decision that took dt simulated seconds discounts by gamma**dt, so a
    policy cannot bring a reward closer by taking fewer decisions (semi-Markov discounting; own trainer only)."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation (Schulman et al., arXiv:1506.02438), per step."""
    clip: float = 0.2
    """How far the probability ratio of new to old policy may leave 1 before its gradient is cut."""
    entropy: float = 0.01
    """Weight of the entropy bonus."""
    value_weight: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Gradients longer than this are shortened to it."""
    target_kl: float | None = 0.03
    """Stop the epochs of an update once the policy has moved this far (estimated KL divergence); None never
    stops."""
    network: Literal["perceptron", "scorer"] = "perceptron"
    """`perceptron`: layers over the flat observation. `scorer`: one small network for every row of the observation's tables, which
    gives the actions that belong to rows their logits (`Layout.tables`; own trainer only)."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, the same for the policy and the value network, which share nothing."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Non-linearity of the hidden layers."""
    normalise_observations: bool = True
    """Subtract the running mean and divide by the running deviation; both are stored in the checkpoint."""
    scale_rewards: bool = True
    """Divide rewards by the running deviation of the discounted return (their mean is left alone)."""
    teacher: str = ""
    """A rule to imitate before anything else is learned, such as `hybrid:threshold=0.3`; empty: none. Own trainer only."""
    teacher_steps: int = 300_000
    """Environment steps of the imitation, over all lanes; they do not count as steps of the run."""
    value_first: int = 0
    """Updates at the start in which the value network alone learns, so that a policy that imitates is not spoilt by bad advice."""
    scatter: int = 1024
    """Lanes begin together, and where episodes are long and alike they would stay in step: an update would see the same hour of
    every day. So each lane is restarted once, after a number of steps drawn up to this one; the learner takes it as a cut-off. 0
    leaves them in step. Own trainer only."""
    device: str = "cpu"
    """Where the networks live: a device of torch such as `cuda:1`. Own trainer only."""
    env_device: str = "cpu"
    """Where the lanes live: `cpu`, or a GPU, the same as `device`, so that rollouts never leave it. Own trainer only."""
    threads: int = 0
    """Threads of the learning library. 0 takes all cores, at most 4, if the environment variable
    `OMP_WAIT_POLICY` is `passive` (train.py sets it), else 1: threads that wait actively lose all speed when
    another program wants a core."""

    def __post_init__(self) -> None:
        for name, least in (
            ("rollout_steps", 1),
            ("epochs", 1),
            ("minibatch", 1),
            ("scatter", 0),
            ("teacher_steps", 1),
            ("value_first", 0),
            ("threads", 0),
        ):
            whole(name, getattr(self, name), least)
        for width in self.hidden:
            whole("hidden", width)
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0 or not math.isfinite(getattr(self, name)):
                raise InvalidArgument(f"{name}={getattr(self, name)!r}: expected a number above 0")
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InvalidArgument(f"{name}={getattr(self, name)!r}: expected a number from 0 to 1")
        for name in ("clip", "entropy", "value_weight"):
            if not getattr(self, name) >= 0:
                raise InvalidArgument(f"{name}={getattr(self, name)!r}: expected a number of at least 0")
        if self.target_kl is not None and not self.target_kl > 0:
            raise InvalidArgument(f"target_kl={self.target_kl!r}: expected None or a number above 0")
        for name, allowed in (
            ("discount", ("step", "second")),
            ("activation", ("tanh", "relu")),
            ("network", ("perceptron", "scorer")),
        ):
            if getattr(self, name) not in allowed:
                raise InvalidArgument(f"{name}={getattr(self, name)!r}: allowed {', '.join(allowed)}")
        if self.network == "scorer" and len(self.hidden) != 2:
            raise InvalidArgument(
                f"hidden={self.hidden!r}: a scorer has two widths, of a row's features and of the summary"
            )
        if not self.hidden:
            raise InvalidArgument("hidden=(): expected the widths of one layer or more")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts and lists, as a checkpoint stores them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "PPOConfig":
        """The inverse of `to_dict`; fields this version does not know are left out."""
        known = {f.name for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**{k: v for k, v in values.items() if k in known})


@dataclass(frozen=True)
class Plan:
    """One training run.

    Attributes:
        env_id: registered id of the environment.
        env_kwargs: its arguments: plain numbers, texts, booleans, None, and lists or dicts of them.
        out: folder of the run; it is made if need be.
        algo: one of `ALGORITHMS`.
        timesteps: environment steps of the whole run, over all lanes, what was done before a resume included.
        seed: of the networks, the exploration and the training episodes.
        lanes: copies of the environment that step together.
        resume: go on from the checkpoint in `out`, which must exist. False refuses a folder that holds one.
        save_every_s: seconds of wall time between checkpoints; 0 saves after every update.
        log: also write tensorboard files into `out`.
        progress: show progress on stderr.
        config: hyperparameters.
    """

    env_id: str
    out: Path
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    algo: str = "ppo"
    timesteps: int = 5_000_000
    seed: int = 0
    lanes: int = 1024
    resume: bool = False
    save_every_s: float = 20.0
    log: bool = False
    progress: bool = True
    config: PPOConfig = field(default_factory=PPOConfig)

    def __post_init__(self) -> None:
        whole("timesteps", self.timesteps, 1, 2**62)
        whole("lanes", self.lanes)
        whole("seed", self.seed, 0, 2**32 - 1)  # what numpy's generator takes, which stable-baselines3 seeds
        if not self.save_every_s >= 0:
            raise InvalidArgument(
                f"save_every_s={self.save_every_s!r}: expected a number of seconds, at least 0"
            )


def training_seed(seed: int, steps: int) -> int:
    """The first of the lanes' seeds (lane i gets this + i) for a run that begins or resumes after `steps`
    steps.

    It depends on both, so a resumed run meets new episodes, and it is at least `FIRST_TRAINING_SEED`, so it
    never meets one that a comparison uses.
    """
    drawn = int(np.random.SeedSequence([seed, steps]).generate_state(1, np.uint64)[0])
    return FIRST_TRAINING_SEED + (drawn >> 2)
