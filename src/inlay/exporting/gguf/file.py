"""The file: header, keys, and tensors one after the other, so that no more than one of them is held twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay.errors import ConfigError, NumericsError, optional
from inlay.exporting.gguf.architectures import Architecture, architecture_of
from inlay.exporting.gguf.vocabulary import Vocabulary

# dtype here -> gguf's names of a tensor's type and of a file's
TYPES = {
    "float32": ("F32", "ALL_F32"),
    "float16": ("F16", "MOSTLY_F16"),
    "bfloat16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}


@dataclass(frozen=True)
class _Stored:
    """A weight, and how it is stored: made when it is written."""

    name: str
    weight: Tensor
    kind: Any
    architecture: Architecture
    config: Any

    def tensor(self, device: str | None = None) -> Tensor:
        weight = self.weight.detach() if device is None else self.weight.to(device)
        return self.architecture.stored(self.name, weight, self.config)

    @property
    def shape(self) -> torch.Size:
        return self.tensor("meta").shape


def fit(model: Any, tokenizer: Any) -> tuple[Any, Architecture, Vocabulary]:
    """The gguf package, and what a model and its tokenizer are in GGUF.

    Raises:
        ConfigError: no architecture of GGUF is this model, or its tokenizer cannot be said in it.
        MissingExtraError: the package is not installed.
    """
    gguf = optional("gguf", "gguf")
    if not tokenizer:
        raise ConfigError.of("tokenizer", tokenizer, "a tokenizer: a GGUF file holds it")
    architecture = architecture_of(model.config)
    return gguf, architecture, Vocabulary.of(tokenizer, model.get_input_embeddings().weight.shape[0])


def write_file(model: Any, folder: Path, tokenizer: Any, name: str, dtype: str) -> tuple[Path, list[str]]:
    """Writes `NAME-DTYPE.gguf`, and says what is worth knowing of it. Matrices have the dtype, all else is float32.

    Raises as `fit`, and

        ConfigError: a weight has no place in the architecture.
        NumericsError: a number is too large for the dtype.
    """
    gguf, architecture, vocabulary = fit(model, tokenizer)
    tensors = dict(_tensors(gguf, model, architecture, dtype))
    path = folder / f"{name}-{dtype}.gguf"
    writer = gguf.GGUFWriter(path, architecture.name)
    try:
        _add_keys(gguf, writer, model, architecture, name, dtype)
        _add_vocabulary(writer, vocabulary)
        for key, stored in tensors.items():
            block, size = gguf.GGML_QUANT_SIZES[stored.kind]
            nbytes = stored.shape.numel() // block * size
            writer.add_tensor_info(key, tuple(stored.shape), gguf.quants.np.dtype("f4"), nbytes, raw_dtype=stored.kind)
        writer.add_size_label(gguf.size_label(*writer.get_total_parameter_count()))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for key, stored in tensors.items():
            writer.write_tensor_data(_numbers(gguf, key, stored))
    finally:
        writer.close()
    return path, [*vocabulary.notes, *_notes(model.config, tensors, TYPES[dtype][0])]


def _tensors(gguf: Any, model: Any, architecture: Architecture, dtype: str) -> Iterator[tuple[str, _Stored]]:
    """GGUF's name -> tensor. A head that is the embedding is not stored twice. Raises ConfigError for other weights."""
    config, head, embedding = model.config, model.get_output_embeddings(), model.get_input_embeddings()
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    types = {name: gguf.GGMLQuantizationType[name] for name in ("F32", "F16", TYPES[dtype][0])}
    for key, weight in architecture.extra(config).items():
        yield key, _Stored(key, weight, types["F32"], architecture, config)
    tied = head is not None and head.weight is embedding.weight
    for name, weight in model.named_parameters(remove_duplicate=False):
        if tied and weight is head.weight and model.get_submodule(name.rpartition(".")[0]) is head:
            continue
        key = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if key is None:
            raise ConfigError(
                f"{name!r} has no place in a GGUF file of the architecture {architecture.name!r}: expected a model "
                f"with the weights of {type(config).__name__.removesuffix('Config')} only. Export it merged.",
                "to",
                "gguf",
            )
        made = _Stored(name, weight, None, architecture, config)
        rows = made.shape[-1]
        narrow = weight.dim() > 1 and not key.startswith("position_embd")
        kind = types[TYPES[dtype][0] if narrow else "F32"]
        if rows % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = types["F16"]
        yield key, _Stored(name, weight, kind, architecture, config)


def _add_keys(gguf: Any, writer: Any, model: Any, architecture: Architecture, name: str, dtype: str) -> None:
    writer.add_type("model")
    # transformers takes a file whose name is exactly that for one of an architecture that there is not
    writer.add_name(name if name != "mistral" else "Mistral")
    add_base(writer, model.config)
    for key, value in architecture.numbers(model.config).items():
        getattr(writer, f"add_{key}")(value)
    writer.add_file_type(gguf.LlamaFileType[TYPES[dtype][1]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_base(writer: Any, config: Any) -> None:
    """The name of the base, if it is one on the Hub."""
    base = str(getattr(config, "name_or_path", "") or "")
    if base and not Path(base).exists():
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base.rpartition("/")[2])
        writer.add_base_model_organization(0, base.rpartition("/")[0])


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)  # an empty list is not written
    writer.add_token_scores(vocabulary.scores)
    for kind, token in vocabulary.special.items():
        getattr(writer, f"add_{kind}_token_id")(token)
    for kind, added in vocabulary.adds.items():
        getattr(writer, f"add_add_{kind}_token")(added)
    writer.add_add_space_prefix(vocabulary.space)
    if isinstance(vocabulary.template, dict):
        writer.add_chat_template([{"name": n, "template": t} for n, t in vocabulary.template.items()])
    elif vocabulary.template:
        writer.add_chat_template(vocabulary.template)


def _numbers(gguf: Any, key: str, stored: _Stored) -> Any:
    """The bytes of a tensor, as an array. Raises NumericsError if a number is too large, or none."""
    array = stored.tensor().float().cpu().contiguous().numpy()
    with gguf.quants.np.errstate(over="ignore"):  # what does not fit is infinite, and seen below
        made = gguf.quants.quantize(array, stored.kind)
    if not gguf.quants.np.isfinite(gguf.quants.dequantize(made, stored.kind)).all():
        raise NumericsError(
            f"{key} has numbers up to {abs(array).max():.3g}, which {stored.kind.name} cannot hold. Nothing was kept. "
            "Export as bfloat16 or float32."
        )
    return made


def _notes(config: Any, tensors: dict[str, _Stored], kind: str) -> Iterator[str]:
    wider = [key for key, made in tensors.items() if made.kind.name == "F16" != kind]
    if wider:
        yield f"{len(wider)} tensors, {wider[0]} the first, have rows that are no multiple of 32: they are float16"
    window = getattr(config, "sliding_window", None)
    if config.model_type == "mistral" and window and window < config.max_position_embeddings:
        yield f"the model attends to the last {window} tokens, llama.cpp to all: longer texts differ"
