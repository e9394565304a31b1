"""PiSSA and OLoRA against decompositions in float64; what inits from data ask for and keep."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inlay import (
    LoraConfig,
    PeftModel,
    get_eva_state_dict,
    get_peft_model,
    initialize_lora_eva_weights,
    preprocess_corda,
    preprocess_loraga,
    replace_lora_weights_loftq,
)
from inlay.errors import ConfigError, InlayWarning, MismatchError, NumericsError, StateError
from inlay.methods.lora.inits.corda import corda
from inlay.methods.lora.inits.eva import real_tokens
from inlay.methods.lora.inits.loftq import NF4, int8, loftq, nf4
from inlay.methods.lora.inits.lora_ga import LoraGAConfig, lora_ga
from inlay.methods.lora.inits.olora import olora
from inlay.methods.lora.inits.pissa import low_rank_svd, pissa, pissa_iterations
from tests.tiny import close, ids, mlp, net, same, scramble, snapshot


def decaying(rows: int = 12, columns: int = 9) -> Tensor:
    """A matrix with singular values 1, 1/2, 1/4, ..."""
    u, _ = torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(columns, columns, dtype=torch.float64))
    return u * 0.5 ** torch.arange(columns) @ v.T


# ---------------------------------------------------------------------- pissa, olora


@pytest.mark.parametrize("iterations", [0, 30])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_pissa_is_the_best_approximation(iterations: int, scale: float) -> None:
    w = decaying()
    a, b = pissa(w, 3, scale, iterations)
    s = torch.linalg.svdvals(w)
    close(torch.linalg.svdvals(w - scale * b @ a)[0], s[3], 1e-8, 1e-8)
    close(torch.linalg.svdvals(a), (s[:3] / scale).sqrt(), 1e-8, 1e-8)
    close(torch.linalg.svdvals(b), (s[:3] / scale).sqrt(), 1e-8, 1e-8)


def test_iterating_repeats_and_leaves_the_seed_alone() -> None:
    w, state = decaying(), torch.get_rng_state()
    first = low_rank_svd(w, 3, 2)
    torch.manual_seed(99)
    assert all(torch.equal(x, y) for x, y in zip(first, low_rank_svd(w, 3, 2), strict=True))
    torch.set_rng_state(state)
    low_rank_svd(w, 3, 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_names_of_pissa() -> None:
    assert [
        pissa_iterations(x) for x in ("pissa", "pissa_niter_16", "pissa_niter_", "pissa_niter_N", "PISSA", True)
    ] == [
        *(0, 16),
        *[None] * 4,
    ]
    for bad in ("pissa_niter_x", "pisa", "corrda"):
        with pytest.raises(ConfigError, match="init_lora_weights="):
            LoraConfig(init_lora_weights=bad)


def test_olora_is_the_start_of_qr() -> None:
    w = decaying()
    a, b = olora(w, 3)
    close(b.T @ b, torch.eye(3, dtype=torch.float64))
    close((w - b @ a)[:, :3], torch.zeros(12, 3, dtype=torch.float64))
    close(b.T @ (w - b @ a), torch.zeros(3, 9, dtype=torch.float64))


# ---------------------------------------------------------------------- corda, lora_ga


def test_corda_is_the_part_that_inputs_see() -> None:
    w, x = decaying(), torch.randn(200, 9, dtype=torch.float64)
    c = x.T @ x
    damped = c + 0.01 * c.diagonal().mean() * torch.eye(9)
    for largest in (True, False):
        a, b = corda(w, c, 3, 2.0, largest)
        s = torch.linalg.svdvals(w @ damped)
        rest = torch.linalg.svdvals((w - 2 * b @ a) @ damped)
        close(rest[:6], s[3:] if largest else s[:6], 1e-7, 1e-7)
    assert torch.isfinite(corda(w, torch.zeros(9, 9).double() + 1, 3, 1.0)[0]).all(), "a singular C is damped more"


@pytest.mark.parametrize("scale", ["stable", "weight_svd", "gd_scale", "unit"])
def test_lora_ga_splits_the_gradients_directions(scale: str) -> None:
    g, w = decaying(), torch.randn(12, 9, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(g)
    a, b = lora_ga(w, g, 2, 4.0, LoraGAConfig(direction="ArB2r", scale=scale, stable_gamma=4))
    factor = {
        "stable": 12**0.25 / 2,
        "weight_svd": float(torch.linalg.svdvals(w)[0] / s[2]),
        "gd_scale": 0.25,
        "unit": 1.0,
    }[scale]
    close(a.abs(), vh[:2].abs() * (0.25 if scale == "gd_scale" else 1), 1e-6, 1e-6)
    close(b.abs(), (u[:, 2:4] * s[2:4]).abs() * factor, 1e-6, 1e-6)
    rows = lora_ga(w, g, 2, 1.0, LoraGAConfig(direction="ArBr", scale="unit"))
    close(rows[0].abs(), vh[[1, 3]].abs(), 1e-6, 1e-6)
    close(rows[1].abs(), (u[:, [0, 2]] * s[[0, 2]]).abs(), 1e-6, 1e-6)


def prepared(init: str, base: Any, **fields: Any) -> LoraConfig:
    config = LoraConfig(**{"target_modules": ["fc", "embed"], "r": 2, "init_lora_weights": init, **fields})

    def run() -> None:
        loss = base(ids()).square().mean()
        if init == "lora_ga":
            loss.backward()

    (preprocess_corda if init == "corda" else preprocess_loraga)(base, config, run)
    return config


@pytest.mark.parametrize("init", ["corda", "lora_ga"])
def test_inits_from_data_are_saved_as_plain_lora(init: str, tmp_path: Path) -> None:
    base = net(dtype=torch.float64)
    before, flags = snapshot(base), {n: p.requires_grad for n, p in base.named_parameters()}
    config = prepared(init, base)
    assert same(snapshot(base), before) and {n: p.requires_grad for n, p in base.named_parameters()} == flags
    assert all(p.grad is None for p in base.parameters())
    assert not any(m._forward_pre_hooks or m._backward_hooks for m in base.modules())
    view = get_peft_model(base, config)
    close(view(ids()), base(ids()))
    a = view.fc.adapters["default"]
    assert a.A0.any() and a.A.shape == (2, 8) and view.embed.adapters["default"].A0 is None
    scramble(view)
    y = view(ids())
    view.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base, tmp_path)
    close(again(ids()), y)
    assert (again.peft_config["default"].r, again.peft_config["default"].init_lora_weights) == (4, True)
    # and into the adapter that it is of, to train on
    scramble(view, seed=8)
    view.load_adapter(tmp_path, "default", is_trainable=True)
    close(view(ids()), y)


@pytest.mark.parametrize("init", ["corda", "lora_ga"])
def test_statistics_are_shared_by_copies_and_in_no_file(init: str) -> None:
    config = prepared(init, net())
    assert copy.deepcopy(config).prepared is config.prepared and set(config.prepared) == {"fc"}
    assert pickle.loads(pickle.dumps(config)).prepared == {}
    assert "prepared" not in config.to_dict() and config.to_dict()["r"] == 2
    with pytest.raises(ConfigError, match=r"was called with another rank or model: at 'fc' it found A0: \(2, 8\)"):
        get_peft_model(net(), config.replaced(r=3))


@pytest.mark.parametrize("init", ["corda", "lora_ga"])
def test_without_statistics_it_is_an_error(init: str) -> None:
    with pytest.raises(ConfigError, match=f"call preprocess_{init.replace('_', '')}"):
        get_peft_model(net(), LoraConfig(target_modules=["fc"], r=2, init_lora_weights=init))


def test_what_preprocessing_refuses() -> None:
    base = net()
    plain = LoraConfig(target_modules=["fc"], r=2)
    for function in (preprocess_corda, preprocess_loraga):
        with pytest.raises(ConfigError, match="init_lora_weights=True is not allowed"):
            function(base, plain, lambda: None)
    own = LoraConfig(target_modules=["fc"], r=2, init_lora_weights="corda", corda_config={"cache_file": "x"})
    with pytest.raises(ConfigError, match="cache_file='x' is not allowed: expected None"):
        preprocess_corda(base, own, lambda: None)
    with pytest.raises(StateError, match="did not reach 'fc'"):
        preprocess_corda(
            base, plain.replaced(init_lora_weights="corda", corda_config=own.corda_config.__class__()), int
        )
    with pytest.raises(StateError, match="gave 'fc', which is targeted, no gradient"):
        preprocess_loraga(base, LoraConfig(target_modules=["fc"], r=2, init_lora_weights="lora_ga"), int)
    bad = LoraConfig(target_modules=["0"], r=2, init_lora_weights="corda")
    layer = nn.Sequential(nn.Linear(8, 6))
    with pytest.raises(NumericsError, match="an input of '0' is NaN"):
        preprocess_corda(layer, bad, lambda: layer(torch.zeros(2, 8)))
    large = LoraConfig(target_modules=["0"], r=4, init_lora_weights="lora_ga")
    with pytest.raises(ConfigError, match="r=4 is not allowed: expected at most 3"):
        preprocess_loraga(layer, large, lambda: layer(torch.randn(2, 8)).sum().backward())


def test_parts_of_the_config() -> None:
    config = LoraConfig(init_lora_weights="lora_ga", lora_ga_config={"direction": "ArBr"})
    assert config.lora_ga_config == LoraGAConfig(direction="ArBr")
    assert config.to_dict()["lora_ga_config"] == {"direction": "ArBr", "scale": "stable", "stable_gamma": 16}
    assert LoraConfig(init_lora_weights="eva").eva_config is not None
    with pytest.warns(InlayWarning, match="eva_config has no effect unless init_lora_weights='eva'; it is True"):
        LoraConfig(eva_config={})
    for field, value, message in (
        ("lora_ga_config", {"directon": "ArBr"}, "field='directon' is not allowed.*direction"),
        ("lora_ga_config", {"scale": "x"}, "scale='x' is not allowed"),
        ("eva_config", {"rho": 0.5}, "rho=0.5 is not allowed"),
        ("eva_config", {"tau": 2}, "tau=2 is not allowed"),
        ("eva_config", 3, "eva_config=3 is not allowed: expected a EvaConfig"),
        ("corda_config", {"corda_method": "x"}, "one of 'ipm', 'kpm'"),
    ):
        with pytest.raises(ConfigError, match=message):
            LoraConfig(init_lora_weights=field.removesuffix("_config"), **{field: value})


# ---------------------------------------------------------------------- eva


class Two(nn.Module):
    """Two layers on the same input, and one on another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(10, 4), nn.Linear(10, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.a(x) + self.b(x)))  # type: ignore[no-any-return]


