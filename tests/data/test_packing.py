"""Packed rows do not see one another: the logits of a pack are those of its rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from inlay.data import BlockCollator, Collator, FlatCollator, Packed, Prepared, Tokens, pack
from inlay.errors import ConfigError
from tests.tiny import VOCAB, llama


def data(lengths: list[int]) -> Prepared:
    prepared = Prepared(report=None)  # type: ignore[arg-type]
    for n, length in enumerate(lengths):
        ids = [3 + (7 * n + 5 * i) % (VOCAB - 3) for i in range(length)]
        prepared.append(n + 1, Tokens(ids, [i >= length // 2 for i in range(length)], False, None), b"", None)
    return prepared


LENGTHS = [5, 3, 8, 2, 7, 1, 6]


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 40))
def test_every_row_is_in_one_pack_and_none_is_too_long(lengths: list[int], most: int) -> None:
    packed = pack(data(lengths), most)
    assert sorted(i for rows in packed.packs for i in rows) == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in rows) for rows in packed.packs]
    assert all(size <= most for size in sizes) and [packed[i]["length"] for i in range(len(packed))] == sizes
    assert len(packed) <= 11 / 9 * -(-sum(lengths) // most) + 1 or 2 * sum(sizes) > most * (len(packed) - 1)
    assert packed.filled == pytest.approx(sum(lengths) / (most * len(packed)) if lengths else 0.0)


def test_a_row_that_does_not_fit() -> None:
    with pytest.raises(
        ConfigError, match="max_length=7 is not allowed: expected at least the length of the longest row, 8"
    ):
        pack(data(LENGTHS), 7)


def test_many_rows_pack_tightly() -> None:
    packed = pack(data([1 + (i * i * 31) % 97 for i in range(20_000)]), 100)
    assert packed.filled > 0.98


def test_a_pack() -> None:
    packed = Packed(data([3, 2]), [[1, 0]], 8)
    a, b = packed.prepared[0], packed.prepared[1]
    assert packed[0] == {
        "input_ids": b["input_ids"] + a["input_ids"],
        "labels": [-100, b["labels"][1], -100, *a["labels"][1:]],
        "position_ids": [0, 1, 0, 1, 2],
        "length": 5,
    }


def test_flattened_rows_are_as_transformers_has_them() -> None:
    rows = [{k: row[k] for k in ("input_ids", "labels")} for row in data([3, 1, 4])]
    theirs = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(rows)
    ours = FlatCollator(bounds=True)(rows)
    assert ours.keys() == theirs.keys() | {"use_cache"} and ours["use_cache"] is False
    for name, value in theirs.items():
        same = torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value
        assert same and type(ours[name]) is type(value), name
        assert getattr(ours[name], "dtype", None) == getattr(value, "dtype", None)
    assert FlatCollator(bounds=True)([Packed(data([3, 1, 4]), [[0, 1, 2]], 8)[0]])["cu_seq_lens_q"].tolist() == [
        0,
        3,
        4,
        8,
    ]


def alone(model: Any, prepared: Prepared, i: int) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([prepared[i]["input_ids"]])).logits[0]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["flat", "block"])
def test_logits_of_a_pack_are_those_of_its_rows(attention: str, kind: str) -> None:
    model = llama(dtype=torch.float64, attn_implementation=attention)
    prepared = data(LENGTHS)
    packed = pack(prepared, 12)
    packs = [packed[i] for i in range(len(packed))]
    assert len(packs) < len(LENGTHS)
    if kind == "flat":
        order = [packed.packs]
        batch = FlatCollator()(packs)
    else:
        order = [[rows] for rows in packed.packs]
        batch = BlockCollator(0, dtype="float64")(packs)
    with torch.no_grad():
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    assert torch.isfinite(logits).all()
    for line, group in enumerate(order):
        at = 0
        for i in (i for rows in group for i in rows):
            expected = alone(model, prepared, i)
            # eager attention takes its softmax in float32
            torch.testing.assert_close(logits[line, at : at + len(expected)], expected, rtol=1e-6, atol=1e-7)
            at += len(expected)


@pytest.mark.parametrize("without", ["position_ids", "use_cache"])
def test_without_positions_or_with_a_cache_rows_would_see_one_another(without: str) -> None:
    """The test above can fail."""
    model = llama(dtype=torch.float64)
    prepared = data([4, 4])
    batch = FlatCollator()([Packed(prepared, [[0, 1]], 8)[0]])
    del batch[without], batch["labels"]
    with torch.no_grad():
        mixed = model(**batch).logits[0, 4:]
    assert (mixed - alone(model, prepared, 1)).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["flat", "block"])
def test_the_loss_of_packs_is_that_of_their_rows(kind: str) -> None:
    model = llama(dtype=torch.float64)
    prepared = data(LENGTHS)
    packed = pack(prepared, 12)
    collate = FlatCollator() if kind == "flat" else BlockCollator(0, dtype="float64")
    with torch.no_grad():
        got = model(**collate([packed[i] for i in range(len(packed))])).loss
        expected = model(**Collator(0)([{**r, "labels": [-100, *r["labels"][1:]]} for r in prepared])).loss
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)  # it is computed in float32


def test_trainer_trains_on_packs_as_on_rows(tmp_path: Path) -> None:
    """One step over all rows: the same gradients, though Trainer hands the collator only what `forward` takes."""
    prepared = data(LENGTHS)
    packed = pack(prepared, 12)

    def trained(dataset: Any, collator: Any) -> dict[str, torch.Tensor]:
        model = llama()
        args = TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=8, learning_rate=0.1, optim="sgd",
            report_to=[], use_cpu=True, disable_tqdm=True, max_grad_norm=0.0,
        )  # fmt: skip
        Trainer(model=model, args=args, train_dataset=dataset, data_collator=collator).train()
        return dict(model.state_dict())

    rows = [{**row, "labels": [-100, *row["labels"][1:]]} for row in prepared]
    expected, start = trained(rows, Collator(0)), llama().state_dict()
    for collator in (FlatCollator(), BlockCollator(0)):
        got = trained(packed, collator)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6)
    assert any((expected[name] - start[name]).abs().max() > 1e-4 for name in expected)


def test_trainer_groups_prepared_rows_by_length(tmp_path: Path) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, train_sampling_strategy="group_by_length",
        report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=llama(), args=args, train_dataset=data(LENGTHS), data_collator=Collator(0))
    assert trainer.train().training_loss > 0
