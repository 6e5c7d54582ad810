"""Training on segments: the truncated objective, and its gradient by truncated backpropagation.

In Shang, Li, Duo, Cai and Su, ICML 2026 (arXiv 2605.11744), the state that segments hand on is cut off from gradients K segments
back. Truncated backpropagation is then the exact gradient of the objective that is left, whose losses are those of inference. What
is retrieved gets no gradient. Both ways to the gradient are written out here, for tests; see `llmgym.envs.segmented.reference`.
"""

from collections.abc import Iterator, Sequence

from llmgym.envs.segmented.reference import Carried, Pool, Tensor, Weights, carry, run_segment, torch


def segment_losses(
    weights: Weights, tokens: Tensor, segment: int, tail: int, retrieved: int, depth: int
) -> Iterator[Tensor]:
    """The loss of each segment, its state cut off from gradients `depth` segments back: the objective of training.

    Each is computed anew from the segment at which its chain begins, so that plain autograd gives its exact gradient.

    Args:
        weights: of the model, whose tensors may require gradients.
        tokens: int64 [n], a whole number of segments.
        segment: S.
        tail: M.
        retrieved: R.
        depth: K.

    Returns:
        Losses in the order of the segments, nat per token, each a tensor without axes.
    """
    parts = tokens.split(segment)
    states = _states(weights, parts, tail, retrieved)
    for i, part in enumerate(parts):
        start = max(i - depth, 0)
        carried = _cut(states[start][0])
        for j in range(start, i + 1):
            done = run_segment(weights, parts[j], carried, states[j][1], retrieved)
            if j < i:
                carried = carry(weights, done, tail)
        yield loss_of(weights, done.hidden, part)


def truncated_gradients(
    weights: Weights, tokens: Tensor, segment: int, tail: int, retrieved: int, depth: int
) -> list[Tensor]:
    """Gradients by truncated backpropagation: each segment runs once, and each loss goes back through `depth` states.

    Args:
        weights: of the model, whose tensors require gradients.
        tokens: int64 [n], a whole number of segments.
        segment: S.
        tail: M.
        retrieved: R.
        depth: K.

    Returns:
        The gradient of the sum of all losses of `segment_losses`, of each tensor of `weights.tensors()`.
    """
    t = torch()
    parts, tensors = tokens.split(segment), weights.tensors()
    states = _states(weights, parts, tail, retrieved)
    total = [t.zeros_like(one) for one in tensors]
    # for each segment what it was given, as leaves, and what it left
    given: list[Carried | None] = []
    left: list[Carried] = []
    for i, part in enumerate(parts):
        given.append(_cut(left[-1], leaves=True) if left else None)
        done = run_segment(weights, part, given[-1], states[i][1], retrieved)
        left.append(carry(weights, done, tail))
        outputs, gradients = [loss_of(weights, done.hidden, part)], [None]
        for back in range(i, max(i - depth, 0) - 1, -1):
            inputs = _tensors(given[back]) if back > max(i - depth, 0) else []
            gradients = t.autograd.grad(
                outputs, [*tensors, *inputs], gradients, retain_graph=True, allow_unused=True
            )
            for mine, new in zip(total, gradients, strict=False):
                if new is not None:
                    mine += new
            if not inputs:
                break
            pairs = list(zip(_tensors(left[back - 1]), gradients[len(tensors) :], strict=True))
            outputs = [output for output, gradient in pairs if gradient is not None]
            gradients = [gradient for _, gradient in pairs if gradient is not None]
            if not outputs:  # a state that no deeper one has reached
                break
    return total


def loss_of(weights: Weights, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross entropy of the next token within a segment.

    Args:
        weights: of the model.
        hidden: normed states of the segment, [n, width].
        tokens: of the segment, int64 [n].

    Returns:
        Nat per token, a tensor without axes.
    """
    logits = hidden[:-1] @ weights.head
    return torch().nn.functional.cross_entropy(logits, tokens[1:])


def _states(
    weights: Weights, parts: Sequence[Tensor], tail: int, retrieved: int
) -> list[tuple[Carried | None, Pool | None]]:
    """What each segment is given, without gradients, with a pool of its own for each that later ones do not change."""
    states: list[tuple[Carried | None, Pool | None]] = []
    carried: Carried | None = None
    with torch().no_grad():
        for i in range(len(parts)):
            pool = Pool(weights, max(len(part) for part in parts)) if retrieved else None
            before: Carried | None = None
            for part in parts[:i]:
                before = carry(weights, run_segment(weights, part, before, pool, retrieved), tail, pool)
            carried = before
            states.append((carried, pool))
    return states


def _tensors(carried: Carried | None) -> list[Tensor]:
    """The carried keys and values, through which gradients go; none before the first segment."""
    return [] if carried is None else [*carried.keys, *carried.values]


def _cut(carried: Carried | None, leaves: bool = False) -> Carried | None:
    """What a segment carries, cut off from what it was computed from; as leaves that gradients stop at, if wanted."""
    if carried is None:
        return None
    keys, values = (tuple(one.detach().requires_grad_(leaves) for one in part) for part in carried[:2])
    return Carried(keys, values, carried.queries)
