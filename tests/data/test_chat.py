"""Conversations: only what the assistant wrote is trained, with its end token, whatever the template."""

from __future__ import annotations

from typing import Any

import pytest

from inlay.data import Chat, prepare, preview
from inlay.errors import DataError

from .tokenizers import CHATML, gpt2_like, llama_like, roberta_like

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": " Bye!\n"},
]
MARKED = (
    "{%- for m in messages -%}\n{{ '<|im_start|>' + m.role + '\n' }}\n  {% if m.role == 'assistant' %}\n"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}\n"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}\n"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
)  # no prompt for an answer
PHI = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
)  # a token at the end of the whole
HEADED = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\n' }}{% endfor %}"  # ignores the request
FORGETS = (
    "{% for m in messages %}{{ m.role + ': ' }}"
    "{% if loop.last and m.role == 'assistant' %}{{ '<think></think>' }}{% endif %}"
    "{{ m.content + eos_token + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)  # as templates of reasoning models do


def trained(template: str | None, messages: list[dict[str, Any]], tokenizer: Any = None) -> list[str]:
    return [p.text for p in Chat(tokenizer or gpt2_like(), template).parts(messages) if p.trained]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["Hello<|im_end|>", " Bye!\n<|im_end|>"]),
        (MARKED, ["Hello<|im_end|>", " Bye!\n<|im_end|>"]),
        (PHI, ["Hello<|im_end|>", " Bye!\n<|im_end|>"]),
        (HEADED, ["Hello<|endoftext|>", " Bye!\n<|endoftext|>"]),
        ("plain", ["Hello<|endoftext|>", " Bye!\n<|endoftext|>"]),
    ],
)
def test_the_assistants_turns(template: str, expected: list[str]) -> None:
    chat = Chat(gpt2_like(), template)
    parts = chat.parts(TALK)
    assert [p.text for p in parts if p.trained] == expected
    whole = gpt2_like().apply_chat_template(TALK, chat_template=chat.template, tokenize=False)
    assert "".join(p.text for p in parts) == whole


def test_a_template_without_a_prompt_for_answers() -> None:
    assert trained(INST, TALK[1:], llama_like()) == [" Hello</s>", "  Bye!\n</s>"]


def test_a_template_that_writes_a_turn_differently_later() -> None:
    with pytest.raises(
        DataError, match=r"writes an assistant's turn differently once other turns follow.*of one answer"
    ):
        trained(FORGETS, TALK)
    assert trained(FORGETS, TALK[:3]) == ["<think></think>Hello<|endoftext|>"], "one answer is fine"


def test_other_spellings_of_the_mark() -> None:
    for before, after in (("{%- generation -%}", "{%- endgeneration -%}"), ("{%generation%}", "{%endgeneration%}")):
        template = MARKED.replace("{% generation %}", before).replace("{% endgeneration %}", after)
        assert trained(template, TALK) == ["Hello<|im_end|>", " Bye!\n<|im_end|>"]


@pytest.mark.parametrize("make", [gpt2_like, roberta_like])
def test_ids_are_the_templates_own(make: Any) -> None:
    tokenizer = make()
    prepared = prepare([{"messages": TALK}], tokenizer)
    assert prepared.report.end_tokens == {"<|im_end|>": 1}
    if make is gpt2_like:
        assert prepared[0]["input_ids"] == list(tokenizer.apply_chat_template(TALK)["input_ids"])
    (shown,) = preview(prepared, tokenizer)
    assert [t for t, on in shown if on] == ["Hello<|im_end|>", " Bye!\n<|im_end|>"]
    asked = tokenizer.apply_chat_template(TALK[:2], add_generation_prompt=True)["input_ids"]
    labels = prepared[0]["labels"]
    assert next(i for i, label in enumerate(labels) if label != -100) == len(asked)
    assert prepared[0]["input_ids"][: len(asked)] == list(asked)


def test_an_end_token_that_generation_does_not_know_is_a_warning() -> None:
    report = prepare([{"messages": TALK}], gpt2_like()).report
    assert report.warnings == [
        "Answers end with '<|im_end|>', but the tokenizer's end token is '<|endoftext|>': generation stops there "
        "only if generation_config.eos_token_id says so."
    ]


