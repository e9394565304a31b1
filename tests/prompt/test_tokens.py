"""What every prompt method promises: what a token sees depends neither on padding nor on its side, batch or cache."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inlay import LoraConfig, PeftModel, get_peft_model
from inlay.errors import InlayWarning, StateError, TargetError
from tests.prompt.models import DECODERS, ENCODERS, METHODS, SEQ2SEQ, P, checkpointed, head_of, model_of, rows, view_of
from tests.tiny import close, net, older, same, snapshot

KINDS = ["prompt", "p-tuning", "prefix"]
EVERY = pytest.mark.parametrize("method", list(METHODS))


def cells(families: list[str], methods: list[str] = KINDS) -> Any:
    return pytest.mark.parametrize(
        ("family", "method"), [(f, m) for f in families for m in methods if not (f == "DebertaV2" and m == "prefix")]
    )


def with_decoder(family: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    if family not in SEQ2SEQ:
        return batch
    return {**batch, "decoder_input_ids": torch.tensor([[2, 5, 9]]).expand(len(batch["input_ids"]), -1)}


def states(family: str, view: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    """Each row's outputs at its own tokens."""
    out = view(**with_decoder(family, batch))
    found = out.logits if "logits" in out else out.last_hidden_state
    if family in SEQ2SEQ:
        return list(found)
    length = batch["input_ids"].shape[1]
    return [row[-length:][keep.bool()] for row, keep in zip(found, batch["attention_mask"], strict=True)]


@cells([*DECODERS, *SEQ2SEQ, *ENCODERS])
def test_padding_its_side_and_the_other_rows_change_nothing(family: str, method: str) -> None:
    head, task = head_of(family)
    view = view_of(model_of(family, head), method, task)
    alone = [states(family, view, rows(n, seed=3 + i))[0] for i, n in enumerate((7, 4, 6))]
    sides = ["right", "left"]
    if method == "prefix" and family in ("Bert", "Bart"):
        sides = ["right"]  # their positions count padding, with or without a prefix
    for side in sides:
        for width in (7, 10):
            for mine, want in zip(states(family, view, rows(7, 4, 6, side=side, width=width)), alone, strict=True):
                close(mine.double(), want.double(), 1e-5, 1e-5)
    unmasked = {"input_ids": rows(7)["input_ids"]}
    full = {**unmasked, "attention_mask": torch.ones(1, 7, dtype=torch.long)}
    out = view(**with_decoder(family, unmasked))
    again = view(**with_decoder(family, full))
    close(out[0], again[0], 1e-5, 1e-5)


@cells([*DECODERS, *SEQ2SEQ])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_does_not_depend_on_cache_or_padding(family: str, method: str, beams: int) -> None:
    head, task = head_of(family)
    view = view_of(model_of(family, head), method, task)
    how = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams, "pad_token_id": 0, "eos_token_id": None}
    how.update({"decoder_start_token_id": 2} if family in SEQ2SEQ else {})
    batch = rows(6, 4, side="right" if family in SEQ2SEQ else "left")
    made = view.generate(**batch, **how)
    assert torch.equal(made, view.generate(**batch, use_cache=False, **how))
    new = made[:, -5:]
    for i, n in enumerate((6, 4)):
        alone = view.generate(**rows(n, seed=3 + i), **how)
        assert torch.equal(alone[0, -5:], new[i])
    assert made.shape[1] == (6 + 5 if family in DECODERS else 1 + 5)
    base = view.unload().generate(**batch, **how)
    with view.disable_adapter():
        assert torch.equal(view.generate(**batch, **how), base)


