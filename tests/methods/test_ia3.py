"""(IA)^3: scaled outputs and inputs, which of the targets have which, and what its config refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inlay import IA3Config, PeftModel, get_peft_model
from inlay.errors import ConfigError, TargetError
from tests.tiny import Mlp, close, ids, llama, made, mlp, scramble, snapshot


def l_of(view: Any, path: str) -> torch.Tensor:
    return view.get_submodule(path).adapters["default"].l.detach().flatten()  # type: ignore[no-any-return]


def test_the_formula() -> None:
    base = mlp(dtype=torch.float64)
    x = torch.randn(3, 8, dtype=torch.float64)
    view = get_peft_model(base, IA3Config(target_modules=["up", "down"], feedforward_modules=["down"]))
    assert torch.equal(view(x), base(x))
    assert bool((l_of(view, "up") == 1).all()) and bool((l_of(view, "down") == 1).all())
    scramble(view, 1.0)
    up, down = l_of(view, "up"), l_of(view, "down")
    assert up.shape == (16,) and down.shape == (16,)
    h = up * (x @ base.up.weight.T + base.up.bias)
    close(view(x), (down * h.relu()) @ base.down.weight.T + base.down.bias)


def test_it_starts_random_if_asked_to() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(4000, 4000))
    view = get_peft_model(layer, IA3Config(target_modules=["0"], feedforward_modules=[], init_ia3_weights=False))
    assert abs(float(l_of(view, "0").mean())) < 0.1 and abs(float(l_of(view, "0").std()) - 1) < 0.1


@pytest.mark.parametrize("inner", [False, True])
def test_groups_of_a_convolution_have_their_own_part_of_l(inner: bool) -> None:
    conv = made(lambda: nn.Conv2d(6, 4, 3, groups=2), dtype=torch.float64)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    config = IA3Config(target_modules=["0"], feedforward_modules=["0"] if inner else [])
    view = scramble(get_peft_model(nn.Sequential(conv), config), 1.0).eval()
    scale = l_of(view, "0").view(1, -1, 1, 1)
    if inner:
        expected = F.conv2d(x * scale, conv.weight, conv.bias, groups=2)
    else:
        expected = F.conv2d(x, conv.weight, conv.bias, groups=2) * scale
    close(view(x), expected)
    view.merge_adapter()
    close(view(x), expected)


def test_an_l_of_zero_survives_merging() -> None:
    base = mlp()
    x, before = torch.randn(3, 8), snapshot(base)
    view = get_peft_model(base, IA3Config(target_modules=["up"], feedforward_modules=[]))
    with torch.no_grad():
        view.up.adapters["default"].l[3:] = 0
    y = view(x)
    view.merge_adapter()
    assert not view.up.weight[3:].any() and not view.up.bias[3:].any() and view.up.weight[:3].any()
    torch.testing.assert_close(view(x), y)
    view.unmerge_adapter()
    assert torch.equal(view(x), y)
    assert torch.equal(view.up.weight, before["up.weight"]) and torch.equal(view.up.bias, before["up.bias"])


# ---------------------------------------------------------------------- which targets have their input scaled


def inner_of(view: Any) -> set[str]:
    return {path.rsplit(".", 1)[-1] for path, a in view._inlay.placed["default"].items() if a.inner}


@pytest.mark.parametrize(
    ("fields", "inner", "written"),
    [
        ({}, ["down_proj"], ["down_proj"]),
        ({"target_modules": ["k_proj", "down_proj"], "feedforward_modules": []}, [], []),
        ({"target_modules": ["k_proj"]}, [], []),
        ({"target_modules": ["down_proj", "up_proj"]}, ["down_proj"], ["down_proj"]),
        ({"target_modules": ["o_proj", "up_proj"], "feedforward_modules": ["o_proj"]}, ["o_proj"], ["o_proj"]),
        ({"target_modules": "all-linear"}, ["down_proj"], ["down_proj"]),
        ({"target_modules": "all-linear", "feedforward_modules": ".*(up|gate)_proj"}, ["up_proj", "gate_proj"], None),
        ({"target_modules": r".*\.mlp\..*_proj", "feedforward_modules": ["down_proj"]}, ["down_proj"], ["down_proj"]),
        # in mid-word, as peft has it
        ({"target_modules": ["v_proj", "k_proj"], "feedforward_modules": ["v_proj"]}, ["v_proj"], ["v_proj"]),
        ({"target_modules": r".*\.mlp\..*_proj", "feedforward_modules": ["p_proj"]}, ["up_proj"], ["p_proj"]),
    ],
    ids=str,
)
def test_which_inputs_are_scaled_and_what_is_written(
    fields: Any, inner: list[str], written: Any, tmp_path: Any
) -> None:
    view = scramble(get_peft_model(llama(), IA3Config(**fields)))
    assert inner_of(view) == set(inner)
    config = view.peft_config["default"]
    assert config.feedforward_modules == (fields["feedforward_modules"] if written is None else written)
    y = view(ids()).logits
    view.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(llama(), tmp_path)
    assert inner_of(again) == set(inner) and torch.equal(again(ids()).logits, y)


def test_names_that_mean_more_than_the_targets_are_written_as_paths() -> None:
    base = llama()
    config = IA3Config(
        target_modules=["layers.0.mlp.down_proj", "layers.1.self_attn.o_proj"], feedforward_modules=".*0.*"
    )
    view = get_peft_model(base, config)
    assert inner_of(view) == {"down_proj"} and view.peft_config["default"].feedforward_modules == ".*0.*"
    view = get_peft_model(base, IA3Config(target_modules="all-linear", exclude_modules=r".*1\.mlp.*"))
    kept = view.peft_config["default"]
    assert inner_of(view) == {"down_proj"}
    assert kept.feedforward_modules == ["model.layers.0.mlp.down_proj"]
    assert set(kept.feedforward_modules) <= set(kept.target_modules)


def test_layouts_are_noted_for_other_readers() -> None:
    from transformers.pytorch_utils import Conv1D

    for layer, expected in ((nn.Linear(4, 4), False), (Conv1D(4, 4), True)):
        config = IA3Config(target_modules=["0"], feedforward_modules=[], fan_in_fan_out=not expected)
        assert get_peft_model(nn.Sequential(layer), config).peft_config["default"].fan_in_fan_out is expected


# ---------------------------------------------------------------------- errors


def test_feedforward_modules_are_among_the_targets() -> None:
    with pytest.raises(
        ConfigError, match=r"feedforward_modules=\['w0'\].*some of target_modules.*Add 'w0' to target_m"
    ):
        IA3Config(target_modules=["k", "v"], feedforward_modules=["w0"])
    config = IA3Config(target_modules=r".*_proj", feedforward_modules=["down"], exclude_modules=["down_proj"])
    with pytest.raises(
        TargetError, match=r"'down' means none of the modules that are targeted \(model.layers.0.self_attn"
    ):
        get_peft_model(llama(), config)
    with pytest.raises(TargetError, match=r"feedforward_modules: 'x\+' means none of the modules"):
        get_peft_model(llama(), IA3Config(feedforward_modules="x+"))
    with pytest.raises(TargetError, match=r"feedforward_modules='x\[' is not allowed: expected a regular expression"):
        get_peft_model(llama(), IA3Config(feedforward_modules="x["))


def test_a_model_without_a_default_has_to_be_told() -> None:
    with pytest.raises(ConfigError, match=r"feedforward_modules=None .*or \[\] if there are none. There is no default"):
        get_peft_model(Mlp(), IA3Config(target_modules=["up"]))
    with pytest.raises(TargetError, match="There are no default target_modules for this model"):
        get_peft_model(Mlp(), IA3Config(feedforward_modules=[]))


@pytest.mark.parametrize(
    "fields", [{"init_ia3_weights": "gaussian"}, {"fan_in_fan_out": 1}, {"feedforward_modules": 3}]
)
def test_values_that_are_refused(fields: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        IA3Config(**fields)


def test_the_config_given_is_not_changed() -> None:
    config = IA3Config()
    get_peft_model(llama(), config)
    assert config == IA3Config()


def test_names_of_an_earlier_transformers_release() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    from inlay.errors import InlayWarning

    tiny = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, image_size=8)
    base = ViTForImageClassification(tiny)
    old = IA3Config(target_modules=["key", "value", "intermediate.dense"], feedforward_modules=["intermediate.dense"])
    if not any(name.endswith("k_proj") for name, _ in base.named_modules()):
        pytest.skip("this transformers has the earlier names")
    with pytest.warns(InlayWarning, match="earlier transformers"):
        view = get_peft_model(base, old)
    assert inner_of(view) == {"fc1"}
    kept = view.peft_config["default"]
    assert kept.target_modules == ["fc1", "k_proj", "v_proj"] and kept.feedforward_modules == ["fc1"]
