"""Texts and losses, against transformers and against the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inlay import PromptEncoderConfig, get_peft_model
from inlay.comparison.answers import Decoding, evaluating, losses, write
from inlay.comparison.questions import questions_of
from inlay.errors import ConfigError, DataError
from tests import tiny
from tests.comparison.lm import TOKENIZER, base, view

PROMPTS = ["Name three rivers.", "Count", "Write about bread, in a sentence, and then explain"]
QUESTIONS = questions_of(PROMPTS, TOKENIZER, ["Rhine", "2, 3", "The house is red."])
ROWS = [q.row for q in QUESTIONS if q.row is not None]


def by_formula(model: Any, row: Any) -> tuple[float, int]:
    """The definition, token by token, each given what is before it."""
    total, count = 0.0, 0
    with torch.no_grad():
        for t in range(1, len(row.ids)):
            if row.trained[t]:
                logits = model(input_ids=torch.tensor([row.ids[:t]])).logits[0, -1].double()
                total -= float(logits.log_softmax(-1)[row.ids[t]])
                count += 1
    return total, count


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("make", [base, view])
def test_losses_are_the_formula(make: Any, batch_size: int) -> None:
    model = make()
    for found, row in zip(losses(model, ROWS, TOKENIZER, batch_size), ROWS, strict=True):
        total, count = by_formula(model, row)
        assert found.tokens == count and found.total == pytest.approx(total, rel=1e-5)
        assert found.mean == pytest.approx(total / count, rel=1e-5)


def test_losses_are_the_models_own() -> None:
    model, row = base(), ROWS[0]
    own = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.labels])).loss
    assert losses(model, [row], TOKENIZER)[0].mean == pytest.approx(own.item(), rel=1e-6)


def test_losses_with_virtual_tokens() -> None:
    config = PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, task_type="CAUSAL_LM")
    model = tiny.scramble(get_peft_model(base(), config)).eval()
    (found,) = losses(model, ROWS[:1], TOKENIZER)
    total, count = by_formula(model, ROWS[0])
    assert found.tokens == count and found.total == pytest.approx(total, rel=1e-5)


def test_a_first_token_has_no_loss() -> None:
    whole = ROWS[0]._replace(trained=[True] * len(ROWS[0].ids))
    assert losses(base(), [whole], TOKENIZER)[0].tokens == len(whole.ids) - 1
    alone = ROWS[0]._replace(ids=[5], trained=[True])
    (none,) = losses(base(), [alone], TOKENIZER)
    assert none.tokens == 0 and none.mean is None


def test_greedy_answers_are_those_of_generate_in_any_batch() -> None:
    model, decoding = view(), Decoding(max_new_tokens=6)
    expected = []
    for q in QUESTIONS:
        ids = torch.tensor([q.ids])
        end = TOKENIZER.eos_token_id
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False,
            pad_token_id=end, eos_token_id=[2, end],
        )  # fmt: skip
        expected.append(TOKENIZER.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    assert len(set(expected)) > 1
    for batch_size in (1, 2, 8):
        assert write(model, QUESTIONS, TOKENIZER, decoding, batch_size) == expected


def test_drawn_answers_depend_on_the_seed_and_the_row_alone() -> None:
    model = base()
    drawn = Decoding(max_new_tokens=6, temperature=1.0, seed=5)
    first = write(model, QUESTIONS, TOKENIZER, drawn)
    assert write(model, QUESTIONS, TOKENIZER, drawn, batch_size=8) == first
    later = Decoding(max_new_tokens=6, temperature=1.0, seed=6)
    assert write(model, QUESTIONS[1:], TOKENIZER, later) == first[1:]
    assert write(model, QUESTIONS, TOKENIZER, later) != first


def test_nothing_is_left_behind() -> None:
    model = view().train()
    model.lm_head.eval()
    modes = [m.training for m in model.modules()]
    torch.manual_seed(11)
    before = torch.get_rng_state()
    write(model, QUESTIONS, TOKENIZER, Decoding(max_new_tokens=2, temperature=1.0))
    losses(model, ROWS, TOKENIZER)
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model.modules()] == modes


def test_modes_come_back_after_an_error() -> None:
    model = base().train()
    with pytest.raises(KeyError), evaluating(model):
        assert not model.training
        raise KeyError
    assert all(m.training for m in model.modules())


def test_a_row_without_a_prompt_cannot_be_asked() -> None:
    with pytest.raises(DataError, match="Row 2 has no prompt"):
        write(base(), [QUESTIONS[0], QUESTIONS[1]._replace(ids=[])], TOKENIZER, Decoding())


@pytest.mark.parametrize(
    ("wrong", "allowed"),
    [
        ({"max_new_tokens": 0}, "a positive integer"),
        ({"temperature": -1.0}, "0 .greedy. or a positive number"),
        ({"temperature": float("nan")}, "0 .greedy. or a positive number"),
        ({"top_p": 0.0}, "above 0 and up to 1"),
    ],
)
def test_wrong_decodings(wrong: dict[str, Any], allowed: str) -> None:
    with pytest.raises(ConfigError, match=allowed):
        Decoding(**wrong)


def test_wrong_batch_size() -> None:
    with pytest.raises(ConfigError, match="batch_size=0 is not allowed"):
        losses(base(), ROWS, TOKENIZER, 0)
