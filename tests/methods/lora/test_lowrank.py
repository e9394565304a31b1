"""The bias of B, the anchor, and anchored adapters as plain ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inlay import LoraConfig, PeftModel, as_plain_lora, get_peft_model
from inlay.errors import ConfigError, StateError, TargetError
from tests.tiny import close, ids, net, same, scramble, snapshot


def view_of(host: nn.Module, random: bool = True, **fields: Any) -> Any:
    base = nn.Sequential(host).eval()
    view = get_peft_model(base, LoraConfig(**{"target_modules": ["0"], "r": 2, "lora_alpha": 3, **fields}))
    return scramble(view, 0.5) if random else view


def adapter_of(view: Any) -> Any:
    return view[0].adapters["default"]


# ---------------------------------------------------------------------- lora_bias


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", ["none", "lora_only"])
def test_the_bias_of_b_is_scaled(bias: bool, trained: str) -> None:
    view = view_of(nn.Linear(8, 6, bias=bias).double(), lora_bias=True, bias=trained)
    adapter, x = adapter_of(view), torch.randn(5, 8, dtype=torch.float64)
    own = adapter.b if adapter.b is not None else view.unload()[0].bias
    w = view.unload()[0].weight + 1.5 * adapter.B @ adapter.A
    close(view(x), x @ w.T + 1.5 * adapter.c + (0 if own is None else own))
    assert adapter.tensors()["lora_B.bias"] is adapter.c
    if bias:
        close(view.merge_and_unload()(x), view(x))
    else:
        with pytest.raises(StateError, match=r"'0' .*lora_bias.* has none: it cannot be merged"):
            view.merge_and_unload()


def test_the_bias_of_b_starts_at_zero_or_with_false_at_random() -> None:
    assert not adapter_of(view_of(nn.Linear(8, 6), random=False, lora_bias=True)).c.any()
    c: Any = adapter_of(view_of(nn.Linear(8, 600), random=False, lora_bias=True, init_lora_weights=False, r=4)).c
    assert c.any() and 0.45 < float(c.detach().abs().max()) <= 0.5


def test_lora_bias_goes_with_few_inits_and_hosts() -> None:
    with pytest.raises(ConfigError, match="init_lora_weights='gaussian' is not allowed: expected True or False with"):
        LoraConfig(lora_bias=True, init_lora_weights="gaussian")
    with pytest.raises(TargetError, match=r"'0' is a Embedding, which LORA cannot adapt \(it adapts: conv1d"):
        view_of(nn.Embedding(8, 6), lora_bias=True)


# ---------------------------------------------------------------------- the anchor


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_3", "olora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_the_start_it_is_the_base_bit_for_bit(init: str, dtype: torch.dtype) -> None:
    base = net(dtype=dtype)
    before = snapshot(base)
    view = get_peft_model(base, LoraConfig(r=2, target_modules=["fc", "conv2", "embed"], init_lora_weights=init))
    y = view(ids())
    torch.testing.assert_close(y, base(ids()), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    assert same(snapshot(base), before)
    a = view.fc.adapters["default"]
    assert a.A.any() and a.B.any() and torch.equal(a.A, a.A0) and torch.equal(a.B, a.B0)
    assert not any(t.requires_grad for t in a.buffers())
    assert view.embed.adapters["default"].A0 is None


def test_dropout_leaves_what_stands_for_the_weight_alone() -> None:
    view = view_of(nn.Linear(8, 6).double(), init_lora_weights="pissa", lora_dropout=1.0).train()
    adapter, host = adapter_of(view), view.unload()[0]
    x = torch.randn(5, 8, dtype=torch.float64)
    close(view(x), host(x) - 1.5 * x @ adapter.A0.T @ adapter.B0.T)


def test_the_residual_is_found_again_from_the_file(tmp_path: Path) -> None:
    base = nn.Sequential(nn.Linear(8, 6))
    view = scramble(get_peft_model(base, LoraConfig(target_modules=["0"], r=2, init_lora_weights="pissa")))
    view.save_pretrained(tmp_path)
    x = torch.randn(3, 8)
    again = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(again(x), view(x))
    wrong = PeftModel.from_pretrained(base, tmp_path, config=LoraConfig(target_modules=["0"], r=2))
    assert not torch.allclose(wrong(x), view(x), atol=1e-2)


def test_a_file_is_not_read_into_an_adapter_with_another_anchor(tmp_path: Path) -> None:
    base = nn.Sequential(nn.Linear(8, 6))
    for init in ("gaussian", "pissa"):
        get_peft_model(base, LoraConfig(target_modules=["0"], r=2, init_lora_weights=init)).save_pretrained(
            tmp_path / init
        )
    plain = get_peft_model(base, LoraConfig(target_modules=["0"], r=2))
    plain.load_adapter(tmp_path / "gaussian", "default")
    with pytest.raises(ConfigError, match="differ in anchor"):
        plain.load_adapter(tmp_path / "pissa", "default")
    pissa = get_peft_model(base, LoraConfig(target_modules=["0"], r=2, init_lora_weights="pissa"))
    pissa.load_adapter(tmp_path / "pissa", "default")
    with pytest.raises(ConfigError, match="differ in anchor"):
        pissa.load_adapter(tmp_path / "gaussian", "default")


def test_what_cannot_be_decomposed_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"r=7 is not allowed: expected at most 6 at '0' with init_lora_weights="):
        view_of(nn.Linear(8, 6), r=7, init_lora_weights="pissa")
    with pytest.raises(ConfigError, match="lora_alpha=-1 is not allowed: expected a positive number"):
        view_of(nn.Linear(8, 6), lora_alpha=-1, init_lora_weights="pissa")
    host = nn.Linear(8, 6)
    host.weight = nn.Parameter(torch.zeros(6, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"reads the weight of '0', which is quantised \(torch.int8\)"):
        view_of(host, init_lora_weights="olora")
    with pytest.raises(ConfigError, match=r"use_dora=True reads the weight of '0', which is quantised \(torch.int8\)"):
        view_of(host, use_dora=True)
    with torch.device("meta"):
        host = nn.Linear(8, 6)
    with pytest.raises(ConfigError, match="which is not in memory"):
        view_of(host, init_lora_weights="olora")


# ---------------------------------------------------------------------- as plain LoRA


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora", "use_rslora": True, "rank_pattern": {"fc": 1}, "alpha_pattern": {"conv2": 3}},
        {"init_lora_weights": "pissa", "use_dora": True, "bias": "lora_only"},
        {"init_lora_weights": True},
    ],
    ids=str,
)
def test_as_plain_lora_computes_the_same(fields: dict[str, Any], tmp_path: Path) -> None:
    base = net(dtype=torch.float64)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["fc", "conv2", "embed"], **fields)
    view = scramble(get_peft_model(base, config))
    y = view(ids())
    as_plain_lora(view, "default", "plain")
    assert torch.equal(view(ids()), y)
    view.set_adapter("plain")
    close(view(ids()), y)
    kept = view.peft_config["plain"]
    assert (kept.r, kept.init_lora_weights) == (4, True)
    assert kept.scale("fc") == pytest.approx(config.scale("fc")) and kept.scale("conv2") == pytest.approx(
        config.scale("conv2")
    )
    view.save_pretrained(tmp_path, selected_adapters=["plain"])
    close(PeftModel.from_pretrained(base, tmp_path / "plain")(ids()), y)
    with pytest.raises(ConfigError, match="a name not in use"):
        as_plain_lora(view, "default", "plain")
    with pytest.raises(StateError, match="no adapter 'other'"):
        as_plain_lora(view, "other", "new")
