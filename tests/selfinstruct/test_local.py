"""A model of transformers as the one that is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from inlay.selfinstruct import Answer, Sampling, TransformersModel, generate_instructions
from inlay.selfinstruct.generate import Overflow

for needed in ("transformers", "rapidfuzz", "numpy"):
    pytest.importorskip(needed, reason=f"needs {needed}")

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
PROMPT = "###\n4. Instruction:"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A token per byte, and an end."""
    fast = Tokenizer(models.BPE({c: i for i, c in enumerate([*BYTES, "</s>"])}, []))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    template = "{% for m in messages %}<u>{{ m['content'] }}{% endfor %}<a>"
    return PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>", chat_template=template)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=257, max_position_embeddings=256, eos_token_id=256, bos_token_id=None, **sizes)
    return LlamaForCausalLM(config).eval()


def test_sampling_has_a_random_state_of_its_own(model: Any, tokenizer: Any) -> None:
    asked = TransformersModel(model, tokenizer)
    state = torch.get_rng_state()
    one, again, other = (asked.ask([PROMPT], Sampling(max_tokens=20), seed) for seed in (1, 1, 2))
    assert one == again != other and torch.equal(torch.get_rng_state(), state)
    assert one.prompt_tokens == len(PROMPT) and one.completion_tokens == 20
    assert one.answers[0].finish_reason == "length" and asked.name == "LlamaForCausalLM"


def test_greedy_answers_are_those_of_generate(model: Any, tokenizer: Any) -> None:
    reply = TransformersModel(model, tokenizer).ask([PROMPT], Sampling(max_tokens=16, temperature=0, stop=()), 0)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, pad_token_id=256)
    assert reply.answers == (Answer(tokenizer.decode(out[0, len(PROMPT) :], skip_special_tokens=True), "length"),)


def test_too_long_for_the_context(model: Any, tokenizer: Any) -> None:
    with pytest.raises(Overflow, match=r"20 \+ 250 tokens in a context of 256".replace("20", str(len(PROMPT)))):
        TransformersModel(model, tokenizer).ask([PROMPT], Sampling(max_tokens=250), 0)


class Says:
    """A model whose `generate` says what it is told, and notes what it was given."""

    device = torch.device("cpu")

    def __init__(self, model: Any, tokenizer: Any, text: str, end: bool = True):
        self.config, self.generation_config = model.config, model.generation_config
        self.said = tokenizer(text)["input_ids"] + [256] * end
        self.given: dict[str, Any] = {}

    def generate(self, **given: Any) -> torch.Tensor:
        self.given = given
        return torch.cat([given["input_ids"], torch.tensor([self.said])], dim=1)


@pytest.mark.parametrize(
    ("text", "end", "expected"),
    [
        (" Name it\n20 more", False, Answer(" Name it", "stop")),
        (" In 1920. Then", True, Answer(" In 19", "stop")),  # as Alpaca's stop texts have it
        (" Name it", True, Answer(" Name it", "stop")),
        ("x" * 100, False, Answer("x" * 100, "length")),
    ],
)
def test_answers_end_at_stop_texts(model: Any, tokenizer: Any, text: str, end: bool, expected: Answer) -> None:
    says = Says(model, tokenizer, text, end)
    assert TransformersModel(says, tokenizer).ask([PROMPT], Sampling(max_tokens=100), 0).answers == (expected,)
    assert says.given["stop_strings"] == ["\n20", "20."] and says.given["do_sample"] and says.given["top_k"] == 0


def test_chat_models_get_their_template(model: Any, tokenizer: Any) -> None:
    says = Says(model, tokenizer, "4. Instruction: Name it")
    reply = TransformersModel(says, tokenizer, chat=True).ask([PROMPT], Sampling(max_tokens=50), 0)
    assert tokenizer.decode(says.given["input_ids"][0]) == f"<u>{PROMPT}<a>"
    assert reply.answers[0].text == " Name it"


def test_a_run(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """A random model writes nothing of use, and its context is too short: calls are skipped and the run ends."""
    asked = TransformersModel(model, tokenizer, name="tiny")
    report = generate_instructions(tmp_path / "r", asked, 5, patience=2)
    assert report.stopped == "barren" and report.skipped == 2
    (tmp_path / "head").write_text("")
    report = generate_instructions(tmp_path / "s", asked, 5, patience=2, prompt=tmp_path / "head", shots=1)
    assert report.stopped == "barren" and report.rows == 0
