"""`prepare_model_for_kbit_training`, and Trainer on quantised bases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import inlay
from inlay import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from inlay.errors import ConfigError, StateError
from tests.hf.tiny import arguments
from tests.quant.bases import FOREIGN, TARGETS, folder, ids, load, logits, with_adapter

pytestmark = [pytest.mark.filterwarnings(w) for w in FOREIGN]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    where = folder(tmp_path_factory.mktemp("kbit"))
    return lambda kind, *args: load(where, kind, *args)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_what_is_not_quantised_becomes_float32_and_all_is_frozen(kind: str, tiny: Any) -> None:
    model = tiny(kind, torch.bfloat16)
    quantised = {n: p.clone() for n, p in model.named_parameters() if "_proj" in n}
    assert prepare_model_for_kbit_training(model) is model
    assert not any(p.requires_grad for p in model.parameters())
    for name, p in model.named_parameters():
        if name in quantised:
            assert torch.equal(p, quantised[name]) and type(p) is not nn.Parameter
        else:
            assert p.dtype == torch.float32
    assert model.is_gradient_checkpointing
    assert logits(model).dtype == torch.float32


def test_other_libraries_layers_keep_the_models_dtypes(tiny: Any) -> None:
    for kind in ("torchao int8", "hqq"):
        model = prepare_model_for_kbit_training(tiny(kind, torch.bfloat16))
        assert model.model.embed_tokens.weight.dtype == torch.bfloat16 and model.is_gradient_checkpointing
        assert logits(model).dtype == torch.bfloat16


def test_a_dense_model_is_frozen_and_widened_only(tiny: Any) -> None:
    model = prepare_model_for_kbit_training(tiny(None, torch.bfloat16))
    assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(torch.float32, False)}
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "int8", "torchao int8", "hqq"])
def test_checkpointed_gradients_are_the_plain_ones(kind: str, reentrant: bool, tiny: Any) -> None:
    grads = []
    for checkpointing in (False, True):
        options = {"use_reentrant": reentrant}
        model = prepare_model_for_kbit_training(tiny(kind), checkpointing, options)
        assert model.is_gradient_checkpointing is checkpointing
        view = with_adapter(model)
        logits(view)
        view.train()
        view(input_ids=ids(), labels=ids()).loss.backward()
        grads.append({k: p.grad for k, p in view.named_parameters() if p.requires_grad})
    assert len(grads[0]) == 12
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, rtol=1e-4, atol=1e-6)


def test_a_model_that_was_run_before_trains_all_its_layers(tiny: Any) -> None:
    """bitsandbytes 0.50 on CPUs with AVX512-BF16 silently gives up gradients of layers that were evaluated."""
    model = tiny("nf4")
    y = logits(model)
    prepare_model_for_kbit_training(model)
    torch.testing.assert_close(logits(model), y, rtol=0, atol=0.05)
    x = torch.randn(2, 64, requires_grad=True)
    model.train().model.layers[0].self_attn.q_proj(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_what_is_refused(tiny: Any) -> None:
    base = tiny("nf4", torch.bfloat16)
    view = with_adapter(base)
    with pytest.raises(StateError, match="There are adapters in this model, which would be frozen: prepare it before"):
        prepare_model_for_kbit_training(view)
    assert any(p.requires_grad for p in view.parameters())
    part = nn.Sequential(base.model.layers[0].self_attn.q_proj)
    with pytest.raises(ConfigError, match=r"use_gradient_checkpointing=True is not allowed: expected False"):
        prepare_model_for_kbit_training(part)
    prepare_model_for_kbit_training(part, use_gradient_checkpointing=False)


@pytest.mark.parametrize("kind", ["nf4 double", "int8", "torchao int8"])
def test_trainer(kind: str, tiny: Any, tmp_path: Path) -> None:
    from transformers import Trainer

    model = prepare_model_for_kbit_training(tiny(kind), gradient_checkpointing_kwargs={"use_reentrant": False})
    config = LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
    view = get_peft_model(model, config)
    data = [{"input_ids": row, "labels": row} for row in ids(8)]
    before = logits(view)
    trainer = Trainer(
        model=view, args=arguments(tmp_path, logging_strategy="steps", logging_steps=1), train_dataset=data
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] and not torch.equal(logits(view), before)
    trainer.save_model(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(tiny(kind), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(again), logits(view), rtol=0, atol=0.05)


def test_a_quantised_base_alone_is_still_refused_by_trainer(tiny: Any, tmp_path: Path) -> None:
    from transformers import Trainer

    base = tiny("nf4")
    get_peft_model(base, LoraConfig(r=4, target_modules=TARGETS))
    with pytest.raises(ValueError, match="purely quantized"):
        Trainer(model=base, args=arguments(tmp_path))


def test_it_is_public() -> None:
    assert inlay.prepare_model_for_kbit_training is prepare_model_for_kbit_training
