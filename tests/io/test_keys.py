"""Names of tensors in files: the one place that knows peft's prefix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inlay import LoraConfig, get_peft_model
from inlay.core.index import index_of
from inlay.errors import MismatchError
from inlay.io.keys import base_embeddings, frozen_at, is_echo, key_of, state_dict_of, tensors_by_key, to_today
from tests.tiny import llama, net

SRC = Path(__file__).parents[2] / "src" / "inlay"


def keys(view: Any) -> set[str]:
    return {k.removeprefix("base_model.model.") for k in state_dict_of(index_of(view), "default")}


def test_every_kind_of_tensor_has_peft_s_name() -> None:
    view = get_peft_model(
        net(), LoraConfig(target_modules=["embed", "conv1", "conv2", "conv3", "fc"], modules_to_save=["head"], r=2)
    )
    lora = {f"{m}.lora_{x}.weight" for m in ("conv1", "conv2", "conv3", "fc") for x in "AB"}
    assert keys(view) == lora | {"embed.lora_embedding_A", "embed.lora_embedding_B", "head.weight"}
    view = get_peft_model(net(), LoraConfig(target_modules=["fc"], bias="lora_only"))
    assert keys(view) == {"fc.lora_A.weight", "fc.lora_B.weight", "fc.base_layer.bias"}
    view = get_peft_model(net(), LoraConfig(target_modules=["fc"], bias="all"))
    biases = {f"{m}.bias" for m in ("conv1", "conv2", "conv3", "norm")}
    assert keys(view) == {"fc.lora_A.weight", "fc.lora_B.weight", "fc.base_layer.bias"} | biases
    view = get_peft_model(llama(), LoraConfig(target_modules=["lm_head"], trainable_token_indices=[1]))
    assert keys(view) == {
        "lm_head.lora_A.weight", "lm_head.lora_B.weight", "model.embed_tokens.token_adapter.trainable_tokens_delta",
    }  # fmt: skip


def test_the_adapters_name_is_no_part_of_a_key() -> None:
    view = get_peft_model(net(), LoraConfig(target_modules=["fc"]), "lora_A")
    assert set(state_dict_of(index_of(view), "lora_A")) == {
        key_of("fc", "lora_A.weight"),
        key_of("fc", "lora_B.weight"),
    }
    assert key_of("a.b", "c") == "base_model.model.a.b.c"


def test_tensors_are_the_parameters_themselves() -> None:
    view = get_peft_model(net(), LoraConfig(target_modules=["fc"], modules_to_save=["norm"]))
    found = tensors_by_key(index_of(view).placed["default"], view.peft_config["default"])
    assert found[key_of("fc", "lora_A.weight")] is view.fc.adapters["default"].A
    assert found[key_of("norm", "weight")] is view.norm.adapters["default"].module.weight
    own = {id(p) for p in view.parameters() if p.requires_grad}
    assert own == {id(t) for t in found.values()}


def test_a_gathered_state_dict() -> None:
    view = get_peft_model(net(), LoraConfig(target_modules=["fc"], modules_to_save=["norm"]))
    state = {k: v + 1 for k, v in view.state_dict().items()}
    for given in (state, {f"_orig_mod.{k}": v for k, v in state.items()}):
        found = state_dict_of(index_of(view), "default", given)
        assert torch.equal(found[key_of("norm", "weight")], view.norm.adapters["default"].module.weight + 1)
    del state["fc.adapters.default.lora_A"]
    with pytest.raises(MismatchError, match=r"lacks 'fc.adapters.default.lora_A' of adapter 'default'") as caught:
        state_dict_of(index_of(view), "default", state)
    assert caught.value.missing == ["fc.adapters.default.lora_A"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("base_model.model.emb.weight", ("emb", "weight")),
        ("base_model.model.emb.base_layer.weight", ("emb", "weight")),
        ("base_model.model.lm_head.bias", ("lm_head", "bias")),
        ("base_model.model.out.base_layer.bias", ("out", "bias")),  # what the model says is its head
        ("base_model.model.fc.weight", None),  # no file may replace just any weight of the base
        ("base_model.model.fc.base_layer.bias", None),
        ("emb.weight", ("emb", "weight")),
        ("base_model.model.fc.scale", None),
        ("base_model.model.free.bias", None),
        ("base_model.model.norm.weight", None),
        ("base_model.model.none.weight", None),
        ("base_model.model.emb", None),
        ("", None),
    ],
)
def test_frozen_parameters_that_a_file_may_carry(key: str, expected: Any) -> None:
    root: Any = nn.Module()
    root.get_output_embeddings = lambda: out
    out = nn.Linear(2, 2)
    modules = {
        "": root,
        "emb": nn.Embedding(3, 2),
        "fc": nn.Linear(2, 2),
        "lm_head": nn.Linear(2, 2),
        "out": out,
        "free": nn.Linear(2, 2, bias=False),
        "norm": nn.LayerNorm(2),
    }
    assert frozen_at(key, modules) == expected


def test_echoes_of_peft() -> None:
    expected = {"base_model.model.fc.bias"}
    assert is_echo("base_model.model.fc.original_module.bias", expected)
    assert is_echo("base_model.model.fc.modules_to_save.bias", expected)
    assert not is_echo("base_model.model.fc.bias", set()) and not is_echo("base_model.model.fc.other.bias", expected)


def test_earlier_names_of_modules() -> None:
    expected = [f"base_model.model.vit.layer.{i}.q_proj.lora_A.weight" for i in range(2)]
    expected.append("base_model.model.vit.layer.0.attn.o.lora_A.weight")
    earlier = {
        "vit.layer.0.q_proj": "vit.enc.0.query",
        "vit.layer.1.q_proj": "vit.enc.1.query",
        "vit.layer.0.attn": "vit.enc.0.att",
        "vit.layer.0": "vit.block.0",
    }
    today = {
        "base_model.model.vit.enc.0.query.lora_A.weight": expected[0],
        "base_model.model.vit.enc.1.query.lora_A.weight": expected[1],
        "base_model.model.vit.enc.0.att.o.lora_A.weight": expected[2],
    }
    assert to_today([*today, "other"], expected, earlier) == today
    assert to_today(["base_model.model.vit.block.0.q_proj.lora_A.weight"], expected, earlier) == {}
    assert to_today(expected, expected, {}) == {}


def test_no_other_file_knows_the_prefix() -> None:
    knowing = [str(f.relative_to(SRC)) for f in SRC.rglob("*.py") if '"base_model.model.' in f.read_text()]
    assert knowing == ["io/keys.py"]


def test_frozen_embeddings_come_from_the_gathered_state_dict_and_unmerged() -> None:
    view = get_peft_model(llama(tie_word_embeddings=False), LoraConfig(target_modules=["lm_head"]))
    with torch.no_grad():
        view.lm_head.adapters["default"].B.fill_(1)
    index, key = index_of(view), "base_model.model.lm_head.base_layer.weight"
    before = view.lm_head.weight.clone()
    view.merge_adapter()
    assert not torch.equal(view.lm_head.weight, before)
    found = base_embeddings(view, index, "default", False)
    assert list(found) == [key] and torch.equal(found[key], before)
    given = torch.zeros(3)
    found = base_embeddings(view, index, "default", True, {"lm_head.weight": given})
    assert found[key] is given and "base_model.model.model.embed_tokens.weight" in found


def test_a_model_without_embeddings_has_none_to_save() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def get_input_embeddings(self) -> nn.Module:
            raise NotImplementedError

    view = get_peft_model(Deaf(), LoraConfig(target_modules=["fc"]))
    assert base_embeddings(view, index_of(view), "default", True) == {}
