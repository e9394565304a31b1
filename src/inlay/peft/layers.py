"""peft's layer classes, for `isinstance`: an adapted host is one of those that its adapters make it.

They cannot be made, nor do they hold code: hosts are of the class `inlay.layer.TunerLayer`, which `BaseTunerLayer` is.
"""

from __future__ import annotations

from typing import Any

from inlay.core.copies import TrainedModule
from inlay.core.host import kind_of
from inlay.errors import StateError
from inlay.layer import TunerLayer
from inlay.methods.tokens import TokenRows
from inlay.per_adapter import NAMES, types_in

BaseTunerLayer = TunerLayer


class Kind(type):
    """A class whose instances are told by a function `holds`. Classes derived from it are ordinary ones."""

    def __instancecheck__(cls, value: Any) -> bool:
        holds = cls.__dict__.get("holds")
        return super().__instancecheck__(value) if holds is None else bool(holds(value))

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if "holds" in cls.__dict__:
            raise StateError(
                f"{cls.__name__} is a name for isinstance() here: layers become adapted by get_peft_model(model, "
                "config), or in place by inject_adapter_in_model(config, model)."
            )
        return super().__call__(*args, **kwargs)


def _layer(name: str, *types: str, kind: str | None = None) -> Any:
    """The class of hosts with an adapter of one of these types, and of this kind if one is given."""

    def holds(layer: Any) -> bool:
        fits = isinstance(layer, TunerLayer) and not types_in_set.isdisjoint(types_in(layer).values())
        return fits and (kind is None or kind_of(layer) == kind)

    types_in_set = set(types)
    trained, others = NAMES[types[0]]
    body = {"holds": staticmethod(holds), "adapter_layer_names": trained, "other_param_names": others}
    return Kind(
        name, (), {**body, "__module__": __name__, "__doc__": f"Layers with an adapter of {' or '.join(types)}."}
    )


LoraLayer = _layer("LoraLayer", "LORA", "ADALORA")
Linear = _layer("Linear", "LORA", kind="linear")
Embedding = _layer("Embedding", "LORA", kind="embedding")
Conv1d = _layer("Conv1d", "LORA", kind="conv1d")
Conv2d = _layer("Conv2d", "LORA", kind="conv2d")
Conv3d = _layer("Conv3d", "LORA", kind="conv3d")
AdaLoraLayer = _layer("AdaLoraLayer", "ADALORA")
BOFTLayer = _layer("BOFTLayer", "BOFT")
C3ALayer = _layer("C3ALayer", "C3A")
FourierFTLayer = _layer("FourierFTLayer", "FOURIERFT")
HRALayer = _layer("HRALayer", "HRA")
IA3Layer = _layer("IA3Layer", "IA3")
LNTuningLayer = _layer("LNTuningLayer", "LN_TUNING")
LoHaLayer = _layer("LoHaLayer", "LOHA")
LoKrLayer = _layer("LoKrLayer", "LOKR")
MissLayer = _layer("MissLayer", "MISS")
OFTLayer = _layer("OFTLayer", "OFT")
PolyLayer = _layer("PolyLayer", "POLY")
RandLoraLayer = _layer("RandLoraLayer", "RANDLORA")
TrainableTokensLayer = _layer("TrainableTokensLayer", "TRAINABLE_TOKENS")
VBLoRALayer = _layer("VBLoRALayer", "VBLORA")
VeraLayer = _layer("VeraLayer", "VERA")


def _has(layer: Any, *adapters: type) -> bool:
    return isinstance(layer, TunerLayer) and any(isinstance(a, adapters) for a in layer.adapters.values())


class ModulesToSaveWrapper(metaclass=Kind):
    """Modules of which an adapter trains a copy: `modules_to_save[name]`, and `original_module`."""

    @staticmethod
    def holds(layer: Any) -> bool:
        """Whether `layer` is one."""
        return _has(layer, TrainedModule)


class TrainableTokensWrapper(metaclass=Kind):
    """Embeddings, and output heads, of which an adapter trains single rows."""

    @staticmethod
    def holds(layer: Any) -> bool:
        """Whether `layer` is one."""
        return _has(layer, TokenRows)


class AuxiliaryTrainingWrapper(metaclass=Kind):
    """What transformers asks where an adapter's tensors go (`adapter_state_dict_load_map`): every adapted host."""

    @staticmethod
    def holds(layer: Any) -> bool:
        """Whether `layer` is one."""
        return isinstance(layer, TunerLayer)
