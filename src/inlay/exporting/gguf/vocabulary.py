"""A tokenizer by GGUF's keys.

Two kinds: byte-level BPE ("gpt2": tokens, merges, and how texts are cut first) and SentencePiece's BPE ("llama": tokens
and scores, `▁` for a space, bytes as <0xNN>). Of the second, llama.cpp merges those neighbours whose token has the
highest score: minus the rank of the first merge that makes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from inlay.errors import ConfigError
from inlay.exporting.gguf.splits import split_of

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)  # gguf.TokenType
_SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unk_token_id", "pad": "pad_token_id"}


@dataclass(frozen=True)
class Vocabulary:
    """What is written of a tokenizer.

    Attributes:
        model: "gpt2" or "llama".
        split: llama.cpp's name of how texts are cut.
        tokens, types: one an id, up to the size of the model's embedding.
        merges: of byte-level BPE, "a b".
        scores: of SentencePiece's.
        special: bos, eos, unk, pad -> id, where there is one.
        adds: bos, eos -> whether each text gets one.
        space: whether a space is put before each text.
        template: of chats; by name if there are several.
        notes: what a reader of the file may do otherwise.
    """

    model: str
    split: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    special: dict[str, int]
    adds: dict[str, bool]
    space: bool
    template: str | dict[str, str] | None
    notes: list[str]

    @classmethod
    def of(cls, tokenizer: Any, size: int) -> Vocabulary:
        """The vocabulary of a tokenizer for a model with `size` embeddings.

        Raises ConfigError if GGUF, or llama.cpp, has no way to say what the tokenizer does.
        """
        if not (backend := getattr(tokenizer, "backend_tokenizer", None)):
            raise ConfigError.of("tokenizer", type(tokenizer).__name__, "one with a tokenizer.json (a fast one)")
        state = json.loads(backend.to_str())
        if len(tokenizer) > size:
            raise ConfigError.of(
                "tokenizer",
                f"{len(tokenizer)} tokens",
                f"at most {size}, the embeddings of the model",
                "Resize the model's embeddings.",
            )
        model, split, space = _kind(state)
        vocabulary = {**state["model"]["vocab"], **{t["content"]: t["id"] for t in state["added_tokens"]}}
        by_id = {i: token for token, i in vocabulary.items()}
        merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in state["model"]["merges"]]
        special = {k: i for k, name in _SPECIAL.items() if (i := getattr(tokenizer, name, None)) is not None}
        byte_level = model == BYTE_LEVEL
        added = {t["id"]: t for t in state["added_tokens"]}
        return cls(
            model,
            split,
            [by_id.get(i, f"[PAD{i}]") for i in range(size)],
            [_type(by_id.get(i), added.get(i), i == special.get("unk"), byte_level) for i in range(size)],
            [" ".join(pair) for pair in merges] if byte_level else [],
            [] if byte_level else _scores(merges, by_id, size),
            special,
            _added(tokenizer, special),
            space,
            tokenizer.chat_template,
            list(_notes(state)),
        )


def _kind(state: Mapping[str, Any]) -> tuple[str, str, bool]:
    """(model, split, whether a space is put before a text) of a tokenizer.json."""
    cutting, normalizer = (json.dumps(state[part], ensure_ascii=False) for part in ("pre_tokenizer", "normalizer"))
    if state["model"]["type"] != "BPE":
        raise ConfigError.of(
            "tokenizer", state["model"]["type"], "a BPE: byte-level, or SentencePiece's, for a GGUF file"
        )
    if "ByteLevel" in cutting:
        known = ("null", '{"type": "NFC"}', '{"type": "Sequence", "normalizers": []}')
        if normalizer not in known:
            raise ConfigError.of("tokenizer", normalizer, "no change of the text before it is cut, or NFC")
        return BYTE_LEVEL, split_of(state), False
    if not state["model"].get("byte_fallback") or not ("Metaspace" in cutting or "▁" in normalizer):
        raise ConfigError.of(
            "tokenizer", state["model"]["type"], "byte-level BPE, or SentencePiece's with bytes for unknown characters"
        )
    space = '"Prepend"' in normalizer or any(f'"prepend_scheme": "{w}"' in cutting for w in ("first", "always"))
    return SENTENCEPIECE, "default", space


def _type(token: str | None, added: Mapping[str, Any] | None, unknown: bool, byte_level: bool) -> int:
    if token is None:
        return _UNUSED
    if unknown and not byte_level:
        return _UNKNOWN
    if added is not None:
        return _CONTROL if added["special"] else _USER
    if not byte_level and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return _BYTE
    return _NORMAL


def _scores(merges: list[tuple[str, ...]], by_id: Mapping[int, str], size: int) -> list[float]:
    rank: dict[str, int] = {}
    for i, pair in enumerate(merges):
        rank.setdefault("".join(pair), i)
    return [-float(rank.get(by_id.get(i, ""), len(merges))) for i in range(size)]


def _added(tokenizer: Any, special: Mapping[str, int]) -> dict[str, bool]:
    """Whether each text gets a begin and an end token. Raises ConfigError if it gets something else."""
    whole, bare = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    before, after = whole[:at], whole[at + len(bare) :]
    for found, name in ((before, "bos"), (after, "eos")):
        if found not in ([], [special.get(name)]):
            raise ConfigError.of(
                "tokenizer",
                tokenizer.convert_ids_to_tokens(found),
                f"nothing, or its {name}_token, as what each text gets {'before' if name == 'bos' else 'after'} it",
            )
    return {"bos": bool(before), "eos": bool(after)}


def _notes(state: Mapping[str, Any]) -> Iterator[str]:
    if '"NFC"' in json.dumps(state["normalizer"]):
        yield "the tokenizer composes characters (NFC), llama.cpp does not: texts that are not composed differ"
    if taken := [t["content"] for t in state["added_tokens"] if t["lstrip"] or t["rstrip"] or t["single_word"]]:
        yield f"spaces around {', '.join(taken[:3])} are the tokenizer's to remove; a GGUF file cannot say so"
