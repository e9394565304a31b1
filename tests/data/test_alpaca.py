"""The names of Alpaca's training script, against a re-statement of its steps where those are right."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inlay import LoraConfig, get_peft_model
from inlay.data.alpaca import (
    DEFAULT_BOS_TOKEN,
    DEFAULT_EOS_TOKEN,
    DEFAULT_PAD_TOKEN,
    DEFAULT_UNK_TOKEN,
    IGNORE_INDEX,
    PROMPT_DICT,
    DataCollatorForSupervisedDataset,
    SupervisedDataset,
    make_supervised_data_module,
    smart_tokenizer_and_embedding_resize,
)
from inlay.errors import InlayWarning, StateError
from tests.tiny import llama

from .tokenizers import bert_like, gpt2_like, llama_like

ROWS = [
    {"instruction": "Name three rivers.", "input": "", "output": "Rhine, Po, Danube"},
    {"instruction": "Count.", "input": "in a sentence", "output": "2, 3"},
    {"instruction": "Say {nothing}.", "input": "", "output": ""},
]


def steps(
    tokenizer: Any, rows: list[dict[str, str]], length: int
) -> tuple[list[list[int]], list[list[int]], list[bool]]:
    """Alpaca's: source and target tokenised together and the source alone, its length masked. Also: is that right?"""
    ids, labels, right = [], [], []
    for row in rows:
        which = "prompt_input" if row.get("input", "") != "" else "prompt_no_input"
        source = PROMPT_DICT[which].format_map(row)
        whole = tokenizer(source + row["output"] + tokenizer.eos_token, max_length=length, truncation=True)["input_ids"]
        alone = tokenizer(source, max_length=length, truncation=True)["input_ids"]
        ids.append(whole)
        labels.append([IGNORE_INDEX] * len(alone) + whole[len(alone) :])
        right.append(whole[: len(alone)] == alone)
    return ids, labels, right


def file(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(rows))
    return str(path)


def test_constants() -> None:
    constants = (IGNORE_INDEX, DEFAULT_PAD_TOKEN, DEFAULT_EOS_TOKEN, DEFAULT_BOS_TOKEN, DEFAULT_UNK_TOKEN)
    assert constants == (-100, "[PAD]", "</s>", "<s>", "<unk>")
    assert PROMPT_DICT.keys() == {"prompt_input", "prompt_no_input"}
    assert all(prompt.endswith("\n\n### Response:") for prompt in PROMPT_DICT.values())


@pytest.mark.parametrize("make", [gpt2_like, llama_like])
@pytest.mark.parametrize("length", [512, 60])
def test_the_data_set(tmp_path: Path, make: Any, length: int) -> None:
    tokenizer = make()
    tokenizer.model_max_length = length
    ids, labels, right = steps(tokenizer, ROWS, length)
    assert right[0] is True or make is llama_like
    dataset = SupervisedDataset(data_path=file(tmp_path, ROWS), tokenizer=tokenizer)
    assert len(dataset) == len(dataset.input_ids) == len(dataset.labels) == 3
    for i in range(3):
        row = dataset[i]
        assert row.keys() == {"input_ids", "labels"} and row["labels"].dtype == torch.int64
        if right[i]:
            assert row["input_ids"].tolist() == ids[i] and row["labels"].tolist() == labels[i]


def test_a_prompt_that_fills_the_length_is_left_out_with_a_warning(tmp_path: Path) -> None:
    tokenizer = gpt2_like()
    tokenizer.model_max_length = 40
    with pytest.warns(InlayWarning, match=r"dropped    2: no trained token within max_length=40 \(rows 2, 3\)"):
        dataset = SupervisedDataset(file(tmp_path, ROWS), tokenizer)
    assert len(dataset) == 1 and (dataset.labels[0] != IGNORE_INDEX).any()


def test_the_collator_and_the_module(tmp_path: Path) -> None:
    tokenizer = gpt2_like()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    module = make_supervised_data_module(tokenizer=tokenizer, data_args=SimpleNamespace(data_path=file(tmp_path, ROWS)))
    assert module.keys() == {"train_dataset", "eval_dataset", "data_collator"} and module["eval_dataset"] is None
    rows = [module["train_dataset"][i] for i in range(3)]
    batch = module["data_collator"](rows)
    pad = torch.nn.utils.rnn.pad_sequence
    assert batch.keys() == {"input_ids", "labels", "attention_mask"}
    ids = pad([r["input_ids"] for r in rows], batch_first=True, padding_value=tokenizer.pad_token_id)
    assert torch.equal(batch["input_ids"], ids)
    labels = pad([r["labels"] for r in rows], batch_first=True, padding_value=-100)
    assert torch.equal(batch["labels"], labels)
    assert torch.equal(batch["attention_mask"], ids.ne(tokenizer.pad_token_id))
    tokenizer.pad_token = tokenizer.eos_token
    again = DataCollatorForSupervisedDataset(tokenizer=tokenizer)(rows)
    assert torch.equal(again["attention_mask"], batch["attention_mask"]), "the end token stays visible"


