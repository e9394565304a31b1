"""LoftQ (Li et al. 2023, arXiv 2310.08659): on a quantised base Q, the adapter starts as the best correction of rank r.

    W ~ Q + s B A:   Q_t = quantised(W - s B_t A_t),   s B_(t+1) A_(t+1) = best approximation of W - Q_t of rank r

LoftQ as an init (`init_lora_weights="loftq"` in peft) writes Q over the base's W. A view shares its base's weights with
others, and Q - W has full rank, so that no adapter can stand for it: a view needs a base that holds Q. Hence two steps:
`loftq` makes Q (and A, B) of a weight, in plain torch; `replace_lora_weights_loftq` gives an adapter on such a base,
however it was quantised, its A and B. (peft leaves s out, and so corrects s times as much as is missing.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inlay.core.host import canonical
from inlay.core.index import index_of
from inlay.errors import ConfigError, MismatchError
from inlay.methods.lora.inits import readable
from inlay.methods.lora.inits.pissa import pissa

# the 16 values of NormalFloat-4 (Dettmers et al. 2023, arXiv 2305.14314, appendix E)
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
BLOCK = 64


def nf4(w: Tensor) -> Tensor:
    """`w` as NF4 keeps it: in blocks of 64 (of the flat tensor), the nearest of 16 levels times the block's maximum."""
    flat = w.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
    top = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(NF4, dtype=w.dtype, device=w.device)
    middles = (levels[1:] + levels[:-1]) / 2
    nearest = torch.bucketize(blocks / top.clamp_min(torch.finfo(w.dtype).tiny), middles)
    return (levels[nearest] * top).flatten()[: len(flat)].reshape(w.shape)


def int8(w: Tensor) -> Tensor:
    """`w` as 8 bits keep it: in each row, the nearest of 255 even steps up to the row's maximum."""
    step = w.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny) / 127
    return (w / step).round() * step


def loftq(w: Tensor, r: int, scale: float = 1.0, bits: int = 4, iterations: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """(Q, A, B) with Q + s B A near W.   W, Q: (out, in)   A: (r, in)   B: (out, r)   bits: 4 (NF4) or 8

    Raises ConfigError for other bits, or no iteration.
    """
    if bits not in (4, 8):
        raise ConfigError.of("bits", bits, "4 or 8")
    if iterations < 1:
        raise ConfigError.of("iterations", iterations, "at least 1")
    wide = w if w.dtype == torch.float64 else w.float()
    low = torch.zeros_like(wide)
    for _ in range(iterations):
        q = (nf4 if bits == 4 else int8)(wide - low)
        a, b = pissa(wide - q, r, scale)
        low = scale * b @ a
    return q, a, b


@torch.no_grad()
def replace_lora_weights_loftq(
    peft_model: Any,
    weights: Mapping[str, Tensor] | nn.Module,
    adapter_name: str = "default",
    callback: Callable[[Any, str], bool] | None = None,
) -> None:
    """Sets A and B in a view of a quantised base so that W' is as near to the weights before quantisation as can be.

    Args:
        peft_model: a view with a LoRA adapter in linear layers, quantised, or dense with the numbers of a quantised
            weight (e.g. `nf4` of the original).
        weights: the original model, or its state dict.
        callback: (view, path) -> whether to keep what was just set there, e.g. because the logits got better.

    Raises:
        ConfigError: the adapter is no plain LoRA, or a weight cannot be read. MismatchError: `weights` lacks one.
        Nothing has changed then. StateError: there is no such adapter.
    """
    index = index_of(peft_model)
    index.require(adapter_name)
    config: Any = index.configs[adapter_name]
    if getattr(config, "variant", None) != "" or getattr(config, "anchored", True):
        raise ConfigError(f"LoftQ starts plain LoRA adapters; {adapter_name!r} is another, or starts elsewhere.")
    given = weights.state_dict() if isinstance(weights, nn.Module) else weights
    found: dict[str, tuple[Tensor, Tensor]] = {}
    placed: Mapping[str, Any] = index.placed[adapter_name]
    for path, adapter in placed.items():
        if "lora_A.weight" not in adapter.tensors() or adapter.A.dim() != 2:
            continue
        own = readable("LoftQ", path, index.hosts[path])
        stored = canonical(index.hosts[path], own)
        whole = given.get(f"{path}.weight")
        if whole is None or whole.shape != stored.shape:
            raise MismatchError(f"`weights` has no {path}.weight of shape {tuple(stored.shape)}.", [f"{path}.weight"])
        missing = canonical(index.hosts[path], whole.to(own.device).float()) - own.float()
        if adapter.r > min(missing.shape):
            raise ConfigError.of("r", adapter.r, f"at most {min(missing.shape)} at {path!r} with LoftQ")
        found[path] = pissa(missing, adapter.r, adapter.scale)
    for path, (a, b) in found.items():
        adapter = placed[path]
        before = adapter.A.clone(), adapter.B.clone()
        adapter.A.copy_(a)
        adapter.B.copy_(b)
        if callback is not None and not callback(peft_model, path):
            adapter.A.copy_(before[0])
            adapter.B.copy_(before[1])
