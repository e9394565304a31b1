"""The form "gguf": written here, read by transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from inlay.errors import NumericsError
from inlay.exporting.gguf.file import TYPES, fit, write_file
from inlay.exporting.gguf.splits import cutting, spaced
from inlay.exporting.gguf.vocabulary import BYTE_LEVEL, Vocabulary
from inlay.exporting.whole import Form
from inlay.hf.gguf import load_gguf, load_gguf_tokenizer, recut

TEXTS = (
    "Hello, world! It's 3.14159, 2024 and 1000000 -- they'll see.",
    "  two spaces,\ttabs\n\nand lines\r\n   indented\n",
    "def f(x):\n    return x**2  # café naïve Straße",
    "你好\uff0c世界。日本語のテキスト。안녕하세요 Привет مرحبا",
    "😀 👩‍👩‍👧 ✅ 🦙🦙 x\u200by",
    "A1b2 3 33 333 4444 '''```\"\"...!!!???",
)
"""What the tokenizer in a file is asked, besides special tokens and a chat."""


def _read(path: Path, cls: Any, config: Any) -> Any:
    return load_gguf(path, config)


def _check(path: Path, tokenizer: Any) -> list[str]:
    """Raises NumericsError if the tokenizer in a file is another; notes where llama.cpp or transformers will differ."""
    meant = Vocabulary.of(tokenizer, len(tokenizer))
    byte_level, others = meant.model == BYTE_LEVEL, list(_others(tokenizer))
    written = load_gguf_tokenizer(path)
    alone = [_ids(written, text) for text in (*TEXTS, *others)]  # as transformers reads it
    recut(written, cutting(meant.split) if byte_level else spaced(meant.space))
    for text in (*TEXTS, *others) if byte_level else map(str.lstrip, TEXTS):
        _compare(text, tokenizer, written)
    wanted = [_ids(tokenizer, text) for text in (*TEXTS, *others)]
    if byte_level and alone != wanted:
        return [
            f"llama.cpp cuts texts as the tokenizer does ({meant.split!r}); transformers, reading this file, does not"
        ]
    if not byte_level and [_ids(written, text) for text in (*TEXTS, *others)] != wanted:
        return [
            "llama.cpp puts a space before each piece of text, also one that begins with a space or follows a special "
            "token; the tokenizer does not, so prompts of these get other ids there"
        ]
    return []


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def _compare(text: str, tokenizer: Any, written: Any) -> None:
    wanted, found = _ids(tokenizer, text), _ids(written, text)
    if wanted == found:
        return
    at = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), min(len(wanted), len(found)))
    given, other = (tokenizer.convert_ids_to_tokens(ids[at : at + 3]) for ids in (wanted, found))
    raise NumericsError(
        f"The tokenizer in the GGUF file is not the one given: of {text!r} it makes {other} where {given} are "
        "expected. Nothing was kept. Export it merged, and convert the folder with llama.cpp's own script."
    )


def _others(tokenizer: Any) -> Iterator[str]:
    """Texts with special tokens, and a chat."""
    special = tokenizer.all_special_tokens
    yield "".join(f"{token}text\n" for token in special) + " ".join(special)
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": TEXTS[3]}]
        yield str(tokenizer.apply_chat_template(turns, tokenize=False))


GGUF = Form("gguf", tuple(TYPES), {"float32": torch.float32}, fit, write_file, _read, _check)
"""One file for llama.cpp, and for what is built on it."""
