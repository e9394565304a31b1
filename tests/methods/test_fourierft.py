"""FourierFT: the transform written as its sum, and the places of the spectrum."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import FourierFTConfig, get_peft_model
from inlay.errors import ConfigError
from inlay.methods.fourierft import places
from tests.tiny import close, scramble


def view_of(host: Any, random: bool = True, **fields: Any) -> Any:
    given = {"target_modules": ["0"], "n_frequency": 9, **fields}
    view = get_peft_model(nn.Sequential(host).eval(), FourierFTConfig(**given))
    return scramble(view, 0.5) if random else view


def update(view: Any, scale: float) -> Tensor:
    """s Re(F^-1(S)), one wave at a time."""
    at = view[0].adapters["default"]
    rows, columns = view[0].out_features, view[0].in_features
    a, b = torch.arange(rows).double()[:, None], torch.arange(columns).double()[None]
    total = torch.zeros(rows, columns, dtype=torch.float64)
    for value, j, k in zip(at.spectrum.detach().double(), *at.where, strict=True):
        total += value * torch.cos(2 * math.pi * (j * a / rows + k * b / columns))
    return scale * total / (rows * columns)


@pytest.mark.parametrize("bias", [True, False])
def test_the_formula(bias: bool) -> None:
    host = nn.Linear(7, 5, bias=bias).double()
    view = view_of(host, scaling=20)
    w = host.weight + update(view, 20)
    close(view[0].adapters["default"].weight(host.weight), w)
    x = torch.randn(2, 3, 7, dtype=torch.float64)
    close(view(x), x @ w.T + (host.bias if bias else 0))
    assert (view(x) - host(x)).abs().max() > 0.1


def test_the_places_are_different_and_follow_from_the_seed() -> None:
    found = places(30, 20, 600, 777)
    assert len({(int(a), int(b)) for a, b in found.T}) == 600
    assert int(found[0].max()) == 29 and int(found[1].max()) == 19
    assert torch.equal(places(30, 20, 50, 777), found[:, :50])
    assert not torch.equal(places(30, 20, 50, 778), found[:, :50])
    at = view_of(nn.Linear(20, 30), n_frequency=50)[0].adapters["default"]
    assert torch.equal(at.where, found[:, :50]) and "where" not in at.state_dict()
    # the generator's own: peft's files hold no places, so these may never change
    assert places(4, 3, 6, 777).tolist() == PLACES


PLACES = [[3, 2, 1, 2, 0, 0], [2, 1, 0, 2, 0, 2]]


def test_initial_values_and_keys() -> None:
    at = view_of(nn.Linear(60, 60), random=False, n_frequency=3000)[0].adapters["default"]
    assert list(at.tensors()) == ["fourierft_spectrum"] and at.spectrum.shape == (3000,)
    assert 0.95 < float(at.spectrum.detach().std()) < 1.05
    at = view_of(nn.Linear(6, 6), random=False, init_weights=True)[0].adapters["default"]
    assert not at.spectrum.any()
    at = view_of(nn.Linear(6, 6), n_frequency_pattern={"0": 4})[0].adapters["default"]
    assert at.spectrum.shape == (4,)


def test_16_bits() -> None:
    host, x = nn.Linear(7, 5).bfloat16(), torch.randn(3, 7).bfloat16()
    for keep in (False, True):
        config = FourierFTConfig(target_modules=["0"], n_frequency=9, scaling=10)
        view = scramble(get_peft_model(nn.Sequential(host).eval(), config, autocast_adapter_dtype=not keep), 0.5)
        exact = x.double() @ (host.weight.double() + update(view, 10)).T + host.bias.double()
        assert view(x).dtype is torch.bfloat16
        torch.testing.assert_close(view(x).double(), exact, rtol=0.03, atol=0.03)


def test_default_targets() -> None:
    assert FourierFTConfig().default_targets("gpt2") == ["mlp.c_proj"]
    assert FourierFTConfig().default_targets("llama") == ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_frequency": 0}, r"n_frequency=0 is not allowed: expected an integer of at least 1"),
        ({"n_frequency": 36}, r"n_frequency=36 is not allowed: expected at most 35, the entries of the weight of '0'"),
        ({"scaling": "x"}, r"scaling='x' is not allowed"),
        ({"random_loc_seed": None}, r"random_loc_seed=None is not allowed: expected an integer"),
        ({"init_weights": 1}, r"init_weights=1 is not allowed"),
        ({"n_frequency_pattern": {"0": 0}}, r"n_frequency_pattern\['0'\]=0 is not allowed"),
        ({"bias": "all"}, r"FourierFTConfig does not implement `bias`"),
    ],
)
def test_values_that_are_not_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        view_of(nn.Linear(7, 5), **fields)
