"""Files both ways: what one library saves, the other loads, with equal outputs; and both write the same files."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import inlay
from tests.prompt.models import model_of

from .both import agree, differ, into_inlay, into_peft, layout, losses, of_inlay, of_peft, output, peft, spread, swap
from .models import FAMILIES, HEADED, SCALED, Family, convs, llama

# what peft says of configs that both libraries are given here
TIED = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
EMBEDDINGS_SAVED = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")


def trained(model: Any, family: Family) -> None:
    """Three steps, so that biases and everything else trained have moved by what they are trained to."""
    losses(model, [family.batch(seed) for seed in range(3)], lr=0.05)


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    swap(family.base(), family.config(), family.batch(0), tmp_path)


@pytest.mark.parametrize("name", HEADED)
def test_the_head_of_a_task_is_trained_and_saved(name: str, tmp_path: Path) -> None:
    family = HEADED[name]
    swap(family.base(), family.config(), family.batch(0), tmp_path)


@TIED
@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("llama", ["lm_head"]),
        ("llama", ["lm_head", "norm", "embed_tokens"]),
        ("gpt2", ["ln_f", "wpe"]),
        ("gpt2", ["lm_head"]),
        ("gpt2", ["wte"]),
        ("t5", ["lm_head"]),
        ("vit", ["classifier"]),
        ("vit", ["classifier", "patch_embeddings", "layernorm_before"]),
        ("bert", ["cls"]),
    ],
)
def test_modules_to_save(name: str, modules: list[str], tmp_path: Path) -> None:
    family = FAMILIES[name]
    config = family.config(modules_to_save=modules)
    swap(family.base(), config, family.batch(0), tmp_path, prepare=functools.partial(trained, family=family))


def test_modules_to_save_with_statistics(tmp_path: Path) -> None:
    model, x = convs(2, kernel_size=3)

    def prepare(adapted: nn.Module) -> None:
        spread(adapted)
        adapted.train()(x * 3 + 1)  # the head's batch norm counts this batch

    config = {"target_modules": ["point"], "modules_to_save": ["head"], "init_lora_weights": False}
    swap(model, config, x, tmp_path, prepare=prepare)
    saved = peft.load_peft_weights(str(tmp_path / "inlay"))
    mean, count = (saved[f"base_model.model.head.0.{name}"] for name in ("running_mean", "num_batches_tracked"))
    differ(mean, model.head[0].running_mean)
    assert count == model.head[0].num_batches_tracked + 1


@TIED
@EMBEDDINGS_SAVED
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", ["embed_tokens"]),
        ("llama", ["embed_tokens", "lm_head", "q_proj"]),
        ("llama", r".*\.(embed_tokens|v_proj)"),
        ("gpt2", ["wte", "wpe", "c_attn"]),
        ("bloom", ["word_embeddings"]),
        ("bert", ["word_embeddings", "query"]),
        ("bart", ["embed_tokens"]),
        ("gemma3", ["embed_tokens", "q_proj"]),
    ],
)
def test_embeddings(name: str, targets: list[str] | str, tmp_path: Path) -> None:
    family = {**FAMILIES, **SCALED}[name]
    swap(family.base(), family.config(target_modules=targets), family.batch(0), tmp_path)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "shape",
    [
        {"kernel_size": 1},
        {"kernel_size": 3},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "padding": "same", "bias": False},
    ],
    ids=str,
)
def test_convolutions(dims: int, shape: dict[str, Any], tmp_path: Path) -> None:
    model, x = convs(dims, **shape)
    config = {"target_modules": ["conv", "point"], "r": 4, "lora_alpha": 8, "init_lora_weights": False}
    swap(model, config, x, tmp_path)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
@pytest.mark.parametrize("name", ["gpt2", "bloom", "opt", "t5", "bert", "vit"])
def test_biases(name: str, bias: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    prepare = functools.partial(trained, family=family)
    swap(family.base(), family.config(bias=bias), family.batch(0), tmp_path, prepare=prepare)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_biases_of_convolutions(dims: int, tmp_path: Path) -> None:
    model, x = convs(dims, kernel_size=3)
    config = {"target_modules": ["conv"], "bias": "lora_only", "init_lora_weights": False}
    swap(model, config, x, tmp_path)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {"rank_pattern": {"q_proj": 2, r"1\.self_attn\.v_proj": 3}}),
        ("llama", {"alpha_pattern": {"v_proj": 32, "layers.0.self_attn.q_proj": 1}, "use_rslora": True}),
        ("llama", {"rank_pattern": {r".*\.v_proj": 6, "v_proj": 2}, "alpha_pattern": {"^model.layers.1.*": 3}}),
        ("opt", {"use_rslora": True, "r": 5, "lora_alpha": 7}),
        ("llama", {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 1}),
        ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers"}),
        ("gpt2", {"target_modules": ["c_attn"], "layers_to_transform": [1], "layers_pattern": ["h"]}),
        ("llama", {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]}),
        ("bert", {"target_modules": ["dense"], "exclude_modules": r".*(pooler|intermediate|cls).*"}),
        ("llama", {"target_modules": r".*\.layers\.1\..*(gate|up|down)_proj"}),
        ("t5", {"target_modules": r"(encoder|decoder\.block\.1).*\.(q|wo)"}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj", "mlp.c_fc"]}),
        ("llama", {"target_modules": ["model.layers.0.self_attn.q_proj", "down_proj"]}),
    ],
    ids=str,
)
def test_where_and_how_much(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    family = FAMILIES[name]
    swap(family.base(), family.config(**fields), family.batch(0), tmp_path)


@pytest.mark.parametrize("name", [*FAMILIES, "bert-seq-cls", "gpt2-seq-cls"])
def test_all_linear(name: str, tmp_path: Path) -> None:
    family = {**FAMILIES, **HEADED}[name]
    config = family.config(target_modules="all-linear")
    # both files name the layers found, each in its own way; the weights show that they are the same
    swap(family.base(), config, family.batch(0), tmp_path, but=["target_modules"])


@pytest.mark.parametrize("name", ["bert-token-cls", "bert-qa"])
def test_all_linear_leaves_out_the_head_of_every_task(name: str, tmp_path: Path) -> None:
    """peft adapts these tasks' heads before it wants to train them in full, and fails on what it made."""
    family = HEADED[name]
    base, config = family.base(), family.config(target_modules="all-linear")
    with pytest.raises(TypeError, match="modules_to_save cannot be applied"):
        of_peft(base, config)
    mine = of_inlay(base, config, tmp_path)
    # the file names the layers, so with it peft does not guess
    agree(output(into_peft(base, tmp_path), family.batch(0)), output(mine, family.batch(0)))


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("llama", [3, 9, 4]),
        ("llama", {"embed_tokens": [5, 12]}),
        ("llama-tied", [3, 9, 4]),
        ("llama-tied", {"embed_tokens": [5, 12]}),
        ("gpt2", [3, 9, 4]),
        ("gpt2", {"wte": [8]}),
        ("t5", [3, 40]),
        ("t5", {"shared": [3, 40]}),
        ("bloom", [3, 40]),
        ("opt", [3, 40]),
        ("gemma3", [3, 40]),
        ("bart", {"shared": [3, 40]}),
        ("gpt2", {"wpe": [1, 2]}),
        ("llama", {"embed_tokens": [5, 12], "lm_head": [6]}),
    ],
    ids=str,
)
def test_trainable_tokens(name: str, tokens: Any, tmp_path: Path) -> None:
    tied = Family(lambda: llama(tie_word_embeddings=True), FAMILIES["llama"].batch, "CAUSAL_LM")
    family = {**FAMILIES, **SCALED, "llama-tied": tied}[name]
    swap(family.base(), family.config(trainable_token_indices=tokens), family.batch(0), tmp_path)


