"""Views: what they are, their names for things, and the errors of their methods."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from inlay import LoraConfig, PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model
from inlay.errors import ConfigError, StateError, TargetError
from tests.tiny import Mlp, close, ids, llama, mlp, net, outline, same, scramble, snapshot

X = torch.ones(2, 8)
UP = {"target_modules": ["up"], "r": 2}


def view_of(base: Any = None, name: str = "default", **fields: Any) -> Any:
    return scramble(get_peft_model(mlp() if base is None else base, LoraConfig(**{**UP, **fields}), name))


# ---------------------------------------------------------------------- making one


def test_three_ways_to_make_a_view(tmp_path: Any) -> None:
    first = view_of()
    first.save_pretrained(tmp_path)
    torch.manual_seed(0)
    views = [PeftModel(mlp(), LoraConfig(**UP)), get_peft_model(mlp(), LoraConfig(**UP))]
    views.append(PeftModel.from_pretrained(mlp(), tmp_path))
    for view in views:
        assert isinstance(view, PeftModel) and isinstance(view, Mlp)
        assert view.active_adapters == ["default"] and list(view.peft_config) == ["default"]
    assert torch.equal(views[2](X), first(X))


def test_the_base_is_frozen_and_otherwise_as_it_was() -> None:
    base = mlp().train()
    view = view_of(base)
    assert not any(p.requires_grad for p in base.parameters())
    assert base.training and view.training, "the view starts in the base's mode, and has its own from then on"
    view.eval()
    assert base.training
    assert view.unload() is base
    with pytest.raises(RuntimeError, match="does not require grad"):
        base(X).sum().backward()


def test_an_adapter_for_inference_is_frozen_too() -> None:
    for fields in ({}, {"bias": "all"}, {"modules_to_save": ["down"]}, {"bias": "lora_only"}):
        view = view_of(inference_mode=True, **fields)
        assert view.active_adapters == ["default"]
        assert not any(p.requires_grad for p in view.parameters()), fields
    base = llama(tie_word_embeddings=True)
    view = get_peft_model(base, LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1], inference_mode=True))
    assert not any(p.requires_grad for p in view.parameters())
    view.set_adapter("default")
    assert view.get_nb_trainable_parameters()[0] > 0


@pytest.mark.parametrize("wrong", [None, "model", 3, {"a": 1}, Mlp])
def test_what_is_no_model(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"model='\w+' is not allowed: expected a torch.nn.Module"):
        get_peft_model(wrong, LoraConfig(**UP))


def test_what_is_no_config() -> None:
    for wrong in (None, {"r": 8}, "LORA", LoraConfig):
        with pytest.raises(
            ConfigError, match=r"peft_config='\w+' is not allowed: expected a config such as LoraConfig"
        ):
            get_peft_model(mlp(), wrong)
    with pytest.raises(TargetError, match="target_modules=None is not allowed: expected at least one module to adapt"):
        get_peft_model(mlp(), PeftConfig())


def test_48_two_views_of_one_base_are_independent_and_a_view_is_no_base() -> None:
    base = mlp()
    first, second = view_of(base), view_of(base)
    scramble(second, seed=11)
    assert first.up is not second.up and first.up.weight is second.up.weight
    y = first(X)
    scramble(second)
    assert torch.equal(first(X), y) and not torch.equal(second(X), y)
    with pytest.raises(
        StateError, match=r"is a view already: call model.add_adapter\(name, config\), or pass its base"
    ):
        get_peft_model(first, LoraConfig(**UP))
    with pytest.raises(StateError, match="an untouched base"):
        get_peft_model(first.get_base_model(), LoraConfig(**UP))
    again = get_peft_model(first.unload(), LoraConfig(**UP))
    assert torch.equal(again(X), base(X))


def test_a_compiled_base_is_unwrapped() -> None:
    base = mlp()
    view = get_peft_model(torch.compile(base, backend="eager"), LoraConfig(**UP))
    assert isinstance(view, Mlp) and view.unload() is base and torch.equal(view(X), base(X))


def test_an_injected_model_is_no_base() -> None:
    model = inject_adapter_in_model(LoraConfig(**UP), mlp())
    with pytest.raises(StateError, match=r"changed by inject_adapter_in_model"):
        get_peft_model(model, LoraConfig(**UP))


# ---------------------------------------------------------------------- names


def test_active_names_are_a_list_that_can_be_called() -> None:
    view = view_of(name="a")
    assert view.active_adapters == ["a"] == view.active_adapters() and view.active_adapter == "a"
    assert isinstance(view.active_adapters, list)
    view.add_adapter("b", LoraConfig(**UP))
    view.set_adapter(["b", "a"])
    assert view.active_adapters == view.active_adapter == ["b", "a"]
    assert view.active_peft_config is view.peft_config["b"]
    view.active_adapters.clear()
    assert view.active_adapters == ["b", "a"], "a copy"
    view.set_adapter([])
    assert view.active_adapter == []
    with pytest.raises(StateError, match=r"No adapter is active: call set_adapter\(name\) first"):
        _ = view.active_peft_config


def test_adapters_are_added_in_either_order_of_arguments() -> None:
    view = view_of(name="a")
    view.add_adapter("b", LoraConfig(**UP))
    view.add_adapter(LoraConfig(**UP), "c")
    view.add_adapter(LoraConfig(**UP))
    view.add_adapter(adapter_name="d", peft_config=LoraConfig(**UP))
    assert list(view.peft_config) == ["a", "b", "c", "default", "d"] and view.active_adapters == ["a"]
    assert {n for n, p in view.named_parameters() if p.requires_grad} == {
        "up.adapters.a.lora_A",
        "up.adapters.a.lora_B",
    }
    with pytest.raises(ConfigError, match="adapter_name='b' is not allowed: expected a name not in use"):
        view.add_adapter("b", LoraConfig(**UP))
    with pytest.raises(ConfigError, match="peft_config='NoneType'"):
        view.add_adapter("e")


def test_16_bit_bases_choose_the_adapters_dtype() -> None:
    base = mlp(dtype=torch.bfloat16)
    assert view_of(base).up.adapters["default"].A.dtype is torch.float32
    view = get_peft_model(base, LoraConfig(**UP), autocast_adapter_dtype=False)
    assert view.up.adapters["default"].A.dtype is torch.bfloat16
    view.add_adapter("b", LoraConfig(**UP))
    view.add_adapter("c", LoraConfig(**UP), autocast_adapter_dtype=False)
    assert [view.up.adapters[n].A.dtype for n in "bc"] == [torch.float32, torch.bfloat16]


# ---------------------------------------------------------------------- switching off


def test_disabling_nests_and_ends_with_an_error() -> None:
    base = mlp()
    view = view_of(base)
    y, plain = view(X), base(X)
    with view.disable_adapter():
        with view.disable_adapter():
            assert torch.equal(view(X), plain)
        assert torch.equal(view(X), plain)
    assert torch.equal(view(X), y)
    with contextlib.suppress(ZeroDivisionError), view.disable_adapter():
        _ = 1 / 0
    assert torch.equal(view(X), y)
    view.disable_adapters()
    with view.disable_adapter():
        pass
    assert torch.equal(view(X), plain)
    view.enable_adapters()
    assert torch.equal(view(X), y)


def test_disabling_while_merged_is_the_base_exactly_and_merged_again_afterwards() -> None:
    base = mlp()
    view = view_of(base)
    view.merge_adapter()
    y = view(X)
    with view.disable_adapter():
        assert torch.equal(view(X), base(X)) and view._inlay.merged == []
    assert torch.equal(view(X), y) and view._inlay.merged == ["default"]
    view.unmerge_adapter()
    assert view.up.weight is base.up.weight


def test_disabling_covers_modules_in_full() -> None:
    base = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU())).eval()
    view = get_peft_model(base, LoraConfig(target_modules=["0"], modules_to_save=["1"]))
    scramble(view)
    assert not torch.equal(view(X), base(X))
    with view.disable_adapter():
        assert torch.equal(view(X), base(X)), "a container goes over its own children only"


# ---------------------------------------------------------------------- bases


def test_the_three_bases() -> None:
    base = mlp()
    view = view_of(base)
    plain = view.get_base_model()
    assert type(plain) is Mlp and plain.up is view.up and torch.equal(plain(X), view(X))
    assert view.base_model.model.up is view.up and type(view.base_model.model) is Mlp
    assert view.base_model.model.state_dict().keys() == view.state_dict().keys()
    assert torch.equal(view.unload()(X), base(X)) and view.unload() is base


def test_the_tuner_is_peft_s_and_transformers() -> None:
    base = llama()
    view = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    tuner = view.base_model
    assert tuner.model.model.layers[0].self_attn.q_proj is view.model.layers[0].self_attn.q_proj
    hidden = tuner(ids())
    assert torch.equal(hidden.last_hidden_state, view.model(ids()).last_hidden_state)
    assert tuner.embed_tokens is view.model.embed_tokens and tuner.layers is view.model.layers
    assert tuner.peft_config is view.peft_config and tuner.active_adapters == ["default"]
    assert tuner.lm_head is view.lm_head, "what neither has is looked up on the whole model"
    tuner.set_adapter([])
    assert view.active_adapters == []
    assert repr(tuner).startswith("Tuner(PeftModel[LlamaForCausalLM](")
    with pytest.raises(AttributeError, match="nonsense"):
        _ = tuner.nonsense
    with pytest.raises(AttributeError):
        _ = tuner.__nonsense__


# ---------------------------------------------------------------------- calling


def test_generate_with_adapters_by_row() -> None:
    base = llama()
    view = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj", "lm_head"], r=4), "a")
    view.add_adapter("b", LoraConfig(target_modules=["down_proj", "lm_head"], r=4))
    scramble(view, 1.0)
    x = ids(3, 4) % 30 + 3
    options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(x)}

    def alone(name: str) -> Any:
        view.set_adapter(name if name != "__base__" else [])
        return view.generate(x, **options)

    each = {n: alone(n) for n in ("a", "b", "__base__")}
    assert torch.equal(each["__base__"], base.generate(x, **options))
    assert len({str(v.tolist()) for v in each.values()}) == 3, "they say different things"
    names = ["b", "__base__", "a"]
    view.set_adapter("a")
    mixed = view.generate(x, adapter_names=names, **options)
    assert torch.equal(mixed, torch.stack([each[n][i] for i, n in enumerate(names)]))
    beams = view.generate(x, adapter_names=names, num_beams=2, **options)
    for i, name in enumerate(names):
        view.set_adapter(name if name != "__base__" else [])
        assert torch.equal(beams[i], view.generate(x, num_beams=2, **options)[i])
    assert view._inlay.active.rows is None


def test_the_wrong_number_of_names() -> None:
    view = view_of()
    with pytest.raises(StateError, match=r"adapter_names has 3 names, but a host received a batch of 2 rows"):
        view(X, adapter_names=["default"] * 3)
    assert view._inlay.active.rows is None and torch.equal(view(X, adapter_names=["default"] * 2), view(X))


def test_train_and_eval_reach_adapters() -> None:
    view = view_of(lora_dropout=0.5)
    view.train()
    assert view.up.adapters["default"].training
    view.eval()
    assert not view.up.adapters["default"].training


def test_moving_and_casting_the_view_moves_its_adapters_and_the_base() -> None:
    base = mlp()
    view = view_of(base)
    view.to(torch.float64)
    assert {p.dtype for p in view.parameters()} == {torch.float64} == {p.dtype for p in base.parameters()}
    assert view(X.double()).dtype is torch.float64
    base.to(torch.bfloat16)
    assert view.up.weight.dtype is torch.bfloat16 and view.up.adapters["default"].A.dtype is torch.float64
    assert view(X.bfloat16()).dtype is torch.bfloat16


def test_zero_grad_state_dict_and_strict_loading() -> None:
    view = view_of()
    state = snapshot(view)
    assert set(state) == {
        "up.weight",
        "up.bias",
        "down.weight",
        "down.bias",
        "up.adapters.default.lora_A",
        "up.adapters.default.lora_B",
    }
    scramble(view)
    view.load_state_dict(state)
    assert same(snapshot(view), state)


# ---------------------------------------------------------------------- counting


def test_the_line_that_is_printed() -> None:
    view = view_of()
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        view.print_trainable_parameters()
    own, everything = 2 * (8 + 16), 8 * 16 + 16 + 16 * 8 + 8 + 2 * (8 + 16)
    assert view.get_nb_trainable_parameters() == (own, everything)
    share = 100 * own / everything
    assert out.getvalue() == f"trainable params: {own:,d} || all params: {everything:,d} || trainable%: {share:.4f}\n"


# ---------------------------------------------------------------------- after errors


@pytest.mark.parametrize(
    "call",
    [
        lambda v: v.set_adapter("x"),
        lambda v: v.set_adapter(["default", "x"]),
        lambda v: v.delete_adapter("x"),
        lambda v: v.add_adapter("b", LoraConfig(target_modules=["x"])),
        lambda v: v.add_adapter("default", LoraConfig(**UP)),
        lambda v: v.merge_adapter(["x"]),
        lambda v: v.merge_adapter(["default", "x"]),
        lambda v: v.merge_and_unload(adapter_names=["x"]),
        lambda v: v.load_adapter("/no/such/folder", "b"),
        lambda v: v.save_pretrained("/tmp/x", selected_adapters=["x"]),
        lambda v: v(X, adapter_names=["x"]),
        lambda v: v.set_requires_grad("x"),
    ],
)
def test_a_failed_call_changes_nothing(call: Any) -> None:
    base = mlp()
    view = view_of(base)
    before, below, y = outline(view), outline(base), view(X)
    with pytest.raises((StateError, ConfigError, FileNotFoundError)):
        call(view)
    assert outline(view) == before and outline(base) == below
    assert torch.equal(view(X), y) and view.active_adapters == ["default"] and list(view.peft_config) == ["default"]


def test_a_view_of_every_kind_of_host_at_once() -> None:
    base = net()
    view = get_peft_model(base, LoraConfig(target_modules=r"embed|conv.|fc|head", r=2))
    assert torch.equal(view(ids()), base(ids()))
    scramble(view)
    assert not torch.equal(view(ids()), base(ids()))


def test_parts_of_the_base_with_names_that_views_have() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model, self.heads = nn.Linear(4, 6), nn.Linear(6, 3)
            self.prefix = nn.Parameter(torch.ones(6))
            self.register_buffer("active_adapter", torch.ones(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.heads(self.base_model(x) * self.prefix + self.active_adapter)  # type: ignore[no-any-return]

    base, x = Named().double(), torch.randn(2, 4, dtype=torch.float64)
    view = get_peft_model(base, LoraConfig(target_modules=["base_model", "heads"]))
    assert torch.equal(view(x), base(x))
    scramble(view)
    y = view(x)
    assert not torch.equal(y, base(x))
    assert view.active_adapter == "default" and view.prefix == "adapters."  # to callers, what they are on any view
    close(view.merge_and_unload()(x), y)
    twin = copy.deepcopy(view)
    assert torch.equal(twin(x), y)
