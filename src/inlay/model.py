"""`PeftModel`: a view of a base model, with adapters. The view is a model of its base's class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from inlay import quant, registry, status
from inlay.calling import Called
from inlay.config import PeftConfig
from inlay.core.adapted import check_reachable, is_adapted, redirect
from inlay.core.classes import derive
from inlay.core.copies import own_tensors
from inlay.core.host import end_of
from inlay.core.index import AdapterIndex
from inlay.core.skeleton import clone_skeleton, plain_view, unwrapped
from inlay.errors import ConfigError, StateError
from inlay.inject import add_adapter
from inlay.layer import TunerLayer
from inlay.merge import weights
from inlay.tuner import Names, Tuner
from inlay.view import ViewNames


class PeftModel(Called):
    """A view: the base's weights, its own modules, its own adapters.

    `PeftModel(model, config)`, `get_peft_model(model, config)` and `PeftModel.from_pretrained(model, folder)` make one;
    the result is also an instance of `type(model)`, and `model` itself goes on answering as before. The weights are
    shared: moving, casting or resizing one moves, casts or resizes the other. They are frozen, in both.

    Args:
        model: the base.
        peft_config: what to add.
        adapter_name: its name.
        autocast_adapter_dtype: keep adapters in float32 when the base is 16-bit (they are computed in its dtype).
        low_cpu_mem_usage: accepted for compatibility; adapters are always made in place.

    Raises:
        TargetError, ConfigError: the config does not fit the model. Nothing has changed then.
    """

    _label = "PeftModel"
    _base: nn.Module
    _task_heads: ClassVar[tuple[str, ...]] = ()  # modules trained along with the adapter, if the model has them
    prefix = "adapters."  # in the names of all that is the adapters' among the view's parameters, and of nothing else
    _behind = (ViewNames,)
    _hf_peft_config_loaded = True  # transformers asks for it; on the class, so that a merged model is free of it

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if hasattr(cls, "_original_class"):  # a view's class: e.g. nn.Sequential slicing
            return super().__new__(cls, *args, **kwargs)
        return _make_view(cls, *args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def update_and_allocate(self, global_step: int) -> None:
        """Tells methods with a schedule (AdaLoRA) that optimizer step `global_step` was made.

        To be called after `optimizer.step()` and before `zero_grad()`; with Trainer, `inlay.hf.callbacks` does it.
        """
        self._inlay.after_step(global_step)

    # ------------------------------------------------------------------ adapters

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """Adapter name -> its config."""
        return self._inlay.configs

    @property
    def active_adapters(self) -> Names:
        """The names of the active adapters, in the order they are applied."""
        return Names(self._inlay.active.names)

    @property
    def active_adapter(self) -> str | list[str]:
        """The active adapter's name; a list unless exactly one is active."""
        names = self.active_adapters
        return names[0] if len(names) == 1 else list(names)

    @property
    def active_peft_config(self) -> PeftConfig:
        """The config of the first active adapter."""
        if not self.active_adapters:
            raise StateError("No adapter is active: call set_adapter(name) first.")
        return self.peft_config[self.active_adapters[0]]

    def add_adapter(
        self,
        adapter_name: Any,
        peft_config: Any = None,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Adds a new adapter, inactive. The two first arguments may come in either order (peft's, transformers')."""
        if isinstance(adapter_name, PeftConfig):
            adapter_name, peft_config = peft_config or "default", adapter_name
        add_adapter(self, peft_config, adapter_name, self._task_heads, keep_base_dtype=not autocast_adapter_dtype)

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Activates one adapter, or several together, and makes exactly those trainable (none in `inference_mode`)."""
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        self._inlay.check_train([] if inference_mode else names)
        self._inlay.activate(names)
        self._inlay.train([] if inference_mode else names)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Makes adapters trainable, or not, without activating them."""
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self._inlay.require_grad(name, requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes an adapter. If it was the only active one, the view answers as its base."""
        self._inlay.remove(adapter_name)

    def add_weighted_adapter(
        self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str, *how: Any, **named: Any
    ) -> None:
        """Adds an adapter made of others; see `inlay.merge.arithmetic.add_weighted_adapter` for what and how."""
        from inlay.merge.arithmetic import add_weighted_adapter

        add_weighted_adapter(self, adapters, weights, adapter_name, *how, **named)

    def load_adapter(
        self,
        model_id: str,
        adapter_name: str = "default",
        is_trainable: bool = False,
        *,
        strict: bool = True,
        autocast_adapter_dtype: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Loads an adapter from a folder or the Hub, inactive; see `inlay.io.load.load_adapter`."""
        from inlay.io.load import load_adapter

        report = load_adapter(
            self,
            model_id,
            adapter_name,
            heads=self._task_heads,
            is_trainable=is_trainable,
            strict=strict,
            keep_base_dtype=not autocast_adapter_dtype,
            **kwargs,
        )
        if not is_trainable and self.training:
            self.eval()
        return report

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """A view of `model` with a saved adapter, active; arguments and errors as in `inlay.io.load.load_adapter`."""
        from inlay.io.load import view_from_pretrained

        return view_from_pretrained(cls, model, model_id, adapter_name, is_trainable, config, **kwargs)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within this block the view answers as its base. Merged adapters are unmerged for as long, bit-exactly."""
        merged = list(self._inlay.merged)
        weights.unmerge(self._inlay)
        try:
            with self._inlay.active.switched(disabled=True):
                yield
        finally:
            if merged:
                weights.remerge(self._inlay, merged)

    def disable_adapters(self) -> None:
        """transformers' name: answer as the base until `enable_adapters()`. Merged adapters are unmerged for good."""
        weights.unmerge(self._inlay)
        self._inlay.active.disabled = True

    def enable_adapters(self) -> None:
        """Undoes `disable_adapters`."""
        self._inlay.active.disabled = False

    # ------------------------------------------------------------------ merging

    def merge_adapter(self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False) -> None:
        """Writes adapters (by default the active ones) into copies of the weights; see `inlay.merge.weights`.

        Every merge is a safe one: what would be written is checked before anything is.
        """
        weights.merge(self._inlay, adapter_names)

    def unmerge_adapter(self) -> None:
        """Undoes `merge_adapter`, bit-exactly."""
        weights.unmerge(self._inlay)

    @property
    def merge_report(self) -> Any:
        """What `merge_adapter` rounded in quantised layers (`inlay.merge.report`); None while nothing is merged."""
        return self._inlay.report

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: Sequence[str] | None = None,
        dequantize: bool | torch.dtype = False,
    ) -> Any:
        """A plain model of the base's class with the adapters in its weights; only the merged layers' are private.

        `dequantize=True`, or a dtype, makes quantised layers dense, so that nothing is rounded. `safe_merge` makes no
        difference, see `merge_adapter`.
        """
        return weights.merge_and_unload(self, self._inlay, adapter_names, dequantize, progressbar)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether `inlay.convert_to_lora` takes this adapter."""
        from inlay.merge.convert import supports_lora_conversion

        return supports_lora_conversion(self, adapter_name)

    def unload(self) -> nn.Module:
        """The base, as it was passed in."""
        return self._base

    # ------------------------------------------------------------------ bases

    def get_base_model(self) -> Any:
        """The view as a plain object of the base's class: same modules, same adapters (see `core.plain_view`)."""
        return plain_view(self)

    @property
    def base_model(self) -> Tuner:
        """peft's `base_model`: `.model` is `get_base_model()`; otherwise transformers' backbone."""
        return Tuner(self)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """The base's method, on embeddings of the view's own: the base keeps its.

        Raises StateError if an adapter sits in them: its tensors have the old size.
        """
        ends: Any = nn.ModuleList([m for which in ("input", "output") if (m := end_of(self, which)) is not None])
        if new_num_tokens is not None and any(m.weight.shape[0] != new_num_tokens for m in ends):
            if any(map(is_adapted, ends)):
                raise StateError(
                    "An adapter sits in the embeddings, with tensors of their present size: resize the base "
                    "before adding it (base.resize_token_embeddings, then get_peft_model)."
                )
            own_tensors(ends)
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)  # type: ignore[misc]

    # ------------------------------------------------------------------ files

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Writes the adapters, and nothing else, to a folder; see `inlay.io.save.save_pretrained`."""
        from inlay.io.save import save_pretrained

        save_pretrained(self, save_directory, **kwargs)

    def get_adapter_state_dict(self, adapter_name: str | None = None, state_dict: Any = None) -> dict[str, Any]:
        """transformers' name: what the file of an adapter (by default the active one) would hold."""
        from inlay.io.save import get_peft_model_state_dict

        return get_peft_model_state_dict(self, state_dict, adapter_name or self.active_adapters[0])

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Saves the adapters and uploads them to the Hub; see `inlay.io.hub.push_to_hub`."""
        from inlay.io.hub import push_to_hub

        return push_to_hub(self, repo_id, **kwargs)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Writes `README.md` with the metadata the Hub reads, keeping a text that is there."""
        from inlay.io.card import write_card

        write_card(self, output_dir)

    # ------------------------------------------------------------------ counting and checking

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all) parameters; a module trained in full counts once."""
        return status.count_parameters(self)

    def print_trainable_parameters(self) -> None:
        """Prints `trainable params: N || all params: M || trainable%: x.xxxx`."""
        print(status.trainable_line(self))

    def get_layer_status(self) -> list[status.TunerLayerStatus]:
        """The state of every adapted layer."""
        return status.get_layer_status(self)

    def get_model_status(self) -> status.TunerModelStatus:
        """The state of the view as a whole."""
        return status.get_model_status(self)

    def verify(self, *args: Any, **kwargs: Any) -> list[str]:
        """Runs a forward pass with these inputs and raises StateError if a target was not reached by it."""
        return status.verify(self, *args, **kwargs)


def _make_view(
    cls: type[PeftModel],
    model: nn.Module,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    autocast_adapter_dtype: bool = True,
    low_cpu_mem_usage: bool = False,
) -> Any:
    view = bare_view(cls, model)
    add_adapter(view, peft_config, adapter_name, cls._task_heads, keep_base_dtype=not autocast_adapter_dtype)
    open_view(view, adapter_name, trainable=not peft_config.inference_mode)
    return view


def bare_view(cls: type[PeftModel], model: nn.Module) -> Any:
    """A view without adapters. `model` is unchanged, and stays trainable until `open_view`."""
    if not isinstance(model, nn.Module):
        raise ConfigError.of("model", type(model).__name__, "a torch.nn.Module")
    model = unwrapped(model)
    if isinstance(model, PeftModel):
        raise StateError("The model is a view already: call model.add_adapter(name, config), or pass its base.")
    if any(map(is_adapted, model.modules())):
        raise StateError("The model was changed by inject_adapter_in_model: a view needs an untouched base.")
    check_reachable(model)
    view = clone_skeleton(model)
    before = type(view)
    view.__class__ = derive(cls, before)
    redirect(view, before)
    view.__dict__["_inlay"], view.__dict__["_base"] = AdapterIndex(TunerLayer), model
    if any(hasattr(PeftModel, name) for own in (model._modules, model._parameters, model._buffers) for name in own):
        view.__dict__["_hides"] = True
    return view


def open_view(view: Any, adapter_name: str, trainable: bool) -> None:
    """Freezes the base's weights and activates the first adapter."""
    view._base.requires_grad_(False)
    for model in (view, view._base):
        quant.settle(model)
    view._inlay.activate([adapter_name])
    view._inlay.train([adapter_name] if trainable else [])
    glue = registry.glue_for(view)
    if glue is not None:
        glue.on_view(view)
