"""Configs of prompt methods: what is allowed, what a prompt starts as, and the layout of a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import inlay
from inlay import (
    MultitaskPromptTuningConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from inlay.errors import ConfigError, InlayWarning, StateError
from inlay.prompt.config import dimensions
from inlay.prompt.layout import Layout
from tests.prompt.models import model_of, rows
from tests.tiny import close

SPACE = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 5}


def message(make: Any, **fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make(**fields)
    return str(caught.value)


def test_wrong_fields_are_named() -> None:
    assert "num_virtual_tokens=0 is not allowed: expected an integer of at least 1" in message(
        PromptTuningConfig, num_virtual_tokens=0
    )
    assert "at most 65536" in message(PrefixTuningConfig, num_virtual_tokens=10**9)
    assert "num_transformer_submodules=3" in message(PromptTuningConfig, num_transformer_submodules=3)
    assert "prompt_tuning_init='TEXTS'" in message(PromptTuningConfig, prompt_tuning_init="TEXTS")
    assert "prompt_tuning_init_text=None" in message(PromptTuningConfig, prompt_tuning_init="TEXT")
    text = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a", "tokenizer_name_or_path": "b"}
    assert "without trust_remote_code" in message(
        PromptTuningConfig, **text, tokenizer_kwargs={"trust_remote_code": True}
    )
    assert "tokenizer_kwargs" in message(PromptTuningConfig, tokenizer_kwargs={"use_fast": True})
    assert "encoder_reparameterization_type='GRU'" in message(
        PromptEncoderConfig, encoder_reparameterization_type="GRU"
    )
    assert "encoder_dropout" in message(PromptEncoderConfig, encoder_dropout=2)
    assert "init_weights='one'" in message(PrefixTuningConfig, init_weights="one")
    assert "prefix_dropout" in message(PrefixTuningConfig, prefix_dropout=-1)
    assert "num_transformer_submodules=2" in message(MultitaskPromptTuningConfig, num_transformer_submodules=2)
    assert "prompt_tuning_init_state_dict_path" in message(
        MultitaskPromptTuningConfig, prompt_tuning_init="EXACT_SOURCE_TASK"
    )
    assert "num_tasks=2" in message(
        MultitaskPromptTuningConfig,
        prompt_tuning_init="AVERAGE_SOURCE_TASKS",
        prompt_tuning_init_state_dict_path="a.safetensors",
        num_tasks=2,
    )
    with pytest.warns(InlayWarning, match="encoder_num_layers is for the LSTM"):
        PromptEncoderConfig(encoder_num_layers=3)
    with pytest.raises(ConfigError, match="num_virtual_tokens=None is not allowed"):
        get_peft_model(model_of("GPT2", "ForCausalLM"), PromptTuningConfig())
    with pytest.raises(ConfigError, match="token_dim=8 is not allowed: expected 16, the model's, or None"):
        get_peft_model(model_of("GPT2", "ForCausalLM"), PromptTuningConfig(**SPACE, token_dim=8))
    with pytest.raises(ConfigError, match="num_layers=3 is not allowed: expected 2, the model's, or None"):
        get_peft_model(model_of("GPT2", "ForCausalLM"), PrefixTuningConfig(**SPACE, num_layers=3))
    with pytest.raises(ConfigError, match="expected a multiple of 3 heads"):
        get_peft_model(model_of("GPT2", "ForCausalLM"), PrefixTuningConfig(**SPACE, num_attention_heads=3))


def test_dimensions_are_taken_from_the_model() -> None:
    view = get_peft_model(model_of("Llama", "ForCausalLM"), PrefixTuningConfig(**SPACE))
    kept: Any = view.active_peft_config
    assert (kept.token_dim, kept.num_attention_heads, kept.num_layers, kept.num_transformer_submodules) == (8, 1, 2, 1)
    t5 = model_of("T5", "ForConditionalGeneration", d_kv=4, num_decoder_layers=3)
    view = get_peft_model(t5, PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5))
    kept = view.active_peft_config
    assert (kept.token_dim, kept.num_attention_heads, kept.num_layers, kept.num_transformer_submodules) == (8, 2, 3, 2)
    assert dimensions(model_of("Bart", "ForConditionalGeneration", decoder_layers=3))["num_layers"] == 3


def test_random_and_sampled_starts() -> None:
    base = model_of("GPT2", "ForCausalLM", dtype=torch.float32, n_embd=64)
    torch.manual_seed(0)
    table = base.get_input_embeddings().weight
    start = (
        get_peft_model(base, PromptTuningConfig(**{**SPACE, "num_virtual_tokens": 200})).adapters["default"].embedding
    )
    assert abs(start.std().item() - 1) < 0.05 and abs(start.mean().item()) < 0.05
    start = get_peft_model(base, PromptTuningConfig(**SPACE, prompt_tuning_init="SAMPLE_VOCAB")).adapters["default"]
    assert all(any(torch.equal(row, token) for token in table) for row in start.embedding)
    zero: Any = get_peft_model(base, PrefixTuningConfig(**SPACE, init_weights="zero"))
    assert not zero.transformer.adapters["default"].embedding.any()


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """A saved tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 7, "or": 8, "bad": 9}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(str(tmp_path / "words"))
    return str(tmp_path / "words")


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_text_is_repeated_or_cut_to_the_virtual_tokens(count: int, tokenizer: str) -> None:
    base = model_of("GPT2", "ForCausalLM")
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=count,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="good or bad",
        tokenizer_name_or_path=tokenizer,
        tokenizer_kwargs={"use_fast": True},
    )
    start = get_peft_model(base, config).adapters["default"].embedding
    assert torch.equal(start, base.get_input_embeddings().weight[[7, 8, 9, 7, 8, 9, 7][:count]])
    config.prompt_tuning_init_text = " "
    with pytest.raises(ConfigError, match="expected a text of at least one token"):
        get_peft_model(base, config)


