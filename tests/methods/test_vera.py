"""VeRA against its formula in float64, its initialisation, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inlay import PeftModel, VeraConfig, get_peft_model
from inlay.errors import ConfigError, MismatchError
from tests.tiny import close, mlp, scramble


def view_of(**fields: Any) -> Any:
    return get_peft_model(mlp(dtype=torch.float64), VeraConfig(**{"r": 3, "target_modules": ["up", "down"], **fields}))


def by_hand(view: Any, x: Tensor) -> Tensor:
    """The network with VeRA, element by element as the paper writes it."""
    bank, base = view.up.adapters["default"].bank, view.unload()
    for i, name in enumerate(("up", "down")):
        layer, own = getattr(base, name), getattr(view, name).adapters["default"]
        (out, inn), r = layer.weight.shape, len(own.d)
        delta = torch.zeros(out, inn, dtype=torch.float64)
        for k in range(r):
            delta += torch.outer(own.b * bank.B[:out, k], own.d[k] * bank.A[k, :inn])
        x = x @ (layer.weight + delta).T + layer.bias
        x = torch.relu(x) if i == 0 else x
    return x


def test_the_formula() -> None:
    view, x = scramble(view_of()), torch.randn(4, 8, dtype=torch.float64)
    close(view(x), by_hand(view, x))
    assert (view(x) - view.unload()(x)).abs().max() > 1e-2


def test_all_layers_share_one_pair_of_projections() -> None:
    view = view_of()
    up, down = view.up.adapters["default"], view.down.adapters["default"]
    assert up.bank is down.bank
    assert up.bank.A.shape == (3, 16) and up.bank.B.shape == (16, 3)
    assert sum(p.numel() for p in view.parameters() if p.requires_grad) == 16 + 3 + 8 + 3
    assert view.get_nb_trainable_parameters()[0] == 30


def test_the_projections_are_kaiming_uniform_and_come_from_the_key() -> None:
    bank = view_of(r=64).up.adapters["default"].bank
    for tensor in (bank.A, bank.B):
        bound = math.sqrt(6 / tensor.shape[1])
        assert tensor.abs().max() <= bound * 1.0001 and tensor.abs().max() > 0.9 * bound
        assert abs(float(tensor.std()) - bound / math.sqrt(3)) < 0.05 * bound
    torch.manual_seed(99)
    again = view_of(r=64).up.adapters["default"].bank
    assert torch.equal(bank.A, again.A) and torch.equal(bank.B, again.B)
    other = view_of(r=64, projection_prng_key=1).up.adapters["default"].bank
    assert not torch.equal(bank.A, other.A)


def test_the_initial_values() -> None:
    fresh = view_of(d_initial=0.25).up.adapters["default"]
    assert torch.equal(fresh.d, torch.full((3,), 0.25, dtype=torch.float64)) and not fresh.b.any()
    random = view_of(init_weights=False).up.adapters["default"]
    assert torch.equal(random.b, torch.ones(16, dtype=torch.float64)) and len(set(random.d.tolist())) == 3


def test_dropout_acts_on_the_update_only() -> None:
    view = scramble(view_of(vera_dropout=1.0)).train()
    x = torch.randn(4, 8, dtype=torch.float64)
    assert torch.equal(view(x), view.unload()(x))


def test_without_saved_projections_they_are_made_from_the_key(tmp_path: Path) -> None:
    view, x = scramble(view_of(save_projection=False, projection_prng_key=4)), torch.randn(2, 8, dtype=torch.float64)
    view.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(mlp(dtype=torch.float64), tmp_path)(x), view(x))


def test_saved_projections_are_read_not_made(tmp_path: Path) -> None:
    view, x = scramble(view_of()), torch.randn(2, 8, dtype=torch.float64)
    with torch.no_grad():
        view.up.adapters["default"].bank.A.mul_(2)
    view.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(mlp(dtype=torch.float64), tmp_path)(x), view(x))


def test_a_file_without_projections_is_no_file_with_them(tmp_path: Path) -> None:
    view_of(save_projection=False).save_pretrained(tmp_path)
    config = VeraConfig(r=3, target_modules=["up", "down"])
    with pytest.raises(MismatchError, match=r"vera_A"):
        PeftModel.from_pretrained(mlp(dtype=torch.float64), tmp_path, config=config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "r=0 is not allowed: expected an integer of at least 1"),
        ({"projection_prng_key": "x"}, "projection_prng_key='x' is not allowed"),
        ({"vera_dropout": 2}, "vera_dropout=2 is not allowed"),
        ({"save_projection": 1}, "save_projection=1 is not allowed: expected True or False"),
        ({"bias": "all"}, "VeraConfig does not implement `bias`"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VeraConfig(**fields)
