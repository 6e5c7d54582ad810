"""A trained network with the face of every other policy: numpy in, numpy out, one lane or many.

Weights come from a checkpoint of this package (`.pt`) or from a stable-baselines3 archive (`.zip`: PPO, A2C,
MaskablePPO with an `MlpPolicy`). Of the archive only tensors and plain texts are read; the pickled objects
inside are never opened, and stable-baselines3 need not be installed.
"""

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from llmgym.core.layout import Table
from llmgym.errors import CheckpointError
from llmgym.policies import checkpoint
from llmgym.policies.config import PPOConfig
from llmgym.policies.recurrent import Recurrent
from llmgym.policies.rows import Scorer

SB3_PREFIX = "sb3-"
ARCHIVE_ACTIVATIONS = {"Tanh": "tanh", "ReLU": "relu"}


Floats = NDArray[np.float32]
Forward = Callable[[Floats], Floats]
"""From normalised observations [n, inputs] to logits, or the means of a Box, [n, outputs]."""


class LearnedPolicy:
    """A network that acts: the most likely action, or a drawn one.

    Args:
        name: how tables call it.
        forward: the network: from normalised observations to logits, or the means of a Box. One with a memory is an object with a
            method `reset`, which takes the lanes whose episode begins, bool [lanes].
        space: actions of one lane.
        normalise: from observations, float32 [lanes, d], to what `forward` takes; None: they stay as they are.
        log_std: logarithm of the deviation of each entry of a Box, float32 [entries]; None: its actions are never drawn.
        bound_units: whether `forward` gives a Box in units where its bounds are -1 and 1.
        env_kwargs: arguments that the environment has to be made with; None: none.
        meta: what the checkpoint says; None: nothing.
        sample_seed: None takes the most likely action, a number draws actions with this seed.

    Attributes:
        name: how tables call it.
        privileged: always False: it sees the observation and the mask only.
        env_kwargs: arguments that the environment has to be made with for it to act.
        meta: what the checkpoint says about its training (empty for an archive of stable-baselines3).
    """

    privileged = False

    def __init__(
        self,
        name: str,
        forward: Forward,
        space: Any,
        *,
        normalise: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
        log_std: NDArray[np.float32] | None = None,
        bound_units: bool = False,
        env_kwargs: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        sample_seed: int | None = None,
    ) -> None:
        self.name = name
        self.env_kwargs: Mapping[str, Any] = MappingProxyType(dict(env_kwargs or {}))
        self.meta: Mapping[str, Any] = MappingProxyType(dict(meta or {}))
        self._forward = forward
        self._space = space
        self._normalise = normalise
        self._log_std = log_std
        self._bound_units = bound_units
        self._rng = None if sample_seed is None else np.random.default_rng(sample_seed)
        sizes = (
            [int(space.n)]
            if isinstance(space, Discrete)
            else []
            if isinstance(space, Box)
            else space.nvec.ravel()
        )
        self._splits = np.cumsum(sizes)[:-1].astype(int)

    def __repr__(self) -> str:
        return f"LearnedPolicy({self.name!r})"

    def act(self, obs: NDArray[np.float32], mask: NDArray[np.int8] | None) -> NDArray[Any]:
        """Actions [lanes, ...] for observations [lanes, d] and masks [lanes, actions] (None: everything is
        allowed).
        """
        x: NDArray[Any] = np.asarray(obs, np.float32)
        if self._normalise is not None:
            x = self._normalise(x)
        out: NDArray[Any] = self._forward(x)
        if isinstance(self._space, Box):
            return self._box(out)
        if self._rng is not None:
            out = out + self._rng.gumbel(size=out.shape)
        if mask is not None:
            out = np.where(np.asarray(mask, np.bool_), out, -np.inf)
        if isinstance(self._space, Discrete):
            best: NDArray[Any] = out.argmax(axis=1)
            return best
        chosen = [part.argmax(axis=1) for part in np.split(out, self._splits, axis=1)]
        return np.stack(chosen, axis=1).reshape(len(out), *self._space.shape)

    def _box(self, out: NDArray[Any]) -> NDArray[Any]:
        space = self._space
        if self._rng is not None and self._log_std is not None:
            out = out + np.exp(self._log_std) * self._rng.standard_normal(out.shape)
        out = out.reshape(len(out), *space.shape)
        if self._bound_units:
            out = out * ((space.high - space.low) / 2) + (space.high + space.low) / 2
        bounded: NDArray[Any] = np.clip(out.astype(space.dtype), space.low, space.high)
        return bounded

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Empty the memory, if the network has one, for the lanes whose episode begins, bool [lanes]."""
        if isinstance(self._forward, Remembering):
            self._forward.reset(lanes)


class Remembering:
    """A recurrent policy as a function, which remembers for each lane what it has seen of the episode.

    Args:
        net: the network.
    """

    def __init__(self, net: Recurrent) -> None:
        self._net = net
        self._memory = torch.zeros(0, net.width)
        self._begins = torch.ones(0, dtype=torch.bool)

    def reset(self, lanes: NDArray[np.bool_]) -> None:
        """Have the next observation of these lanes, bool [lanes], be the first of an episode; of another number of lanes, all."""
        if len(lanes) != len(self._begins):
            self._memory = torch.zeros(len(lanes), self._net.width)
            self._begins = torch.ones(len(lanes), dtype=torch.bool)
        self._begins |= torch.from_numpy(np.asarray(lanes, np.bool_))

    def __call__(self, x: Floats) -> Floats:
        """Logits, or the means of a Box, of the lanes' next observations."""
        if len(x) != len(self._begins):
            self.reset(np.ones(len(x), np.bool_))
        with torch.no_grad():
            seen = torch.from_numpy(np.ascontiguousarray(x))
            out, self._memory = self._net(seen, self._memory, self._begins)
        self._begins = torch.zeros_like(self._begins)
        result: Floats = out.numpy()
        return result


