"""RandLoRA against its formula in float64, its bases, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inlay import PeftModel, RandLoraConfig, get_peft_model
from inlay.errors import ConfigError
from tests.tiny import close, mlp, scramble


def view_of(**fields: Any) -> Any:
    given = {"r": 3, "randlora_alpha": 2, "target_modules": ["up", "down"]}
    return get_peft_model(mlp(dtype=torch.float64), RandLoraConfig(**{**given, **fields}))


def by_hand(view: Any, name: str) -> Tensor:
    """s sum_j B_j diag(l_j) A diag(g_j) with the pairing of rows and columns that peft's flattening gives."""
    own = getattr(view, name).adapters["default"]
    out, inn = getattr(view, name).weight.shape
    (r, n), short, long = own.l.shape, min(out, inn), max(out, inn)
    rows = [own.l[k, j] * own.bank.A[k, 0, :short] * own.g[j] for k in range(r) for j in range(n)]
    columns = [own.bank.B[:long, j, k] for j in range(n) for k in range(r)]
    change = sum(torch.outer(c, row) for c, row in zip(columns, rows, strict=True)) * 2 / r
    return change if out >= inn else change.T  # type: ignore[union-attr, return-value]


@pytest.mark.parametrize("r", [1, 3, 8, 11])
def test_the_formula(r: int) -> None:
    view, base = scramble(view_of(r=r), 0.3), mlp(dtype=torch.float64)
    x = torch.randn(4, 8, dtype=torch.float64)
    y = torch.relu(x @ (base.up.weight + by_hand(view, "up")).T + base.up.bias)
    close(view(x), y @ (base.down.weight + by_hand(view, "down")).T + base.down.bias)
    assert (view(x) - base(x)).abs().max() > 1e-2
    assert view.up.adapters["default"].n == math.ceil(8 / r)


def test_the_update_is_of_full_rank() -> None:
    view = scramble(view_of(r=2), 0.3)
    assert torch.linalg.matrix_rank(by_hand(view, "up")) == 8


def test_the_bases_are_shared_and_come_from_the_key() -> None:
    view = view_of()
    bank = view.up.adapters["default"].bank
    assert bank is view.down.adapters["default"].bank
    assert bank.A.shape == (3, 1, 16) and bank.B.shape == (16, 6, 3)
    torch.manual_seed(42)
    assert torch.equal(view_of().up.adapters["default"].bank.B, bank.B)
    assert not torch.equal(view_of(projection_prng_key=1).up.adapters["default"].bank.B, bank.B)
    assert view.get_nb_trainable_parameters()[0] == 2 * (3 * 3 + 3 * 8)
    for basis in (bank.A, bank.B):
        assert abs(float(basis.std()) - 1) < 0.02


@pytest.mark.parametrize(("fields", "share"), [({"sparse": True}, 1 / 3), ({"very_sparse": True}, 1 / 4)])
def test_sparse_bases_have_three_values(fields: dict[str, Any], share: float) -> None:
    basis = view_of(r=1, **fields).up.adapters["default"].bank.B
    assert len(basis.unique()) == 3 and float(basis.unique()[1]) == 0
    assert abs(float((basis != 0).double().mean()) - share) < 0.1


def test_the_initial_values() -> None:
    fresh = view_of().up.adapters["default"]
    assert not fresh.l.any() and torch.equal(fresh.g, torch.full((3, 8), 1 / 8, dtype=torch.float64))
    random = view_of(init_weights=False).up.adapters["default"]
    assert bool(random.l.all()) and torch.equal(random.g, torch.full((3, 8), 1 / 16, dtype=torch.float64))


def test_dropout_acts_on_the_update_only() -> None:
    view = scramble(view_of(randlora_dropout=1.0)).train()
    x = torch.randn(4, 8, dtype=torch.float64)
    assert torch.equal(view(x), view.unload()(x))


def test_without_saved_bases_they_are_made_from_the_key(tmp_path: Path) -> None:
    view, x = scramble(view_of(save_projection=False, projection_prng_key=4)), torch.randn(2, 8, dtype=torch.float64)
    view.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(mlp(dtype=torch.float64), tmp_path)(x), view(x))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "r=0 is not allowed: expected an integer of at least 1"),
        ({"projection_prng_key": -1}, "projection_prng_key=-1 is not allowed"),
        ({"randlora_dropout": 2}, "randlora_dropout=2 is not allowed"),
        ({"sparse": 1}, "sparse=1 is not allowed: expected True or False"),
        ({"bias": "all"}, "RandLoraConfig does not implement `bias`"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RandLoraConfig(**fields)
