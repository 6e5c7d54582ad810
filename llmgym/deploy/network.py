"""The networks of `llmgym.policies` for one observation at a time, in numpy."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmgym.deploy.bundle import PER_RUNNING, PER_WAITING, Bundle
from llmgym.errors import CheckpointError

Floats = NDArray[np.float32]
Forward = Callable[..., Floats]
"""From an observation, float32 [entries], to a logit for each action, float32 [actions]; not to be called by two threads at once. A
second argument may say which of them are asked for, (candidates of the queue, candidates of the batch); the others may be anything.
"""
BOTH = (True, True)
"""All logits are asked for."""
ACTIVATIONS: Mapping[str, Callable[[Floats, Floats], Floats]] = {
    "tanh": np.tanh,
    "relu": lambda x, out: np.maximum(x, np.float32(0.0), out=out),
}
"""What is put between layers: called with an array and with where the result goes."""


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

    def normalised(obs: Floats, asked: tuple[bool, bool] = BOTH) -> Floats:
        x = obs - mean
        np.multiply(x, scale, out=x)
        np.maximum(x, low, out=x)
        np.minimum(x, high, out=x)
        return forward(x, asked)

    return normalised


def _mlp(bundle: Bundle, weights: Mapping[str, Any], act: Callable[[Floats, Floats], Floats]) -> Forward:
    count = sum(key.startswith("layer.") and key.endswith(".weight") for key in weights)
    layers = [(weights[f"layer.{i}.weight"], weights[f"layer.{i}.bias"]) for i in range(count)]
    if not layers:
        raise CheckpointError("the network has no layers")

    def forward(x: Floats, asked: tuple[bool, bool] = BOTH) -> Floats:
        for weight, bias in layers[:-1]:
            x = weight @ x + bias
            act(x, x)
        out: Floats = layers[-1][0] @ x + layers[-1][1]
        return out

    return forward


def _scorer(bundle: Bundle, weights: Mapping[str, Any], act: Callable[[Floats, Floats], Floats]) -> Forward:
    """The actor of `llmgym.policies.network.Scorer` with the two tables of candidates.

    Arrays are so small that a call costs more than what it does, so that calls are few. All first layers are one product: a matrix
    of a row for the rest of the observation and one for each candidate, which has the rest, its own numbers, and a 1 where the
    bias of its table is. Other biases are columns of weights too, and meet a 1 at the end of what they are multiplied with.
    """
    slots, running = bundle.slots, bundle.running
    start = bundle.size - slots * PER_WAITING - running * PER_RUNNING
    width, middle = weights["rest.weight"].shape[0], weights["summary.weight"].shape[0]
    count = 1 + slots + running
    sizes = ((slots, PER_WAITING), (running, PER_RUNNING))
    if len(weights["plain.bias"]) != count:
        raise CheckpointError(
            f"the network has {weights['plain.bias'].shape} outputs: expected {count}, one an action"
        )

    entered = np.zeros((count, start + PER_WAITING + PER_RUNNING + 3), np.float32)
    first = np.zeros((entered.shape[1], width), np.float32)
    first[:start], first[-1] = weights["rest.weight"].T, weights["rest.bias"]
    entered[:, -1] = 1.0
    features = np.ones((count, width + 1), np.float32)
    told = np.ones(middle + 1, np.float32)
    # the rest, the means of both tables, their greatest
    parts, means = np.ones(5 * width + 1, np.float32), np.zeros((3, count), np.float32)
    means[0, 0] = 1.0
    order = np.arange(5 * width).reshape(5, width)[[0, 1, 3, 2, 4]].ravel()
    summary = _with_bias(weights["summary.weight"][:, order], weights["summary.bias"])
    plain, bias = weights["plain.weight"][0], weights["plain.bias"].copy()
    tables = []
    row, column, entry = 1, start, start
    for k, (rows, entries) in enumerate(sizes):
        first[column : column + entries] = weights[f"row.{k}.weight"].T
        first[k - 3] = weights[f"row.{k}.bias"]
        entered[row : row + rows, k - 3] = 1.0
        means[1 + k, row : row + rows] = 1.0 / rows
        # the last row is what the summary says to each candidate
        own = np.ascontiguousarray(
            np.concatenate([weights[f"own.{k}.weight"].T, np.zeros((1, middle), np.float32)])
        )
        link = _with_bias(weights[f"link.{k}.weight"], weights[f"own.{k}.bias"] + weights[f"link.{k}.bias"])
        bias[row : row + rows] += weights[f"score.{k}.bias"]
        tables.append(
            _Table(
                slice(row, row + rows),
                slice(entry, entry + rows * entries),
                entered[row : row + rows, column : column + entries],
                features[row : row + rows],
                features[row : row + rows, :width],
                parts[width * (3 + k) : width * (4 + k)],
                link,
                own,
                own[middle],
                np.zeros((rows, middle), np.float32),
                weights[f"score.{k}.weight"][0],
            )
        )
        row, column, entry = row + rows, column + entries, entry + rows * entries
    rest, hidden = entered[:, :start], features[:, :width]
    averages, context = parts[: 3 * width].reshape(3, width), told[:middle]

    def forward(x: Floats, asked: tuple[bool, bool] = BOTH) -> Floats:
        rest[:] = x[:start]
        for table in tables:
            table.entered[:] = x[table.entries].reshape(table.entered.shape)
        np.matmul(entered, first, out=hidden)
        act(hidden, hidden)
        np.matmul(means, hidden, out=averages)
        for table in tables:
            np.maximum.reduce(table.hidden, axis=0, out=table.most)
        np.dot(summary, parts, out=context)
        act(context, context)
        out: Floats = np.zeros(count, np.float32)
        out[0] = plain.dot(context)
        for table, wanted in zip(tables, asked):
            if wanted:
                np.dot(table.link, told, out=table.linked)
                np.matmul(table.features, table.own, out=table.scored)
                act(table.scored, table.scored)
                np.dot(table.scored, table.score, out=out[table.rows])
        out += bias
        return out

    return forward


class _Table(NamedTuple):
    """Weights of a table of candidates, and where what is computed of it goes."""

    rows: slice
    entries: slice
    entered: Floats
    features: Floats
    hidden: Floats
    most: Floats
    link: Floats
    own: Floats
    linked: Floats
    scored: Floats
    score: Floats


def _with_bias(weight: Floats, bias: Floats) -> Floats:
    """Weights, and the bias as one more column."""
    return np.ascontiguousarray(np.concatenate([weight, bias[:, None]], axis=1))
