"""LoRA on linear layers, against the paper's formula written out in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from inlay import LoraConfig, get_peft_model
from inlay.errors import ConfigError
from inlay.methods.lora import LoraLinear
from inlay.methods.lora import linear as module
from tests.tiny import close, scramble


def conv1d(nx: int, nf: int) -> Any:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(nf, nx)


class One(nn.Module):
    """A model that is one layer."""

    def __init__(self, fc: nn.Module) -> None:
        super().__init__()
        self.fc = fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)  # type: ignore[no-any-return]


def view_of(fc: nn.Module | None = None, random: bool = True, **fields: Any) -> Any:
    base = One(fc if fc is not None else nn.Linear(8, 6)).eval()
    dtype = next(base.parameters()).dtype
    view = get_peft_model(base.to(dtype), LoraConfig(**{"target_modules": ["fc"], "r": 3, **fields}))
    return scramble(view, 0.5) if random else view


def formula(x: Tensor, view: Any, scale: float) -> Tensor:
    """y = x (W + s B A)^T + b in float64, from the base's and the adapter's parameters."""
    fc, adapter = view.unload().fc, view.fc.adapters["default"]
    weight = fc.weight.double().T if type(fc).__name__ == "Conv1D" else fc.weight.double()
    y = x.double() @ (weight + scale * adapter.B.double() @ adapter.A.double()).T
    bias = adapter.b if adapter.b is not None else fc.bias
    return (y if bias is None else y + bias.double()).detach()


@pytest.mark.parametrize("fc", [lambda: nn.Linear(8, 6), lambda: nn.Linear(8, 6, bias=False), lambda: conv1d(8, 6)])
@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 8), (2, 1, 3, 8), (0, 8)])
def test_the_formula(fc: Any, shape: tuple[int, ...]) -> None:
    view = view_of(fc().double(), r=4, lora_alpha=6)
    x = torch.randn(shape, dtype=torch.float64)
    close(view(x), formula(x, view, 6 / 4))


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"r": 8, "lora_alpha": 8}, 1.0),
        ({"r": 4, "lora_alpha": 32}, 8.0),
        ({"r": 4, "lora_alpha": 6, "use_rslora": True}, 3.0),
        ({"r": 4, "lora_alpha": 6, "rank_pattern": {"fc": 2}}, 3.0),
        ({"r": 4, "lora_alpha": 6, "alpha_pattern": {"f.": 2}}, 0.5),
        ({"r": 4, "lora_alpha": 6, "alpha_pattern": {"fc": 8}, "rank_pattern": {"fc": 16}, "use_rslora": True}, 2.0),
        ({"r": 4, "lora_alpha": -4}, -1.0),
        ({"r": 1, "lora_alpha": 0.5}, 0.5),
    ],
)
def test_the_scale(fields: dict[str, Any], scale: float) -> None:
    view = view_of(nn.Linear(8, 6).double(), **fields)
    adapter = view.fc.adapters["default"]
    assert adapter.scale == scale
    assert adapter.A.shape == (adapter.r, 8) and adapter.B.shape == (6, adapter.r)
    x = torch.randn(5, 8, dtype=torch.float64)
    close(view(x), formula(x, view, scale))


@pytest.mark.parametrize(
    ("dtype", "keep", "tolerance"),
    [
        (torch.float32, False, 1e-5),
        (torch.bfloat16, False, 0.03),
        (torch.bfloat16, True, 0.03),
        (torch.float16, False, 4e-3),
    ],
)
def test_other_dtypes_are_near_the_formula(dtype: torch.dtype, keep: bool, tolerance: float) -> None:
    base = One(nn.Linear(8, 6)).to(dtype)
    view = get_peft_model(base, LoraConfig(target_modules=["fc"], r=3), autocast_adapter_dtype=not keep)
    scramble(view, 0.5)
    assert view.fc.adapters["default"].A.dtype is (dtype if keep else torch.float32)
    x = torch.randn(5, 8).to(dtype)
    y = view(x)
    assert y.dtype is dtype
    exact = formula(x, view, 8 / 3)
    torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))


@pytest.mark.parametrize("with_dropout", [False, True], ids=["", "dropout"])
def test_a_16_bit_input_is_never_widened(with_dropout: bool) -> None:
    """What backward keeps of the input is 16-bit; float32 adapters are cast to it, not it to them."""
    view = view_of(nn.Linear(64, 6).bfloat16(), lora_dropout=0.5 if with_dropout else 0.0).train()
    x = torch.randn(10, 64).bfloat16().requires_grad_(True)
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        y = view(x)
    wide = [tuple(t.shape) for t in saved if t.dtype is torch.float32]
    adapter = view.fc.adapters["default"]
    assert set(wide) <= {tuple(adapter.A.shape), tuple(adapter.B.shape)}
    assert any(t.shape == x.shape and t.dtype is torch.bfloat16 for t in saved)
    y.float().sum().backward()
    assert adapter.A.grad.dtype is adapter.B.grad.dtype is torch.float32


def test_the_fused_path_is_taken_where_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nowhere else: not over other adapters, in training with dropout, under autocast, on another dtype."""
    calls: list[str] = []
    for name in ("lora_linear", "lora_add"):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])

    def path(view: Any, x: Tensor) -> list[str]:
        calls.clear()
        view(x)
        return list(calls)

    x = torch.randn(2, 8)
    view = view_of(lora_dropout=0.1)
    assert path(view, x) == ["lora_linear"]
    assert path(view, x[:0]) == ["lora_add"]
    view.train()
    assert path(view, x) == ["lora_add"]
    view.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert path(view, x) == ["lora_add"]
    view.add_adapter("b", LoraConfig(target_modules=["fc"]))
    view.set_adapter(["default", "b"])
    assert path(view, x) == ["lora_linear", "lora_add"]
    assert path(view_of(conv1d(8, 6)), x) == ["lora_add"]

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert path(view_of(Doubled(8, 6)), x) == ["lora_add"]
    trainable = view_of()
    trainable.fc.weight.requires_grad_(True)
    assert path(trainable, x) == ["lora_add"]
    trainable(x).sum().backward()
    assert trainable.fc.weight.grad is not None


