"""LoHa: an elementwise product of two low-rank matrices, entry by entry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import LoHaConfig, get_peft_model
from inlay.errors import ConfigError
from tests.tiny import close, scramble

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def view_of(host: Any, random: bool = True, **fields: Any) -> Any:
    view = get_peft_model(nn.Sequential(host).eval(), LoHaConfig(**{"target_modules": ["0"], "r": 3, **fields}))
    return scramble(view, 0.5) if random else view


def entries(a: Tensor, b: Tensor, t: Tensor | None, shape: torch.Size) -> Tensor:
    """One factor of the update, one entry at a time."""
    d = torch.zeros(shape, dtype=torch.float64)
    r = b.shape[0]
    for o in range(shape[0]):
        if t is None:
            for p in range(r):
                d[o] += (a[o, p] * b[p]).reshape(shape[1:])
        else:
            for i in range(shape[1]):
                for p in range(r):
                    for q in range(r):
                        d[o, i] += a[p, o] * b[q, i] * t[p, q].reshape(shape[2:])
    return d


def update(view: Any) -> Tensor:
    at, shape = view[0].adapters["default"], view[0].weight.shape
    s = at.scale
    return s * entries(at.a1, at.b1, at.t1, shape) * entries(at.a2, at.b2, at.t2, shape)


@pytest.mark.parametrize(("r", "split"), [(1, True), (3, True), (5, False)])
def test_linear(r: int, split: bool) -> None:
    host = nn.Linear(24, 20).double()
    view = view_of(host, r=r, alpha=5)
    adapter = view[0].adapters["default"]
    assert adapter.split == split and adapter.scale == 5 / r
    close(adapter.weight(host.weight), host.weight + update(view))
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    close(view(x), x @ (host.weight + update(view)).T + host.bias)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"groups": 2, "stride": 2}, {"padding": 1, "padding_mode": "circular"}], ids=str
)
def test_convolutions(dims: int, effective: bool, options: dict[str, Any]) -> None:
    host = CONV[dims](4, 6, 3, **options).double()
    view = view_of(host, use_effective_conv2d=effective)
    assert (view[0].adapters["default"].t1 is not None) == effective
    x = torch.randn(2, 4, *[5, 6, 7][:dims], dtype=torch.float64)
    close(view(x), host._conv_forward(x, host.weight + update(view), host.bias))


def test_shapes_and_keys() -> None:
    def shapes(host: Any, **fields: Any) -> dict[str, tuple[int, ...]]:
        return {k: tuple(v.shape) for k, v in view_of(host, **fields)[0].adapters["default"].tensors().items()}

    names = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"]
    assert shapes(nn.Linear(8, 6)) == dict(zip(names, [(6, 3), (3, 8)] * 2, strict=True))
    assert shapes(nn.Conv2d(8, 6, (3, 2), groups=2)) == dict(zip(names, [(6, 3), (3, 4 * 6)] * 2, strict=True))
    assert shapes(nn.Conv1d(4, 6, 5), use_effective_conv2d=True) == {
        **dict(zip(names, [(3, 6), (3, 4)] * 2, strict=True)),
        "hada_t1": (3, 3, 5, 1),
        "hada_t2": (3, 3, 5, 1),
    }
    assert shapes(nn.Conv2d(4, 6, 1), use_effective_conv2d=True) == dict(zip(names, [(6, 3), (3, 4)] * 2, strict=True))


def test_initial_values() -> None:
    at = view_of(nn.Conv2d(32, 32, 3), random=False, use_effective_conv2d=True)[0].adapters["default"]
    assert not at.b2.any() and all(p.any() for p in (at.a1, at.b1, at.a2, at.t1, at.t2))
    assert 0.9 * 32**-0.5 < float(at.a1.detach().abs().max()) <= 32**-0.5, "uniform up to 1 / sqrt(fan in)"
    assert view_of(nn.Linear(8, 8), random=False, init_weights=False)[0].adapters["default"].b2.any()


def test_patterns() -> None:
    host = nn.Linear(8, 6)
    at = view_of(host, rank_pattern={"0": 2}, alpha_pattern={"^0$": 5})[0].adapters["default"]
    assert at.a1.shape == (6, 2) and at.scale == 2.5


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 4000), lambda: nn.Conv1d(2, 4000, 2)])
def test_dropping_rows_keeps_their_mean(make: Any) -> None:
    host = make().double()
    view = view_of(host, rank_dropout=0.25)
    x = torch.randn(3, 2, 2, dtype=torch.float64) if isinstance(host, nn.Conv1d) else torch.randn(3, 3).double()
    plain = view(x) - host(x)
    dropped = view.train()(x) - host(x)
    share = (dropped / plain).flatten(1)[0]
    kept = share.abs() > 1e-6
    assert 0.7 < float(kept.double().mean()) < 0.8
    close(share[kept], torch.full_like(share[kept], float(1 / kept.double().mean())), 1e-6, 1e-6)


def test_dropping_everything() -> None:
    host, x = nn.Linear(8, 6), torch.randn(3, 8)
    assert torch.equal(view_of(host, rank_dropout=1.0).train()(x), host(x))
    view = view_of(host, module_dropout=0.5)
    y = view(x)
    outcomes = [view.train()(x) for _ in range(40)]
    dropped = [torch.equal(o, host(x)) for o in outcomes]
    assert 5 < sum(dropped) < 35 and all(torch.equal(o, y) for o, d in zip(outcomes, dropped, strict=True) if not d)


def test_16_bits() -> None:
    host = nn.Linear(24, 20).bfloat16()
    for r in (1, 5):
        view = view_of(host, r=r)
        x = torch.randn(4, 24).bfloat16()
        exact = x.double() @ (host.weight.double() + update(view)).T + host.bias.double()
        assert view(x).dtype is torch.bfloat16
        torch.testing.assert_close(view(x).double(), exact, rtol=0.03, atol=0.03 * float(exact.detach().abs().max()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, r"r=0 is not allowed: expected an integer of at least 1"),
        ({"alpha": "8"}, r"alpha='8' is not allowed: expected a finite number"),
        ({"rank_dropout": 1.5}, r"rank_dropout=1.5 is not allowed: expected a finite number from 0 to 1"),
        ({"module_dropout": -1}, r"module_dropout=-1 is not allowed"),
        ({"init_weights": "lycoris"}, r"init_weights='lycoris' is not allowed: expected True or False"),
        ({"use_effective_conv2d": 1}, r"use_effective_conv2d=1 is not allowed"),
        ({"rank_pattern": {"q": 0}}, r"rank_pattern\['q'\]=0 is not allowed"),
        ({"alpha_pattern": {"q": None}}, r"alpha_pattern\['q'\]=None is not allowed"),
    ],
)
def test_values_that_are_not_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoHaConfig(**fields)


def test_default_targets() -> None:
    assert LoHaConfig().default_targets("llama") == ["q_proj", "v_proj"]
    assert LoHaConfig().default_targets("unheard-of") is None
