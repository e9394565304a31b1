"""The recipe of a run: every setting, checked once, with the nearest name for one that is not known.

model:   {name: HuggingFaceTB/SmolLM2-135M}
adapter: {method: lora, r: 16}              # or any registered method with its config's fields; full for none
data:    {train: rows.jsonl, eval: 0.05}
train:   {epochs: 3, lr: 2e-4, batch: 4, accumulation: 4}
out:     runs/mine
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from inlay.config import PeftConfig, config_class, config_classes
from inlay.errors import ConfigError, did_you_mean, nearest, optional
from inlay.train.plain import read_yaml

optional("pydantic", "cli")
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator  # noqa: E402

FULL = "full"
"""The method that is none: every weight is trained."""

# what a method is given where the recipe says nothing: other than its config's default where that is a poor start
_FIELDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "adalora": {"target_modules": "all-linear"},
    **{name: {"num_virtual_tokens": 20} for name in ("prompt_tuning", "p_tuning", "prefix_tuning")},
}
# learning rates of AdamW: methods that train few numbers, or vectors that scale, need larger steps
_RATES = {
    FULL: 2e-5,
    "ia3": 3e-3,
    "vera": 2e-3,
    "vblora": 1e-3,
    "fourierft": 1e-2,
    "c3a": 1e-2,
    "randlora": 1e-3,
    "ln_tuning": 1e-3,
    "bitfit": 1e-3,
    "boft": 5e-4,
    "oft": 5e-4,
    "hra": 1e-3,
    "adaption_prompt": 9e-3,
    **dict.fromkeys(("prompt_tuning", "p_tuning", "prefix_tuning", "multitask_prompt_tuning"), 0.01),
}
_RATE = 2e-4

# fields that the run itself fills in
_FILLED = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "task_type")

# names that other tools have for a key
_ELSEWHERE = {
    **dict.fromkeys(("learning_rate", "rate"), "train.lr"),
    **dict.fromkeys(("batch_size", "per_device_train_batch_size", "micro_batch_size"), "train.batch"),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum"), "train.accumulation"),
    **dict.fromkeys(("num_train_epochs", "num_epochs"), "train.epochs"),
    **dict.fromkeys(("warmup_ratio", "warmup_steps"), "train.warmup"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), "train.scheduler"),
    **dict.fromkeys(("output_dir", "output"), "out"),
    **dict.fromkeys(("base_model", "model_name_or_path", "base"), "model.name"),
    **dict.fromkeys(("dataset", "data_path", "train_file"), "data.train"),
    **dict.fromkeys(("max_seq_length", "cutoff_len", "sequence_len", "model_max_length"), "data.max_length"),
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Model(_Section):
    """The base."""

    name: str = Field(min_length=1, description="a folder, or an id on the Hub")
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantize: Literal["none", "nf4", "int8"] = "none"
    trust_remote_code: bool = False
    gguf_file: str | None = None


class Data(_Section):
    """What is trained on, as in `inlay.data.prepare`."""

    train: str = Field(min_length=1, description="a file, or the id of a data set on the Hub")
    eval: float | int | str | None = Field(default=None, description="a share or number of rows; or a file")
    format: str = "auto"
    loss_on: Literal["answers", "last", "all"] = "answers"
    max_length: int = Field(default=2048, ge=2)
    too_long: Literal["cut", "drop"] = "cut"
    packing: bool = False
    columns: dict[str, str] = Field(default_factory=dict, description="name in the format: name in the data")
    chat_template: str | None = None


class Train(_Section):
    """How."""

    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1, description="optimizer steps, in place of epochs")
    lr: float | None = Field(default=None, gt=0, description="by default the method's")
    batch: int = Field(default=4, ge=1, description="rows a device and forward pass")
    accumulation: int = Field(default=4, ge=1, description="forward passes an optimizer step")
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup", "inverse_sqrt"] = "cosine"
    warmup: float = Field(default=0.03, ge=0, description="a share of the steps below 1, or a number of steps")
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0, description="0: gradients are not clipped")
    optimizer: str = "adamw_torch"
    seed: int = Field(default=0, ge=0, lt=2**32)
    log_every: int = Field(default=10, ge=1)
    eval_every: int | None = Field(default=None, ge=1, description="steps; by default each time a checkpoint is saved")
    save_every: int = Field(default=100, ge=1, description="steps between checkpoints")
    keep: int = Field(default=2, ge=2, description="checkpoints; with one, a kill while it is written loses all")
    early_stopping: int | None = Field(default=None, ge=1, description="evaluations without a better one")
    gradient_checkpointing: bool = False
    device: Literal["auto", "cpu"] = "auto"


class Watch(_Section):
    """Prompts that are answered before and after training."""

    prompts: list[str] = Field(default_factory=list)
    max_new_tokens: int = Field(default=64, ge=1)


class Report(_Section):
    """Who is told."""

    trackers: list[str] = Field(default_factory=list, description="of transformers: tensorboard, wandb, trackio, ...")


class Adapter(_Section):
    """A method, and fields of its config class."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    method: str = "lora"

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        method = str(given.get("method", "lora")).lower()
        return {**_FIELDS.get(method, {}), **given, "method": method}

    @property
    def fields(self) -> dict[str, Any]:
        """What is given to the config class."""
        return dict(self.model_extra or {})

    def config(self, **filled: Any) -> PeftConfig:
        """The method's config. Raises ConfigError for a field that is not one, or a value that is not allowed."""
        cls = self._class
        fields = [f.name for f in dataclasses.fields(cls) if f.name not in _FILLED]
        for name in self.fields:
            if name not in fields:
                raise ConfigError(
                    f"adapter.{name} is not a field of the method {self.method!r}."
                    f"{did_you_mean(name, fields) or ' It has: ' + ', '.join(fields) + '.'}",
                    f"adapter.{name}",
                )
        try:
            return cls(**{"task_type": "CAUSAL_LM", **filled, **self.fields})
        except ConfigError as error:
            raise ConfigError(f"adapter.{error}", error.field, error.value) from error
        except TypeError as error:
            raise ConfigError(f"adapter: {self.method!r} cannot be made of these fields: {error}.") from error

    @property
    def _class(self) -> type[PeftConfig]:
        known = methods()
        if self.method not in known:
            raise ConfigError(
                f"adapter.method={self.method!r} is not a method: expected {FULL!r} or one of {', '.join(known)}."
                + did_you_mean(self.method, [FULL, *known]),
                "adapter.method",
                self.method,
            )
        return config_class(self.method)

    @property
    def planned(self) -> bool:
        """Whether the method's config has to know how many steps there will be, and is not told."""
        names = {f.name for f in dataclasses.fields(self._class)}
        return "total_step" in names and "total_step" not in self.fields


