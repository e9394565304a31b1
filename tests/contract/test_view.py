"""What every method promises for a whole model: merging, files, copies, switching, and the base left alone."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from inlay import PeftModel, get_peft_model, get_peft_model_state_dict
from inlay.core.copies import TrainedModule, TrainedParameters
from inlay.errors import NumericsError, StateError
from tests.contract.cases import Make, canonical, methods, targets, view_of
from tests.tiny import HOSTS, VOCAB, close, ids, net, older, outline, same, scramble, snapshot

METHODS = pytest.mark.parametrize("make", methods())


def mergeable(view: Any) -> bool:
    """Whether every adapter of the view is a change of the weight."""
    return all(a.mergeable for placed in view._inlay.placed.values() for a in placed.values())


def verbatim(view: Any) -> bool:
    """Whether what the adapters hold is what merging puts in the weights' place: copies, not something computed."""
    return all(
        isinstance(a, TrainedModule | TrainedParameters)
        for placed in view._inlay.placed.values()
        for a in placed.values()
    )


def adapter_tensors(view: Any, name: str = "default") -> dict[str, Tensor]:
    """Copies of one adapter's tensors."""
    return {
        f"{path}.{k}": v.detach().clone()
        for path, adapter in view._inlay.placed[name].items()
        for k, v in adapter.state_dict().items()
    }


def give(view: Any, tensors: dict[str, Tensor], name: str = "default") -> None:
    """Sets one adapter's tensors to those of another view's."""
    for path, adapter in view._inlay.placed[name].items():
        adapter.load_state_dict({k.removeprefix(path + "."): v for k, v in tensors.items() if k.startswith(path + ".")})


@METHODS
def test_the_base_and_its_parameter_names_are_untouched(make: Make) -> None:
    base = net()
    names, before, y = set(base.state_dict()), outline(base), base(ids())
    view = scramble(view_of(make, base))
    assert not torch.equal(view(ids()), y)
    after = outline(base)
    assert all(not grad for grad in after.pop("grad").values()), "a base under a view is frozen"
    before.pop("grad")
    assert after == before
    assert torch.equal(base(ids()), y)
    assert {n for n in view.state_dict() if ".adapters." not in n} == names


@METHODS
def test_disabled_it_is_the_base_bit_for_bit(make: Make) -> None:
    base = net()
    view = scramble(view_of(make, base))
    y = view(ids())
    with view.disable_adapter():
        assert torch.equal(view(ids()), base(ids()))
    assert torch.equal(view(ids()), y)
    view.disable_adapters()
    assert torch.equal(view(ids()), base(ids()))
    view.enable_adapters()
    assert torch.equal(view(ids()), y)


@METHODS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merging_and_unmerging_ten_times_is_exact_and_never_touches_the_base(make: Make, dtype: torch.dtype) -> None:
    """Fault 60, and 57: what is saved while merged is the adapter."""
    base = net(dtype=dtype)
    before = snapshot(base)
    view = scramble(view_of(make, base))
    if not mergeable(view):
        with pytest.raises(StateError, match="cannot be merged"):
            view.merge_adapter()
        return
    own, tensors, y = snapshot(view), adapter_tensors(view), view(ids())
    for _ in range(10):
        view.merge_adapter()
        assert any(not torch.equal(view.state_dict()[k], own[k]) for k in before)
        assert same(snapshot(base), before)
        view.unmerge_adapter()
        assert same(snapshot(view), own)
    assert torch.equal(view(ids()), y)
    assert same(adapter_tensors(view), tensors)
    assert all(base.get_parameter(k) is view.get_parameter(k) for k, _ in base.named_parameters())


@METHODS
def test_merged_output_is_the_unmerged_one(make: Make) -> None:
    view = scramble(view_of(make, net(dtype=torch.float64)))
    y = view(ids())
    if not mergeable(view):
        pytest.skip("not mergeable")
    view.merge_adapter()
    close(view(ids()), y)
    view.unmerge_adapter()
    assert torch.equal(view(ids()), y)


