"""What a view trains in full: private copies, in every kind of module, and the base keeps its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from inlay import LoraConfig, get_peft_model
from inlay.core.adapted import is_adapted
from inlay.core.copies import own_tensors
from inlay.core.skeleton import clone_skeleton
from tests.tiny import Mlp, close, made, same, snapshot


class Big(nn.Module):
    """A model around a module of some kind."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.fc, self.part = nn.Linear(4, 4), part

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(self.fc(x))
        return y[0] if isinstance(y, tuple) else y


class Heads(nn.Module):
    """A module with submodules, a tied weight, a buffer, and two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x: Tensor, *, scale: float = 2.0) -> tuple[Tensor, float]:
        return self.two(torch.tanh(self.one(x))) * scale + self.shift, scale


def doubled() -> nn.Module:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    return layer


PARTS = {
    "linear": lambda: nn.Linear(4, 4),
    "layer norm": lambda: nn.LayerNorm(4),
    "tied": Heads,
    "lstm": lambda: nn.LSTM(4, 4, batch_first=True),
    "gru": lambda: nn.GRU(4, 4),
    "attention": lambda: nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)),
    "parametrized": doubled,
    "batch norm": lambda: nn.BatchNorm1d(4),
}


def agree(a: Tensor, b: Tensor) -> bool:
    """Equal, but for the order of sums: torch has other kernels for weights that need no gradient."""
    return bool(torch.allclose(a, b, rtol=1e-12, atol=1e-12))


@pytest.mark.parametrize("part", PARTS)
def test_a_module_in_full(part: str) -> None:
    """It starts as the host; each parameter has a gradient and an effect; the base stays; merging keeps the output."""
    base = made(lambda: Big(PARTS[part]()), dtype=torch.float64)
    x = torch.randn(3, 4).double() if part == "batch norm" else torch.randn(3, 5, 4).double()
    before, y = snapshot(base), base(x)
    view = get_peft_model(base, LoraConfig(target_modules=["fc"], modules_to_save=["part"], r=2))
    copy: Any = view.part.adapters["default"].module
    assert type(copy) is type(base.part) and not is_adapted(copy)
    assert {k for k, _ in copy.named_parameters()} == {k for k, _ in base.part.named_parameters()}
    assert not {p.data_ptr() for p in copy.parameters()} & {p.data_ptr() for p in base.parameters()}
    assert agree(view(x), y)
    for name, p in copy.named_parameters():
        kept = p.detach().clone()
        with torch.no_grad():
            p.add_(torch.randn_like(p))
        assert not agree(view(x), y), f"{name} has an effect"
        with torch.no_grad():
            p.copy_(kept)
        assert agree(view(x), y)
    view.train()
    optimizer = torch.optim.SGD([p for p in view.parameters() if p.requires_grad], lr=0.1)
    (view(x) * torch.randn(y.shape).double()).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in copy.parameters())
    optimizer.step()
    view.eval()
    trained = view(x)
    assert not agree(trained, y)
    assert same(snapshot(base), before) and agree(base(x), y)
    with view.disable_adapter():
        assert agree(view(x), y)
    merged = view.merge_and_unload()
    close(merged(x), trained)
    assert type(merged.part) is type(base.part) and set(snapshot(merged)) == set(before)
    assert same(snapshot(base), before)


def test_the_copys_tensors_are_saved_under_the_modules_own_names() -> None:
    view = get_peft_model(made(lambda: Big(Heads())), LoraConfig(target_modules=["fc"], modules_to_save=["part"]))
    adapter = view.part.adapters["default"]
    assert set(adapter.tensors()) == {"one.weight", "one.bias", "two.weight", "two.bias", "shift"}
    assert adapter.tensors()["one.weight"] is adapter.tensors()["two.weight"], "tied weights stay tied"


def test_arguments_and_results_of_any_shape_pass_through() -> None:
    base = made(lambda: Big(Heads()))
    view = get_peft_model(base, LoraConfig(target_modules=["fc"], modules_to_save=["part"]))
    x = torch.randn(2, 4)
    y, scale = view.part(x, scale=3.0)
    assert scale == 3.0 and torch.equal(y, base.part(x, scale=3.0)[0])
    assert torch.equal(view.part(x=x)[0], base.part(x)[0])


def test_a_second_adapter_copies_the_base_and_not_the_first() -> None:
    base = made(Mlp)
    view = get_peft_model(base, LoraConfig(target_modules=["up"], modules_to_save=["down"]), "a")
    with torch.no_grad():
        view.down.adapters["a"].module.weight.add_(1)
    view.add_adapter("b", LoraConfig(target_modules=["up"], modules_to_save=["down"]))
    copy = view.down.adapters["b"].module
    assert not is_adapted(copy) and set(dict(copy.named_parameters())) == {"weight", "bias"}
    assert torch.equal(copy.weight, base.down.weight)
    view.set_adapter("b")
    x = torch.ones(1, 8)
    assert torch.equal(view(x), base(x))


def test_a_module_in_full_around_adapted_ones() -> None:
    base = made(lambda: nn.Sequential(Mlp(), nn.Linear(8, 2)))
    view = get_peft_model(base, LoraConfig(target_modules=["0.up"], r=2), "a")
    view.add_adapter("b", LoraConfig(target_modules=["1"], modules_to_save=["0"], r=2))
    copy = view[0].adapters["b"].module
    assert type(copy) is Mlp and type(copy.up) is nn.Linear
    assert set(dict(copy.named_parameters())) == {"up.weight", "up.bias", "down.weight", "down.bias"}


@pytest.mark.parametrize("part", ["linear", "layer norm", "lstm", "batch norm"])
def test_every_bias_in_full(part: str) -> None:
    """`bias="all"`: the biases outside the targets are copied, trained, merged; nothing else is."""
    base = made(lambda: Big(PARTS[part]()), dtype=torch.float64)
    x = torch.randn(3, 4).double()
    before, y = snapshot(base), base(x)
    view = get_peft_model(base, LoraConfig(target_modules=["fc"], bias="all", r=2))
    assert torch.equal(view(x), y)
    names = [n for n, _ in base.named_parameters() if n.rpartition(".")[2] == "bias"]
    trained = {n for n, p in view.named_parameters() if p.requires_grad}
    assert len(trained) == len(names) + 2
    for name, p in view.named_parameters():
        if name in trained and "bias" in name.rpartition(".")[2]:
            with torch.no_grad():
                p.add_(1.0)
            assert not torch.equal(view(x), y), f"{name} has an effect"
            with torch.no_grad():
                p.sub_(1.0)
    view.train()
    view(x).square().sum().backward()
    assert all((p.grad is not None) == (n in trained) for n, p in view.named_parameters())
    torch.optim.SGD([p for p in view.parameters() if p.requires_grad], lr=0.1).step()
    view.eval()
    trained_output = view(x)
    view.merge_adapter()
    close(view(x), trained_output)
    view.unmerge_adapter()
    assert torch.equal(view(x), trained_output)
    close(view.merge_and_unload()(x), trained_output)
    assert same(snapshot(base), before)


def test_tied_biases_stay_tied_and_the_rest_of_a_host_is_its_own() -> None:
    """As BERT's head has it: one bias in two modules."""
    base = nn.ModuleDict({"fc": nn.Linear(4, 4), "one": nn.Linear(4, 4), "two": nn.Linear(4, 4)}).double()
    base["two"].bias = base["one"].bias
    view = get_peft_model(base, LoraConfig(target_modules=["fc"], bias="all"))
    first, second = view["one"].adapters["default"], view["two"].adapters["default"]
    assert first.copies["bias"] is second.copies["bias"] is not base["one"].bias
    with torch.no_grad():
        first.copies["bias"].add_(1)
    x = torch.randn(3, 4).double()
    for name in ("one", "two"):
        close(view[name](x), base[name](x) + 1)
    w, b = torch.ones(1), torch.ones(1)
    assert first.weight(w) is w and first.bias(b) is first.copies["bias"]
    assert first.replaces(view["one"]) == [base["one"].bias]
    merged = view.merge_and_unload()
    assert merged["one"].bias is merged["two"].bias


def test_buffers_of_the_copy_are_its_own() -> None:
    base = made(lambda: Big(nn.BatchNorm1d(4)))
    view = get_peft_model(base, LoraConfig(target_modules=["fc"], modules_to_save=["part"])).train()
    before = snapshot(base)
    view(torch.randn(8, 4) + 3)
    assert same(snapshot(base), before)
    copy = view.part.adapters["default"].module
    assert not torch.equal(copy.running_mean, base.part.running_mean)
    assert int(copy.num_batches_tracked) == 1
    assert int(view.part.num_batches_tracked) == 0


def test_own_tensors_keeps_ties_flags_and_holes() -> None:
    heads = Heads()
    heads.one.bias.requires_grad_(False)
    heads.two.register_parameter("bias", None)
    heads.two.register_buffer("hole", None)
    clone = clone_skeleton(heads)
    own_tensors(clone)
    assert clone.one.weight is clone.two.weight is not heads.one.weight
    assert clone.one.bias.requires_grad is False and clone.two.bias is None and clone.two.hole is None
    assert torch.equal(clone.one.weight, heads.one.weight) and heads.two.weight is heads.one.weight
