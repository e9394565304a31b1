"""LoKr: a Kronecker product, entry by entry, and how W1 and W2 share W's sides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import LoKrConfig, get_peft_model
from inlay.errors import ConfigError
from inlay.methods.lokr import divided
from tests.tiny import close, scramble

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def view_of(host: Any, random: bool = True, **fields: Any) -> Any:
    view = get_peft_model(nn.Sequential(host).eval(), LoKrConfig(**{"target_modules": ["0"], "r": 1, **fields}))
    return scramble(view, 0.5) if random else view


def update(view: Any) -> Tensor:
    """s W1 kron W2, one entry of W1 at a time."""
    at, shape = view[0].adapters["default"], view[0].weight.shape
    k, n, *kernel = at.inner
    w1 = at.w1 if at.w1 is not None else sum(torch.outer(at.a1[:, p], at.b1[p]) for p in range(at.r))
    if at.w2 is not None:
        w2 = at.w2
    elif at.t2 is None:
        w2 = sum(torch.outer(at.a2[:, p], at.b2[p]) for p in range(at.r)).reshape(k, n, *kernel)
    else:
        w2 = torch.zeros(k, n, *kernel, dtype=torch.float64)
        for p in range(at.r):
            for q in range(at.r):
                for b in range(k):
                    for d in range(n):
                        w2[b, d] += at.a2[p, b] * at.b2[q, d] * at.t2[p, q].reshape(kernel)
    change = torch.zeros(shape, dtype=torch.float64)
    for a in range(w1.shape[0]):
        for c in range(w1.shape[1]):
            change[a * k : (a + 1) * k, c * n : (c + 1) * n] = w1[a, c] * w2
    return at.scale * change


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"r": 2, "alpha": 3},
        {"r": 100},
        {"decompose_both": True, "decompose_factor": 12},
        {"decompose_factor": 2},
        {"decompose_factor": 5},
    ],
    ids=str,
)
def test_linear(fields: dict[str, Any]) -> None:
    host = nn.Linear(24, 36).double()
    view = view_of(host, **fields)
    close(view[0].adapters["default"].weight(host.weight), host.weight + update(view))
    for x in (torch.randn(24), torch.randn(2, 7, 24), torch.randn(24, 5).T, torch.randn(0, 24)):
        x = x.double()
        close(view(x), x @ (host.weight + update(view)).T + host.bias)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("fields", [{}, {"r": 1, "use_effective_conv2d": True}, {"r": 50}], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"groups": 2, "stride": 2}, {"padding": 1, "padding_mode": "circular"}], ids=str
)
def test_convolutions(dims: int, fields: dict[str, Any], options: dict[str, Any]) -> None:
    host = CONV[dims](12, 36, 3, **options).double()
    view = view_of(host, **fields)
    x = torch.randn(2, 12, *[5, 6, 7][:dims], dtype=torch.float64)
    change = update(view)
    if dims == 1 and "r" in fields and fields["r"] == 50:  # what peft does, whatever it means: torch.kron aligns right
        at = view[0].adapters["default"]
        change = at.scale * torch.kron(at.w1, at.w2).reshape(change.shape)
    close(view(x), host._conv_forward(x, host.weight + change, host.bias))


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        (256, -1, (16, 16)),
        (128, -1, (8, 16)),
        (127, -1, (1, 127)),
        (1, -1, (1, 1)),
        (12, 5, (3, 4)),
        (36, 5, (4, 9)),
        (128, 4, (4, 32)),
        (128, 64, (64, 2)),
        (127, 10, (1, 127)),
    ],
)
def test_how_a_side_is_divided(size: int, factor: int, expected: tuple[int, int]) -> None:
    assert divided(size, factor) == expected


def test_shapes_and_keys() -> None:
    def shapes(host: Any, **fields: Any) -> dict[str, tuple[int, ...]]:
        found = view_of(host, **fields)[0].adapters["default"].tensors()
        return {k.removeprefix("lokr_"): tuple(v.shape) for k, v in found.items()}

    assert shapes(nn.Linear(16, 36)) == {"w1": (6, 4), "w2_a": (6, 1), "w2_b": (1, 4)}
    assert shapes(nn.Linear(16, 36), r=3) == {"w1": (6, 4), "w2": (6, 4)}
    assert shapes(nn.Linear(16, 36), decompose_both=True) == {
        "w1_a": (6, 1),
        "w1_b": (1, 4),
        "w2_a": (6, 1),
        "w2_b": (1, 4),
    }
    assert shapes(nn.Conv2d(16, 36, (3, 2))) == {"w1": (6, 4), "w2_a": (6, 1), "w2_b": (1, 4 * 6)}
    assert shapes(nn.Conv1d(16, 36, 3), use_effective_conv2d=True) == {
        "w1": (6, 4),
        "w2_a": (1, 6),
        "w2_b": (1, 4),
        "t2": (1, 1, 3, 1),
    }
    assert shapes(nn.Conv2d(16, 36, 1), use_effective_conv2d=True) == {"w1": (6, 4), "w2_a": (6, 1), "w2_b": (1, 4)}


def test_initial_values() -> None:
    def zero(**fields: Any) -> set[str]:
        at = view_of(nn.Conv2d(16, 36, 3), random=False, **fields)[0].adapters["default"]
        return {k.removeprefix("lokr_") for k, v in at.tensors().items() if not v.any()}

    assert zero() == {"w1"}
    assert zero(decompose_both=True) == {"w1_a"}
    assert zero(init_weights="lycoris") == zero(init_weights="lycoris", use_effective_conv2d=True) == {"w2_b"}
    assert zero(init_weights="lycoris", r=4) == {"w2"}
    assert zero(init_weights=False) == set()


def test_dropout_scales_only_when_asked() -> None:
    host, x = nn.Linear(4, 4000).double(), torch.randn(2, 4, dtype=torch.float64)
    for scaled in (False, True):
        view = view_of(host, rank_dropout=0.25, rank_dropout_scale=scaled)
        share = (view.train()(x) - host(x))[0] / (view.eval()(x) - host(x))[0]
        kept = share.abs() > 1e-6
        assert 0.7 < float(kept.double().mean()) < 0.8
        wanted = 1 / float(kept.double().mean()) if scaled else 1.0
        close(share[kept], torch.full_like(share[kept], wanted), 1e-6, 1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decompose_factor": 0}, r"decompose_factor=0 is not allowed: expected -1 or a positive integer"),
        ({"decompose_factor": -2}, r"decompose_factor=-2 is not allowed"),
        ({"decompose_both": None}, r"decompose_both=None is not allowed: expected True or False"),
        ({"rank_dropout_scale": 0}, r"rank_dropout_scale=0 is not allowed"),
        ({"init_weights": "lycor"}, r"init_weights='lycor' is not allowed.*Did you mean 'lycoris'"),
        ({"r": 1.5}, r"r=1.5 is not allowed"),
    ],
)
def test_values_that_are_not_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoKrConfig(**fields)