@METHODS
def test_merge_and_unload_is_a_plain_model_of_the_bases_class(make: Make) -> None:
    base = net(dtype=torch.float64)
    before = snapshot(base)
    view = scramble(view_of(make, base))
    y = view(ids())
    if not mergeable(view):
        pytest.skip("not mergeable")
    merged = view.merge_and_unload()
    assert type(merged) is type(base)
    assert set(merged.state_dict()) == set(before)
    assert {type(m) for m in merged.modules()} == {type(m) for m in base.modules()}
    assert {k: sorted(vars(m)) for k, m in merged.named_modules()} == {
        k: sorted(vars(m)) for k, m in base.named_modules()
    }
    close(merged(ids()), y)
    assert torch.equal(view(ids()), y)
    assert same(snapshot(base), before)
    with torch.no_grad():
        for p in merged.parameters():
            if any(p is q for q in base.parameters()):
                continue
            p.zero_()
    assert same(snapshot(base), before)


@METHODS
def test_two_active_adapters_merge_to_what_they_compute_together(make: Make) -> None:
    view = view_of(make, net(dtype=torch.float64), adapter_name="a")
    view.add_adapter("b", make(target_modules=targets(make)))
    scramble(view)
    try:
        view.set_adapter(["a", "b"])
    except StateError as error:
        assert "cannot be active together" in str(error)
        return
    y = view(ids())
    if mergeable(view):
        view.merge_adapter()
        close(view(ids()), y)


@METHODS
def test_a_saved_adapter_loads_to_equal_outputs(make: Make, tmp_path: Path) -> None:
    base = net()
    view = scramble(view_of(make, base))
    y = view(ids())
    view.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(net(), tmp_path)
    assert torch.equal(again(ids()), y)
    assert same(adapter_tensors(again), adapter_tensors(view))
    again.save_pretrained(tmp_path / "again")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


@METHODS
def test_57_saved_while_merged_it_is_the_unmerged_adapter(make: Make, tmp_path: Path) -> None:
    view = scramble(view_of(make))
    if not mergeable(view):
        pytest.skip("not mergeable")
    view.save_pretrained(tmp_path / "before")
    view.merge_adapter()
    view.save_pretrained(tmp_path / "merged")
    for name in ("adapter_model.safetensors", "adapter_config.json", "inlay_manifest.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


@METHODS
def test_what_is_saved_from_a_given_state_dict_is_that_and_the_view_keeps_its_own(make: Make) -> None:
    view, other = (scramble(view_of(make, net()), size=size) for size in (0.1, 0.2))
    before, wanted = snapshot(view), get_peft_model_state_dict(other)
    found = get_peft_model_state_dict(view, state_dict=other.state_dict())
    assert set(found) == set(wanted) and all(torch.equal(found[k], v) for k, v in wanted.items())
    assert same(snapshot(view), before)


@METHODS
def test_reloading_into_an_existing_name_keeps_the_parameters(make: Make, tmp_path: Path) -> None:
    """An optimizer made before the load goes on working: this is how Trainer resumes."""
    view = scramble(view_of(make))
    view.save_pretrained(tmp_path)
    y, parameters = view(ids()), {k: p for k, p in view.named_parameters() if p.requires_grad}
    scramble(view, seed=8)
    assert not torch.equal(view(ids()), y)
    report = view.load_adapter(tmp_path, "default", is_trainable=True)
    assert not report.missing_keys and not report.unexpected_keys and not report.mismatched_keys
    assert torch.equal(view(ids()), y)
    again = {k: p for k, p in view.named_parameters() if p.requires_grad}
    assert again.keys() == parameters.keys() and all(again[k] is parameters[k] for k in again)


@METHODS
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_is_equal_and_independent(make: Make, how: str) -> None:
    view = scramble(view_of(make))
    y = view(ids())
    twin = copy.deepcopy(view) if how == "deepcopy" else pickle.loads(pickle.dumps(view))
    assert type(twin) is type(view)
    assert torch.equal(twin(ids()), y)
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in view.parameters()}
    assert all(twin.get_parameter(k).requires_grad == p.requires_grad for k, p in view.named_parameters())
    scramble(twin, 1.0)
    twin.set_adapter([])
    assert torch.equal(twin(ids()), twin.unload()(ids()))
    assert torch.equal(view(ids()), y)


