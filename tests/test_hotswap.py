"""Hot-swapping: what a swapped adapter computes and saves, what is refused, and that nothing is compiled again."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inlay import (
    IA3Config,
    LoraConfig,
    PeftModel,
    as_plain_lora,
    check_hotswap_configs_compatible,
    get_peft_model,
    get_peft_model_state_dict,
    hotswap_adapter,
    hotswap_adapter_from_state_dict,
    inject_adapter_in_model,
    prepare_model_for_compiled_hotswap,
)
from inlay.errors import (
    BaseMismatchError,
    ConfigError,
    CorruptFileError,
    InlayWarning,
    MismatchError,
    NumericsError,
    StateError,
)
from inlay.merge.convert import approximate
from tests.tiny import HOSTS, ids, llama, mlp, net, outline, scramble

X = torch.linspace(-1, 1, 16).view(2, 8)
EVERYWHERE = [path for kind in ("linear", "embedding", "conv2d", "conv3d") for path in HOSTS[kind]]


def saved(base: Any, folder: Path, seed: int = 1, **fields: Any) -> Path:
    """A folder with an adapter of these fields that does something."""
    fields = {"target_modules": ["up", "down"], **fields}
    view = scramble(get_peft_model(base, LoraConfig(**fields)), seed=seed)
    view.save_pretrained(str(folder))
    return folder


def fresh(base: Any, folder: Path) -> Any:
    return PeftModel.from_pretrained(base, folder)


@torch.no_grad()
def out(model: Any, x: Tensor = X) -> Tensor:
    y = model(x)
    return y if isinstance(y, Tensor) else y.logits


def equal(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


FIELDS: dict[str, dict[str, Any]] = {
    "same rank": {"r": 4, "lora_alpha": 4},
    "lower rank": {"r": 2, "lora_alpha": 4},
    "another scale": {"r": 4, "lora_alpha": 11, "use_rslora": True},
    "patterns": {"r": 1, "rank_pattern": {"up": 3}, "alpha_pattern": {"down": 7}},
    "fewer layers": {"r": 2, "target_modules": ["down"], "lora_alpha": 9},
}


@pytest.mark.parametrize("prepared", [None, 4, 6], ids=str)
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
def test_it_becomes_the_other_adapter(fields: dict[str, Any], prepared: int | None, tmp_path: Path) -> None:
    base = mlp()
    first, second = saved(base, tmp_path / "1", r=4), saved(base, tmp_path / "2", seed=2, **fields)
    view = fresh(base, first)
    y = out(view)
    if prepared:
        prepare_model_for_compiled_hotswap(view, target_rank=prepared)
        assert torch.equal(out(view), y)
    before = {name: id(p) for name, p in view.named_parameters()}
    hotswap_adapter(view, second, "default")
    expected = fresh(base, second)
    equal(out(view), out(expected))
    assert {name: id(p) for name, p in view.named_parameters()} == before, "parameters are the same objects"
    assert not any(p.requires_grad for p in view.parameters())
    # there and back
    hotswap_adapter(view, str(first), "default", torch_device="cpu")
    equal(out(view), y)
    assert torch.equal(out(base), out(mlp()))


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
def test_what_else_there_is_to_do_with_it(fields: dict[str, Any], tmp_path: Path) -> None:
    """It saves its own rank, merges, is added up, converted and copied as the adapter that it is."""
    base = mlp()
    first, second = saved(base, tmp_path / "1", r=4), saved(base, tmp_path / "2", seed=2, **fields)
    view = fresh(base, first)
    prepare_model_for_compiled_hotswap(view, target_rank=6)
    hotswap_adapter(view, second, "default")
    other = fresh(base, second)
    expected = out(other)
    mine, theirs = (get_peft_model_state_dict(m) for m in (view, other))
    extra = mine.keys() - theirs.keys()  # layers that the second has not are there, as zeros
    assert theirs.keys() <= mine.keys() and all(torch.equal(mine[k], theirs[k]) for k in theirs)
    assert not any(mine[k].any() for k in extra) and bool(extra) == ("target_modules" in fields)
    view.save_pretrained(str(tmp_path / "again"))
    equal(out(fresh(base, tmp_path / "again")), expected)
    equal(out(view.merge_and_unload()), expected)
    view.merge_adapter()
    equal(out(view), expected)
    view.unmerge_adapter()
    equal(out(copy.deepcopy(view)), expected)
    view.add_weighted_adapter(["default", "default"], [0.5, 0.5], "sum", combination_type="cat")
    as_plain_lora(view, "default", "plain")
    for name in ("sum", "plain"):
        view.set_adapter(name)
        equal(out(view), expected)
    assert max(approximate(view, 1.0).report.ranks.values()) <= 4
    # and it can be read again into the parameters that are there
    view.load_adapter(str(tmp_path / "again"), "default")
    view.set_adapter("default")
    equal(out(view), expected)


@pytest.mark.parametrize(
    "fields", [{}, {"use_dora": True}, {"bias": "lora_only"}, {"bias": "all"}, {"lora_bias": True}], ids=str
)
def test_every_kind_of_layer_and_variant(fields: dict[str, Any], tmp_path: Path) -> None:
    base = net()
    targets = [t for t in EVERYWHERE if not (fields.get("lora_bias") and t in ("embed", "head"))]
    first = saved(base, tmp_path / "1", r=2, target_modules=targets, **fields)
    second = saved(base, tmp_path / "2", 2, r=3, lora_alpha=5, target_modules=targets, **fields)
    less = targets if fields.get("bias") == "all" else [t for t in targets if t not in ("fc", "conv2")]
    third = saved(base, tmp_path / "3", 3, r=1, target_modules=less, **fields)
    view = fresh(base, first)
    prepare_model_for_compiled_hotswap(view, target_rank=4)
    for folder in (second, third, first):
        hotswap_adapter(view, folder, "default")
        equal(out(view, ids()), out(fresh(base, folder), ids()))


def test_modules_trained_in_full_and_the_head(tmp_path: Path) -> None:
    base = llama(cls="LlamaForSequenceClassification", num_labels=3)
    fields = {"target_modules": ["q_proj"], "task_type": "SEQ_CLS", "r": 2}
    first, second = (saved(base, tmp_path / str(i), i, **fields) for i in (1, 2))
    view = fresh(base, first)
    hotswap_adapter(view, second, "default")
    x = ids() % 30 + 3
    equal(out(view, x), out(fresh(base, second), x))
    base = mlp()
    view = fresh(base, saved(base, tmp_path / "3", target_modules=["up"], modules_to_save=["down"]))
    with pytest.raises(MismatchError, match=r"has nothing for 'down', which 'default' trains in full"):
        hotswap_adapter(view, saved(base, tmp_path / "4", target_modules=["up"]), "default")
    with pytest.raises(MismatchError, match=r"\(LoraLinear\) at 'down', where 'default' has TrainedModule"):
        hotswap_adapter(view, saved(base, tmp_path / "5"), "default")


def test_in_a_model_that_was_changed_in_place_and_from_tensors(tmp_path: Path) -> None:
    """As diffusers does it: no prefix, and the adapter's name in the keys."""
    base = mlp()
    second = saved(base, tmp_path, 2, r=3, lora_alpha=7)
    expected, tensors = fresh(base, second), get_peft_model_state_dict(fresh(base, second))
    model = mlp()
    inject_adapter_in_model(LoraConfig(target_modules=["up", "down"], r=2), model, "one")
    prepare_model_for_compiled_hotswap(model, target_rank=4, config=LoraConfig(r=2), check_compiled="error")
    keys = {k: k.removeprefix("base_model.model.").replace(".weight", ".one.weight") for k in tensors}
    config = LoraConfig(target_modules=["up", "down"], r=3, lora_alpha=7)
    check_hotswap_configs_compatible(model._inlay.configs["one"], config)
    hotswap_adapter_from_state_dict(model, {keys[k]: t for k, t in tensors.items()}, "one", config)
    equal(out(model), out(expected))
    before = outline(model)
    bad = {keys[k]: t * float("nan") for k, t in tensors.items()}
    with pytest.raises(NumericsError):
        hotswap_adapter_from_state_dict(model, bad, "one", config)
    with pytest.raises(MismatchError, match=r"'the given state dict' does not fit the model.*up.lora_A.weight"):
        hotswap_adapter_from_state_dict(model, {keys[k]: t for k, t in tensors.items() if "up" not in k}, "one", config)
    assert outline(model) == before


