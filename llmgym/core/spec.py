"""What is known of an environment before anything of it is imported, and the table of all of them.

One `EnvSpec` an environment is all that registration with gymnasium, `llmgym list`, the scenarios and baselines by name, the test
kit and the pages of the documentation read. Parts are named as texts, `"module:name"`, and imported when somebody asks for them, so
that `import llmgym` stays light. `register` is open to everybody: to a script, to a notebook, and to an installed package that
names its specs in an entry point of the group `llmgym.environments`.
"""

import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import gymnasium
from gymnasium.envs.registration import registry

from llmgym.errors import InvalidArgument, UnknownArgument, UnknownName

GROUP = "llmgym.environments"
"""Entry points of other packages; each is an `EnvSpec` or several."""
_ID = re.compile(r"(?:[\w-]+/)?[\w.-]+-v\d+")
_PART = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True)
class EnvSpec:
    """One environment.

    Attributes:
        id: its gymnasium id, such as `"llmgym/KVQueue-v0"`.
        env: its class for one lane, a `llmgym.core.env.LaneEnv`, as `"module:Class"`.
        vector_env: its class for many lanes, as `"module:Class"`.
        scenarios: the named settings, a mapping from name to scenario, as `"module:NAME"`; empty: it has none.
        baselines: module with a mapping `BASELINES` from name to factory, and perhaps `GRIDS`; empty: it has none.
        audit: recounts one lane from its raw arrays, a function of simulation, state and lane, as `"module:function"`; empty: the
            method `audit` of the simulation, if it has one.
        cases: cheap arguments to test it with, a mapping from short names to keyword arguments, as `"module:NAME"`; empty: its
            defaults.
        decision: what is decided, in a few words.
        source: the paper that it comes from.
        docs: its page.
    """

    id: str
    env: str
    vector_env: str
    scenarios: str = ""
    baselines: str = ""
    audit: str = ""
    cases: str = ""
    decision: str = ""
    source: str = ""
    docs: str = ""

    @classmethod
    def of(cls, id: str, module: str, **others: Any) -> "EnvSpec":
        """The spec of an environment whose parts are all in one module, under the usual names.

        For `"me/Queue-v0"` these are the classes `QueueEnv` and `QueueVectorEnv`, and, where the module has them, `SCENARIOS`,
        `BASELINES`, `CASES` and `audit`.

        Args:
            id: of the environment.
            module: its name, as `__name__` in it.
            **others: further fields, such as `decision`.

        Returns:
            The spec, which is not registered yet.

        Raises:
            InvalidArgument: no such module was imported, it lacks the classes, or a field does not exist.
        """
        _check_id(id)
        name = id.rpartition("/")[2].rpartition("-v")[0]
        if module not in sys.modules:
            raise InvalidArgument(
                f"module={module!r} of {id}: expected one that was imported, such as __name__"
            )
        has = vars(sys.modules[module]).__contains__
        for part, there in (("env", f"{name}Env"), ("vector_env", f"{name}VectorEnv")):
            if part not in others and not has(there):
                raise InvalidArgument(
                    f"module={module!r} of {id} has no {there}: write `{name}Env, {name}VectorEnv = env_classes({name})` before it"
                )
        for field in others:
            if field not in cls.__dataclass_fields__:
                raise UnknownArgument("EnvSpec.of", field, cls.__dataclass_fields__)
        parts = {
            part: f"{module}:{there}"
            for part, there in (("scenarios", "SCENARIOS"), ("cases", "CASES"), ("audit", "audit"))
            if has(there)
        }
        if has("BASELINES"):
            parts["baselines"] = module
        classes = {"env": f"{module}:{name}Env", "vector_env": f"{module}:{name}VectorEnv"}
        return cls(id, **{**classes, **parts, **others})

    @property
    def name(self) -> str:
        """The id without namespace and version, such as `"KVQueue"`."""
        return self.id.rpartition("/")[2].rpartition("-v")[0]

    def scenarios_by_name(self) -> Mapping[str, Any]:
        """The scenarios of the environment, by name; empty where it has none."""
        found: Mapping[str, Any] = _load(self.scenarios) if self.scenarios else {}
        return found

    def arguments(self) -> list[tuple[str, str, str]]:
        """Name, default and type of each argument that the simulation takes by name, as text; settings of scenarios come on top."""
        simulation = _load(self.env).simulation_class
        named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [one for one in inspect.signature(simulation).parameters.values() if one.kind in named]
        return [
            (
                one.name,
                "" if one.default is one.empty else repr(one.default),
                ""
                if one.annotation is one.empty
                else getattr(one.annotation, "__name__", str(one.annotation)),
            )
            for one in parameters
        ]

    def scenario_names(self) -> tuple[str, ...]:
        """The names of the environment's scenarios."""
        return tuple(self.scenarios_by_name())

    def test_cases(self) -> dict[str, dict[str, Any]]:
        """Cheap arguments of the environment by short name; one case, without arguments, where it names none."""
        return (
            {name: dict(kwargs) for name, kwargs in _load(self.cases).items()}
            if self.cases
            else {"default": {}}
        )

    def auditor(self) -> Callable[[Any, Any, int], dict[str, float]] | None:
        """What recounts one lane for the tests; None where there is nothing that does.

        It returns, where they apply: `arrived, waiting, running, done, rejected` (requests), `kv_used, kv_resident, kv_capacity`
        (tokens), `clock_s`, `energy_j`, `bytes_sent, bytes_received, bytes_in_flight`, `work_asked, work_done, work_left`; and
        `x_counted` beside any `x`, which must be equal.
        """
        if self.audit:
            found: Callable[[Any, Any, int], dict[str, float]] = _load(self.audit)
            return found
        method = getattr(_load(self.env).simulation_class, "audit", None)
        return None if method is None else lambda simulation, state, lane: method(simulation, state, lane)  # type: ignore[no-any-return]

    def baseline_module(self) -> Any:
        """The module of the environment's rules; None where it has none."""
        return importlib.import_module(self.baselines) if self.baselines else None


