"""Hosts: the modules an adapter can sit in, by kind, whatever their exact class.

A kind is recognised by the qualified names in a class's ancestry, so subclasses (quantised, scaled, parametrised
layers) need nothing, and no library has to be imported to recognise its layers.

    kind         weight as an adapter sees it (canonical)
    linear       (out, in)              transformers' Conv1D stores (in, out); it is shown transposed
    embedding    (num, dim)
    conv1d/2d/3d (out, in / groups, *kernel)
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inlay.core.classes import original_class

KINDS = {
    "torch.nn.modules.linear.Linear": "linear",
    "transformers.pytorch_utils.Conv1D": "linear",
    "torch.nn.modules.sparse.Embedding": "embedding",
    "torch.nn.modules.conv.Conv1d": "conv1d",
    "torch.nn.modules.conv.Conv2d": "conv2d",
    "torch.nn.modules.conv.Conv3d": "conv3d",
    # quantised layers that are no nn.Linear; their weights: `inlay.quant`
    "hqq.core.quantize.HQQLinear": "linear",
    "gptqmodel.nn_modules.qlinear.BaseQuantLinear": "linear",
    "awq.modules.linear.gemm.WQLinear_GEMM": "linear",
}
_TRANSPOSED = "transformers.pytorch_utils.Conv1D"

# children that their parent never calls (it reads their weights), at least on some path: adapting them has no effect
_UNREACHED = {
    "torch.nn.modules.activation.MultiheadAttention": ("out_proj",),
    "torch.nn.modules.transformer.TransformerEncoderLayer": (
        *("self_attn", "self_attn.out_proj"),
        *("linear1", "linear2", "norm1", "norm2"),
    ),
}


def ancestry(cls: type) -> list[str]:
    """Qualified names of `cls` and its ancestors."""
    return [f"{c.__module__}.{c.__qualname__}" for c in cls.__mro__]


_KIND_OF: dict[type, str | None] = {}


def kind_of(module: nn.Module) -> str | None:
    """The kind of host `module` is, or None if no adapter can sit in it."""
    cls = type(module)
    if cls not in _KIND_OF:
        _KIND_OF[cls] = next((KINDS[name] for name in ancestry(cls) if name in KINDS), None)
    return _KIND_OF[cls]


def is_transposed(module: nn.Module) -> bool:
    """True if `module` stores its weight as (in, out)."""
    return _TRANSPOSED in ancestry(type(module))


def unreached_children(module: nn.Module) -> tuple[str, ...]:
    """Paths of descendants whose `forward` this module may never call."""
    return next((_UNREACHED[name] for name in ancestry(type(module)) if name in _UNREACHED), ())


@dataclass(frozen=True)
class Site:
    """One place for an adapter: a module, and what an adapter needs to know to be built for it.

    Attributes:
        path: the module's path in the model.
        module: the host.
        kind: see the module's docstring; `"module"` for adapters that take any module.
        dtype, device: of the adapter's parameters.
        bank: the module that the adapters of one name share (`PeftConfig.bank`), if they do.
    """

    path: str
    module: nn.Module
    kind: str
    dtype: torch.dtype
    device: torch.device
    bank: Any = None

    @property
    def in_features(self) -> int:
        """Columns of the canonical weight (embedding: number of rows of the table)."""
        m: Any = self.module
        if self.kind == "linear":
            return int(m.nx if is_transposed(m) else m.in_features if hasattr(m, "in_features") else m.weight.shape[-1])
        return int(m.num_embeddings if self.kind == "embedding" else m.in_channels)

    @property
    def out_features(self) -> int:
        """Rows of the canonical weight (embedding: its dimension)."""
        m: Any = self.module
        if self.kind == "linear":
            return int(
                m.nf if is_transposed(m) else m.out_features if hasattr(m, "out_features") else m.weight.shape[0]
            )
        return int(m.embedding_dim if self.kind == "embedding" else m.out_channels)


def end_of(model: Any, which: str) -> nn.Module | None:
    """The model's `"input"` embedding or `"output"` head, as transformers' models know them; None if it has none."""
    get = getattr(model, f"get_{which}_embeddings", None)
    try:
        found = get() if get is not None else None
    except NotImplementedError:  # of models that have none, or several
        return None
    return found if isinstance(found, nn.Module) else None


def is_encoder_decoder(model: Any) -> bool:
    """Whether `model`, or the model that it is a part of, has an encoder and a decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def offloaded_to(module: nn.Module) -> torch.device | None:
    """Where `module` computes if accelerate keeps weights of it elsewhere: between calls they are on meta."""
    for m in module.modules():
        hook: Any = m.__dict__.get("_hf_hook")
        for h in getattr(hook, "hooks", (hook,)):
            if getattr(h, "offload", False):
                return torch.device("cpu" if h.execution_device is None else h.execution_device)
    return None