# ---------------------------------------------------------------------- initial values


def fresh(r: int = 16, size: int = 256, **fields: Any) -> tuple[Tensor, Tensor, Any]:
    view = view_of(nn.Linear(size, size), random=False, r=r, **fields)
    adapter = view.fc.adapters["default"]
    return adapter.A.detach(), adapter.B.detach(), view


def test_the_default_is_kaiming_uniform_and_zero() -> None:
    a, b, view = fresh()
    bound = 1 / math.sqrt(256)  # gain sqrt(2 / (1 + 5)) times sqrt(3 / in)
    assert not b.any()
    assert 0.98 * bound < float(a.abs().max()) <= bound
    assert abs(float(a.std()) - bound / math.sqrt(3)) < 0.03 * bound
    assert abs(float(a.mean())) < 0.03 * bound
    x = torch.randn(4, 256)
    assert torch.equal(view(x), view.unload()(x)) or torch.allclose(view(x), view.unload()(x), atol=1e-6)


def test_gaussian() -> None:
    a, b, _ = fresh(init_lora_weights="gaussian")
    assert not b.any()
    assert abs(float(a.std()) - 1 / 16) < 0.03 / 16 and abs(float(a.mean())) < 0.03 / 16
    assert float(a.abs().max()) > 3 / 16, "normal, not uniform"


def test_false_leaves_both_random() -> None:
    a, b, view = fresh(init_lora_weights=False)
    assert a.any() and b.any()
    assert abs(float(b.std()) - 1 / math.sqrt(3 * 16)) < 0.05 / math.sqrt(16)
    x = torch.randn(4, 256)
    assert not torch.allclose(view(x), view.unload()(x), atol=1e-3)


