"""Adapters in the forms that other programs read.

exports      `export`, and `Export`, what became of it
whole        the model with the adapter in its weights, written in a form and verified
merged       that form of transformers
gguf         that form of llama.cpp
adapter      the adapter's folder
probes       whether two models compute the same
readers      what vLLM reads of an adapter's folder
"""

from __future__ import annotations

from inlay.exporting.exports import export
from inlay.exporting.probes import Difference
from inlay.exporting.readers import rejected_by_vllm
from inlay.exporting.result import Export

__all__ = ["Difference", "Export", "export", "rejected_by_vllm"]
