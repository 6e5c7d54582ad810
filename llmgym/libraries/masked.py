"""Environments whose observations hold the mask, made the way RLlib makes them.

    from llmgym.libraries.masked import rllib_env
    ray.tune.register_env("llmgym-with-mask", rllib_env)
    PPOConfig().environment("llmgym-with-mask", env_config={"env_id": "llmgym/KVQueue-v1", "requests": 20})

needs no ray to be imported.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium

from llmgym.core.wrappers import RLLIB, MaskInObservation, VectorMaskInObservation
from llmgym.errors import InvalidArgument


def rllib_env(config: Mapping[str, Any]) -> MaskInObservation | VectorMaskInObservation:
    """The environment of RLlib's `env_config`, with observations `{"observations": ..., "action_mask": ...}`.

    With `env_runners(gym_env_vectorize_mode=gymnasium.VectorizeMode.VECTOR_ENTRY_POINT, num_envs_per_env_runner=N)` RLlib asks for
    N native lanes, otherwise for single environments. RLlib needs the autoreset mode `NEXT_STEP`, which is the default.

    Args:
        config: `env_id`, the id of an environment of this package, and its arguments; RLlib adds `num_envs` for lanes.

    Returns:
        A single environment, or lanes.

    Raises:
        InvalidArgument: no `env_id`, no mask, or an autoreset mode that RLlib would take in silence and misread.
    """
    arguments = dict(config)
    env_id, num_envs = arguments.pop("env_id", None), arguments.pop("num_envs", None)
    if not isinstance(env_id, str):
        raise InvalidArgument(
            f"env_config={dict(config)!r}: expected env_id, such as 'llmgym/KVQueue-v1', and its arguments"
        )
    name = env_id if ":" in env_id else f"llmgym:{env_id}"
    if num_envs is None:
        return MaskInObservation(gymnasium.make(name, **arguments), RLLIB)
    envs = gymnasium.make_vec(name, num_envs, **arguments)
    if envs.metadata["autoreset_mode"] != gymnasium.vector.AutoresetMode.NEXT_STEP:
        raise InvalidArgument(f"autoreset_mode={arguments['autoreset_mode']!r}: RLlib needs NEXT_STEP")
    return VectorMaskInObservation(envs, RLLIB)