@METHODS
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # at graph breaks
def test_it_compiles_to_one_graph(make: Make) -> None:
    view = scramble(view_of(make, net(dtype=torch.float64)))
    torch._dynamo.reset()
    # an older torch cannot trace `stand_in`
    copied = any(isinstance(a, TrainedParameters) for a in view._inlay.placed["default"].values())
    whole = not copied or not older("torch", "2.12")
    compiled = torch.compile(view, fullgraph=whole, backend="eager")
    close(compiled(ids()), view(ids()))
    trained = [p for p in view.parameters() if p.requires_grad]
    for got, want in zip(
        torch.autograd.grad(compiled(ids()).square().sum(), trained),
        torch.autograd.grad(view(ids()).square().sum(), trained),
        strict=True,
    ):
        close(got, want)
    y = compiled(ids())
    with view.disable_adapter():
        assert not torch.equal(compiled(ids()), y)
    torch._dynamo.reset()


@METHODS
def test_on_a_16_bit_base_adapters_are_float32_and_close_to_the_float32_result(make: Make) -> None:
    base = net(dtype=torch.bfloat16)
    view = scramble(view_of(make, base))
    wide = view_of(make, net().bfloat16().float())
    give(wide, adapter_tensors(view))
    assert not torch.equal(wide(ids()), wide.unload()(ids()))
    close(view(ids()).float(), wide(ids()), 0.05, 0.02)
    kept = view_of(make, base, autocast_adapter_dtype=False)
    give(kept, adapter_tensors(view))
    assert {p.dtype for p in kept.parameters()} == {torch.bfloat16}
    close(kept(ids()).float(), wide(ids()), 0.05, 0.02)


@METHODS
def test_under_autocast_it_runs_and_trains(make: Make) -> None:
    view = scramble(view_of(make))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = view(ids())
    close(y.float(), view(ids()), 0.05, 0.05)
    y.float().sum().backward()
    for name, p in view.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and p.grad.dtype == p.dtype, name
            assert bool(torch.isfinite(p.grad).all()), name


@METHODS
def test_every_trainable_parameter_gets_a_gradient(make: Make) -> None:
    view = scramble(view_of(make)).train()
    view(ids()).square().sum().backward()
    own = {id(p) for a in view._inlay.placed["default"].values() for p in a.parameters()}
    for name, p in view.named_parameters():
        assert p.requires_grad == (id(p) in own), name
        assert (p.grad is not None and bool(p.grad.abs().sum() > 0)) == p.requires_grad, name


@METHODS
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(make: Make, reentrant: bool) -> None:
    view = scramble(view_of(make))
    trained = [p for p in view.parameters() if p.requires_grad]
    view(ids()).square().sum().backward()
    plain = [p.grad for p in trained]
    for p in trained:
        p.grad = None
    start = torch.zeros((), requires_grad=True)  # the re-entrant kind wants an input that requires grad
    checkpoint(lambda x, _: view(x), ids(), start, use_reentrant=reentrant).square().sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(trained, plain, strict=True))  # type: ignore[arg-type]


@METHODS
def test_switching_gives_the_outputs_of_each_alone(make: Make) -> None:
    alone = {}
    for name, seed in (("a", 1), ("b", 2)):
        view = scramble(view_of(make, adapter_name=name), seed=seed)
        alone[name] = view(ids())
        if name == "a":
            both = view
    both.add_adapter("b", make(target_modules=targets(make)))
    assert torch.equal(both(ids()), alone["a"]), "an added adapter is inactive"
    give(both, adapter_tensors(view, "b"), "b")
    for name in ("b", "a", "b"):
        both.set_adapter(name)
        assert both.active_adapters == [name]
        assert torch.equal(both(ids()), alone[name])
        trained = {k.split(".adapters.")[1].split(".")[0] for k, p in both.named_parameters() if p.requires_grad}
        assert trained == {name}


