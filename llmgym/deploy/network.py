"""The networks of `llmgym.policies` for one observation at a time, in numpy."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmgym.deploy.bundle import PER_RUNNING, PER_WAITING, Bundle
from llmgym.errors import CheckpointError

Floats = NDArray[np.float32]
Forward = Callable[[Floats], Floats]
"""From an observation, float32 [entries], to a logit for each action, float32 [actions]."""
ACTIVATIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, np.float32(0.0)),
}


def network(bundle: Bundle) -> Forward:
    """The network of a policy, normalisation included.

    Args:
        bundle: of kind `network`.

    Returns:
        A function from an observation, float32 [entries], to a logit for each action, float32 [1 + slots + running].

    Raises:
        CheckpointError: the network is of another kind, lacks weights, or has weights of other shapes.
    """
    said, weights = bundle.network or {}, bundle.weights or {}
    if said.get("activation") not in ACTIVATIONS:
        raise CheckpointError(
            f"activation={said.get('activation')!r}: expected one of {', '.join(ACTIVATIONS)}"
        )
    makers = {"mlp": _mlp, "scorer": _scorer}
    if said.get("kind") not in makers:
        raise CheckpointError(f"network={said.get('kind')!r}: expected one of {', '.join(makers)}")
    try:
        forward = makers[said["kind"]](bundle, weights, ACTIVATIONS[said["activation"]])
        if "mean" in weights:
            forward = _normalised(forward, weights["mean"], weights["scale"], float(said["clip"]))
        out = forward(np.zeros(bundle.size, np.float32))
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"the network does not fit its observation: {error}") from error
    if out.shape != (1 + bundle.slots + bundle.running,):
        raise CheckpointError(
            f"the network has {out.shape} outputs: expected {1 + bundle.slots + bundle.running}, one an action"
        )
    return forward


def _normalised(forward: Forward, mean: Floats, scale: Floats, clip: float) -> Forward:
    low, high = np.float32(-clip), np.float32(clip)

    def normalised(obs: Floats) -> Floats:
        x = obs - mean
        x *= scale
        np.maximum(x, low, out=x)
        np.minimum(x, high, out=x)
        return forward(x)

    return normalised


def _mlp(bundle: Bundle, weights: Mapping[str, Any], act: Callable[[Floats], Floats]) -> Forward:
    count = sum(key.startswith("layer.") and key.endswith(".weight") for key in weights)
    layers = [(weights[f"layer.{i}.weight"], weights[f"layer.{i}.bias"]) for i in range(count)]
    if not layers:
        raise CheckpointError("the network has no layers")

    def forward(x: Floats) -> Floats:
        for weight, bias in layers[:-1]:
            x = act(weight @ x + bias)
        out: Floats = layers[-1][0] @ x + layers[-1][1]
        return out

    return forward


def _scorer(bundle: Bundle, weights: Mapping[str, Any], act: Callable[[Floats], Floats]) -> Forward:
    """The actor of `llmgym.policies.network.Scorer` with the two tables of candidates."""
    slots, running = bundle.slots, bundle.running
    start = bundle.size - slots * PER_WAITING - running * PER_RUNNING
    tables = ((start, slots, PER_WAITING), (start + slots * PER_WAITING, running, PER_RUNNING))
    # weights of a layer that works on rows are kept transposed, so that rows are multiplied from the left
    rest, rest_bias = weights["rest.weight"], weights["rest.bias"]
    row = [(np.ascontiguousarray(weights[f"row.{k}.weight"].T), weights[f"row.{k}.bias"]) for k in (0, 1)]
    summary, summary_bias = weights["summary.weight"], weights["summary.bias"]
    own = [(np.ascontiguousarray(weights[f"own.{k}.weight"].T), weights[f"own.{k}.bias"]) for k in (0, 1)]
    link = np.concatenate([weights[f"link.{k}.weight"] for k in (0, 1)])
    link_bias = np.concatenate([weights[f"link.{k}.bias"] for k in (0, 1)])
    score = [(weights[f"score.{k}.weight"][0], weights[f"score.{k}.bias"]) for k in (0, 1)]
    plain, plain_bias = weights["plain.weight"], weights["plain.bias"]
    width, middle = rest.shape[0], summary.shape[0]

    def forward(x: Floats) -> Floats:
        first = rest @ x[:start] + rest_bias
        parts = np.empty(5 * width, np.float32)
        parts[:width] = act(first)
        features = []
        for k, (begin, rows, entries) in enumerate(tables):
            table = x[begin : begin + rows * entries].reshape(rows, entries)
            feature = act(table @ row[k][0] + (row[k][1] + first))
            parts[width * (1 + 2 * k) : width * (2 + 2 * k)] = np.add.reduce(feature, axis=0) / np.float32(
                rows
            )
            parts[width * (2 + 2 * k) : width * (3 + 2 * k)] = np.maximum.reduce(feature, axis=0)
            features.append(feature)
        told = act(summary @ parts + summary_bias)
        linked = link @ told + link_bias
        out = plain_bias.copy()
        out[0] += plain[0] @ told
        begin = 1
        for k, feature in enumerate(features):
            hidden = act(feature @ own[k][0] + (own[k][1] + linked[middle * k : middle * (k + 1)]))
            out[begin : begin + len(feature)] += hidden @ score[k][0] + score[k][1]
            begin += len(feature)
        return out

    return forward
