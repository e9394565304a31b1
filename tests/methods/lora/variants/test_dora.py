"""DoRA against its formula written out in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from inlay import LoraConfig, get_peft_model
from inlay.errors import ConfigError, StateError
from inlay.methods.lora.variants.dora import row_norms
from tests.tiny import close, scramble


def view_of(host: nn.Module, random: bool = True, **fields: Any) -> Any:
    base = nn.Sequential(host).eval()
    view = get_peft_model(base, LoraConfig(**{"target_modules": ["0"], "r": 4, "use_dora": True, **fields}))
    return scramble(view, 0.5) if random else view


def adapter_of(view: Any) -> Any:
    return view[0].adapters["default"]


def update(adapter: Any, w: Tensor) -> Tensor:
    """s B A of an adapter as a canonical weight, in float64, from its parameters."""
    a, b = adapter.A.double(), adapter.B.double()
    if w.dim() == 2 and a.shape[1] == w.shape[0] and adapter.b_key == "lora_embedding_B":
        return adapter.scale * (b @ a).T
    g = adapter.groups
    product = torch.einsum("gor,grk->gok", b.reshape(g, -1, b.shape[1]), a.reshape(g, a.shape[0] // g, -1))
    return adapter.scale * product.reshape(w.shape)


HOSTS = {
    "linear": (lambda: nn.Linear(8, 6), 0),
    "embedding": (lambda: nn.Embedding(20, 6), 1),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), 0),
    "conv2d-groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), 0),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), 0),
}


@pytest.mark.parametrize(("make", "dim"), HOSTS.values(), ids=list(HOSTS))
def test_the_formula_and_its_gradients(make: Any, dim: int) -> None:
    """n is a constant: gradients are those of (m / n) V with n detached."""
    view = view_of(make().double())
    adapter, w = adapter_of(view), view[0].weight
    v = w + update(adapter, w)
    n = v.movedim(dim, 0).flatten(1).norm(dim=1).detach()
    shape = [1] * w.dim()
    shape[dim] = -1
    expected = (adapter.m.flatten() / n).view(shape) * v
    close(adapter.weight(w), expected)
    probe = torch.randn_like(w)
    parameters = [adapter.A, adapter.B, adapter.m]
    found = torch.autograd.grad((adapter.weight(w) * probe).sum(), parameters)
    for got, want in zip(found, torch.autograd.grad((expected * probe).sum(), parameters), strict=True):
        close(got, want)


@pytest.mark.parametrize(("make", "dim"), HOSTS.values(), ids=list(HOSTS))
@pytest.mark.parametrize("init", [True, False, "gaussian"])
def test_m_starts_as_the_length(make: Any, dim: int, init: Any) -> None:
    view = view_of(make(), random=False, init_lora_weights=init)
    adapter, w = adapter_of(view), view[0].weight
    v = (w + update(adapter, w)).double()
    torch.testing.assert_close(
        adapter.m.flatten().double(), v.movedim(dim, 0).flatten(1).norm(dim=1), rtol=1e-5, atol=1e-6
    )


def test_shapes_on_disk() -> None:
    shapes = {name: tuple(adapter_of(view_of(make())).m.shape) for name, (make, _) in HOSTS.items()}
    assert shapes == {
        "linear": (6,),
        "embedding": (6,),
        "conv1d": (1, 6, 1),
        "conv2d-groups": (1, 6, 1, 1),
        "conv3d": (1, 6, 1, 1, 1),
    }
    assert set(adapter_of(view_of(nn.Linear(8, 6))).tensors()) == {
        "lora_A.weight",
        "lora_B.weight",
        "lora_magnitude_vector",
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_are_exact_to_far_below_what_an_output_is_rounded_to(dtype: torch.dtype) -> None:
    """The update here is as large as W; a trained one is a small part of it, and so is the error."""
    w = torch.randn(1, 37, 100).to(dtype)
    a, b = torch.randn(1, 4, 100), torch.randn(1, 37, 4)
    exact = (w.double() + 1.5 * b.double() @ a.double()).norm(dim=-1)
    torch.testing.assert_close(
        row_norms(w, a, b, 1.5).double(), exact, rtol=max(2e-6, torch.finfo(dtype).eps / 4), atol=0
    )
    small = (w.double() + 0.01 * b.double() @ a.double()).norm(dim=-1)
    found = row_norms(w, a, b, 0.01).double()
    torch.testing.assert_close(found, small, rtol=max(2e-6, torch.finfo(dtype).eps / 200), atol=0)


def test_rows_of_zeros_stay_finite() -> None:
    """A pruned channel has no direction: 0 / 0 in the formula."""
    host = nn.Linear(8, 6, bias=False)
    with torch.no_grad():
        host.weight[2] = 0
    view = view_of(host, random=False)
    x = torch.randn(3, 8)
    torch.testing.assert_close(view(x), host(x))
    view(x).square().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in adapter_of(view).parameters())


class _Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        views = (
            "aten.t.",
            "aten.view",
            "aten.detach",
            "aten.transpose",
            "aten.unsqueeze",
            "aten.alias",
            "aten._unsafe",
        )
        if isinstance(out, Tensor) and not str(func).startswith((*views, "aten.split", "aten.reshape", "aten.slice")):
            self.shapes.append(tuple(out.shape))
        return out


def test_forward_and_backward_make_nothing_of_the_weights_size() -> None:
    """Neither B A, nor an identity matrix, nor a copy of W."""
    view = view_of(nn.Linear(300, 200))
    x = torch.randn(5, 300, requires_grad=True)
    with _Largest() as made:
        view(x).square().sum().backward()
    assert (5, 200) in made.shapes, "it sees what is made"
    assert max(torch.Size(s).numel() for s in made.shapes) < 200 * 200


def test_a_small_change_of_length_is_not_rounded_to_16_bits() -> None:
    """m / n = 1.01 is 1.0078 in bfloat16, but 0.01 is 0.01001."""
    view = view_of(nn.Linear(64, 256, bias=False).bfloat16(), random=False)
    x = torch.randn(256, 64).bfloat16()
    before = view(x).detach().double()
    with torch.no_grad():
        adapter_of(view).m.mul_(1.01)
    ratio = float((view(x).detach().double() * before).sum() / before.square().sum())
    assert 1.0095 < ratio < 1.0105


def test_dropout_is_on_the_low_rank_part_only() -> None:
    view = view_of(nn.Linear(8, 6).double(), lora_dropout=1.0)
    x = torch.randn(5, 8, dtype=torch.float64)
    adapter, host = adapter_of(view), view.unload()[0]
    v = host.weight + update(adapter, host.weight)
    ratio = adapter.m / v.norm(dim=1)
    view.train()
    close(view(x), ratio * (x @ host.weight.T) + host.bias)


def test_two_cannot_be_active_together() -> None:
    view = view_of(nn.Linear(8, 6))
    view.add_adapter("b", LoraConfig(target_modules=["0"], use_dora=True))
    with pytest.raises(StateError, match="cannot be active together"):
        view.set_adapter(["default", "b"])
    view.add_adapter("plain", LoraConfig(target_modules=["0"], init_lora_weights=False))
    view.set_adapter(["plain", "default"])
    x = torch.randn(3, 8)
    y = view(x)
    torch.testing.assert_close(view.merge_and_unload()(x), y)


def test_with_lora_bias_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="lora_bias=True is not allowed: expected False with use_dora"):
        LoraConfig(use_dora=True, lora_bias=True)
