"""What work and transfers cost on the nodes of a PPD cluster, where no profile says it.

The constants were fitted to the raw measurements that Li et al. published with arXiv 2603.13358 (github.com/freelulul/vllm-ppd,
commits d6d4efb37, b0aeec421 and 87fc373f2): Llama-3.1-8B in bf16, vLLM with a point-to-point KV connector, H100-80GB with NVLink.
At low load they meet 14 measured cells of each route with a median error of 7 % (on D), 4 % (through P) and 11 % (replicas).

One of them has no known cause. Published TTFT on D rises with the rate of new conversations, by about 3 ms for each a second,
on all three clusters alike (1P_3D, small_tiny: 34 ms at 1 a second, 86 at 16), while TPOT there and TTFT on replicas hardly
do (8.1 to 8.9 ms; 30 to 36 ms): it is a wait outside of the engines' steps. `local_rate_s2` is the slope of least absolute
deviations over all 55 published means on D (45 cells, 10 of chat: 2.9 to 3.2 ms, with and without an offset), and `local_s` leaves
what was fitted at 1 a second as it was. The mean error of the 45 cells falls from 32 to 17 ms.
"""

from dataclasses import asdict, dataclass

from llmgym.core.settings import check, quantity


@dataclass(frozen=True)
class Latencies:
    """Times in seconds, and seconds a token.

    A step of a decode node with B decoding sequences, C tokens in their contexts and u tokens of prefill takes
    `max(step_s, prefill_step_s + prefill_token_s u) + sequence_s B + context_token_s C`, the first alone without prefill, plus
    its receives. So a step that is bound by memory takes about 157 prefill tokens in at no price.
    """

    step_s: float = quantity(8.0e-3, "Time to read the weights, and overhead, seconds.", unit="s")
    prefill_step_s: float = quantity(2.5e-3, "Overhead of a step with prefill, seconds.", zero=True, unit="s")
    prefill_token_s: float = quantity(
        35e-6,
        "Time to prefill a token, seconds: 46 % of 989 TFLOP/s for 8.03e9 parameters.",
        zero=True,
        unit="s",
    )
    sequence_s: float = quantity(51e-6, "Time of a decoding sequence, seconds.", zero=True, unit="s")
    context_token_s: float = quantity(
        58e-9, "Time to read a token of context, seconds: 2.26 TB/s of KV.", zero=True, unit="s"
    )
    replica_sequence_s: float = quantity(
        111e-6, "Time of a decoding sequence on an R node, seconds.", zero=True, unit="s"
    )
    replica_context_token_s: float = quantity(
        100e-9, "Time to read a token of context on an R node, seconds.", zero=True, unit="s"
    )
    replica_prefill_token_s: float = quantity(
        15e-6,
        "Time that a prefill token adds on an R node where others decode, seconds.",
        zero=True,
        unit="s",
    )
    handoff_s: float = quantity(
        45e-3,
        "Time that P's connector takes for each request, seconds; nothing overlaps with it.",
        zero=True,
        unit="s",
    )
    local_s: float = quantity(
        13e-3, "Time from a later turn's arrival until D's scheduler sees it, seconds.", zero=True, unit="s"
    )
    local_rate_s2: float = quantity(
        3e-3,
        "Time that it takes longer for each new conversation a second in the cluster, square seconds.",
        zero=True,
        unit="s^2",
    )
    local_token_s: float = quantity(
        3e-6, "Time that it takes longer for each token of context and prompt, seconds.", zero=True, unit="s"
    )
    replica_s: float = quantity(
        16e-3,
        "Time from a turn's arrival until the scheduler of an R node sees it, seconds.",
        zero=True,
        unit="s",
    )
    remote_s: float = quantity(
        29e-3,
        "Time from the end of a prefill on P until D's scheduler sees it, seconds.",
        zero=True,
        unit="s",
    )
    remote_token_s: float = quantity(
        6e-6, "Time that this takes longer for each token, seconds.", zero=True, unit="s"
    )
    receive_s: float = quantity(
        6.2e-3,
        "Time by which each transfer that it takes in lengthens D's step, seconds.",
        zero=True,
        unit="s",
    )
    receive_token_s: float = quantity(
        2.7e-6,
        "Time by which each token of a transfer lengthens D's step where the link is not slower, seconds.",
        unit="s",
    )

    def __post_init__(self) -> None:
        check(self)

    def remote_ttft_s(self, new_tokens: int, tokens: int) -> float:
        """TTFT through an idle P, without the wait for a running step of D.

        Args:
            new_tokens: tokens that P has to prefill.
            tokens: tokens of context and prompt.

        Returns:
            Seconds.
        """
        there = (
            self.handoff_s + self.prefill_token_s * new_tokens + self.remote_s + self.remote_token_s * tokens
        )
        return there + self.receive_s + self.receive_token_s * tokens + self.step_s

    def local_ttft_s(self, new_tokens: int, tokens: int, rate: float = 0.0) -> float:
        """TTFT on an idle D.

        Args:
            new_tokens: tokens that D has to prefill, at most one chunk.
            tokens: tokens of context and prompt.
            rate: new conversations a second in the cluster.

        Returns:
            Seconds.
        """
        step_s = max(self.step_s, self.prefill_step_s + self.prefill_token_s * new_tokens)
        return self.local_s + self.local_rate_s2 * rate + self.local_token_s * tokens + step_s

    def as_dict(self) -> dict[str, float]:
        """All of them by name."""
        return asdict(self)


LLAMA_8B_H100 = Latencies()
KV_BYTES_PER_TOKEN = 131_072
"""2 (K and V) x 8 KV heads x 128 x 2 bytes x 32 layers of Llama-3.1-8B."""
KV_CAPACITY_TOKENS = 374_000
"""0.85 x 80 GB less 16 GB of weights and 3 GB of activations, in tokens."""
