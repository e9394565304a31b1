"""OFT: rotations against torch's dense Cayley transform and its series, the constraint, sharing, blocks, dropout."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import OFTConfig, get_peft_model
from inlay.errors import ConfigError, InlayWarning
from tests.tiny import close, scramble


def view_of(host: Any, random: bool = True, **fields: Any) -> Any:
    fields = {"oft_block_size": 0 if "r" in fields else 4, **fields}
    view = get_peft_model(nn.Sequential(host).eval(), OFTConfig(**{"target_modules": ["0"], **fields}))
    return scramble(view, 0.3) if random else view


def rotation(view: Any, exact: bool = False, terms: int = 5) -> Tensor:
    """R, whole, from the trained triangles, one at a time."""
    at = view[0].adapters["default"]
    found = []
    for vector in at.R.detach().expand(at.blocks, -1).double():
        q, entries = torch.zeros(at.size, at.size, dtype=torch.float64), iter(vector)
        for i in range(at.size):
            for j in range(i + 1, at.size):
                q[i, j] = next(entries)
                q[j, i] = -q[i, j]
        one = torch.eye(at.size, dtype=torch.float64)
        if exact:
            found.append((one - q) @ torch.linalg.inv(one + q))
        elif terms == 2:
            found.append(one + 2 * q)
        else:  # 1 + 2 Q + 2 Q^2 + ... + Q^n, the last power once
            n = max(terms, 4) - 1
            found.append(
                sum((2 if 0 < k < n else 1) * torch.linalg.matrix_power(q, k) for k in range(n + 1))  # type: ignore[arg-type]
            )
    return torch.block_diag(*found)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"r": 2},
        {"use_cayley_neumann": False},
        {"block_share": True},
        {"block_share": True, "r": 3, "use_cayley_neumann": False},
        {"num_cayley_neumann_terms": 2},
        {"num_cayley_neumann_terms": 3},
        {"num_cayley_neumann_terms": 9},
    ],
    ids=str,
)
def test_linear(fields: dict[str, Any]) -> None:
    host = nn.Linear(12, 5).double()
    view = view_of(host, **fields)
    exact = not fields.get("use_cayley_neumann", True)
    r = rotation(view, exact, fields.get("num_cayley_neumann_terms", 5))
    if exact:
        close(r @ r.T, torch.eye(12, dtype=torch.float64))
    close(view[0].adapters["default"].weight(host.weight), host.weight @ r.T)
    for x in (torch.randn(12), torch.randn(2, 3, 12), torch.randn(0, 12), torch.randn(12, 4).T):
        x = x.double()
        close(view(x), x @ r @ host.weight.T + host.bias)


def test_the_series_nears_the_inverse_of_the_exact_transform() -> None:
    host = nn.Linear(8, 8).double()
    view = view_of(host, num_cayley_neumann_terms=60)
    with torch.no_grad():
        view[0].adapters["default"].R.mul_(0.3)
    close(view[0].adapters["default"].rotations(torch.float64)[0], rotation(view, exact=True)[:4, :4].T, 1e-7, 1e-7)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"groups": 2, "stride": 2, "dilation": 2}, {"padding": 1}], ids=str)
def test_convolutions_rotate_the_weight(dims: int, options: dict[str, Any]) -> None:
    host = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](4, 6, 2, **options).double()
    x = torch.randn(2, 4, *[5, 6, 7][:dims], dtype=torch.float64)
    close(view_of(host, random=False)(x), host(x))  # R = I is the identity, whatever the kernel
    view = view_of(host)
    w = (host.weight.flatten(1) @ rotation(view).T).reshape(host.weight.shape)
    assert (view(x) - host(x)).abs().max() > 0.01
    close(view(x), host._conv_forward(x, w, host.bias))


def test_embedding() -> None:
    host, ids = nn.Embedding(10, 12).double(), torch.tensor([[3, 1], [0, 3]])
    view = view_of(host)
    assert list(view[0].adapters["default"].tensors()) == ["oft_embedding_R.weight"]
    close(view(ids), host.weight[ids] @ rotation(view))
    close(view.merge_and_unload()(ids), host.weight[ids] @ rotation(view))


def test_shapes_keys_and_initial_values() -> None:
    at = view_of(nn.Linear(12, 5), random=False)[0].adapters["default"]
    assert {k: tuple(v.shape) for k, v in at.tensors().items()} == {"oft_R.weight": (3, 6)}
    assert not at.R.any()
    assert view_of(nn.Linear(12, 5), block_share=True)[0].adapters["default"].R.shape == (1, 6)
    assert view_of(nn.Linear(12, 5), r=2)[0].adapters["default"].R.shape == (2, 15)
    at = view_of(nn.Linear(512, 5), random=False, init_weights=False, r=1)[0].adapters["default"]
    assert 0.098 < float(at.R.detach().std()) < 0.102


@pytest.mark.parametrize(
    ("features", "fields", "taken"),
    [
        (12, {"oft_block_size": 5}, (3, 4)),
        (12, {"oft_block_size": 32}, (1, 12)),
        (14, {"oft_block_size": 4}, (7, 2)),
        (12, {"r": 5}, (4, 3)),
        (7, {"r": 4}, (1, 7)),
        (7, {"r": 20}, (7, 1)),
    ],
    ids=str,
)
def test_blocks_that_do_not_fit(features: int, fields: dict[str, int], taken: tuple[int, int]) -> None:
    ((name, value),) = fields.items()
    new = taken[0] if name == "r" else taken[1]
    message = rf"{name}={value} does not divide the {features} inputs of '0': {name}={new} is taken there"
    with pytest.warns(InlayWarning, match=message):
        at = view_of(nn.Linear(features, 3), **fields)[0].adapters["default"]
    assert (at.blocks, at.size) == taken
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        view_of(nn.Linear(12, 3), oft_block_size=3)


def norms(view: Any) -> Tensor:
    at = view[0].adapters["default"]
    return (2 * at.R.detach().double().square().sum(1)).sqrt()


def test_the_constraint() -> None:
    host, x = nn.Linear(12, 5).double(), torch.randn(3, 12).double()
    free, view = view_of(host), view_of(host, coft=True, eps=0.9)
    limit = 0.9 / 3**0.5
    assert bool((norms(view) > limit).any())
    y = view(x)
    assert not torch.equal(y, free(x)) and bool((norms(view) > limit).any()), "computing changes no parameter"
    with torch.no_grad():
        at = free[0].adapters["default"]
        at.R.mul_((limit / norms(free)).clamp(max=1)[:, None])
    close(y, free(x))
    free(x).square().sum().backward()
    for training in (False, True):  # the gradient is that at the moved point; training moves the parameter there
        at = view.train(training)[0].adapters["default"]
        at.R.grad = None
        view(x).square().sum().backward()
        close(at.R.grad, free[0].adapters["default"].R.grad)
        assert bool((norms(view) <= limit * (1 + 1e-9)).all()) == training
    inside = view_of(host, coft=True, eps=100.0)
    assert torch.equal(inside(x), view_of(host)(x))
    fresh = view_of(host, random=False, coft=True).train()
    fresh(x).sum().backward()
    assert bool(torch.isfinite(fresh[0].adapters["default"].R.grad).all())


def test_dropout_turns_blocks_off_in_training() -> None:
    host = nn.Linear(4000, 1).double()
    view = view_of(host, module_dropout=0.3)
    at = view[0].adapters["default"]
    whole = at.rotations(torch.float64)
    view.train()
    one = torch.eye(4, dtype=torch.float64)
    found = at.rotations(torch.float64)
    off = (found == one).all(-1).all(-1)
    assert 0.25 < float(off.double().mean()) < 0.35
    assert torch.equal(found[~off], whole[~off])


def test_16_bits() -> None:
    host = nn.Linear(12, 5).bfloat16()
    for fields in ({}, {"use_cayley_neumann": False}):
        view = view_of(host, **fields)
        x = torch.randn(3, 12).bfloat16()
        exact = x.double() @ rotation(view, bool(fields)) @ host.weight.double().T + host.bias.double()
        assert view(x).dtype is torch.bfloat16
        torch.testing.assert_close(view(x).double(), exact, rtol=0.03, atol=0.03)
        assert view[0].adapters["default"].rotations(torch.bfloat16).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 8}, r"r=8 is not allowed: expected one of r and oft_block_size to be 0. oft_block_size is 32"),
        ({"oft_block_size": 0}, r"r=0 is not allowed: expected one of r and oft_block_size to be 0"),
        ({"oft_block_size": -4}, r"oft_block_size=-4 is not allowed: expected an integer of at least 0"),
        ({"coft": 1}, r"coft=1 is not allowed: expected True or False"),
        ({"coft": True, "eps": 0}, r"eps=0 is not allowed: expected a finite number from 1e-12"),
        ({"module_dropout": 2}, r"module_dropout=2 is not allowed"),
        ({"num_cayley_neumann_terms": 1}, r"num_cayley_neumann_terms=1 is not allowed"),
        ({"bias": "oft_only"}, r"bias='oft_only' is not allowed: expected 'none'. OFTConfig does not implement `bias`"),
    ],
)  # fmt: skip
def test_values_that_are_not_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OFTConfig(**fields)
