"""HRA: products of Householder reflections, one at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import HRAConfig, get_peft_model
from inlay.errors import ConfigError, InlayWarning
from tests.tiny import close, scramble


def view_of(host: Any, random: bool = True, **fields: Any) -> Any:
    view = get_peft_model(nn.Sequential(host).eval(), HRAConfig(**{"target_modules": ["0"], "r": 4, **fields}))
    return scramble(view, 0.5) if random else view


def product(view: Any) -> Tensor:
    """H_1 ... H_r; with orthogonal directions, Gram-Schmidt first, as it is written in books."""
    at = view[0].adapters["default"]
    u = at.u.detach().double()
    h, done = torch.eye(len(u), dtype=torch.float64), []
    for i in range(u.shape[1]):
        v = u[:, i].clone()
        for d in done if at.orthogonal else ():
            v -= (d @ v) * d
        v /= v.norm()
        done.append(v)
        h = h @ (torch.eye(len(u), dtype=torch.float64) - 2 * torch.outer(v, v))
    return h


@pytest.mark.parametrize(
    "fields", [{}, {"r": 1, "init_weights": False}, {"r": 12}, {"apply_GS": True}, {"r": 14}], ids=str
)
def test_linear(fields: dict[str, Any]) -> None:
    host = nn.Linear(12, 5).double()
    view = view_of(host, **fields)
    h = product(view)
    close(h @ h.T, torch.eye(12, dtype=torch.float64))
    close(view[0].adapters["default"].weight(host.weight), host.weight @ h)
    for x in (torch.randn(12), torch.randn(2, 3, 12), torch.randn(0, 12), torch.randn(12, 4).T):
        x = x.double()
        close(view(x), x @ h.T @ host.weight.T + host.bias)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"groups": 2, "stride": 2, "dilation": 2}], ids=str)
@pytest.mark.parametrize("apply_GS", [False, True])
def test_convolutions(dims: int, options: dict[str, Any], apply_GS: bool) -> None:
    host = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](4, 6, (2, 1, 3)[:dims], **options).double()
    view = view_of(host, apply_GS=apply_GS)
    x = torch.randn(2, 4, *[5, 6, 7][:dims], dtype=torch.float64)
    w = (host.weight.flatten(1) @ product(view)).reshape(host.weight.shape)
    close(view(x), host._conv_forward(x, w, host.bias))
    close(view.merge_and_unload()(x), host._conv_forward(x, w, host.bias))


@pytest.mark.parametrize("apply_GS", [False, True])
def test_gradients(apply_GS: bool) -> None:
    host = nn.Linear(6, 5).double()
    view = view_of(host, apply_GS=apply_GS)
    x = torch.randn(3, 6, dtype=torch.float64)
    u = view[0].adapters["default"].u
    assert torch.autograd.gradcheck(lambda _: view(x), (u,))


def test_initial_values() -> None:
    at = view_of(nn.Linear(64, 5), random=False)[0].adapters["default"]
    assert list(at.tensors()) == ["hra_u"] and at.u.shape == (64, 4)
    assert torch.equal(at.u[:, 0::2], at.u[:, 1::2]) and not torch.equal(at.u[:, 0], at.u[:, 2])
    for fields in ({"init_weights": False}, {"apply_GS": True}):
        at = view_of(nn.Linear(64, 5), random=False, **fields)[0].adapters["default"]
        assert not torch.equal(at.u[:, 0::2], at.u[:, 1::2])
    with pytest.warns(InlayWarning, match="r=3 is odd: HRA does not start as the identity"):
        at = view_of(nn.Linear(64, 5), random=False, r=3)[0].adapters["default"]
    assert at.u.any()


def test_16_bits() -> None:
    host = nn.Linear(12, 5).bfloat16()
    for fields in ({}, {"apply_GS": True}):
        view = view_of(host, **fields)
        x = torch.randn(3, 12).bfloat16()
        exact = x.double() @ product(view).T @ host.weight.double().T + host.bias.double()
        assert view(x).dtype is torch.bfloat16
        torch.testing.assert_close(view(x).double(), exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, r"r=0 is not allowed: expected an integer of at least 1"),
        ({"apply_GS": 1}, r"apply_GS=1 is not allowed: expected True or False"),
        ({"init_weights": "x"}, r"init_weights='x' is not allowed"),
        ({"bias": "all"}, r"bias='all' is not allowed: expected 'none'. HRAConfig does not implement `bias`"),
    ],
)
def test_values_that_are_not_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HRAConfig(**fields)


def test_no_more_orthogonal_directions_than_inputs() -> None:
    with pytest.raises(ConfigError, match=r"r=13 is not allowed: expected at most 12 with apply_GS, the inputs of '0'"):
        view_of(nn.Linear(12, 5), r=13, apply_GS=True)
