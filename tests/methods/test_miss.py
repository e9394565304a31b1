"""MiSS: shards that share a block, entry by entry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import MissConfig, get_peft_model
from inlay.errors import ConfigError
from tests.tiny import close, scramble


def view_of(host: Any, random: bool = True, **fields: Any) -> Any:
    view = get_peft_model(nn.Sequential(host).eval(), MissConfig(**{"target_modules": ["0"], "r": 4, **fields}))
    return scramble(view, 0.5) if random else view


def update(view: Any) -> Tensor:
    """W' - W, one entry at a time."""
    at, w = view[0].adapters["default"], view[0].weight.detach()
    m, r, d = at.m.detach(), at.r, torch.zeros_like(w)
    for o in range(w.shape[0]):
        for i in range(w.shape[1]):
            if m.dim() == 3:
                p, first = o // r, i - i % r
                d[o, i] = w[o, first : first + r] @ m[p, :, i % r] + m[p, o % r, i % r]
            else:
                d[o, i] = m[i % r, o % m.shape[1]]
    return d


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"r": 5},
        {"r": 12},
        {"r": 11},
        {"r": 1},
        {"init_weights": "mini"},
        {"init_weights": "mini", "mini_r": 4, "r": 7},
        {"init_weights": "bat"},
        {"init_weights": "bat", "r": 2},
    ],
    ids=str,
)
def test_the_formula(fields: dict[str, Any]) -> None:
    host = nn.Linear(12, 8).double()
    view = view_of(host, **fields)
    w = host.weight + update(view)
    close(view[0].adapters["default"].weight(host.weight), w)
    for x in (torch.randn(12), torch.randn(2, 3, 12), torch.randn(0, 12), torch.randn(12, 4).T):
        x = x.double()
        close(view(x), x @ w.T + host.bias)


def test_shapes_keys_and_initial_values() -> None:
    def of(**fields: Any) -> tuple[tuple[int, ...], bool]:
        found = view_of(nn.Linear(12, 8), random=False, **fields)[0].adapters["default"].tensors()
        assert list(found) == ["miss_block"]
        return tuple(found["miss_block"].shape), bool(found["miss_block"].any())

    assert of() == ((4, 8), False)
    assert of(init_weights=False) == ((4, 8), True)
    assert of(init_weights="mini", mini_r=2) == ((4, 2), False)
    assert of(init_weights="bat") == ((2, 4, 4), False)
    assert MissConfig().r == 64


@pytest.mark.parametrize("fields", [{}, {"init_weights": "bat"}], ids=str)
def test_dropout_is_on_the_changes_input_in_training(fields: dict[str, Any]) -> None:
    host, x = nn.Linear(12, 8).double(), torch.randn(3, 12).double()
    view = view_of(host, miss_dropout=1.0, **fields)
    assert (view(x) - host(x)).abs().max() > 0.1
    close(view.train()(x), host(x))
    view = view_of(host, miss_dropout=0.5, **fields).train()
    torch.manual_seed(3)
    found = view(x)
    torch.manual_seed(3)
    close(found, host(x) + torch.nn.functional.dropout(x, 0.5) @ update(view).T)


def test_16_bits() -> None:
    host, x = nn.Linear(12, 8).bfloat16(), torch.randn(3, 12).bfloat16()
    for init in (True, "bat"):
        view = view_of(host, init_weights=init)
        wide = view_of(nn.Linear(12, 8).double(), init_weights=init)
        wide[0].weight.data.copy_(host.weight.double())
        exact = x.double() @ (wide[0].weight + update(wide)).T + host.bias.double()
        assert view(x).dtype is torch.bfloat16
        torch.testing.assert_close(view(x).double(), exact, rtol=0.03, atol=0.06)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, r"r=0 is not allowed: expected an integer of at least 1"),
        ({"r": 13}, r"r=13 is not allowed: expected at most 12, the inputs of '0'"),
        ({"mini_r": 0}, r"mini_r=0 is not allowed"),
        (
            {"mini_r": 3, "init_weights": "mini"},
            r"mini_r=3 is not allowed: expected a divisor of 8, the outputs of '0'",
        ),
        (
            {"r": 6, "init_weights": "bat"},
            r"r=6 is not allowed: expected a divisor of the 12 inputs and 8 outputs of '0'",
        ),
        ({"miss_dropout": 2}, r"miss_dropout=2 is not allowed"),
        ({"init_weights": "bar"}, r"init_weights='bar' is not allowed.*Did you mean 'bat'"),
        ({"bias": "MiSS_only"}, r"MissConfig does not implement `bias`"),
    ],
)
def test_values_that_are_not_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        view_of(nn.Linear(12, 8), **fields)
