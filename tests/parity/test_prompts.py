"""Prompt methods beside peft's: logits, gradients, the losses of 20 AdamW steps, and files both ways.

Batches have no padding: with it peft puts virtual tokens at other positions (docs/architecture.md).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import inlay

from .both import agree, differ, into_inlay, layout, losses, of_inlay, of_peft, output, peft, same_settings
from .models import FAMILIES, HEADED, Family

P = 3
PROMPT = {"method": "PromptTuningConfig", "num_virtual_tokens": P}
MLP = {"method": "PromptEncoderConfig", "num_virtual_tokens": P, "encoder_hidden_size": 8}
LSTM = {**MLP, "encoder_reparameterization_type": "LSTM", "encoder_num_layers": 1}
PREFIX = {"method": "PrefixTuningConfig", "num_virtual_tokens": P}
PROJECTED = {**PREFIX, "prefix_projection": True, "encoder_hidden_size": 8}
CONFIGS = {"prompt": PROMPT, "mlp": MLP, "lstm": LSTM, "prefix": PREFIX, "projected": PROJECTED}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),
    pytest.mark.filterwarnings("ignore:dropout option adds dropout:UserWarning"),
]
TEXT = [n for n in (*FAMILIES, *HEADED) if not n.startswith("vit")]
CELLS = pytest.mark.parametrize(
    ("name", "kind"),
    [(n, k) for n in TEXT for k in CONFIGS if n != "bert"],
)


def family_of(name: str) -> Family:
    return {**FAMILIES, **HEADED}[name]


def batch_of(family: Family, seed: int = 0) -> dict[str, Tensor]:
    batch = {k: v for k, v in family.batch(seed).items() if k != "token_type_ids"}
    if "attention_mask" in batch:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    return batch


def aligned(found: Tensor, expected: Tensor) -> Tensor:
    """peft's outputs at the given tokens: it also returns those at virtual tokens, for every task."""
    extra = expected.shape[-1 if expected.dim() == 3 and expected.shape[0] == 2 else 1] - P
    return expected[..., P:] if found.shape[-1] == extra else expected[:, P:]


def same_outputs(mine: Any, theirs: Any, batch: dict[str, Tensor]) -> None:
    found, expected = output(mine, batch), output(theirs, batch)
    agree(found, expected if found.shape == expected.shape else aligned(found, expected))


def unlabelled(name: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without labels where peft does not extend them by the virtual tokens, and so cannot compute a loss."""
    return {k: v for k, v in batch.items() if "labels" not in k and "positions" not in k} if per_token(name) else batch


def per_token(name: str) -> bool:
    return name.endswith(("token-cls", "qa"))


@CELLS
def test_what_peft_saves_computes_the_same(name: str, kind: str, tmp_path: Path) -> None:
    family = family_of(name)
    base, config = family.base(), {**CONFIGS[kind], "task_type": family.task_type}
    batch = unlabelled(name, batch_of(family))
    theirs = of_peft(base, config, tmp_path / "peft")
    mine = into_inlay(base, tmp_path / "peft")
    same_outputs(mine, theirs, batch)
    before = output(base, batch)
    assert output(mine, batch).shape != before.shape or differ(output(mine, batch), before) is None


@CELLS
def test_what_inlay_saves_computes_the_same_in_peft(name: str, kind: str, tmp_path: Path) -> None:
    family = family_of(name)
    base, config = family.base(), {**CONFIGS[kind], "task_type": family.task_type}
    mine = of_inlay(base, config, tmp_path / "inlay")
    of_peft(base, config, tmp_path / "peft")
    assert layout(tmp_path / "inlay") == layout(tmp_path / "peft")
    same_settings(tmp_path / "inlay", tmp_path / "peft")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "inlay")).eval()
    same_outputs(mine, again, unlabelled(name, batch_of(family)))


def twin_parameters(mine: Any, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    """The trained parameters of both, which come in the same order: the prompt's, then the head's."""
    pairs = []
    for model in (mine, theirs):
        own = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        heads = [p for n, p in own if "classifier" in n or "score" in n or "qa_outputs" in n]
        prompt = [p for n, p in own if not any(p is h for h in heads)]
        pairs.append([*prompt, *heads])
    assert [p.shape for p in pairs[0]] == [p.shape for p in pairs[1]]
    return list(zip(*pairs, strict=True))


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n in TEXT for k in CONFIGS if n != "bert" and not per_token(n)])
def test_training_is_the_same(name: str, kind: str) -> None:
    family = family_of(name)
    base, config = family.base(), {**CONFIGS[kind], "task_type": family.task_type}
    theirs, mine = of_peft(base, config), of_inlay(base, config)
    with torch.no_grad():
        for own, other in twin_parameters(mine, theirs):
            own.copy_(other)
    batches = [batch_of(family, seed) for seed in range(20)]
    for model in (mine, theirs):
        model(**batches[0]).loss.backward()
    pairs = twin_parameters(mine, theirs)
    used = [(a, b) for a, b in pairs if b.grad is not None]
    assert used and sum(bool(b.grad.abs().max() > 1e-4) for _, b in used) > len(used) // 2
    for own, other in used:
        agree(own.grad, other.grad)
    for model in (mine, theirs):
        model.zero_grad()
    agree(losses(mine, batches), losses(theirs, batches), "losses")


@pytest.mark.parametrize("kind", ["prompt", "mlp", "prefix"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "t5"])
def test_generation_is_the_same(name: str, kind: str, tmp_path: Path) -> None:
    family = family_of(name)
    base, config = family.base(), {**CONFIGS[kind], "task_type": family.task_type}
    theirs = of_peft(base, config, tmp_path / "peft")
    mine = into_inlay(base, tmp_path / "peft")
    given = {k: v for k, v in batch_of(family).items() if k in ("input_ids", "attention_mask")}
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(mine.generate(**given, **how), theirs.generate(**given, **how))


@pytest.mark.parametrize("tasks", [1, 3])
def test_multitask_prompts(tasks: int, tmp_path: Path) -> None:
    family = family_of("gpt2")
    base = family.base()
    config = {
        "method": "MultitaskPromptTuningConfig",
        "num_virtual_tokens": P,
        "num_tasks": tasks,
        "num_ranks": 2,
        "task_type": "CAUSAL_LM",
    }
    theirs = of_peft(base, config, tmp_path / "peft")
    mine = into_inlay(base, tmp_path / "peft")
    batch = {**batch_of(family), "task_ids": torch.tensor([tasks - 1, 0])}
    # peft multiplies the shared prompt in place, which only its inference without gradients survives
    same_outputs(mine, theirs, batch)
    assert layout(tmp_path / "peft")
    mine.save_pretrained(str(tmp_path / "again"))
    assert layout(tmp_path / "again") == layout(tmp_path / "peft")
    assert inlay.PeftConfig.from_pretrained(str(tmp_path / "peft")).num_tasks == tasks  # type: ignore[attr-defined]
    assert peft.PeftConfig.from_pretrained(str(tmp_path / "again")).num_ranks == 2
