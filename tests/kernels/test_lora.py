"""The LoRA kernels against `reference.py`: values, gradients, dtypes, shapes, and what is kept for backward."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from inlay.kernels import lora, reference
from inlay.kernels.lora import lora_add, lora_linear

IN, OUT, R, SCALE = 7, 5, 3, 1.75

SHAPES: dict[str, Callable[..., Tensor]] = {
    "1d": lambda **kw: torch.randn(IN, **kw),
    "2d": lambda **kw: torch.randn(4, IN, **kw),
    "3d": lambda **kw: torch.randn(2, 3, IN, **kw),
    "4d": lambda **kw: torch.randn(2, 1, 3, IN, **kw),
    "one row": lambda **kw: torch.randn(1, IN, **kw),
    "empty": lambda **kw: torch.randn(0, IN, **kw),
    "empty inside": lambda **kw: torch.randn(2, 0, IN, **kw),
    "transposed": lambda **kw: torch.randn(IN, 3, 2, **kw).transpose(0, 2),
    "strided": lambda **kw: torch.randn(4, 2 * IN, **kw)[:, ::2],
    "expanded": lambda **kw: torch.randn(1, IN, **kw).expand(3, IN),
}


def operands(x: Tensor, adapters: torch.dtype | None = None, bias: bool = True) -> dict[str, Any]:
    """The other arguments for `x`, in its dtype, with adapters of another one."""
    kind = adapters or x.dtype
    return {
        "weight": torch.randn(OUT, IN, dtype=x.dtype),
        "bias": torch.randn(OUT, dtype=x.dtype) if bias else None,
        "a": torch.randn(R, IN, dtype=kind, requires_grad=True),
        "b": torch.randn(OUT, R, dtype=kind, requires_grad=True),
        "scale": SCALE,
    }


def oracle(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The formula in float64, as one product with W + s B A."""
    w = weight.double() + scale * b.double() @ a.double()
    y = torch.einsum("...i,oi->...o", x.double(), w)
    return y if bias is None else y + bias.double()


def gradients(f: Any, x: Tensor, other: dict[str, Any], probe: Tensor) -> dict[str, Tensor]:
    named = {"x": x, **other}
    wanted = {k: v for k, v in named.items() if isinstance(v, Tensor) and v.requires_grad}
    y = f(x, **other)
    found = torch.autograd.grad(y, list(wanted.values()), probe.to(y.dtype).expand(y.shape))
    return dict(zip(wanted, found, strict=True))


# ---------------------------------------------------------------------- the oracle itself


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_is_the_formula(shape: str, bias: bool) -> None:
    x = SHAPES[shape](dtype=torch.float64)
    other = operands(x, bias=bias)
    torch.testing.assert_close(reference.lora_linear(x, **other), oracle(x, **other))
    y = torch.randn(*x.shape[:-1], OUT, dtype=torch.float64)
    a, b = other["a"], other["b"]
    torch.testing.assert_close(reference.lora_add(y, x, a, b, SCALE), y + SCALE * x @ a.T @ b.T)


# ---------------------------------------------------------------------- float64: values and gradients


