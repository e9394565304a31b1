"""GPTQ's and AWQ's layers, packed by hand: neither library is installed, so this is their interface, not themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import LoraConfig, get_peft_model
from inlay.errors import StateError
from inlay.quant import dequantised, requantised, size
from inlay.status import count_parameters
from tests.tiny import close, scramble

ROWS, OUT, GROUP = 64, 32, 16


def packed_along(q: Tensor, bits: int, order: list[int]) -> Tensor:
    """(n, m) whole numbers -> (n, m bits / 32) int32: of each 32 / bits columns, in `order`, the first lowest."""
    groups = q.view(len(q), -1, 32 // bits)[..., order].to(torch.int64)
    words = sum(groups[..., i] << (bits * i) for i in range(32 // bits))
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)  # type: ignore[operator, arg-type]


class Packed(nn.Module):
    """What such layers have: the numbers, and a forward that dequantises."""

    def __init__(self, bits: int, format: int = 1, act_order: bool = False, bias: bool = False):
        super().__init__()
        self.bits, self.group_size, self.in_features, self.out_features = bits, GROUP, ROWS, OUT
        q = torch.randint(0, 2**bits, (ROWS, OUT))
        z = torch.randint(1, 2**bits, (ROWS // GROUP, OUT))
        scales = (torch.rand(ROWS // GROUP, OUT) * 0.02 + 0.01).half()
        g = torch.arange(ROWS) // GROUP
        self.g = g[torch.randperm(ROWS)] if act_order else g
        self.w = (scales.float()[self.g] * (q - z[self.g]).float()).T  # the oracle, before packing
        self.register_buffer("scales", scales)
        self.register_buffer("bias", torch.randn(OUT) if bias else None)
        self.pack(q, z, format)

    def pack(self, q: Tensor, z: Tensor, format: int) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.w.to(x.dtype), self.bias)  # type: ignore[arg-type]


class Gptq(Packed):
    def pack(self, q: Tensor, z: Tensor, format: int) -> None:
        straight = list(range(32 // self.bits))
        self.format = format
        self.register_buffer("qweight", packed_along(q.T.contiguous(), self.bits, straight).T.contiguous())
        self.register_buffer("qzeros", packed_along(z if format == 2 else z - 1, self.bits, straight))
        self.register_buffer("g_idx", self.g.int())

    def qzero_format(self) -> int:
        return self.format


class Awq(Packed):
    def pack(self, q: Tensor, z: Tensor, format: int) -> None:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        self.register_buffer("qweight", packed_along(q, self.bits, order))
        self.register_buffer("qzeros", packed_along(z, self.bits, order))


def named(cls: type, name: str) -> Any:
    """A subclass of `cls` whose ancestor has the qualified name that the library's class has."""
    module, _, leaf = name.rpartition(".")
    ancestor = type(leaf, (cls,), {"__module__": module, "__qualname__": leaf})
    return type("Kernel", (ancestor,), {})


GPTQ = named(Gptq, "gptqmodel.nn_modules.qlinear.BaseQuantLinear")
AWQS = [named(Awq, n) for n in ("gptqmodel.nn_modules.qlinear.AWQuantLinear", "awq.modules.linear.gemm.WQLinear_GEMM")]


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("format", [1, 2])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq(bits: int, format: int, act_order: bool) -> None:
    layer = GPTQ(bits, format, act_order)
    close(dequantised(layer), layer.w, 1e-6, 1e-6)
    assert size(layer) == ROWS * OUT


@pytest.mark.parametrize("cls", AWQS, ids=lambda c: c.__mro__[1].__qualname__)
def test_awq(cls: Any) -> None:
    layer = cls(4)
    close(dequantised(layer), layer.w, 1e-6, 1e-6)
    layer.group_size = -1
    assert not torch.equal(dequantised(layer), layer.w)


def model(cls: Any) -> Any:
    return nn.Sequential(cls(4, bias=True), nn.ReLU(), nn.Linear(OUT, 8))


@pytest.mark.parametrize("cls", [GPTQ, AWQS[1]], ids=["gptq", "awq"])
def test_adapters_train_and_merge_into_dense_layers_only(cls: Any) -> None:
    base, x = model(cls), torch.randn(5, ROWS)
    y0 = base(x)
    view = scramble(get_peft_model(base, LoraConfig(target_modules=["0"], r=2)))
    assert count_parameters(view) == (2 * (ROWS + OUT), 2 * (ROWS + OUT) + ROWS * OUT + OUT * 8 + 8)
    y = view(x)
    y.sum().backward()
    assert view[0].adapters["default"].A.grad.abs().sum() > 0 and not torch.equal(y, y0)
    for call in (view.merge_adapter, view.merge_and_unload):
        with pytest.raises(StateError, match=r"(GPTQ|AWQ) layer cannot hold other numbers.*dequantize=True"):
            call()
    assert torch.equal(view(x), y) and torch.equal(base(x), y0)
    dense = view.merge_and_unload(dequantize=True)
    assert type(dense[0]) is nn.Linear and dense[0].bias is not None
    close(dense(x), y, 1e-5, 1e-5)
    assert torch.equal(base(x), y0) and type(base[0]) is cls


def test_a_layer_whose_kernel_rearranged_it_is_refused() -> None:
    layer = GPTQ(4)
    layer.qweight = layer.qweight.T.contiguous()
    with pytest.raises(StateError, match=r"The weight of this Kernel cannot be read: expected 2 or 4 or 8 bits.*torch"):
        dequantised(layer)
    layer = GPTQ(4)
    layer.bits = 3
    with pytest.raises(StateError, match="it has 3 bits"):
        dequantised(layer)
    with pytest.raises(StateError, match="A GPTQ layer cannot hold other numbers"):
        requantised(layer, layer.w)
