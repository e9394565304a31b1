"""Files of less usual shape: embeddings saved along, resized vocabularies, copies of a bias, other views and bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PhiConfig, PhiForCausalLM

import inlay

from .both import (
    agree,
    differ,
    into_inlay,
    into_peft,
    layout,
    of_inlay,
    of_peft,
    output,
    peft,
    same_settings,
    same_tensors,
    settings,
    swap,
)
from .models import FAMILIES, HEADED, VOCAB, WIDE, Family

TIED = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
EMBEDDINGS_SAVED = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")


def phi() -> Family:
    """A model whose output head has a bias."""
    config = PhiConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=WIDE,
        bos_token_id=0,
        eos_token_id=0,
    )
    return Family(lambda: PhiForCausalLM(config), FAMILIES["llama"].batch, "CAUSAL_LM")


@EMBEDDINGS_SAVED
@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_head_with_a_bias(bias: str, tmp_path: Path) -> None:
    family = phi()
    swap(family.base(), family.config(target_modules=["lm_head"], bias=bias), family.batch(0), tmp_path)


@pytest.mark.parametrize("along", [True, False])
@pytest.mark.parametrize("targets", [["q_proj"], ["embed_tokens", "lm_head"]], ids=str)
def test_save_embedding_layers(along: bool, targets: list[str], tmp_path: Path) -> None:
    family = phi()
    base, config = family.base(), family.config(target_modules=targets)
    of_peft(base, config).save_pretrained(str(tmp_path / "peft"), save_embedding_layers=along)
    of_inlay(base, config).save_pretrained(str(tmp_path / "inlay"), save_embedding_layers=along)
    found = layout(tmp_path / "inlay")
    assert found == layout(tmp_path / "peft")
    assert any("embed_tokens" in key and "lora" not in key for key in found) == along


def test_save_embedding_layers_with_one_of_two_adapted(tmp_path: Path) -> None:
    """Asked for the embeddings, peft leaves out the one that is not adapted when the other is; Inlay saves both."""
    family = phi()
    base, config = family.base(), family.config(target_modules=["lm_head"])
    of_peft(base, config).save_pretrained(str(tmp_path / "peft"), save_embedding_layers=True)
    mine = of_inlay(base, config)
    mine.save_pretrained(str(tmp_path / "inlay"), save_embedding_layers=True)
    left_out = layout(tmp_path / "inlay").items() - layout(tmp_path / "peft").items()
    assert {key for key, _ in left_out} == {"base_model.model.model.embed_tokens.weight"}
    agree(output(into_peft(base, tmp_path / "inlay"), family.batch(0)), output(mine, family.batch(0)))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_resized_vocabulary(name: str, tmp_path: Path) -> None:
    """New rows are drawn anew on every base, so the file has to bring them, and they must not reach the base."""
    family = FAMILIES[name]

    def grown(seed: int) -> torch.nn.Module:
        base = family.base()
        torch.manual_seed(seed)
        base.resize_token_embeddings(VOCAB + 4, mean_resizing=False)
        with torch.no_grad():
            base.get_input_embeddings().weight[VOCAB:].normal_()
        return base

    batch = family.batch(0)
    batch["input_ids"] = batch["input_ids"].clone()
    batch["input_ids"][0, :4] = torch.arange(VOCAB, VOCAB + 4)
    here, there = grown(1), grown(2)
    differ(output(here, batch), output(there, batch))
    theirs, mine = of_peft(here, family.config()), of_inlay(here, family.config())
    theirs.save_pretrained(str(tmp_path / "peft"), save_embedding_layers=True)
    mine.save_pretrained(str(tmp_path / "inlay"), save_embedding_layers=True)
    assert layout(tmp_path / "inlay") == layout(tmp_path / "peft")
    before = output(there, batch)
    agree(output(into_inlay(there, tmp_path / "peft"), batch), output(theirs, batch), "saved by peft")
    agree(output(into_inlay(there, tmp_path / "inlay"), batch), output(mine, batch), "saved by Inlay")
    agree(output(into_peft(there, tmp_path / "inlay"), batch), output(mine, batch), "saved by Inlay, loaded by peft")
    assert torch.equal(output(there, batch), before)


def test_all_biases_and_a_head(tmp_path: Path) -> None:
    """peft writes the head's bias three times: as every file has it, of its wrapper, and of the wrapped original."""
    family = HEADED["bert-seq-cls"]
    base, batch, config = family.base(), family.batch(0), family.config(bias="all")
    theirs, mine = of_peft(base, config, tmp_path / "peft"), of_inlay(base, config, tmp_path / "inlay")
    copies = layout(tmp_path / "peft").items() - layout(tmp_path / "inlay").items()
    assert {key.removeprefix("base_model.model.classifier.") for key, _ in copies} == {
        "original_module.bias",
        "modules_to_save.bias",
    }
    agree(output(into_inlay(base, tmp_path / "peft"), batch), output(theirs, batch), "saved by peft")
    agree(output(into_peft(base, tmp_path / "inlay"), batch), output(mine, batch), "saved by Inlay")