@pytest.mark.parametrize("with_grad", [True, False], ids=["x with grad", "x without"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_in_float64(shape: str, bias: bool, with_grad: bool) -> None:
    x = SHAPES[shape](dtype=torch.float64).requires_grad_(with_grad)
    other = operands(x, bias=bias)
    torch.testing.assert_close(lora_linear(x, **other), oracle(x, **other))
    probe = torch.randn(*x.shape[:-1], OUT, dtype=torch.float64)
    got, want = gradients(lora_linear, x, other, probe), gradients(reference.lora_linear, x, other, probe)
    assert got.keys() == want.keys() and ("x" in got) == with_grad
    for name in want:
        torch.testing.assert_close(got[name], want[name], msg=lambda m, name=name: f"{name}: {m}")
        assert got[name].shape == want[name].shape


@pytest.mark.parametrize("y_grad", [True, False], ids=["y with grad", ""])
@pytest.mark.parametrize("x_grad", [True, False], ids=["x with grad", ""])
@pytest.mark.parametrize("shape", SHAPES)
def test_add_in_float64(shape: str, x_grad: bool, y_grad: bool) -> None:
    x = SHAPES[shape](dtype=torch.float64).requires_grad_(x_grad)
    y = torch.randn(*x.shape[:-1], OUT, dtype=torch.float64, requires_grad=y_grad)
    other = operands(x)
    arguments = {"x": x, "a": other["a"], "b": other["b"], "scale": SCALE}
    before = y.detach().clone()
    torch.testing.assert_close(lora_add(y, **arguments), y + SCALE * x @ other["a"].T @ other["b"].T)
    assert torch.equal(y, before), "y is not changed in place"
    probe = torch.randn(y.shape, dtype=torch.float64)
    got, want = gradients(lora_add, y, arguments, probe), gradients(reference.lora_add, y, arguments, probe)
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name])


def test_gradcheck() -> None:
    x = torch.randn(2, 3, IN, dtype=torch.float64, requires_grad=True)
    other = operands(x)
    other["bias"].requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda x, bias, a, b: lora_linear(x, other["weight"], bias, a, b, SCALE),
        (x, other["bias"], other["a"], other["b"]),
    )
    y = torch.randn(2, 3, OUT, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y, x, a, b: lora_add(y, x, a, b, SCALE), (y, x, other["a"], other["b"]))


@pytest.mark.parametrize("layout", ["expanded", "transposed", "strided"])
def test_gradients_of_any_layout_come_in(layout: str) -> None:
    """`sum().backward()` hands in an expanded gradient, other layers transposed ones."""
    x = torch.randn(4, 6, IN, dtype=torch.float64, requires_grad=True)
    other = operands(x)
    probe = {
        "expanded": torch.ones((), dtype=torch.float64).expand(4, 6, OUT),
        "transposed": torch.randn(OUT, 6, 4, dtype=torch.float64).permute(2, 1, 0),
        "strided": torch.randn(4, 6, 2 * OUT, dtype=torch.float64)[..., ::2],
    }[layout]
    y = torch.randn(4, 6, OUT, dtype=torch.float64, requires_grad=True)
    arguments = {"x": x, "a": other["a"], "b": other["b"], "scale": SCALE}
    for fast, plain, first, rest in (
        (lora_linear, reference.lora_linear, x, other),
        (lora_add, reference.lora_add, y, arguments),
    ):
        got, want = gradients(fast, first, rest, probe), gradients(plain, first, rest, probe)
        for name in want:
            torch.testing.assert_close(got[name], want[name])


# ---------------------------------------------------------------------- other dtypes