def test_a_prompt_that_starts_as_text_computes_what_the_text_does(tokenizer: str) -> None:
    base = model_of("Llama", "ForCausalLM")
    text = {"prompt_tuning_init_text": "good or bad", "tokenizer_name_or_path": tokenizer}
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, prompt_tuning_init="TEXT", **text)
    ids = rows(6)["input_ids"]
    joined = torch.cat([torch.tensor([[7, 8, 9]]), ids], dim=1)
    close(get_peft_model(base, config).eval()(input_ids=ids).logits, base(input_ids=joined).logits)


def multitask(base: Any, **fields: Any) -> Any:
    torch.manual_seed(4)
    fields = {"num_ranks": 2, **SPACE, **fields}
    return get_peft_model(base, MultitaskPromptTuningConfig(**fields)).eval()


def test_multitask_prompts_are_a_shared_one_times_each_tasks_matrix() -> None:
    base = model_of("Llama", "ForCausalLM")
    view, batch = multitask(base, num_tasks=3), rows(6, 6)
    own = view.adapters["default"]
    with torch.no_grad():
        own.cols.normal_(), own.rows.normal_()
    y = view(**batch, task_ids=[2, 0]).logits
    for i, task in enumerate((2, 0)):
        prompt = own.embedding * (own.cols[task] @ own.rows[task])
        embeds = torch.cat([prompt, base.get_input_embeddings()(batch["input_ids"][i])])[None]
        close(y[i : i + 1], base(inputs_embeds=embeds).logits)
    with pytest.raises(StateError, match="pass task_ids="):
        view(**batch)
    with pytest.raises(StateError, match="task_ids has 3 tasks for a batch of 2 rows"):
        view(**batch, task_ids=[0, 1, 2])
    made = view.generate(**batch, task_ids=[2, 0], num_beams=2, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert made.shape == (2, 9)
    seq2seq = get_peft_model(
        model_of("T5", "ForConditionalGeneration"),
        MultitaskPromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2, num_tasks=2),
    ).eval()
    assert seq2seq(**batch, decoder_input_ids=torch.tensor([[2], [2]]), task_ids=[0, 1]).logits.shape[:2] == (2, 1)