@METHODS
def test_rows_of_a_batch_name_their_adapters(make: Make) -> None:
    base = net(dtype=torch.float64)
    view = view_of(make, base, adapter_name="a")
    view.add_adapter("b", make(target_modules=targets(make)))
    scramble(view)
    names = ["b", "__base__", "a", "b", "a"]
    x = ids(5)
    expected = []
    for i, name in enumerate(names):
        view.set_adapter([] if name == "__base__" else name)
        expected.append(view(x[i : i + 1]))
    view.set_adapter("a")
    close(view(x, adapter_names=names), torch.cat(expected))
    close(view(x), torch.cat([view(x[i : i + 1]) for i in range(5)]))


@METHODS
def test_deleting_restores_the_hosts_classes(make: Make) -> None:
    base = net()
    view = scramble(view_of(make, base, adapter_name="a"))
    y = view(ids())
    view.add_adapter("b", make(target_modules=targets(make)))
    view.delete_adapter("b")
    assert torch.equal(view(ids()), y)
    view.delete_adapter("a")  # fault 49: without its only adapter a view answers as its base
    assert torch.equal(view(ids()), base(ids()))
    children = {k: (type(m), sorted(vars(m))) for k, m in view.named_modules() if k}
    assert children == {k: (type(m), sorted(vars(m))) for k, m in base.named_modules() if k}
    assert view.peft_config == {} and view.active_adapters == []
    assert set(view.state_dict()) == set(base.state_dict())


@METHODS
def test_58_an_adapter_with_nan_is_refused_by_save_and_merge(make: Make, tmp_path: Path) -> None:
    base = net()
    view = scramble(view_of(make, base))
    for adapter in view._inlay.placed["default"].values():
        for p in adapter.parameters():
            if p.is_floating_point():
                p.data.flatten()[-1] = float("nan")
    before, own = snapshot(base), outline(view)
    with pytest.raises(NumericsError, match=r"NaN|nan"):
        view.save_pretrained(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    if mergeable(view):
        with pytest.raises(NumericsError, match="The base is unchanged"):
            view.merge_adapter()
        with pytest.raises(NumericsError, match="The base is unchanged"):
            view.merge_and_unload()
        assert same(snapshot(base), before)
        now = outline(view)
        assert {k: v for k, v in now.items() if k != "tensors"} == {k: v for k, v in own.items() if k != "tensors"}
        assert view._inlay.merged == []


@METHODS
def test_59_overflow_when_merging_into_float16_is_an_error_and_changes_nothing(make: Make) -> None:
    base = net(dtype=torch.float16)
    with torch.no_grad():
        for p in base.parameters():
            p.mul_(64)
    before = snapshot(base)
    view = view_of(make, base)
    if not mergeable(view) or verbatim(view):
        pytest.skip("merging computes nothing")
    with torch.no_grad():
        for adapter in view._inlay.placed["default"].values():
            for p in adapter.parameters():
                p.fill_(3e4)  # fits float16; products do not
        placed = view._inlay.placed["default"].items()
        wide = [a.weight(canonical(view.get_submodule(k)).float()) for k, a in placed if not a.replaces_host]
    if wide and all(bool((w.abs() < torch.finfo(torch.float16).max).all()) for w in wide):
        pytest.skip("whatever its parameters are, its weight is no larger than the base's")
    own = snapshot(view)
    with pytest.raises(NumericsError, match="wider dtype"):
        view.merge_adapter()
    assert same(snapshot(base), before) and same(snapshot(view), own)
    assert view._inlay.merged == []


@METHODS
def test_deterministic_without_dropout_and_random_with_it_only_in_training(make: Make) -> None:
    view = scramble(view_of(make))
    assert torch.equal(view(ids()), view(ids()))
    view.train()
    drops = any(getattr(c, f, 0) for c in view.peft_config.values() for f in vars(c) if f.endswith("dropout"))
    assert torch.equal(view(ids()), view(ids())) == (not drops)


class _Allocations(TorchDispatchMode):
    """Bytes of each new storage that an operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor) and not t.is_meta}
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in given:
            self.sizes.append(out.untyped_storage().nbytes())
        return out


class _Wide(nn.Module):
    """A large host of each kind, for counting memory."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4000, 64)
        self.conv1 = nn.Conv1d(64, 64, 31)
        self.conv2 = nn.Conv2d(64, 64, 7)
        self.conv3 = nn.Conv3d(32, 32, 5)
        self.norm = nn.LayerNorm(64)
        self.fc = nn.Linear(512, 512)
        self.head = nn.Linear(512, 512)


def _held(*models: nn.Module) -> int:
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for m in models
        for t in [*m.parameters(), *m.buffers()]
    }
    return sum(storages.values())


