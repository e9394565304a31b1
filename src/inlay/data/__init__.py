"""From rows of text to tensors that train what should be trained, and nothing else.

    prepared = prepare("rows.jsonl", tokenizer)      # the format is found by the columns; labels mask the prompt
    print(prepared.report)                           # rows left out and why, lengths, truncation, the end token
    preview(prepared, tokenizer, 3)                  # rows as the model sees them, in trained and other runs
    Trainer(model, train_dataset=prepared, data_collator=Collator.of(tokenizer))

`docs/data.md` has the formats. Nothing here imports another part of Inlay but its errors.
"""

from __future__ import annotations

from inlay.data.chat import Chat
from inlay.data.collate import Collator
from inlay.data.grouping import by_length
from inlay.data.layout import IGNORE_INDEX, Causal, ChatGLM, Tokens
from inlay.data.packing import BlockCollator, FlatCollator, Packed, pack
from inlay.data.preparation import prepare
from inlay.data.prepared import Overlap, Prepared, Shown, overlap, preview
from inlay.data.report import Lengths, Report
from inlay.data.schema import BadRow, Format, Part, Row, known_formats, register
from inlay.data.sources import Source, read

__all__ = [
    "IGNORE_INDEX",
    "BadRow",
    "BlockCollator",
    "Causal",
    "Chat",
    "ChatGLM",
    "Collator",
    "FlatCollator",
    "Format",
    "Lengths",
    "Overlap",
    "Packed",
    "Part",
    "Prepared",
    "Report",
    "Row",
    "Shown",
    "Source",
    "Tokens",
    "by_length",
    "known_formats",
    "overlap",
    "pack",
    "prepare",
    "preview",
    "read",
    "register",
]
