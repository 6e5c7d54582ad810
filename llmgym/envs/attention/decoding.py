"""Decoding with softmax or with SLAY: how many sequences a memory holds, and what an output token takes. Closed forms.

The kernel of a sequence is chosen when it is admitted. Softmax keeps keys and values of every token, 4 d L bytes per head and
layer in bfloat16, read once for each output token. SLAY keeps m (d + 1) sums in float32 however long the context is, read and
written for each (Luna, Bouhsine and Choromanski, "SLAY", ICML 2026, arXiv 2602.04915, section 3). A step of decoding reads the
weights once for all sequences, and is bound by the bandwidth of the memory: what it computes is left out. AttentionBudget itself
serves prefills.
"""

import math
from dataclasses import dataclass

from llmgym.core.checks import number, whole
from llmgym.envs.attention.law import Budget, cache_bytes, state_bytes


@dataclass(frozen=True)
class Decoder:
    """A model on a device that decodes.

    Attributes:
        heads: of a layer that have keys and values of their own.
        head_dim: entries of a head.
        layers: of the model.
        weights_bytes: that each step reads.
        free_bytes: memory for sequences, beside the weights.
        bandwidth_bytes_per_s: of the memory.
    """

    heads: int
    head_dim: int
    layers: int
    weights_bytes: float
    free_bytes: float
    bandwidth_bytes_per_s: float

    def __post_init__(self) -> None:
        for name in ("heads", "head_dim", "layers"):
            whole(name, getattr(self, name))
        for name in ("weights_bytes", "free_bytes", "bandwidth_bytes_per_s"):
            number(name, getattr(self, name))

    def sequence_bytes(self, context: int, budget: Budget | None = None) -> float:
        """Bytes that a sequence of so many tokens holds; `budget` None: softmax, otherwise SLAY."""
        whole("context", context)
        one = cache_bytes(context, self.head_dim) if budget is None else state_bytes(budget, self.head_dim)
        return self.layers * self.heads * one

    def most_sequences(self, context: int, budget: Budget | None = None) -> int:
        """Sequences of so many tokens, at their end, that fit at once; `budget` as in `sequence_bytes`."""
        return int(self.free_bytes // self.sequence_bytes(context, budget))

    def token_s(self, sequences: int, context: int, budget: Budget | None = None) -> float:
        """Time per output token: a step of all sequences, one token of each.

        Args:
            sequences: that decode at once, 0 or more.
            context: tokens of each.
            budget: of SLAY; None: softmax.

        Returns:
            Seconds; infinite where they do not fit.

        Raises:
            InvalidArgument: a number that is not whole, fewer than no sequence, or less than one token.
        """
        whole("sequences", sequences, 0)
        if sequences > self.most_sequences(context, budget):
            return math.inf
        moved = sequences * self.sequence_bytes(context, budget) * (1.0 if budget is None else 2.0)
        return (self.weights_bytes + moved) / self.bandwidth_bytes_per_s

    def faster_from_tokens(self, budget: Budget) -> float:
        """The context from which on SLAY takes less time per output token than softmax, at equally many sequences."""
        return 2.0 * state_bytes(budget, self.head_dim) / cache_bytes(1.0, self.head_dim)
