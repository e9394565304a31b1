"""What every method promises for one host: its `weight()` is its formula, and everything else follows from it."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inlay import get_peft_model
from inlay.config import config_classes
from inlay.core.adapter import Adapter
from inlay.errors import StateError
from inlay.registry import registered
from tests.contract.cases import CASES, ELSEWHERE, Make, adapters_of, canonical, hosts, methods, operate, placements
from tests.tiny import close, scramble


class Holder(nn.Module):
    """A model that is one host."""

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.fc = host

    def forward(self, x: Any) -> Any:
        return self.fc(x)


def every_host(kind: str, make: Make) -> Any:
    """(view, its host, inputs) with adapters moved off their initial values."""
    for host, inputs in hosts(kind, make):
        view = get_peft_model(Holder(host).double().eval(), make(target_modules=["fc"]))
        yield scramble(view, 0.3), view.fc, inputs


def test_every_registered_config_has_a_case() -> None:
    cases = {adapter for p in methods() for adapter in adapters_of(p.values[0]).values()}  # type: ignore[arg-type]
    here = {cls for (config, _, _), cls in registered().items() if not {config, cls} & ELSEWHERE.keys()}
    missing = {cls.__name__ for cls in here} - {cls.__name__ for cls in cases}
    assert not missing, f"add cases for {missing} to tests/contract/cases.py"
    assert {cls for cls, *_ in registered()} <= set(config_classes().values())


def test_what_has_no_case_has_its_own_tests() -> None:
    for of, path in ELSEWHERE.items():
        assert of not in CASES
        assert of.__name__ in (Path(__file__).parents[2] / path).read_text(), f"{path} does not test it"


def test_an_unknown_config_would_fail_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, next(iter(CASES)), {})  # deleting it would put it last again
    with pytest.raises(AssertionError, match="add"):
        test_every_registered_config_has_a_case()


@pytest.mark.parametrize(("make", "kind"), placements(formula=True))
def test_forward_is_the_operation_with_the_formulas_weight(make: Make, kind: str) -> None:
    for view, host, inputs in every_host(kind, make):
        adapter = host.adapters["default"]
        weight, bias = adapter.weight(canonical(host)), adapter.bias(getattr(host, "bias", None))
        assert not torch.equal(weight, canonical(host)) or not torch.equal(bias, host.bias)
        for x in inputs:
            close(view(x), operate(host, x, weight, bias))


@pytest.mark.parametrize(("make", "kind"), placements(formula=True))
def test_gradients_are_those_of_the_formula(make: Make, kind: str) -> None:
    for view, host, inputs in every_host(kind, make):
        adapter = host.adapters["default"]
        trained = [p for p in adapter.parameters() if p.requires_grad]
        assert trained
        for x in inputs:
            leaf = x.clone().requires_grad_(x.is_floating_point())
            wanted = [*trained, *([leaf] if x.is_floating_point() else [])]
            weight, bias = adapter.weight(canonical(host)), adapter.bias(getattr(host, "bias", None))
            expected = operate(host, leaf, weight, bias)
            probe = torch.randn(expected.shape, dtype=expected.dtype)
            for got, want in zip(
                torch.autograd.grad((view(leaf) * probe).sum(), wanted, allow_unused=True),
                torch.autograd.grad((expected * probe).sum(), wanted, allow_unused=True),
                strict=True,
            ):
                zero = torch.zeros(())
                close(zero.double() if got is None else got, zero.double() if want is None else want)


@pytest.mark.parametrize(("make", "kind"), placements())
def test_a_fresh_adapter_changes_nothing(make: Make, kind: str) -> None:
    for host, inputs in hosts(kind, make):
        base = Holder(host).double().eval()
        view = get_peft_model(base, make(target_modules=["fc"]))
        for x in inputs:
            close(view(x), base(x), 1e-7, 1e-7)


@pytest.mark.parametrize(("make", "kind"), placements(formula=True))
def test_merging_one_host_gives_the_formulas_weight(make: Make, kind: str) -> None:
    for view, host, inputs in every_host(kind, make):
        adapter = copy.deepcopy(host.adapters["default"])
        before = canonical(host).detach().clone()
        outputs = [view(x) for x in inputs]
        if not adapter.mergeable:  # this one, of a class that is: it has a bias to merge, and the host has none
            with pytest.raises(StateError, match="cannot be merged"):
                view.merge_adapter()
            continue
        view.merge_adapter()
        close(canonical(host), adapter.weight(before))
        for x, y in zip(inputs, outputs, strict=True):
            close(view(x), y)


@pytest.mark.parametrize(("make", "kind"), placements())
def test_the_output_has_the_dtype_of_the_bases(make: Make, kind: str) -> None:
    for host, inputs in hosts(kind, make):
        base = Holder(host).to(torch.bfloat16).eval()
        view = scramble(get_peft_model(base, make(target_modules=["fc"])))
        assert {p.dtype for p in view.fc.adapters["default"].parameters() if p.requires_grad} <= {
            torch.float32,
            torch.bfloat16,
        }
        for x in inputs:
            x = x.bfloat16() if x.is_floating_point() else x
            assert view(x).dtype is base(x).dtype is torch.bfloat16


@pytest.mark.parametrize("make", methods())
def test_a_config_survives_its_file(make: Make) -> None:
    given = make(target_modules=["fc"])
    data = given.to_dict()
    again = type(given).from_dict(data)
    assert again == given
    assert again.to_dict() == data


@pytest.mark.parametrize("adapter", dict.fromkeys(registered().values()), ids=lambda cls: cls.__name__)
def test_the_docstring_states_formula_and_shapes(adapter: type[Adapter]) -> None:
    text = vars(adapter).get("__doc__") or ""  # its own, not an inherited one
    assert re.search(r"(W'|y) = .*W", text), "the formula, W' = ..."
    assert re.search(r"\b[A-Za-z]: \([^)]*\)", text), "the shapes, W: (out, in)"
