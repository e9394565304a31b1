"""The recipe of a run: every setting, checked once, with the nearest name for one that is not known.

model:   {name: HuggingFaceTB/SmolLM2-135M}
adapter: {method: lora, r: 16}              # or any registered method with its config's fields; full for none
data:    {train: rows.jsonl, eval: 0.05}
train:   {epochs: 3, lr: 2e-4, batch: 4, accumulation: 4}
out:     runs/mine
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inlay.errors import ConfigError, nearest, optional
from inlay.io.plain import read_yaml

optional("pydantic", "cli")
from pydantic import BaseModel, Field, ValidationError  # noqa: E402

from inlay.recipe.sections import (  # noqa: E402
    FULL,
    RATE,
    RATES,
    Adapter,
    Data,
    Model,
    Parallel,
    Report,
    Section,
    Train,
    Watch,
    methods,
)

# names that other tools have for a key
ELSEWHERE = {
    **dict.fromkeys(("learning_rate", "rate"), "train.lr"),
    **dict.fromkeys(("batch_size", "micro_batch_size"), "train.batch"),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), "train.batch"),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum"), "train.accumulation"),
    **dict.fromkeys(("num_train_epochs", "num_epochs"), "train.epochs"),
    **dict.fromkeys(("warmup_ratio", "warmup_steps"), "train.warmup"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), "train.scheduler"),
    **dict.fromkeys(("eval_strategy", "evaluation_strategy", "eval_steps"), "train.eval_every"),
    **dict.fromkeys(("save_strategy", "save_steps"), "train.save_every"),
    **dict.fromkeys(("bf16", "fp16", "mixed_precision"), "train.precision"),
    "save_total_limit": "train.keep",
    "logging_steps": "train.log_every",
    "optim": "train.optimizer",
    **dict.fromkeys(("fsdp_transformer_layer_cls_to_wrap", "transformer_layer_cls_to_wrap"), "parallel.wrap"),
    **dict.fromkeys(("output_dir", "output"), "out"),
    **dict.fromkeys(("base_model", "model_name_or_path", "base"), "model.name"),
    **dict.fromkeys(("dataset", "data_path", "train_file"), "data.train"),
    **dict.fromkeys(("max_seq_length", "cutoff_len", "sequence_len", "model_max_length"), "data.max_length"),
}


class Recipe(Section):
    """All of it. `Recipe.load` reads a file; `Recipe.make` takes a dict, or dotted keys."""

    model: Model
    adapter: Adapter = Field(default_factory=lambda: Adapter.model_validate({}))
    data: Data
    train: Train = Train()
    parallel: Parallel = Parallel()
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
        self._check_parallel()
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

    def _check_parallel(self) -> None:
        how = self.parallel
        asked = [name for name, there in (("fsdp", how.fsdp != "none"), ("deepspeed", how.deepspeed)) if there]
        if len(asked) > 1:
            raise ConfigError("parallel.fsdp and parallel.deepspeed exclude each other: take one of them away.")
        if how.fsdp == "none" and (how.wrap is not None or how.cpu_offload):
            key = "wrap" if how.wrap is not None else "cpu_offload"
            raise ConfigError(f"parallel.{key} needs parallel.fsdp: full_shard or shard_grad_op.")
        if asked and self.adapter.method == "adalora":
            raise ConfigError(
                f"adapter.method='adalora' compares all of its factors, which parallel.{asked[0]} cuts up: "
                "leave that out, and each process keeps the base whole (DDP)."
            )
        if asked == ["fsdp"] and self.model.quantize != "none":
            raise ConfigError(
                f"model.quantize={self.model.quantize!r} cannot be cut up by parallel.fsdp: leave that out, and each "
                "process keeps the base whole (DDP)."
            )

    @property
    def learning_rate(self) -> float:
        """`train.lr`, or the method's."""
        return self.train.lr if self.train.lr is not None else RATES.get(self.adapter.method, RATE)

    @property
    def per_pass(self) -> int:
        """Rows of a device and forward pass. Packs go one by one: several would be one sequence, with a mask of its
        square, or need one that layers with a window of their own do not read."""
        return 1 if self.data.packing else self.train.batch

    @property
    def passes(self) -> int:
        """Forward passes of a device and optimizer step: as many rows, or packs, as `batch * accumulation` are."""
        return self.train.batch * self.train.accumulation // self.per_pass

    def resolved(self) -> dict[str, Any]:
        """Every key with its value; files and folders by their whole path, so that a run is found from anywhere."""
        values = self.model_dump(mode="json")
        for section, key in _PLACES:
            name = values[section][key]
            if isinstance(name, str) and Path(name).exists():
                values[section][key] = str(Path(name).absolute())
        values["train"] |= {"lr": self.learning_rate, "eval_every": self.train.eval_every or self.train.save_every}
        if self.data.eval is None:
            values["train"]["eval_every"] = None
        return values

    def changes(self, before: Mapping[str, Any]) -> list[str]:
        """`train.lr: 0.0001 -> 0.0002` for every key that makes another result than `before`, a resolved recipe."""
        old, new = (dict(flat(values)) for values in (before, self.resolved()))
        keys = [k for k in {**old, **new} if not k.startswith(_INCIDENTAL) and old.get(k) != new.get(k)]
        return [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys]


# keys that may be a file or a folder
_PLACES = (("model", "name"), ("data", "train"), ("data", "eval"), ("parallel", "deepspeed"))
# keys that make no difference to the adapter
_INCIDENTAL = ("watch.", "report.", "out", "train.keep", "train.log_every")


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
        return f"{key} is not a key of a recipe.{_suggest(path) or ' `inlay schema --text` lists them.'}"
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
    if name in ELSEWHERE:
        return f" Did you mean {ELSEWHERE[name]!r}?"
    everywhere = {k.rpartition(".")[2]: k for k in keys()}
    if name in everywhere:
        return f" Did you mean {everywhere[name]!r}?"
    inside = list(Recipe.model_fields) if not section else [k for k in keys() if k.startswith(section + ".")]
    for among in (inside, keys()):
        by_name = {k.rpartition(".")[2]: k for k in among}
        if near := nearest(name, by_name, 1):
            return f" Did you mean {by_name[near[0]]!r}?"
    return ""


__all__ = ["FULL", "Recipe", "flat", "keys", "methods"]
