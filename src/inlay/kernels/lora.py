"""LoRA on a linear layer, with its backward written out.

Autograd on the plain formula keeps, for float32 adapters on a 16-bit base, a float32 copy of the input per layer and
moves several output-sized temporaries. These functions keep the input in its own dtype (shared with whoever else keeps
it) and the rank-r product, multiply in the base's dtype, and accumulate the low-rank part inside a matrix product:

    forward    h = x A^T             y = s h B^T + bias;  y += x W^T
    backward   dh = s dy B           dA = dh^T x    dB = s dy^T h    dx = dh A;  dx += dy W

The oracle is `reference.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from inlay.kernels import reference


def is_traced() -> bool:
    """True where operators are looked into: by the compiler, which fuses them as well, or by `torch.func`."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    r"""y = x W^T + bias + s (x A^T) B^T on a frozen W, in x's dtype.

    x: (..., in)   W: (out, in), of x's dtype   bias: (out,)   A: (r, in)   B: (out, r)   s: scale
    """
    if is_traced():
        return reference.lora_linear(x, weight, bias, a, b, scale)
    return _LoraLinear.apply(x, weight, bias, a, b, scale)  # type: ignore[no-any-return, no-untyped-call]


def lora_add(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    r"""y + s (x A^T) B^T in y's dtype, for a y that any base product made.

    y: (..., out)   x: (..., in)   A: (r, in)   B: (out, r)   s: scale

    Under `torch.compile` and `torch.func` the plain formula is traced instead.
    """
    if is_traced():
        return reference.lora_add(y, x, a, b, scale)
    return _LoraAdd.apply(y, x, a, b, scale)  # type: ignore[no-any-return, no-untyped-call]


def _rows(t: Tensor) -> Tensor:
    return t.reshape(-1, t.shape[-1])


def _grad_product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left^T right as a gradient of `dtype`; on CUDA 16-bit inputs give float32 without rounding in between."""
    if left.is_cuda and dtype == torch.float32 and left.dtype != dtype:
        return torch.mm(left.t(), right, out_dtype=dtype)
    return (left.t() @ right).to(dtype)


def _low_rank_grads(
    dy: Tensor, x: Tensor, h: Tensor, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dh, dA, dB for rows dy, x, h."""
    dh = (dy @ b.to(dy.dtype)).mul_(scale)
    return dh, _grad_product(dh, x, a.dtype), _grad_product(dy, h, b.dtype).mul_(scale)


class _LoraLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows, low = _rows(x), b.to(x.dtype).t()
        h = rows @ a.to(x.dtype).t()
        y = (h @ low).mul_(scale) if bias is None else torch.addmm(bias, h, low, alpha=scale)
        y.addmm_(rows, weight.t())
        ctx.save_for_backward(x, h, weight, a, b)
        ctx.scale = scale
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, h, weight, a, b = ctx.saved_tensors
        rows = _rows(dy)
        dh, da, db = _low_rank_grads(rows, _rows(x), h, a, b, ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dh @ a.to(dh.dtype)).addmm_(rows, weight).view_as(x)
        dbias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return dx, None, dbias, da, db, None


class _LoraAdd(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):
            h = _rows(x).to(y.dtype) @ a.to(y.dtype).t()
            out = torch.addmm(_rows(y), h, b.to(y.dtype).t(), alpha=scale)
        ctx.save_for_backward(x, h, a, b)
        ctx.scale = scale
        return out.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, h, a, b = ctx.saved_tensors
        dh, da, db = _low_rank_grads(_rows(dy), _rows(x).to(dy.dtype), h, a, b, ctx.scale)
        dx = (dh @ a.to(dh.dtype)).to(x.dtype).view_as(x) if ctx.needs_input_grad[1] else None
        return dy if ctx.needs_input_grad[0] else None, dx, da, db, None
