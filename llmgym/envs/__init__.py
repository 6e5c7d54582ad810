"""What is decided: one module per environment. Importing this package registers every id with gymnasium."""

from importlib import import_module

from gymnasium.envs.registration import register, registry

from llmgym.errors import UnknownName

_ENVIRONMENTS = {
    "llmgym/KVQueue-v0": ("llmgym.envs.kv.queue.env", "KVQueue"),
    "llmgym/KVProvision-v0": ("llmgym.envs.kv.provision.env", "KVProvision"),
    "llmgym/AFDRatio-v0": ("llmgym.envs.afd.ratio.env", "AFDRatio"),
    "llmgym/AFDRefill-v0": ("llmgym.envs.afd.refill.env", "AFDRefill"),
    "llmgym/PPDRouting-v0": ("llmgym.envs.ppd.routing.env", "PPDRouting"),
    "llmgym/PPDWeights-v0": ("llmgym.envs.ppd.weights.env", "PPDWeights"),
    "llmgym/OServe-v0": ("llmgym.envs.oserve.env", "OServe"),
    "llmgym/PipeSDBatch-v0": ("llmgym.envs.pipesd.batch.env", "PipeSDBatch"),
    "llmgym/PipeSDNav-v0": ("llmgym.envs.pipesd.nav.env", "PipeSDNav"),
    "llmgym/PipeSDTune-v0": ("llmgym.envs.pipesd.tune.env", "PipeSDTune"),
    "llmgym/MemPipe-v0": ("llmgym.envs.memory.pipe.env", "MemPipe"),
    "llmgym/MemPlace-v0": ("llmgym.envs.memory.place.env", "MemPlace"),
}


def env_ids() -> list[str]:
    """The ids this package registers."""
    return sorted(_ENVIRONMENTS)


_SCENARIOS = {
    "llmgym/KVQueue-v0": ("llmgym.envs.kv.queue.scenarios", "SCENARIOS"),
    "llmgym/KVProvision-v0": ("llmgym.envs.kv.provision.scenarios", "SCENARIOS"),
    "llmgym/AFDRatio-v0": ("llmgym.envs.afd.ratio.scenarios", "SCENARIOS"),
    "llmgym/AFDRefill-v0": ("llmgym.envs.afd.refill.scenarios", "SCENARIOS"),
    "llmgym/PPDRouting-v0": ("llmgym.envs.ppd.scenarios", "SCENARIOS"),
    "llmgym/PPDWeights-v0": ("llmgym.envs.ppd.scenarios", "SCENARIOS"),
    "llmgym/OServe-v0": ("llmgym.envs.oserve.scenarios", "SCENARIOS"),
    "llmgym/PipeSDBatch-v0": ("llmgym.envs.pipesd.batch.env", "SCENARIOS"),
    "llmgym/PipeSDNav-v0": ("llmgym.envs.pipesd.scenarios", "SCENARIOS"),
    "llmgym/PipeSDTune-v0": ("llmgym.envs.pipesd.scenarios", "TUNING"),
    "llmgym/MemPipe-v0": ("llmgym.envs.memory.pipe.scenarios", "SCENARIOS"),
    "llmgym/MemPlace-v0": ("llmgym.envs.memory.place.scenarios", "SCENARIOS"),
}


def scenario_names(env_id: str) -> tuple[str, ...]:
    """The scenarios that an environment takes; none for one that has none.

    Raises:
        UnknownName: llmgym registers no such environment.
    """
    if env_id not in _ENVIRONMENTS:
        raise UnknownName("environment", env_id, _ENVIRONMENTS)
    if env_id not in _SCENARIOS:
        return ()
    module, name = _SCENARIOS[env_id]
    return tuple(getattr(import_module(module), name))


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
