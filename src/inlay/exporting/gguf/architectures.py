r"""Model types that have a GGUF architecture: their numbers, and what is stored of each weight.

llama        W_q, W_k with rows 2i, 2i+1 of a head where transformers has rows i, i + d/2: llama.cpp rotates neighbours
gpt2         weights of transformers' Conv1D transposed, to (out, in)
gemma        w + 1 of a norm, where transformers computes x (1 + w)

Long contexts after Llama 3 are a tensor of factors f_i that frequencies are divided by:

    f = 1 / ((1 - s) / F + s)    s = (L / wavelength - l) / (h - l), kept in 0..1

with L the length trained on first, F the factor, l and h the low and high frequency factors.

Sources: the gguf package's constants; llama.cpp as a reader; transformers' own reader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inlay.errors import ConfigError

Numbers = dict[str, Any]
"""Name of a method of `gguf.GGUFWriter`, without `add_`, -> its argument."""


@dataclass(frozen=True)
class Architecture:
    """One of GGUF's.

    Attributes:
        name: GGUF's.
        numbers: config -> what is written of it.
        stored: (a weight's name in transformers, the weight, config) -> what is written of it.
        rows: the same of a matrix whose rows only are the weight's: B of a LoRA.
        extra: config -> tensors that transformers has none of.
        must_be: field of the config -> the values that the architecture means; any other is refused.
    """

    name: str
    numbers: Callable[[Any], Numbers]
    stored: Callable[[str, Tensor, Any], Tensor] = lambda name, w, config: w
    rows: Callable[[str, Tensor, Any], Tensor] = lambda name, b, config: b
    extra: Callable[[Any], dict[str, Tensor]] = lambda config: {}
    must_be: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def architecture_of(config: Any) -> Architecture:
    """The architecture of a model's config. Raises ConfigError if there is none, or it means another model."""
    found = ARCHITECTURES.get(str(config.model_type))
    if found is None:
        raise ConfigError(
            f"A model of type {config.model_type!r} cannot be written as GGUF: the types that can are "
            f"{', '.join(ARCHITECTURES)}. Export it merged, and convert the folder with llama.cpp's own script.",
            "to",
            "gguf",
        )
    for name, allowed in found.must_be.items():
        if (value := getattr(config, name, allowed[0])) not in allowed:
            raise ConfigError.of(
                name, value, f"{' or '.join(map(repr, allowed))} in a GGUF file of a {config.model_type} model"
            )
    return found


# ---------------------------------------------------------------------- numbers


def _decoder(config: Any) -> Numbers:
    """Of a decoder with rotary positions and RMS norms."""
    size = _head_size(config)
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "layer_norm_rms_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        **({} if size * config.num_attention_heads == config.hidden_size else _lengths(size)),
        **_rope(config),
    }


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _lengths(size: int) -> Numbers:
    return {"key_length": size, "value_length": size}


def _rope(config: Any) -> Numbers:
    rope = config.rope_parameters
    kind, numbers = rope.get("rope_type", "default"), {"rope_freq_base": rope["rope_theta"]}
    if rope.get("partial_rotary_factor", 1.0) != 1.0 or kind not in ("default", "linear", "llama3"):
        raise ConfigError.of(
            "rope_parameters", rope, "positions of the type default, linear or llama3 over whole heads in a GGUF file"
        )
    if kind == "linear":
        import gguf

        numbers |= {"rope_scaling_type": gguf.RopeScalingType.LINEAR, "rope_scaling_factor": rope["factor"]}
    return numbers


def _llama(config: Any) -> Numbers:
    return {**_decoder(config), "rope_dimension_count": _head_size(config)}


def _with_lengths(config: Any) -> Numbers:
    return {**_decoder(config), **_lengths(_head_size(config))}


