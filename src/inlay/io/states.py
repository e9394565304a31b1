"""State dicts: an adapter's, as its file has it, and the base's, under the base's own names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from inlay.core.index import AdapterIndex, index_of
from inlay.io.folder import PICKLE_NAME, WEIGHTS_NAME, reading
from inlay.io.hub import local_folder
from inlay.io.match import LoadReport
from inlay.io.tensors import read_pickle, read_tensors


def load_peft_weights(
    model_id: str | Path,
    device: str | None = None,
    key_mapping: Mapping[str, str] | None = None,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    token: str | bool | None = None,
    allow_pickle: bool = False,
) -> dict[str, Tensor]:
    """The tensors of an adapter in a folder or on the Hub, keyed as in its file.

    Args:
        device: where to put them; the CPU by default.
        key_mapping: prefix of keys in the file -> prefix in the result.
        allow_pickle: read `adapter_model.bin`; a pickle is a program, so only if you trust it.

    Raises MissingFileError, CorruptFileError, UnsafeFileError, NumericsError.
    """
    with reading(local_folder(model_id, subfolder, revision, cache_dir, token, allow_pickle)) as files:
        if files.has(WEIGHTS_NAME):
            found = read_tensors(files.path(WEIGHTS_NAME), device or "cpu", integer_ok=_any)
        else:
            tensors = read_pickle(files.path(PICKLE_NAME), allow_pickle, _any)
            found = {k: t.to(device or "cpu") for k, t in tensors.items()}
    starts = key_mapping or {}
    renamed = ((k, next((s for s in starts if k.startswith(s)), "")) for k in found)
    return {starts.get(start, "") + k.removeprefix(start): found[k] for k, start in renamed}


def _any(name: str) -> bool:
    return True


def get_base_model_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a view, or an injected model, without adapters: the base's names, merged weights as such."""
    state = model.state_dict()
    return {name: state[name] for name in _base_names(index_of(model), state)}


def set_base_model_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], strict: bool = True) -> Any:
    """Loads a state dict with the base's names; a view's base has the same weights, so it gets them too.

    Returns `(missing_keys, unexpected_keys)`, as `load_state_dict` does.

    Raises MismatchError if `strict` and names are missing or unexpected, or a shape is another one. Nothing has changed
    then.
    """
    state = model.state_dict()
    own = _base_names(index_of(model), state)
    given = {name: state_dict[name] for name in own if name in state_dict}
    missing, unexpected = [n for n in own if n not in given], [n for n in state_dict if n not in given]
    shapes = {n: (tuple(state[n].shape), tuple(t.shape)) for n, t in given.items() if t.shape != state[n].shape}
    if strict or shapes:
        LoadReport(missing, unexpected, shapes).check("the given state dict", own)
    model.load_state_dict(given, strict=False)
    return _IncompatibleKeys(missing, unexpected)


def _base_names(index: AdapterIndex, state: Mapping[str, Any]) -> list[str]:
    """Those of a state dict's names that are no adapter's."""
    adapters = tuple(f"{path}.adapters." if path else "adapters." for path in index.hosts)
    return [name for name in state if not name.startswith(adapters)]
