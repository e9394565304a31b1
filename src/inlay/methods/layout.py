"""Configs that say how their targets store a weight."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from inlay.checks import check_bool
from inlay.core.host import is_transposed, kind_of
from inlay.methods.targets import AttentionConfig


@dataclass
class LayoutConfig(AttentionConfig):
    """An `AttentionConfig` with peft's note of the layout.

    Args:
        fan_in_fan_out: whether the targets store their weight as (in, out). Set when they are known: the layout is read
            from the layers, this is for other readers of the file.
    """

    fan_in_fan_out: bool = False

    circumstances: ClassVar[tuple[str, ...]] = (*AttentionConfig.circumstances, "fan_in_fan_out")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bool("fan_in_fan_out", self.fan_in_fan_out)

    def note(self, heads: Collection[str], hosts: Sequence[Any]) -> None:
        super().note(heads, hosts)
        linear = [host for host in hosts if kind_of(host) == "linear"]
        if linear:
            self.fan_in_fan_out = all(map(is_transposed, linear))
