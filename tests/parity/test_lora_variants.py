"""LoRA's variants and inits beside peft's: numbers, files both ways, optimizers, ranks dealt out by EVA."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import inlay
from inlay.errors import ConfigError

from .both import (
    STEPS,
    agree,
    compare,
    differ,
    gradients,
    into_inlay,
    into_peft,
    of_inlay,
    of_peft,
    output,
    peft,
    same_tensors,
    spread,
    swap,
)
from .models import FAMILIES, convs

peft_optimizers = importlib.import_module("peft.optimizers")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    # peft's own check of what it saves takes the bias of B for a damaged matrix
    pytest.mark.filterwarnings("ignore:Adapter 'default'. [0-9]+ LoRA tensor.s. have invalid shape"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed:UserWarning"),
    pytest.mark.filterwarnings("ignore:lora with eva initialization used with low_cpu_mem_usage=False:UserWarning"),
]

DORA = {"use_dora": True}
BIAS = {"lora_bias": True}
PISSA = {"init_lora_weights": "pissa"}
OLORA = {"init_lora_weights": "olora"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", DORA),
        ("gpt2", {**DORA, "target_modules": ["c_attn", "c_proj"]}),
        ("opt", {**DORA, "target_modules": ["embed_tokens", "q_proj"], "bias": "lora_only"}),
        ("bert", {**DORA, "use_rslora": True, "rank_pattern": {"query": 2}}),
        ("opt", BIAS),
        ("bert", {**BIAS, "bias": "lora_only"}),
    ],
    ids=str,
)
def test_variants(name: str, fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    compare(FAMILIES[name], FAMILIES[name].config(**fields), tmp_path, dtype)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", PISSA),
        ("llama", {**PISSA, "use_dora": True}),
        ("gpt2", {**PISSA, "lora_alpha": 4, "target_modules": ["c_attn", "c_proj"]}),
        ("opt", {**PISSA, "target_modules": ["embed_tokens", "q_proj"]}),
        ("llama", OLORA),
        ("bert", {**OLORA, "rank_pattern": {"query": 2}}),
    ],
    ids=str,
)
def test_inits_that_start_from_the_weight(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    compare(FAMILIES[name], FAMILIES[name].config(**fields), tmp_path)


@pytest.mark.parametrize(
    ("name", "fields"),
    [("llama", DORA), ("opt", BIAS), ("llama", PISSA), ("gpt2", PISSA), ("llama", OLORA), ("bert", {**PISSA, **DORA})],
    ids=str,
)
def test_files(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    family = FAMILIES[name]
    swap(family.base(), family.config(**fields), family.batch(0), tmp_path)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("fields", [DORA, BIAS], ids=str)
def test_convolutions(dims: int, fields: dict[str, Any], tmp_path: Path) -> None:
    model, x = convs(dims, kernel_size=3, stride=2, padding=1)
    config = {"target_modules": ["conv", "point"], "r": 4, "init_lora_weights": False, **fields}
    theirs = of_peft(model, config, tmp_path)
    mine = into_inlay(model, tmp_path, is_trainable=True)
    agree(output(mine, x), output(theirs, x))
    for adapted in (mine, theirs):
        adapted(x).square().mean().backward()
    same_tensors(gradients(inlay, mine), gradients(peft, theirs))
    if dims < 3:  # peft fails to merge pointwise ones of three dimensions (see test_deviations)
        agree(output(mine.merge_and_unload(), x), output(theirs.merge_and_unload(), x))


@pytest.mark.parametrize("fields", [PISSA, OLORA, DORA], ids=str)
def test_fresh_adapters_are_alike(fields: dict[str, Any]) -> None:
    """Not only what they compute (the base's output): their product, and for PiSSA and OLoRA all of B A."""
    family = FAMILIES["llama"]
    base = family.base()
    config = family.config(**{"init_lora_weights": True, **fields})
    theirs, mine = (f(base, config, prepare=lambda _: None) for f in (of_peft, of_inlay))
    agree(output(mine, family.batch(0)), output(base, family.batch(0)))
    found, expected = (lib.get_peft_model_state_dict(m) for lib, m in ((inlay, mine), (peft, theirs)))
    assert found.keys() == expected.keys()
    for key in expected:
        if key.endswith("magnitude_vector"):
            agree(found[key], expected[key], key)
        elif key.endswith("lora_A.weight"):
            up = key.replace("lora_A", "lora_B")
            agree(found[up] @ found[key], expected[up] @ expected[key], key)


def test_pissa_by_iteration(tmp_path: Path) -> None:
    """peft starts its iteration at random, so its base is another at each load; with many steps it is ours."""
    family = FAMILIES["llama"]
    base = family.base()
    config = family.config(init_lora_weights="pissa_niter_1000")
    theirs = of_peft(base, config, tmp_path)
    mine = into_inlay(base, tmp_path)
    agree(output(mine, family.batch(0)), output(theirs, family.batch(0)), tolerance=1e-4)
    again = of_inlay(base, config, tmp_path / "inlay")
    assert torch.equal(output(into_inlay(base, tmp_path / "inlay"), family.batch(0)), output(again, family.batch(0)))


def test_dropout_leaves_the_principal_part_alone(tmp_path: Path) -> None:
    """As in peft, where it is in the base: only B A is dropped out, not B0 A0."""
    family = FAMILIES["llama"]
    base, batch = family.base(), family.batch(0)
    config = family.config(**PISSA, lora_dropout=0.5, target_modules=["down_proj"], layers_to_transform=[0])
    theirs, mine = of_peft(base, config, tmp_path), into_inlay(base, tmp_path, is_trainable=True)
    found = []
    for model in (theirs, mine):
        model.train()
        torch.manual_seed(3)
        found.append(model(**batch).logits.detach())
    agree(*found)
    differ(found[0], output(theirs.eval(), batch))


def test_olora_of_transposed_layers(tmp_path: Path) -> None:
    """peft decomposes a Conv1D's weight as it is stored, and adds the product as if it were transposed."""
    family = FAMILIES["gpt2"]
    base, batch = family.base(), family.batch(0)
    config = family.config(**OLORA, target_modules=["attn.c_proj"])  # square, or peft fails
    agree(output(of_inlay(base, config, prepare=lambda _: None), batch), output(base, batch))
    differ(output(of_peft(base, config, prepare=lambda _: None), batch), output(base, batch))


@pytest.mark.parametrize(
    "fields", [PISSA, OLORA, {**PISSA, "use_rslora": True, "alpha_pattern": {"q_proj": 5}}], ids=str
)
def test_as_plain_lora(fields: dict[str, Any], tmp_path: Path) -> None:
    """Whoever knows LoRA can load it, without decomposing anything."""
    family = FAMILIES["llama"]
    base, batch = family.base(), family.batch(0)
    view = of_inlay(base, family.config(**fields))
    y = output(view, batch)
    inlay.as_plain_lora(view, "default", "plain")
    assert view.active_adapters == ["default"]
    view.save_pretrained(str(tmp_path), selected_adapters=["plain"])
    agree(output(into_peft(base, tmp_path / "plain"), batch), y)
    agree(output(into_inlay(base, tmp_path / "plain"), batch), y)
    config = inlay.PeftConfig.from_pretrained(str(tmp_path / "plain"))
    assert (config.r, config.init_lora_weights) == (8, True)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- inits from data


def run_on(family: Any, model: Any, backward: bool = False) -> Any:
    def run() -> None:
        for seed in range(3):
            out = model(**{k: v[:1] for k, v in family.batch(seed).items()})
            if backward:
                out.loss.backward()

    return run


@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_corda(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # all that peft's module wants of the package attrs, which may not be installed
    monkeypatch.setitem(sys.modules, "attr", types.SimpleNamespace(dataclass=dataclasses.dataclass))  # type: ignore[arg-type]
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    family = FAMILIES["llama"]
    base, batch = family.base(), family.batch(0)
    fields = family.config(init_lora_weights="corda", target_modules=["q_proj", "down_proj"])
    other = copy.deepcopy(base)
    config = peft.LoraConfig(**fields, corda_config=CordaConfig(corda_method=method))
    preprocess_corda(other, config, run_model=run_on(family, other))
    theirs = peft.get_peft_model(other, config)
    mine = inlay.LoraConfig(**fields, corda_config={"corda_method": method})
    inlay.preprocess_corda(base, mine, run_model=run_on(family, base))
    view = inlay.get_peft_model(base, mine)
    agree(output(view, batch), output(base, batch))
    expected = peft.get_peft_model_state_dict(theirs)
    for path, adapter in view._inlay.placed["default"].items():
        a, b = (expected[f"base_model.model.{path}.lora_{x}.weight"] for x in "AB")
        agree((adapter.B @ adapter.A).detach(), b @ a, path, 1e-4)
    # saved, it is a LoRA of rank 2r that needs no data
    spread(view)
    view.eval().save_pretrained(str(tmp_path))
    agree(output(into_inlay(base, tmp_path), batch), output(view, batch))
    agree(output(into_peft(base, tmp_path), batch), output(view, batch))


@pytest.mark.parametrize("direction", ["ArBr", "A2rBr", "ArB2r"])
@pytest.mark.parametrize("scale", ["stable", "weight_svd", "gd_scale", "unit"])
def test_lora_ga(direction: str, scale: str, tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    base, batch = family.base(), family.batch(0)
    part = {"direction": direction, "scale": scale}
    fields = family.config(init_lora_weights="lora_ga", target_modules=["q_proj", "down_proj"], r=2)
    other = copy.deepcopy(base)
    config = peft.LoraConfig(**fields, lora_ga_config=peft.LoraGAConfig(**part))
    peft.preprocess_loraga(other, config, run_on(family, other, backward=True))
    theirs = peft.get_peft_model(other, config)
    mine = inlay.LoraConfig(**fields, lora_ga_config=part)
    flags = {n: p.requires_grad for n, p in base.named_parameters()}
    inlay.preprocess_loraga(base, mine, run_on(family, base, backward=True))
    assert {n: p.requires_grad for n, p in base.named_parameters()} == flags
    assert all(p.grad is None for p in base.parameters()) and not base.training
    view = inlay.get_peft_model(base, mine)
    agree(output(view, batch), output(base, batch))
    expected = peft.get_peft_model_state_dict(theirs)
    rough = 0.06 if scale == "weight_svd" else 3e-3  # peft only estimates W's largest singular value
    for path, adapter in view._inlay.placed["default"].items():  # vectors agree but for their signs
        a, b = (expected[f"base_model.model.{path}.lora_{x}.weight"] for x in "AB")
        for found, want in ((adapter.A, a), (adapter.B, b)):
            agree(found.detach().abs(), want.abs(), path, rough * float(want.abs().max()))
    view.save_pretrained(str(tmp_path))
    agree(output(into_peft(base, tmp_path), batch), output(base, batch))


def test_a_file_against_a_base_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """peft loads it with a warning less, onto the wrong base."""
    family = FAMILIES["llama"]
    base = family.base()
    config = peft.LoraConfig(**family.config(init_lora_weights="lora_ga", r=2), lora_ga_config=peft.LoraGAConfig())
    other = copy.deepcopy(base)
    peft.preprocess_loraga(other, config, run_on(family, other, backward=True))
    theirs = peft.get_peft_model(other, config).eval()
    theirs.save_pretrained(str(tmp_path))
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    differ(output(again, family.batch(0)), output(theirs, family.batch(0)))
    with pytest.raises(ConfigError, match="belong to a base from which B0 A0 was taken out"):
        into_inlay(base, tmp_path)


@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_eva_deals_out_the_same_ranks(rho: float, tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    base = family.base()
    fields = family.config(init_lora_weights="eva", r=2, target_modules=["q_proj", "k_proj", "o_proj", "down_proj"])
    batches = [family.batch(seed) for seed in range(4)]
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**fields, eva_config=peft.EvaConfig(rho=rho)))
    mine = inlay.get_peft_model(base, inlay.LoraConfig(**fields, eva_config=inlay.EvaConfig(rho=rho)))
    peft.initialize_lora_eva_weights(theirs, batches, show_progress_bar=False)
    assert inlay.initialize_lora_eva_weights(mine, batches) is mine
    expected = {k: v for k, v in peft.get_peft_model_state_dict(theirs).items() if k.endswith("lora_A.weight")}
    found = {k: v for k, v in inlay.get_peft_model_state_dict(mine).items() if k.endswith("lora_A.weight")}
    assert {k: len(v) for k, v in found.items()} == {k: len(v) for k, v in expected.items()}
    for key, value in expected.items():
        same = torch.nn.functional.cosine_similarity(found[key], value).abs()
        assert float(same.min()) > 0.9, (key, same)  # both iterate until a direction turns by no more than tau
    agree(output(mine, family.batch(9)), output(base, family.batch(9)))
    ours, other = mine.peft_config["default"], theirs.peft_config["default"]
    assert ours.rank_pattern == other.rank_pattern and ours.alpha_pattern == other.alpha_pattern
    assert all(p.requires_grad == (".adapters." in n) for n, p in mine.named_parameters())
    mine.save_pretrained(str(tmp_path))
    into_peft(base, tmp_path)
    into_inlay(base, tmp_path)


# ---------------------------------------------------------------------- optimizers


def trained(family: Any, model: Any, optimizer: Any) -> torch.Tensor:
    found = []
    for seed in range(STEPS):
        loss = model(**family.batch(seed)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {}),
        ("llama", DORA),
        ("opt", {**BIAS, "modules_to_save": ["final_layer_norm"]}),
        ("opt", {"target_modules": ["embed_tokens", "q_proj"]}),
    ],
    ids=str,
)
def test_loraplus(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    family = FAMILIES[name]
    base = family.base()
    theirs = of_peft(base, family.config(**fields), tmp_path)
    mine = into_inlay(base, tmp_path, is_trainable=True)
    options = {"lr": 1e-3, "loraplus_lr_ratio": 8.0, "loraplus_weight_decay": 0.1, "loraplus_lr_embedding": 3e-3}
    optimizers = [
        lib.create_loraplus_optimizer(model, torch.optim.AdamW, **options)
        for lib, model in ((inlay, mine), (peft_optimizers, theirs))
    ]
    shapes = [
        [
            (g["lr"], g["weight_decay"], sorted(tuple(p.shape) for p in g["params"]))
            for g in o.param_groups
            if g["params"]
        ]
        for o in optimizers
    ]
    assert shapes[0] == shapes[1]
    agree(trained(family, mine, optimizers[0]), trained(family, theirs, optimizers[1]), "losses")
    same_tensors(inlay.get_peft_model_state_dict(mine), peft.get_peft_model_state_dict(theirs), 1e-4)


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}}], ids=str)
def test_lorafa(fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft_optimizers.lorafa, "is_bf16_available", lambda: False)  # or it rounds gradients to it
    family = FAMILIES["llama"]
    base = family.base()
    theirs = of_peft(base, family.config(**fields), tmp_path)
    mine = into_inlay(base, tmp_path, is_trainable=True)
    before = {k: v.clone() for k, v in inlay.get_peft_model_state_dict(mine).items()}
    options = {"r": 4, "lora_alpha": 8, "lr": 3e-3, "weight_decay": 0.1}
    optimizers = [
        lib.create_lorafa_optimizer(model, **options) for lib, model in ((inlay, mine), (peft_optimizers, theirs))
    ]
    agree(trained(family, mine, optimizers[0]), trained(family, theirs, optimizers[1]), "losses")
    after = inlay.get_peft_model_state_dict(mine)
    same_tensors(after, peft.get_peft_model_state_dict(theirs), 1e-4)
    assert all(torch.equal(after[k], v) == ("lora_A" in k) for k, v in before.items())