@METHODS
def test_memory_grows_by_the_adapters_only(make: Make) -> None:
    base = _Wide()
    view_of(make, base)  # what is made once per process, such as random places in a weight of some shape, is no matter
    before = _held(base)
    largest = max(p.numel() * p.element_size() for p in base.parameters())
    with _Allocations() as made:
        views = [view_of(make, base) for _ in range(2)]
    adapters = _held(*[a for v in views for a in v._inlay.placed["default"].values()])
    assert _held(base, *views) - before <= adapters
    assert {p.data_ptr() for p in base.parameters()} <= {p.data_ptr() for p in views[0].parameters()}
    if adapters < before / 4:  # a method that is small by nature also allocates nothing large on the way
        assert max(made.sizes) < largest / 4


def _train(view: Any, steps: list[int], optimizer: Any = None) -> Any:
    trained = [p for p in view.parameters() if p.requires_grad]
    optimizer = optimizer or torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
    view.train()
    for step in steps:
        torch.manual_seed(step)  # dropout
        x = (ids(4) + step) % VOCAB
        F.cross_entropy(view(x).flatten(0, 1), x.flatten() % 5).backward()
        optimizer.step()
        optimizer.zero_grad()
    view.eval()
    return optimizer


@METHODS
def test_two_views_trained_in_turn_are_what_each_is_alone(make: Make) -> None:
    other = dict(methods()[0].values[0](target_modules=["fc", "embed"]).to_dict(), r=3)
    other_config = type(methods()[0].values[0](target_modules=["fc"])).from_dict(other)
    start = snapshot(net())

    def first(base: Any) -> Any:
        torch.manual_seed(1)
        return scramble(view_of(make, base))

    def second(base: Any) -> Any:
        torch.manual_seed(2)
        return scramble(get_peft_model(base, other_config), seed=9)

    alone = []
    for create, offset in ((first, 0), (second, 10)):
        view = create(net())
        _train(view, [offset + i for i in range(4)])
        alone.append((adapter_tensors(view), view(ids())))
        assert same(snapshot(view.unload()), start)
    base = net()
    views, optimizers = [first(base), second(base)], [None, None]
    for step in range(4):
        for i, offset in ((0, 0), (1, 10)):
            optimizers[i] = _train(views[i], [offset + step], optimizers[i])
            assert same(snapshot(base), start)
    for view, (tensors, y) in zip(views, alone, strict=True):
        assert same(adapter_tensors(view), tensors)
        assert torch.equal(view(ids()), y)
    assert torch.equal(base(ids()), net()(ids()))


@METHODS
def test_a_dropped_view_leaves_nothing_behind(make: Make) -> None:
    base = net()
    counts = {k: len(vars(m)) for k, m in base.named_modules()}
    view = view_of(make, base)
    merged = view.merge_and_unload() if mergeable(view) else None
    adapters = [weakref.ref(a) for a in view._inlay.placed["default"].values()]
    del view
    gc.collect()
    assert adapters and all(ref() is None for ref in adapters)
    assert {k: len(vars(m)) for k, m in base.named_modules()} == counts
    del merged


def test_the_net_has_a_host_of_every_kind() -> None:
    model = net()
    from inlay.core.host import KINDS, kind_of

    assert set(HOSTS) == {*KINDS.values(), "module"}
    assert all((kind_of(model.get_submodule(p)) or "module") == kind for kind, paths in HOSTS.items() for p in paths)
