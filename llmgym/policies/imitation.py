"""A beginning for a policy: imitate a rule, then learn on.

The network is taught the rule's choices in the states that the rule meets, then in those that the network itself meets, so that
it knows the way back from its own mistakes (as in DAgger: Ross, Gordon, Bagnell, "A reduction of imitation learning and structured
prediction to no-regret online learning", AISTATS 2011; here what was seen is learned from once and not kept). What it has learned
is what can be told from the observation; a rule that is drawn, or remembers, is imitated on average.
"""

import contextlib
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray

from llmgym import baselines
from llmgym.core.env import LaneVectorEnv
from llmgym.core.policy import Policy
from llmgym.errors import InvalidArgument
from llmgym.policies.config import training_seed
from llmgym.policies.learner import Learner
from llmgym.policies.network import normalised
from llmgym.policies.recurrent import Before
from llmgym.policies.run import Run, make_lanes

EPOCHS = 4
"""Passes over the rows of a round."""


MOST_LANES = 512
"""Lanes on the CPU that a rule plays in, where those of the run are on a GPU."""


def teacher_of(run: Run, env: LaneVectorEnv) -> Policy:
    """The rule that a run imitates, playing in these lanes.

    Raises:
        InvalidArgument: it is privileged, or plays with other arguments of the environment, or the actions are not discrete.
        UnknownName: the environment has no such rule.
    """
    name, env_id = run.plan.config.imitate, run.plan.env_id.rpartition(":")[2]
    if isinstance(env.single_action_space, Box):
        raise InvalidArgument(
            f"imitate={name!r}: only discrete actions can be imitated, not {env.single_action_space}"
        )
    kwargs = dict(run.plan.env_kwargs)
    if differing := {k: v for k, v in baselines.env_kwargs(env_id, name).items() if kwargs.get(k, v) != v}:
        raise InvalidArgument(
            f"imitate={name!r} plays with {differing}, this environment has other arguments"
        )
    rule = baselines.make(name, env)
    if rule.privileged:
        raise InvalidArgument(f"imitate={name!r} sees what a policy does not, so it cannot be imitated")
    return rule


def imitate(run: Run, learner: Learner) -> None:
    """Teach the policy a rule, before anything else is learned.

    A rule plays on the CPU: where the lanes of the run are on a GPU, it gets lanes of its own.

    Args:
        run: names the rule and the number of steps (`PPOConfig.imitate`, `imitate_steps`, `imitate_rounds`, `dagger_rounds`).
        learner: what learns; the policy changes, and the moments of the observations.

    Raises:
        InvalidArgument: the rule cannot be imitated.
    """
    if run.plan.config.env_device == "cpu":
        _imitate(run, learner, run.env)
        return
    lanes = min(run.plan.lanes, MOST_LANES)
    with contextlib.closing(make_lanes(run.plan.env_id, lanes, run.plan.env_kwargs)) as env:
        _imitate(run, learner, env)


def _imitate(run: Run, learner: Learner, env: LaneVectorEnv) -> None:
    config, net, device = run.plan.config, learner.net, learner.device
    rule = teacher_of(run, env)
    rounds = config.imitate_rounds + config.dagger_rounds
    lanes, steps = env.num_envs, max(1, -(-config.imitate_steps // (rounds * env.num_envs)))
    current, infos = env.reset(seed=training_seed(run.plan.seed, 0))
    ended = np.ones(lanes, np.bool_)
    rule.reset(ended)
    before = learner.nothing_remembered(torch.from_numpy(ended).to(device))
    for part in range(rounds):
        rows, masks, actions, begins = [], [], [], []
        first = before
        for _ in range(steps):
            mask = infos["action_mask"].astype(np.bool_)
            advice = np.asarray(rule.act(current, infos["action_mask"]))
            rows.append(current.copy())
            masks.append(mask)
            actions.append(advice.reshape(lanes, -1).copy())
            begins.append(ended)
            sent: NDArray[Any] = advice
            if part >= config.imitate_rounds or before is not None:
                seen = torch.from_numpy(rows[-1]).to(device)
                with torch.no_grad():
                    drawn, _, memory = net.sample(
                        normalised(seen, learner.obs_moments, config.normalise_observations),
                        torch.from_numpy(mask).to(device),
                        learner.generator,
                        before,
                    )
                if part >= config.imitate_rounds:
                    sent = net.to_environment(drawn)
            current, _, terminated, truncated, infos = env.step(sent)
            if (ended := terminated | truncated).any():
                rule.reset(ended)
            if before is not None and memory is not None:
                before = Before(memory, before.critic, torch.from_numpy(ended).to(device))
        if config.normalise_observations:
            learner.obs_moments.update(np.concatenate(rows))
        if first is not None:
            first = first._replace(begins=torch.from_numpy(np.concatenate(begins)).to(device))
        right = learner.copy(
            normalised(
                torch.from_numpy(np.concatenate(rows)).to(device),
                learner.obs_moments,
                config.normalise_observations,
            ),
            torch.from_numpy(np.concatenate(masks)).to(device),
            torch.from_numpy(np.concatenate(actions).astype(np.int64)).to(device),
            first,
            EPOCHS,
        )
        run.say(
            f"imitating {config.imitate}: part {part + 1} of {rounds}, {100 * right:.1f} % of its choices"
        )
