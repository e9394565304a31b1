"""Tokenizers that differ in what matters at a boundary: trained here on a few lines, or real."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

SHARED = Path(__file__).parents[3] / "shared" / "data"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def corpus() -> Iterator[str]:
    """Text with Alpaca's template in it, so that merges across its end are worth learning."""
    from inlay.data.templates import alpaca

    verbs = ["Name", "List", "Describe", "Compare", "Write about", "Explain", "Count", "Translate"]
    things = ["three rivers", "a red house", "the seasons", "two cities", "a short poem", "prime numbers", "bread"]
    answers = [
        "Yes.",
        "1. Rhine\n2. Danube",
        "The house is red.",
        "(a) spring",
        "Winter, then spring",
        "\nA poem:",
        "2, 3",
    ]
    for i, verb in enumerate(verbs):
        for j, thing in enumerate(things):
            yield alpaca(f"{verb} {thing}.", "in a sentence" if (i + j) % 2 else "") + answers[(i * j) % len(answers)]


def gpt2_like() -> Any:
    """Byte-level BPE, split into words first; pad is the end token."""
    return _byte_level(add_prefix_space=False)


def roberta_like() -> Any:
    """Byte-level BPE that puts a space before every text, with special tokens around it."""
    tokenizer = _byte_level(add_prefix_space=True)
    eos = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.RobertaProcessing(
        ("<|endoftext|>", eos), ("<|endoftext|>", eos), add_prefix_space=True
    )
    return tokenizer


@functools.cache
def _trained_byte_level(add_prefix_space: bool) -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(corpus(), trainer)
    return backend.to_str()


def _byte_level(add_prefix_space: bool) -> Any:
    made = Tokenizer.from_str(_trained_byte_level(add_prefix_space))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def llama_like() -> Any:
    """BPE over whole texts with `▁` for a space, one before every text, and unknown characters as bytes; adds <s>."""
    backend = Tokenizer.from_str(_trained_llama())
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama_legacy() -> Any:
    """The same, with the space put there by a normaliser, as in the first Llama's files."""
    tokenizer = llama_like()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    return tokenizer


@functools.cache
def _trained_llama() -> str:
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    backend.train_from_iterator(corpus(), trainer)
    saved = json.loads(backend.to_str())
    saved["added_tokens"] = saved["added_tokens"][:3]  # bytes are in the vocabulary, but are no special tokens
    return json.dumps(saved)


def bert_like() -> Any:
    """WordPiece in lower case, with [CLS] and [SEP] and no end token."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_bert()),
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")},
    )


@functools.cache
def _trained_bert() -> str:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    backend.train_from_iterator(corpus(), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return backend.to_str()


def t5_like() -> Any:
    """Unigram over words with `▁` before each, white space made one space; no begin token, adds </s>."""
    backend = Tokenizer.from_str(_trained_t5())
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


@functools.cache
def _trained_t5() -> str:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False, max_piece_length=8
    )
    backend.train_from_iterator(corpus(), trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return backend.to_str()


@functools.cache
def stories() -> Any:
    """Llama 2's tokenizer, of the model in ../shared/data."""
    folder = SHARED / "models" / "stories15M"
    if not folder.exists():
        pytest.skip("needs ../shared/data/models/stories15M")
    return AutoTokenizer.from_pretrained(folder)


MADE = {f.__name__: f for f in (gpt2_like, roberta_like, llama_like, llama_legacy, bert_like, t5_like)}
EXACT = [name for name in MADE if name not in ("bert_like", "t5_like")]
"""Those that decode to the text they were given."""
