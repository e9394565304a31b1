"""Batches: padding on either side, labels of -100, and a mask that lengths make; batches of rows alike in length."""

from __future__ import annotations

import pytest
import torch

from inlay.data import Collator, by_length, prepare
from inlay.errors import ConfigError

from .tokenizers import bert_like, gpt2_like

ROWS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "length": 3},
    {"input_ids": torch.tensor([8]), "labels": torch.tensor([8])},
]


def test_padding_on_the_right() -> None:
    batch = Collator(7)(ROWS)
    assert {k: v.tolist() for k, v in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 7, 7]],
        "labels": [[-100, 6, 7], [8, -100, -100]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
    }
    assert {v.dtype for v in batch.values()} == {torch.int64}


def test_padding_on_the_left_to_a_multiple_or_a_length() -> None:
    batch = Collator(0, side="left", pad_to_multiple_of=4)(ROWS)
    assert batch["input_ids"].tolist() == [[0, 5, 6, 7], [0, 0, 0, 8]]
    assert batch["labels"].tolist() == [[-100, -100, 6, 7], [-100, -100, -100, 8]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
    assert Collator(0, pad_to=6)(ROWS)["input_ids"].shape == (2, 6)
    assert Collator(0, pad_to_multiple_of=3)(ROWS)["input_ids"].shape == (2, 3)
    with pytest.raises(
        ConfigError, match="pad_to=2 is not allowed: expected at least the length of the longest row, 3"
    ):
        Collator(0, pad_to=2)(ROWS)


def test_a_pad_token_that_is_the_end_token_stays_visible() -> None:
    tokenizer = gpt2_like()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    prepared = prepare([{"prompt": "a", "completion": c} for c in ("b", "b c d e")], tokenizer)
    batch = Collator.of(tokenizer)(list(prepared))
    assert batch["attention_mask"].sum(1).tolist() == prepared.lengths
    ends = batch["labels"].eq(tokenizer.eos_token_id)
    assert ends.sum(1).tolist() == [1, 1] and batch["attention_mask"][ends].tolist() == [1, 1]


def test_which_token_pads() -> None:
    tokenizer = gpt2_like()
    tokenizer.pad_token = None
    assert Collator.of(tokenizer).pad_token_id == tokenizer.eos_token_id
    assert Collator.of(bert_like(), side="left").side == "left"
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"pad_token_id=None is not allowed: .* Set tokenizer.pad_token"):
        Collator.of(tokenizer)
    with pytest.raises(ConfigError, match="side='both' is not allowed"):
        Collator(0, side="both")


def test_batches_by_length() -> None:
    lengths = [(i * 37) % 101 for i in range(203)]
    batches = by_length(lengths, 8, seed=3, pool=5)
    assert sorted(i for batch in batches for i in batch) == list(range(203)), "every row once"
    assert sorted(map(len, batches)) == [3] + [8] * 25
    assert max(lengths) in [lengths[i] for i in batches[0]], "the longest row is seen first"
    spread = sum(max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches) / len(batches)
    assert spread < 30 < 80, "far below the spread of 8 random rows, about 79"
    assert by_length(lengths, 8, seed=3, pool=5) == batches
    assert by_length(lengths, 8, seed=3, pool=5, epoch=1) != batches != by_length(lengths, 8, seed=4, pool=5)
    assert by_length([], 8) == []
