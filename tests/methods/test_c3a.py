"""C3A: circulant blocks, entry by entry, and their product by Fourier transforms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import C3AConfig, get_peft_model
from inlay.errors import ConfigError
from tests.tiny import close, scramble


def view_of(host: Any, random: bool = True, **fields: Any) -> Any:
    view = get_peft_model(nn.Sequential(host).eval(), C3AConfig(**{"target_modules": ["0"], "block_size": 4, **fields}))
    return scramble(view, 2.0) if random else view


def update(view: Any) -> Tensor:
    k, w = view[0].adapters["default"].K.detach().double(), view[0].weight
    b = k.shape[2]
    d = torch.zeros(w.shape, dtype=torch.float64)
    for o in range(w.shape[0]):
        for i in range(w.shape[1]):
            d[o, i] = k[o // b, i // b, (i - o) % b]
    return d / w.shape[1]


@pytest.mark.parametrize("b", [1, 2, 3, 4, 12])
def test_the_formula(b: int) -> None:
    host = nn.Linear(24, 12).double()
    view = view_of(host, block_size=b)
    w = host.weight + update(view)
    close(view[0].adapters["default"].weight(host.weight), w)
    for x in (torch.randn(24), torch.randn(2, 3, 24), torch.randn(0, 24), torch.randn(24, 4).T):
        x = x.double()
        close(view(x), x @ w.T + host.bias)


def test_shapes_keys_and_initial_values() -> None:
    at = view_of(nn.Linear(24, 12), random=False, block_size_pattern={"0": 6})[0].adapters["default"]
    assert {k: tuple(v.shape) for k, v in at.tensors().items()} == {"c3a_kernel": (2, 4, 6)}

    def largest(init: Any) -> float:
        k = view_of(nn.Linear(200, 400), random=False, init_weights=init)[0].adapters["default"].K
        return float(k.detach().abs().max())

    assert largest(True) == 0
    for init, bound in (("xavier_uniform", 0.1), (False, 0.1), ("kaiming_uniform", 200**-0.5)):
        assert 0.99 * bound < largest(init) <= bound
    assert largest("gaussian") > 3
    assert C3AConfig().default_targets("gpt2") == ["mlp.c_proj"]


def test_16_bits() -> None:
    host, x = nn.Linear(24, 12).bfloat16(), torch.randn(3, 24).bfloat16()
    view = view_of(host)
    exact = x.double() @ (host.weight.double() + update(view)).T + host.bias.double()
    assert view(x).dtype is torch.bfloat16
    torch.testing.assert_close(view(x).double(), exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_size": 0}, r"block_size=0 is not allowed: expected an integer of at least 1"),
        ({"block_size": 8}, r"block_size=8 is not allowed: expected a divisor of the 24 inputs and 12 outputs of '0'"),
        ({"block_size_pattern": {"0": 0}}, r"block_size_pattern\['0'\]=0 is not allowed"),
        ({"init_weights": "xavier"}, r"init_weights='xavier' is not allowed.*Did you mean 'xavier_uniform'"),
        ({"bias": "all"}, r"C3AConfig does not implement `bias`"),
    ],
)
def test_values_that_are_not_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        view_of(nn.Linear(24, 12), **fields)