_specs: dict[str, EnvSpec] = {}


def register(spec: EnvSpec, *more: EnvSpec) -> EnvSpec:
    """Make environments known to gymnasium and to everything of this package that takes an id.

    Args:
        spec: of one environment. One that is known already is left as it is.
        *more: of others.

    Returns:
        The first of them.

    Raises:
        InvalidArgument: an id or the name of a part is not well formed, or the id is taken by another environment.
    """
    for one in (spec, *more):
        if not isinstance(one, EnvSpec):
            raise InvalidArgument(f"register({one!r}): expected a llmgym.EnvSpec")
        _check_id(one.id)
        for field in ("env", "vector_env", "scenarios", "audit", "cases"):
            part = getattr(one, field)
            if (part or field in ("env", "vector_env")) and not (
                isinstance(part, str) and _PART.fullmatch(part)
            ):
                raise InvalidArgument(f"{field}={part!r} of {one.id}: expected 'module:name'")
            _check_there(one.id, field, part)
        known = _specs.get(one.id)
        if known is not None and known != one:
            raise InvalidArgument(f"id={one.id!r} is taken by {known.env}; give yours a namespace of its own")
        _specs[one.id] = one
        if one.id not in registry:
            gymnasium.register(
                id=one.id,
                entry_point=one.env,
                vector_entry_point=one.vector_env,
                disable_env_checker=True,
            )
    return spec


def env_ids() -> list[str]:
    """The ids of all registered environments, sorted."""
    return sorted(_specs)


def spec(env_id: str) -> EnvSpec:
    """The spec of an environment, with or without a module in front of its id. Raises `UnknownName`."""
    name = str(env_id).rpartition(":")[2]
    if name not in _specs:
        raise UnknownName("environment", name, _specs)
    return _specs[name]


def find(env_id: str) -> EnvSpec | None:
    """The spec of an environment; None for one that only gymnasium knows."""
    return _specs.get(str(env_id).rpartition(":")[2])


def spec_of(env: Any) -> EnvSpec:
    """The spec of a made environment, single or vector. Raises `UnknownName`."""
    inner = env.unwrapped
    if inner.spec is not None:
        return spec(inner.spec.id)
    where = f"{type(inner).__module__}:{type(inner).__qualname__}"
    for known in _specs.values():
        if where in (known.env, known.vector_env):
            return known
    raise UnknownName("environment class", where, [known.env for known in _specs.values()])


def register_installed() -> None:
    """Register what installed packages offer in the entry point group `llmgym.environments`.

    One that cannot be loaded is left out with a warning: it must not keep the others from working.
    """
    for point in entry_points(group=GROUP):
        try:
            found = point.load()
            register(*([found] if isinstance(found, EnvSpec) else found))
        except Exception as error:
            warnings.warn(
                f"the environments of {point.value} ({point.dist.name if point.dist else '?'}) are left out: {error!r}",
                stacklevel=2,
            )


def _load(part: str) -> Any:
    """What a part names. Raises `InvalidArgument` where there is no such module or no such name in it."""
    module, _, name = part.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise InvalidArgument(f"{part!r} of a llmgym.EnvSpec: {error}") from error


def _check_id(id: Any) -> None:
    if not isinstance(id, str) or not _ID.fullmatch(id):
        raise InvalidArgument(f"id={id!r}: expected a name with a version, such as 'me/Queue-v0'")


def _check_there(id: str, field: str, part: str) -> None:
    """Raise `InvalidArgument` for a name that its module, which has been imported to its end, does not have."""
    module, _, name = part.partition(":")
    known = sys.modules.get(module) if part else None
    complete = (
        known is not None
        and known.__spec__ is not None
        and not getattr(known.__spec__, "_initializing", False)
    )
    if complete and not hasattr(known, name):
        raise InvalidArgument(f"{field}={part!r} of {id}: {module} has no {name}")
