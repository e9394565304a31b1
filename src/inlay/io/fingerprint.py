"""Which base an adapter was trained on: enough to tell another model of the same shape from it.

    class       the model's class
    config      sha256 of its config, without what does not change the function
    vocab_size  rows of the input embedding
    dtype       of the sampled weights
    samples     {parameter: numbers at evenly spaced positions}, from some of the base's weight matrices: 16 evenly
                spread over it, one of each outermost part such as a head, and the embedding

Samples rather than a digest of them, because the same base may be loaded in another dtype: within one dtype they must
be equal, across dtypes they may differ by rounding. Weights that are quantised, sharded or on meta are not sampled.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inlay.checks import plain
from inlay.core.host import end_of, unmerged_parameters
from inlay.core.plan import walk
from inlay.errors import BaseMismatchError, ConfigError, CorruptFileError, InlayWarning
from inlay.io.manifest import MANIFEST_NAME
from inlay.io.strict_json import dump_json
from inlay.quant import is_quantised

_PARAMETERS, _NUMBERS = 16, 8
_ROUNDING = 2.0**-7  # relative, of bfloat16
_VOLATILE = frozenset(
    [
        *("_name_or_path", "name_or_path", "transformers_version", "architectures", "task_specific_params"),
        *("dtype", "torch_dtype", "quantization_config", "use_cache", "return_dict", "tie_word_embeddings"),
        *("id2label", "label2id", "num_labels", "problem_type", "output_attentions", "output_hidden_states"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"),
        *("forced_decoder_ids", "suppress_tokens", "begin_suppress_tokens"),  # of `generate`, where guides set them
    ]
)


def fingerprint(model: nn.Module, brought: Collection[int] = ()) -> dict[str, Any]:
    """The fingerprint of a view's base (its adapters leave no trace in it).

    Args:
        brought: ids of the base's parameters that the adapter brings values of its own for, such as a head trained
            in full: the base may be built with a fresh one each time, so they are not sampled.
    """
    weights = {name: w for name, w in _matrices(model).items() if id(w) not in brought}
    names = sorted(weights)
    spread = [i * (len(names) - 1) // (_PARAMETERS - 1) for i in range(_PARAMETERS)] if names else []
    chosen = dict.fromkeys(names[i] for i in spread)
    parts = {n.split(".", 1)[0]: n for n in names}  # one of each outermost part: a head may be fresh, all else equal
    if len(parts) <= _PARAMETERS:
        chosen.update(dict.fromkeys(parts.values()))
    matrix = _embedding_matrix(model)
    table = next((n for n, w in weights.items() if w is matrix), None)
    if table is not None:
        chosen[table] = None
    return {
        "class": getattr(type(model), "_original_class", type(model)).__name__,
        "config": _config_hash(model),
        "vocab_size": None if matrix is None or matrix.dim() != 2 else int(matrix.shape[0]),  # flat: FSDP1, ZeRO-3
        "dtype": next((str(weights[n].dtype).removeprefix("torch.") for n in chosen), None),
        "samples": {n: _sample(weights[n]) for n in chosen},
    }


def check_base(saved: Mapping[str, Any], model: nn.Module, where: str) -> None:
    """Compares a saved fingerprint with `model`'s.

    Raises BaseMismatchError if vocabulary or sampled weights differ, CorruptFileError if `saved` is no fingerprint;
    warns if only the config differs.
    """
    now = fingerprint(model)
    remedy = "Load it onto the base it was trained on, or pass check_base=False if you know that this is right."
    if None not in (saved.get("vocab_size"), now["vocab_size"]) and saved["vocab_size"] != now["vocab_size"]:
        raise BaseMismatchError(
            f"'{where}' was trained on a base with {saved['vocab_size']} embedding rows; this one has "
            f"{now['vocab_size']}. If tokens were added, call base.resize_token_embeddings({saved['vocab_size']}) "
            "first. " + remedy
        )
    exact = saved.get("dtype") == now["dtype"]
    samples: Any = saved.get("samples")
    weights = _matrices(model)
    for name, before in samples.items() if isinstance(samples, dict) else ():
        if name not in weights:
            continue
        after = _sample(weights[name])
        if not isinstance(before, list):
            raise CorruptFileError(
                f"'{where}': its {MANIFEST_NAME} describes the base's {name} by {str(before)[:40]}, expected a list of "
                "numbers. Save the adapter again, or pass check_base=False."
            )
        if len(before) != len(after) or any(not _agree(b, a, exact) for b, a in zip(before, after, strict=True)):
            raise BaseMismatchError(
                f"'{where}' was trained on another base: its {name} had {before[:3]}, in this model it has {after[:3]} "
                f"(class then {saved.get('class')}, now {now['class']}). {remedy}"
            )
    if None not in (saved.get("config"), now["config"]) and saved["config"] != now["config"]:
        warnings.warn(
            f"The base of '{where}' has the weights it was trained on, but another config: results may differ.",
            InlayWarning,
            stacklevel=2,
        )


def _agree(before: Any, after: float, exact: bool) -> bool:
    if not isinstance(before, int | float):
        return False
    return before == after if exact else abs(before - after) <= _ROUNDING * abs(after) + 1e-7


def _matrices(model: nn.Module) -> dict[str, Tensor]:
    """The base's dense floating-point weights of two or more dimensions, by name (a tied one by its first)."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for path, module in walk(model).items():
        if is_quantised(module):
            continue
        shared = unmerged_parameters(module)
        for name, p in shared.items():
            if p is None or id(p) in seen or p.dim() < 2 or p.device.type == "meta" or hasattr(p, "full_tensor"):
                continue
            seen.add(id(p))
            if p.is_floating_point() and p.dtype.itemsize >= 2 and p.numel():
                found[f"{path}.{name}" if path else name] = p
    return found


def _sample(weight: Tensor) -> list[float]:
    step = max(weight.numel() // _NUMBERS, 1)
    where = torch.arange(0, weight.numel(), step)[:_NUMBERS]
    index = torch.unravel_index(where.to(weight.device), weight.shape)
    return [float(v) for v in weight.detach()[index].float().tolist()]


def _embedding_matrix(model: Any) -> Tensor | None:
    """The input embedding's weight; None for models without a table of tokens (vision, speech)."""
    embedding = end_of(model, "input")
    return embedding.weight if isinstance(embedding, nn.Embedding) else None


def _config_hash(model: Any) -> str | None:
    config: Any = getattr(model, "config", None)
    data = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(data, Mapping):
        return None
    try:
        text = dump_json(_stable(plain(data)))
    except ConfigError:  # a config that is not JSON has no hash
        return None
    return hashlib.sha256(text).hexdigest()


def _stable(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` without volatile and private keys, at every level."""
    return {
        str(k): _stable(v) if isinstance(v, Mapping) else v
        for k, v in data.items()
        if k not in _VOLATILE and not str(k).startswith("_")
    }
