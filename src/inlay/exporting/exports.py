"""`export`: a view, an adapter's folder or a model, in the form that another program reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inlay.errors import ConfigError, MissingFileError, did_you_mean
from inlay.exporting.adapter import write_adapter
from inlay.exporting.gguf import GGUF
from inlay.exporting.gguf.adapter import FORM as GGUF_ADAPTER
from inlay.exporting.gguf.adapter import write_gguf_adapter
from inlay.exporting.merged import MERGED
from inlay.exporting.probes import Checks, Probes
from inlay.exporting.result import Export
from inlay.exporting.whole import write_whole
from inlay.hf.auto import load_view
from inlay.hf.tokenizers import TOKENIZER_CONFIG, load_tokenizer
from inlay.io.disk import appearing
from inlay.io.folder import CONFIG_NAME
from inlay.io.load import load_config
from inlay.model import PeftModel

_WHOLE = {form.name: form for form in (MERGED, GGUF)}
FORMS = ("merged", "peft", "gguf", GGUF_ADAPTER)


def export(
    source: Any,
    to: str,
    out: str | Path,
    *,
    tokenizer: Any = None,
    base: Any = None,
    dtype: str | None = None,
    name: str | None = None,
    verify: bool = True,
    probes: Probes | None = None,
    tolerance: float | None = None,
) -> Export:
    """Writes an adapter, or a model, to a folder that does not exist yet; it appears when it is complete and verified.

    "merged": a folder that transformers loads without Inlay: weights with the adapter in them, config, tokenizer and
    chat template. Verifying loads it and compares its logits with those of base and adapter.

    "peft": the adapter's files and the tokenizer's. Verifying lists what vLLM would refuse.

    "gguf": the model of "merged" in one file, NAME-DTYPE.gguf, with tokenizer and chat template, for llama.cpp and
    what is built on it. Verifying reads it with transformers: its logits as above, and token ids of some texts.

    "gguf-adapter": a LoRA alone as NAME-lora-DTYPE.gguf, for llama.cpp to add to its base. Nothing verifies it here.

    Args:
        source: a view, whose active adapters are taken; the folder of an adapter; or a model without one.
        tokenizer: to put beside it. None: the one in the adapter's folder or else the base's. False: none, for models
            that have none.
        base: for a folder, the model or the name to use in place of the one that the adapter names.
        dtype: of the weights: "float32", "bfloat16", "float16", or "q8_0" in a GGUF file (8 bits, a scale every 32). By
            default the model's. Merging is done in the wider of the two.
        name: of a GGUF file and the model in it; by default that of the source's or of the new folder.
        verify: False leaves the check out.
        probes: texts, or a dict of the model's arguments, to compare logits on; by default drawn token ids.
        tolerance: the difference allowed, as a share of the largest logit; by default after the dtype.

    Raises:
        ConfigError: an unknown form, no tokenizer, or an argument that does not fit.
        StateError: `out` is there and not empty, or the method cannot be merged.
        NumericsError: the merged model computes something else; the message says by how much.
        FileError: the folder is not an adapter, or is damaged.
    """
    if to not in FORMS:
        raise ConfigError.of("to", to, f"one of {FORMS}", did_you_mean(str(to), FORMS).strip())
    if name is not None and (not name or Path(name).name != name):
        raise ConfigError.of("name", name, "a file's name, without a folder")
    folder = _adapter_folder(source) if isinstance(source, (str, Path)) else None
    model_alone = folder is None and not isinstance(source, PeftModel)
    if model_alone and (to not in _WHOLE or not hasattr(source, "save_pretrained")):
        allowed = "a view (get_peft_model), or the folder of an adapter"
        raise ConfigError.of("source", type(source).__name__, allowed, "A model without an adapter is merged or gguf.")
    with appearing(Path(out)) as staged:
        if to == "peft":
            for field, given in (("dtype", dtype), ("base", base)):
                if given is not None:
                    raise ConfigError.of(field, given, "None for 'peft': the adapter stays as it is")
            beside = folder is not None and (folder / TOKENIZER_CONFIG).is_file()  # copied with the folder
            found = tokenizer if tokenizer is not None or beside else _tokenizer(source, folder)
            made = write_adapter(folder or source, staged, found, verify)
        else:
            model = source if folder is None else load_view(folder, base)
            named = name or (folder or Path(out)).resolve().name
            if to == GGUF_ADAPTER:
                made = write_gguf_adapter(model, staged, named, dtype)
            else:
                found = _tokenizer(model, folder) if tokenizer is None else tokenizer
                checks = Checks(probes, tolerance) if verify else None
                made = write_whole(_WHOLE[to], model, staged, found, named, dtype, checks)
    made.folder = Path(out)
    return made


def _adapter_folder(source: str | Path) -> Path:
    if not (Path(source) / CONFIG_NAME).is_file():
        raise MissingFileError(f"'{source}' has no {CONFIG_NAME}, so it is not the folder of an adapter.")
    return Path(source)


def _tokenizer(view: Any, folder: Path | None) -> Any:
    """The tokenizer in the adapter's folder, or else the base's."""
    if folder is not None and (folder / TOKENIZER_CONFIG).is_file():
        return load_tokenizer(folder)
    name = _base_name(view, folder)
    try:
        if name:
            return load_tokenizer(name)
    except MissingFileError as error:
        raise _no_tokenizer(str(error)) from error
    raise _no_tokenizer("The base was not loaded from a folder or the Hub.")


def _base_name(model: Any, folder: Path | None) -> str | None:
    if hasattr(model, "config"):
        return getattr(model.config, "name_or_path", None) or None
    return load_config(folder).base_model_name_or_path if folder is not None else None


def _no_tokenizer(why: str) -> ConfigError:
    hint = f"{why} Pass the tokenizer, or False if the model has none."
    return ConfigError.of("tokenizer", None, "a tokenizer, as none is beside the adapter or its base", hint)