def batches(n: int = 3) -> list[Tensor]:
    """Inputs that vary in three directions only, by 3, 2 and 1."""
    made = torch.Generator().manual_seed(1)
    directions = torch.linalg.qr(torch.randn(10, 3, generator=made))[0].T
    return [torch.randn(64, 3, generator=made) * torch.tensor([3.0, 2.0, 1.0]) @ directions + 5 for _ in range(n)]


EVERYTHING: dict[str, Any] = {
    "forward_fn": lambda model, x: model(x),
    "prepare_model_inputs_fn": None,
    "prepare_layer_inputs_fn": None,
}


def eva(rho: float = 2.0, **fields: Any) -> Any:
    config = LoraConfig(target_modules=["a", "b", "c"], r=2, init_lora_weights="eva", eva_config={"rho": rho, **fields})
    torch.manual_seed(0)
    return get_peft_model(Two().eval(), config)


def test_eva_finds_the_principal_directions_and_deals_by_variance() -> None:
    view = eva()
    state = get_eva_state_dict(view, batches(), **EVERYTHING)
    x = torch.cat(batches()).double()
    _, _, vh = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    cos = F.cosine_similarity(state["a"].double(), vh[: len(state["a"])]).abs()
    assert len(state["a"]) >= 2 and float(cos.min()) > 0.99
    ranks = {path: len(v) for path, v in state.items()}
    assert sum(ranks.values()) == 6 and ranks["a"] >= ranks["b"] and ranks["a"] <= 4
    assert torch.equal(state["a"][: ranks["b"]], state["b"])
    even = get_eva_state_dict(eva(rho=1.0), batches(), **EVERYTHING)
    assert {len(v) for v in even.values()} == {2}
    white = get_eva_state_dict(eva(rho=1.0, whiten=True), batches(), **EVERYTHING)["a"]
    torch.testing.assert_close(F.normalize(white, dim=1).abs(), even["a"].abs(), atol=1e-5, rtol=1e-5)
    assert float(white[0].norm()) < float(white[1].norm())