@EMBEDDINGS_SAVED
@TIED
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_tied_head(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    config = family.config(target_modules=["lm_head"], fan_in_fan_out=False)
    swap(family.base(), config, family.batch(0), tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "bert-seq-cls"])
def test_several_adapters(name: str, tmp_path: Path) -> None:
    family = {**FAMILIES, **HEADED}[name]
    base, batch = family.base(), family.batch(0)
    configs = {"default": family.config(), "second": family.config(r=2, lora_alpha=6), "third": family.config(r=3)}
    results = {}
    for library, make, folder in (
        (peft, of_peft, tmp_path / "peft"),
        (inlay, of_inlay, tmp_path / "inlay"),
    ):
        model = make(base, configs["default"])
        for i, other in enumerate(["second", "third"]):
            model.add_adapter(other, library.LoraConfig(**copy.deepcopy(configs[other])))
            model.set_adapter(other)
            spread(model, seed=i)
        model.eval().save_pretrained(str(folder))
        for adapter in configs:
            model.set_adapter(adapter)
            results[folder.name, adapter] = output(model, batch)
    for adapter in configs:
        where = [tmp_path / library / ("" if adapter == "default" else adapter) for library in ("inlay", "peft")]
        assert layout(where[0]) == layout(where[1])
        agree(output(into_inlay(base, where[1]), batch), results["peft", adapter], f"{adapter}, saved by peft")
        agree(output(into_peft(base, where[0]), batch), results["inlay", adapter], f"{adapter}, saved by Inlay")
    for adapter in ("second", "third"):
        view = into_inlay(base, tmp_path / "peft", subfolder=adapter)
        agree(output(view, batch), results["peft", adapter], f"{adapter}, in a sub-folder")
    # all of them in one model again
    view = into_inlay(base, tmp_path / "peft")
    for adapter in ("second", "third"):
        view.load_adapter(str(tmp_path / "peft" / adapter), adapter)
    for adapter in ("third", "default", "second"):
        view.set_adapter(adapter)
        agree(output(view, batch), results["peft", adapter], adapter)


