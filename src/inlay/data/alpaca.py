"""Alpaca's own names for reading its data: a drop-in for the functions and classes of its training script.

    SupervisedDataset, DataCollatorForSupervisedDataset
    make_supervised_data_module, smart_tokenizer_and_embedding_resize

What differs, each where Alpaca's result is wrong: the prompt is tokenised apart from the answer, so its labels end
where it does; the attention mask is made of lengths, so a pad token that is the end token stays visible; rows whose
prompt fills the whole length, which train nothing, are left out with a warning; embeddings that are tied, missing or
padded are dealt with.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inlay.data.collate import Collator
from inlay.data.layout import IGNORE_INDEX as IGNORE_INDEX
from inlay.data.preparation import prepare
from inlay.data.report import listed
from inlay.data.templates import ALPACA_INPUT, ALPACA_NO_INPUT
from inlay.errors import InlayWarning, StateError

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_PAD_TOKEN = "[PAD]"
DEFAULT_EOS_TOKEN = "</s>"
DEFAULT_BOS_TOKEN = "<s>"
DEFAULT_UNK_TOKEN = "<unk>"
PROMPT_DICT = {"prompt_input": ALPACA_INPUT, "prompt_no_input": ALPACA_NO_INPUT}

_UNLIMITED = 10**6  # transformers' model_max_length where none is known is far above


class SupervisedDataset:
    """Alpaca rows of a file: `dataset[i]` is {"input_ids", "labels"}, tensors.

    Rows are cut at `tokenizer.model_max_length`. `report` says what became of them.
    """

    def __init__(self, data_path: Any, tokenizer: Any):
        import torch

        longest = min(tokenizer.model_max_length, _UNLIMITED)
        prepared = prepare(data_path, tokenizer, "alpaca", max_length=longest)
        self.report = prepared.report
        if self.report.dropped:
            warnings.warn("\n".join(["Rows were left out.", *listed("dropped", self.report.dropped)]), InlayWarning, 2)
        self.input_ids = [torch.tensor(row["input_ids"]) for row in prepared]
        self.labels = [torch.tensor(row["labels"]) for row in prepared]

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids[i], "labels": self.labels[i]}


class DataCollatorForSupervisedDataset:
    """Pads on the right with the tokenizer's pad token, labels with -100."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._collate = Collator(tokenizer.pad_token_id)

    def __call__(self, instances: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """input_ids, labels and attention_mask (bool), each (rows, length)."""
        batch = self._collate(instances)
        return {**batch, "attention_mask": batch["attention_mask"].bool()}


def make_supervised_data_module(tokenizer: Any, data_args: Any) -> dict[str, Any]:
    """The data arguments of a Trainer: train_dataset (of `data_args.data_path`), eval_dataset (None), data_collator."""
    return {
        "train_dataset": SupervisedDataset(data_path=data_args.data_path, tokenizer=tokenizer),
        "eval_dataset": None,
        "data_collator": DataCollatorForSupervisedDataset(tokenizer=tokenizer),
    }


def smart_tokenizer_and_embedding_resize(
    special_tokens_dict: Mapping[str, Any], tokenizer: Any, model: Any, pad_to_multiple_of: int | None = None
) -> int:
    """Adds special tokens and returns how many; their rows of the embeddings become the mean of the others.

    Embeddings that have room for the new tokens are not resized (Alpaca would cut off what is beyond the tokenizer's
    length). Tied embeddings are written once; a model without output embeddings has none to write. Call it
    before a view is made whose adapters are on the embeddings, or train them.

    Raises StateError, and leaves the tokenizer as it was, if the model says it has no input embeddings.
    """
    embedding = model.get_input_embeddings()
    if embedding is None:
        raise StateError(f"{type(model).__name__} has no input embeddings to resize.")
    before = len(tokenizer)
    tokenizer.add_special_tokens(dict(special_tokens_dict))
    after = len(tokenizer)
    if after > embedding.weight.shape[0]:
        model.resize_token_embeddings(after, pad_to_multiple_of=pad_to_multiple_of, mean_resizing=False)
    if after > before:
        tables = [e.weight for e in (model.get_input_embeddings(), model.get_output_embeddings()) if e is not None]
        for weight in {weight.data_ptr(): weight for weight in tables}.values():
            data = weight.detach()  # of all rows below `before`, as those are the tokenizer's
            data[before:after] = data[:before].float().mean(0).to(data.dtype)
    return after - before
