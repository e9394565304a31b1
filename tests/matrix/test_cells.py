"""Every method on every model: its own targets, one training step, `generate`, and a file."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inlay import InlayError, PeftModel, get_peft_model
from tests.matrix.methods import INPUTS, RATES, cells, config, reason
from tests.matrix.models import SPECIAL, Model, wave
from tests.tiny import same, snapshot

NEW_TOKENS = 3


@functools.cache
def bases(model: Model) -> tuple[Any, Any, dict[str, Tensor]]:
    """Two equal models with weights of their own, and a copy of the weights. Views do not change them."""
    base = model.build()
    return base, model.build(), snapshot(base)


def inputs(model: Model, method: str) -> dict[str, Any]:
    """What a call takes."""
    return {**model.batch(), **INPUTS.get(method, {})}


def tensors(outputs: Any) -> list[Tensor]:
    """The tensors among a model's outputs."""
    return [t for t in outputs.values() if isinstance(t, Tensor)]


def loss_of(outputs: Any) -> Tensor:
    """The model's loss, or the distance of its output from a fixed one where it has none."""
    loss = getattr(outputs, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    hidden = tensors(outputs)[0]
    return (hidden - wave(*hidden.shape)).square().mean()


def parameters() -> list[Any]:
    """Every cell, as pytest has it; those with a bug are expected to fail."""
    found = []
    for model, method in cells():
        why = reason(method, model)
        marks = [pytest.mark.xfail(strict=True, reason=why.text)] if why is not None and why.bug else []
        found.append(pytest.param(model, method, id=f"{model}-{method}", marks=marks))
    return found


@pytest.mark.parametrize(("model", "method"), parameters())
def test_cell(model: Model, method: str, tmp_path: Path, record_property: Any) -> None:
    if model.package is not None:
        pytest.importorskip(model.package)
    why = reason(method, model)
    record_property("cell", [str(model), method, None if why is None else why.text])
    base, twin, weights = bases(model)
    try:
        if why is None or why.bug:
            works(base, twin, model, method, tmp_path)
        else:
            with pytest.raises(InlayError, match=why.error):
                get_peft_model(base, config(method, model))(**inputs(model, method))
    finally:
        assert same(snapshot(base), weights) and same(snapshot(twin), weights)


def works(base: Any, twin: Any, model: Model, method: str, folder: Path) -> None:
    """A cell of the page that has a tick."""
    view = get_peft_model(base, config(method, model))
    if not model.aside:
        view.verify(**inputs(model, method))
    train(view, model, method)
    if model.prompt is not None:
        generate(view, model, method)
    reload(view, twin, model, method, folder)


def train(view: Any, model: Model, method: str) -> None:
    """One step, which lowers the loss and concerns adapters only."""
    batch = inputs(model, method)
    own = {id(p) for adapters in view._inlay.placed.values() for a in adapters.values() for p in a.parameters()}
    trained = [p for p in view.parameters() if p.requires_grad]
    assert trained and {id(p) for p in trained} <= own
    before = [p.detach().clone() for p in trained]
    with torch.no_grad():
        start = loss_of(view.eval()(**batch))
    loss_of(view.train()(**batch)).backward()
    for rate in RATES:
        with torch.no_grad():
            for p, value in zip(trained, before, strict=True):
                p.copy_(value)
            torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, foreach=False).step()
            end = loss_of(view.eval()(**batch))
        if end < start - 1e-5:
            break
    else:
        pytest.fail(f"the loss went from {start} to {end}")


def generate(view: Any, model: Model, method: str) -> None:
    """The likeliest tokens one by one, with cached states, are those of one pass over the whole."""
    assert model.prompt is not None
    prompt, more = model.prompt(), INPUTS.get(method, {})
    tokens = view.generate(**prompt, **more, max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True)
    whole = dict(prompt)
    if view.config.is_encoder_decoder:
        if tokens.shape[1] == NEW_TOKENS:  # Whisper's come without the token that starts them
            start = torch.full_like(tokens[:, :1], view.config.decoder_start_token_id)
            tokens = torch.cat([start, tokens], 1)
        whole["decoder_input_ids"] = tokens
    else:
        whole["input_ids"], whole["attention_mask"] = tokens, torch.ones_like(tokens)
        if model.family == "roberta":  # transformers' `generate` counts positions from 0, a call by itself from 1
            whole["position_ids"] = torch.arange(tokens.shape[1]).expand_as(tokens)
    with torch.no_grad():
        logits = view(**whole, **more).logits[:, -NEW_TOKENS - 1 : -1]
    logits[..., list(SPECIAL)] = -torch.inf
    assert torch.equal(logits.argmax(-1), tokens[:, -NEW_TOKENS:])


def reload(view: Any, twin: Any, model: Model, method: str, folder: Path) -> None:
    """Saved and loaded on another copy of the base, the outputs are the same."""
    view.save_pretrained(folder)
    again = PeftModel.from_pretrained(twin, folder)
    batch = inputs(model, method)
    with torch.no_grad():
        for a, b in zip(tensors(again(**batch)), tensors(view(**batch)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
