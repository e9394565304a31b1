"""How byte-level tokenizers cut a text into words before they merge, by llama.cpp's names.

A GGUF file holds the name only; llama.cpp has the rule. So a tokenizer that cuts in another way cannot be written. Here
are the names whose rule was seen to give the same tokens in llama.cpp as in the tokenizers they are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from inlay.errors import ConfigError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _split(pattern: str) -> list[dict[str, Any]]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [cut, _bytes(False)]


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}


SPLITS: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "gpt-2": ([_bytes(True)], False),
    "smollm": ([{"type": "Digits", "individual_digits": True}, _bytes(True)], False),
    "qwen2": (_split(_QWEN2), False),
    "llama-bpe": (_split(_LLAMA3), True),
    "smaug-bpe": (_split(_LLAMA3), False),
}
"""llama.cpp's name -> the steps, as in tokenizer.json, and whether words in the vocabulary are taken before merging."""


def split_of(backend: Mapping[str, Any]) -> str:
    """llama.cpp's name of how a tokenizer, as in tokenizer.json, cuts. Raises ConfigError if it has none."""
    given = _steps(backend["pre_tokenizer"]), bool(backend["model"].get("ignore_merges"))
    for name, (steps, ignore_merges) in SPLITS.items():
        if given == (list(map(_told, steps)), ignore_merges):
            return name
    shown = " + ".join(str(step.get("pattern", {}).get("Regex", step["type"])) for step in given[0]) or "not at all"
    raise ConfigError(
        f"The tokenizer cuts texts into words in a way that has no name here for GGUF ({shown}): expected that "
        f"of one of {', '.join(SPLITS)}. Export it merged, and convert the folder with llama.cpp's own script.",
        "tokenizer",
    )


def cutting(name: str) -> dict[str, Any]:
    """What a name stands for, as in tokenizer.json."""
    steps = [{**step, "trim_offsets": True} for step in SPLITS[name][0]]
    return {"normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


def spaced(before: bool) -> dict[str, Any]:
    """What llama.cpp does to texts for SentencePiece: `▁` for spaces and, if so, one before each text."""
    steps = [{"type": "Prepend", "prepend": "▁"}] if before else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return {"normalizer": {"type": "Sequence", "normalizers": [*steps, spaces]}, "pre_tokenizer": None}


def _steps(given: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if given is None:
        return []
    parts: Iterable[Any] = given["pretokenizers"] if given["type"] == "Sequence" else [given]
    return [_told(part) for part in parts]


def _told(step: Mapping[str, Any]) -> dict[str, Any]:
    """A step without what makes no difference to the tokens."""
    if step["type"] == "Digits":
        return {"type": "Digits", "individual_digits": step["individual_digits"]}
    return {key: value for key, value in step.items() if key != "trim_offsets"}
