"""From the same adapter weights, in float32: logits, adapter gradients, and the losses of 20 AdamW steps."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest

import inlay

from .both import agree, differ, gradients, into_inlay, losses, of_peft, output, same_tensors
from .models import FAMILIES

STEPS = 20


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_gradients_and_losses(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    base = family.base()
    theirs = of_peft(base, family.config(), tmp_path)
    mine = into_inlay(base, tmp_path, is_trainable=True)
    batch = family.batch(0)

    agree(output(mine, batch), output(theirs, batch), "logits")
    differ(output(mine, batch), output(base, batch))

    for model in (mine, theirs):
        model(**batch).loss.backward()
    expected = gradients(peft, theirs)
    assert all(g.abs().max() > 1e-4 for g in expected.values())
    same_tensors(gradients(inlay, mine), expected)
    for model in (mine, theirs):
        model.zero_grad()

    batches = [family.batch(seed) for seed in range(STEPS)]
    ours, others = losses(mine, batches), losses(theirs, batches)
    agree(ours, others, "losses")
    before = output(base, batch)
    differ(output(mine, batch), before)
    agree(output(mine, batch), output(theirs, batch), "logits after training")
