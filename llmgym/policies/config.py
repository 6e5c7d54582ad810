"""What a training run is told: the hyperparameters of PPO and the plan of the run. Needs no learning library."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmgym.core.checks import whole
from llmgym.errors import InvalidArgument
from llmgym.policies.callbacks import Callback, Logger

NETWORKS = ("mlp", "scorer", "attention", "recurrent")
"""Kinds of networks; all but the first are of the own trainer only."""
RENAMED = {"teacher": "imitate", "teacher_steps": "imitate_steps"}
"""Fields of `PPOConfig` that older checkpoints know by another name."""

ALGORITHMS = ("ppo", "sb3-ppo", "sb3-maskable-ppo")
"""`ppo` is this package's own trainer; the others are stable-baselines3 and sb3-contrib behind the same
interface."""
RLLIB = "rllib-ppo"
"""RLlib's PPO on a cluster of Ray, behind it too."""

FIRST_TRAINING_SEED = 2**32
"""Training resets environments with seeds from here up only; every seed below is held out."""
FIRST_VALIDATION_SEED = 4_000_000_000
"""Validation during training plays the worlds of this seed and the following, below `FIRST_TRAINING_SEED`. No comparison uses them:
those of `llmgym train` stay below 2,000,000,000, and the worlds on which their baselines are tuned are as many seeds above it."""


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
    network: Literal["mlp", "scorer", "attention", "recurrent"] = "mlp"
    """`mlp`: layers over the flat observation. `scorer`: one small network for every row of the observation's tables, which
    gives the actions that belong to rows their logits (`Layout.tables`). `attention`: the same, after the rows have attended to
    each other; a row of zeros is empty. `recurrent`: layers and a gated recurrent unit, whose memory is empty when an episode
    begins. All but `mlp` are of the own trainer only."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, the same for the policy and the value network, which share nothing. Of a scorer and attention:
    of a row's features, and of the summary."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Non-linearity of the hidden layers."""
    normalise_observations: bool = True
    """Subtract the running mean and divide by the running deviation; both are stored in the checkpoint."""
    scale_rewards: bool = True
    """Divide rewards by the running deviation of the discounted return (their mean is left alone)."""
    imitate: str = ""
    """A rule to imitate before anything else is learned, such as `hybrid:threshold=0.3`; empty: none. Own trainer only."""
    imitate_steps: int = 300_000
    """Environment steps of the imitation, over all lanes; they do not count as steps of the run."""
    imitate_rounds: int = 4
    """Rounds of the imitation in which the rule acts and the network learns what it chose (behaviour cloning)."""
    dagger_rounds: int = 4
    """Rounds after these in which the network acts and learns what the rule would have chosen (as in DAgger); 0: none."""
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
    """Threads of the learning library, and of the lanes where they live on the CPU. 0: the lanes have 1; the library takes all
    cores, at most 4, if the environment variable `OMP_WAIT_POLICY` is `passive` (train.py sets it), else 1: threads that wait
    actively lose all speed when another program wants a core."""

    def __post_init__(self) -> None:
        for name, least in (
            ("rollout_steps", 1),
            ("epochs", 1),
            ("minibatch", 1),
            ("scatter", 0),
            ("imitate_steps", 1),
            ("imitate_rounds", 1),
            ("dagger_rounds", 0),
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
            ("network", NETWORKS),
        ):
            if getattr(self, name) not in allowed:
                raise InvalidArgument(f"{name}={getattr(self, name)!r}: allowed {', '.join(allowed)}")
        if self.network in ("scorer", "attention") and len(self.hidden) != 2:
            raise InvalidArgument(
                f'hidden={self.hidden!r}: network="{self.network}" has two widths, of a row\'s features and of the summary'
            )
        if self.network == "attention" and self.hidden[0] % 4:
            raise InvalidArgument(
                f"hidden={self.hidden!r}: attention has 4 heads, so the first width is a multiple of 4"
            )
        if not self.hidden:
            raise InvalidArgument("hidden=(): expected the widths of one layer or more")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts and lists, as a checkpoint stores them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "PPOConfig":
        """The inverse of `to_dict`; fields this version does not know are left out, older names are known."""
        known = {f.name for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {
            RENAMED.get(k, k): tuple(v) if isinstance(v, list) else v for k, v in stored.items()
        }
        if values.get("network") == "perceptron":
            values["network"] = "mlp"
        return cls(**{k: v for k, v in values.items() if k in known})


@dataclass(frozen=True)
class Plan:
    """One training run.

    Attributes:
        env_id: registered id of the environment.
        env_kwargs: its arguments: plain numbers, texts, booleans, None, and lists or dicts of them.
        out: folder of the run; it is made if need be.
        algo: one of `ALGORITHMS`, or `RLLIB`.
        timesteps: environment steps of the whole run, over all lanes, what was done before a resume included.
        seed: of the networks, the exploration and the training episodes.
        lanes: copies of the environment that step together.
        resume: go on from the checkpoint in `out`, which must exist. False refuses a folder that holds one.
        save_every_s: seconds of wall time between checkpoints; 0 saves after every update.
        log: also write tensorboard files into `out`.
        progress: show progress on stderr.
        config: hyperparameters.
        init: a checkpoint, or the name of a shipped policy, whose weights and moments of observations are where learning begins;
            empty: none. Own trainer only.
        validation_episodes: episodes of a validation, which is on worlds held out from training and from comparisons (see
            `FIRST_VALIDATION_SEED`); the best checkpoint is kept as `best.pt`. 0: there is none.
        validate_every: updates between validations; 0: about twenty in all. The last update is followed by one anyhow.
        patience: validations without a better one after which the training ends; 0: it goes on to the last step.
        callbacks: hooks of one's own.
        loggers: where else the learning curve is written to.
        workers: processes that step lanes, with RLlib; None: one a core but one, which learns.
        address: of a Ray cluster that runs, as `host:port`, `ray://host:port` or `auto`; None: one on this machine.
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
    init: str = ""
    validation_episodes: int = 0
    validate_every: int = 0
    patience: int = 0
    callbacks: Sequence[Callback] = ()
    loggers: Sequence[Logger] = ()
    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        whole("timesteps", self.timesteps, 1, 2**62)
        whole("validation_episodes", self.validation_episodes, 0, FIRST_TRAINING_SEED - FIRST_VALIDATION_SEED)
        whole("validate_every", self.validate_every, 0)
        whole("patience", self.patience, 0)
        if self.patience and not self.validation_episodes:
            raise InvalidArgument(
                f"patience={self.patience!r}: needs validation_episodes above 0, by which it is known what is better"
            )
        whole("lanes", self.lanes)
        if self.workers is not None:
            whole("workers", self.workers)
        for name in ("workers", "address"):
            if getattr(self, name) is not None and self.algo != RLLIB:
                raise InvalidArgument(
                    f"{name}={getattr(self, name)!r}: only RLlib has {name}, not algo={self.algo!r}"
                )
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
