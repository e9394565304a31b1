"""Saving adapters: config, `adapter_model.safetensors` and a manifest as one transaction, and a model card."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from inlay.config import PeftConfig
from inlay.core.host import unmerged_parameters
from inlay.core.index import index_of
from inlay.core.plan import walk
from inlay.core.skeleton import unwrapped
from inlay.errors import ConfigError, StateError, UnsafeFileError
from inlay.io.card import write_card
from inlay.io.disk import replace_file
from inlay.io.fingerprint import fingerprint
from inlay.io.folder import CONFIG_NAME, MANIFEST_NAME, STATE_NAME, WEIGHTS_NAME, reading, write_folder
from inlay.io.keys import PREFIX, base_embeddings, state_dict_of, training_state_by_key
from inlay.io.strict_json import dump_json
from inlay.io.tensors import pack_tensors
from inlay.model import PeftModel


def save_pretrained(
    model: nn.Module,
    save_directory: str | Path,
    safe_serialization: bool = True,
    selected_adapters: Sequence[str] | None = None,
    save_embedding_layers: bool | str = "auto",
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    training_state: bool = True,
) -> None:
    """Writes adapters to a folder: `default` into it, others into sub-folders of their name.

    Each folder changes from the old adapter to the new one at once, whenever the process may be killed
    (`inlay.io.transaction`). Other files in it stay. Beside an adapter that is being trained goes what its method needs
    to train on, if that is more than the adapter: a prompt's encoder, AdaLoRA's importance (`Adapter.training_state`).

    Of a model that is sharded (FSDP2, ZeRO-3) the adapters alone are gathered: every process calls this, all but one
    with `is_main_process=False`. Under FSDP1 `state_dict` has to be given. See `docs/processes.md`.

    Args:
        selected_adapters: which; all by default.
        save_embedding_layers: also save the base's embeddings: True, False, or "auto": those that are adapted under
            the names `embed_tokens` and `lm_head`, as peft does. Never looks on the Hub.
        is_main_process: False takes part in gathering a sharded model and writes nothing.
        state_dict: the model's full state dict, if the caller gathered it; then no other process takes part.
        training_state: False leaves out what only training needs.

    Raises:
        StateError: an adapter that does not exist, or none at all; parameters are sharded and cannot be gathered.
        NumericsError: an adapter holds NaN or infinity; nothing is written.
        FileError: the file system refused; the old adapter is intact.
    """
    if not safe_serialization:
        raise UnsafeFileError("safe_serialization=False would write a pickle; adapters are saved as safetensors only.")
    if save_embedding_layers not in (True, False, "auto"):
        raise ConfigError.of("save_embedding_layers", save_embedding_layers, "True, False or 'auto'")
    index = index_of(model)
    names = list(index.configs) if selected_adapters is None else list(selected_adapters)
    for name in names:
        index.require(name)
    if not names:
        raise StateError("There is no adapter to save: the view has none, or selected_adapters is empty.")
    packed = []  # everything that may be wrong with any adapter is found before the first is written
    if state_dict is None:
        _check_nothing_is_lost(model)
    for name in names:
        tensors = state_dict_of(index, name, state_dict)
        brought = {id(p) for path, a in index.placed[name].items() for p in a.brings(index.hosts[path])}
        if save_embedding_layers:
            frozen = base_embeddings(model, index, name, save_embedding_layers is True, state_dict)
            tensors = {**frozen, **tensors}
            brought.update(map(id, frozen.values()))
        state: dict[str, Tensor] = {}
        if training_state and name in index.trainable:
            state = state_dict_of(index, name, state_dict, training_state_by_key)
        if is_main_process:
            config = index.configs[name].replaced(inference_mode=True)
            files = {CONFIG_NAME: dump_json(config.to_dict()), WEIGHTS_NAME: pack_tensors(tensors)}
            if state:
                files[STATE_NAME] = pack_tensors(state)
            folder = Path(save_directory) if name == "default" else Path(save_directory) / name
            packed.append((folder, files, {"inlay": version(), "base": fingerprint(model, brought)}))
    for folder, files, extra in packed:
        write_folder(folder, files, extra)
    if is_main_process:
        write_card(model, save_directory)


def _check_nothing_is_lost(model: nn.Module) -> None:
    """Raises StateError if parameters are being trained that belong to no adapter."""
    own = {path: unmerged_parameters(m) for path, m in walk(model).items()}
    owned = ((f"{path}.{n}" if path else n, p) for path, found in own.items() for n, p in found.items())
    lost = [name for name, p in owned if p is not None and p.requires_grad]
    if lost:
        raise StateError(
            f"{lost[0]!r} {f'and {len(lost) - 1} more ' if lost[1:] else ''}of the base is being trained but is part "
            "of no adapter, so it would not be saved: name its module in modules_to_save when the adapter is made, or "
            "freeze it with requires_grad_(False) if it is saved elsewhere."
        )


def get_peft_model_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor] | None = None,
    adapter_name: str = "default",
    unwrap_compiled: bool = False,
    save_embedding_layers: bool | str = "auto",
) -> dict[str, Tensor]:
    """An adapter's tensors, keyed as in `adapter_model.safetensors`; arguments as in `save_pretrained`.

    Of a model that `inject_adapter_in_model` changed, without the prefix `base_model.model.`: as in peft, its callers
    (transformers, diffusers) put their own before them.
    """
    model = unwrapped(model)
    index = index_of(model)
    index.require(adapter_name)
    tensors = state_dict_of(index, adapter_name, state_dict)
    if save_embedding_layers:
        everything = save_embedding_layers is True
        tensors = {**base_embeddings(model, index, adapter_name, everything, state_dict), **tensors}
    prefix = "" if isinstance(model, PeftModel) else PREFIX
    return {key.removeprefix(prefix): t.detach() for key, t in tensors.items()}


def save_config(config: PeftConfig, save_directory: str | Path) -> None:
    """Writes a config alone. In a folder with a manifest the adapter's other files stay, covered by the new one."""
    folder = Path(save_directory)
    data = dump_json(config.replaced(inference_mode=True).to_dict())
    if (folder / MANIFEST_NAME).exists():
        with reading(folder) as files:
            kept = {name: files.path(name).read_bytes() for name in files.names}
            extra = {k: v for k, v in (files.manifest or {}).items() if k not in ("format", "files")}
        write_folder(folder, {**kept, CONFIG_NAME: data}, extra)
        return
    replace_file(folder / CONFIG_NAME, data)


def version() -> str:
    """The release of Inlay."""
    return str(sys.modules["inlay"].__version__)
