"""VB-LoRA against its formula in float64, its initialisation, its two kinds of file, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inlay import PeftModel, VBLoRAConfig, get_peft_model
from inlay.errors import ConfigError, StateError
from inlay.io.folder import STATE_NAME
from tests.tiny import close, mlp, scramble

FIELDS = {"r": 3, "num_vectors": 6, "vector_length": 4, "target_modules": ["up", "down"]}


def view_of(dtype: torch.dtype = torch.float64, **fields: Any) -> Any:
    return get_peft_model(mlp(dtype=dtype), VBLoRAConfig(**{**FIELDS, **fields}))


def piece(logits: Tensor, vectors: Tensor, k: int) -> Tensor:
    """One sub-vector, from its logits over the bank."""
    best = sorted(range(len(logits)), key=lambda i: -logits[i].item())[:k]
    share = torch.exp(logits[best]) / torch.exp(logits[best]).sum()
    return sum(share[j] * vectors[i] for j, i in enumerate(best))  # type: ignore[return-value]


def by_hand(view: Any, name: str, k: int) -> Tensor:
    """B A of one layer, piece by piece."""
    own = getattr(view, name).adapters["default"]
    vectors, a, b = own.bank.vectors, own.a.logits, own.b.logits
    r, length = a.shape[0], vectors.shape[1]
    rows = [torch.cat([piece(a[i, j], vectors, k) for j in range(a.shape[1])]) for i in range(r)]
    columns = [torch.cat([piece(b[j, i], vectors, k) for j in range(b.shape[0])]) for i in range(r)]
    assert rows[0].shape == (a.shape[1] * length,)
    return sum(torch.outer(column, row) for column, row in zip(columns, rows, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("k", [1, 2, 6])
def test_the_formula(k: int) -> None:
    view, base = scramble(view_of(topk=k), 0.5), mlp(dtype=torch.float64)
    x = torch.randn(4, 8, dtype=torch.float64)
    up, down = by_hand(view, "up", k), by_hand(view, "down", k)
    y = torch.relu(x @ (base.up.weight + up).T + base.up.bias) @ (base.down.weight + down).T + base.down.bias
    close(view(x), y)
    assert (y - base(x)).abs().max() > 1e-2


def test_one_trained_bank_is_shared() -> None:
    view = view_of()
    up, down = view.up.adapters["default"], view.down.adapters["default"]
    assert up.bank is down.bank and up.bank.vectors.requires_grad
    assert up.a.logits.shape == (3, 2, 6) and up.b.logits.shape == (4, 3, 6)
    assert view.get_nb_trainable_parameters()[0] == 6 * 4 + 2 * (3 * 2 * 6 + 4 * 3 * 6)
    view(torch.randn(4, 8, dtype=torch.float64)).sum().backward()
    alone = view.up.adapters["default"].bank.vectors.grad
    assert alone is not None and alone.abs().sum() > 0


def test_the_initial_values() -> None:
    own = view_of(num_vectors=500, init_vector_bank_bound=0.25, init_logits_std=0.5).up.adapters["default"]
    own.requires_grad_(False)
    vectors = own.bank.vectors
    assert vectors.abs().max() <= 0.25 and abs(float(vectors.std()) - 0.25 / 3**0.5) < 0.01
    for logits in (own.a.logits, own.b.logits):
        assert abs(float(logits.std()) - 0.5) < 0.05 and abs(float(logits.mean())) < 0.05


def test_the_gradient_reaches_the_chosen_logits_only() -> None:
    view = scramble(view_of(topk=2), 0.5)
    view(torch.randn(4, 8, dtype=torch.float64)).square().sum().backward()
    a = view.up.adapters["default"].a.logits
    assert torch.equal((a.grad != 0).sum(-1), torch.full((3, 2), 2))
    assert bool((a.grad.gather(-1, a.topk(2).indices) != 0).all())


@pytest.mark.parametrize(("num", "dtype"), [(6, torch.uint8), (256, torch.int16)])
@pytest.mark.parametrize("k", [1, 2])
def test_a_small_file_answers_the_same(num: int, dtype: torch.dtype, k: int, tmp_path: Path) -> None:
    view = scramble(view_of(num_vectors=num, topk=k, save_only_topk_weights=True), 0.5)
    x = torch.randn(3, 8, dtype=torch.float64)
    view.save_pretrained(tmp_path / "a")
    again = PeftModel.from_pretrained(mlp(dtype=torch.float64), tmp_path / "a")
    close(again(x), view(x))
    assert again.up.adapters["default"].a.indices.dtype == dtype
    again.save_pretrained(tmp_path / "b")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    again.merge_adapter()
    close(again(x), view(x))


def test_training_goes_on_from_the_training_state(tmp_path: Path) -> None:
    view = scramble(view_of(save_only_topk_weights=True), 0.5)
    x = torch.randn(3, 8, dtype=torch.float64)
    view.save_pretrained(tmp_path)
    assert (tmp_path / STATE_NAME).is_file()
    again = PeftModel.from_pretrained(mlp(dtype=torch.float64), tmp_path, is_trainable=True)
    other = scramble(view_of(save_only_topk_weights=True), 0.3, seed=9)
    other.load_adapter(tmp_path, "default", is_trainable=True)
    for loaded in (again, other):
        for name in ("up", "down"):
            mine, its = getattr(view, name).adapters["default"], getattr(loaded, name).adapters["default"]
            for (key, value), (_, found) in zip(mine.named_parameters(), its.named_parameters(), strict=True):
                assert torch.equal(value, found), key
        assert torch.equal(loaded(x), view(x))


@pytest.mark.filterwarnings("ignore:.*has no training_state:inlay.InlayWarning")
def test_the_shares_alone_cannot_be_trained_on(tmp_path: Path) -> None:
    view_of(save_only_topk_weights=True).save_pretrained(tmp_path, training_state=False)
    with pytest.raises(StateError, match="is computed from parameters that the file does not hold"):
        PeftModel.from_pretrained(mlp(dtype=torch.float64), tmp_path, is_trainable=True)


def test_a_new_adapter_for_inference_has_shares_that_are_some() -> None:
    own = view_of(save_only_topk_weights=True, inference_mode=True).up.adapters["default"]
    indices, shares = own.a.chosen()
    close(shares.sum(-1), torch.ones(3, 2, dtype=torch.float64))
    assert bool((shares > 0).all()) and bool((indices[..., 0] != indices[..., 1]).all())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "r=0 is not allowed: expected an integer of at least 1"),
        ({"topk": 300}, "topk=300 is not allowed: expected at most num_vectors=256"),
        ({"num_vectors": 2.5}, "num_vectors=2.5 is not allowed"),
        ({"init_logits_std": -1}, "init_logits_std=-1 is not allowed"),
        ({"save_only_topk_weights": None}, "save_only_topk_weights=None is not allowed"),
        ({"bias": "all"}, "VBLoRAConfig does not implement `bias`"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VBLoRAConfig(**fields)


def test_vectors_that_do_not_fit_a_layer() -> None:
    with pytest.raises(ConfigError, match="vector_length=3 is not allowed: expected a divisor of the 8 inputs or outp"):
        view_of(vector_length=3)