@cells(["Llama", "GPT2", "Bloom", "OPT"])
def test_labels_and_loss_are_of_the_given_tokens(family: str, method: str) -> None:
    view = view_of(model_of(family, "ForCausalLM"), method, "CAUSAL_LM")
    batch = rows(7, 4)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    out = view(**batch, labels=labels)
    assert out.logits.shape[1] == (7 if method == "prefix" else 7 + P)
    logits = out.logits[:, -8:-1] if method != "prefix" else out.logits[:, :-1]
    wanted = labels if method != "prefix" else labels[:, 1:]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100)
    close(out.loss.double(), expected.double(), 1e-5, 1e-5)


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("family", ["GPT2", "Llama", "Bloom", "OPT", "Bert", "Roberta"])
def test_sequences_are_classified_whatever_the_padding(family: str, method: str) -> None:
    view = view_of(model_of(family, "ForSequenceClassification", num_labels=3), method, "SEQ_CLS")
    alone = torch.cat([view(**rows(n, seed=3 + i)).logits for i, n in enumerate((7, 4))])
    sides = ["right"] if family in ("Bert", "Roberta") else ["right", "left"]
    for side in sides:
        close(view(**rows(7, 4, side=side)).logits, alone, 1e-5, 1e-5)


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("family", ["Bert", "Roberta", "GPT2"])
def test_outputs_per_token_are_those_of_the_given_tokens(family: str, method: str) -> None:
    batch = rows(7, 4)
    tagger = view_of(model_of(family, "ForTokenClassification", num_labels=3), method, "TOKEN_CLS")
    labels = batch["input_ids"] % 3
    out = tagger(**batch, labels=labels, output_hidden_states=True)
    assert out.logits.shape == (2, 7, 3)
    assert all(h.shape[1] in (7, 7 + P) for h in out.hidden_states)
    expected = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
    close(out.loss.double(), expected.double(), 1e-5, 1e-5)
    reader = view_of(model_of(family, "ForQuestionAnswering"), method, "QUESTION_ANS")
    out = reader(**batch, start_positions=torch.tensor([1, 0]), end_positions=torch.tensor([3, 2]))
    assert out.start_logits.shape == (2, 7) and out.loss is not None
    tuples = tagger(**batch, return_dict=False)
    close(tuples[0], tagger(**batch).logits)


