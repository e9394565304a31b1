"""The sections of a recipe: its keys, with their defaults and limits.

A field here is a key, a flag of the command line and a line of the schema; its description is the help of all three.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from inlay.config import PeftConfig, config_class, config_classes
from inlay.errors import ConfigError, did_you_mean, optional

optional("pydantic", "cli")
from pydantic import BaseModel, ConfigDict, Field, model_validator  # noqa: E402

FULL = "full"
"""The method that is none: every weight is trained."""

# what a method is given where the recipe says nothing: other than its config's default where that is a poor start
_FIELDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "adalora": {"target_modules": "all-linear"},
    **{name: {"num_virtual_tokens": 20} for name in ("prompt_tuning", "p_tuning", "prefix_tuning")},
}
# learning rates of AdamW: methods that train few numbers, or vectors that scale, need larger steps
RATES = {
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
RATE = 2e-4

# fields that the run itself fills in
_FILLED = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "task_type")


class Section(BaseModel):
    """Keys that belong together: an unknown one is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Model(Section):
    """The base that is trained."""

    name: str = Field(min_length=1, description="a folder, or an id on the Hub")
    revision: str | None = Field(default=None, description="branch, tag or commit on the Hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of the weights; auto takes that of the files, or float32 where all is trained"
    )
    quantize: Literal["none", "nf4", "int8"] = Field(default="none", description="the base's weights, by bitsandbytes")
    trust_remote_code: bool = Field(default=False, description="run code that comes with the base")
    gguf_file: str | None = Field(default=None, description="the file of the base, if it is a GGUF one")


class Data(Section):
    """The rows it is trained on."""

    train: str = Field(min_length=1, description="a file, or the id of a data set on the Hub")
    eval: float | int | str | None = Field(default=None, description="a share or number of rows; or a file")
    format: str = Field(default="auto", description="of the rows: alpaca, chat, plain, ...; auto finds it")
    loss_on: Literal["answers", "last", "all"] = Field(
        default="answers", description="which texts are learned: all answers, the last answer, or everything"
    )
    max_length: int = Field(default=2048, ge=2, description="tokens a row")
    too_long: Literal["cut", "drop"] = Field(default="cut", description="what becomes of a row of more tokens")
    packing: bool = Field(default=False, description="put several rows in a sequence, which do not see one another")
    columns: dict[str, str] = Field(default_factory=dict, description="names that differ: the format's, and the data's")
    chat_template: str | None = Field(default=None, description="Jinja text in place of the tokenizer's own")


class Train(Section):
    """How it is trained."""

    epochs: float = Field(default=1.0, gt=0, description="times that each row is seen")
    max_steps: int | None = Field(default=None, ge=1, description="optimizer steps, in place of epochs")
    lr: float | None = Field(default=None, gt=0, description="learning rate; by default the method's: 2e-4 for lora")
    batch: int = Field(default=4, ge=1, description="rows a device and forward pass")
    accumulation: int = Field(default=4, ge=1, description="forward passes an optimizer step")
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup", "inverse_sqrt"] = Field(
        default="cosine", description="how the learning rate goes after the warmup"
    )
    warmup: float = Field(default=0.03, ge=0, description="a share of the steps below 1, or a number of steps")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's, per unit of learning rate")
    max_grad_norm: float = Field(default=1.0, ge=0, description="norm that gradients are clipped to; 0: they are not")
    optimizer: str = Field(default="adamw_torch", description="as transformers names it")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the order of rows, first weights and dropout")
    log_every: int = Field(default=10, ge=1, description="steps between logs")
    eval_every: int | None = Field(default=None, ge=1, description="steps between evaluations; by default save_every")
    save_every: int = Field(default=100, ge=1, description="steps between checkpoints")
    keep: int = Field(
        default=2, ge=2, description="checkpoints that are kept; with one, a kill while it is written loses all"
    )
    early_stopping: int | None = Field(default=None, ge=1, description="evaluations without a better one, to end")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="of the arithmetic; auto is bfloat16 for method full on a GPU, else the weights'"
    )
    tf32: bool | None = Field(default=None, description="float32 products on NVIDIA's tensor cores, with 10 bits")
    group_by_length: bool = Field(default=False, description="rows of about the same length in a batch: less padding")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations: less memory, slower")
    device: Literal["auto", "cpu"] = Field(
        default="auto", description="where the base is; auto takes a GPU if there is one"
    )


class Parallel(Section):
    """What several processes share, besides the rows."""

    fsdp: Literal["none", "full_shard", "shard_grad_op"] = Field(
        default="none", description="cut up weights, gradients and optimizer (FSDP2), or keep weights whole in a pass"
    )
    wrap: str | None = Field(default=None, description="class of the layers that are cut up; by default the model's")
    cpu_offload: bool = Field(default=False, description="keep what is cut up in the memory of the CPU")
    deepspeed: str | None = Field(default=None, description="DeepSpeed's JSON file, in place of fsdp")


class Watch(Section):
    """Prompts that are answered before and after training."""

    prompts: list[str] = Field(default_factory=list, description="texts to answer")
    max_new_tokens: int = Field(default=64, ge=1, description="length of an answer")


class Report(Section):
    """What tells how it goes."""

    html: bool = Field(default=True, description="write report.html when the run ends: curves, samples, cost")
    trackers: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        default_factory=list, description="where logs are sent, too: tensorboard, trackio or wandb"
    )


class Adapter(Section):
    """A method, and fields of its config class."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    method: str = Field(
        default="lora", description="how the base is adapted: lora, ia3, oft, ...; or full, every weight"
    )

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
        names = self.names
        for name in self.fields:
            if name not in names:
                raise ConfigError(
                    f"adapter.{name} is not a field of the method {self.method!r}."
                    f"{did_you_mean(name, names) or ' It has: ' + ', '.join(names) + '.'}",
                    f"adapter.{name}",
                )
        try:
            return self._class(**{"task_type": "CAUSAL_LM", **filled, **self.fields})
        except ConfigError as error:
            raise ConfigError(f"adapter.{error}", error.field, error.value) from error
        except TypeError as error:
            raise ConfigError(f"adapter: {self.method!r} cannot be made of these fields: {error}.") from error

    @property
    def names(self) -> list[str]:
        """The fields that the method has here: those of its config but what the run fills in. Raises ConfigError."""
        if self.method == FULL:
            return []
        return [f.name for f in dataclasses.fields(self._class) if f.name not in _FILLED]

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


def methods() -> list[str]:
    """Every registered method, as a recipe names it."""
    return sorted(name.lower() for name in config_classes())