def _gpt2(config: Any) -> Numbers:
    return {
        "block_count": config.n_layer,
        "context_length": config.n_positions,
        "embedding_length": config.n_embd,
        "feed_forward_length": config.n_inner or 4 * config.n_embd,
        "head_count": config.n_head,
        "layer_norm_eps": config.layer_norm_epsilon,
    }


def _gemma2(config: Any) -> Numbers:
    _check_attention_scale(config)
    return {
        **_with_lengths(config),
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
        "sliding_window": config.sliding_window,
    }


def _gemma3(config: Any) -> Numbers:
    _check_attention_scale(config)
    wanted = ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(config.num_hidden_layers)]
    if list(config.layer_types) != wanted:
        raise ConfigError.of("layer_types", config.layer_types, "full attention in each sixth layer, and in no other")
    whole, near = (config.rope_parameters[kind] for kind in ("full_attention", "sliding_attention"))
    numbers = _with_lengths(_Seen(config, rope_parameters=whole))
    if near.get("rope_type", "default") != "default":
        raise ConfigError.of("rope_parameters", near, "positions of the type default in layers of sliding attention")
    return {**numbers, "rope_freq_base_swa": near["rope_theta"], "sliding_window": config.sliding_window}


def _check_attention_scale(config: Any) -> None:
    """llama.cpp scales the queries of these by 1 / sqrt(head size) (and of the 27B model otherwise, by its size)."""
    if config.query_pre_attn_scalar != config.head_dim:
        raise ConfigError.of("query_pre_attn_scalar", config.query_pre_attn_scalar, f"head_dim, {config.head_dim}")


class _Seen:
    """A config with some fields seen otherwise."""

    def __init__(self, config: Any, **fields: Any):
        self.__dict__.update(fields)
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


# ---------------------------------------------------------------------- tensors


def _neighbours(name: str, w: Tensor, config: Any) -> Tensor:
    """Rows i and i + d/2 of each head side by side."""
    if ".q_proj." in name:
        heads = config.num_attention_heads
    elif ".k_proj." in name:
        heads = config.num_key_value_heads
    else:
        return w
    return w.reshape(heads, 2, -1, *w.shape[1:]).transpose(1, 2).reshape(w.shape)


def _transposed(name: str, w: Tensor, config: Any) -> Tensor:
    return w.T if ".c_" in name and w.dim() == 2 else w


def _plus_one(name: str, w: Tensor, config: Any) -> Tensor:
    return w.float() + 1 if name.endswith("norm.weight") else w


def _frequency_factors(config: Any) -> dict[str, Tensor]:
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return {}
    size, length = _head_size(config), rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    share = ((length / wavelengths - low) / (high - low)).clamp(0, 1)
    return {"rope_freqs.weight": (1 / ((1 - share) / factor + share)).float()}


# ---------------------------------------------------------------------- the table

_SILU = {"hidden_act": ("silu", "swish")}
_GELU = ("gelu_pytorch_tanh",)
_GEMMA = {"hidden_activation": _GELU, "tie_word_embeddings": (True,), "attention_bias": (False,)}
_LLAMA = Architecture("llama", _llama, _neighbours, _neighbours, _frequency_factors, _SILU)
_WHOLE = {**_SILU, "use_sliding_window": (False,)}

ARCHITECTURES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture("qwen2", _decoder, must_be=_WHOLE, extra=_frequency_factors),
    "qwen3": Architecture("qwen3", _with_lengths, must_be=_WHOLE, extra=_frequency_factors),
    "gpt2": Architecture(
        "gpt2",
        _gpt2,
        _transposed,
        must_be={
            "activation_function": ("gelu_new", *_GELU),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
    ),
    "gemma2": Architecture("gemma2", _gemma2, _plus_one, must_be=_GEMMA),
    "gemma3_text": Architecture(
        "gemma3",
        _gemma3,
        _plus_one,
        must_be={**_GEMMA, "final_logit_softcapping": (None,), "use_bidirectional_attention": (False,)},
    ),
}
"""transformers' model type -> GGUF's architecture."""
