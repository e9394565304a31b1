"""Loading adapters. Everything is checked before the model is touched; then every tensor is applied, or none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from inlay.config import PeftConfig
from inlay.core.adapter import Adapter
from inlay.core.gather import check_cut_alike, check_not_kept
from inlay.core.index import AdapterIndex, index_of
from inlay.core.plan import Placement, check_adapter_name, plan
from inlay.core.skeleton import unwrapped
from inlay.errors import ConfigError, InlayWarning, StateError
from inlay.inject import aliases_of, describe_base
from inlay.io.fingerprint import check_base as check_fingerprint
from inlay.io.folder import CONFIG_NAME, PICKLE_NAME, STATE_NAME, WEIGHTS_NAME, AdapterFiles, reading
from inlay.io.hub import local_folder
from inlay.io.keys import PREFIX, tensors_by_key, training_state_by_key
from inlay.io.match import LoadReport, Match, apply, match_keys
from inlay.io.strict_json import read_json
from inlay.io.tensors import check_finite, read_header, read_pickle, read_tensors
from inlay.model import PeftModel, bare_view, open_view
from inlay.tasks import VIEW_CLASSES

_HUB = ("revision", "cache_dir", "token")
_PASSED_ALONG = ("proxies", "tqdm_class", "trust_remote_code")


def load_config(
    model_id: str | Path, subfolder: str | None = None, cls: type[PeftConfig] = PeftConfig, **kwargs: Any
) -> PeftConfig:
    """The config in a local folder or on the Hub. Hub arguments are taken from `kwargs`, the rest overrides fields.

    `proxies`, `tqdm_class` and `trust_remote_code`, which other libraries pass along, have no effect.
    """
    hub = {k: kwargs.pop(k) for k in (*_HUB, "local_files_only", "force_download") if k in kwargs}
    kwargs = {k: v for k, v in kwargs.items() if k not in _PASSED_ALONG}
    with reading(local_folder(model_id, subfolder, **hub), config_only=True) as files:
        return cls.from_dict(read_json(files.path(CONFIG_NAME)), **kwargs)


def view_from_pretrained(
    cls: Any,
    model: nn.Module,
    model_id: str | Path,
    adapter_name: str,
    is_trainable: bool,
    config: PeftConfig | None,
    **kwargs: Any,
) -> Any:
    """A view of `model` with one saved adapter, active; the view's class is that of the config's task."""
    with ExitStack() as stack:
        if config is None:  # read here to choose the class; saves are held off until the weights are read too
            hub = {k: kwargs.pop(k) for k in ("subfolder", *_HUB) if k in kwargs}
            model_id = local_folder(model_id, **hub, allow_pickle=kwargs.get("allow_pickle", False))
            files = stack.enter_context(reading(model_id, config_only=True))
            config = PeftConfig.from_dict(read_json(files.path(CONFIG_NAME)))
        view = bare_view(VIEW_CLASSES[config.task_type] if not cls._task_heads else cls, model)
        kwargs["keep_base_dtype"] = not kwargs.pop("autocast_adapter_dtype", True)
        kwargs.update(heads=view._task_heads, is_trainable=is_trainable, config=config)
        load_adapter(view, model_id, adapter_name, **kwargs)
    open_view(view, adapter_name, trainable=is_trainable)
    if not is_trainable:
        view.eval()
    return view


def load_adapter(
    model: nn.Module,
    model_id: str | Path,
    adapter_name: str = "default",
    *,
    heads: Sequence[str] = (),
    is_trainable: bool = False,
    config: PeftConfig | None = None,
    strict: bool = True,
    check_base: bool = True,
    allow_pickle: bool = False,
    keep_base_dtype: bool = False,
    ignore_mismatched_sizes: bool = False,
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    token: str | bool | None = None,
    key_mapping: Mapping[str, str] | None = None,
    low_cpu_mem_usage: bool = False,
    torch_device: str | None = None,
    ephemeral_gpu_offload: bool = False,
) -> LoadReport:
    """Loads a saved adapter into a model under a new name, inactive; or into an existing adapter of the same config.

    Reading into an existing adapter is what `Trainer` does to resume and to load the best checkpoint; it keeps the
    parameters' identity. With another config it is an error. In a folder with several adapters the one of the same
    name is read.

    Args:
        is_trainable: the adapter is loaded to be trained on.
        config: instead of the file's.
        strict: False applies what fits and reports the rest; adapters with missing keys start as new ones.
        check_base: compare the base's fingerprint with the manifest's (files of peft have none).
        allow_pickle: read `adapter_model.bin`; a pickle is a program, so only if you trust it.
        keep_base_dtype: keep the adapter in a 16-bit base's dtype.
        ignore_mismatched_sizes: as `strict=False`, for shapes only.
        key_mapping: prefix of keys in the file -> prefix here, tried before anything else.
        low_cpu_mem_usage, torch_device, ephemeral_gpu_offload: accepted for compatibility; adapters go where their
            hosts are, straight from the file.

    Raises:
        MissingFileError, CorruptFileError, UnsafeFileError: the files are not there, damaged, or would run code.
        ConfigError: the config's values are not allowed, or the name is taken by an adapter of another config.
        MismatchError: keys or shapes do not fit. BaseMismatchError: another base. NumericsError: NaN or infinity.
        The model is as before in each case.
    """
    index = index_of(model)
    if index.merged:
        raise StateError(f"{index.merged} is merged into the weights: call unmerge_adapter() before loading adapters.")
    if adapter_name in index.configs and adapter_name != "default" and not subfolder:
        own = Path(model_id) / adapter_name  # where `save_pretrained` puts it
        subfolder = adapter_name if (own / CONFIG_NAME).is_file() else None
    known = adapter_name in index.configs
    if not known:
        check_adapter_name(adapter_name, index.configs)
    came = read_adapter(
        model,
        local_folder(model_id, subfolder, revision, cache_dir, token, allow_pickle),
        adapter_name,
        known=known,
        heads=heads,
        is_trainable=is_trainable,
        config=config,
        strict=strict,
        check_base=check_base,
        allow_pickle=allow_pickle,
        keep_base_dtype=keep_base_dtype,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        key_mapping=key_mapping,
    )
    # from here on nothing fails
    if not known:
        describe_base(came.config, model)
        index.add(adapter_name, came.config, came.placements)
        if is_trainable:
            index.require_grad(adapter_name, True)
    else:
        for field in came.config.progress:
            setattr(index.configs[adapter_name], field, getattr(came.config, field))
    apply(model, came.match, came.tensors, came.placed)
    return came.match.report


@dataclass
class Incoming:
    """An adapter that was read from files and checked against a model, which it is not yet part of.

    Attributes:
        placements: of a new adapter; without memory, for `apply` to give.
        placed: path -> the adapter whose tensors are to be set.
    """

    config: PeftConfig
    placements: list[Placement]
    placed: dict[str, Adapter]
    match: Match
    tensors: dict[str, Tensor]


def read_adapter(
    model: nn.Module,
    folder: Path,
    name: str,
    *,
    known: bool = False,
    heads: Sequence[str] = (),
    is_trainable: bool = False,
    config: PeftConfig | None = None,
    strict: bool = True,
    check_base: bool = True,
    allow_pickle: bool = False,
    keep_base_dtype: bool = False,
    ignore_mismatched_sizes: bool = False,
    key_mapping: Mapping[str, str] | None = None,
) -> Incoming:
    """Reads the adapter in `folder`; arguments and errors as in `load_adapter`. The model is not changed.

    Args:
        known: to be read into the adapter `name`, which exists, rather than to become a new one.
    """
    index = index_of(model)
    with reading(folder) as files:
        raw = config if config is not None else PeftConfig.from_dict(read_json(files.path(CONFIG_NAME)))
        raw = raw.replaced(inference_mode=not is_trainable)
        shapes = _shapes(files)
        if not known:
            placements, kept = plan(
                model,
                raw,
                heads=_heads_in([*heads, *VIEW_CLASSES[raw.task_type]._task_heads], raw, shapes),
                aliases=aliases_of(model),
                keep_base_dtype=keep_base_dtype,
                init=not strict or ignore_mismatched_sizes,
            )
            placed = {p.path: p.adapter for p in placements}
            check_cut_alike((p.host, p.adapter) for p in placements if is_trainable)
        else:
            _check_same(index, name, raw)
            placements, kept, placed = [], raw, dict(index.placed[name])
            check_not_kept(p for a in placed.values() for p in a.parameters())
        expected = tensors_by_key(placed, raw)
        integer_ok = _integers_of(expected)
        tensors: dict[str, Tensor] | None = None
        if shapes is None:  # a pickle has no header: what it holds is known when it is read
            tensors = read_pickle(files.path(PICKLE_NAME), allow_pickle, integer_ok)
            shapes = {k: tuple(t.shape) for k, t in tensors.items()}
        state: dict[str, Tensor] = {}
        if is_trainable or known:
            expected, shapes, state = _to_train_on(files, placed, raw, expected, shapes)
        _check_settable(name, expected, placed)
        match = match_keys(model, expected, shapes, key_mapping)
        if check_base and files.manifest is not None and isinstance(files.manifest.get("base"), dict):
            check_fingerprint(files.manifest["base"], model, str(folder))
        if strict:
            match.report.check(str(folder), list(match.expected), shapes=not ignore_mismatched_sizes)
        if tensors is None:
            tensors = read_tensors(files.path(WEIGHTS_NAME), integer_ok=integer_ok)
    return Incoming(kept, placements, placed, match, {**tensors, **state})


def set_peft_model_state_dict(
    model: nn.Module,
    peft_model_state_dict: Mapping[str, Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    low_cpu_mem_usage: bool = False,
    strict: bool = True,
) -> LoadReport:
    """Sets an existing adapter's tensors from a dict keyed as `adapter_model.safetensors` is.

    For a model that `inject_adapter_in_model` changed the keys may lack the prefix `base_model.model.`.

    Raises MismatchError unless every key and shape fits (`strict=False` applies what fits), NumericsError if a tensor
    holds NaN or infinity, StateError if the adapter is merged. The model is unchanged then.
    """
    model = unwrapped(model)
    index = index_of(model)
    index.require(adapter_name)
    if index.is_merged(adapter_name):
        raise StateError(
            f"Adapter {adapter_name!r} is merged into the weights: call unmerge_adapter() before setting it."
        )
    if not isinstance(model, PeftModel):
        given = peft_model_state_dict.items()
        peft_model_state_dict = {k if k.startswith("base_model.") else PREFIX + k: t for k, t in given}
    placed = index.placed[adapter_name]
    check_not_kept(p for a in placed.values() for p in a.parameters())
    expected = tensors_by_key(placed, index.configs[adapter_name])
    _check_settable(adapter_name, expected, placed)
    match = match_keys(model, expected, {k: tuple(t.shape) for k, t in peft_model_state_dict.items()}, None)
    if strict:
        match.report.check("the given state dict", list(match.expected), shapes=not ignore_mismatched_sizes)
    for key, tensor in peft_model_state_dict.items():
        check_finite(key, tensor, "the given state dict")
    apply(model, match, dict(peft_model_state_dict), placed)
    return match.report


def _heads_in(heads: Sequence[str], config: PeftConfig, shapes: Mapping[str, Any] | None) -> list[str]:
    """The heads of the task that a saved adapter has: those its config names or its file holds (peft knows fewer)."""
    said = config.modules_to_save
    return [h for h in heads if said is None or h in said or any(f"{h}." in key for key in shapes or ())]


def _shapes(files: AdapterFiles) -> dict[str, tuple[int, ...]] | None:
    """Shapes in the weights file, from its header; None if it is a pickle."""
    if not files.has(WEIGHTS_NAME):
        return None
    return {name: info.shape for name, info in read_header(files.path(WEIGHTS_NAME)).items()}


def _to_train_on(
    files: AdapterFiles,
    placed: Mapping[str, Adapter],
    config: PeftConfig,
    expected: dict[str, Tensor],
    shapes: dict[str, tuple[int, ...]],
) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """(expected, shapes, tensors read) with the training state in place of what it is the state of.

    A folder without a training state stays as it is, with a warning where the method would need one.
    """
    wanted = training_state_by_key(placed, config)
    if not wanted:
        return expected, shapes, {}
    if not files.has(STATE_NAME):
        warnings.warn(
            f"'{files.folder}' has no {STATE_NAME}: training goes on from the adapter's weights, with the rest of its "
            f"{config.peft_type} state as for a new one.",
            InlayWarning,
            stacklevel=4,
        )
        return expected, shapes, {}
    read = read_tensors(files.path(STATE_NAME))
    stateful = tensors_by_key({path: a for path, a in placed.items() if a.training_state()}, config)
    return (
        {**{k: t for k, t in expected.items() if k not in stateful}, **wanted},
        {**{k: s for k, s in shapes.items() if k not in stateful}, **{k: tuple(t.shape) for k, t in read.items()}},
        read,
    )


def _check_settable(name: str, expected: Mapping[str, Tensor], placed: Mapping[str, Adapter]) -> None:
    """Raises StateError if a tensor to be set is computed from others, which alone can be trained."""
    own = {id(t) for a in placed.values() for t in [*a.parameters(), *a.buffers()]}
    computed = [key for key, tensor in expected.items() if not own.intersection((id(tensor), id(tensor._base)))]
    if computed:
        raise StateError(
            f"{computed[0]!r} of adapter {name!r} is computed from parameters that the file does not hold, so it "
            f"cannot be trained on from here: resume from a folder with {STATE_NAME}, load it with is_trainable=False, "
            "or pass a config that trains the result itself (PromptTuningConfig for P-tuning, prefix_projection=False "
            "for prefix tuning)."
        )


def _integers_of(expected: Mapping[str, Tensor]) -> Callable[[str], bool]:
    """Whether the tensor of a key may hold integers: those do whose namesakes in the model do."""
    names = {key.rpartition(".")[2] for key, tensor in expected.items() if not tensor.is_floating_point()}
    return lambda key: key.rpartition(".")[2] in names


def _check_same(index: AdapterIndex, name: str, config: PeftConfig) -> None:
    """Raises ConfigError unless `config` describes the adapter `name` that is there."""
    own, new = index.configs[name].structure(), config.structure()
    names = ("target_modules", "modules_to_save")
    differ = sorted(k for k in own.keys() | new.keys() if k not in names and own.get(k) != new.get(k))
    differ += [k for k in names if _as_set(own.get(k)) != _as_set(new.get(k)) and own.get(k) and new.get(k)]
    if differ:
        raise ConfigError(
            f"There is an adapter {name!r} already, with another config (they differ in {', '.join(differ)}). Load "
            "this one under another name, or delete that one first.",
            "adapter_name",
            name,
        )


def _as_set(value: Any) -> Any:
    return set(value) if isinstance(value, list) else value
