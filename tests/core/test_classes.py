"""Derived classes: another behaviour under the same name, for everyone who looks at the class."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import tokenize
from typing import Any

import pytest
import torch
from torch import nn

from inlay import LoraConfig, PeftModel, get_peft_model
from inlay.core import classes
from inlay.core.adapted import Adapted, is_adapted
from inlay.core.classes import Derived, derive, original_class
from tests.tiny import Mlp, ids, llama, mlp

CONFIG = {"target_modules": ["up"], "r": 2}


def view_of(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(**CONFIG))


def test_names_are_the_originals() -> None:
    view = view_of(mlp())
    for module, cls, mixin in ((view, Mlp, PeftModel), (view.up, nn.Linear, Adapted)):
        derived = type(module)
        assert derived is not cls
        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            assert getattr(derived, name) == getattr(cls, name), name
        assert str(derived) == str(cls)
        assert module._get_name() == cls.__name__
        assert isinstance(module, cls) and isinstance(module, mixin) and isinstance(module, Derived)
        assert original_class(module) is cls
    assert original_class(view.down) is nn.Linear
    assert type(view.down) is nn.Linear and not is_adapted(view.down) and is_adapted(view.up)


def test_classes_are_made_once() -> None:
    assert derive(Adapted, nn.Linear) is derive(Adapted, nn.Linear)
    assert type(view_of(mlp())) is type(view_of(mlp()))
    assert derive(PeftModel, Mlp) is not derive(Adapted, Mlp)


def test_the_repr_says_what_it_is() -> None:
    text = repr(view_of(mlp()))
    assert text.startswith("PeftModel[Mlp](\n")
    assert "(up): Adapted[Linear](\n    in_features=8, out_features=16, bias=True" in text
    assert "(down): Linear(in_features=16" in text

    class Quiet(nn.Linear):
        def __repr__(self) -> str:
            return "quiet"

    model = mlp()
    model.up = Quiet(8, 16)
    assert repr(view_of(model).up) == "quiet"


def test_the_signature_of_forward_is_the_originals() -> None:
    """Trainer reads it to know which columns of a data set the model takes."""
    base = llama()
    view = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    assert inspect.signature(view.forward) == inspect.signature(base.forward)
    assert inspect.signature(type(view).forward) == inspect.signature(type(base).forward)
    assert view.forward.__doc__ == base.forward.__doc__
    hosts = view.model.layers[0].self_attn.q_proj, base.model.layers[0].self_attn.q_proj
    assert inspect.signature(hosts[0].forward) == inspect.signature(hosts[1].forward)
    assert view.model.forward.__func__ is type(base.model).forward, "other modules have their own forward"


def test_only_forward_and_dunders_are_overridden_and_nothing_is_stored_on_the_class() -> None:
    for mixin, original in ((Adapted, nn.Linear), (PeftModel, Mlp)):
        added = set(vars(derive(mixin, original)))
        assert added <= {
            "__module__",
            "__qualname__",
            "__doc__",
            "_original_class",
            "_mixin",
            "forward",
            "__parameters__",
            "__static_attributes__",
            "__firstlineno__",
        }
    own = {n for n in vars(Adapted) if not n.startswith("_")}
    assert own == {"forward"}, "an adapted host adds no public method"


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(protocol: int) -> None:
    view = view_of(mlp())
    again = pickle.loads(pickle.dumps(view, protocol))
    assert type(again) is type(view) and type(again.up) is type(view.up)
    assert torch.equal(again(torch.ones(1, 8)), view(torch.ones(1, 8)))
    assert again.up.active is again._inlay.active, "one object for all hosts"
    assert again._inlay.hosts["up"] is again.up
    assert again.up.weight is again.unload().up.weight, "base and view still share"


def test_torch_save_and_load() -> None:
    view, file = view_of(mlp()), io.BytesIO()
    torch.save(view, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(torch.ones(1, 8)), view(torch.ones(1, 8)))


def test_copies() -> None:
    view = view_of(mlp())
    deep = copy.deepcopy(view)
    assert deep.up.active is deep._inlay.active and deep.up.active is not view.up.active
    assert deep._inlay.placed["default"]["up"] is deep.up.adapters["default"]
    assert deep.up.weight is deep.unload().up.weight and deep.up.weight is not view.up.weight
    deep.set_adapter([])
    assert view.active_adapters == ["default"]
    host = copy.deepcopy(view.up)
    assert type(host) is type(view.up) and torch.equal(host(torch.ones(1, 8)), view.up(torch.ones(1, 8)))
    shallow = copy.copy(view)
    assert type(shallow) is type(view) and shallow.up is view.up


def test_slices_of_a_sequential_view_are_plain_sequentials() -> None:
    base = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    view = get_peft_model(base, LoraConfig(target_modules=["0", "2"]))
    head = view[:2]
    assert type(head) is nn.Sequential and len(head) == 2 and head[0] is view[0]
    assert torch.equal(head(torch.ones(1, 8)), view[1](view[0](torch.ones(1, 8))))
    made = type(view[0])(3, 4)
    assert type(made) is nn.Linear and made.in_features == 3


def test_replicas_are_of_the_derived_class() -> None:
    """nn.DataParallel makes them so."""
    view = view_of(mlp())
    replica = view._replicate_for_data_parallel()
    assert type(replica) is type(view) and replica is not view


def test_a_class_with_a_metaclass_and_slots() -> None:
    class Meta(type):
        pass

    class Odd(nn.Linear, metaclass=Meta):
        __slots__ = ("extra",)

    derived = derive(Adapted, Odd)
    assert type(derived) is Meta and issubclass(derived, Odd)


def test_a_view_calls_the_overridden_forward_of_a_subclass() -> None:
    class Sub(Mlp):
        def forward(self, x: Any) -> Any:
            return super().forward(x) + 1

    base = Sub().eval()
    view = view_of(base)
    assert torch.equal(view(torch.ones(1, 8)), base(torch.ones(1, 8)))
    assert type(view).__mro__.index(Sub) < type(view).__mro__.index(Mlp)


def test_output_attentions_and_hidden_states_are_recorded() -> None:
    """transformers keys these on the class's name."""
    base = llama(attn_implementation="eager")
    view = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    out = view(ids(), output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 3 and len(out.attentions) == 2


def test_the_dynamic_part_is_under_forty_lines() -> None:
    """Lines of code of the module, without docstrings, comments and blank lines."""
    source = inspect.getsource(classes)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            continue
        if token.type == tokenize.STRING and token.line.strip().startswith(('"""', 'r"""')):
            continue
        if token.string:
            lines.update(range(token.start[0], token.end[0] + 1))
    docstring = len((classes.__doc__ or "").splitlines())
    assert 20 < len([n for n in lines if n > docstring]) < 40
