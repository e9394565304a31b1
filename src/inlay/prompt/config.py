"""What the configs of prompt methods have in common: how many virtual tokens, and the model's dimensions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from inlay import registry
from inlay.checks import check_int
from inlay.config import PeftConfig, TaskType
from inlay.core.host import is_encoder_decoder
from inlay.errors import ConfigError, TargetError

MAX_SIZE = 65_536  # of virtual tokens, dimensions, layers: no model has more, and a file may not make us allocate more
_SIZES = ("num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers")


@dataclass
class PromptLearningConfig(PeftConfig):
    """Virtual tokens before the input.

    Args:
        num_virtual_tokens: P, how many.
        token_dim: d, the size of an embedding (of a layer's keys, for prefix tuning). Taken from the model if None, as
            are the following.
        num_transformer_submodules: 2 for SEQ_2_SEQ_LM, else 1: how many times P rows the file has. Only the first P,
            the encoder's, are used; peft writes both.
        num_attention_heads: heads that the d numbers of a key are divided into.
        num_layers: layers of the model.

    Raises:
        ConfigError: a field has a value that is not allowed.
    """

    num_virtual_tokens: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None

    is_prompt_learning: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _SIZES:
            check_size(name, getattr(self, name), optional=True)
        if self.num_transformer_submodules not in (None, 1, 2):
            raise ConfigError.of("num_transformer_submodules", self.num_transformer_submodules, "1, 2 or None")

    @property
    def rows(self) -> int:
        """Rows of the embedding matrix: P for each transformer submodule."""
        return (self.num_virtual_tokens or 0) * (self.num_transformer_submodules or 1)

    def companions(
        self, modules: Mapping[str, Any], targets: Sequence[str]
    ) -> Iterable[tuple[str, Callable[..., Any]]]:
        check_size("num_virtual_tokens", self.num_virtual_tokens)
        places = list(self.places(modules[""]))  # first: a model without a place for tokens may have no sizes either
        self.measure(modules[""])
        for host, make in places:
            # a view may answer with another object over the same attributes (`core.skeleton.plain_view`)
            path = next((p for p, m in modules.items() if m.__dict__ is host.__dict__), None)
            if path is None:
                raise TargetError(
                    f"The model's {type(host).__name__} is trained in full (modules_to_save): virtual tokens cannot be "
                    "put into it as well."
                )
            yield path, make

    def measure(self, model: nn.Module) -> None:
        """Fills in the dimensions that are None from the model's config."""
        sizes = dimensions(model)
        if self.num_transformer_submodules is None:
            self.num_transformer_submodules = 2 if self.task_type == TaskType.SEQ_2_SEQ_LM else 1
        for name in ("token_dim", "num_attention_heads", "num_layers"):
            if getattr(self, name) is None:
                setattr(self, name, sizes[name])
            check_size(name, getattr(self, name))

    def take(self, name: str, size: int | None) -> None:
        """Sets field `name` to the model's size if it is None. Raises ConfigError if it is another."""
        if getattr(self, name) is None:
            setattr(self, name, size)
        if size is not None and getattr(self, name) != size:
            raise ConfigError.of(name, getattr(self, name), f"{size}, the model's, or None")

    def places(self, model: Any) -> Iterable[tuple[Any, Callable[..., Any]]]:
        """Where the virtual tokens go in: (module, factory of adapters). Raises TargetError if nowhere."""
        from inlay.prompt.tokens import PromptedMask, check_embeds

        make: Any = registry.adapter_for(self, "prompt")
        if is_encoder_decoder(model):
            self.take("token_dim", check_embeds(model.get_encoder(), self))
            yield model.get_encoder(), functools.partial(make, keeps=True)
            yield model.get_decoder(), PromptedMask
        else:
            keeps = self.task_type == TaskType.CAUSAL_LM
            host = model if keeps else backbone(model)
            self.take("token_dim", check_embeds(host, self))
            yield host, functools.partial(make, keeps=keeps)


def check_size(name: str, value: object, optional: bool = False) -> None:
    """Raises ConfigError unless `value` is an integer from 1 to `MAX_SIZE` (or None if `optional`)."""
    if optional and value is None:
        return
    check_int(name, value, 1)
    if value > MAX_SIZE:  # type: ignore[operator]
        raise ConfigError.of(name, value, f"at most {MAX_SIZE}")


def backbone(model: Any) -> Any:
    """The part of a transformers model that maps tokens to hidden states, which every head calls."""
    if not hasattr(model, "get_decoder"):
        return getattr(model, getattr(model, "base_model_prefix", "") or "", model)
    inner = model.get_decoder()
    if inner.__dict__ is model.__dict__ or not hasattr(inner, "get_decoder"):
        return inner
    return backbone(inner)  # BLIP-2 answers with its language model, head and all


def dimensions(model: Any) -> dict[str, int | None]:
    """d, heads and layers of a model, and heads of its keys: what its config says under any of the usual names."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    names: dict[str, tuple[str, ...]] = {
        "token_dim": ("hidden_size", "n_embd", "d_model"),
        "num_attention_heads": ("decoder_attention_heads", "num_attention_heads", "n_head", "num_heads"),
        "num_layers": ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "n_layer", "num_layers"),
        "key_heads": ("num_key_value_heads",),
        "head_dim": ("head_dim", "d_kv"),
    }
    found = {name: next((v for key in keys if (v := getattr(config, key, None))), None) for name, keys in names.items()}
    heads, dim = found["num_attention_heads"], found["token_dim"]
    found["key_heads"] = found["key_heads"] or heads
    found["head_dim"] = found["head_dim"] or (dim // heads if dim and heads else None)
    return found
