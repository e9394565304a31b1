"""Which base: the same one in any dtype passes, another one of equal shapes does not."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inlay import LoraConfig, PeftModel, get_peft_model
from inlay.errors import BaseMismatchError, ConfigError, CorruptFileError, InlayWarning, MismatchError
from inlay.io.fingerprint import check_base, fingerprint
from inlay.io.folder import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME, write_folder

from ..tiny import VOCAB, llama, made, mlp, net, scramble
from .test_load import X, as_peft, lora, refused, trained, untouched

Q = {"target_modules": ["q_proj"]}
SAVED = ("float32", "bfloat16", "float16", "float64")


def saved(folder: Path, base: Any, **config: Any) -> Any:
    view = scramble(get_peft_model(base, LoraConfig(**{**Q, **config})))
    view.save_pretrained(folder)
    return view


def fails(folder: Path, base: Any, *said: str, error: Any = BaseMismatchError, **arguments: Any) -> None:
    with untouched(base), pytest.raises(error) as caught:
        PeftModel.from_pretrained(base, folder, **arguments)
    assert type(caught.value) is error
    for text in said:
        assert text in str(caught.value), str(caught.value)


def set_base(folder: Path, **fields: Any) -> None:
    """Changes what a manifest says of the base."""
    manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    files = {name: (folder / name).read_bytes() for name in (CONFIG_NAME, WEIGHTS_NAME)}
    write_folder(folder, files, {"base": {**manifest["base"], **fields}})


def test_what_it_says() -> None:
    found = fingerprint(llama())
    assert found["class"] == "LlamaForCausalLM" and found["vocab_size"] == VOCAB and found["dtype"] == "float32"
    assert len(found["config"]) == 64 and len(found["samples"]) <= 18
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= found["samples"].keys()
    assert all(len(numbers) == 8 for numbers in found["samples"].values())
    assert json.loads(json.dumps(found)) == found
    plain = fingerprint(mlp())
    assert (plain["class"], plain["config"], plain["vocab_size"]) == ("Mlp", None, None)
    assert fingerprint(nn.ReLU()) == {"class": "ReLU", "config": None, "vocab_size": None, "dtype": None, "samples": {}}


def test_adapters_leave_no_trace() -> None:
    base = net()
    before = fingerprint(base)
    view = scramble(get_peft_model(base, lora(target_modules=["fc", "embed"], modules_to_save=["head"], bias="all")))
    assert fingerprint(view) == before
    view.merge_adapter()
    assert fingerprint(view) == before == fingerprint(base)


# --- other bases


def test_fault_32_another_base_of_equal_shapes(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    refused(
        tmp_path, BaseMismatchError, str(tmp_path), "another base", ".weight had", "check_base=False", base=mlp(seed=1)
    )
    forced = PeftModel.from_pretrained(mlp(seed=1), tmp_path, check_base=False)
    assert not torch.equal(forced(X), mlp(seed=1)(X))
    as_peft(tmp_path)  # peft says nothing of the base
    assert torch.equal(PeftModel.from_pretrained(mlp(seed=1), tmp_path)(X), forced(X))


@pytest.mark.parametrize("name", ["embed", "conv1", "conv2", "conv3", "fc", "head"])
def test_one_other_matrix_is_enough(name: str) -> None:
    base, other = net(), net()
    with torch.no_grad():
        other.get_submodule(name).weight.mul_(1.5)
    with pytest.raises(BaseMismatchError, match=rf"'here'.*its {name}.weight had \[.*in this model it has \["):
        check_base(fingerprint(base), other, "here")
    check_base(fingerprint(base), net(), "here")


def test_fault_33_another_width(tmp_path: Path) -> None:
    saved(tmp_path, llama())
    fails(tmp_path, llama(hidden_size=32), "another base")
    trained().save_pretrained(tmp_path / "mlp")
    refused(tmp_path / "mlp", BaseMismatchError, "another base", base=mlp(width=12))
    fails(tmp_path, llama(hidden_size=32), "lora_A.weight: expected shape (8, 32), got (8, 16)",
          error=MismatchError, check_base=False)  # fmt: skip


@pytest.mark.parametrize("rows", [44, 24])
def test_fault_34_another_vocabulary(tmp_path: Path, rows: int) -> None:
    saved(tmp_path, llama())
    fails(tmp_path, llama(vocab_size=rows), f"{VOCAB} embedding rows", f"has {rows}",
          f"resize_token_embeddings({VOCAB})", "check_base=False")  # fmt: skip


# fault 35: new tokens


def resized(rows: int, noise: int = 0) -> Any:
    """A base with new rows, initialised by chance, as transformers does."""
    base = llama(tie_word_embeddings=False)
    torch.manual_seed(noise)
    base.resize_token_embeddings(rows, mean_resizing=False)
    return base.eval()


IDS = torch.arange(VOCAB - 2, VOCAB + 6)[None]


def test_fault_35_new_rows_by_chance_are_another_base(tmp_path: Path) -> None:
    saved(tmp_path, resized(VOCAB + 40))
    fails(tmp_path, resized(VOCAB + 40, noise=1), "another base", "weight had")
    fails(tmp_path, llama(), f"resize_token_embeddings({VOCAB + 40})")


@pytest.mark.parametrize("merged", [False, True])
def test_fault_35_trained_rows_come_along(tmp_path: Path, merged: bool) -> None:
    """The remedy in the message works, although each resizing gives the new rows other values."""
    tokens = list(range(VOCAB, VOCAB + 40))
    base = resized(VOCAB + 40)
    with torch.no_grad():
        base.lm_head.weight[VOCAB:] = 0
    view = saved(tmp_path, base, trainable_token_indices=tokens)
    expected = view(IDS).logits
    if merged:
        view.merge_adapter()
        view.save_pretrained(tmp_path)
    again = resized(VOCAB + 40, noise=1)
    with torch.no_grad():
        again.lm_head.weight[VOCAB:] = 0
    assert not torch.equal(again.model.embed_tokens.weight, base.model.embed_tokens.weight)
    assert torch.equal(PeftModel.from_pretrained(again, tmp_path)(IDS).logits, expected)


def test_fault_35_saved_embeddings_come_along(tmp_path: Path) -> None:
    base = resized(VOCAB + 40)
    view = scramble(get_peft_model(base, LoraConfig(**Q)))
    view.save_pretrained(tmp_path, save_embedding_layers=True)
    again = PeftModel.from_pretrained(resized(VOCAB + 40, noise=1), tmp_path)
    assert torch.equal(again(IDS).logits, view(IDS).logits)


# faults 36 and 37: heads


def classifier(seed: int = 0, labels: int = 3, layers: int = 2) -> Any:
    base = llama(cls="LlamaForSequenceClassification", num_labels=labels, num_hidden_layers=layers)
    torch.manual_seed(seed)
    with torch.no_grad():
        base.score.weight.normal_()
    return base


@pytest.mark.parametrize("layers", [1, 6])  # of 6, more matrices than are sampled evenly
def test_fault_36_a_fresh_head_that_is_not_saved(tmp_path: Path, layers: int) -> None:
    saved(tmp_path, classifier(layers=layers))
    fails(tmp_path, classifier(seed=1, layers=layers), "another base", "its score.weight had")
    PeftModel.from_pretrained(classifier(layers=layers), tmp_path)
    view = saved(tmp_path, classifier(layers=layers), task_type="SEQ_CLS")
    again = PeftModel.from_pretrained(classifier(seed=1, layers=layers), tmp_path)
    assert torch.equal(again(IDS % VOCAB).logits, view(IDS % VOCAB).logits)


@pytest.mark.parametrize("name", ["head", "zhead", "ahead"])
def test_a_head_is_sampled_wherever_its_name_sorts(name: str) -> None:
    def build() -> nn.Module:
        base = nn.Module()
        base.model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(60)))
        base.encoder = nn.Sequential(*(nn.Linear(2, 2) for _ in range(60)))
        base.add_module(name, nn.Linear(2, 2))
        return base

    other = made(build)
    with torch.no_grad():
        other.get_submodule(name).weight.add_(1)
    with pytest.raises(BaseMismatchError, match=rf"its {name}.weight had"):
        check_base(fingerprint(made(build)), other, "here")


def test_fault_37_another_number_of_labels(tmp_path: Path) -> None:
    saved(tmp_path, classifier(), task_type="SEQ_CLS")
    fails(tmp_path, classifier(labels=5), "base_model.model.score.weight: expected shape (5, 16), got (3, 16)",
          "strict=False", error=MismatchError)  # fmt: skip


# --- the same base


@pytest.mark.parametrize("before", SAVED)
@pytest.mark.parametrize("after", SAVED)
def test_the_same_base_in_another_dtype(before: str, after: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_base(fingerprint(llama(dtype=getattr(torch, before))), llama(dtype=getattr(torch, after)), "here")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_same_base_in_another_dtype_loads(tmp_path: Path, dtype: torch.dtype) -> None:
    saved(tmp_path, llama())
    assert PeftModel.from_pretrained(llama(dtype=dtype), tmp_path)(IDS % VOCAB).logits.dtype == dtype
    fails(tmp_path, llama(seed=1, dtype=dtype), "another base")


def test_a_small_change_counts_within_one_dtype_and_is_rounding_across() -> None:
    base, near = mlp(), mlp()
    with torch.no_grad():
        near.up.weight.mul_(1 + 2.0**-12)
    check_base(fingerprint(base), copy.deepcopy(near).bfloat16(), "here")
    with pytest.raises(BaseMismatchError, match=r"up.weight"):
        check_base(fingerprint(base), near, "here")


def test_a_base_that_is_not_in_memory_is_not_compared() -> None:
    with torch.device("meta"):
        base = mlp.__globals__["Mlp"]()
    check_base(fingerprint(mlp()), base, "here")
    assert fingerprint(base)["samples"] == {}


def test_only_another_config_is_a_warning(tmp_path: Path) -> None:
    saved(tmp_path, llama())
    with pytest.warns(InlayWarning, match=rf"'{tmp_path}' has the weights it was trained on, but another config"):
        PeftModel.from_pretrained(llama(rope_theta=5.0), tmp_path)
    for harmless in ({"use_cache": False}, {"eos_token_id": 5}, {"id2label": {0: "a", 1: "b", 2: "c"}}):
        PeftModel.from_pretrained(llama(**harmless), tmp_path)  # warnings are errors


def test_a_config_that_is_not_json_has_no_hash() -> None:
    base = mlp()
    base.config = {"activation": torch.nn.ReLU()}
    assert fingerprint(base)["config"] is None
    base.config = {"width": 8, "_private": 1}
    other = mlp()
    other.config = {"width": 8, "use_cache": True}
    assert fingerprint(base)["config"] == fingerprint(other)["config"] is not None


def test_models_that_have_no_table_of_tokens() -> None:
    class Vision(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(1, 2, 2)

        def get_input_embeddings(self) -> nn.Module:
            return self.patches

    assert fingerprint(made(Vision))["vocab_size"] is None
    assert list(fingerprint(made(Vision))["samples"]) == ["patches.weight"]


# --- manifests that say something else


@pytest.mark.parametrize("samples", [3, None, True, "abc", {"a": 1}])
def test_samples_that_are_no_numbers_are_damage(tmp_path: Path, samples: Any) -> None:
    trained().save_pretrained(tmp_path)
    set_base(tmp_path, samples={"up.weight": samples})
    refused(tmp_path, CorruptFileError, str(tmp_path), MANIFEST_NAME, "up.weight", "check_base=False")
    PeftModel.from_pretrained(mlp(), tmp_path, check_base=False)


@pytest.mark.parametrize("samples", [[], [1.0], ["1"] * 8, [None] * 8, [[1]] * 8, [1e300] * 8])
def test_samples_that_differ_in_kind(tmp_path: Path, samples: Any) -> None:
    trained().save_pretrained(tmp_path)
    for dtype in ("float32", "bfloat16"):
        set_base(tmp_path, samples={"up.weight": samples}, dtype=dtype)
        refused(tmp_path, BaseMismatchError, "up.weight", "another base")


def test_samples_of_what_is_not_there_are_passed_over(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    for samples in ({"gone.weight": [1.0] * 8}, {}, None, [], "x"):
        set_base(tmp_path, samples=samples)
        PeftModel.from_pretrained(mlp(), tmp_path)
    with pytest.raises(ConfigError):
        set_base(tmp_path, samples={"up.weight": [float("nan")]})