@EVERY
def test_token_types_and_given_positions_are_carried_along(method: str) -> None:
    view = view_of(model_of("Bert", "Model"), method, "FEATURE_EXTRACTION")
    batch = rows(6)
    types = torch.tensor([[0, 0, 0, 1, 1, 1]])
    assert not torch.equal(view(**batch, token_type_ids=types)[0], view(**batch)[0])
    close(view(**batch, token_type_ids=types * 0)[0], view(**batch)[0])
    causal = view_of(model_of("Llama", "ForCausalLM"), method, "CAUSAL_LM")
    close(causal(**batch, position_ids=torch.arange(6)[None]).logits, causal(**batch).logits)
    embeds = causal.get_input_embeddings()(batch["input_ids"])
    close(causal(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits, causal(**batch).logits)
    close(causal(batch["input_ids"], batch["attention_mask"]).logits, causal(**batch).logits)


@EVERY
def test_only_the_prompt_is_trained_and_the_base_is_untouched(method: str) -> None:
    base = model_of("GPT2", "ForCausalLM")
    before, batch = snapshot(base), rows(7, 4)
    y = base(**batch).logits
    view = view_of(base, method, "CAUSAL_LM").train()
    optimizer = torch.optim.AdamW([p for p in view.parameters() if p.requires_grad], lr=0.05)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = view(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert same(snapshot(base), before) and torch.equal(base(**batch).logits, y)
    with view.disable_adapter():
        assert torch.equal(view(**batch).logits, y)
    assert not torch.allclose(view(**batch).logits[:, -7:], y)


@EVERY
@pytest.mark.parametrize("family", ["GPT2", "T5"])
def test_saved_and_loaded_it_computes_the_same(family: str, method: str, tmp_path: Path) -> None:
    head, task = head_of(family)
    base, batch = model_of(family, head), with_decoder(family, rows(7, 4))
    view = view_of(base, method, task)
    view.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(base, str(tmp_path))
    close(again(**batch).logits, view(**batch).logits)
    assert sum(p.numel() for p in again.parameters() if p.requires_grad) == 0
    again.save_pretrained(str(tmp_path / "again"))
    name = "adapter_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert not (tmp_path / "again" / "training_state.safetensors").exists(), "it is not being trained"


def _train(view: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        batch = rows(6, 4, seed=step)
        view(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@EVERY
@pytest.mark.parametrize("into", ["a new view", "the view itself"])
def test_a_run_resumes_exactly(method: str, into: str, tmp_path: Path) -> None:
    """What a file does not hold, a prompt's encoder, is saved beside an adapter that is being trained."""
    base = model_of("GPT2", "ForCausalLM", dtype=torch.float32)
    view = view_of(base, method, "CAUSAL_LM").train()
    optimizer = torch.optim.AdamW([p for p in view.parameters() if p.requires_grad], lr=0.01)
    _train(view, optimizer, range(3))
    view.save_pretrained(str(tmp_path))
    saved = optimizer.state_dict()
    saved = copy.deepcopy(saved)
    state = tmp_path / "training_state.safetensors"
    assert state.exists() == (method not in ("prompt", "prefix"))
    _train(view, optimizer, range(3, 6))
    wanted = view.eval()(**rows(6)).logits
    if into == "a new view":
        view = PeftModel.from_pretrained(base, str(tmp_path), is_trainable=True)
    else:
        view.load_adapter(str(tmp_path), "default", is_trainable=True)
    view.train()
    optimizer = torch.optim.AdamW([p for p in view.parameters() if p.requires_grad], lr=0.01)
    optimizer.load_state_dict(saved)
    _train(view, optimizer, range(3, 6))
    assert torch.equal(view.eval()(**rows(6)).logits, wanted)


@pytest.mark.parametrize("method", ["p-tuning", "lstm", "projected"])
def test_without_its_training_state_a_computed_prompt_cannot_be_trained_on(method: str, tmp_path: Path) -> None:
    base = model_of("GPT2", "ForCausalLM")
    view_of(base, method, "CAUSAL_LM").save_pretrained(str(tmp_path), training_state=False)
    with pytest.warns(InlayWarning), pytest.raises(StateError, match="is computed from parameters that the file does"):
        PeftModel.from_pretrained(base, str(tmp_path), is_trainable=True)
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    plain = {"projected": "prefix"}.get(method, "prompt")
    config = METHODS[plain](task_type="CAUSAL_LM")
    trained = PeftModel.from_pretrained(base, str(tmp_path), is_trainable=True, config=config)
    close(trained.eval()(**rows(5)).logits, loaded(**rows(5)).logits)
    assert any(p.requires_grad for p in trained.parameters())


@EVERY
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # at graph breaks
def test_copies_pickles_and_compiles(method: str) -> None:
    view = view_of(model_of("Llama", "ForCausalLM", dtype=torch.float32), method, "CAUSAL_LM")
    batch = rows(6, 4)
    y = view(**batch).logits
    for again in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        assert torch.equal(again(**batch).logits, y)
        with torch.no_grad():
            next(iter(again.adapters["default"].parameters() if method in KINDS[:2] else again.parameters())).add_(1)
        assert torch.equal(view(**batch).logits, y)
    if method == "lstm":
        return  # torch does not trace an nn.LSTM
    torch._dynamo.reset()
    whole = method in KINDS[:2] or not older("torch", "2.12")  # before, a host with children cannot be traced
    compiled = torch.compile(view, fullgraph=whole, backend="eager")
    close(compiled(**batch).logits, y, 1e-5, 1e-5)


@EVERY
def test_16_bit_bases_and_autocast(method: str) -> None:
    full = model_of("Llama", "ForCausalLM", dtype=torch.float32)
    want = view_of(full, method, "CAUSAL_LM")(**rows(6)).logits
    view = view_of(model_of("Llama", "ForCausalLM", dtype=torch.bfloat16), method, "CAUSAL_LM")
    assert {p.dtype for n, p in view.named_parameters() if "adapters." in n} == {torch.float32}
    y = view(**rows(6)).logits
    assert y.dtype is torch.bfloat16 and (y - want).abs().max() < 0.1 * want.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = view_of(full, method, "CAUSAL_LM").train()(**rows(6), labels=rows(6)["input_ids"])
    mixed.loss.backward()
    assert torch.isfinite(mixed.loss)


@pytest.mark.parametrize("method", ["prompt", "p-tuning"])
def test_gradient_checkpointing_changes_no_gradient(method: str) -> None:
    base = model_of("Llama", "ForCausalLM")
    view, batch = view_of(base, method, "CAUSAL_LM").train(), rows(6, 4)
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            checkpointed(view)
        view.zero_grad()
        view(**batch, labels=batch["input_ids"]).loss.backward()
        grads.append([p.grad.clone() for p in view.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        close(a, b)


def test_a_prefix_under_gradient_checkpointing_is_an_error_not_a_prefix_without_effect() -> None:
    view = view_of(model_of("Llama", "ForCausalLM"), "prefix", "CAUSAL_LM").train()
    checkpointed(view)
    with pytest.raises(StateError, match="gradient_checkpointing_disable"):
        view(**rows(6), labels=rows(6)["input_ids"])
    view.eval()(**rows(6))


@EVERY
def test_switching_adding_and_deleting(method: str) -> None:
    base, batch = model_of("GPT2", "ForCausalLM"), rows(6, 4)
    view = view_of(base, method, "CAUSAL_LM")
    one = view(**batch).logits
    torch.manual_seed(9)
    view.add_adapter("other", METHODS[method](task_type="CAUSAL_LM"))
    view.set_adapter("other", inference_mode=True)
    other = view(**batch).logits
    assert not torch.allclose(one, other)
    with pytest.raises(StateError, match="'default' and 'other' cannot be active together"):
        view.set_adapter(["default", "other"])
    assert torch.equal(view(**batch, adapter_names=["default", "default"]).logits, one)
    with pytest.raises(StateError, match="adds virtual tokens, which the rows of one batch cannot"):
        view(**batch, adapter_names=["default", "other"])
    assert torch.equal(view(**batch, adapter_names=["__base__", "__base__"]).logits, base(**batch).logits)
    view.set_adapter("default")
    view.delete_adapter("other")
    assert torch.equal(view(**batch).logits, one)
    view.delete_adapter("default")
    assert torch.equal(view(**batch).logits, base(**batch).logits)
    assert "adapters" not in view._modules and "adapters" not in view.transformer._modules


def test_a_prompt_and_lora_work_together() -> None:
    base, batch = model_of("Llama", "ForCausalLM"), rows(6, 4)
    view = view_of(base, "prompt", "CAUSAL_LM")
    view.add_adapter("lora", LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM"))
    alone = view(**batch).logits
    view.set_adapter(["default", "lora"], inference_mode=True)
    assert not torch.allclose(view(**batch).logits, alone)
    with pytest.raises(StateError, match="cannot be merged"):
        view.merge_adapter()
    view.set_adapter("default", inference_mode=True)
    assert torch.equal(view(**batch).logits, alone)


def test_what_has_no_tokens_or_no_keys_is_refused_before_anything_changes() -> None:
    import transformers

    vit = transformers.ViTModel(
        transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    before = {n: type(m) for n, m in vit.named_modules()}
    with pytest.raises(TargetError, match="ViTModel has no token embeddings"):
        get_peft_model(vit, METHODS["prompt"]())
    with pytest.raises(TargetError, match="ViTModel takes no past keys and values"):
        get_peft_model(vit, METHODS["prefix"]())
    with pytest.raises(TargetError, match="DebertaV2Model takes no past keys and values"):
        view_of(model_of("DebertaV2", "Model"), "prefix", "FEATURE_EXTRACTION")
    with pytest.raises(TargetError, match="Net has no token embeddings"):
        get_peft_model(net(), METHODS["prompt"]())
    assert {n: type(m) for n, m in vit.named_modules()} == before
    view = view_of(model_of("GPT2", "ForCausalLM"), "prompt", "CAUSAL_LM")
    with pytest.raises(StateError, match=r"attention mask of shape \(batch, length\)"):
        view(**{**rows(4), "attention_mask": torch.ones(1, 1, 4, 4)})


def test_static_caches_are_refused() -> None:
    view = view_of(model_of("Llama", "ForCausalLM"), "prompt", "CAUSAL_LM")
    with pytest.raises(StateError, match="default \\(dynamic\\) cache"):
        view.generate(**rows(4), max_new_tokens=3, cache_implementation="static", do_sample=False)


@EVERY
def test_memory_grows_by_the_prompt_only(method: str) -> None:
    base = model_of("Llama", "ForCausalLM")
    own = {id(p) for p in base.parameters()}
    view = view_of(base, method, "CAUSAL_LM")
    extra = [n for n, p in view.named_parameters() if id(p) not in own]
    assert extra and all("adapters.default." in n for n in extra)
    assert view.verify(**rows(4)) == list(view._inlay.placed["default"])


@pytest.mark.parametrize("family", ["OPT", "T5", "Bert"])
@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_the_place_is_one_that_is_called(family: str, method: str) -> None:
    head, task = head_of(family)
    view = view_of(model_of(family, head), method, task)
    assert view.verify(**with_decoder(family, rows(5)))