def test_eva_makes_the_adapter_anew(tmp_path: Path) -> None:
    view = eva()
    base = view.unload()
    x = torch.randn(3, 10)
    y = base(x)
    state = {"a": torch.randn(4, 10), "b": torch.randn(2, 10), "c": torch.randn(0, 4)}
    assert initialize_lora_eva_weights(view, eva_state_dict=state) is view
    torch.testing.assert_close(view(x), y)
    config = view.peft_config["default"]
    assert (sorted(config.target_modules), config.rank_pattern, config.alpha_pattern) == (
        ["a", "b"],
        {"a": 4},
        {"a": 16},
    )
    assert torch.equal(view.a.adapters["default"].A, state["a"]) and not view.a.adapters["default"].B.any()
    assert view.a.adapters["default"].scale == view.b.adapters["default"].scale == 4
    assert view.active_adapters == ["default"] and not hasattr(view.c, "adapters")
    assert {n for n, p in view.named_parameters() if p.requires_grad} == {
        f"{layer}.adapters.default.lora_{m}" for layer in "ab" for m in "AB"
    }
    scramble(view).save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(base, tmp_path)(x), view(x))
    kept = eva(adjust_scaling_factors=False)
    initialize_lora_eva_weights(kept, eva_state_dict=state)
    assert kept.a.adapters["default"].scale == 2 and kept.peft_config["default"].alpha_pattern == {}