@pytest.mark.parametrize(
    ("dtype", "adapters", "tolerance"),
    [
        (torch.float32, torch.float32, 1e-5),
        (torch.float64, torch.float32, 1e-6),
        (torch.bfloat16, torch.float32, 0.04),
        (torch.bfloat16, torch.bfloat16, 0.04),
        (torch.float16, torch.float32, 5e-3),
        (torch.float16, torch.float16, 5e-3),
    ],
)
@pytest.mark.parametrize("shape", ["1d", "3d", "transposed"])
def test_in_other_dtypes(shape: str, dtype: torch.dtype, adapters: torch.dtype, tolerance: float) -> None:
    """Results are in the base's dtype, gradients in each parameter's, and as near to float64 as that dtype is."""
    x = SHAPES[shape](dtype=torch.float32).to(dtype).requires_grad_(True)
    other = operands(x, adapters)
    y = lora_linear(x, **other)
    assert y.dtype is dtype
    exact = oracle(x, **other).detach()
    torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))
    probe = torch.randn(y.shape)
    wide = {k: v.detach().double() if isinstance(v, Tensor) else v for k, v in other.items()}
    for name in ("a", "b"):
        wide[name].requires_grad_(True)
    for f, first, rest in (
        (lora_linear, x, other),
        (lambda x, weight, bias, a, b, scale: lora_add(torch.zeros(y.shape, dtype=dtype), x, a, b, scale), x, other),
    ):
        got = gradients(f, first, rest, probe)
        kept = wide if f is lora_linear else {**wide, "weight": torch.zeros(OUT, IN).double(), "bias": None}
        want = gradients(reference.lora_linear, x.detach().double().requires_grad_(True), kept, probe.to(dtype))
        assert {n: g.dtype for n, g in got.items()} == {"x": dtype, "a": adapters, "b": adapters}
        for name, exact in want.items():
            size = float(exact.abs().max())
            torch.testing.assert_close(got[name].double(), exact, rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize("y_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_add_when_the_base_product_changed_the_dtype(x_dtype: torch.dtype, y_dtype: torch.dtype) -> None:
    """Quantised layers and autocast give a y of another dtype than x."""
    x = torch.randn(2, IN).to(x_dtype).requires_grad_(True)
    y = torch.randn(2, OUT).to(y_dtype).requires_grad_(True)
    a, b = torch.randn(R, IN, requires_grad=True), torch.randn(OUT, R, requires_grad=True)
    out = lora_add(y, x, a, b, SCALE)
    assert out.dtype is y_dtype
    exact = y.double() + SCALE * x.double() @ a.double().T @ b.double().T
    torch.testing.assert_close(out.double(), exact, rtol=0.05, atol=0.1)
    out.float().sum().backward()
    assert [t.grad.dtype for t in (x, y, a, b)] == [x_dtype, y_dtype, torch.float32, torch.float32]  # type: ignore[union-attr]
    torch.testing.assert_close(y.grad, torch.ones_like(y))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_change_what_is_computed(dtype: torch.dtype) -> None:
    """The caller has made y in autocast's dtype; the kernel works in y's dtype and leaves autocast out of it."""
    x = torch.randn(3, IN, requires_grad=True)
    a, b = torch.randn(R, IN, requires_grad=True), torch.randn(OUT, R, requires_grad=True)
    for y in (torch.randn(3, OUT), torch.randn(3, OUT).to(dtype)):
        expected = lora_add(y, x, a, b, SCALE)
        want = torch.autograd.grad(expected.float().sum(), (x, a, b))
        with torch.autocast("cpu", dtype=dtype):
            got = lora_add(y, x, a, b, SCALE)
            inside = torch.autograd.grad(got.float().sum(), (x, a, b), retain_graph=True)
        outside = torch.autograd.grad(got.float().sum(), (x, a, b))
        assert got.dtype is y.dtype and torch.equal(got, expected)
        for grads in (outside, inside):
            for g, w in zip(grads, want, strict=True):
                torch.testing.assert_close(g, w, rtol=0.02, atol=0.02)


# ---------------------------------------------------------------------- what is kept, what is not computed


def kept(f: Callable[[], Tensor]) -> list[Tensor]:
    """The tensors that `f` saves for backward."""
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        f()
    return saved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_input_and_the_rank_r_product_are_kept(dtype: torch.dtype) -> None:
    """Beside the parameters: x itself (shared with whoever else keeps it), no float32 copy of it, and x A^T."""
    x = torch.randn(6, 4, IN).to(dtype).requires_grad_(True)
    other = operands(x, torch.float32)
    parameters = {t.data_ptr() for t in other.values() if isinstance(t, Tensor)}
    y = torch.randn(6, 4, OUT).to(dtype)
    for f in (
        lambda: lora_linear(x, **other),
        lambda: lora_add(y, x, other["a"], other["b"], SCALE),
    ):
        saved = [t for t in kept(f) if t.data_ptr() not in parameters]
        assert sorted((tuple(t.shape), t.dtype) for t in saved) == sorted([((6, 4, IN), dtype), ((24, R), dtype)])
        assert any(t.data_ptr() == x.data_ptr() for t in saved)


def test_an_input_without_grad_gets_none() -> None:
    x = torch.randn(3, IN, dtype=torch.float64)
    other = operands(x)
    lora_linear(x, **other).sum().backward()
    assert x.grad is None and other["weight"].grad is None and other["a"].grad is not None
    y = torch.randn(3, OUT, dtype=torch.float64)
    lora_add(y, x, other["a"], other["b"], SCALE).sum().backward()
    assert x.grad is None and y.grad is None


def test_frozen_adapters_pass_the_gradient_on() -> None:
    x = torch.randn(3, IN, dtype=torch.float64, requires_grad=True)
    other = operands(x)
    other["a"].requires_grad_(False)
    other["b"].requires_grad_(False)
    got = gradients(lora_linear, x, other, torch.ones(3, OUT))
    assert set(got) == {"x"}
    torch.testing.assert_close(got["x"], gradients(reference.lora_linear, x, other, torch.ones(3, OUT))["x"])


def test_nothing_is_kept_without_grad_mode() -> None:
    x = torch.randn(3, IN)
    other = operands(x)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = lora_linear(x, **other)
            assert not y.requires_grad
            torch.testing.assert_close(y.double(), oracle(x, **other), rtol=1e-4, atol=1e-4)


def test_the_bias_gets_its_gradient() -> None:
    x = torch.randn(2, 3, IN, dtype=torch.float64)
    other = operands(x)
    other["bias"].requires_grad_(True)
    probe = torch.randn(2, 3, OUT, dtype=torch.float64)
    torch.testing.assert_close(gradients(lora_linear, x, other, probe)["bias"], probe.sum((0, 1)))


def test_second_derivatives_are_refused_and_not_wrong() -> None:
    x = torch.randn(3, IN, dtype=torch.float64, requires_grad=True)
    other = operands(x)
    (g,) = torch.autograd.grad(lora_linear(x, **other).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_under_torch_func_the_plain_formula_is_traced() -> None:
    """Per-sample gradients, for instance."""
    x = torch.randn(3, IN, dtype=torch.float64)
    other = operands(x)
    y = torch.randn(3, OUT, dtype=torch.float64)

    def one(a: Tensor, row: Tensor) -> Tensor:
        return lora_linear(row, other["weight"], other["bias"], a, other["b"], SCALE).square().sum()

    def two(a: Tensor, row: Tensor, base: Tensor) -> Tensor:
        return lora_add(base, row, a, other["b"], SCALE).square().sum()

    each = torch.func.vmap(torch.func.grad(one), (None, 0))(other["a"].detach(), x)
    also = torch.func.vmap(torch.func.grad(two), (None, 0, 0))(other["a"].detach(), x, y)
    for i in range(3):
        torch.testing.assert_close(each[i], torch.autograd.grad(one(other["a"], x[i]), other["a"])[0])
        torch.testing.assert_close(also[i], torch.autograd.grad(two(other["a"], x[i], y[i]), other["a"])[0])


def test_under_compile_the_plain_formula_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, IN, dtype=torch.float64)
    y = torch.randn(3, OUT, dtype=torch.float64)
    a, b = torch.randn(R, IN, dtype=torch.float64), torch.randn(OUT, R, dtype=torch.float64)
    calls: list[int] = []
    plain = reference.lora_add
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(lora.reference, "lora_add", lambda *args: (calls.append(1), plain(*args))[1])
    torch.testing.assert_close(lora_add(y, x, a, b, SCALE), y + SCALE * x @ a.T @ b.T)
    assert calls == [1]


def test_the_table_of_shapes_is_what_it_says() -> None:
    made = {name: f(dtype=torch.float64) for name, f in SHAPES.items()}
    assert {t.dim() for t in made.values()} == {1, 2, 3, 4}
    assert [n for n, t in made.items() if not t.is_contiguous()] == ["transposed", "strided", "expanded"]
    assert len(list(itertools.filterfalse(lambda t: t.numel(), made.values()))) == 2