def test_multitask_prompts_start_from_a_source(tmp_path: Path) -> None:
    base = model_of("Llama", "ForCausalLM")
    source = multitask(base, num_tasks=3)
    source.save_pretrained(str(tmp_path))
    theirs = source.adapters["default"]
    path = {"prompt_tuning_init_state_dict_path": str(tmp_path / "adapter_model.safetensors")}
    exact = multitask(base, prompt_tuning_init="EXACT_SOURCE_TASK", prompt_tuning_init_task=1, **path).adapters[
        "default"
    ]
    assert torch.equal(exact.embedding, theirs.embedding) and torch.equal(exact.cols, theirs.cols[1:2])
    mean = multitask(base, prompt_tuning_init="AVERAGE_SOURCE_TASKS", **path).adapters["default"]
    close(mean.rows, theirs.rows.mean(0, keepdim=True))
    shared = multitask(base, prompt_tuning_init="ONLY_SOURCE_SHARED", num_tasks=2, **path).adapters["default"]
    assert torch.equal(shared.embedding, theirs.embedding) and shared.cols.std() < 0.1
    with pytest.raises(ConfigError, match="expected a task from 0 to 2"):
        multitask(base, prompt_tuning_init="EXACT_SOURCE_TASK", prompt_tuning_init_task=3, **path)
    with pytest.raises(ConfigError, match=r"a file with prompt_embeddings \(5, 16\)"):
        multitask(base, prompt_tuning_init="ONLY_SOURCE_SHARED", num_virtual_tokens=4, **path)


def test_a_prefix_drops_out_in_training_only() -> None:
    view = get_peft_model(model_of("Llama", "ForCausalLM"), PrefixTuningConfig(**SPACE, prefix_dropout=0.5))
    batch = rows(6)
    assert torch.equal(view.eval()(**batch).logits, view(**batch).logits)
    assert not torch.equal(view.train()(**batch).logits, view(**batch).logits)
    data = view.active_peft_config.to_dict()
    assert data["prefix_dropout"] == 0.5
    assert "prefix_dropout" not in PrefixTuningConfig(**SPACE).to_dict(), "peft does not know it"


def test_a_submodule_count_of_one_gives_each_decoder_layer_its_own_keys() -> None:
    base = model_of("T5", "ForConditionalGeneration")
    fields = {"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 2}
    like_peft = get_peft_model(base, PrefixTuningConfig(**fields)).decoder.adapters["default"]
    own = get_peft_model(base, PrefixTuningConfig(**fields, num_transformer_submodules=1)).decoder.adapters["default"]
    assert (like_peft.first, own.first) == ([0, 0], [0, 2])


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(**SPACE, prompt_tuning_init="SAMPLE_VOCAB"),
        PromptEncoderConfig(**SPACE, encoder_reparameterization_type="LSTM", encoder_num_layers=1),
        PrefixTuningConfig(**SPACE, prefix_projection=True),
        MultitaskPromptTuningConfig(**SPACE, num_tasks=3),
    ],
    ids=lambda c: c.peft_type,
)
def test_a_config_survives_its_file(config: PeftConfig, tmp_path: Path) -> None:
    config.save_pretrained(str(tmp_path))
    data = json.loads((tmp_path / "adapter_config.json").read_text())
    again = PeftConfig.from_pretrained(str(tmp_path))
    assert again == config.replaced(inference_mode=True) and again.to_dict() == data
    assert again.is_prompt_learning and isinstance(again, inlay.PromptLearningConfig)


def test_the_layout_puts_virtual_tokens_first_and_padding_where_it_does_no_harm() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]])
    values = torch.arange(12).view(3, 4) + 10
    kept = Layout(2, mask, moves=False)
    assert kept.mask is not None and kept.mask.tolist() == [
        [1, 1, 1, 1, 1, 1],
        [1, 1, 0, 0, 1, 1],
        [1, 1, 1, 1, 0, 0],
    ]
    assert kept.positions is not None and kept.positions.tolist()[1] == [0, 1, 1, 1, 2, 3]
    moved = Layout(2, mask, moves=True)
    joined = moved.before(values, values.new_tensor(-1))
    assert joined.tolist() == [[-1, -1, 10, 11, 12, 13], [-1, -1, 16, 17, 14, 15], [-1, -1, 18, 19, 20, 21]]
    assert moved.mask is not None and moved.mask.tolist()[1] == [1, 1, 1, 1, 0, 0]
    for layout in (kept, moved, Layout(2, None, moves=True)):
        states = layout.before(values, values.new_tensor(-1)).unsqueeze(-1)
        assert torch.equal(layout.take(states).squeeze(-1), values)
    assert Layout(2, None, moves=True).mask is None and Layout(2, None, moves=False).positions is None
