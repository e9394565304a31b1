"""Adapters of every method as LoRA: what it computes, its ranks, its report, its file, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inlay import (
    BitFitConfig,
    ConversionReport,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PeftModel,
    PromptTuningConfig,
    VeraConfig,
    convert_to_lora,
    get_peft_model,
    inject_adapter_in_model,
    save_as_lora,
    set_peft_model_state_dict,
)
from inlay.core.host import canonical
from inlay.errors import ConfigError, NumericsError, StateError
from inlay.merge.convert import approximate
from tests.contract.cases import kinds, methods, targets
from tests.tiny import HOSTS, Mlp, close, ids, llama, made, mlp, net, outline, scramble, snapshot

X = torch.linspace(-1, 1, 16, dtype=torch.float64).view(2, 8)


@torch.no_grad()
def out(model: Any, x: Tensor = X) -> Tensor:
    y = model(x)
    return y if isinstance(y, Tensor) else y.logits


def change(view: Any, path: str, name: str = "default") -> Tensor:
    """D of one layer, in float64."""
    host = view.get_submodule(path)
    w = canonical(host, host.weight).detach().double()
    return (host.adapters[name].double().weight(w) - w).detach()


def oft(base: Any, **fields: Any) -> Any:
    """A view of an `Mlp` with a method whose D has full rank."""
    fields = {"target_modules": ["up", "down"], "oft_block_size": 4, "r": 0, **fields}
    return scramble(get_peft_model(base, OFTConfig(**fields)))


# ---------------------------------------------------------------------- what it computes


@pytest.mark.parametrize("make", methods())
def test_a_share_of_all_is_the_adapter_and_other_methods_are_refused(make: Any, tmp_path: Path) -> None:
    base = net(dtype=torch.float64)
    where = [t for t in targets(make) if t not in HOSTS["module"]] or targets(make)
    view = scramble(get_peft_model(base, make(target_modules=where))).eval()
    adapters = view._inlay.placed["default"].items()
    shifts = any(
        a.mergeable and a.bias(b := getattr(base.get_submodule(p), "bias", None)) is not b for p, a in adapters
    )
    possible = all(a.mergeable and not a.replaces_host for _, a in adapters) and not shifts
    assert view.supports_lora_conversion() == possible
    if not possible:
        with pytest.raises(
            ConfigError, match=r"Adapter 'default' \([A-Z0-9_]+\) cannot be written as LoRA: \w+ at '\w+' "
        ):
            convert_to_lora(view, 1.0)
        return
    before, own = snapshot(base), snapshot(view)
    report = save_as_lora(tmp_path, view, 1.0)
    assert max(report.errors.values()) < 1e-6
    again = PeftModel.from_pretrained(base, tmp_path)
    y = out(view, ids())
    close(out(again, ids()), y, 1e-5, 1e-5)
    assert (y - out(base, ids())).abs().max() > 1e-3
    assert all(torch.equal(before[k], t) for k, t in snapshot(base).items())
    assert all(torch.equal(own[k], t) for k, t in snapshot(view).items())


def test_every_convertible_kind_of_host_is_among_those() -> None:
    found = {kind for p in methods() for kind in kinds(p.values[0])}  # type: ignore[arg-type]
    assert found >= {"linear", "embedding", "conv1d", "conv2d", "conv3d"}


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_a_rank_gives_the_best_approximation_and_its_error(rank: int) -> None:
    """Eckart and Young: ||D - D_k||^2 is the sum of the squares of the singular values that are left out."""
    view = oft(mlp(dtype=torch.float64))
    config, tensors = convert_to_lora(view, rank)
    report = approximate(view, rank).report
    assert (config.r, config.lora_alpha, config.rank_pattern) == (rank, rank, {})
    for path in ("up", "down"):
        a, b = (tensors[f"base_model.model.{path}.lora_{x}.weight"] for x in "AB")
        d = change(view, path)
        assert a.shape == (rank, d.shape[1]) and b.shape == (d.shape[0], rank)
        u, s, v = torch.linalg.svd(d)
        close(b.double() @ a.double(), u[:, :rank] * s[:rank] @ v[:rank], 1e-5, 1e-6)
        expected = float(s[rank:].norm() / s.norm())
        assert abs(report.errors[path] - expected) < 1e-6 and expected > 0.01
    assert report.worst == max(report.errors.items(), key=lambda item: item[1])
    assert str(report).startswith(f"2 layers, rank {rank}; largest relative error ")


@pytest.mark.parametrize(
    ("config", "exact"),
    [
        (LoraConfig(r=3, target_modules=["up", "down"]), 3),
        (LoraConfig(r=3, target_modules=["up", "down"], init_lora_weights="pissa"), 6),
        (VeraConfig(r=2, target_modules=["up", "down"]), 2),
        (MissConfig(r=3, target_modules=["up", "down"]), 3),
    ],
    ids=["lora", "pissa", "vera", "miss"],
)
def test_what_has_a_low_rank_is_exact_at_it(config: Any, exact: int) -> None:
    view = scramble(get_peft_model(mlp(dtype=torch.float64), config))
    assert approximate(view, exact).report.worst[1] < 1e-6
    assert set(approximate(view, 1.0).report.ranks.values()) == {exact}
    assert approximate(view, exact - 1).report.worst[1] > 1e-3


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_share_gives_each_layer_the_least_rank_that_keeps_it(share: float, tmp_path: Path) -> None:
    view = oft(mlp(dtype=torch.float64))
    made = approximate(view, share)
    for path, k in made.report.ranks.items():
        energy = torch.linalg.svdvals(change(view, path)).square()
        kept = energy.cumsum(0) / energy.sum()
        assert kept[k - 1] >= share - 1e-9 and (k == 1 or kept[k - 2] < share)
        assert made.config.rank(path) == k and made.config.scale(path) == 1.0
        assert made.report.errors[path] <= (1 - share) ** 0.5 + 1e-6
    save_as_lora(tmp_path, view, share)
    again = PeftModel.from_pretrained(view.unload(), tmp_path)
    for path in ("up", "down"):
        close(change(again, path), change(view, path), 1, 2 * (1 - share) ** 0.5)


def test_ranks_that_a_layer_does_not_have() -> None:
    """Those of a layer end at its smaller side, and are multiples of its groups."""
    view = scramble(get_peft_model(net(), LoHaConfig(r=4, target_modules=["fc", "head", "conv1", "conv2"])))
    assert approximate(view, 7).report.ranks == {"conv1": 8, "conv2": 4, "fc": 6, "head": 5}
    config, _ = convert_to_lora(view, 7)
    assert [config.rank(p) for p in ("conv1", "conv2", "fc", "head")] == [8, 4, 6, 5]


def test_an_adapter_that_changes_nothing_yet() -> None:
    view = get_peft_model(mlp(), LoraConfig(r=4, target_modules=["up"]))
    for rank in (1, 0.5, 1.0):
        made = approximate(view, rank)
        assert made.report == ConversionReport({"up": 1}, {"up": 0.0})
        assert not any(t.isnan().any() for t in made.state_dict.values())


# ---------------------------------------------------------------------- names, dtypes, circumstances


def test_only_the_layers_it_was_in_also_where_names_end_alike(tmp_path: Path) -> None:
    base = made(lambda: nn.ModuleDict({"up": nn.Linear(8, 8), "x": nn.ModuleDict({"up": nn.Linear(8, 8)})}))
    view = scramble(get_peft_model(base, LoHaConfig(r=2, target_modules=r"up")))
    config, tensors = convert_to_lora(view, 0.9)
    assert set(tensors) == {"base_model.model.up.lora_A.weight", "base_model.model.up.lora_B.weight"}
    save_as_lora(tmp_path, view, 0.9)
    again = PeftModel.from_pretrained(base, tmp_path)
    assert list(again._inlay.placed["default"]) == ["up"] and again.peft_config["default"].r == config.r


def test_another_adapter_by_name_and_merged_ones() -> None:
    view = oft(mlp(dtype=torch.float64))
    view.add_adapter("other", LoraConfig(r=2, target_modules=["up"]))
    scramble(view)
    expected = approximate(view, 4).state_dict
    view.merge_adapter()
    assert all(torch.equal(t, expected[k]) for k, t in convert_to_lora(view, 4)[1].items())
    config, tensors = convert_to_lora(view, 2, "other")
    assert len(tensors) == 2 and config.target_modules == ["up"]
    with pytest.raises(StateError, match=r"There is no adapter 'others'"):
        convert_to_lora(view, 2, "others")


@pytest.mark.parametrize(("dtype", "auto"), [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float64, True)])
def test_its_dtype_is_the_adapters(dtype: torch.dtype, auto: bool) -> None:
    config = LoHaConfig(r=2, target_modules=["up"])
    view = scramble(get_peft_model(mlp(dtype=dtype), config, autocast_adapter_dtype=auto))
    own = next(view.up.adapters["default"].parameters()).dtype
    result = approximate(view, 4)
    assert {t.dtype for t in result.state_dict.values()} == {own}
    assert result.report.worst[1] < (0.01 if own == torch.bfloat16 else 1e-6)
    assert own == {(torch.bfloat16, True): torch.float32}.get((dtype, auto), dtype)


def test_heads_and_the_task_come_along(tmp_path: Path) -> None:
    base = llama(cls="LlamaForSequenceClassification", num_labels=3)
    view = scramble(get_peft_model(base, LoHaConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"])))
    x = ids() % 30 + 3
    save_as_lora(tmp_path, view, 4)
    again = PeftModel.from_pretrained(llama(cls="LlamaForSequenceClassification", num_labels=3), tmp_path)
    close(out(again, x), out(view, x), 1e-5, 1e-5)
    config = again.peft_config["default"]
    assert (config.task_type, config.modules_to_save, config.target_modules) == (
        "SEQ_CLS",
        ["score"],
        ["q_proj", "v_proj"],
    )


def test_models_changed_in_place_and_compiled_ones() -> None:
    model = scramble(inject_adapter_in_model(LoHaConfig(r=2, target_modules=["up"]), mlp()))
    y = out(model, X.float())
    config, tensors = convert_to_lora(torch.compile(model, backend="eager"), 4)
    again = inject_adapter_in_model(dataclasses.replace(config), mlp(), state_dict=tensors)
    close(out(again, X.float()), y, 1e-5, 1e-5)
    view = get_peft_model(mlp(), config)
    set_peft_model_state_dict(view, tensors)
    close(out(view, X.float()), y, 1e-5, 1e-5)


def test_a_progress_bar_and_a_compiled_decomposition(capsys: pytest.CaptureFixture[str]) -> None:
    view = oft(mlp())
    plain = approximate(view, 2)
    assert capsys.readouterr().err == ""
    _, tensors = convert_to_lora(view, 2, progressbar=True, compile_kwargs={"backend": "eager"})
    assert "Converting to LoRA" in capsys.readouterr().err
    assert all(torch.equal(t, tensors[k]) for k, t in plain.state_dict.items())


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("rank", [0, -1, True, 0.0, 1.5, -0.5, float("nan"), "8", None])
def test_ranks_that_are_none(rank: Any) -> None:
    view = oft(mlp())
    with pytest.raises(
        ConfigError, match=r"rank=.* is not allowed: expected a positive integer, or a share of the energy"
    ):
        convert_to_lora(view, rank)


def test_what_is_no_lora_is_an_error_that_names_layer_and_method(tmp_path: Path) -> None:
    base = made(lambda: nn.Sequential(Mlp(), nn.Linear(8, 8, bias=False), nn.LayerNorm(8)))
    cases = {
        r"\(LN_TUNING\) cannot be written as LoRA: LNTuning at '2' changes all of a LayerNorm, which LoRA cannot": (
            LNTuningConfig(target_modules=["2"])
        ),
        r"\(LN_TUNING\).* LNTuning at '0.up' changes all of a Linear": LNTuningConfig(target_modules=["0.up"]),
        r"\(BITFIT\).*BitFit at '0.up' changes the bias too": BitFitConfig(target_modules=["0.up"]),
        r"\(IA3\).*IA3Scale at '0.up' changes the bias too": IA3Config(target_modules=["0.up"], feedforward_modules=[]),
        r"\(BITFIT\).*BitFit at '2' changes a LayerNorm, which LoRA cannot": BitFitConfig(target_modules=["2"]),
        r"\(LORA\).*TrainedParameters at '0.up' changes the bias": LoraConfig(target_modules=["1"], bias="all"),
        r"\(LORA\).*LoraLinear at '0.up' changes the bias too": LoraConfig(target_modules=["0.up"], lora_bias=True),
    }
    for message, config in cases.items():
        view = scramble(get_peft_model(base, config))
        before = outline(view)
        assert not view.supports_lora_conversion()
        for call in (lambda v: convert_to_lora(v, 2), lambda v: save_as_lora(tmp_path / "none", v, 2)):
            with pytest.raises(ConfigError, match=message):
                call(view)
        assert outline(view) == before
    view = get_peft_model(llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ConfigError, match=r"\(PROMPT_TUNING\) cannot be written as LoRA"):
        convert_to_lora(view, 2)
    assert not (tmp_path / "none").exists()


def test_a_change_that_is_not_finite() -> None:
    view = oft(mlp())
    next(view.down.adapters["default"].parameters()).data[0] = float("nan")
    with pytest.raises(NumericsError, match=r"What OFTLinear at 'down' changes is not finite"):
        convert_to_lora(view, 2)
