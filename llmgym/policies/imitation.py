"""A beginning for a policy: imitate a rule, then learn on.

The network is taught the rule's choices in the states that the rule meets, then in those that the network itself meets, so that
it knows the way back from its own mistakes (as in DAgger: Ross, Gordon, Bagnell, "A reduction of imitation learning and structured
prediction to no-regret online learning", AISTATS 2011; here what was seen is learned from once and not kept). What it has learned
is what can be told from the observation; a rule that is drawn, or remembers, is imitated on average.
"""

from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from torch import nn

from llmgym import baselines
from llmgym.core.policy import Policy
from llmgym.errors import InvalidArgument
from llmgym.policies.config import PPOConfig, training_seed
from llmgym.policies.network import ActorCritic, RunningMoments, normalised
from llmgym.policies.run import Run

ROUNDS = 8
"""Parts of the imitation; the rule acts in the first half of them, the network in the others."""
EPOCHS = 4
"""Passes over the rows of a part."""


def teacher_of(run: Run) -> Policy:
    """The rule that a run imitates.

    Raises:
        InvalidArgument: it is privileged, or plays with other arguments of the environment, or the actions are not discrete.
        UnknownName: the environment has no such rule.
    """
    name, env_id = run.plan.config.teacher, run.plan.env_id.rpartition(":")[2]
    if isinstance(run.env.single_action_space, Box):
        raise InvalidArgument(
            f"teacher={name!r}: only discrete actions can be imitated, not {run.env.single_action_space}"
        )
    kwargs = dict(run.plan.env_kwargs)
    if differing := {k: v for k, v in baselines.env_kwargs(env_id, name).items() if kwargs.get(k, v) != v}:
        raise InvalidArgument(
            f"teacher={name!r} plays with {differing}, this environment has other arguments"
        )
    rule = baselines.make(name, run.env)
    if rule.privileged:
        raise InvalidArgument(f"teacher={name!r} sees what a policy does not, so it cannot be imitated")
    return rule


def imitate(
    run: Run,
    net: ActorCritic,
    optimizer: torch.optim.Optimizer,
    moments: RunningMoments,
    generator: torch.Generator,
    shuffler: np.random.Generator,
    device: torch.device,
) -> None:
    """Teach the policy a rule, before anything else is learned.

    Args:
        run: names the rule and the number of steps (`PPOConfig.teacher`, `teacher_steps`).
        net: the networks; the one for the policy changes.
        optimizer: of all networks.
        moments: of the observations; they move with what is seen.
        generator: draws the network's actions.
        shuffler: orders the rows.
        device: where the networks live.

    Raises:
        InvalidArgument: the rule cannot be imitated.
    """
    config, env = run.plan.config, run.env
    rule = teacher_of(run)
    lanes, steps = env.num_envs, max(1, -(-config.teacher_steps // (ROUNDS * env.num_envs)))
    current, infos = env.reset(seed=training_seed(run.plan.seed, 0))
    rule.reset(np.ones(lanes, np.bool_))
    for part in range(ROUNDS):
        rows, masks, actions = [], [], []
        for _ in range(steps):
            mask = infos["action_mask"].astype(np.bool_)
            advice = np.asarray(rule.act(current, infos["action_mask"]))
            rows.append(current.copy())
            masks.append(mask)
            actions.append(advice.reshape(lanes, -1).copy())
            if part < ROUNDS // 2:
                sent: NDArray[Any] = advice
            else:
                with torch.no_grad():
                    seen = normalised(current, moments, config.normalise_observations, device)
                    drawn, _ = net.sample(seen, torch.from_numpy(mask).to(device), generator)
                sent = net.to_environment(drawn)
            current, _, terminated, truncated, infos = env.step(sent)
            if (ended := terminated | truncated).any():
                rule.reset(ended)
        if config.normalise_observations:
            moments.update(np.concatenate(rows))
        seen = normalised(np.concatenate(rows), moments, config.normalise_observations, device)
        right = _learn(
            net, optimizer, config, seen,
            torch.from_numpy(np.concatenate(masks)).to(device),
            torch.from_numpy(np.concatenate(actions).astype(np.int64)).to(device),
            shuffler,
        )  # fmt: skip
        run.say(
            f"imitating {config.teacher}: part {part + 1} of {ROUNDS}, {100 * right:.1f} % of its choices"
        )


def _learn(
    net: ActorCritic,
    optimizer: torch.optim.Optimizer,
    config: PPOConfig,
    rows: torch.Tensor,
    masks: torch.Tensor,
    actions: torch.Tensor,
    shuffler: np.random.Generator,
) -> float:
    """Raise the likelihood of these actions; returns the share of rows whose likeliest action is the rule's, in the last pass."""
    hits, seen = 0.0, 0
    for epoch in range(EPOCHS):
        order = torch.from_numpy(shuffler.permutation(len(rows))).to(rows.device)
        for pick in order.split(config.minibatch):
            law = net.log_probabilities(rows[pick], masks[pick])
            chosen = law.gather(-1, actions[pick].unsqueeze(-1)).squeeze(-1)
            optimizer.zero_grad(set_to_none=True)
            (-chosen.sum(dim=-1).mean()).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), config.max_grad_norm)
            optimizer.step()
            if epoch == EPOCHS - 1:
                hits += float((law.argmax(dim=-1) == actions[pick]).all(dim=-1).float().sum())
                seen += len(pick)
    return hits / max(seen, 1)
