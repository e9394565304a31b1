"""Merging into quantised layers: copy-on-write, undone bit for bit, with a report; and exactly, into dense ones."""

from __future__ import annotations

import gc
import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inlay import InlayWarning, LoraConfig, PeftModel, get_peft_model
from inlay.core.adapted import is_adapted
from inlay.errors import NumericsError
from inlay.merge.report import MergeReport, Rounding
from inlay.quant import dequantised, is_quantised
from tests.quant.bases import EVERY, TARGETS, logits, state, with_adapter
from tests.tiny import scramble

ROUNDS = "Merging rounded to the quantised layers' precision"


def merge(view: Any, *args: Any) -> MergeReport:
    with pytest.warns(InlayWarning, match=ROUNDS) as caught:
        view.merge_adapter(*args)
    assert len(caught) == 1
    found: MergeReport = view.merge_report
    return found


@pytest.mark.parametrize("kind", EVERY)
def test_merging_and_undoing_it(kind: str, tiny: Any) -> None:
    base = tiny(kind)
    view = with_adapter(base)
    other = with_adapter(base, r=2)
    before, own, of_base, of_other = state(base), logits(view), logits(base), logits(other)
    hosts = view._inlay.hosts.items()
    wanted = {path: host.adapters["default"].weight(dequantised(host)).detach() for path, host in hosts}
    assert view.merge_report is None
    report = merge(view)
    assert [layer.path for layer in report.layers] == list(wanted)
    for layer in report.layers:
        e = dequantised(view.get_submodule(layer.path)) - wanted[layer.path]
        assert layer.largest == pytest.approx(float(e.abs().max()), rel=1e-5)
        assert layer.error == pytest.approx(float(e.norm()), rel=1e-5)
        change = (wanted[layer.path] - before[layer.path]).norm()
        assert layer.change == pytest.approx(float(change), rel=1e-4)
        assert 0 < layer.relative < (0.1 if "int8" in kind else 0.9)
    assert report.worst is max(report.layers, key=lambda layer: layer.relative)
    merged = logits(view)
    # nearer to the adapters' own function than the base is, and not the same
    assert 0 < (merged - own).norm() < 0.7 * (of_base - own).norm()
    assert torch.equal(logits(base), of_base) and torch.equal(logits(other), of_other)
    with view.disable_adapter():  # and what comes back is what was there, without a warning
        assert torch.equal(logits(view), of_base)
    assert torch.equal(logits(view), merged)
    view.unmerge_adapter()
    assert torch.equal(logits(view), own) and view.merge_report is None
    now = state(base)
    assert all(torch.equal(now[k], before[k]) for k in before)
    for _ in range(2):
        merge(view)
        assert torch.equal(logits(view), merged)
        view.unmerge_adapter()
    assert torch.equal(logits(view), own)
    for path, host in view._inlay.hosts.items():  # nothing of it stays behind
        assert host._parameters is base.get_submodule(path)._parameters
        assert not [k for k in host.__dict__ if k.startswith("_unmerged")]