def load_learned(
    path: Path, env: Any, *, name: str | None = None, sample_seed: int | None = None
) -> LearnedPolicy:
    """Read a policy and check that it fits an environment.

    Args:
        path: a `.pt` checkpoint or a `.zip` archive of stable-baselines3.
        env: the environment it will act in: single or vector, wrapped or not.
        name: how tables call it; default: the name of its run, or of the file.
        sample_seed: None takes the most likely action, a number draws from the policy with this seed.

    Returns:
        The policy.

    Raises:
        CheckpointError: the file cannot be read, or it was made for other observations or actions; the message says what differs.
    """
    simulation = env.unwrapped.simulation
    layout, space = simulation.layout, simulation.action_space
    if path.suffix == ".zip":
        return _from_archive(path, layout.size, simulation, name or path.stem, sample_seed)
    stored = checkpoint.load(path)
    meta = stored["meta"]
    spec = getattr(env, "spec", None) or getattr(env.unwrapped, "spec", None)
    checkpoint.check_environment(meta, layout, space, spec.id if spec is not None else None, str(path))
    stored = {**stored, "meta": {**meta, "path": str(path)}}
    try:
        return policy_of(stored, simulation, name or meta.get("name") or path.stem, sample_seed)
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} lacks a part of its network: {error}") from error


def policy_of(
    stored: Mapping[str, Any], simulation: Any, name: str, sample_seed: int | None = None
) -> LearnedPolicy:
    """The policy of a checkpoint that fits an environment.

    Args:
        stored: parts of the checkpoint, tensors on the CPU.
        simulation: of the environment.
        name: how tables call it.
        sample_seed: None takes the most likely action, a number draws from the policy with this seed.

    Returns:
        The policy.

    Raises:
        CheckpointError: the network is of another shape.
        KeyError: it lacks a part.
    """
    layout, meta, model = simulation.layout, stored["meta"], stored["model"]
    config, where = PPOConfig.from_dict(meta["config"]), meta.get("path", name)
    from_sb3 = meta["algo"].startswith(SB3_PREFIX)
    log_std = model.get("log_std")
    forward: Forward
    if config.network in ("scorer", "attention"):
        forward = scorer(model, layout.tables(), config.activation)
    elif config.network == "recurrent":
        forward = recurrent(model, config)
    else:
        layers = _sb3_layers(model) if from_sb3 else _linear_layers(model, "actor.")
        _check_shapes(where, layers, layout.size, simulation)
        forward = mlp(layers, config.activation)
    return LearnedPolicy(
        name,
        forward,
        simulation.action_space,
        normalise=_normaliser(stored["normaliser"], layout.tables() if config.network == "attention" else ()),
        log_std=None if log_std is None else log_std.numpy().copy(),
        bound_units=not from_sb3,
        env_kwargs=meta["interface"],
        meta=meta,
        sample_seed=sample_seed,
    )


def mlp(layers: list[tuple[Floats, Floats]], activation: str) -> Forward:
    """Weights [inputs, outputs] and biases of layers, as a function; the non-linearity stands between the layers."""
    act: Callable[[Floats], Floats] = np.tanh if activation == "tanh" else lambda x: np.maximum(x, 0)

    def forward(x: Floats) -> Floats:
        for weight, bias in layers[:-1]:
            x = act(x @ weight + bias)
        out: Floats = x @ layers[-1][0] + layers[-1][1]
        return out

    return forward


