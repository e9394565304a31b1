"""The boundary between prompt and answer falls between two tokens, whatever the tokenizer and the text."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inlay.data import Part, prepare, preview
from inlay.data.schema import BadRow
from inlay.data.templates import alpaca
from inlay.data.tokenize import Encoder, join, trained_on
from inlay.errors import DataError

from .tokenizers import EXACT, MADE

# control characters, surrogates and what normalisers and byte fallback change are other tests' matter
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn"), exclude_characters="▁"), max_size=40)


def boundary(row):
    """The index of the first trained token."""
    return next(i for i, label in enumerate(row["labels"]) if label != -100)


@pytest.mark.parametrize(
    ("name", "prefixed"),
    [
        ("gpt2_like", False),
        ("bert_like", False),
        ("roberta_like", True),
        ("llama_like", True),
        ("llama_legacy", True),
        ("t5_like", True),
    ],
)
def test_it_is_known_which_tokenizers_put_a_space_first(name: str, prefixed: bool) -> None:
    assert Encoder(MADE[name]()).prefixed is prefixed


@pytest.mark.parametrize(("name", "head", "end"), [
    ("gpt2_like", [], ["<|endoftext|>"]), ("roberta_like", ["<|endoftext|>"], ["<|endoftext|>"]),
    ("llama_like", ["<s>"], ["</s>"]), ("bert_like", ["[CLS]"], ["[SEP]"]), ("t5_like", [], ["</s>"]),
])  # fmt: skip
def test_head_and_end(name: str, head: list[str], end: list[str]) -> None:
    tokenizer = MADE[name]()
    encoder = Encoder(tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoder.head) == head
    assert tokenizer.convert_ids_to_tokens(encoder.end) == end


@pytest.mark.parametrize("name", list(MADE))
def test_tokenising_at_once_and_cutting_is_wrong_here(name: str) -> None:
    """What the module guards against happens with these tokenizers, so these tests can fail."""
    if name in ("bert_like",):
        return  # it splits at every space and sign, so nothing spans the boundary
    tokenizer = MADE[name]()
    texts = [("List:", "::"), ("### Response:", "\nYes"), ("a b", "c"), ("a ", " b"), ("Win", "ter"), ("re", "d.")]
    encoded = [tokenizer(list(t), add_special_tokens=False)["input_ids"][0] for t in [(a,) for a, _ in texts]]
    whole = [tokenizer(a + b, add_special_tokens=False)["input_ids"] for a, b in texts]
    assert any(w[: len(a)] != a for a, w in zip(encoded, whole, strict=True))


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=TEXT, answer=TEXT)
def test_masks_decode_to_prompt_and_answer(name: str, prompt: str, answer: str) -> None:
    tokenizer = MADE[name]()
    (row,) = prepare([{"prompt": "Q" + prompt, "completion": answer}], tokenizer, "prompt")
    ids, at, end = row["input_ids"], boundary(row), Encoder(tokenizer)
    assert row["labels"] == [-100] * at + ids[at:], "one boundary"
    assert ids[-1:] == end.end and ids[at:].count(end.end[0]) == 1, "the end token, once"
    assert ids[:at] == end.head + end.ids(["Q" + prompt])[0], "the prompt is what it is when the model is asked"

    def text(of):
        return tokenizer.decode(of, clean_up_tokenization_spaces=False)

    space = " " if end.prefixed else ""
    skip = len(text(end.head))
    assert text(ids[:at])[skip:] == space + "Q" + prompt
    assert text(ids[:-1])[skip:] == space + "Q" + prompt + answer, "and no space comes in between"


@pytest.mark.parametrize("name", list(MADE))
@settings(max_examples=40, deadline=None)
@given(instruction=TEXT, given=TEXT, output=TEXT)
def test_no_token_of_a_prompt_is_trained(name: str, instruction: str, given: str, output: str) -> None:
    tokenizer = MADE[name]()
    encoder = Encoder(tokenizer)
    (row,) = prepare([{"instruction": instruction, "input": given, "output": output}], tokenizer)
    prompt = encoder.head + encoder.ids([alpaca(instruction, given)])[0]
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"][: len(prompt)] == [-100] * len(prompt)
    assert row["labels"][len(prompt) :] == row["input_ids"][len(prompt) :] != []


@pytest.mark.parametrize("name", ["roberta_like", "llama_like", "llama_legacy"])
@pytest.mark.parametrize("text", ["\n", "\n\n: x", ":", "::", " ", "", "  a", "\n:.|0a#=", "Yes"])
def test_continuations(name: str, text: str) -> None:
    """Behind any text that ends at a token's end, they are the tokens that the whole would have."""
    tokenizer = MADE[name]()
    ((ids),) = Encoder(tokenizer).continuations([text])
    assert ids is not None
    head = tokenizer("Q", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(head + ids, clean_up_tokenization_spaces=False).lstrip() == "Q" + text


def test_a_part_that_no_anchor_serves_is_a_bad_row() -> None:
    encoder = Encoder(MADE["llama_like"]())
    encoder._anchors = []
    good, bad = encoder.rows([[Part("a")], [Part("a"), Part("b", True)]])
    assert isinstance(good, list) and isinstance(bad, BadRow)
    assert str(bad) == "a part of it cannot be tokenised apart from the one before it"


def test_an_answer_that_ends_with_the_end_token_gets_no_second() -> None:
    tokenizer = MADE["llama_like"]()
    a, b = prepare([{"prompt": "Q", "completion": c} for c in ("Yes", "Yes</s>")], tokenizer)
    assert a == b and a["input_ids"].count(2) == 1
    shown = preview(prepare([{"prompt": "Q", "completion": "Yes"}], tokenizer), tokenizer)
    assert shown == [[("<s> Q", False), ("Yes</s>", True)]]


def test_join() -> None:
    parts = [Part(""), Part("a"), Part("b"), Part("", True), Part("c"), Part("d", True), Part("e", True)]
    assert join(parts) == [Part("abc"), Part("de", True)]


def test_where_the_loss_is() -> None:
    parts = [Part("a"), Part("b", True), Part("c"), Part("d", True)]
    assert [p.trained for p in trained_on(parts, "answers")] == [False, True, False, True]
    assert [p.trained for p in trained_on(parts, "last")] == [False, False, False, True]
    assert [p.trained for p in trained_on(parts, "all")] == [True] * 4
    with pytest.raises(DataError, match=r"loss_on='answer' is not known: .*Did you mean 'answers'"):
        trained_on(parts, "answer")
