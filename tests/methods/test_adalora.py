"""AdaLoRA against its formula and its budget in float64, resuming in mid-schedule, and what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from inlay import AdaLoraConfig, PeftModel, get_peft_model
from inlay.errors import ConfigError, InlayWarning, MismatchError, StateError
from inlay.io.folder import STATE_NAME
from tests.tiny import close, ids, llama, mlp, scramble

FIELDS: dict[str, Any] = {
    "init_r": 4,
    "target_r": 2,
    "total_step": 16,
    "tinit": 2,
    "tfinal": 3,
    "deltaT": 2,
    "target_modules": ["up", "down"],
}


def view_of(**fields: Any) -> Any:
    return get_peft_model(mlp(dtype=torch.float64), AdaLoraConfig(**{**FIELDS, **fields}))


def made(seed: int = 7, **fields: Any) -> Any:
    return scramble(view_of(**fields), 0.3, seed)


def train(view: Any, steps: range, optimizer: Any = None) -> Any:
    """Steps on a loss of its own, with the penalty as a model that returns a loss has it."""
    trained = [p for p in view.parameters() if p.requires_grad]
    optimizer = optimizer or torch.optim.AdamW(trained, lr=0.03)
    view.train()
    for step in steps:
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        (F.mse_loss(view(x), x.roll(1, -1)) + view._inlay.penalty()).backward()
        optimizer.step()
        view.update_and_allocate(step)
        optimizer.zero_grad()
    view.eval()
    return optimizer


def adapters(view: Any) -> list[Any]:
    return [view.up.adapters["default"], view.down.adapters["default"]]


def everything(view: Any) -> list[Tensor]:
    return [t for a in adapters(view) for t in (a.A, a.B, a.E, *(a.tracked(n)[i] for n in "ABE" for i in (1, 2)))]


def test_the_formula() -> None:
    view, base, x = made(lora_alpha=3), mlp(dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)
    w = [
        getattr(base, name).weight + 3 / (4 + 1e-5) * a.B @ torch.diag(a.E[:, 0]) @ a.A
        for name, a in zip(("up", "down"), adapters(view), strict=True)
    ]
    close(view(x), torch.relu(x @ w[0].T + base.up.bias) @ w[1].T + base.down.bias)
    assert (view(x) - base(x)).abs().max() > 1e-2


def test_the_initial_values() -> None:
    torch.manual_seed(0)
    fresh = view_of(init_r=200).requires_grad_(False).up.adapters["default"]
    assert not fresh.E.any() and abs(float(fresh.A.std()) - 0.02) < 2e-3 and abs(float(fresh.B.std()) - 0.02) < 2e-3
    random = view_of(init_r=200, init_lora_weights=False).requires_grad_(False).up.adapters["default"]
    assert abs(float(random.E.std()) - 1) < 0.2 and abs(float(random.A.std()) - 1) < 0.1
    assert view_of(lora_alpha=0).up.adapters["default"].scale == pytest.approx(1, abs=1e-4)  # alpha = init_r


def test_the_budget_is_the_cubic_of_the_paper() -> None:
    config = AdaLoraConfig(total_step=100, tinit=10, tfinal=20, deltaT=5)
    assert [config.budget(t, 120, 80) for t in (0, 10, 12, 79)] == [None] * 4
    for t in range(15, 80, 5):
        assert config.budget(t, 120, 80) == int(80 + 40 * ((80 - t) / 70) ** 3), t
    assert config.budget(80, 120, 80) == 80
    last = AdaLoraConfig(total_step=100, tfinal=17, deltaT=5)
    assert last.budget(83, 120, 80) == 80, "the last step masks whatever deltaT says"


def test_importance_and_score() -> None:
    """I = |w g|; I' = b1 I' + (1 - b1) I; U = b2 U + (1 - b2) |I - I'|; s = I' U, of E, of A's row and B's column."""
    view = made(beta1=0.6, beta2=0.7)
    a = view.up.adapters["default"]
    mean, spread_ = [{n: torch.zeros_like(getattr(a, n)) for n in "ABE"} for _ in range(2)]
    for step in range(3):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        view.zero_grad()
        view(x).square().mean().backward()
        view.update_and_allocate(step)
        for n in "ABE":
            now = (getattr(a, n) * getattr(a, n).grad).abs().detach()
            mean[n] = 0.6 * mean[n] + 0.4 * now
            spread_[n] = 0.7 * spread_[n] + 0.3 * (now - mean[n]).abs()
    s = {n: mean[n] * spread_[n] for n in "ABE"}
    expected = [s["E"][i, 0] + s["A"][i].sum() / 8 + s["B"][:, i].sum() / 16 for i in range(4)]
    close(a.scores(), torch.stack(expected))
    assert float(a.scores().min()) > 0


def test_a_schedule_leaves_the_target_budget() -> None:
    view = made()
    optimizer = train(view, range(4))
    assert view.peft_config["default"].rank_pattern is None
    kept = []
    for step in range(4, 18):
        train(view, range(step, step + 1), optimizer)
        pattern = view.peft_config["default"].rank_pattern
        kept.append(8 if pattern is None else sum(map(sum, pattern.values())))
    assert kept == sorted(kept, reverse=True) and kept[0] < 8 and kept[-1] == 4
    pattern = view.peft_config["default"].rank_pattern
    assert list(pattern) == ["up.lora_E", "down.lora_E"]
    for a, rows in zip(adapters(view), pattern.values(), strict=True):
        assert torch.equal(a.E[:, 0] != 0, torch.tensor(rows))


def test_ranks_that_are_to_stay_stay() -> None:
    view = made(target_r=4)
    train(view, range(16))
    assert view.peft_config["default"].rank_pattern is None and all(bool(a.E.all()) for a in adapters(view))


@pytest.mark.parametrize("at", [1, 7, 13, 15])
def test_a_run_resumed_in_mid_schedule_is_the_same_bit_for_bit(at: int, tmp_path: Path) -> None:
    whole = made()
    optimizer = train(whole, range(at))
    whole.save_pretrained(tmp_path)
    state = copy.deepcopy(optimizer.state_dict())
    fresh = PeftModel.from_pretrained(mlp(dtype=torch.float64), tmp_path, is_trainable=True)
    other = made(seed=99)
    train(other, range(5))  # has a state of its own, which must go
    other.load_adapter(tmp_path, "default", is_trainable=True)
    for view in (fresh, other):
        assert view.peft_config["default"].rank_pattern == whole.peft_config["default"].rank_pattern
        assert all(torch.equal(a, b) for a, b in zip(everything(view), everything(whole), strict=True))
    train(whole, range(at, 18), optimizer)
    for view in (fresh, other):
        again = torch.optim.AdamW([p for p in view.parameters() if p.requires_grad], lr=0.03)
        again.load_state_dict(copy.deepcopy(state))
        train(view, range(at, 18), again)
        assert view.peft_config["default"].rank_pattern == whole.peft_config["default"].rank_pattern
        assert all(torch.equal(a, b) for a, b in zip(everything(view), everything(whole), strict=True))


def test_modules_trained_in_full_are_resumed_too(tmp_path: Path) -> None:
    fields = {"target_modules": ["up"], "modules_to_save": ["down"]}
    view, x = made(**fields), torch.randn(3, 8, dtype=torch.float64)
    for step in range(9):
        view(x).square().sum().backward()
        with torch.no_grad():
            for p in view.parameters():
                if p.grad is not None:
                    p.sub_(0.01 * p.grad)
        view.update_and_allocate(step)
        view.zero_grad()
    view.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(mlp(dtype=torch.float64), tmp_path, is_trainable=True)
    assert torch.equal(again(x), view(x)) and not torch.equal(again(x), view.unload()(x))


def test_the_state_is_all_that_resuming_needs(tmp_path: Path) -> None:
    """Without the averages the same run prunes differently: so does peft."""
    whole = made()
    optimizer = train(whole, range(7))
    whole.save_pretrained(tmp_path)
    assert (tmp_path / STATE_NAME).is_file()
    poor = PeftModel.from_pretrained(mlp(dtype=torch.float64), tmp_path, is_trainable=True)
    for a in adapters(poor):
        for n in "ABE":
            a.tracked(n)[1].zero_(), a.tracked(n)[2].zero_()
    again = torch.optim.AdamW([p for p in poor.parameters() if p.requires_grad], lr=0.03)
    again.load_state_dict(optimizer.state_dict())
    train(whole, range(7, 9), optimizer)
    train(poor, range(7, 9), again)
    assert not all(torch.equal(a, b) for a, b in zip(everything(poor), everything(whole), strict=True))


def test_the_file_for_inference_holds_the_kept_rows(tmp_path: Path) -> None:
    view, x = made(), torch.randn(3, 8, dtype=torch.float64)
    train(view, range(16))
    view.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(mlp(dtype=torch.float64), tmp_path)
    close(again(x), view(x))
    kept = [sum(rows) for rows in view.peft_config["default"].rank_pattern.values()]
    assert [len(a.A) for a in adapters(again)] == kept and sum(kept) == 4
    assert not list(adapters(again)[0].buffers())
    assert view.get_nb_trainable_parameters()[0] > sum(p.numel() for a in adapters(again) for p in a.parameters())
    again.set_adapter("default")  # to be trained at its ranks
    again(x).square().sum().backward()
    assert all(p.grad is not None for a in adapters(again) for p in a.parameters())
    with pytest.raises(StateError, match="made for inference: its ranks are fixed"):
        again.update_and_allocate(3)


def test_pruned_rows_alone_are_no_state(tmp_path: Path) -> None:
    view = made()
    train(view, range(16))
    view.save_pretrained(tmp_path, training_state=False)
    with (
        pytest.warns(InlayWarning, match=f"has no {STATE_NAME}"),
        pytest.raises(StateError, match="load it with is_trainable=False"),
    ):
        PeftModel.from_pretrained(mlp(dtype=torch.float64), tmp_path, is_trainable=True)
    unpruned = made()
    with pytest.warns(InlayWarning, match="has no"), pytest.raises(MismatchError):
        unpruned.load_adapter(tmp_path, "default", is_trainable=True)


def test_unpruned_rows_can_be_trained_on_with_a_warning(tmp_path: Path) -> None:
    view, x = made(), torch.randn(3, 8, dtype=torch.float64)
    view.save_pretrained(tmp_path, training_state=False)
    with pytest.warns(InlayWarning, match=f"has no {STATE_NAME}"):
        again = PeftModel.from_pretrained(mlp(dtype=torch.float64), tmp_path, is_trainable=True)
    assert torch.equal(again(x), view(x))
    train(again, range(16))
    assert sum(map(sum, again.peft_config["default"].rank_pattern.values())) == 4


def test_the_penalty_is_in_the_loss_of_training_only() -> None:
    config = AdaLoraConfig(init_r=3, target_r=1, total_step=9, target_modules=["q_proj"], orth_reg_weight=0.25)
    view = scramble(get_peft_model(llama(dtype=torch.float64), config), 0.3)
    own = [layer.self_attn.q_proj.adapters["default"] for layer in view.model.layers]
    eye = torch.eye(3, dtype=torch.float64)
    expected = 0.25 * sum((a.A @ a.A.T - eye).norm() + (a.B.T @ a.B - eye).norm() for a in own) / 4
    plain = view.eval()(ids(), labels=ids()).loss
    close(view.train()(ids(), labels=ids()).loss.double(), plain.double() + expected, 1e-6, 1e-6)
    with torch.no_grad():
        assert torch.equal(view(ids(), labels=ids()).loss, plain)
    view.eval()
    with view.disable_adapter():
        assert view._inlay.penalty() is None
    view.set_adapter("default", inference_mode=True)
    assert torch.equal(view.train()(ids(), labels=ids()).loss, plain), "an adapter that is not trained has no penalty"


def test_without_gradients_there_is_nothing_to_allocate_by() -> None:
    with pytest.raises(StateError, match=r"after optimizer.step\(\) and before zero_grad\(\)"):
        made().update_and_allocate(1)


def test_two_adapters_are_trained_with_schedules_of_their_own() -> None:
    """peft allows one trainable AdaLoRA adapter."""
    view = made()
    view.add_adapter("other", AdaLoraConfig(**{**FIELDS, "init_r": 3, "target_r": 1}))
    view.set_adapter(["default", "other"])
    scramble(view)
    train(view, range(16))
    kept = [sum(map(sum, view.peft_config[name].rank_pattern.values())) for name in ("default", "other")]
    assert kept == [4, 2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"total_step": None}, "total_step=None is not allowed: expected the number of optimizer steps"),
        ({"target_r": 5}, "target_r=5 is not allowed: expected at most init_r=4. Ranks only fall"),
        ({"tinit": 13}, "tinit=13 is not allowed: expected less than total_step - tfinal = 13"),
        ({"deltaT": 0}, "deltaT=0 is not allowed"),
        ({"beta1": 1}, "beta1=1 is not allowed: expected a number between 0 and 1"),
        ({"orth_reg_weight": -0.1}, "orth_reg_weight=-0.1 is not allowed"),
        ({"init_lora_weights": "gaussian"}, "init_lora_weights='gaussian' is not allowed"),
        (
            {"rank_pattern": {"up.lora_E": [True]}},
            r"rank_pattern=.* expected a dict from path .* to 4 \(init_r\) times",
        ),
        ({"use_dora": True}, "AdaLoraConfig does not implement `use_dora`"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdaLoraConfig(**{**FIELDS, **fields})


def test_r_is_said_to_have_no_effect() -> None:
    with pytest.warns(InlayWarning, match="r=4 has no effect on AdaLoRA: the ranks are init_r=4 and target_r=2"):
        AdaLoraConfig(**FIELDS, r=4)
