"""Views of quantised bases: training every kind of adapter, copying, saving, loading, counting."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import inlay
from inlay import LoraConfig, PeftModel, get_peft_model
from inlay.errors import BaseMismatchError, ConfigError, TargetError
from inlay.io.fingerprint import fingerprint
from inlay.quant import dequantised
from tests.quant.bases import EVERY, TARGETS, ids, logits, state, with_adapter
from tests.tiny import scramble


def train(view: Any, steps: int = 3, lr: float = 0.02) -> list[float]:
    """Trains a view on one batch; returns the losses."""
    parameters = [p for p in view.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    view.train()
    losses = []
    for _ in range(steps):
        loss = view(input_ids=ids(), labels=ids()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    view.eval()
    return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", EVERY)
def test_training_leaves_the_base_and_another_view_as_they_were(kind: str, dtype: torch.dtype, tiny: Any) -> None:
    base = tiny(kind, dtype)
    first, second = with_adapter(base), with_adapter(base, r=2)
    before, y, y2 = state(base), logits(base), logits(second)
    assert {p.dtype for p in first.parameters() if p.requires_grad} == {torch.float32}
    losses = train(first)
    assert losses[-1] < losses[0]
    assert torch.equal(logits(base), y) and torch.equal(logits(second), y2)
    now = state(base)
    assert all(torch.equal(now[k], before[k]) for k in before)
    assert train(second)[-1] < losses[0] + 1


@pytest.mark.parametrize("kind", EVERY)
def test_gradients_are_those_on_the_dequantised_base(kind: str, tiny: Any) -> None:
    base = tiny(kind)
    view, dense = with_adapter(base), with_adapter(tiny(None))
    logits(base)  # on some CPUs bitsandbytes gives up gradients here; a view sees to it that it does not
    logits(view)
    with torch.no_grad():
        for path, module in dense._base.named_modules():
            if path.endswith("_proj"):
                module.weight.copy_(dequantised(base.get_submodule(path)))
    found = []
    for model in (view, dense):
        model.train()
        model(input_ids=ids(), labels=ids()).loss.backward()
        found.append({k: p.grad for k, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys() and len(found[0]) == 12
    for key, grad in found[0].items():
        other = found[1][key]
        assert (grad - other).norm() <= (0.05 if kind == "int8" else 1e-4) * other.norm(), key


OTHERS = {
    "IA3": lambda: inlay.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
    "LoHa": lambda: inlay.LoHaConfig(r=2, target_modules=TARGETS),
    "AdaLoRA": lambda: inlay.AdaLoraConfig(init_r=4, target_r=2, total_step=100, target_modules=TARGETS),
    "DoRA": lambda: LoraConfig(r=2, target_modules=TARGETS, use_dora=True),
    "PiSSA": lambda: LoraConfig(r=2, target_modules=TARGETS, init_lora_weights="pissa"),
    "OFT": lambda: inlay.OFTConfig(r=4, oft_block_size=0, target_modules=TARGETS),
    "MiSS": lambda: inlay.MissConfig(r=4, target_modules=TARGETS),
    "VeRA": lambda: inlay.VeraConfig(r=4, target_modules=["q_proj", "k_proj"]),
    "prompt tuning": lambda: inlay.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", ["nf4", "int8", "torchao int8", "hqq"])
@pytest.mark.parametrize("method", OTHERS)
def test_other_methods(method: str, kind: str, tiny: Any) -> None:
    base = tiny(kind)
    view = get_peft_model(base, OTHERS[method]())
    y = logits(base)
    if method in ("PiSSA", "DoRA", "OFT", "IA3"):  # these start as the base's function
        torch.testing.assert_close(logits(view), y, rtol=0, atol=0.03 if kind == "int8" else 1e-3)
    losses = train(view, 4)
    assert losses[-1] < losses[0]
    assert torch.equal(logits(base), y)
    if method != "prompt tuning":
        own = logits(scramble(view, 0.02))
        atol = 0.15 if kind == "int8" else 5e-3
        torch.testing.assert_close(logits(view.merge_and_unload(dequantize=True)), own, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", EVERY)
def test_copies_are_their_own(kind: str, tiny: Any) -> None:
    base = tiny(kind)
    view = with_adapter(base)
    y, y_base = logits(view), logits(base)
    copies = [copy.deepcopy(view)]
    if not kind.startswith("torchao"):  # 0.18 has linear layers that cannot be pickled, with or without adapters
        copies.append(pickle.loads(pickle.dumps(view)))
    for other in copies:
        assert torch.equal(logits(other), y) and isinstance(other, PeftModel)
        train(other)
        assert not torch.equal(logits(other), y)
        with pytest.warns(inlay.InlayWarning, match="Merging rounded"):
            other.merge_adapter()
        assert torch.equal(logits(view), y) and torch.equal(logits(base), y_base)


@pytest.mark.parametrize("kind", EVERY)
def test_a_file_loads_on_the_same_base_and_on_the_dense_one_but_on_no_other(
    kind: str, tiny: Any, tmp_path: Path
) -> None:
    view = with_adapter(tiny(kind))
    view.save_pretrained(str(tmp_path))
    samples = fingerprint(view)["samples"]
    assert set(samples) == {"model.embed_tokens.weight", "lm_head.weight"}  # what is quantised is not sampled
    again = PeftModel.from_pretrained(tiny(kind), str(tmp_path))
    assert torch.equal(logits(again), logits(view))
    dense = PeftModel.from_pretrained(tiny(None), str(tmp_path))
    assert (logits(dense) - logits(view)).norm() < 0.3 * logits(view).norm()
    PeftModel.from_pretrained(tiny(None, torch.bfloat16), str(tmp_path))
    other = tiny(kind)
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(1.5)
    with pytest.raises(BaseMismatchError, match="was trained on another base"):
        PeftModel.from_pretrained(other, str(tmp_path))
    dense.save_pretrained(str(tmp_path / "dense"))
    PeftModel.from_pretrained(tiny(kind), str(tmp_path / "dense"))


@pytest.mark.parametrize("kind", EVERY)
def test_counts_are_those_of_the_dense_model(kind: str, tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = with_adapter(tiny(None)).get_nb_trainable_parameters()
    view = with_adapter(tiny(kind))
    assert view.get_nb_trainable_parameters() == wanted
    view.print_trainable_parameters()
    assert f"all params: {wanted[1]:,d}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["nf4", "int8", "torchao int8", "hqq"])
def test_loftq_corrects_what_was_rounded(kind: str, tiny: Any) -> None:
    base, dense = tiny(kind), tiny(None)
    view = get_peft_model(base, LoraConfig(r=8, target_modules=TARGETS))
    inlay.replace_lora_weights_loftq(view, dense)
    for path, host in view._inlay.hosts.items():
        w, q = dense.get_submodule(path).weight, dequantised(host)
        assert (host.adapters["default"].weight(q) - w).norm() < 0.9 * (q - w).norm(), path


def test_loftq_still_says_what_it_cannot_read(tiny: Any) -> None:
    view = get_peft_model(tiny(None).to("meta"), LoraConfig(r=2, target_modules=TARGETS))
    with pytest.raises(ConfigError, match=r"LoftQ reads the weight of .*q_proj', which is not in memory"):
        inlay.replace_lora_weights_loftq(view, tiny(None))


@pytest.mark.parametrize("kind", ["nf4", "int8", "torchao int8"])
def test_two_adapters_in_one_batch(kind: str, tiny: Any) -> None:
    view = with_adapter(tiny(kind))
    view.add_adapter("b", LoraConfig(r=2, target_modules=TARGETS))
    scramble(view, 0.05)
    rows = {}
    for name in ("default", "b"):
        view.set_adapter(name)
        rows[name] = logits(view)
    with torch.no_grad():
        mixed = view(input_ids=ids(), adapter_names=["default", "b"]).logits
    atol = 0.2 if kind == "int8" else 1e-4  # 8-bit layers look for outliers in the whole batch
    torch.testing.assert_close(mixed[0], rows["default"][0], rtol=0, atol=atol)
    torch.testing.assert_close(mixed[1], rows["b"][1], rtol=0, atol=atol)


@pytest.mark.parametrize("kind", EVERY)
def test_a_quantised_module_cannot_be_trained_in_full(kind: str, tiny: Any) -> None:
    base = tiny(kind)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["layers.1.mlp"])
    with pytest.raises(
        TargetError, match=r"'model.layers.1.mlp' cannot be trained in full.*it is quantised.*skip_modul"
    ):
        get_peft_model(base, config)
    assert train(get_peft_model(base, config.replaced(modules_to_save=["lm_head"])))
