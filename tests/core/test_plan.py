"""Planning: names, combinations and hosts that are refused, and nothing changed after an error."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from inlay import InlayWarning, LoraConfig, get_peft_model
from inlay.core.adapted import is_adapted
from inlay.core.plan import check_adapter_name, plan, walk
from inlay.errors import ConfigError, StateError, TargetError
from tests.tiny import Mlp, ids, llama, made, mlp, net, outline, scramble

Q = {"target_modules": ["q_proj"]}
HEAD = {"target_modules": ["lm_head"]}


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    ["/x", "a/b", "..", "a.b", "", "x" * 65, "a" * 300, "a\n", " a", "a ", "a\0", "a b", "a:b", "é" + "́", None, 3],
)
def test_42_43_what_is_no_name(name: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"adapter_name=.* is not allowed: expected 1 to 64 letters, digits, '_' or '-'"
    ):
        check_adapter_name(name, [])


@pytest.mark.parametrize("name", ["a", "A-b_9", "x" * 64, "日本語", "été", "0", "-"])
def test_42_43_what_is_a_name(name: str) -> None:
    assert check_adapter_name(name, ["other"]) == name


@pytest.mark.parametrize("taken", [["default"], ["DEFAULT"], ["x", "Default"]])
def test_44_names_in_use_also_in_another_case(taken: list[str]) -> None:
    with pytest.raises(
        ConfigError, match=r"adapter_name='default' is not allowed: expected a name (not in use|that dif)"
    ):
        check_adapter_name("default", taken)


@pytest.mark.parametrize(
    "name", ["lora", "weight", "base_layer", "default", "bias", "forward_", "A", "lora_A", "module"]
)
def test_45_names_that_look_like_parts_of_keys_work(name: str, tmp_path: Any) -> None:
    from inlay import PeftModel

    view = get_peft_model(mlp(), LoraConfig(target_modules=["up"], modules_to_save=["down"]), name)
    scramble(view)
    y = view(torch.ones(1, 8))
    view.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(mlp(), tmp_path if name == "default" else tmp_path / name, name)
    assert torch.equal(again(torch.ones(1, 8)), y) and again.active_adapters == [name]


@pytest.mark.parametrize("name", [*dir(nn.ModuleDict()), "__base__"])
def test_names_of_torchs_own_attributes_are_refused_before_anything_changes(name: str) -> None:
    base = mlp()
    before = outline(base)
    with pytest.raises(ConfigError, match="adapter_name"):
        get_peft_model(base, LoraConfig(target_modules=["up"]), name)
    assert outline(base) == before


# ---------------------------------------------------------------------- nothing changes after an error


BAD: dict[str, dict[str, Any]] = {
    "typo": {"target_modules": ["q_proj", "xproj"]},
    "bomb": {"target_modules": "(a+)+"},
    "wrong kind": {"target_modules": ["q_proj", "mlp"]},
    "norm": {"target_modules": ["q_proj", "input_layernorm"]},
    "nothing": {"target_modules": []},
    "layers": {"target_modules": ["q_proj"], "layers_to_transform": [7]},
    "all excluded": {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["clasifier"]},
    "both": {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]},
    "container": {"target_modules": ["lm_head"], "modules_to_save": ["layers"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4000]},
    "same token": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 3]},
    "no embedding": {"target_modules": ["q_proj"], "trainable_token_indices": {"emb": [1]}},
    "one embedding": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1], "emb": [1]}},
    "norm tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"norm": [1]}},
    "tokens and target": {"target_modules": ["embed_tokens"], "trainable_token_indices": [1]},
    "tokens and module": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": [1],
        "modules_to_save": ["embed_tokens"],
    },
    "odd orthogonal": {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal", "r": 3},
    "rank pattern": {"target_modules": ["q_proj"], "rank_pattern": {"(": 3}},
    "alpha bomb": {"target_modules": ["q_proj"], "alpha_pattern": {"(a+)+": 3}},
}


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("how", ["new view", "second adapter"])
def test_nothing_is_changed_by_an_adapter_that_does_not_fit(fault: str, how: str) -> None:
    base = llama()
    base.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    before = outline(base)
    config = LoraConfig(**BAD[fault])
    given = config.to_dict()
    if how == "new view":
        with pytest.raises(ConfigError):
            get_peft_model(base, config)
    else:
        view = scramble(get_peft_model(base, LoraConfig(**Q), "first"))
        before, seen, y = outline(base), outline(view), view(ids()).logits
        with pytest.raises(ConfigError):
            view.add_adapter("second", config)
        assert outline(view) == seen and list(view.peft_config) == ["first"]
        assert torch.equal(view(ids()).logits, y)
    assert outline(base) == before and config.to_dict() == given


def test_the_messages_say_what_and_what_else() -> None:
    def message(**fields: Any) -> str:
        with pytest.raises(TargetError) as caught:
            get_peft_model(llama(), LoraConfig(**fields))
        return str(caught.value)

    assert "'model.layers.0.mlp' is a LlamaMLP, which LORA cannot adapt (it adapts: conv1d, conv2d" in message(
        target_modules=["mlp"]
    )
    assert "'lm_head' is meant twice" in message(target_modules=["lm_head"], trainable_token_indices={"lm_head": [1]})
    assert "modules_to_save: 'clasifier' matches no module" in message(**Q, modules_to_save=["clasifier"])
    assert "'model.layers' is a ModuleList, a container that is never called" in message(
        **HEAD, modules_to_save=["layers"]
    )
    assert "trainable_token_indices" in message(**Q, trainable_token_indices={"embed_tokens": [1], "emb": [2]})
    assert "expected at least one module to adapt or train" in message(target_modules=[])


def test_the_given_config_is_not_changed_and_not_kept() -> None:
    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    before = copy.deepcopy(config)
    view = get_peft_model(llama(), config)
    assert config == before and view.peft_config["default"] is not config
    config.r = 99
    assert view.peft_config["default"].r == 8
    other = get_peft_model(llama(), before)
    assert other.peft_config["default"] is not view.peft_config["default"]


# ---------------------------------------------------------------------- what is adapted


def test_all_linear_leaves_out_the_head_and_what_is_never_called() -> None:
    view = get_peft_model(llama(), LoraConfig(target_modules="all-linear"))
    assert {p.rpartition(".")[2] for p in view._inlay.hosts} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    base = nn.ModuleDict({"a": nn.MultiheadAttention(4, 2), "b": nn.Linear(4, 4)})
    assert set(get_peft_model(base, LoraConfig(target_modules="all-linear"))._inlay.hosts) == {"b"}


def test_models_without_a_model_type_are_known_by_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    from inlay.methods.targets import ATTENTION

    monkeypatch.setitem(ATTENTION, "Mlp", ["down"])
    view = get_peft_model(mlp(), LoraConfig())
    assert list(view._inlay.hosts) == ["down"] and view.peft_config["default"].target_modules == ["down"]
    monkeypatch.setitem(ATTENTION, "LlamaForCausalLM", ["lm_head"])
    assert "lm_head" not in get_peft_model(llama(), LoraConfig())._inlay.hosts


def test_the_kept_config_names_what_all_linear_and_defaults_meant() -> None:
    kept = get_peft_model(llama(), LoraConfig(target_modules="all-linear")).peft_config["default"]
    assert kept.target_modules == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    kept = get_peft_model(llama(), LoraConfig()).peft_config["default"]
    assert kept.target_modules == ["q_proj", "v_proj"]
    kept = get_peft_model(
        llama(), LoraConfig(target_modules="all-linear", layers_to_transform=None, exclude_modules=["q_proj"])
    )
    assert "q_proj" not in kept.peft_config["default"].target_modules
    view = get_peft_model(llama(), LoraConfig(layers_to_transform=[1]))
    assert view.peft_config["default"].target_modules == [f"model.layers.1.self_attn.{x}_proj" for x in "qv"]
    again = get_peft_model(llama(), view.peft_config["default"])
    assert list(again._inlay.hosts) == list(view._inlay.hosts)


def test_the_outermost_module_to_save_counts() -> None:
    base = made(lambda: nn.Sequential(Mlp(), nn.Linear(8, 2)))
    view = get_peft_model(base, LoraConfig(target_modules=["1"], modules_to_save=["0", "up"]))
    assert list(view._inlay.hosts) == ["1", "0"]
    with pytest.raises(TargetError, match="'up' matches no module"):
        get_peft_model(base, LoraConfig(target_modules=["up"], modules_to_save=["0"]))


def test_a_shared_module_is_adapted_once() -> None:
    shared = nn.Linear(4, 4)
    base = nn.Sequential(shared, nn.ReLU(), shared).double()
    assert list(walk(base)) == ["", "0", "1"]
    view = scramble(get_peft_model(base, LoraConfig(target_modules=["0"], r=2)))
    assert view[0] is view[2] and is_adapted(view[2])
    x = torch.randn(2, 4, dtype=torch.float64)
    y = view(x)
    assert torch.equal(y, view[0](torch.relu(view[0](x))))
    merged = view.merge_and_unload()
    torch.testing.assert_close(merged(x), y)
    assert merged[0] is merged[2]


def test_a_shared_module_trained_in_full_is_replaced_everywhere() -> None:
    shared = nn.Linear(4, 4)
    base = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 4)).double()
    view = scramble(get_peft_model(base, LoraConfig(target_modules=["3"], modules_to_save=["0"], r=2)))
    x = torch.randn(2, 4, dtype=torch.float64)
    y = view(x)
    merged = view.merge_and_unload()
    torch.testing.assert_close(merged(x), y)
    assert merged[0] is merged[2]


@pytest.mark.parametrize(
    ("build", "target"),
    [
        (lambda: nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2)}), "attn.out_proj"),
        (lambda: nn.TransformerEncoderLayer(4, 2, 8), "linear1"),
        (lambda: nn.TransformerEncoderLayer(4, 2, 8), "self_attn.out_proj"),
        (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2, enable_nested_tensor=False), "linear2"),
        (lambda: nn.TransformerDecoderLayer(4, 2, 8), "multihead_attn.out_proj"),
    ],
)
def test_targets_that_are_never_called_are_refused(build: Any, target: str) -> None:
    with pytest.raises(TargetError, match=r"is not called by its parent.*no effect.*Leave it out"):
        get_peft_model(build(), LoraConfig(target_modules=[target]))


@pytest.mark.parametrize(
    "fields", [{"modules_to_save": ["norm1"]}, {"modules_to_save": ["self_attn"]}, {"bias": "all"}]
)
def test_and_so_are_modules_and_biases_to_train(fields: dict[str, Any]) -> None:
    base = nn.ModuleDict({"block": nn.TransformerEncoderLayer(4, 2, 8), "fc": nn.Linear(4, 4)})
    with pytest.raises(TargetError, match="is not called by its parent"):
        get_peft_model(base, LoraConfig(target_modules=["fc"], **fields))


def test_parametrized_hosts_are_adapted_but_not_merged() -> None:
    base = mlp()
    parametrize.register_parametrization(base.up, "weight", nn.Tanh(), unsafe=True)
    view = get_peft_model(base, LoraConfig(target_modules=["up"]))
    x = torch.ones(1, 8)
    torch.testing.assert_close(view(x), base(x))
    scramble(view)
    assert not torch.equal(view(x), base(x))
    with pytest.raises(StateError, match=r"'up' computes its weight.*remove_parametrizations"):
        view.merge_adapter()
    with pytest.raises(StateError, match="computes its weight"):
        view.merge_and_unload()


def test_walk_gives_every_module_but_adapters() -> None:
    base = net()
    view = get_peft_model(base, LoraConfig(target_modules=["fc"], modules_to_save=["head"]))
    assert list(walk(view)) == list(walk(base)) == [n for n, _ in base.named_modules()]


def test_planning_leaves_the_model_alone() -> None:
    base = mlp()
    before = outline(base)
    placements, kept = plan(base, LoraConfig(target_modules=["up"], modules_to_save=["down"]))
    assert [p.path for p in placements] == ["up", "down"] and kept.target_modules == ["up"]
    assert outline(base) == before
    placements, _ = plan(base, LoraConfig(target_modules=["up"]), init=False)
    assert {p.device.type for p in placements[0].adapter.parameters()} == {"meta"}


def test_earlier_names_warn_and_the_kept_config_has_todays() -> None:
    base = mlp()
    with pytest.warns(InlayWarning, match=r"target_modules=\['old'\] uses module names of an earlier.*they are up\."):
        placements, kept = plan(base, LoraConfig(target_modules=["old"]), aliases=lambda: {"up": "old"})
    assert [p.path for p in placements] == ["up"] and kept.target_modules == ["up"]