def test_eva_leaves_the_model_as_it_was() -> None:
    base = Two().train()
    before = snapshot(base)
    config = LoraConfig(target_modules=["a", "b", "c"], r=2, init_lora_weights="eva")
    state = get_eva_state_dict(base, batches(), config, **EVERYTHING)
    assert set(state) == {"a", "b", "c"} and base.training and same(snapshot(base), before)
    assert not any(m._forward_pre_hooks for m in base.modules())


def test_eva_on_a_view_for_a_task_whose_heads_the_model_lacks() -> None:
    base, heads = Two().eval(), ["classifier", "score"]
    base.classifier = nn.Linear(4, 2)  # and no "score", which peft's configs name too
    fields: dict[str, Any] = {"target_modules": ["a", "b", "c"], "modules_to_save": heads, "r": 2}
    view = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", init_lora_weights="eva", **fields))
    assert set(get_eva_state_dict(view, batches(), **EVERYTHING)) == {"a", "b", "c"}


def test_eva_takes_labels_of_tokens_as_a_mask_but_not_those_of_rows() -> None:
    config = LoraConfig(init_lora_weights="eva")
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    inputs = {"input_ids": torch.zeros(2, 3), "attention_mask": mask}
    assert real_tokens({**inputs, "labels": torch.tensor([0, 1])}, config).tolist() == mask.nonzero().tolist()
    labels = torch.tensor([[-100, 5, -100], [-100, -100, 5]])
    assert real_tokens({**inputs, "labels": labels}, config).tolist() == [[0, 1], [1, 2]]


def test_what_eva_refuses() -> None:
    view = eva()
    with pytest.raises(ConfigError, match="of known length"):
        get_eva_state_dict(view, [], **EVERYTHING)
    with pytest.raises(ConfigError, match="batches, unless eva_state_dict is given"):
        initialize_lora_eva_weights(view)
    with pytest.raises(ConfigError, match=r"eva_state_dict=\['z'\] is not allowed"):
        initialize_lora_eva_weights(view, eva_state_dict={"z": torch.zeros(2, 10)})
    with pytest.raises(StateError, match="do not settle in 100 passes"):
        get_eva_state_dict(view, [torch.randn(1, 10)], **EVERYTHING)
    assert not view.training
    with pytest.raises(ConfigError, match="init_lora_weights=True is not allowed: expected 'eva'"):
        initialize_lora_eva_weights(get_peft_model(mlp(), LoraConfig(target_modules=["up"])), batches())


# ---------------------------------------------------------------------- loftq


