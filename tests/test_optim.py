"""LoRA+ and LoRA-FA (their steps are compared with peft's in tests/parity/test_lora_variants.py)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from inlay import LoraConfig, create_lorafa_optimizer, create_loraplus_optimizer, get_peft_model
from inlay.errors import ConfigError, StateError
from inlay.optim import projected
from tests.tiny import ids, net, scramble


def view_of(**fields: Any) -> Any:
    config = LoraConfig(**{"target_modules": ["fc", "conv2"], "r": 2, "lora_alpha": 4, **fields})
    return scramble(get_peft_model(net(), config))


def names(view: Any, optimizer: Any) -> list[set[str]]:
    own = {id(p): n.replace(".adapters.default", "") for n, p in view.named_parameters()}
    return [{own[id(p)] for p in group["params"]} for group in optimizer.param_groups]


def test_loraplus_groups() -> None:
    view = view_of(target_modules=["fc", "embed"], use_dora=True, bias="lora_only", modules_to_save=["head"])
    optimizer = create_loraplus_optimizer(
        view, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, loraplus_weight_decay=0.1, betas=(0.8, 0.9)
    )
    assert names(view, optimizer) == [
        {"fc.lora_A", "head.module.weight"},
        {"embed.lora_A", "embed.lora_B"},
        {"fc.lora_B", "fc.lora_magnitude_vector", "embed.lora_magnitude_vector"},
        {"fc.b"},
    ]
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (1e-3, 0.1),
        (1e-6, 0.1),
        (16e-3, 0.1),
        (16e-3, 0.0),
    ]
    assert all(g["betas"] == (0.8, 0.9) for g in optimizer.param_groups)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"lr": -1.0}, "lr=-1.0"), ({"loraplus_lr_ratio": "8"}, "ratio='8'"), ({"loraplus_weight_decay": -1}, "decay=-1")],
)
def test_loraplus_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_loraplus_optimizer(view_of(), torch.optim.SGD, **{"lr": 1e-3, "loraplus_lr_ratio": 2.0, **fields})


def test_nothing_to_train_is_an_error() -> None:
    view = view_of()
    view.set_adapter([])
    for make in (
        lambda: create_loraplus_optimizer(view, torch.optim.SGD, lr=1.0, loraplus_lr_ratio=2.0),
        lambda: create_lorafa_optimizer(view),
    ):
        with pytest.raises(StateError, match="trainable"):
            make()


def test_the_projected_gradient_is_the_best_step_of_b() -> None:
    """Of all G', s G' A is nearest to what full training would do to W, of which s dW A^T is the gradient of B."""
    a, full, s = torch.randn(3, 8).double(), torch.randn(6, 8).double(), 2.5
    found = projected(s * full @ a.T, a, s)
    best = torch.linalg.lstsq(s * a.T, full.T).solution.T
    torch.testing.assert_close(found, best, rtol=1e-6, atol=1e-6)


def test_lorafa_freezes_a_and_steps_the_rest() -> None:
    view = view_of(modules_to_save=["head"], bias="lora_only")
    optimizer = create_lorafa_optimizer(view, lr=1e-2)
    assert names(view, optimizer) == [
        {"fc.lora_B", "fc.b", "conv2.lora_B", "conv2.b", "head.module.weight"},
    ]
    before = {n: p.detach().clone() for n, p in view.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        view(ids()).square().sum().backward()
        optimizer.step()
    changed = {n.replace(".adapters.default", "") for n, p in view.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"fc.lora_B", "fc.b", "conv2.lora_B", "conv2.b", "head.module.weight"}


def test_lorafas_state_is_saved_and_loaded() -> None:
    def step(view: Any, optimizer: Any) -> None:
        optimizer.zero_grad()
        view(ids()).square().sum().backward()
        optimizer.step()

    one = view_of()
    first = create_lorafa_optimizer(one, lr=1e-2)
    step(one, first)
    two = view_of()
    two.load_state_dict(one.state_dict())
    second = create_lorafa_optimizer(two, lr=1e-2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    step(one, first)
    step(two, second)
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert first.step(lambda: torch.tensor(3.0)) == 3


def test_lorafa_refuses_what_it_could_not_train() -> None:
    for targets in (["embed"], ["conv1"]):  # an embedding, and groups
        with pytest.raises(ConfigError, match=f"LoRA-FA cannot train the adapter at '{targets[0]}'"):
            create_lorafa_optimizer(view_of(target_modules=targets, r=4))
    with pytest.raises(ConfigError, match="betas"):
        from inlay.optim import LoraFAOptimizer

        LoraFAOptimizer([nn.Parameter(torch.zeros(1))], {}, betas=(1.0, 0.9))
