"""What a view's `base_model` is, for the two kinds of caller that read it."""

from __future__ import annotations

from typing import Any

from inlay.core.skeleton import plain_view


class Names(list[str]):
    """A list of names that can also be called: `active_adapters` is a property in peft and a method in transformers."""

    def __call__(self) -> list[str]:
        return list(self)


class Tuner:
    """What `view.base_model` is. peft reads `.model` and the adapters' methods; transformers takes it for the backbone.

    Attributes are looked up on `PeftModel`'s interface, then on the backbone, then on the whole model.
    """

    def __init__(self, view: Any):
        self._view = view

    @property
    def model(self) -> Any:
        """The view as a plain object of the base's class."""
        return plain_view(self._view)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._backbone(*args, **kwargs)

    @property
    def _backbone(self) -> Any:
        return getattr(self._view, getattr(self._view, "base_model_prefix", ""), None) or self.model

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        mixin = type(self._view)._mixin
        own = (*mixin.__mro__[:-1], *mixin._behind)
        if name != "forward" and any(name in vars(c) for c in own):
            return getattr(self._view, name)
        backbone = self._backbone
        return getattr(backbone if hasattr(backbone, name) else self.model, name)

    def __repr__(self) -> str:
        return f"Tuner({self._view!r})"