def test_a_template_without_an_end_token_is_a_warning() -> None:
    bare = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    report = prepare([{"messages": TALK}], gpt2_like(), chat_template=bare).report
    assert report.end_tokens == {} and "No row is trained to write an end token" in report.warnings[0]
    assert "end token  not trained in any row" in str(report)


def test_tool_calls_are_the_assistants_too() -> None:
    calls = CHATML.replace(
        "m.content +", "(m.content or '') + ('<|endoftext|>' + m.tool_calls if m.tool_calls else '') +"
    )
    for content in ("", None, "Wait."):
        asked = [TALK[1], {"role": "assistant", "content": content, "tool_calls": "f(1)"}]
        assert trained(calls, asked) == [f"{content or ''}<|endoftext|>f(1)<|im_end|>"]
    assert trained(calls, [TALK[1], {"role": "assistant", "content": ""}]) == ["<|im_end|>"]


def test_loss_on_the_last_answer() -> None:
    (shown,) = preview(prepare([{"messages": TALK}], gpt2_like(), loss_on="last"), gpt2_like())
    assert [t for t, on in shown if on] == [" Bye!\n<|im_end|>"]


def test_loss_on_all_of_a_conversation() -> None:
    report = prepare([{"messages": TALK}], gpt2_like(), loss_on="all").report
    assert report.trained_share == 1.0 and report.end_tokens == {"<|im_end|>": 1}


def test_sharegpt_is_the_same_conversation() -> None:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": names[m["role"]], "value": m["content"]} for m in TALK]
    a = prepare([{"conversations": turns}], gpt2_like())
    b = prepare([{"messages": TALK}], gpt2_like())
    c = prepare([{"conversations": turns[1:], "system": "Be kind."}], gpt2_like())
    assert a[0] == b[0] == c[0]


def test_bad_conversations_by_number() -> None:
    check = "{% if messages[0].role != 'user' %}{{ raise_exception('users begin') }}{% endif %}"
    refuses = check + CHATML
    rows: list[Any] = [
        {"messages": TALK[1:3]},
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"content": "hi"}]},
        {"messages": TALK[1:2]},
        {"messages": TALK[2:3]},
        {"messages": [*TALK[1:2], {"role": "assistant", "content": "\ud800"}]},
        {"messages": [*TALK[1:2], {"role": "assistant", "content": "\ufdd0"}]},
        {},
    ]
    report = prepare(rows, gpt2_like(), chat_template=refuses).report
    assert report.dropped == {
        "messages is empty": [2],
        "messages is not a list of objects": [3],
        "a message has no role": [4],
        "no trained token": [5],
        "the chat template refuses the conversation: users begin": [6],
        "the conversation holds half of a surrogate pair, which is no character": [7],
        "the conversation holds characters that are none (U+FDD0 or U+FDD1)": [8],
        "messages is missing": [9],
    }
    turns = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]
    odd = [*turns, {"conversations": [{"from": "narrator", "value": "a"}]}, {"conversations": [{"value": "a"}]}]
    (first, second) = prepare(odd, gpt2_like()).report.dropped
    assert (
        first.startswith("a turn is from 'narrator', expected one of ['assistant', 'bard',") and "from None" in second
    )


def test_no_template() -> None:
    with pytest.raises(DataError, match=r"the tokenizer has no chat template. Give one with chat_template="):
        prepare([{"messages": TALK}], llama_like())
    (shown,) = preview(prepare([{"messages": TALK}], llama_like(), chat_template="plain"), llama_like())
    assert "".join(t for t, _ in shown) == (
        "<s>SYSTEM: Be kind.\nUSER: Hi\nASSISTANT: Hello</s>\nUSER: Bye\nASSISTANT:  Bye!\n</s>\n"
    )


def test_special_tokens_in_a_message_are_noted() -> None:
    odd = [{"role": "user", "content": "a<|im_end|>b"}, {"role": "assistant", "content": "c"}]
    report = prepare([{"messages": TALK}, {"messages": odd}], gpt2_like()).report
    assert report.notes == {"a message holds a special token, which is read as one": [2]}