@pytest.mark.parametrize("r", [2, 8, 16])
def test_orthogonal_halves(r: int) -> None:
    a, b, view = fresh(r=r, init_lora_weights="orthogonal")
    assert a.any() and b.any()
    assert float((b.double() @ a.double()).abs().max()) < 1e-6
    assert [int(torch.linalg.matrix_rank(t.double(), rtol=1e-4)) for t in (a, b)] == [r // 2, r // 2]
    assert abs(float(a.std()) * math.sqrt(2) - 0.1) < 0.03
    x = torch.randn(4, 256)
    torch.testing.assert_close(view(x), view.unload()(x), atol=1e-5, rtol=1e-5)


def test_orthogonal_needs_even_ranks_everywhere() -> None:
    for fields in ({"r": 3}, {"r": 4, "rank_pattern": {"fc": 5}}):
        with pytest.raises(ConfigError, match=r"r=[35] is not allowed: expected an even rank"):
            view_of(init_lora_weights="orthogonal", **fields)


def test_adapters_differ_and_seeds_repeat() -> None:
    torch.manual_seed(3)
    first = fresh()[0]
    assert not torch.equal(fresh()[0], first)
    torch.manual_seed(3)
    assert torch.equal(fresh()[0], first)


# ---------------------------------------------------------------------- dropout and bias


def test_dropout_is_on_the_adapters_input_in_training_only() -> None:
    view = view_of(nn.Linear(64, 6).double(), lora_dropout=0.25)
    base, x = view.unload(), torch.eye(64, dtype=torch.float64)
    exact = formula(x, view, 8 / 3)
    close(view(x), exact)
    view.train()
    ratio = (view(x) - base(x)) / (exact - base(x))  # a row's only input is dropped, or scaled by 1 / (1 - p)
    dropped = ratio[:, 0].abs() < 1e-6
    close(ratio, torch.where(dropped, 0.0, 4 / 3).double()[:, None].expand(64, 6), 1e-6, 1e-6)
    assert 4 <= int(dropped.sum()) <= 30


def test_dropout_of_everything_leaves_the_base() -> None:
    view = view_of(lora_dropout=1.0).train()
    x = torch.randn(4, 8)
    close(view(x), view.unload()(x), 1e-6, 1e-6)


def test_each_call_and_each_adapter_drops_anew() -> None:
    view = view_of(lora_dropout=0.5).train()
    x = torch.randn(4, 8)
    assert not torch.equal(view(x), view(x))
    torch.manual_seed(5)
    y = view(x)
    torch.manual_seed(5)
    assert torch.equal(view(x), y)


@pytest.mark.parametrize("fc", [lambda: nn.Linear(8, 6), lambda: conv1d(8, 6)])
def test_the_bias_of_a_target_is_the_adapters_own(fc: Any) -> None:
    layer = fc().double()
    view = view_of(layer, bias="lora_only")
    adapter = view.fc.adapters["default"]
    assert not torch.equal(adapter.b, layer.bias)
    x = torch.randn(4, 8, dtype=torch.float64)
    close(view(x), formula(x, view, 8 / 3))
    (view(x) * 2).sum().backward()
    close(adapter.b.grad, torch.full((6,), 8.0, dtype=torch.float64))
    assert layer.bias.grad is None
    assert set(adapter.tensors()) == {"lora_A.weight", "lora_B.weight", "base_layer.bias"}
    merged = view.merge_and_unload()
    assert torch.equal(merged.fc.bias, adapter.b) and not torch.equal(layer.bias, adapter.b)


def test_a_layer_without_bias_has_none_to_train() -> None:
    view = view_of(nn.Linear(8, 6, bias=False), bias="lora_only")
    assert view.fc.adapters["default"].b is None
    assert set(view.fc.adapters["default"].tensors()) == {"lora_A.weight", "lora_B.weight"}


def test_a_bias_starts_as_the_bases_and_in_its_dtype() -> None:
    view = view_of(nn.Linear(8, 6).bfloat16(), random=False, bias="all")
    adapter = view.fc.adapters["default"]
    assert torch.equal(adapter.b, view.unload().fc.bias) and adapter.b.data_ptr() != view.unload().fc.bias.data_ptr()
    x = torch.randn(4, 8).bfloat16()
    torch.testing.assert_close(view(x), view.unload()(x))


# ---------------------------------------------------------------------- merging


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keep", [False, True], ids=["float32 adapters", "16-bit adapters"])
def test_merging_into_16_bits_rounds_once(dtype: torch.dtype, keep: bool) -> None:
    base = One(nn.Linear(64, 48)).to(dtype)
    view = get_peft_model(base, LoraConfig(target_modules=["fc"], r=4, lora_alpha=6), autocast_adapter_dtype=not keep)
    scramble(view, 0.1)
    adapter = view.fc.adapters["default"]
    exact = base.fc.weight.double() + 1.5 * adapter.B.double() @ adapter.A.double()
    merged = view.merge_and_unload().fc.weight
    assert merged.dtype is dtype
    wrong = merged != exact.to(dtype)
    assert float(wrong.double().mean()) < 0.002, "but for ties that float32's own rounding decides"
    torch.testing.assert_close(merged, exact.to(dtype))


def test_weight_takes_any_dtype() -> None:
    adapter: LoraLinear = view_of().fc.adapters["default"]
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        w = torch.randn(6, 8).to(dtype)
        exact = w.double() + adapter.scale * adapter.B.double() @ adapter.A.double()
        got = adapter.weight(w)
        assert got.dtype is dtype
        torch.testing.assert_close(got.double(), exact, rtol=0.02, atol=0.02)


def test_trainable_numbers_are_r_times_in_plus_out() -> None:
    view = view_of(r=5)
    assert view.get_nb_trainable_parameters()[0] == 5 * (8 + 6)
