"""lm_eval: `peft=` under `python -m inlay.peft`, and a view as `pretrained=` with nothing standing in for peft."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay import LoraConfig, get_peft_model
from tests.peft.run import assert_same, run

pytest.importorskip("transformers", reason="needs transformers")
if importlib.util.find_spec("lm_eval") is None:
    pytest.skip("needs lm_eval", allow_module_level=True)

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.hf.tiny import base


def test_an_adapter_folder(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs peft, to compare with")
    ours = run("evaluated.py", str(tmp_path / "inlay"))
    theirs = run("evaluated.py", str(tmp_path / "peft"), peft="peft")
    assert_same(ours, theirs)
    assert ours["is_peft"]
    assert_same(ours["likelihoods"], ours["direct"])
    assert abs(ours["likelihoods"][0] - ours["without"][0]) > 0.1


def test_a_view_needs_no_peft() -> None:
    """A view is a model of its base's class, which is all that lm_eval asks for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
    words = PreTrainedTokenizerFast(tokenizer_object=letters(), bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    plain = base("llama")
    view = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"]))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in (p for p in view.parameters() if p.requires_grad):
            p.add_(torch.randn(p.shape) * 0.3)
    lm = HFLM(pretrained=view, tokenizer=words, batch_size=2, max_length=32)
    pairs = [("a b c", " d e"), ("f", " g h i"), ("z y x w", " v")]
    asked = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(pairs)]
    found = [value for value, _ in lm.loglikelihood(asked, disable_tqdm=True)]
    assert lm.model is view
    assert found == pytest.approx([direct(view, words, *pair) for pair in pairs], abs=1e-5)
    assert found != pytest.approx([direct(plain, words, *pair) for pair in pairs], abs=1e-2)


def letters() -> Tokenizer:
    """One token for each letter."""
    words = ["<pad>", "<s>", "</s>", *(chr(ord("a") + i) for i in range(26))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def direct(model: Any, words: Any, prompt: str, rest: str) -> float:
    """The sum of the log-probabilities of `rest` after `prompt`."""
    start, end = words(prompt).input_ids, words(rest).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([start + end[:-1]])).logits.log_softmax(-1)[0]
    return sum(logits[len(start) - 1 + i, token].item() for i, token in enumerate(end))
