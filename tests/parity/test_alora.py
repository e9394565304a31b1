"""Activated LoRA beside peft's: numbers, files both ways, and what is generated with a cache.

Both leave the adapter off in a row without the invocation. Without a cache peft generates something else, and with
beams nothing: `tests/methods/lora/variants/test_alora.py` has these.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from .both import compare, into_inlay, of_peft, swap
from .models import FAMILIES, language

TOKENS = [7, 11]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
FAMILY = pytest.mark.parametrize("name", ["llama", "gpt2"])


def invoked(seed: int) -> dict[str, torch.Tensor]:
    """A batch whose first row has the invocation twice, at places that depend on the seed, and whose second once."""
    batch = language(seed)
    for row, places in enumerate(((0, 3 + seed % 3), (2 - seed % 2,))):
        for at in places:
            for name in ("input_ids", "labels"):
                batch[name][row, at : at + 2] = torch.tensor(TOKENS)
    return batch


def of(name: str) -> Any:
    return dataclasses.replace(FAMILIES[name], batch=invoked)


def config(name: str, **fields: Any) -> dict[str, Any]:
    return FAMILIES[name].config(alora_invocation_tokens=TOKENS, **fields)


@DTYPES
@FAMILY
def test_logits_gradients_and_losses(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    compare(of(name), config(name), tmp_path, dtype)


def test_on_every_layer(tmp_path: Path) -> None:
    compare(of("llama"), config("llama", target_modules="all-linear", use_rslora=True), tmp_path)


@FAMILY
def test_files_both_ways(name: str, tmp_path: Path) -> None:
    swap(of(name).base(), config(name), invoked(0), tmp_path)


@FAMILY
def test_generation(name: str, tmp_path: Path) -> None:
    base = FAMILIES[name].base()
    theirs = of_peft(base, config(name), tmp_path)
    mine = into_inlay(base, tmp_path)
    prompt = torch.cat([invoked(0)["input_ids"], invoked(1)["input_ids"], language(3)["input_ids"]])
    prompt[0, :3] = 0
    given: dict[str, Any] = {"input_ids": prompt, "attention_mask": (prompt != 0).long(), "pad_token_id": 0}
    given |= {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    given |= {"output_scores": True, "return_dict_in_generate": True}
    found, expected, before = (model.generate(**given) for model in (mine, theirs, base))
    assert torch.equal(found.sequences, expected.sequences)
    for ours, peft_s in zip(found.scores, expected.scores, strict=True):
        kept = ours.isfinite()  # min_new_tokens forbids the end
        assert torch.equal(kept, peft_s.isfinite())
        assert (ours - peft_s)[kept].abs().max() < 1e-5
    assert not torch.equal(found.sequences[:4], before.sequences[:4])
    assert torch.equal(found.sequences[4:], before.sequences[4:]), "without the invocation the base answers"


def test_beside_lora_and_the_base_in_one_batch(tmp_path: Path) -> None:
    base = FAMILIES["llama"].base()
    theirs, mine = of_peft(base, config("llama"), tmp_path / "a"), into_inlay(base, tmp_path / "a")
    of_peft(base, FAMILIES["llama"].config(), tmp_path / "b")
    for model in (theirs, mine):
        model.load_adapter(str(tmp_path / "b"), "plain")
    ids = torch.cat([invoked(0)["input_ids"], invoked(1)["input_ids"]])
    names = ["plain", "default", "__base__", "default"]
    with torch.no_grad():
        found, expected = (model.eval()(input_ids=ids, adapter_names=names).logits for model in (mine, theirs))
    assert (found - expected).abs().max() < 1e-5


def test_where_peft_does_otherwise(tmp_path: Path) -> None:
    """It counts from the end of a text that grows if there is no cache, and has no beams."""
    base = FAMILIES["llama"].base()
    theirs, ids = of_peft(base, config("llama"), tmp_path), invoked(0)["input_ids"]
    mine = into_inlay(base, tmp_path)
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False}
    given |= {"max_new_tokens": 4, "min_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    cached, found, expected = (
        model.generate(**given, use_cache=used).logits[1]
        for model, used in ((mine, True), (mine, False), (theirs, False))
    )
    assert (found - cached).abs().max() < 1e-5 < 1e-2 < (expected - cached).abs().max()
    with pytest.raises(ValueError, match="Beam search not yet supported for aLoRA"):
        theirs.generate(**given, num_beams=2)