# ---------------------------------------------------------------------- what is refused changes nothing


def test_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    base = mlp()
    view = fresh(base, saved(base, tmp_path / "1", r=2))
    prepare_model_for_compiled_hotswap(view, target_rank=4)
    cases: list[tuple[Path, type[Exception], str]] = [
        (
            saved(base, tmp_path / "rank", r=5),
            MismatchError,
            r"has rank 5 at 'up', where 'default' has room for 4: call ",
        ),
        (saved(base, tmp_path / "dora", use_dora=True), ConfigError, r"variant='dora' is not allowed: expected ''"),
        (saved(base, tmp_path / "bias", bias="all"), ConfigError, r"bias='all' is not allowed: expected 'none'"),
        (saved(base, tmp_path / "pissa", init_lora_weights="pissa"), ConfigError, r"'pissa'.*as_plain_lora makes"),
        (saved(mlp(seed=3), tmp_path / "base", r=2), BaseMismatchError, r"base"),
    ]
    bad = saved(base, tmp_path / "cut", r=2)
    weights = bad / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    cases.append((bad, CorruptFileError, r"is not the file that was saved"))
    other = scramble(get_peft_model(base, IA3Config(target_modules=["up"], feedforward_modules=[])))
    other.save_pretrained(str(tmp_path / "ia3"))
    cases.append((tmp_path / "ia3", ConfigError, r"IA3 adapters cannot be hot-swapped, only LoRA"))
    before = outline(view)
    config = view.peft_config["default"].to_dict()
    for folder, error, message in cases:
        with pytest.raises(error, match=message):
            hotswap_adapter(view, folder, "default")
        assert outline(view) == before and view.peft_config["default"].to_dict() == config
    with pytest.raises(StateError, match=r"There is no adapter 'defalt'"):
        hotswap_adapter(view, tmp_path / "1", "defalt")
    view.merge_adapter()
    with pytest.raises(StateError, match=r"'default' is merged into the weights: call unmerge_adapter\(\) before swap"):
        hotswap_adapter(view, tmp_path / "1", "default")


