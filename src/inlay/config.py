"""Configs: what `adapter_config.json` says, checked once, here.

A method's config is a dataclass deriving from `PeftConfig` (or `AdapterConfig`, for methods that sit in
layers) and naming its type: `class LoraConfig(AdapterConfig, peft_type="LORA")`. Fields are checked in
`__post_init__`; below that boundary nothing is checked again.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from inlay.checks import check_bool, check_choice, check_indices, check_names, plain
from inlay.errors import ConfigError, InlayWarning, VersionError, did_you_mean
from inlay.types import PeftType, TaskType

Self = TypeVar("Self", bound="PeftConfig")

FILE_FORMAT = "0.21.2"  # the peft release whose files ours are interchangeable with; written as `peft_version`


_CLASSES: dict[str, type[PeftConfig]] = {}


def config_classes() -> dict[str, type[PeftConfig]]:
    """Every registered config class by its peft type (imports the methods on first use)."""
    importlib.import_module("inlay.methods").register_all()
    return _CLASSES


def config_class(peft_type: object) -> type[PeftConfig]:
    """The config class of `peft_type`. Raises ConfigError that lists the known types."""
    classes = config_classes()
    name = getattr(peft_type, "value", peft_type)
    if isinstance(name, str) and name.upper() in classes:
        return classes[name.upper()]
    hint = did_you_mean(name.upper(), classes) if isinstance(name, str) else ""
    raise ConfigError.of("peft_type", name, f"one of {', '.join(sorted(classes))}", hint.strip())


class _Fields(type):
    """Configs take what `to_dict()` writes besides their fields, and fields of peft's that they do not implement.

    So `type(config)(**config.to_dict())` makes the config again; a field that is not implemented may say "not used".
    """

    def __call__(cls, *args: Any, **fields: Any) -> Any:
        own = getattr(cls, "peft_type", None)
        if (given := fields.pop("peft_type", own)) not in (own, None):
            raise ConfigError.of("peft_type", given, f"{own!s}", "Another method's config has a class of its own.")
        for name in cls.without_effect:  # type: ignore[attr-defined]
            fields.pop(name, None)
        unsupported: Mapping[str, object] = cls.unsupported  # type: ignore[attr-defined]
        for name in unsupported.keys() & fields.keys():
            neutral = unsupported[name]
            if (value := fields.pop(name)) not in (neutral, None):
                raise ConfigError.of(
                    name, value, f"{neutral!r}", f"{cls.__name__} does not implement `{name}` in this version."
                )
        return super().__call__(*args, **fields)


@dataclass
class PeftConfig(metaclass=_Fields):
    """What every method's config has. On disk: one JSON object, the file `adapter_config.json`.

    Args:
        task_type: a `TaskType` or its name; None for models outside those tasks.
        base_model_name_or_path: the base this adapter belongs to; filled in from the model.
        revision: the base's revision on the Hub.
        inference_mode: True freezes the adapter too. Always True in a saved file.
        auto_mapping: `{"base_model_class": ..., "parent_library": ...}`, written when `task_type` is None.
        modules_to_save: modules trained in full and saved along, e.g. a classification head.
    """

    task_type: str | TaskType | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False
    auto_mapping: dict[str, str] | None = None
    modules_to_save: list[str] | None = None

    peft_type: ClassVar[PeftType]
    is_prompt_learning: ClassVar[bool] = False
    is_adaption_prompt: ClassVar[bool] = False
    # fields that files may carry and this version does not implement: name -> the value that means "not used"
    unsupported: ClassVar[Mapping[str, object]] = {}
    # fields that make no difference to what an adapter computes here, whatever they say
    without_effect: ClassVar[tuple[str, ...]] = ("peft_version",)
    # fields that training writes: reading a file into an existing adapter takes them over, where others must be equal
    progress: ClassVar[tuple[str, ...]] = ()
    # fields that do not decide what an adapter is: they may differ too
    circumstances: ClassVar[tuple[str, ...]] = ("inference_mode", "base_model_name_or_path", "revision", "auto_mapping")

    def __init_subclass__(cls, peft_type: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if peft_type is not None:
            cls.peft_type = PeftType(peft_type)
            _CLASSES[peft_type] = cls

    def __post_init__(self) -> None:
        self.unknown: dict[str, Any] = {}  # keys of a newer file, kept so that saving again loses nothing
        if self.task_type is not None:
            names = [t.value for t in TaskType]
            check_choice("task_type", getattr(self.task_type, "value", self.task_type), names)
            self.task_type = TaskType(self.task_type)
        check_bool("inference_mode", self.inference_mode)
        for name in ("base_model_name_or_path", "revision"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ConfigError.of(name, value, "a string or None")
        mapping = self.auto_mapping
        if mapping is not None and not (
            isinstance(mapping, dict) and all(isinstance(v, str) for pair in mapping.items() for v in pair)
        ):
            raise ConfigError.of("auto_mapping", mapping, "a dict of strings or None")
        self.modules_to_save = check_names("modules_to_save", self.modules_to_save, text=False)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that is written: every field that is not None, plus `peft_type` and the format's version."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data = {k: plain(v) for k, v in data.items() if v is not None}
        return {**self.unknown, **data, "peft_type": str(self.peft_type), "peft_version": FILE_FORMAT}

    def structure(self) -> dict[str, Any]:
        """What has to be equal for the file of one adapter to be read into another."""
        return {k: v for k, v in self.to_dict().items() if k not in (*self.circumstances, *self.progress)}

    def replaced(self: Self, **fields: Any) -> Self:
        """A copy with other values for some fields."""
        twin = self.copy()
        for name, value in fields.items():
            setattr(twin, name, value)
        return twin

    def copy(self: Self) -> Self:
        """An independent copy."""
        return copy.deepcopy(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], **overrides: Any) -> PeftConfig:
        """The config that `data` describes, as an instance of the class its `peft_type` names.

        Raises ConfigError for an unknown type, a value that is not allowed, or a feature that this version does not
        implement; VersionError if `data["must_understand"]` lists a field this version does not know. Other unknown
        fields are kept and written back, with a warning.
        """
        if _mentions(data, "trust_remote_code"):
            raise ConfigError(
                "The config asks for trust_remote_code: whether code from elsewhere may run is never read from a file. "
                "Remove it there, and pass it as an argument where you trust that code.",
                "trust_remote_code",
            )
        data = {**data, **overrides}
        if "peft_type" not in data and not hasattr(cls, "peft_type"):
            raise ConfigError.of("peft_type", None, "a method's name", "The file is not an adapter_config.json.")
        target = config_class(data.pop("peft_type", getattr(cls, "peft_type", None)))
        if not issubclass(target, cls):
            raise ConfigError(f"The config is a {target.peft_type} one; {cls.__name__} cannot hold it.")
        known = {f.name for f in dataclasses.fields(target)}
        for name in overrides.keys() - known - target.unsupported.keys() - {"peft_type"}:
            hint = did_you_mean(name, known).strip()
            raise ConfigError.of("field", name, f"a field of {target.__name__}", hint)
        fields = {k: v for k, v in data.items() if k in known or k in target.unsupported}
        known |= target.unsupported.keys() | {"peft_version", "must_understand"}
        rest = {k: v for k, v in data.items() if k not in known}
        must = set(check_names("must_understand", data.get("must_understand"), text=False) or ()) & set(rest)
        if must:
            raise VersionError(f"The config needs {sorted(must)} to be understood; update Inlay to load this adapter.")
        config = target(**fields)
        if rest:
            warnings.warn(
                f"Unknown fields {sorted(rest)} in a {target.peft_type} config are kept but have no effect.",
                InlayWarning,
                stacklevel=2,
            )
            config.unknown = rest
        return config

    # ------------------------------------------------------------------ what a method may define

    @property
    def variant(self) -> str:
        """Which of the method's families of adapter classes serves this config (see `registry.adapter`)."""
        return ""

    def note(self, heads: Collection[str], hosts: Sequence[Any]) -> None:
        """Writes into this config, which will be saved, what other readers of the file do not see for themselves.

        Args:
            heads: modules that are trained along with the adapter for the sake of its task.
            hosts: the modules that are targeted.
        """
        if heads:
            self.modules_to_save = list(dict.fromkeys([*(self.modules_to_save or ()), *heads]))

    def companions(
        self, modules: Mapping[str, Any], targets: Sequence[str]
    ) -> Iterable[tuple[str, Callable[..., Any]]]:
        """Further adapters that this config asks for outside its targets: (path, class or factory of (config, site)).

        Args:
            modules: path -> module, of everything the adapter may touch; `modules[""]` is the model.
            targets: the paths that are targeted.
        """
        return ()

    @property
    def per_call(self) -> Callable[[Any], Any] | None:
        """What the adapters have to know of each call of the model: a function of its `core.active.Call`, or None.

        It gives a tensor with one entry per row of the batch, which they find in `host.active.facts.told` under their
        name. In a mixed batch, and where the layer is recomputed for its backward, it is that of the rows they see.
        """
        return None

    def bank(self, sites: Sequence[Any]) -> Any:
        """A module that the adapters at all `sites` share, which each finds as `site.bank`; None if there is none."""
        return None

    def after_step(self, placed: Mapping[str, Any], step: int) -> None:
        """Called after optimizer step number `step`, before gradients are cleared (`PeftModel.update_and_allocate`).

        Args:
            placed: path -> adapter, of one adapter of this config.
        """

    def penalty(self, placed: Mapping[str, Any]) -> Any:
        """A scalar that is added to the model's loss in training, or None."""
        return None

    # ------------------------------------------------------------------ other ways to make and keep one

    @classmethod
    def from_peft_type(cls, peft_type: str, **fields: Any) -> PeftConfig:
        """`config_class(peft_type)(**fields)`."""
        return config_class(peft_type)(**fields)

    @classmethod
    def from_json_file(cls, path: str) -> dict[str, Any]:
        """The raw JSON object of a config file, read strictly."""
        from inlay.io.strict_json import read_json

        return read_json(path)

    @classmethod
    def from_pretrained(cls, model_id: str, subfolder: str | None = None, **kwargs: Any) -> PeftConfig:
        """The config in a local adapter folder or on the Hub. An existing folder never causes a network call.

        Hub arguments (`revision`, `cache_dir`, `token`, `local_files_only`, `force_download`) are taken from `kwargs`;
        the rest overrides fields.
        """
        from inlay.io.load import load_config

        return load_config(model_id, subfolder=subfolder, cls=cls, **kwargs)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Writes `adapter_config.json` alone, whole or not at all. Model and weights: `PeftModel.save_pretrained`."""
        from inlay.io.save import save_config

        save_config(self, save_directory, **kwargs)


@dataclass
class AdapterConfig(PeftConfig):
    """What configs of methods that sit in layers have in common: where they go.

    Args:
        target_modules: names (a module matches when its path is the name or ends in `.name`), a regular expression
            for the whole path, or `"all-linear"`; None takes the model type's default.
        exclude_modules: names or a regular expression of modules to leave out.
        layers_to_transform: indices of the layers to adapt.
        layers_pattern: name of the module list these indices count in, e.g. `"layers"`.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_modules", "exclude_modules", "layers_pattern"):
            setattr(self, name, check_names(name, getattr(self, name)))
        indices = self.layers_to_transform = check_indices("layers_to_transform", self.layers_to_transform)
        if indices is not None and isinstance(self.target_modules, str):
            raise ConfigError.of(
                "layers_to_transform", indices, "None when target_modules is a string", "Put the layers in the regex."
            )
        if self.layers_pattern and indices is None:
            raise ConfigError.of("layers_pattern", self.layers_pattern, "None unless layers_to_transform is given")

    def default_targets(self, model_type: str | None) -> Sequence[str] | str | None:
        """The method's `target_modules` for a model type when none are given; None if there are none."""
        return None

    def targets_in(self, modules: Mapping[str, Any], model_type: str | None) -> Sequence[str] | str | None:
        """As `default_targets`, for methods whose defaults are seen in the model: `modules` is path -> module."""
        return self.default_targets(model_type)

    def settle(self, model_type: str | None, targets: Sequence[str], aliases: Callable[[], Mapping[str, str]]) -> None:
        """Completes this config, which will be saved, once its targets are known.

        Args:
            targets: the paths that are targeted.
            aliases: computes path -> name in earlier releases of the model's library.
        """


def _mentions(value: object, key: str) -> bool:
    """True if `key` is a key of `value` or of a dict inside it."""
    if isinstance(value, Mapping):
        return key in value or any(_mentions(v, key) for v in value.values())
    return isinstance(value, list) and any(_mentions(v, key) for v in value)


__all__ = ["AdapterConfig", "PeftConfig", "PeftType", "TaskType", "config_class", "config_classes"]
