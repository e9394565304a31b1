"""AdaLoRA beside peft: numbers, a whole schedule step for step, and files before, during and after it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import inlay

from .both import (
    agree,
    compare,
    differ,
    into_inlay,
    layout,
    of_inlay,
    of_peft,
    output,
    peft,
    same_settings,
    spread,
    swap,
)
from .models import FAMILIES, convs

FIELDS: dict[str, dict[str, Any]] = {
    "llama": {"init_r": 5, "target_r": 2, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "gpt2": {"init_r": 4, "target_r": 3, "fan_in_fan_out": True},
    "t5": {"init_r": 3, "target_r": 1},
}
SCHEDULE = {"tinit": 3, "tfinal": 4, "deltaT": 2, "total_step": 18, "beta1": 0.7, "beta2": 0.8}

# peft's own files have no state of the averages
NO_STATE = pytest.mark.filterwarnings("ignore:.*has no training_state:inlay.InlayWarning")


def config(name: str, **fields: Any) -> dict[str, Any]:
    given = {"method": "AdaLoraConfig", "task_type": FAMILIES[name].task_type, **SCHEDULE}
    return {**given, **FIELDS[name], **fields}


def prepared(model: Any) -> None:
    """As `spread`, leaving alone what peft makes trainable by accident when it casts an adapter: the rank in s."""
    for name, p in model.named_parameters():
        if "ranknum" in name:
            p.requires_grad_(False)
    spread(model)


def unlabelled(name: str) -> dict[str, torch.Tensor]:
    """Without labels: peft asks an adapter that it loaded for inference what it penalises, and fails."""
    batch = FAMILIES[name].batch(0)
    labels = batch.pop("labels")
    return {**batch, "decoder_input_ids": labels} if name == "t5" else batch


@NO_STATE
@pytest.mark.parametrize("name", FIELDS)
def test_numbers(name: str, tmp_path: Path) -> None:
    # peft adds the penalty in evaluation too, as which these are run
    compare(FAMILIES[name], config(name, orth_reg_weight=0.0), tmp_path)


@pytest.mark.parametrize("name", FIELDS)
def test_files(name: str, tmp_path: Path) -> None:
    swap(FAMILIES[name].base(), config(name), unlabelled(name), tmp_path)


def test_convolutions(tmp_path: Path) -> None:
    model, x = convs(2, kernel_size=3, stride=2, padding=1)
    fields = {"method": "AdaLoraConfig", "target_modules": ["conv", "point"], **SCHEDULE, "lora_alpha": 200}
    swap(model, fields, x, tmp_path)


def mapped(pattern: dict[str, list[bool]] | None) -> dict[str, list[bool]] | None:
    return None if pattern is None else {k.replace(".default", ""): v for k, v in pattern.items()}


def entries(model: Any) -> dict[str, torch.Tensor]:
    """Every E, by the path of its layer."""
    found = {n: p.detach() for n, p in model.named_parameters() if "lora_E" in n}
    return {n.removeprefix("base_model.model.").split(".adapters")[0].split(".lora_E")[0]: p for n, p in found.items()}


def run(model: Any, family: Any, steps: range, optimizer: Any) -> torch.Tensor:
    losses = []
    for step in steps:
        batch = {k: v.double() if v.is_floating_point() else v for k, v in family.batch(step).items()}
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        (model if isinstance(model, inlay.PeftModel) else model.base_model).update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def adam(model: Any) -> Any:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.03)


@NO_STATE
@pytest.mark.filterwarnings("ignore:Adapter 'default'.*have invalid shape")  # peft, of a layer that lost all its rank
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_whole_schedule_masks_the_same_entries_at_every_step(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    base = family.base().double()
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    theirs = of_peft(base, config(name), tmp_path / "start", prepared).train()
    mine = into_inlay(base, tmp_path / "start", is_trainable=True).train()
    optimizers, masked = [adam(mine), adam(theirs)], set()
    for step in range(SCHEDULE["total_step"] + 2):
        losses = [run(m, family, range(step, step + 1), o) for m, o in zip((mine, theirs), optimizers, strict=True)]
        agree(*losses, f"loss of step {step}")
        found, expected = entries(mine), entries(theirs)
        assert found.keys() == expected.keys() and len(found) == len(entries(mine))
        for path, e in expected.items():
            assert torch.equal(found[path] == 0, e == 0), (step, path)
            agree(found[path], e, f"E of {path} after step {step}")
        assert mine.peft_config["default"].rank_pattern == mapped(theirs.peft_config["default"].rank_pattern), step
        masked.add(sum(int((e == 0).sum()) for e in expected.values()))
    fields = FIELDS[name]
    layers = len(entries(mine))
    assert max(masked) == layers * (fields["init_r"] - fields["target_r"]) and len(masked) > 2
    ranks = {sum(kept) for kept in mine.peft_config["default"].rank_pattern.values()}
    assert len(ranks) > 1, "ranks differ between layers"

    # and the files: both hold the kept entries only
    theirs.save_pretrained(str(tmp_path / "peft"))
    mine.save_pretrained(str(tmp_path / "inlay"))
    assert layout(tmp_path / "inlay") == layout(tmp_path / "peft")
    same_settings(tmp_path / "inlay", tmp_path / "peft")
    batch = unlabelled(name)
    result = output(theirs.eval(), batch)
    differ(result, output(base, batch))
    agree(output(mine.eval(), batch), result, "the trained adapters")
    loaded = into_inlay(base, tmp_path / "peft")
    agree(output(loaded, batch), result, "saved by peft, loaded by Inlay")
    with pytest.warns(RuntimeWarning, match="rank_pattern keys did not match"):  # peft says so of its own files too
        again = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "inlay"))
    agree(output(again.eval(), batch), result, "saved by Inlay, loaded by peft")
    loaded.save_pretrained(str(tmp_path / "again"))
    assert layout(tmp_path / "again") == layout(tmp_path / "peft")
    same_settings(tmp_path / "again", tmp_path / "peft")
    merged = loaded.merge_and_unload()
    agree(output(merged, batch), result, "merged")


@NO_STATE
def test_the_penalty_is_peft_s_in_training_and_none_in_evaluation(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    base, batch = family.base(), family.batch(0)
    theirs = of_peft(base, config("llama"), tmp_path)
    mine = into_inlay(base, tmp_path, is_trainable=True)
    plain = of_peft(base, config("llama", orth_reg_weight=0.0))
    agree(mine.train()(**batch).loss.detach(), theirs.train()(**batch).loss.detach())
    with torch.no_grad():
        agree(mine.eval()(**batch).loss, plain.eval()(**batch).loss)
        differ(theirs.eval()(**batch).loss, plain.eval()(**batch).loss, 0.1)  # peft's evaluation loss is no loss


def test_ranks_that_are_to_stay_stay() -> None:
    """target_r = init_r: peft asks for the 0th smallest score."""
    family = FAMILIES["llama"]
    base, fields = family.base(), config("llama", target_r=5, tinit=0, deltaT=1)
    theirs, mine = of_peft(base, fields).train(), of_inlay(base, fields).train()
    with pytest.raises(RuntimeError, match="out of range"):
        run(theirs, family, range(4), adam(theirs))
    run(mine, family, range(20), adam(mine))
    assert mine.peft_config["default"].rank_pattern is None


@pytest.mark.parametrize(
    ("method", "table"), [("AdaLoraConfig", "ADALORA"), ("VBLoRAConfig", "VBLORA"), ("VeraConfig", "VERA")]
)
def test_default_targets_are_peft_s(method: str, table: str) -> None:
    config = getattr(inlay, method)(**{"total_step": 9} if method == "AdaLoraConfig" else {})
    theirs = getattr(peft.utils.constants, f"TRANSFORMERS_MODELS_TO_{table}_TARGET_MODULES_MAPPING")
    for model_type, names in theirs.items():
        mine = config.default_targets(model_type)
        assert mine is None or isinstance(mine, str) or set(mine) == set(names), model_type
    assert sum(config.default_targets(model_type) is not None for model_type in theirs) > len(theirs) - 8