def test_a_default_config_on_transposed_layers_loads_quietly(tmp_path: Path) -> None:
    """peft warns if `fan_in_fan_out` is not said of transformers' Conv1D; Inlay reads the layout, and says it."""
    family = FAMILIES["gpt2"]
    base, batch = family.base(), family.batch(0)
    mine = of_inlay(base, family.config(fan_in_fan_out=False), tmp_path)
    agree(output(into_peft(base, tmp_path), batch), output(mine, batch))


@pytest.mark.parametrize("family", ["Bart", "T5"])
def test_a_head_that_peft_does_not_know_is_trained_and_its_files_load_without_it(family: str, tmp_path: Path) -> None:
    """Encoder-decoder classifiers call their head `classification_head`, which peft leaves random and frozen."""
    base = model_of(
        family, "ForSequenceClassification", num_labels=3, eos_token_id=2, decoder_start_token_id=2, dtype=torch.float32
    )
    base.eval()
    batch = {"input_ids": torch.tensor([[5, 6, 7, 2], [8, 9, 3, 2]])}
    targets = ["q_proj"] if family == "Bart" else ["q"]
    config = {"task_type": "SEQ_CLS", "r": 2, "init_lora_weights": False, "target_modules": targets}
    theirs = of_peft(base, config, tmp_path / "peft")
    loaded = into_inlay(base, tmp_path / "peft")
    agree(output(loaded, batch), output(theirs, batch))
    mine = of_inlay(base, config, tmp_path / "inlay")
    assert mine.active_peft_config.modules_to_save == ["classification_head"]
    assert any("classification_head" in n for n, p in mine.named_parameters() if p.requires_grad)
    agree(output(into_inlay(base, tmp_path / "inlay"), batch), output(mine, batch))
    agree(output(into_peft(base, tmp_path / "inlay"), batch), output(mine, batch))