class Recipe(_Section):
    """All of it. `Recipe.load` reads a file; `Recipe.make` takes a dict, or dotted keys."""

    model: Model
    adapter: Adapter = Field(default_factory=lambda: Adapter.model_validate({}))
    data: Data
    train: Train = Train()
    watch: Watch = Watch()
    report: Report = Report()
    out: str = Field(min_length=1, description="the folder of the run")

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, object] | None = None) -> Recipe:
        """The recipe in a YAML file, with some keys ("train.lr") replaced. Raises ConfigError, MissingFileError."""
        return cls.make({**dict(flat(read_yaml(path))), **(overrides or {})}, Path(path).name)

    @classmethod
    def make(cls, values: Mapping[str, object], source: str = "the recipe") -> Recipe:
        """A recipe of nested dicts, dotted keys, or both. Raises ConfigError: a sentence for every fault."""
        try:
            recipe = cls.model_validate(_nested(values))
        except ValidationError as error:
            faults = [_sentence(fault) for fault in error.errors()]
            raise ConfigError("\n".join(f"{source}: {f}" for f in dict.fromkeys(faults))) from None
        recipe._check()
        return recipe

    def _check(self) -> None:
        """What concerns more than one key."""
        if self.adapter.method != FULL:
            self.adapter.config(**({"total_step": 10**6} if self.adapter.planned else {}))
        elif self.adapter.fields:
            raise ConfigError(f"adapter.method='full' has no fields, but {sorted(self.adapter.fields)} are given.")
        elif self.model.quantize != "none":
            raise ConfigError(f"model.quantize={self.model.quantize!r} cannot be trained in full: choose an adapter.")
        if self.train.early_stopping is not None and self.data.eval is None:
            raise ConfigError("train.early_stopping needs data.eval: a share of the rows, e.g. 0.05, or a file.")
        if self.train.eval_every is not None:
            if self.data.eval is None:
                raise ConfigError("train.eval_every needs data.eval: a share of the rows, e.g. 0.05, or a file.")
            if self.train.save_every % self.train.eval_every:
                raise ConfigError(
                    f"train.save_every={self.train.save_every} is not allowed: expected a multiple of "
                    f"train.eval_every={self.train.eval_every}, so that the best evaluation has a checkpoint."
                )

    @property
    def learning_rate(self) -> float:
        """`train.lr`, or the method's."""
        return self.train.lr if self.train.lr is not None else _RATES.get(self.adapter.method, _RATE)

    def resolved(self) -> dict[str, Any]:
        """Every key with its value."""
        values = self.model_dump(mode="json")
        values["train"] |= {"lr": self.learning_rate, "eval_every": self.train.eval_every or self.train.save_every}
        if self.data.eval is None:
            values["train"]["eval_every"] = None
        return values

    def changes(self, before: Mapping[str, Any]) -> list[str]:
        """`train.lr: 0.0001 -> 0.0002` for every key that makes another result than `before`, a resolved recipe."""
        old, new = (dict(flat(values)) for values in (before, self.resolved()))
        keys = [k for k in {**old, **new} if not k.startswith(_INCIDENTAL) and old.get(k) != new.get(k)]
        return [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys]