def test_layers_that_the_adapter_does_not_have(tmp_path: Path) -> None:
    base = mlp()
    view = fresh(base, saved(base, tmp_path / "1", target_modules=["up"]))
    before = outline(view)
    with pytest.raises(MismatchError, match=r"has an adapter \(LoraLinear\) at 'down', where 'default' has none"):
        hotswap_adapter(view, saved(base, tmp_path / "2"), "default")
    assert outline(view) == before


def test_what_cannot_be_prepared(tmp_path: Path) -> None:
    base = net()
    view = get_peft_model(base, LoraConfig(r=4, target_modules=["conv1", "fc"]))
    before = outline(view)
    with pytest.raises(
        ConfigError, match=r"target_rank=2 is not allowed: expected a rank of at least 4, as at 'conv1'"
    ):
        prepare_model_for_compiled_hotswap(view, target_rank=2)
    with pytest.raises(StateError, match=r"'conv1' is a convolution with groups and cannot be padded"):
        prepare_model_for_compiled_hotswap(view, target_rank=8)
    with pytest.raises(ConfigError, match=r"check_compiled='no' is not allowed: expected one of 'error', 'warn'"):
        prepare_model_for_compiled_hotswap(view, check_compiled="no")
    view.compile(backend="eager")
    with pytest.raises(StateError, match=r"compiled already.*before torch.compile"):
        prepare_model_for_compiled_hotswap(view)
    with pytest.raises(StateError, match=r"compiled already"):
        prepare_model_for_compiled_hotswap(torch.compile(mlp(), backend="eager"))
    del view._compiled_call_impl
    assert outline(view) == before
    anchored = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["up"], init_lora_weights="pissa"))
    with pytest.raises(StateError, match=r"'up' is anchored to the base \(as_plain_lora\)"):
        prepare_model_for_compiled_hotswap(anchored, target_rank=4)
    with pytest.raises(StateError, match=r"There is no LoRA adapter to prepare"):
        prepare_model_for_compiled_hotswap(
            get_peft_model(mlp(), IA3Config(target_modules=["up"], feedforward_modules=[]))
        )
    with pytest.warns(InlayWarning, match=r"compiled already"):
        prepare_model_for_compiled_hotswap(
            torch.compile(get_peft_model(mlp(), LoraConfig(target_modules=["up"])), backend="eager"),
            check_compiled="warn",
        )