def test_the_levels_of_nf4_are_quantiles_of_the_normal_distribution() -> None:
    stats = pytest.importorskip("scipy.stats")
    top = 0.9677083
    positive = stats.norm.ppf(torch.linspace(top, 0.5, 9, dtype=torch.float64)[:-1].numpy())
    negative = -stats.norm.ppf(torch.linspace(top, 0.5, 8, dtype=torch.float64)[:-1].numpy())
    levels = torch.tensor(sorted([*negative, 0.0, *positive]), dtype=torch.float64)
    close(levels / levels.max(), torch.tensor(NF4, dtype=torch.float64), 1e-5, 1e-5)


def test_quantising_takes_the_nearest_level() -> None:
    w = torch.randn(5, 39, dtype=torch.float64)  # 195: three blocks and 3 more
    flat, got = w.flatten(), nf4(w).flatten()
    for start in range(0, 195, 64):
        block = flat[start : start + 64]
        levels = torch.tensor(NF4, dtype=torch.float64) * block.abs().max()
        close(got[start : start + 64], levels[(block[:, None] - levels).abs().argmin(1)])
    assert torch.equal(nf4(nf4(w)), nf4(w)) and not nf4(torch.zeros(3, 3)).any()
    step = w.abs().amax(1, keepdim=True) / 127
    assert float(((int8(w) - w).abs() / step).max()) <= 0.5 + 1e-9
    close(int8(w) / step, (int8(w) / step).round(), 1e-9, 1e-9)


@pytest.mark.parametrize("bits", [4, 8])
def test_loftq_is_nearer_with_every_iteration(bits: int) -> None:
    w = torch.randn(48, 64, dtype=torch.float64)
    errors = [float((w - q - 2.5 * b @ a).norm()) for q, a, b in (loftq(w, 8, 2.5, bits, n) for n in (1, 5))]
    plain = float((w - (nf4 if bits == 4 else int8)(w)).norm())
    assert errors[1] < errors[0] < plain
    for wrong in ({"bits": 2}, {"iterations": 0}):
        with pytest.raises(ConfigError, match="is not allowed"):
            loftq(w, 8, **wrong)


def test_an_adapter_on_a_quantised_base_starts_nearer_to_the_original() -> None:
    from transformers.pytorch_utils import Conv1D

    original = nn.Sequential(nn.Linear(64, 48), Conv1D(32, 48))
    base = copy.deepcopy(original)
    with torch.no_grad():
        for layer in base:
            layer.weight.copy_(nf4(layer.weight))
    before = snapshot(base)
    view = get_peft_model(base, LoraConfig(target_modules=["0", "1"], r=8, lora_alpha=4))
    replace_lora_weights_loftq(view, original)
    assert same(snapshot(base), before)
    merged = view.merge_and_unload()
    for own, quantised, whole in zip(merged, base, original, strict=True):
        lost = (whole.weight - quantised.weight).double().detach()
        rest = torch.linalg.svdvals(lost)[8:].square().sum().sqrt()
        close((whole.weight - own.weight).double().detach().norm(), rest, 1e-4, 1e-4)
    kept: list[str] = []
    other = get_peft_model(base, LoraConfig(target_modules=["0", "1"], r=8))
    a = other[1].adapters["default"].A.detach().clone()
    replace_lora_weights_loftq(
        other, original.state_dict(), callback=lambda _, path: not kept.append(path) and path == "0"
    )  # type: ignore[func-returns-value]
    assert kept == ["0", "1"] and other[0].adapters["default"].B.any()
    assert torch.equal(other[1].adapters["default"].A, a) and not other[1].adapters["default"].B.any()


def test_what_loftq_refuses() -> None:
    base = nn.Sequential(nn.Linear(8, 6))
    with pytest.raises(ConfigError, match="call replace_lora_weights_loftq"):
        LoraConfig(init_lora_weights="loftq")
    view = get_peft_model(base, LoraConfig(target_modules=["0"], r=2))
    with pytest.raises(MismatchError, match=r"`weights` has no 0.weight of shape \(6, 8\)"):
        replace_lora_weights_loftq(view, {})
    with pytest.raises(ConfigError, match="LoftQ starts plain LoRA adapters"):
        replace_lora_weights_loftq(get_peft_model(base, LoraConfig(target_modules=["0"], use_dora=True)), base)
    with pytest.raises(ConfigError, match="r=7 is not allowed: expected at most 6"):
        replace_lora_weights_loftq(get_peft_model(base, LoraConfig(target_modules=["0"], r=7)), base)