@pytest.mark.parametrize("kind", EVERY)
def test_a_quantised_merged_model(kind: str, tiny: Any) -> None:
    base = tiny(kind)
    view = with_adapter(base)
    y = logits(base)
    merge(view)
    merged = logits(view)
    view.unmerge_adapter()
    with pytest.warns(InlayWarning, match=ROUNDS):
        plain = view.merge_and_unload()
    assert isinstance(plain.merge_report, MergeReport) and len(plain.merge_report.layers) == 6
    assert type(plain) is type(base) and not any(map(is_adapted, plain.modules()))
    assert torch.equal(logits(plain), merged) and torch.equal(logits(base), y)
    refs = [weakref.ref(view), weakref.ref(base)]
    del view, base
    gc.collect()
    # bitsandbytes' and torchao's quantisers know the model that they made
    assert refs[0]() is None
    assert torch.equal(logits(plain), merged)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_unloading_while_merged_starts_from_the_base(kind: str, tiny: Any) -> None:
    view = with_adapter(tiny(kind))
    merge(view)
    y = logits(view)
    with pytest.warns(InlayWarning, match=ROUNDS):
        plain = view.merge_and_unload()
    assert torch.equal(logits(plain), y)
    for host in plain.modules():
        assert not [k for k in host.__dict__ if k.startswith("_unmerged")]
    dense = view.merge_and_unload(dequantize=True)
    view.unmerge_adapter()
    torch.testing.assert_close(logits(dense), logits(view), rtol=0, atol=0.1 if kind == "int8" else 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", EVERY)
def test_a_dense_merged_model_is_exact_and_saves_as_a_normal_one(
    kind: str, dtype: torch.dtype, tiny: Any, tmp_path: Path
) -> None:
    base = tiny(kind, dtype)
    view = with_adapter(base)
    own, of_base = logits(view), logits(base)
    oracle = {path: host.adapters["default"].weight(dequantised(host)) for path, host in view._inlay.hosts.items()}
    dense = view.merge_and_unload(dequantize=True)
    assert not any(map(is_quantised, dense.modules())) and not hasattr(dense, "merge_report")
    for path, module in dense.named_modules():
        if path.endswith("_proj"):
            assert type(module) is nn.Linear and module.weight.dtype == dtype, path
            w = oracle[path] if path in oracle else dequantised(base.get_submodule(path))
            assert torch.equal(module.weight, w.to(dtype))
    size = {"int8": 0.1}.get(kind, 1e-4 if dtype == torch.float32 else 0.1)  # 8-bit layers round their inputs too
    torch.testing.assert_close(logits(dense), own, rtol=0, atol=size)
    assert torch.equal(logits(base), of_base) and torch.equal(logits(view), own)
    assert dense.model.embed_tokens.weight is base.model.embed_tokens.weight
    dense.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again = type(dense).from_pretrained(tmp_path, dtype=dtype).eval()
    assert torch.equal(logits(again), logits(dense)) and not getattr(again, "is_quantized", False)
    if kind != "hqq":
        assert base.config.quantization_config is not None and base.is_quantized and base.hf_quantizer is not None


def test_a_dense_model_of_another_dtype_is_a_copy(tiny: Any) -> None:
    base = tiny("nf4")
    view = with_adapter(base)
    dense = view.merge_and_unload(dequantize=torch.bfloat16)
    assert {p.dtype for p in dense.parameters()} == {torch.bfloat16} and logits(dense).dtype == torch.bfloat16
    assert base.model.embed_tokens.weight.dtype == torch.float32
    torch.testing.assert_close(logits(dense).float(), logits(view), rtol=0, atol=0.1)


def test_dequantising_a_dense_base_is_an_ordinary_merge(tiny: Any) -> None:
    view = with_adapter(tiny(None))
    y = logits(view)
    torch.testing.assert_close(logits(view.merge_and_unload(dequantize=True)), y, rtol=0, atol=1e-4)


def test_several_adapters_at_once_are_rounded_once(tiny: Any) -> None:
    base = tiny("nf4")
    view = with_adapter(base)
    view.add_adapter("b", LoraConfig(r=2, target_modules=["q_proj"]))
    view.add_adapter("c", LoraConfig(r=2, target_modules=["up_proj"]))
    scramble(view, 0.05)
    report = merge(view, ["default", "b"])
    assert len(report.layers) == 6
    q = view.model.layers[0].self_attn.q_proj
    w = dequantised(base.model.layers[0].self_attn.q_proj)
    for name in ("default", "b"):
        w = q.adapters[name].weight(w).detach()
    assert report.layers[0].error == pytest.approx(float((dequantised(q) - w).norm()), rel=1e-4)
    assert [layer.path.rsplit(".", 1)[-1] for layer in merge(view, ["c"]).layers] == ["up_proj"] * 2
    view.unmerge_adapter()
    assert q._parameters is base.model.layers[0].self_attn.q_proj._parameters


@pytest.mark.parametrize("kind", ["nf4", "int8", "torchao int8"])
def test_an_overflow_changes_nothing(kind: str, tiny: Any) -> None:
    view = with_adapter(tiny(kind))
    last = view.model.layers[1].mlp.down_proj
    y = logits(view)
    with torch.no_grad():
        last.adapters["default"].A[0, 0] = float("inf")
    with pytest.raises(NumericsError, match=r"NaN or infinity into model.layers.1.mlp.down_proj.weight"):
        view.merge_adapter()
    assert view._inlay.merged == [] and view.merge_report is None
    assert not [k for h in view._inlay.hosts.values() for k in h.__dict__ if k.startswith("_unmerged")]
    with torch.no_grad():
        last.adapters["default"].A[0, 0] = 0.0
    assert logits(view).shape == y.shape


def test_the_report_in_words(tiny: Any) -> None:
    report = merge(with_adapter(tiny("nf4")))
    worst = report.worst
    assert worst is not None
    text = str(report)
    assert text.startswith("6 quantised layers (bitsandbytes 4-bit): rounding ||E|| = ")
    assert f"worst at {worst.path}: ||E|| / ||W' - W|| = {worst.relative:.3g}, max |E| = {worst.largest:.3g}." in text
    assert report.error == pytest.approx(math.sqrt(sum(layer.error**2 for layer in report.layers)))
    assert report.change == pytest.approx(math.sqrt(sum(layer.change**2 for layer in report.layers)))
    assert "nothing was rounded" in str(MergeReport()) and MergeReport().worst is None
    assert Rounding("a", "b", 1.0, 1.0, 0.0).relative == math.inf and Rounding("a", "b", 0.0, 0.0, 0.0).relative == 0


def test_a_dense_merge_has_nothing_to_report(tiny: Any) -> None:
    view = with_adapter(tiny(None))
    view.merge_adapter()
    assert view.merge_report == MergeReport()


def test_a_quantised_layer_that_is_a_whole_host_of_a_dora_adapter(tiny: Any) -> None:
    """DoRA reads the weight; merged, it is the same function up to rounding."""
    base = tiny("nf4")
    view = scramble(get_peft_model(base, LoraConfig(r=2, target_modules=TARGETS, use_dora=True)), 0.05)
    y = logits(view)
    torch.testing.assert_close(logits(view.merge_and_unload(dequantize=True)), y, rtol=0, atol=1e-3)
    assert isinstance(view, PeftModel)
