"""What is decided: one module per environment. Importing this package registers every id with gymnasium."""

from importlib import import_module
from importlib.util import find_spec

from gymnasium.envs.registration import register, registry

_ENVIRONMENTS = {
    "llmgym/KVQueue-v0": ("llmgym.envs.kv_queue", "KVQueue"),
    "llmgym/KVProvision-v0": ("llmgym.envs.kv_provision", "KVProvision"),
    "llmgym/AFDRatio-v0": ("llmgym.envs.afd_ratio", "AFDRatio"),
    "llmgym/AFDRefill-v0": ("llmgym.envs.afd_refill", "AFDRefill"),
    "llmgym/PPDRouting-v0": ("llmgym.envs.ppd_routing", "PPDRouting"),
    "llmgym/PPDWeights-v0": ("llmgym.envs.ppd_weights", "PPDWeights"),
    "llmgym/OServe-v0": ("llmgym.envs.oserve", "OServe"),
    "llmgym/PipeSDBatch-v0": ("llmgym.envs.pipesd_batch", "PipeSDBatch"),
    "llmgym/PipeSDNav-v0": ("llmgym.envs.pipesd_nav", "PipeSDNav"),
    "llmgym/PipeSDTune-v0": ("llmgym.envs.pipesd_tune", "PipeSDTune"),
    "llmgym/MemPipe-v0": ("llmgym.envs.mem_pipe", "MemPipe"),
    "llmgym/MemPlace-v0": ("llmgym.envs.mem_place", "MemPlace"),
}


def env_ids() -> list[str]:
    """The ids this package registers."""
    return sorted(_ENVIRONMENTS)


def scenario_names(env_id: str) -> tuple[str, ...]:
    """The named scenarios of an environment, from the module beside it; `ppd_routing` and `ppd_weights` share `ppd_scenarios`."""
    name = _ENVIRONMENTS[env_id][0]
    while find_spec(f"{name}_scenarios") is None:
        name = name.rpartition("_")[0]
    return tuple(import_module(f"{name}_scenarios").SCENARIOS)


def register_all() -> None:
    """Register every environment that is not registered yet (strings only: nothing is imported)."""
    for env_id, (module, name) in _ENVIRONMENTS.items():
        if env_id not in registry:
            register(
                id=env_id,
                entry_point=f"{module}:{name}Env",
                vector_entry_point=f"{module}:{name}VectorEnv",
                disable_env_checker=True,
            )
