"""The same on a GPU, where these libraries have other kernels: gradients, merging and undoing it, dense merges."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inlay import InlayWarning
from inlay.quant import dequantised
from tests.quant.bases import ids, logits, state, with_adapter

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# what the layers themselves round beside their weights: bitsandbytes' int8 its inputs, TF32 is off
LOOSE = {"nf4": 2e-4, "nf4 double": 2e-4, "fp4": 2e-4, "int8": 0.1, "torchao int8": 1e-3, "hqq": 1e-3}


def gradients(view: Any) -> dict[str, torch.Tensor]:
    x = ids().to("cuda")
    view.train()(input_ids=x, labels=x).loss.backward()
    return {k: p.grad for k, p in view.named_parameters() if p.requires_grad}


def close(a: torch.Tensor, b: torch.Tensor, part: float) -> None:
    """`a` is `b` but for a part of its length."""
    assert (a - b).norm() <= part * b.norm()


@pytest.mark.parametrize("kind", LOOSE)
def test_gradients_are_those_on_the_dequantised_base(kind: str, tiny: Any) -> None:
    base, dense = tiny(kind, device="cuda"), tiny(None, device="cuda")
    for path, module in dense.named_modules():
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            module.weight.data.copy_(dequantised(base.get_submodule(path)))
    view, oracle = with_adapter(base), with_adapter(dense)
    close(logits(view), logits(oracle), LOOSE[kind])
    wanted = gradients(oracle)
    for key, grad in gradients(view).items():
        close(grad, wanted[key], 2 * LOOSE[kind])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", LOOSE)
def test_merging_undoing_it_and_merging_exactly(kind: str, dtype: torch.dtype, tiny: Any) -> None:
    base = tiny(kind, dtype, device="cuda")
    view = with_adapter(base)
    before, own, of_base = state(base), logits(view), logits(base)
    with pytest.warns(InlayWarning, match="Merging rounded to the quantised layers' precision"):
        view.merge_adapter()
    for layer in view.merge_report.layers:
        assert 0 < layer.relative < (0.2 if "int8" in kind else 0.9)
    merged = logits(view)
    assert 0 < (merged - own).norm() < 0.8 * (of_base - own).norm()
    assert torch.equal(logits(base), of_base)
    view.unmerge_adapter()
    assert torch.equal(logits(view), own)
    now = state(base)
    assert all(torch.equal(now[k], before[k]) for k in before)
    plain = view.merge_and_unload(dequantize=True)
    close(logits(plain), own, max(LOOSE[kind], 0.03 if dtype == torch.bfloat16 else 0))
