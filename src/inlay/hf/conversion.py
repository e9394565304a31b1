"""What transformers' `model.load_adapter` asks: how keys in an adapter's file become names in a model's state dict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.core_model_loading import WeightRenaming


class OnlyRead(WeightRenaming):  # type: ignore[misc]  # transformers is not followed
    """A renaming of an adapter's keys, which transformers must not undo when the whole model is saved later."""

    __slots__ = ()

    def was_used(self) -> bool:
        """False: what was used is kept for saving."""
        return False


def build_peft_weight_mapping(
    weight_conversions: Sequence[Any] | None, adapter_name: str, peft_config: Any = None
) -> list[Any]:
    """The renamings that apply to every key of a file, before those of each adapted layer.

    The layers' own follow: transformers appends what `adapter_state_dict_load_map` says of each.

    Args:
        weight_conversions: the model's own; renamed modules are renamed in an adapter's file as well. Conversions of
            values are those of the base's weights (experts that were fused) and are left out: the config of an adapter
            of such a layer names modules that are no longer there, which is an error.
    """
    own = [OnlyRead(r"^base_model\.model\.", ""), OnlyRead(r"\.base_layer\.", ".")]
    return [*own, *(c for c in weight_conversions or () if isinstance(c, WeightRenaming))]


def convert_peft_config_for_transformers(
    peft_config: Any, model: Any, conversions: Sequence[Any] | None = None
) -> None:
    """Nothing: a config's targets are found under the names of earlier releases as it is (`inlay.hf.names`)."""