# keys that make no difference to the adapter
_INCIDENTAL = ("watch.", "report.", "out", "train.keep", "train.log_every")


def methods() -> list[str]:
    """Every registered method, as a recipe names it."""
    return sorted(name.lower() for name in config_classes())


def flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys of the sections, and their values. Keys that are dotted already stay."""
    for key, value in values.items():
        if isinstance(value, Mapping) and "." not in str(key):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield str(key), value


def _nested(values: Mapping[str, object]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat(values):
        section, _, name = key.partition(".")
        if not name:
            nested[section] = value
        elif isinstance(place := nested.setdefault(section, {}), dict):
            place[name] = value
        else:
            raise ConfigError(f"{key} is not a key of a recipe: {section} has no keys.")
    return nested


def keys() -> list[str]:
    """Every key of a recipe that is not an adapter's field."""
    sections = {name: f.annotation for name, f in Recipe.model_fields.items()}
    found = []
    for name, section in sections.items():
        inner = section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}
        found += [f"{name}.{key}" for key in inner] or [name]
    return found


def _sentence(fault: Any) -> str:
    """A fault that pydantic found."""
    path = [part for part in fault["loc"] if part not in ("int", "float", "str")]
    key, message = ".".join(map(str, path)), fault["msg"]
    if fault["type"] == "extra_forbidden":
        return f"{key} is not a key of a recipe.{_suggest(path) or ' `inlay schema` lists them.'}"
    if fault["type"] == "missing":
        return f"{key} is missing."
    shown = repr(fault["input"])
    if fault["type"] in ("model_type", "dict_type"):
        message = "keys with values below it"
    elif len(path) < len(fault["loc"]):
        message = "a number or text"
    message = message.removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{key}={shown if len(shown) < 80 else shown[:77] + '...'} is not allowed: expected {message}."


def _suggest(path: list[Any]) -> str:
    """The key that is most like this one: one that other tools call so, one of its section, or one elsewhere."""
    section, name = ".".join(map(str, path[:-1])), str(path[-1])
    if name in _ELSEWHERE:
        return f" Did you mean {_ELSEWHERE[name]!r}?"
    everywhere = {k.rpartition(".")[2]: k for k in keys()}
    if name in everywhere:
        return f" Did you mean {everywhere[name]!r}?"
    inside = list(Recipe.model_fields) if not section else [k for k in keys() if k.startswith(section + ".")]
    for among in (inside, keys()):
        by_name = {k.rpartition(".")[2]: k for k in among}
        if near := nearest(name, by_name, 1):
            return f" Did you mean {by_name[near[0]]!r}?"
    return ""
