"""Where LoRA starts: one file per init.

random      B A = 0: Kaiming or normal A with B = 0, orthogonal halves; or both random
pissa       B0 A0 = the principal part of W            anchored: W' = W + s (B A - B0 A0)
olora       B0 A0 = the first r steps of W = Q R       anchored
corda       B0 A0 = the part of W that data sees most  anchored, from data (`preprocess_corda`)
lora_ga     B0 A0 along the gradient of W              anchored, from data (`preprocess_loraga`)
eva         A = principal directions of the inputs, B = 0 (`initialize_lora_eva_weights`)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from inlay.core.adapted import unmerged
from inlay.core.host import canonical, weight_of
from inlay.errors import ConfigError
from inlay.methods.lora.inits.olora import olora
from inlay.methods.lora.inits.pissa import pissa, pissa_iterations
from inlay.quant import is_quantised

Pair = tuple[Tensor, Tensor]


class Prepared(dict[str, Pair]):
    """path -> (A0, B0), found from data before the adapter is made. Copies of a config share it; files lack it."""

    def __deepcopy__(self, memo: Any) -> Prepared:
        return self

    def __reduce__(self) -> tuple[Callable[[], Prepared], tuple[()]]:
        return Prepared, ()


FROM_DATA = {"corda": "preprocess_corda", "lora_ga": "preprocess_loraga"}


def is_anchored(init: object) -> bool:
    """Whether `init_lora_weights=init` starts from W, and so needs an anchor."""
    return isinstance(init, str) and (init in ("olora", *FROM_DATA) or pissa_iterations(init) is not None)


def readable(what: str, path: str, host: Any) -> Tensor:
    """The canonical weight of the unmerged host at `path`, dequantised if need be, which `what` has to read.

    Raises ConfigError unless its numbers are there.
    """
    layer = unmerged(host)
    if is_quantised(layer):
        return weight_of(layer)
    weight: Tensor | None = layer._parameters.get("weight")
    if weight is None or weight.is_meta or not weight.is_floating_point() or weight.dtype.itemsize < 2:
        state = "computed" if weight is None else "not in memory" if weight.is_meta else f"quantised ({weight.dtype})"
        raise ConfigError(
            f"{what} reads the weight of {path!r}, which is {state}: load the base whole, in a floating-point dtype.",
            what.partition("=")[0],
        )
    return canonical(layer, weight)


def starting_pair(config: Any, path: str, w: Tensor, r: int, scale: float) -> Pair:
    """(A0, B0) for one matrix W: (rows, columns) of the host at `path`, in W's dtype.

    Raises ConfigError if the config's init cannot be made for it.
    """
    init = config.init_lora_weights
    most = min(w.shape) // (2 if init == "lora_ga" else 1)
    if r > most:
        raise ConfigError.of("r", r, f"at most {most} at {path!r} with init_lora_weights={init!r}")
    if scale <= 0:
        raise ConfigError.of("lora_alpha", config.lora_alpha, f"a positive number with init_lora_weights={init!r}")
    if init == "olora":
        return olora(w, r)
    if init not in FROM_DATA:
        return pissa(w, r, scale, pissa_iterations(init))
    if path not in config.prepared:
        raise ConfigError(
            f"init_lora_weights={init!r} starts from statistics that nothing here has. For a new adapter, call "
            f"{FROM_DATA[init]}(model, config, ...) first. In a file it means that A and B belong to a base from which "
            "B0 A0 was taken out, and which the file does not hold: convert it where it was made (peft: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)), or load that base and pass a config "
            "with init_lora_weights=True.",
            "init_lora_weights",
            init,
        )
    a0, b0 = config.prepared[path]
    if a0.shape != (r, w.shape[1]) or b0.shape != (w.shape[0], r):
        raise ConfigError(
            f"{FROM_DATA[init]} was called with another rank or model: at {path!r} it found A0: {tuple(a0.shape)} and "
            f"B0: {tuple(b0.shape)}, needed are {(r, w.shape[1])} and {(w.shape[0], r)}. Call it again.",
            "init_lora_weights",
            init,
        )
    return a0.to(w), b0.to(w)
