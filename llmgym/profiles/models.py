"""Shapes of the models the shipped profiles cover, from their public `config.json`; `llmgym.profiles.configs` reads others.

Sources (Hugging Face, file `config.json` of each repository; the repository is in `source`):
`num_hidden_layers`, `hidden_size`, `intermediate_size`, `num_attention_heads`, `num_key_value_heads`,
`vocab_size`, `tie_word_embeddings` (false for all of them). `head_dim` is hidden_size / num_attention_heads =
128 in all. Qwen2.5 has a bias on the query, key and value projections, Llama has none.
"""

from dataclasses import dataclass
from typing import NamedTuple

BF16_BYTES = 2


class Gemm(NamedTuple):
    """One matrix product of a layer on one GPU: [tokens, k] x [k, n]."""

    name: str
    n: int
    k: int


@dataclass(frozen=True)
class ModelShape:
    """What a decoder-only transformer with gated MLP needs to be costed.

    Attributes:
        name: the name used in profiles.
        source: where the numbers come from.
        layers: decoder layers.
        hidden: width of the residual stream.
        intermediate: width of the gated MLP, or of one expert.
        q_heads: query heads.
        kv_heads: key/value heads.
        head_dim: width of a head.
        vocab: rows of the output head.
        qkv_bias: whether the query, key and value projections have a bias.
        qk_norm: whether each head's query and key are normalized.
        tied: whether the output head is the embedding.
        experts: of each layer; 0 for a dense model.
        experts_per_token: that each token is sent to.
    """

    name: str
    source: str
    layers: int
    hidden: int
    intermediate: int
    q_heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    experts: int = 0
    experts_per_token: int = 0

    @property
    def parameters(self) -> int:
        """Number of weights: embedding, layers, final norm and the output head where it is not the embedding."""
        qkv = (self.q_heads + 2 * self.kv_heads) * self.head_dim
        layer = self.hidden * (qkv + self.q_heads * self.head_dim) + 2 * self.hidden
        layer += (qkv if self.qkv_bias else 0) + (2 * self.head_dim if self.qk_norm else 0)
        layer += 0 if self.experts else 3 * self.hidden * self.intermediate
        router = self.layers * self.hidden * self.experts
        ends = (1 if self.tied else 2) * self.vocab * self.hidden + self.hidden
        return ends + self.layers * layer + router + self.expert_parameters

    @property
    def expert_parameters(self) -> int:
        """Number of weights in the experts of all layers; 0 for a dense model."""
        return self.layers * self.experts * 3 * self.hidden * self.intermediate

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in bf16, over all GPUs (norms, which tensor parallelism replicates, counted
        once).
        """
        return BF16_BYTES * self.parameters

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes one cached token takes in bf16, over all layers and GPUs."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BF16_BYTES

    def gemms(self, tensor_parallel: int) -> tuple[Gemm, ...]:
        """Products of a dense layer on one of `tensor_parallel` GPUs, projections fused as serving engines do."""
        q, kv = (
            self.q_heads * self.head_dim // tensor_parallel,
            self.kv_heads * self.head_dim // tensor_parallel,
        )
        inter = self.intermediate // tensor_parallel
        return (
            Gemm("qkv", q + 2 * kv, self.hidden),
            Gemm("attention_output", self.hidden, q),
            Gemm("gate_up", 2 * inter, self.hidden),
            Gemm("down", self.hidden, inter),
        )

    def output_head(self, tensor_parallel: int) -> Gemm:
        """The product that gives the logits, on one of `tensor_parallel` GPUs."""
        return Gemm("output_head", self.vocab // tensor_parallel, self.hidden)

    def elementwise_bytes_per_token(self, tensor_parallel: int) -> int:
        """Bytes that norms, rotary embedding, activation and cache writes of one layer move for one token, on
        one GPU.

        A norm fused with the residual addition reads the branch and the residual and writes both (4 hidden);
        two a layer. Rotary embedding reads and writes queries and keys; the cache write reads and writes keys
        and values; the gated activation reads two and writes one vector of the intermediate width.
        """
        q, kv = (
            self.q_heads * self.head_dim // tensor_parallel,
            self.kv_heads * self.head_dim // tensor_parallel,
        )
        elements = 2 * 4 * self.hidden + 2 * (q + kv) + 2 * 2 * kv + 3 * self.intermediate // tensor_parallel
        return BF16_BYTES * elements


MODELS = {
    shape.name: shape
    for shape in (
        ModelShape(
            "llama-3.1-8b",
            "https://huggingface.co/meta-llama/Llama-3.1-8B/blob/main/config.json",
            layers=32,
            hidden=4096,
            intermediate=14336,
            q_heads=32,
            kv_heads=8,
            head_dim=128,
            vocab=128256,
        ),
        ModelShape(
            "llama-3.1-70b",
            "https://huggingface.co/meta-llama/Llama-3.1-70B/blob/main/config.json",
            layers=80,
            hidden=8192,
            intermediate=28672,
            q_heads=64,
            kv_heads=8,
            head_dim=128,
            vocab=128256,
        ),
        ModelShape(
            "llama-2-70b",
            "https://huggingface.co/meta-llama/Llama-2-70b-hf/blob/main/config.json",
            layers=80,
            hidden=8192,
            intermediate=28672,
            q_heads=64,
            kv_heads=8,
            head_dim=128,
            vocab=32000,
        ),
        ModelShape(
            "qwen2.5-7b",
            "https://huggingface.co/Qwen/Qwen2.5-7B/blob/main/config.json",
            layers=28,
            hidden=3584,
            intermediate=18944,
            q_heads=28,
            kv_heads=4,
            head_dim=128,
            vocab=152064,
            qkv_bias=True,
        ),
        ModelShape(
            "qwen2.5-14b",
            "https://huggingface.co/Qwen/Qwen2.5-14B/blob/main/config.json",
            layers=48,
            hidden=5120,
            intermediate=13824,
            q_heads=40,
            kv_heads=8,
            head_dim=128,
            vocab=152064,
            qkv_bias=True,
        ),
        ModelShape(
            "qwen2.5-72b",
            "https://huggingface.co/Qwen/Qwen2.5-72B/blob/main/config.json",
            layers=80,
            hidden=8192,
            intermediate=29568,
            q_heads=64,
            kv_heads=8,
            head_dim=128,
            vocab=152064,
            qkv_bias=True,
        ),
    )
}
