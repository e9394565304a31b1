"""Base and adapters side by side.

columns      `compare`: which models, and that all of them stand on one base
questions    prompts as token ids, with the row that a loss is taken of
answers      texts that models write, and losses
result       `Comparison`; `difference` finds the words that differ, `text` and `page` show them
"""

from __future__ import annotations

from inlay.comparison.answers import Decoding
from inlay.comparison.columns import compare
from inlay.comparison.result import Answer, Comparison, Row

__all__ = ["Answer", "Comparison", "Decoding", "Row", "compare"]