def test_padding_stays_zero_in_training() -> None:
    view = scramble(get_peft_model(mlp(), LoraConfig(target_modules=["up", "down"], r=2)))
    twin = copy.deepcopy(view)
    prepare_model_for_compiled_hotswap(view, target_rank=5)
    for model in (view, twin):
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
    equal(out(view), out(twin))
    adapter = view.up.adapters["default"]
    assert adapter.A.shape == (5, 8) and not adapter.A[2:].any() and not adapter.B[:, 2:].any()


# ---------------------------------------------------------------------- under torch.compile


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    torch._dynamo.reset()


class Counting:
    """A backend that runs what it is given, and counts."""

    def __init__(self) -> None:
        self.compiled = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.compiled += 1
        return graph


SWAPS = [{"r": 3, "lora_alpha": 1}, {"r": 4, "lora_alpha": 9}, {"r": 1, "lora_alpha": 5, "use_rslora": True}]


@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_nothing_is_compiled_again(fields: dict[str, Any], tmp_path: Path) -> None:
    base = mlp()
    view = fresh(base, saved(base, tmp_path / "0", r=2, **fields))
    prepare_model_for_compiled_hotswap(view, target_rank=4)
    count = Counting()
    compiled = torch.compile(view, backend=count)
    equal(out(compiled), out(view))
    assert count.compiled > 0
    before = count.compiled
    for i, swap in enumerate([*SWAPS, {"r": 2, "target_modules": ["down"]}]):
        folder = saved(base, tmp_path / f"{i + 1}", seed=i + 2, **fields, **swap)
        hotswap_adapter(compiled, folder, "default")
        y = out(compiled)
        assert count.compiled == before, f"compiled again for {swap}"
        equal(y, out(fresh(base, folder)), 1e-5)


def test_the_counter_counts(tmp_path: Path) -> None:
    """Without preparing, another rank is refused, another scale compiles again, the same rank and scale do not."""
    base = mlp()
    view = fresh(base, saved(base, tmp_path / "0", r=2))
    count = Counting()
    compiled = torch.compile(view, backend=count)
    out(compiled)
    before = count.compiled
    hotswap_adapter(view, saved(base, tmp_path / "1", 2, r=2), "default")
    equal(out(compiled), out(fresh(base, tmp_path / "1")), 1e-5)
    assert count.compiled == before
    hotswap_adapter(view, saved(base, tmp_path / "2", 3, r=2, lora_alpha=30), "default")
    equal(out(compiled), out(fresh(base, tmp_path / "2")), 1e-5)
    assert count.compiled > before


def test_with_inductor_on_a_language_model(tmp_path: Path) -> None:
    base = llama()
    fields = {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    view = fresh(base, saved(base, tmp_path / "0", r=2, **fields))
    prepare_model_for_compiled_hotswap(view, target_rank=4)
    compiled = torch.compile(view)
    x = ids(2, 4) + 3
    equal(out(compiled, x), out(view, x), 1e-4)
    for i, swap in enumerate(SWAPS):
        folder = saved(base, tmp_path / f"{i + 1}", seed=i + 2, **fields, **swap)
        hotswap_adapter(compiled, folder, "default")
        with torch.compiler.set_stance("fail_on_recompile"):
            y = out(compiled, x)
        equal(y, out(fresh(base, folder), x), 1e-4)
