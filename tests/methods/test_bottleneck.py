"""Bottleneck adapters: the three styles, sizes, initial values, and layer norms trained along."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import BottleneckConfig, PeftModel, get_peft_model
from inlay.errors import ConfigError, StateError, TargetError
from inlay.methods.bottleneck import ACTIVATIONS
from tests.tiny import Mlp, close, ids, llama, mlp, scramble

PLAIN: dict[str, Any] = {  # written out here again
    "relu": lambda x: x * (x > 0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "swish": lambda x: x / (1 + torch.exp(-x)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "tanh": lambda x: (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
}


def change(view: Any, path: str, h: Tensor, activation: str = "gelu") -> Tensor:
    a = view.get_submodule(path).adapters["default"]
    narrow = PLAIN[activation](h @ a.down.T + a.down_bias)
    return narrow @ a.up.T + a.up_bias  # type: ignore[no-any-return]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_after_a_layer(activation: str) -> None:
    base = mlp(dtype=torch.float64)
    x = torch.randn(3, 8, dtype=torch.float64)
    config = BottleneckConfig(target_modules=["down"], bottleneck_size=3, activation=activation, scaling=2.5)
    view = get_peft_model(base, config)
    assert torch.equal(view(x), base(x))
    scramble(view, 0.5)
    h = base(x)
    close(view(x), h + 2.5 * change(view, "down", h, activation))


def test_beside_a_layer_and_beside_a_block() -> None:
    base = nn.Sequential(mlp(dtype=torch.float64))
    x = torch.randn(3, 8, dtype=torch.float64)
    view = scramble(
        get_peft_model(base, BottleneckConfig("FEATURE_EXTRACTION", style="parallel", target_modules=["0"]))
    )
    assert view[0].adapters["default"].down.shape == (1, 8)  # 8 / 16 rounded down, but at least 1
    close(view(x), base(x) + change(view, "0", x))
    view = get_peft_model(base, BottleneckConfig(style="parallel", target_modules=["down"], reduction_factor=2))
    a = scramble(view)[0].down.adapters["default"]
    assert a.down.shape == (4, 16) and a.up.shape == (8, 4)
    h = base[0].up(x).relu()
    close(view(x), base(x) + change(view, "0.down", h))


class Pair(nn.Module):
    """A sublayer that returns a tuple, takes its input by name, and whose first parameter is no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(3, 8))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        scores = hidden_states @ self.gate.T
        return hidden_states * scores.sum(-1, keepdim=True), scores


class Model(nn.Module):
    """A model around it."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        y, scores = self.pair(hidden_states=x)
        return y + scores.mean()  # type: ignore[no-any-return]


@pytest.mark.parametrize("style", ["houlsby", "parallel"])
def test_a_block_that_returns_a_tuple(style: str) -> None:
    base, x = Model().double(), torch.randn(2, 8, dtype=torch.float64)
    view = scramble(
        get_peft_model(base, BottleneckConfig(style=style, target_modules=["pair"], bottleneck_size=2)), 0.5
    )
    y, scores = base.pair(x)
    close(view(x), y + change(view, "pair", x if style == "parallel" else y) + scores.mean())


@torch.no_grad()
def test_initial_values() -> None:
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Linear(400, 400)), torch.randn(5, 400)

    def made(**fields: Any) -> Any:
        return get_peft_model(base, BottleneckConfig(target_modules=["0"], bottleneck_size=100, **fields))

    plain = made()[0].adapters["default"]
    assert not plain.up.any() and float(plain.down.abs().max()) <= 400**-0.5 and float(plain.down.std()) > 0.025
    paper = made(init_weights="houlsby")
    for p in (paper[0].adapters["default"].down, paper[0].adapters["default"].up):
        assert float(p.abs().max()) <= 2e-3 and 0.8e-3 < float(p.std()) < 0.95e-3  # cut off: less than 1e-3
    difference = float((paper(x) - base(x)).abs().max())
    assert 0 < difference < 1e-3
    assert float((made(init_weights=False)(x) - base(x)).abs().max()) > 1e-2
    for view in (made(), paper, made(init_weights=False)):
        a = view[0].adapters["default"]
        assert not a.down_bias.any() and not a.up_bias.any()


def test_dropout_is_of_the_adapters_output_in_training() -> None:
    base, x = mlp(), torch.randn(50, 8)
    view = scramble(get_peft_model(base, BottleneckConfig(target_modules=["down"], dropout=0.5)), 1.0)
    change_ = view(x) - base(x)
    view.train()
    torch.manual_seed(0)
    dropped = view(x) - base(x)
    kept = dropped.abs() > 1e-6
    assert 0.4 < float(kept.float().mean()) < 0.6
    torch.testing.assert_close(dropped[kept], 2 * change_[kept], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("train_layer_norm", [False, True])
def test_a_model_with_its_layer_norms(train_layer_norm: bool, tmp_path: Any) -> None:
    base = llama()
    view = get_peft_model(base, BottleneckConfig(bottleneck_size=2, train_layer_norm=train_layer_norm))
    assert torch.equal(view(ids()).logits, base(ids()).logits)
    scramble(view)
    hosts = {p for p in view._inlay.hosts if p.endswith("norm")}
    assert len(hosts) == (5 if train_layer_norm else 0) and len(view._inlay.hosts) - len(hosts) == 4
    view.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(llama(), tmp_path)(ids()).logits, view(ids()).logits)
    with pytest.raises(StateError, match=r"SequentialBottleneck at .* is no change of the weight: it cannot be merged"):
        view.merge_adapter()


def test_it_learns_beside_a_frozen_base() -> None:
    base = llama(initializer_range=0.3)
    view = get_peft_model(base, BottleneckConfig(style="pfeiffer", bottleneck_size=8)).train()
    optimizer = torch.optim.AdamW([p for p in view.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(30):
        loss = view(input_ids=ids(), labels=ids()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_sizes() -> None:
    assert [BottleneckConfig().size(d) for d in (768, 8, 1)] == [48, 1, 1]
    assert BottleneckConfig(reduction_factor=0.5).size(8) == 16
    assert BottleneckConfig(bottleneck_size=5, reduction_factor=2).size(768) == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"style": "adapterfusion"}, "style='adapterfusion' .* one of 'houlsby', 'pfeiffer', 'parallel'"),
        ({"activation": "swich"}, "activation='swich' .* Did you mean 'swish'"),
        ({"bottleneck_size": 0}, "bottleneck_size=0 .* an integer of at least 1"),
        ({"reduction_factor": 0}, "reduction_factor=0"),
        ({"dropout": 1.5}, "dropout=1.5 .* from 0 to 1"),
        ({"scaling": "2"}, "scaling='2'"),
        ({"init_weights": "zero"}, "init_weights='zero' .* one of True, False, 'houlsby'"),
        ({"train_layer_norm": 1}, "train_layer_norm=1"),
    ],
    ids=str,
)
def test_values_that_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BottleneckConfig(**fields)


def test_models_that_do_not_suit_it() -> None:
    with pytest.raises(TargetError, match="There are no default target_modules for this model"):
        get_peft_model(Mlp(), BottleneckConfig())
    with pytest.raises(ConfigError, match=r"train_layer_norm=True .* It has no normalisation layer"):
        get_peft_model(Mlp(), BottleneckConfig(target_modules=["down"], train_layer_norm=True))
    with pytest.raises(TargetError, match="'0' has no parameters, which would tell how wide its output is"):
        get_peft_model(nn.Sequential(nn.ReLU()), BottleneckConfig(target_modules=["0"]))
