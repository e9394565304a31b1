"""`generate` and `pipeline` with a view: the base's own, with the adapter in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import pipeline
from transformers.utils import logging as hf_logging

from inlay import PeftModel, get_peft_model
from inlay.errors import StateError

from . import tiny
from .tiny import fill, lora, view_of

CAUSAL = ["llama", "bloom", "mamba"]
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beam": {"num_beams": 3, "do_sample": False},
    "sample": {"do_sample": True, "top_k": 8},
}
# said of the plain model too, some by older releases of transformers
KNOWN = (
    "falling back to its reference",
    "fast path is not available",
    "Passing `generation_config` together with",
    "Both `max_new_tokens`",
)


@pytest.fixture
def no_complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails the test if transformers logs a warning or an error."""
    hf_logging.enable_propagation()
    yield
    hf_logging.disable_propagation()
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    said = [r.getMessage() for r in records if r.levelno >= logging.WARNING]
    assert [text for text in said if not any(known in text for known in KNOWN)] == []


def prompt(rows: int = 2) -> dict[str, torch.Tensor]:
    ids = tiny.batch(rows=rows, length=4)["input_ids"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def generated(model: Any, seed: int = 0, **options: Any) -> torch.Tensor:
    torch.manual_seed(seed)
    return model.generate(**{**prompt(), "max_new_tokens": 6, "min_new_tokens": 6, **options})


@pytest.mark.usefixtures("no_complaints")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", CAUSAL)
def test_a_merged_plain_model_generates_the_same(family: str, mode: str) -> None:
    base = tiny.base(family)
    before = generated(base, **MODES[mode])
    view = view_of(base, family)
    tokens = generated(view, **MODES[mode])
    assert tokens.shape == (2, 10)
    assert not torch.equal(tokens, before)
    assert torch.equal(generated(base, **MODES[mode]), before)
    with view.disable_adapter():
        assert torch.equal(generated(view, **MODES[mode]), before)
    assert torch.equal(generated(view.merge_and_unload(), **MODES[mode]), tokens)


@pytest.mark.usefixtures("no_complaints")
@pytest.mark.parametrize("mode", ["greedy", "beam"])
@pytest.mark.parametrize("family", ["llama", "bloom", "t5"])
def test_the_cache_does_not_change_what_is_generated(family: str, mode: str) -> None:
    view = view_of(tiny.base(family), family)
    assert torch.equal(generated(view, use_cache=True, **MODES[mode]), generated(view, use_cache=False, **MODES[mode]))


@pytest.mark.usefixtures("no_complaints")
@pytest.mark.parametrize("mode", MODES)
def test_an_encoder_decoder_generates(mode: str) -> None:
    base = tiny.base("t5")
    before = generated(base, **MODES[mode])
    view = view_of(base, "t5", task_type="SEQ_2_SEQ_LM")
    tokens = generated(view, **MODES[mode])
    assert tokens.shape == (2, 7)
    assert not torch.equal(tokens, before)
    assert torch.equal(generated(view.merge_and_unload(), **MODES[mode]), tokens)


@pytest.mark.usefixtures("no_complaints")
@pytest.mark.parametrize("mode", ["greedy", "beam"])
@pytest.mark.parametrize("family", ["llama", "mamba", "t5"])
def test_each_row_with_its_own_adapter(family: str, mode: str) -> None:
    view = view_of(tiny.base(family), family)
    view.add_adapter("other", lora(family, r=4))
    fill(view, 11, "other")
    names = ["other", "__base__", "default"]
    rows = {**prompt(3), **MODES[mode]}
    mixed = generated(view, **rows, adapter_names=names)
    alone = {}
    for name in names:
        if name == "__base__":
            with view.disable_adapter():
                alone[name] = generated(view, **rows)
        else:
            view.set_adapter(name)
            alone[name] = generated(view, **rows)
    assert len({tuple(alone[name][2].tolist()) for name in names}) == 3
    for row, name in enumerate(names):
        assert torch.equal(mixed[row], alone[name][row]), name


@pytest.mark.usefixtures("no_complaints")
def test_text_generation_pipeline() -> None:
    base, tokenizer = tiny.base("llama"), tiny.tokenizer()
    plain = pipeline("text-generation", model=base, tokenizer=tokenizer, device="cpu")
    view = view_of(base, task_type="CAUSAL_LM")
    adapted = pipeline("text-generation", model=view, tokenizer=tokenizer, device="cpu")
    options = {"max_new_tokens": 5, "do_sample": False}
    before = plain("w1 w2 w3", **options)
    text = adapted("w1 w2 w3", **options)
    assert text[0]["generated_text"].startswith("w1 w2 w3")
    assert text != before
    assert plain("w1 w2 w3", **options) == before
    merged = pipeline("text-generation", model=view.merge_and_unload(), tokenizer=tokenizer, device="cpu")
    assert merged("w1 w2 w3", **options) == text
    assert len(adapted(["w1 w2", "w3 w4 w5"], batch_size=2, **options)) == 2


@pytest.mark.usefixtures("no_complaints")
def test_text_classification_pipeline() -> None:
    view = view_of(tiny.classifier(), task_type="SEQ_CLS")
    classify = pipeline("text-classification", model=view, tokenizer=tiny.tokenizer(), device="cpu", top_k=None)
    found = {row["label"]: row["score"] for row in classify(["w1 w2 w3"])[0]}
    with torch.no_grad():
        scores = view(**tiny.tokenizer()("w1 w2 w3", return_tensors="pt")).logits.softmax(-1)[0]
    for i, score in enumerate(scores):
        assert found[f"LABEL_{i}"] == pytest.approx(float(score), abs=1e-5)


@pytest.mark.usefixtures("no_complaints")
def test_a_root_model_returns_hidden_states_and_attentions() -> None:
    base = tiny.backbone(attn_implementation="eager")
    view = view_of(base, task_type="FEATURE_EXTRACTION")
    ids = tiny.batch()["input_ids"]
    with torch.no_grad():
        plain = base(ids, output_hidden_states=True, output_attentions=True)
        adapted = view(ids, output_hidden_states=True, output_attentions=True)
        merged = view.merge_and_unload()(ids, output_hidden_states=True)
    assert len(adapted.hidden_states) == len(plain.hidden_states) == 3
    assert len(adapted.attentions) == len(plain.attentions) == 2
    assert torch.equal(adapted.hidden_states[0], plain.hidden_states[0])
    assert not torch.allclose(adapted.hidden_states[2], plain.hidden_states[2], atol=1e-2)
    for left, right in zip(adapted.hidden_states, merged.hidden_states, strict=True):
        assert torch.allclose(left, right, atol=1e-5)


@pytest.mark.usefixtures("no_complaints")
def test_settings_of_generation_are_the_views_own() -> None:
    base = tiny.base("llama")
    view = view_of(base)
    view.generation_config.max_new_tokens = 3
    assert view.generate(**prompt(), do_sample=False, eos_token_id=None).shape[1] == 7
    assert base.generation_config.max_new_tokens is None


@pytest.mark.usefixtures("no_complaints")
def test_a_view_of_a_loaded_adapter_generates(tmp_path: Any) -> None:
    view = view_of(tiny.base("llama"))
    view.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(tiny.base("llama"), str(tmp_path))
    assert torch.equal(generated(again, do_sample=False), generated(view, do_sample=False))


def test_an_unknown_name_for_a_row_is_an_error() -> None:
    view = get_peft_model(tiny.base("llama"), lora())
    with pytest.raises(StateError, match="nowhere"):
        generated(view, adapter_names=["default", "nowhere"])
