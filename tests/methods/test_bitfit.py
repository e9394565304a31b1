"""BitFit: the biases, all or some of them, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inlay import BitFitConfig, LoraConfig, PeftModel, get_peft_model
from inlay.errors import StateError, TargetError
from inlay.methods.bitfit import biases
from tests.tiny import close, ids, llama, mlp, net, same, scramble, snapshot


def bert(**fields: Any) -> Any:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    return BertForMaskedLM(config).eval()


def trained(view: Any) -> set[str]:
    return {n.replace(".adapters.default.copies", "") for n, p in view.named_parameters() if p.requires_grad}


def test_the_formula() -> None:
    base = mlp(dtype=torch.float64)
    x = torch.randn(3, 8, dtype=torch.float64)
    view = get_peft_model(base, BitFitConfig())
    assert torch.equal(view(x), base(x)) and trained(view) == {"up.bias", "down.bias"}
    scramble(view, 1.0)
    d = {n: view.get_submodule(n).adapters["default"].copies["bias"] - getattr(base, n).bias for n in ("up", "down")}
    h = x @ base.up.weight.T + base.up.bias + d["up"]
    close(view(x), h.relu() @ base.down.weight.T + base.down.bias + d["down"])
    assert all(v.abs().max() > 0.1 for v in d.values())


def test_by_default_every_bias_of_every_kind_of_module() -> None:
    base = net()
    view = get_peft_model(base, BitFitConfig())
    assert trained(view) == {n for n, _ in base.named_parameters() if n.endswith("bias")} and len(trained(view)) == 5
    count, everything = view.get_nb_trainable_parameters()
    assert count == sum(p.numel() for n, p in base.named_parameters() if n.endswith("bias"))
    assert everything == sum(p.numel() for p in base.parameters())


def test_those_of_the_paper(tmp_path: Any) -> None:
    base = bert()
    view = get_peft_model(base, BitFitConfig(target_modules=["query", "intermediate.dense"]))
    assert trained(view) == {
        f"bert.encoder.layer.{i}.{n}.bias" for i in (0, 1) for n in ("attention.self.query", "intermediate.dense")
    }
    scramble(view).save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(bert(), tmp_path)(ids()).logits, view(ids()).logits)


def test_tied_biases_stay_tied_and_the_heads_weight_is_not_saved(tmp_path: Any) -> None:
    from safetensors.torch import load_file

    base = bert()
    view = get_peft_model(base, BitFitConfig())
    predictions = view.cls.predictions
    shared = predictions.decoder.adapters["default"].copies["bias"]
    assert predictions.adapters["default"].copies["bias"] is shared
    scramble(view)
    y = view(ids()).logits
    view.save_pretrained(tmp_path)
    assert all(t.dim() == 1 for t in load_file(tmp_path / "adapter_model.safetensors").values())
    again = PeftModel.from_pretrained(bert(), tmp_path)
    assert torch.equal(again(ids()).logits, y)
    merged = view.merge_and_unload()
    assert merged.cls.predictions.decoder.bias is merged.cls.predictions.bias
    torch.testing.assert_close(merged(ids()).logits, y)


def test_a_head_that_is_targeted_is_not_saved_in_full(tmp_path: Any) -> None:
    from safetensors.torch import load_file

    model = nn.ModuleDict({"lm_head": nn.Linear(4, 5)})
    view = get_peft_model(model, BitFitConfig(target_modules=["lm_head"]))
    view.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == {"base_model.model.lm_head.bias"}


class Odd(nn.Module):
    """Biases of other names."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.q_bias = nn.Parameter(torch.eye(4)), nn.Parameter(torch.ones(4))
        self.relative_bias_table = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.q_bias) * self.relative_bias_table


def test_biases_of_other_names() -> None:
    base = nn.Sequential(nn.GRU(4, 4), nn.LayerNorm(4))
    assert biases(base[0]) == ["bias_ih_l0", "bias_hh_l0"] and biases(nn.Linear(4, 4, bias=False)) == []
    odd = nn.Sequential(Odd())
    view = scramble(get_peft_model(odd, BitFitConfig()))
    assert trained(view) == {"0.q_bias"}
    x = torch.randn(2, 4)
    own = view[0].adapters["default"].copies["q_bias"]
    torch.testing.assert_close(view(x), x + own)
    merged = view.merge_and_unload()
    assert torch.equal(merged[0].q_bias, own) and torch.equal(odd[0].q_bias, torch.ones(4))


def test_copies_are_float32_on_a_16_bit_base_unless_told_otherwise() -> None:
    base = net(dtype=torch.bfloat16)
    view = get_peft_model(base, BitFitConfig())
    assert {p.dtype for p in view.parameters() if p.requires_grad} == {torch.float32}
    assert torch.equal(view(ids()), base(ids()))
    with torch.no_grad():
        for p in view.parameters():
            if p.requires_grad:
                p.add_(1e-4)  # less than bfloat16 can hold beside 1, and not lost
    assert not torch.equal(view.norm.adapters["default"].copies["bias"], base.norm.bias.float())
    kept = get_peft_model(base, BitFitConfig(), autocast_adapter_dtype=False)
    assert {p.dtype for p in kept.parameters()} == {torch.bfloat16}


def test_other_methods_go_along_and_a_second_one_does_not() -> None:
    base = mlp(dtype=torch.float64)
    before = snapshot(base)
    view = get_peft_model(base, BitFitConfig(), "a")
    view.add_adapter("b", BitFitConfig(target_modules=["up"]))
    view.add_adapter("c", LoraConfig(target_modules=["up"], r=2))
    with pytest.raises(StateError, match="cannot be active together"):
        view.set_adapter(["a", "b"])
    view.set_adapter(["c", "a"])
    scramble(view)
    x = torch.randn(3, 8, dtype=torch.float64)
    close(view.merge_and_unload()(x), view(x))
    assert same(snapshot(base), before)


def test_no_bias() -> None:
    with pytest.raises(
        TargetError, match=r"the model has no bias that BitFit could train .* LNTuningConfig and IA3Config"
    ):
        get_peft_model(llama(), BitFitConfig())
    with pytest.raises(TargetError, match=r"'head', a Linear, has no bias to train\. Leave it out"):
        get_peft_model(net(), BitFitConfig(target_modules=["fc", "head"]))
