r"""A LoRA alone as a GGUF file, which llama.cpp adds to the file of its base (`--lora FILE`).

    W' = W + (alpha / r) B' A    B' = (s r / alpha) B

A: (r, in) and B: (out, r) are tensors NAME.lora_a and NAME.lora_b of the base's tensor NAME; alpha is one for the file,
s a layer's own scale, r the rows of A. Rows of B are those of W, in the order that the architecture has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from inlay.errors import ConfigError, optional
from inlay.exporting.gguf.architectures import architecture_of
from inlay.exporting.gguf.file import TYPES, add_base
from inlay.exporting.result import Export
from inlay.methods.lora.linear import LoraLinear

_DTYPES = ("float32", "float16", "bfloat16")
FORM = "gguf-adapter"


def write_gguf_adapter(view: Any, folder: Path, name: str, dtype: str | None) -> Export:
    """Writes the active adapter of a view as NAME-lora-DTYPE.gguf, float32 by default.

    Raises ConfigError if it is more than a LoRA of linear layers, or the base has no architecture in GGUF.
    """
    gguf = optional("gguf", "gguf")
    if len(view.active_adapters) != 1:
        raise ConfigError.of("source", list(view.active_adapters), f"a view with one active adapter for {FORM!r}")
    dtype = dtype or "float32"
    if dtype not in _DTYPES:
        raise ConfigError.of("dtype", dtype, f"one of {_DTYPES} for {FORM!r}")
    (active,), architecture = view.active_adapters, architecture_of(view.config)
    alpha = float(getattr(view.peft_config[active], "lora_alpha", 0))
    number = next(key for key, found in gguf.MODEL_ARCH_NAMES.items() if found == architecture.name)
    names = gguf.get_tensor_name_map(number, view.config.num_hidden_layers)
    kind = gguf.GGMLQuantizationType[TYPES[dtype][0]]
    head = view.get_output_embeddings()
    tied = head is not None and head.weight is view.get_input_embeddings().weight

    path = folder / f"{name}-lora-{dtype}.gguf"
    writer = gguf.GGUFWriter(path, architecture.name)
    writer.add_type("adapter")
    writer.add_name(name)
    add_base(writer, view.config)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_file_type(gguf.LlamaFileType[TYPES[dtype][1]])
    for place, adapter in view._inlay.placed[active].items():
        key = names.get_name(f"{place}.weight", try_suffixes=(".weight",))
        plain = type(adapter) is LoraLinear and adapter.b is None and adapter.c is None and alpha
        if not plain or key is None or (tied and key == "output.weight"):
            raise ConfigError(
                f"The adapter at {place!r} ({type(adapter).__name__}) has no place in a GGUF file of a LoRA: expected "
                f"A and B of linear layers of a {view.config.model_type} model, and no biases. Export it as 'gguf'.",
                "to",
                FORM,
            )
        a, b = (m[0].detach().float().cpu() for m in adapter.factors(torch.empty(0)))
        b = architecture.rows(f"{place}.weight", b * (adapter.scale * a.shape[0] / alpha), view.config)
        for part, m in (("lora_a", a), ("lora_b", b)):
            array = gguf.quants.quantize(m.contiguous().numpy(), kind)
            writer.add_tensor(f"{key}.{part}", array, raw_shape=tuple(m.shape), raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return Export(FORM, folder, file=path.name, notes=["not verified: only llama.cpp reads a LoRA in GGUF"])
