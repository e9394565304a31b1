"""The tensors of an adapter by the layer they belong to, as far as config and keys tell.

A key is `base_model.model.<path>.<name>`. Where the path ends is known from `target_modules` and `modules_to_save`:
it is the longest beginning that they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from inlay import registry
from inlay.config import PeftConfig
from inlay.core.regex import within_limits
from inlay.core.stored import StoredProduct
from inlay.core.targets import ALL_LINEAR, matches_name
from inlay.errors import MismatchError
from inlay.io.keys import PREFIX


@dataclass
class Layout:
    """Keys of a file, by what the config says of them.

    Attributes:
        layers: path of a targeted module -> name of a tensor there -> its key.
        trained: name in `modules_to_save` -> keys of the tensors in modules of that name.
        others: keys of neither, such as trained biases, or what all layers share.
        strange: those of `others` that are called as a layer's tensors are, or lack the prefix of adapters' keys.
        missing: entries of `target_modules`, and all of `modules_to_save`, that no tensor belongs to.
    """

    layers: dict[str, dict[str, str]] = field(default_factory=dict)
    trained: dict[str, list[str]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def layout_of(keys: Iterable[str], config: PeftConfig | None) -> Layout:
    """How the keys of a file are laid out. Raises TargetError for a pattern that is no regular expression."""
    found = Layout()
    targets = getattr(config, "target_modules", None)
    targets = None if targets == ALL_LINEAR else targets
    heads = list(getattr(config, "modules_to_save", None) or ())
    is_target = _meant_by(targets)
    for key in keys:
        parts = key.removeprefix(PREFIX).split(".")
        paths = [".".join(parts[:i]) for i in range(1, len(parts))]
        path = next((p for p in reversed(paths) if is_target(p)), None) if key.startswith(PREFIX) else None
        head = next((h for h in heads for p in paths if p.endswith(h)), None)
        if path is not None:
            found.layers.setdefault(path, {})[key.removeprefix(f"{PREFIX}{path}.")] = key
        elif head is not None:
            found.trained.setdefault(head, []).append(key)
        else:
            found.others.append(key)
    names = {name for own in found.layers.values() for name in own}
    in_layers = config is not None and hasattr(config, "target_modules")
    for key in found.others:
        like_a_layers = any(key.endswith("." + name) for name in names if "_" in name) and key.startswith(PREFIX)
        if like_a_layers or (in_layers and not key.startswith("base_model.")):
            found.strange.append(key)
    if isinstance(targets, list):
        found.missing = [f"target_modules: {t!r}" for t in targets if not any(matches_name(p, t) for p in found.layers)]
    elif isinstance(targets, str) and not found.layers:
        found.missing = [f"target_modules: {targets!r}"]
    if heads and not found.trained:  # peft names every head that it knows, of which a model has one
        found.missing.append(f"modules_to_save: {heads!r}")
    return found


def product_of(config: PeftConfig, path: str, stored: Mapping[str, Tensor]) -> StoredProduct | None:
    """What a layer's tensors stand for, if the method can tell without the layer. Raises MismatchError."""
    fault: MismatchError | None = None
    classes = dict.fromkeys(registry.adapter_for(config, kind) for kind in registry.kinds_of(config))
    for cls in (c for c in classes if c is not None):
        try:
            if (found := cls.stored_product(config, path, stored)) is not None:
                return found
        except MismatchError as error:  # of a kind of layer that this one may not be
            fault = fault or error
    if fault is not None:
        raise fault
    return None


def _meant_by(targets: Any) -> Callable[[str], bool]:
    if isinstance(targets, str):
        return within_limits(targets, "target_modules")
    names = list(targets or ())
    return lambda path: any(matches_name(path, name) for name in names)
