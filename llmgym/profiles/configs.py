"""Shapes of models from the `config.json` that Hugging Face keeps beside the weights.

Llama, Mistral, Qwen2, Qwen3, their mixtures of experts and others with the same fields are read. What would be costed wrongly is
refused: latent attention, layers of different kinds, shared experts, quantized weights.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmgym.core.checks import loaded
from llmgym.errors import ProfileError, UnknownName
from llmgym.profiles.models import MODELS, ModelShape
from llmgym.profiles.profile import read_json

_REFUSED = {
    "text_config": "the model reads more than text; give the configuration of its text model",
    "kv_lora_rank": "latent attention keeps another cache",
    "quantization_config": "the weights are not 16-bit",
    "first_k_dense_replace": "layers differ",
    "mlp_only_layers": "layers differ",
    "n_shared_experts": "shared experts are not known",
    "shared_expert_intermediate_size": "shared experts are not known",
}
"""Fields that must be absent, empty or 0, and why."""


def shape_of(value: ModelShape | str | os.PathLike[str]) -> ModelShape:
    """The shape of a model.

    Args:
        value: the shape itself, the name of one in `llmgym.profiles.models`, or the path of a config.json or of its folder.

    Raises:
        UnknownName: there is neither such a shape nor such a file.
        InvalidArgument: `value` is something else.
        ProfileError: the file lacks a field, or describes a model of another kind.
    """
    what = "a ModelShape, the name of a shape, or the path of a config.json"
    return loaded("shape", value, _shape, what, ModelShape)


def _shape(name_or_path: str | os.PathLike[str]) -> ModelShape:
    name = os.fspath(name_or_path)
    if name in MODELS:
        return MODELS[name]
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        if path.suffix == ".json":
            raise ProfileError(f"{path}: no such file")
        raise UnknownName("model (there is no such file either)", name, MODELS)
    return read_config(path)


def read_config(path: Path) -> ModelShape:
    """The shape that a config.json describes. Raises `ProfileError`."""
    content = read_json(path)
    for key, why in _REFUSED.items():
        if content.get(key):
            raise ProfileError(f"{path}: field {key!r} is {content[key]!r}: {why}")
    kinds = set(content.get("layer_types") or ())
    if kinds - {"full_attention"}:
        raise ProfileError(f"{path}: field 'layer_types' has {', '.join(sorted(kinds))}: layers differ")
    if content.get("sliding_window") and content.get("use_sliding_window", True):
        raise ProfileError(
            f"{path}: field 'sliding_window' is {content['sliding_window']!r}: attention forgets"
        )
    if content.get("decoder_sparse_step", 1) != 1:
        raise ProfileError(
            f"{path}: field 'decoder_sparse_step' is {content['decoder_sparse_step']!r}: layers differ"
        )
    hidden = _count(content, path, "hidden_size")
    q_heads = _count(content, path, "num_attention_heads")
    experts = _count(content, path, "num_experts", "num_local_experts", "n_routed_experts", default=0)
    widths = ("moe_intermediate_size", "intermediate_size") if experts else ("intermediate_size",)
    kind = content.get("model_type")
    real = path.resolve()
    name = real.parent.name if real.name == "config.json" else real.stem
    return ModelShape(
        name,
        f"config.json of {name}",
        layers=_count(content, path, "num_hidden_layers"),
        hidden=hidden,
        intermediate=_count(content, path, *widths),
        q_heads=q_heads,
        kv_heads=_count(content, path, "num_key_value_heads", default=q_heads),
        head_dim=_count(content, path, "head_dim", default=hidden // q_heads),
        vocab=_count(content, path, "vocab_size"),
        qkv_bias=bool(content.get("attention_bias", kind == "qwen2")),
        qk_norm=kind in ("qwen3", "qwen3_moe"),
        tied=bool(content.get("tie_word_embeddings", False)),
        experts=experts,
        experts_per_token=_count(content, path, "num_experts_per_tok") if experts else 0,
    )


def _count(content: Mapping[str, Any], path: Path, *names: str, default: int | None = None) -> int:
    """The first of some fields that is there. Raises `ProfileError` unless it is a whole number >= 1."""
    for name in names:
        value = content.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ProfileError(f"{path}: field {name!r} is {value!r}; expected a whole number >= 1")
            return value
    if default is None:
        raise ProfileError(f"{path}: field {names[-1]!r} is missing")
    return default