@pytest.mark.parametrize("name", ["bert-seq-cls", "gpt2-seq-cls", "vit"])
def test_a_base_with_a_fresh_head(name: str, tmp_path: Path) -> None:
    """As `from_pretrained` gives one: the backbone is the same, the head random. The adapter brings its own."""
    family = {**FAMILIES, **HEADED}[name]
    config = family.config(modules_to_save=["classifier"]) if name == "vit" else family.config()
    base, other, batch = family.base(), family.base(), family.batch(0)
    head = other.score if name == "gpt2-seq-cls" else other.classifier
    with torch.no_grad():
        head.weight.normal_()
    differ(output(base, batch), output(other, batch))
    theirs, mine = of_peft(base, config, tmp_path / "peft"), of_inlay(base, config, tmp_path / "inlay")
    agree(output(into_inlay(other, tmp_path / "peft"), batch), output(theirs, batch))
    agree(output(into_inlay(other, tmp_path / "inlay"), batch), output(mine, batch))


def test_a_classifier_in_a_view_of_no_task(tmp_path: Path) -> None:
    family = HEADED["bert-seq-cls"]
    base, batch = family.base(), family.batch(0)
    theirs = of_peft(base, family.config(), tmp_path)
    view = inlay.get_peft_model(base, inlay.LoraConfig(target_modules=["query"])).eval()
    view.load_adapter(str(tmp_path), "theirs")
    view.set_adapter("theirs")
    agree(output(view, batch), output(theirs, batch))


@pytest.mark.parametrize("name", ["t5", "vit"])
def test_state_dicts(name: str) -> None:
    """In memory as on disk: each library sets what the other gets."""
    family = FAMILIES[name]
    base, batch, config = family.base(), family.batch(0), family.config()
    theirs, mine = of_peft(base, config), inlay.get_peft_model(base, inlay.LoraConfig(**config)).eval()
    found = peft.get_peft_model_state_dict(theirs)
    report = inlay.set_peft_model_state_dict(mine, found)
    assert not (report.missing_keys or report.unexpected_keys or report.mismatched_keys)
    agree(output(mine, batch), output(theirs, batch))
    same_tensors(inlay.get_peft_model_state_dict(mine), found)
    again = of_peft(base, config, prepare=lambda model: None)
    assert not peft.set_peft_model_state_dict(again, inlay.get_peft_model_state_dict(mine)).unexpected_keys
    agree(output(again, batch), output(theirs, batch))


@EMBEDDINGS_SAVED
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {"modules_to_save": ["lm_head"]}),
        ("llama", {"trainable_token_indices": [1, 2]}),
        ("llama", {"target_modules": ["embed_tokens"]}),
        ("opt", {"bias": "all"}),
        ("bert-seq-cls", {}),
    ],
    ids=str,
)
def test_dtypes_on_a_16_bit_base(name: str, fields: dict[str, Any], autocast: bool, tmp_path: Path) -> None:
    """What of an adapter is float32 and what is as the base."""
    family = {**FAMILIES, **HEADED}[name]
    base = family.base().bfloat16()
    for library, model in ((peft, family.base().bfloat16()), (inlay, base)):
        config = library.LoraConfig(**family.config(**fields))
        made = library.get_peft_model(model, config, autocast_adapter_dtype=autocast)
        made.save_pretrained(str(tmp_path / library.__name__))
    found = layout(tmp_path / "inlay")
    assert found == layout(tmp_path / "peft")
    assert {dtype for key, (dtype, _) in found.items() if "lora" in key} == {"F32" if autocast else "BF16"}
    into_inlay(base, tmp_path / "peft", autocast_adapter_dtype=autocast)


@pytest.mark.filterwarnings("ignore:Could not find a config file in org/base:UserWarning")
def test_the_base_is_named(tmp_path: Path) -> None:
    family = FAMILIES["opt"]
    base = family.base()
    base.name_or_path = base.config._name_or_path = "org/base"
    config = family.config(revision="v2")
    of_peft(base, config, tmp_path / "peft")
    of_inlay(base, config, tmp_path / "inlay")
    same_settings(tmp_path / "inlay", tmp_path / "peft")
    assert settings(tmp_path / "inlay")["base_model_name_or_path"] == "org/base"
    card = (tmp_path / "inlay" / "README.md").read_text()
    for line in ("base_model: org/base", "library_name: peft"):
        assert line in card
        assert line in (tmp_path / "peft" / "README.md").read_text()
