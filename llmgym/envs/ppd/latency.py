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

from dataclasses import asdict, dataclass, fields

from llmgym.core.checks import number


@dataclass(frozen=True)
class Latencies:
    """Times in seconds, and seconds a token.

    A step of a decode node with B decoding sequences, C tokens in their contexts and u tokens of prefill takes
    `max(step_s, prefill_step_s + prefill_token_s u) + sequence_s B + context_token_s C`, the first alone without prefill, plus
    its receives. So a step that is bound by memory takes about 157 prefill tokens in at no price.

    Attributes:
        step_s: reading the weights, and overhead.
        prefill_step_s: overhead of a step with prefill.
        prefill_token_s: 46 % of 989 TFLOP/s for 8.03e9 parameters.
        sequence_s: of a decoding sequence.
        context_token_s: 2.26 TB/s of KV reads.
        replica_sequence_s: the same on an R node.
        replica_context_token_s: the same on an R node.
        replica_prefill_token_s: what a prefill token costs an R node more where others decode.
        handoff_s: P's connector, for each request; nothing overlaps with it.
        local_s: from a later turn's arrival until D's scheduler sees it.
        local_rate_s2: the same, for each new conversation a second in the cluster.
        local_token_s: the same, for each token of context and prompt.
        replica_s: `local_s` of an R node.
        remote_s: from the end of a prefill on P until D's scheduler sees it.
        remote_token_s: the same, for each token.
        receive_s: D's step is longer by this for each transfer it takes in ...
        receive_token_s: ... and by this for each token of it, where the link is not slower.
    """

    step_s: float = 8.0e-3
    prefill_step_s: float = 2.5e-3
    prefill_token_s: float = 35e-6
    sequence_s: float = 51e-6
    context_token_s: float = 58e-9
    replica_sequence_s: float = 111e-6
    replica_context_token_s: float = 100e-9
    replica_prefill_token_s: float = 15e-6
    handoff_s: float = 45e-3
    local_s: float = 13e-3
    local_rate_s2: float = 3e-3
    local_token_s: float = 3e-6
    replica_s: float = 16e-3
    remote_s: float = 29e-3
    remote_token_s: float = 6e-6
    receive_s: float = 6.2e-3
    receive_token_s: float = 2.7e-6

    def __post_init__(self) -> None:
        for field in fields(self):
            number(
                field.name, getattr(self, field.name), zero=field.name not in ("step_s", "receive_token_s")
            )

    def remote_ttft_s(self, new_tokens: int, tokens: int) -> float:
        """TTFT through an idle P, s: `new_tokens` to prefill of `tokens` in all; without the wait for a running step of D."""
        there = (
            self.handoff_s + self.prefill_token_s * new_tokens + self.remote_s + self.remote_token_s * tokens
        )
        return there + self.receive_s + self.receive_token_s * tokens + self.step_s

    def local_ttft_s(self, new_tokens: int, tokens: int, rate: float = 0.0) -> float:
        """TTFT on an idle D, s: `new_tokens` to prefill (at most one chunk) of `tokens` in all.

        Args:
            new_tokens: those to prefill.
            tokens: context and prompt.
            rate: new conversations a second in the cluster.
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
