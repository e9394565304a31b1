"""GGUF files, as transformers reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from inlay.errors import StateError

# fields that decide what a model computes, and that transformers does not read from a file (5.23)
_NOT_READ = (
    *("attention_bias", "mlp_bias", "head_dim", "hidden_act", "hidden_activation", "activation_function", "n_inner"),
    *("n_positions", "use_sliding_window", "sliding_window", "layer_types", "max_window_layers"),
    *("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)


def load_gguf(path: Path, like: Any) -> Any:
    """The causal language model in a file, in float32. What transformers does not read of it is as in another config.

    Args:
        like: that config.

    Raises StateError if this transformers cannot read the file.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = _read(AutoConfig.from_pretrained, path)
    for name in _NOT_READ:
        if hasattr(config, name) and hasattr(like, name):
            setattr(config, name, getattr(like, name))
    rope, told = getattr(config, "rope_parameters", None), getattr(like, "rope_parameters", None)
    if rope and told:  # of these it reads theta only
        theta = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope and "rope_theta" in told else {}
        config.rope_parameters = {**told, **theta}
    return _read(AutoModelForCausalLM.from_pretrained, path, config=config, dtype=torch.float32).eval()


def load_gguf_tokenizer(path: Path) -> Any:
    """The tokenizer in a file. Raises StateError if this transformers cannot read it."""
    from transformers import AutoTokenizer

    return _read(AutoTokenizer.from_pretrained, path)


def _read(load: Callable[..., Any], path: Path, **options: Any) -> Any:
    try:
        return load(path.parent, gguf_file=path.name, **options)
    except (AttributeError, KeyError, TypeError, ValueError, NotImplementedError) as error:
        why = f"{type(error).__name__}: {error}"
        raise StateError(
            f"transformers {version('transformers')} cannot read '{path.name}' back ({why}), so it cannot be verified. "
            "Take a later transformers, or leave the check out (--no-verify, verify=False)."
        ) from error


def recut(tokenizer: Any, how: Mapping[str, Any]) -> None:
    """Makes a tokenizer cut texts in another way: of that a file has the name only, and transformers does not know all.

    Args:
        how: `normalizer` and `pre_tokenizer`, as in tokenizer.json.
    """
    from tokenizers import Tokenizer

    backend = tokenizer.backend_tokenizer
    made = Tokenizer.from_str(json.dumps({**json.loads(backend.to_str()), **how}))
    backend.normalizer, backend.pre_tokenizer = made.normalizer, made.pre_tokenizer