def scorer(model: Mapping[str, Any], tables: Sequence[Table], activation: str) -> Forward:
    """The actor of a `llmgym.policies.rows.Scorer` as a function.

    Args:
        model: tensors by name, as a checkpoint has them.
        tables: of the environment's observation.
        activation: `tanh` or `relu`.

    Returns:
        A function from normalised observations, float32 [n, inputs], to logits or the means of a Box, float32 [n, outputs].

    Raises:
        CheckpointError: the tensors are those of other tables.
    """
    net = Scorer.restored(model, "actor.", tables, activation)

    def forward(x: Floats) -> Floats:
        with torch.no_grad():
            out: Floats = net(torch.from_numpy(np.ascontiguousarray(x))).numpy()
        return out

    return forward


def recurrent(model: Mapping[str, Any], config: PPOConfig) -> Remembering:
    """The actor of a `llmgym.policies.recurrent.Recurrent` as a function.

    Raises:
        CheckpointError: the tensors are those of another network.
    """
    weights = {k.removeprefix("actor."): v.clone() for k, v in model.items() if k.startswith("actor.")}
    inputs, outputs = weights["layers.0.weight"].shape[1], weights["out.weight"].shape[0]
    net = Recurrent(inputs, outputs, config.hidden, config.activation, 1.0, torch.Generator())
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the network was made for other widths: {error}") from error
    return Remembering(net)


def _linear_layers(
    model: Mapping[str, Any], prefix: str
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    numbers = sorted(
        int(key.split(".")[-2]) for key in model if key.startswith(prefix) and key.endswith(".weight")
    )
    layers = []
    for number in numbers:
        weight, bias = model[f"{prefix}{number}.weight"], model[f"{prefix}{number}.bias"]
        layers.append((np.ascontiguousarray(weight.numpy().T), bias.numpy().copy()))
    return layers


def _sb3_layers(model: Mapping[str, Any]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    hidden = _linear_layers(model, "mlp_extractor.policy_net.")
    return [
        *hidden,
        (np.ascontiguousarray(model["action_net.weight"].numpy().T), model["action_net.bias"].numpy().copy()),
    ]


def _normaliser(
    stored: Mapping[str, Any], keep_blank: Sequence[Table] = ()
) -> Callable[[Floats], Floats] | None:
    """What observations are normalised with; rows of these tables that are all zero stay so."""
    if not stored["enabled"]:
        return None
    moments, limit = stored["observations"], float(stored["clip"])
    mean = moments["mean"].numpy().astype(np.float32)
    scale = np.float32(1.0) / np.sqrt(moments["var"].numpy() + stored["variance_floor"]).astype(np.float32)
    where = [table.entries() for table in keep_blank]

    def normalise(rows: Floats) -> Floats:
        out = np.clip((rows - mean) * scale, -limit, limit)
        for entries in where:
            out[:, entries] *= (rows[:, entries] != 0).any(axis=-1, keepdims=True)
        return out

    return normalise


def _check_shapes(path: Path | str, layers: list[Any], inputs: int, simulation: Any) -> None:
    space = simulation.action_space
    outputs = int(np.prod(space.shape)) if isinstance(space, Box) else simulation.mask_size
    if not layers or layers[0][0].shape[0] != inputs or layers[-1][0].shape[1] != outputs:
        had = (layers[0][0].shape[0], layers[-1][0].shape[1]) if layers else (0, 0)
        raise CheckpointError(
            f"{path} does not fit this environment: its network takes {had[0]} observation entries "
            f"and has {had[1]} outputs, "
            f"the environment has {inputs} and {outputs} ({space}). "
            "Make the environment with the arguments of its training"
        )


def _from_archive(
    path: Path, inputs: int, simulation: Any, name: str, sample_seed: int | None
) -> LearnedPolicy:
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise CheckpointError(f"{path} is damaged: the checksum of its part {damaged!r} is wrong")
            data = json.loads(archive.read("data"))
            model = torch.load(io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True)
    except (
        zipfile.BadZipFile,
        KeyError,
        ValueError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is truncated or not a stable-baselines3 archive ({error})") from error
    if "action_net.weight" not in model:
        raise CheckpointError(
            f"{path}: only PPO, A2C and MaskablePPO with an MlpPolicy can be loaded from an archive"
        )
    # the readable text beside the pickled keyword arguments; absent where the default was used
    chosen = str((data.get("policy_kwargs") or {}).get("activation_fn", "Tanh"))
    activation = next((ours for theirs, ours in ARCHIVE_ACTIVATIONS.items() if theirs in chosen), None)
    if activation is None:
        raise CheckpointError(
            f"{path}: activation {chosen} is not known; known: {', '.join(ARCHIVE_ACTIVATIONS)}"
        )
    layers = _sb3_layers(model)
    _check_shapes(path, layers, inputs, simulation)
    log_std = model.get("log_std")
    return LearnedPolicy(
        name,
        mlp(layers, activation),
        simulation.action_space,
        log_std=None if log_std is None else log_std.numpy(),
        sample_seed=sample_seed,
    )
