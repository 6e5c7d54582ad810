"""Writing a policy or a rule of KVQueue-v1 to a file that an engine reads with numpy alone."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from llmgym import baselines, policies
from llmgym.baselines.kv.queue_pick import PickArea
from llmgym.deploy.bundle import Bundle, Objective, Scales, layout_of, write
from llmgym.deploy.network import network
from llmgym.envs.kv.queue_v1.env import KVQueue
from llmgym.errors import CheckpointError, InvalidArgument

ENV_ID = "llmgym/KVQueue-v1"
ENGINE = ("kv_capacity", "budget", "seats", "block", "prefix_caching")
"""Settings of an engine that a policy was made for, and that a live one is compared with."""


def described(env: Any, **parts: Any) -> Bundle:
    """Layout, scales and objectives of an environment.

    Args:
        env: of KVQueue-v1, with `action="pick"`.
        **parts: further fields of the bundle.

    Returns:
        The bundle; a policy for it is called `identity` unless `parts` says otherwise.

    Raises:
        InvalidArgument: another environment or action.
    """
    simulation = env.unwrapped.simulation
    if not isinstance(simulation, KVQueue) or simulation.action_mode != "pick":
        raise InvalidArgument(f"env={env}: expected {ENV_ID} with action='pick'")
    config, chosen = simulation.params.config[0], simulation.scenario
    slots, running = int(config["visible"]), int(config["running"])
    if simulation.layout.signature() != layout_of(slots, running):
        raise InvalidArgument(f"env={env}: its observation has other fields than a live engine fills")
    scales = Scales(**{one.name: config[one.name].item() for one in fields(Scales)})
    return Bundle(
        lists=tuple(simulation.lists),
        slots=slots,
        running=running,
        scales=scales,
        objectives=tuple(Objective(one.ttft_s, one.e2e_s) for one in simulation.targets),
        engine={name: getattr(chosen, name) for name in ENGINE},
        **parts,
    )


def export(policy: str, path: Path, **kwargs: Any) -> Bundle:
    """Write a policy, or a rule, of KVQueue-v1.

    Args:
        policy: `identity`, the rule `pick-area` with its numbers (`"pick-area:aging=0.05"`), a shipped policy
            (`"KVQueue-v1/ppo-tiers"`), or the path of a checkpoint.
        path: where to, ending in `.npz`.
        **kwargs: arguments of the environment that it is for, such as `scenario`; without, those of its training.

    Returns:
        What was written.

    Raises:
        CheckpointError: the checkpoint cannot be read, does not fit the environment, or has a network of another kind; or `path`
            does not end in `.npz`.
        InvalidArgument: no such rule, or one that needs more than an observation shows.
    """
    if policy in policies.names() or Path(policy).suffix == ".pt" or Path(policy).is_dir():
        bundle = _of_checkpoint(policy, kwargs)
    elif policy == "identity":
        bundle = described(gymnasium.make(ENV_ID, **kwargs))
    else:
        env = gymnasium.make(ENV_ID, **kwargs)
        rule = baselines.make(policy, env)
        if not isinstance(rule, PickArea):
            raise InvalidArgument(
                f"policy={policy!r}: it needs more than an observation shows; expected 'identity', 'pick-area' with its "
                "numbers, or a learned policy"
            )
        bundle = described(env, name=policy, kind="pick-area", numbers=rule.numbers)
    write(path, bundle)
    return bundle


def _of_checkpoint(policy: str, kwargs: Mapping[str, Any]) -> Bundle:
    """The bundle of a checkpoint."""
    meta = policies.meta(policy)
    if meta["env_id"].rpartition(":")[2] != ENV_ID:
        raise CheckpointError(f"{policy} was trained on {meta['env_id']}: expected {ENV_ID}")
    env = gymnasium.make(ENV_ID, **{**meta["env_kwargs"], **kwargs})
    from llmgym.policies import checkpoint, shipped  # torch is there, or reading `meta` had said so

    stored = checkpoint.load(shipped.checkpoint_of(policy))
    simulation = env.unwrapped.simulation  # type: ignore[attr-defined]
    checkpoint.check_environment(meta, simulation.layout, simulation.action_space, ENV_ID, policy)
    config = meta["config"]
    kind = {"scorer": "scorer", "perceptron": "mlp", "mlp": "mlp"}.get(config.get("network") or "mlp")
    if kind is None or meta["algo"] != "ppo":
        raise CheckpointError(
            f"{policy}: network={config.get('network')!r} of {meta['algo']}: expected mlp or scorer, of ppo"
        )
    model = {
        key.removeprefix("actor."): value.numpy()
        for key, value in stored["model"].items()
        if key.startswith("actor.")
    }
    weights: dict[str, NDArray[np.float32]] = {
        key: np.ascontiguousarray(value, np.float32) for key, value in model.items()
    }
    if kind == "mlp":
        numbers = sorted({int(key.partition(".")[0]) for key in model})
        weights = {
            f"layer.{i}.{part}": weights[f"{number}.{part}"]
            for i, number in enumerate(numbers)
            for part in ("weight", "bias")
        }
    normaliser = stored["normaliser"]
    said: dict[str, Any] = {"kind": kind, "activation": config["activation"]}
    if normaliser["enabled"]:
        moments = normaliser["observations"]
        said["clip"] = float(normaliser["clip"])
        weights["mean"] = moments["mean"].numpy().astype(np.float32)
        weights["scale"] = np.float32(1.0) / np.sqrt(
            moments["var"].numpy() + normaliser["variance_floor"]
        ).astype(np.float32)
    bundle = described(
        env, name=meta.get("name") or Path(policy).stem, kind="network", network=said, weights=weights
    )
    network(bundle)
    return bundle
