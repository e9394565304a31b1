"""The real SmolLM2-135M-Instruct, quantised: training lowers held-out loss, and a merge is within its report."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inlay import InlayWarning, LoraConfig, get_peft_model, prepare_model_for_kbit_training
from inlay.core.host import weight_of
from tests import smollm2
from tests.quant.bases import load

LENGTH, STEPS = 64, 8


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder of the dense model, batches to train on, a held-out batch)."""
    demo = smollm2.demo()
    where = tmp_path_factory.mktemp("smollm2")
    _, tokenizer = smollm2.save(where)
    train, held = demo.load_rows()

    def batch(rows: list[Any]) -> dict[str, Any]:
        cut = [(i[:LENGTH], labels[:LENGTH]) for i, labels in (demo.encode(row, tokenizer) for row in rows)]
        return dict(demo.collate(cut, tokenizer.eos_token_id))

    return where, [batch(train[2 * i : 2 * i + 2]) for i in range(STEPS)], batch(held[:3])


def loss_of(model: Any, batch: dict[str, Any]) -> float:
    with torch.no_grad():
        return float(model(**batch).loss)


@pytest.mark.parametrize("kind", ["nf4 double", "int8", "torchao int8", "torchao intx"])
def test_training_merging_and_what_the_merge_rounds(kind: str, real: Any) -> None:
    where, batches, held = real
    base = prepare_model_for_kbit_training(load(where, kind), use_gradient_checkpointing=False)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    torch.manual_seed(0)
    view = get_peft_model(base, config)
    before = loss_of(base, held)

    optimizer = torch.optim.AdamW([p for p in view.parameters() if p.requires_grad], lr=2e-3)
    view.train()
    for batch in batches:
        view(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    view.eval()
    after = loss_of(view, held)
    assert after < before - 0.3

    # |L(merged) - L| <= sum of ||dL/dW'|| ||E|| to first order, with the gradient where the weights are
    with pytest.warns(InlayWarning, match="Merging rounded to the quantised layers' precision. 90 quantised layers"):
        view.merge_adapter()
    merged = loss_of(view, held)
    report = view.merge_report
    assert len(report.layers) == 90 and report.error > 0
    view.unmerge_adapter()
    dense = view.merge_and_unload(dequantize=True)
    modules = {layer.path: dense.get_submodule(layer.path) for layer in report.layers}
    for module in modules.values():
        module.weight.requires_grad_(True)
    loss = dense(**held).loss
    loss.backward()
    exact = loss.item()
    assert abs(exact - after) < (0.2 if kind == "int8" else 1e-3)  # bitsandbytes' 8-bit layers round their inputs, too
    bound = sum(float(weight_of(modules[x.path]).grad.norm()) * x.error for x in report.layers)  # type: ignore[union-attr]
    inputs = abs(exact - after)  # what rounding inputs makes, in the merged model as in the view
    assert abs(merged - after) <= bound + 2 * inputs
    if "int8" in kind:  # 4 bits round away most of what so short a training learns
        assert merged < before - 0.2