# --- special tokens ---


def means(weight: torch.Tensor, rows: int) -> torch.Tensor:
    return weight[:rows].float().mean(0)


@pytest.mark.parametrize("tied", [False, True])
def test_new_tokens_start_at_the_mean(tied: bool) -> None:
    tokenizer = gpt2_like()
    size = len(tokenizer)
    model = llama(vocab_size=size, tie_word_embeddings=tied)
    before = [e.weight.detach().clone() for e in (model.get_input_embeddings(), model.get_output_embeddings())]
    added = smart_tokenizer_and_embedding_resize(
        special_tokens_dict={"pad_token": "[PAD]", "bos_token": "<s>"}, tokenizer=tokenizer, model=model
    )
    assert added == 2 and len(tokenizer) == size + 2 and model.config.vocab_size == size + 2
    for old, table in zip(before, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
        assert torch.equal(table.weight[:size], old)
        torch.testing.assert_close(table.weight[size:].float(), means(old, size).expand(2, -1))
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied


def test_room_that_the_model_has_is_used() -> None:
    """A vocabulary padded to 512 stays so; Alpaca would cut it off at the tokenizer's length."""
    tokenizer = gpt2_like()
    size = len(tokenizer)
    model = llama(vocab_size=512)
    old = model.get_input_embeddings().weight.detach().clone()
    assert smart_tokenizer_and_embedding_resize({"pad_token": "[PAD]"}, tokenizer, model) == 1
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == 512 and torch.equal(weight[size + 1 :], old[size + 1 :])
    torch.testing.assert_close(weight[size], means(old, size))


def test_nothing_to_add_and_multiples() -> None:
    tokenizer = gpt2_like()
    model = llama(vocab_size=len(tokenizer))
    table = model.get_input_embeddings()
    assert smart_tokenizer_and_embedding_resize({"pad_token": tokenizer.eos_token}, tokenizer, model) == 0
    assert model.get_input_embeddings() is table
    smart_tokenizer_and_embedding_resize({"pad_token": "[PAD]"}, tokenizer, model, pad_to_multiple_of=64)
    assert model.get_input_embeddings().weight.shape[0] % 64 == 0


def test_a_model_without_output_embeddings_and_one_without_any() -> None:
    tokenizer = bert_like()
    model = llama(cls="LlamaModel", vocab_size=len(tokenizer))
    assert model.get_output_embeddings() is None
    assert smart_tokenizer_and_embedding_resize({"eos_token": "[EOS]"}, tokenizer, model) == 1
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    size = len(tokenizer)
    with pytest.raises(StateError, match="Model has no input embeddings to resize"):
        smart_tokenizer_and_embedding_resize(
            {"bos_token": "[BOS]"}, tokenizer, type("Model", (), {"get_input_embeddings": lambda self: None})()
        )
    assert len(tokenizer) == size, "the tokenizer is as it was"


def test_on_a_view() -> None:
    tokenizer = gpt2_like()
    size = len(tokenizer)
    base = llama(vocab_size=size)
    view = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert smart_tokenizer_and_embedding_resize({"pad_token": "[PAD]"}, tokenizer, view) == 1
    weight = view.get_input_embeddings().weight
    assert weight.shape[0] == size + 1
    torch.testing.assert_close(weight[size], means(weight, size))
    assert view(torch.tensor([[size]])).logits.shape[-1] == size + 1


def test_trainer_takes_the_module(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    tokenizer = gpt2_like()
    model = llama(vocab_size=len(tokenizer), max_position_embeddings=128)
    smart_tokenizer_and_embedding_resize({"pad_token": "[PAD]"}, tokenizer, model)
    module = make_supervised_data_module(tokenizer, SimpleNamespace(data_path=file(tmp_path, ROWS)))
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    assert Trainer(model=model, args=args, **module).train().training_loss > 0
