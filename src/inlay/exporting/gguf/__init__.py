"""A model as one GGUF file, which llama.cpp and what is built on it read.

architectures   model types, their numbers and tensors by GGUF's names
vocabulary      a tokenizer by GGUF's keys
splits          how texts are cut into words before merges, by llama.cpp's names
file            the file, written tensor by tensor
form            writing, reading and checking it
adapter         a LoRA alone, for llama.cpp to add to its base
"""

from __future__ import annotations

from inlay.exporting.gguf.form import GGUF

__all__ = ["GGUF"]