def site(path: str, module: nn.Module, kind: str, keep_base_dtype: bool = False, on_meta: bool = False) -> Site:
    """The site of `module`: parameters where it computes; float32 for 16-bit and quantised bases, else its dtype.

    `keep_base_dtype` keeps 16-bit bases' dtype for the adapter; `on_meta` makes parameters without memory.
    """
    tensor: Tensor | None = module._parameters.get("weight")
    if tensor is None:
        tensor = next(itertools.chain(module.parameters(), module.buffers()), torch.empty(0))
    dtype = tensor.dtype
    if not dtype.is_floating_point or dtype.itemsize < 2 or (dtype.itemsize == 2 and not keep_base_dtype):
        dtype = torch.float32
    device = tensor.device
    if on_meta:
        device = torch.device("meta")
    elif device.type == "meta":
        device = offloaded_to(module) or device
    return Site(path, module, kind, dtype, device)


def canonical(host: nn.Module, weight: Tensor) -> Tensor:
    """`weight`, stored as `host` stores it, in the canonical layout (and back: it is its own inverse)."""
    return weight.T if is_transposed(host) else weight


def output_scale(host: Any) -> Any:
    """What an embedding multiplies its rows by (Bart's, Gemma's scaled embeddings); 1 for plain ones."""
    return 1.0 if original_forward(host) is nn.Embedding.forward else getattr(host, "embed_scale", 1.0)


def original_forward(host: nn.Module) -> Any:
    """The `forward` function of the host's own class."""
    return original_class(host).forward


def call_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the arguments of the module's own forward."""
    return tuple(inspect.signature(original_forward(module)).parameters)[1:]


def product(host: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The host's operation with another canonical `weight` and `bias`: the specification that adapters are held to.

    linear: x W^T + b; embedding: scale * W[x]; convNd: W * x + b with the host's stride, padding, dilation, groups.
    """
    kind = kind_of(host)
    if kind == "linear":
        return F.linear(x, weight, bias)
    if kind == "embedding":
        rows: Tensor = F.embedding(x, weight, host.padding_idx) * output_scale(host)
        return rows
    convolved: Tensor = host._conv_forward(x, weight, bias)
    return convolved


# each gives the stored weight of the layers that it knows as dense numbers; `inlay.quant` adds one
READERS: list[Callable[[nn.Module], Tensor | None]] = []


def weight_of(host: Any) -> Tensor:
    """The host's weight as numbers, canonical: what it stores, or what that stands for if it is quantised."""
    for read in READERS:
        w = read(host)
        if w is not None:
            return canonical(host, w)
    return canonical(host, host.weight)


UNMERGED_ATTRIBUTES = "_unmerged_attributes"  # likewise, of a quantised one: the attributes that merging changed
UNMERGED = "_unmerged_parameters"  # attribute of a merged host: the parameters it had before (`inlay.merge.weights`)


def unmerged_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The module's own parameters as they are without any merged adapter."""
    found: dict[str, nn.Parameter | None] = module.__dict__.get(UNMERGED, module._parameters)
    return found


def numel(parameter: Any) -> int:
    """How many numbers a parameter stands for: packed (4-bit) and partitioned (ZeRO-3) ones count in full."""
    quant_state = getattr(parameter, "quant_state", None)
    if quant_state is not None and getattr(quant_state, "shape", None) is not None:
        return math.prod(quant_state.shape)
    return int(getattr(parameter, "ds_numel", 0) or parameter.numel())
