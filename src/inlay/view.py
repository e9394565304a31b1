"""Views under the names that peft's models have beside those of `PeftModel`: for tools, and scripts written for peft.

They stand behind the base's own class: what a model has of the same name comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from inlay.core.active import Facts
from inlay.errors import StateError
from inlay.layer import answer, method
from inlay.merge.weights import unmerge
from inlay.prompt.prefix_tuning import Prefix
from inlay.prompt.tokens import VirtualTokens


class ViewNames:
    """What stands behind the base's class; `view` is a view."""

    @answer
    def has_active_enabled_adapter(view: Any) -> bool:
        """Whether an adapter takes part in a forward pass."""
        return bool(view._inlay.active.names) and not view._inlay.active.disabled

    @answer
    def modules_to_save(view: Any) -> set[str] | None:
        """The names of the modules that adapters train in full; None if there are none."""
        return {name for config in view._inlay.configs.values() for name in config.modules_to_save or ()} or None

    @answer
    def targeted_module_names(view: Any) -> list[str]:
        """The paths of the adapted modules."""
        return list(view._inlay.hosts)

    @answer
    def base_model_torch_dtype(view: Any) -> torch.dtype | None:
        """The base's dtype."""
        return getattr(getattr(view, "_base", view), "dtype", None)

    @method
    def get_model_config(view: Any, model: Any) -> dict[str, Any]:
        """A model's config as a dict; that of a "custom" model if it has none."""
        config = getattr(model, "config", None)
        as_dict = getattr(config, "to_dict", None)
        return dict(config or {"model_type": "custom"}) if as_dict is None else as_dict()

    @method
    def enable_adapter_layers(view: Any) -> None:
        """Answer with the adapters."""
        view._inlay.active.disabled = False

    @method
    def disable_adapter_layers(view: Any) -> None:
        """Answer as the base until `enable_adapter_layers()`."""
        unmerge(view._inlay)
        view._inlay.active.disabled = True

    @method
    @contextmanager
    def _enable_peft_forward_hooks(view: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
        """What a call with these arguments says of single rows (`adapter_names`) holds until the block ends."""
        with view._per_row(args, kwargs):
            yield

    # ------------------------------------------------------------------ virtual tokens

    @answer
    def prompt_encoder(view: Any) -> dict[str, Any]:
        """Adapter name -> the module with its virtual tokens."""
        placed = view._inlay.placed.items()
        found = {n: a for n, adapters in placed for a in adapters.values() if isinstance(a, (VirtualTokens, Prefix))}
        if not found:
            raise AttributeError("no adapter has virtual tokens")
        return found

    @method
    def get_prompt_embedding_to_save(view: Any, adapter_name: str) -> torch.Tensor:
        """An adapter's virtual tokens, as its file has them."""
        found: torch.Tensor = _prompt_of(view, adapter_name)[1].shared_tensors()["prompt_embeddings"]
        return found.detach().cpu()

    @method
    def get_prompt(view: Any, batch_size: int, task_ids: torch.Tensor | None = None, max_cache_len: Any = None) -> Any:
        """The active adapter's virtual tokens, (batch, P, d); of a prefix, every layer's keys and values."""
        host, adapter = _prompt_of(view, view.active_adapters[0] if view.active_adapters else "")
        if isinstance(adapter, Prefix):
            return adapter.layers(batch_size, next(view.parameters()).dtype)
        with view._inlay.active.switched(facts=Facts(task_ids)):
            return adapter.prompt(batch_size, host).expand(batch_size, -1, -1)


def _prompt_of(view: Any, name: str) -> tuple[Any, Any]:
    """The module that an adapter's virtual tokens sit at, and they themselves."""
    for path, adapter in view._inlay.placed.get(name, {}).items():
        if isinstance(adapter, (VirtualTokens, Prefix)):
            return view._inlay.hosts[path], adapter
    raise StateError(f"Adapter {name!r} has no virtual tokens.")
