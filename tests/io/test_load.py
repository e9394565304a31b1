"""Loading: what fits is applied exactly, everything else is an error and changes nothing."""

from __future__ import annotations

import json
import pickle
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

import inlay.io.disk
import inlay.io.load
from inlay import AutoPeftModel, LoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from inlay.errors import (
    BaseMismatchError,
    ConfigError,
    CorruptFileError,
    FileError,
    InlayError,
    InlayWarning,
    MismatchError,
    MissingFileError,
    NumericsError,
    StateError,
    TargetError,
    UnsafeFileError,
    VersionError,
)
from inlay.io.folder import CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, WEIGHTS_NAME, open_folder, write_folder

from ..tiny import llama, mlp, outline, same, scramble, snapshot

UP_A, UP_B, DOWN_A, DOWN_B = (f"base_model.model.{m}.lora_{x}.weight" for m in ("up", "down") for x in "AB")
X = torch.linspace(-1, 1, 16).view(2, 8)


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["up", "down"], **changes})


def trained(base: Any = None, **changes: Any) -> Any:
    """A view whose adapter is off its initial value, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return scramble(get_peft_model(mlp() if base is None else base, lora(**changes)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`trained()`, saved."""
    trained().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a local folder never opens a socket")

    monkeypatch.setattr(socket, "socket", refuse)


def tensors_in(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / WEIGHTS_NAME)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any] | None = None, **fields: Any) -> None:
    """Changes tensors and config fields in a saved folder, under a manifest that holds again (the base's included)."""
    config = {**json.loads((folder / CONFIG_NAME).read_bytes()), **fields}
    tensors = tensors_in(folder)
    if change is not None:
        change(tensors)
    manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    extra = {k: v for k, v in manifest.items() if k not in ("format", "files")}
    write_folder(folder, {CONFIG_NAME: json.dumps(config).encode(), WEIGHTS_NAME: save(tensors)}, extra)


def as_peft(folder: Path) -> Path:
    """Without the manifest: what peft writes."""
    (folder / MANIFEST_NAME).unlink()
    return folder


def state(model: Any) -> Any:
    index = model.__dict__.get("_inlay")
    names = (list(index.configs), index.active.names, set(index.trainable)) if index is not None else None
    return outline(model), names


@contextmanager
def untouched(*models: Any) -> Iterator[None]:
    """Asserts that the block leaves everything of these models as it was."""
    before = [state(m) for m in models]
    yield
    assert [state(m) for m in models] == before


def refused(folder: Any, error: type[InlayError], *said: str, base: Any = None, **arguments: Any) -> InlayError:
    """The error of loading `folder` onto a base, onto a view beside another adapter; both are as before."""
    base = mlp() if base is None else base
    view = get_peft_model(base, lora(r=2)) if isinstance(getattr(base, "up", None), nn.Linear) else None
    for load in (
        lambda: PeftModel.from_pretrained(base, folder, **arguments),
        *([lambda: view.load_adapter(folder, "second", **arguments)] if view is not None else []),
    ):
        with untouched(base, *([view] if view is not None else [])), pytest.raises(error) as caught:
            load()
        assert type(caught.value) is error
        for text in said:
            assert text in str(caught.value), str(caught.value)
    return caught.value


# --- what fits


def test_round_trip(folder: Path) -> None:
    saved = trained()
    base = mlp()
    loaded = PeftModel.from_pretrained(base, folder)
    assert same(snapshot(loaded), snapshot(saved)) and torch.equal(loaded(X), saved(X))
    assert not torch.equal(loaded(X), base(X))
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training
    assert loaded.active_adapters == ["default"]
    again = PeftModel.from_pretrained(mlp(), folder, is_trainable=True)
    grads = {n for n, p in again.named_parameters() if p.requires_grad}
    assert len(grads) == 4 and all(".adapters." in n for n in grads)
    assert not again.peft_config["default"].inference_mode and loaded.peft_config["default"].inference_mode


def test_second_adapter_is_inactive(folder: Path) -> None:
    view = get_peft_model(mlp(), lora(r=2))
    before = view(X)
    assert view.load_adapter(folder, "second") == inlay.LoadReport()
    assert torch.equal(view(X), before) and view.active_adapters == ["default"]
    view.set_adapter("second")
    assert torch.equal(view(X), trained()(X))


def test_a_folder_without_manifest_loads(folder: Path) -> None:
    assert torch.equal(PeftModel.from_pretrained(mlp(), as_peft(folder))(X), trained()(X))


def test_config_instead_of_the_files(folder: Path) -> None:
    half = PeftModel.from_pretrained(mlp(), folder, config=lora(lora_alpha=4))
    assert torch.equal(half(X), trained(lora_alpha=4)(X)) and not torch.equal(half(X), trained()(X))


def test_config_from_pretrained(folder: Path) -> None:
    config = PeftConfig.from_pretrained(folder)
    assert isinstance(config, LoraConfig) and (config.r, config.lora_alpha) == (4, 8)
    assert LoraConfig.from_pretrained(folder.parent, subfolder="adapter", lora_alpha=1).lora_alpha == 1
    with pytest.raises(ConfigError, match=r"field='alpha'.*Did you mean 'lora_alpha'"):
        LoraConfig.from_pretrained(folder, alpha=1)


def test_config_and_weights_are_of_one_save(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save between reading the config (which chooses the view's class) and the weights has to wait."""
    real, tries = inlay.io.load.bare_view, []
    monkeypatch.setattr(inlay.io.disk, "LOCK_SECONDS", 0.05)

    def meanwhile(*args: Any) -> Any:
        with pytest.raises(FileError, match="in use by another process"):
            trained(lora_alpha=64).save_pretrained(folder)
        tries.append(1)
        return real(*args)

    monkeypatch.setattr(inlay.io.load, "bare_view", meanwhile)
    assert torch.equal(PeftModel.from_pretrained(mlp(), folder)(X), trained()(X)) and tries


def test_16_bit_bases(folder: Path) -> None:
    base = mlp(dtype=torch.bfloat16)
    kinds = [
        {p.dtype for n, p in PeftModel.from_pretrained(base, folder, **kw).named_parameters() if ".adapters." in n}
        for kw in ({}, {"autocast_adapter_dtype": False})
    ]
    assert kinds == [{torch.float32}, {torch.bfloat16}]


# --- several adapters


def test_each_adapter_has_its_folder(tmp_path: Path) -> None:
    view = trained()
    view.add_adapter("other", lora(r=2))
    scramble(view, seed=3)
    view.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(mlp(), tmp_path)
    loaded.load_adapter(tmp_path, "o", subfolder="other")
    for name, own in (("default", "default"), ("other", "o")):
        view.set_adapter(name)
        loaded.set_adapter(own)
        assert torch.equal(view(X), loaded(X))
    for p in view._inlay.placed["other"]["up"].parameters():
        p.data.zero_()
    expected = PeftModel.from_pretrained(mlp(), tmp_path, "other", subfolder="other")(X)
    view.load_adapter(tmp_path, "other")  # an existing name: found in the folder that saving put it in
    view.set_adapter("other")
    assert torch.equal(view(X), expected)


def test_only_subfolders_says_so(tmp_path: Path) -> None:
    get_peft_model(mlp(), lora(), "alpha").save_pretrained(tmp_path)
    refused(tmp_path, MissingFileError, str(tmp_path), CONFIG_NAME, "hold adapters: alpha", "as subfolder")


# --- untrusted artefacts


def test_fault_02_a_pickle_is_read_only_when_allowed(folder: Path, tmp_path: Path) -> None:
    torch.save(tensors_in(folder), folder / PICKLE_NAME)
    (as_peft(folder) / WEIGHTS_NAME).unlink()
    refused(folder, UnsafeFileError, str(folder / PICKLE_NAME), "allow_pickle=True")
    assert torch.equal(PeftModel.from_pretrained(mlp(), folder, allow_pickle=True)(X), trained()(X))
    flag = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (flag,))

    torch.save({UP_A: Evil()}, folder / PICKLE_NAME)
    refused(folder, UnsafeFileError, str(folder / PICKLE_NAME), allow_pickle=True)
    assert not flag.exists()
    pickle.loads(pickle.dumps(Evil()))
    assert flag.exists()  # it would have


def test_fault_06_no_module_is_imported_for_a_config(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evilmod.py").write_text("raise SystemExit('ran')\nclass Evil: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    mapping = {"base_model_class": "Evil", "parent_library": "evilmod"}
    rewrite(folder, auto_mapping=mapping, base_model_name_or_path=str(tmp_path))
    assert torch.equal(PeftModel.from_pretrained(mlp(), folder)(X), trained()(X))
    with pytest.raises((InlayError, OSError, ValueError)):
        AutoPeftModel.from_pretrained(folder)
    assert "evilmod" not in sys.modules


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"tokenizer_kwargs": {"trust_remote_code": True}}, "trust_remote_code"),
        ({"auto_mapping": {"inner": [{"trust_remote_code": False}]}}, "pass it as an argument"),
        ({"megatron_core": "evilmod.core"}, "megatron_core='evilmod.core' is not allowed"),
    ],
)
def test_fault_07_code_is_never_asked_for_by_a_file(folder: Path, fields: dict[str, Any], said: str) -> None:
    rewrite(folder, **fields)
    refused(folder, ConfigError, said)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(.*)*b", "a*" * 30 + "b"])
def test_fault_08_a_regex_that_backtracks_is_stopped(folder: Path, pattern: str) -> None:
    rewrite(folder, target_modules=pattern)
    base = nn.Sequential()
    base.add_module("a" * 60, nn.Linear(8, 8))
    start = time.process_time()
    with untouched(base), pytest.raises(ConfigError, match="target_modules"):
        PeftModel.from_pretrained(base, folder)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("rank", [5_000_000, 10**13, 1e13, 65_537], ids=str)
def test_fault_09_and_10_a_rank_beyond_reason_is_refused(folder: Path, rank: Any) -> None:
    rewrite(folder, r=rank)
    refused(folder, ConfigError, f"r={rank}")


def test_fault_09_the_largest_rank_is_held_against_the_header_first(tmp_path: Path) -> None:
    base = mlp(width=256)  # adapters of that rank would take 400 MB
    trained(base).save_pretrained(tmp_path)
    rewrite(tmp_path, r=65_536)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for strict in ({}, {"ignore_mismatched_sizes": False}):
        with pytest.raises(MismatchError, match=r"up.lora_A.weight: expected shape \(65536, 256\), got \(4, 256\)"):
            PeftModel.from_pretrained(base, tmp_path, **strict)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"layers_to_transform": [10**12]}, TargetError, "layers_to_transform"),
        ({"layers_to_transform": list(range(10**6))}, TargetError, "layers_to_transform"),
        ({"alpha_pattern": {f"m{i}": 1 for i in range(100_000)}}, ConfigError, "alpha_pattern"),
        ({"rank_pattern": {"up": 10**9}}, ConfigError, "rank_pattern['up']=1000000000"),
        ({"trainable_token_indices": {"up": [10**12]}}, ConfigError, "trainable_token_indices=[1000000000000]"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**9}, ConfigError, "num_virtual_tokens=1000000000"),
    ],
    ids=["layer", "layers", "patterns", "rank pattern", "token", "virtual tokens"],
)
def test_fault_11_sizes_beyond_reason_are_refused(
    folder: Path, fields: dict[str, Any], error: type[InlayError], said: str
) -> None:
    rewrite(folder, **fields)
    start = time.process_time()
    refused(folder, error, said)
    assert time.process_time() - start < 4  # two loads


# --- what is not there, or not what it was


def test_fault_26_missing_files_are_named_and_not_sought_elsewhere(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nothing", MissingFileError, str(tmp_path / "nothing"), "is not a folder")
    (folder / WEIGHTS_NAME).rename(tmp_path / "w")
    refused(folder, MissingFileError, str(folder / WEIGHTS_NAME), MANIFEST_NAME)
    as_peft(folder)
    refused(folder, MissingFileError, f"'{folder}' has no {WEIGHTS_NAME}", "Nothing was looked up on the network")
    (tmp_path / "w").rename(folder / WEIGHTS_NAME)
    (folder / CONFIG_NAME).unlink()
    refused(folder, MissingFileError, f"'{folder}' has no {CONFIG_NAME}")


@pytest.mark.parametrize("key", [UP_A, DOWN_B])
def test_fault_27_a_missing_key(folder: Path, key: str) -> None:
    rewrite(folder, lambda t: t.pop(key))
    error = refused(folder, MismatchError, str(folder), "1 keys", "are missing", key, "strict=False")
    assert isinstance(error, MismatchError) and error.missing == [key] and not error.unexpected


def test_fault_28_renamed_keys(folder: Path) -> None:
    def rename(t: dict[str, Tensor]) -> None:
        for key in list(t):
            t["model." + key.removeprefix("base_model.model.")] = t.pop(key)

    rewrite(folder, rename)
    error = refused(folder, MismatchError, "4 keys", "missing", UP_A, "model.up.lora_A.weight", "Did you mean 'base_mo")
    assert isinstance(error, MismatchError) and len(error.missing) == len(error.unexpected) == 4


def test_fault_29_extra_keys(folder: Path) -> None:
    extra = "base_model.model.layers.9.up.lora_A.weight"
    rewrite(folder, lambda t: t.update({extra: torch.zeros(4, 8)}))
    error = refused(folder, MismatchError, "1 keys have no place", extra)
    assert isinstance(error, MismatchError) and error.unexpected == [extra] and not error.missing


def test_fault_30_fewer_targets_in_the_config_than_in_the_file(folder: Path) -> None:
    rewrite(folder, target_modules=["up"])
    refused(folder, MismatchError, "2 keys have no place", DOWN_A, DOWN_B)


@pytest.mark.parametrize(("layers", "said"), [(1, "have no place"), (3, "are missing")])
@pytest.mark.parametrize("manifest", [True, False])
def test_fault_31_a_base_of_another_depth(tmp_path: Path, layers: int, said: str, manifest: bool) -> None:
    config = lora(target_modules=["q_proj"])
    scramble(get_peft_model(llama(), config)).save_pretrained(tmp_path)
    if not manifest:
        as_peft(tmp_path)
    base = llama(num_hidden_layers=layers)
    with untouched(base), pytest.raises(MismatchError) as caught:
        PeftModel.from_pretrained(base, tmp_path)
    at = "layers.1.self_attn.q_proj.lora_A.weight" if layers == 1 else "layers.2.self_attn.q_proj.lora_A.weight"
    assert isinstance(caught.value, BaseMismatchError) or (said in str(caught.value) and at in str(caught.value))
    assert manifest or not isinstance(caught.value, BaseMismatchError)


def test_fault_38_integers_are_no_weights(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({UP_A: t[UP_A].to(torch.int64)}))
    refused(folder, CorruptFileError, str(folder / WEIGHTS_NAME), UP_A, "torch.int64", "expected floating point")


def test_fault_39_a_field_of_a_later_version(folder: Path, tmp_path: Path) -> None:
    rewrite(folder, twist=3)
    with pytest.warns(InlayWarning, match=r"Unknown fields \['twist'\]"):
        view = PeftModel.from_pretrained(mlp(), folder)
    view.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / CONFIG_NAME).read_bytes())["twist"] == 3
    rewrite(folder, must_understand=["twist", "r"])
    refused(folder, VersionError, "['twist']", "update Inlay")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": "LORRA"}, ("peft_type='LORRA'", "LORA", "Did you mean 'LORA'")),
        ({"peft_type": None}, ("peft_type=None", "LORA")),
        ({"peft_type": ["LORA"]}, ("peft_type=['LORA']", "one of")),
        ({"task_type": "CHAT"}, ("task_type='CHAT'", "'CAUSAL_LM'", "'SEQ_CLS'")),
        ({"task_type": {}}, ("task_type={}", "'CAUSAL_LM'")),
    ],
)
def test_fault_40_unknown_types(folder: Path, fields: dict[str, Any], said: tuple[str, ...]) -> None:
    rewrite(folder, **fields)
    refused(folder, ConfigError, *said)


def test_fault_40_no_type(folder: Path) -> None:
    config = json.loads((as_peft(folder) / CONFIG_NAME).read_bytes())
    del config["peft_type"]
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    refused(folder, ConfigError, "peft_type=None", "not an adapter_config.json")


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_fault_41_files_of_two_saves(folder: Path, tmp_path: Path, name: str) -> None:
    other = trained(lora_alpha=64)
    scramble(other, seed=11).save_pretrained(tmp_path / "other")
    (folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
    refused(folder, CorruptFileError, str(folder / name), "expected", "got", "Fetch or save the adapter again")


def test_fault_46_subfolder_outside(folder: Path) -> None:
    for name in ("../other", "/etc", "a/../../b", "..\\other"):
        refused(folder, ConfigError, f"subfolder={name!r}", "a relative path", subfolder=name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("manifest", [True, False])
def test_fault_58_numbers_that_are_none(folder: Path, bad: float, manifest: bool) -> None:
    rewrite(folder, lambda t: t[DOWN_B].view(-1)[3:4].fill_(bad))
    if not manifest:
        as_peft(folder)
    refused(folder, NumericsError, str(folder / WEIGHTS_NAME), DOWN_B, "1 value(s) of 32", "earlier checkpoint")


# --- onto an existing name


def test_fault_47_an_existing_name_of_the_same_config_keeps_its_parameters(folder: Path) -> None:
    view = get_peft_model(mlp(), lora(lora_dropout=0.5))
    optimiser = torch.optim.SGD([p for p in view.parameters() if p.requires_grad], lr=0.1)
    before = {n: (id(p), p.data_ptr(), p.requires_grad) for n, p in view.named_parameters()}
    view.load_adapter(folder, "default", is_trainable=True)
    assert {n: (id(p), p.data_ptr(), p.requires_grad) for n, p in view.named_parameters()} == before
    assert same(snapshot(view), snapshot(trained())) and len(optimiser.param_groups[0]["params"]) == 4


@pytest.mark.parametrize(
    "changes", [{"r": 2}, {"lora_alpha": 16}, {"target_modules": ["up"]}, {"use_rslora": True}, {"bias": "lora_only"}]
)
def test_fault_47_an_existing_name_of_another_config(folder: Path, changes: dict[str, Any]) -> None:
    view = trained(**changes)
    with untouched(view), pytest.raises(ConfigError) as caught:
        view.load_adapter(folder, "default")
    for text in ("There is an adapter 'default' already", f"differ in {next(iter(changes))}", "another name"):
        assert text in str(caught.value)


def test_an_existing_name_and_a_file_that_does_not_fit(folder: Path) -> None:
    rewrite(folder, lambda t: t.pop(DOWN_A))
    view = scramble(trained(), seed=5)
    with untouched(view), pytest.raises(MismatchError, match=DOWN_A):
        view.load_adapter(folder, "default")


def test_nothing_is_loaded_while_merged(folder: Path) -> None:
    view = scramble(trained(), seed=5)
    view.merge_adapter()
    for load in (
        lambda: view.load_adapter(folder, "second"),
        lambda: view.load_adapter(folder, "default"),
        lambda: set_peft_model_state_dict(view, tensors_in(folder)),
    ):
        with untouched(view), pytest.raises(StateError, match=r"'default'.*merged.*unmerge_adapter"):
            load()


# --- not strict


def test_not_strict_applies_what_fits_and_reports_the_rest(folder: Path) -> None:
    extra = "base_model.model.gone.lora_A.weight"

    def spoil(t: dict[str, Tensor]) -> None:
        t.update({extra: torch.zeros(1), DOWN_B: torch.zeros(8, 3)})
        del t[DOWN_A]

    rewrite(folder, spoil)
    view = get_peft_model(mlp(), lora(r=2))
    report = view.load_adapter(folder, "second", strict=False)
    assert report.missing_keys == [DOWN_A] and report.unexpected_keys == [extra]
    assert report.mismatched_keys == {DOWN_B: ((8, 4), (8, 3))}
    own, source = snapshot(view), snapshot(trained())
    for x in "AB":
        assert torch.equal(own[f"up.adapters.second.lora_{x}"], source[f"up.adapters.default.lora_{x}"])
    assert not own["down.adapters.second.lora_B"].any()  # as new
    assert own["down.adapters.second.lora_A"].isfinite().all() and own["down.adapters.second.lora_A"].any()
    assert PeftModel.from_pretrained(mlp(), folder, strict=False)(X).isfinite().all()


def test_not_strict_still_knows_the_base_and_the_numbers(folder: Path) -> None:
    refused(folder, BaseMismatchError, "another base", base=mlp(seed=1), strict=False)
    rewrite(folder, lambda t: t[UP_A].fill_(float("nan")))
    refused(folder, NumericsError, UP_A, strict=False)


@pytest.mark.parametrize("existing", [True, False])
def test_ignore_mismatched_sizes(folder: Path, existing: bool) -> None:
    rewrite(folder, lambda t: t.update({DOWN_A: torch.ones(3, 16)}))
    refused(folder, MismatchError, f"{DOWN_A}: expected shape (4, 16), got (3, 16)")
    if existing:
        view = scramble(get_peft_model(mlp(), lora()), seed=5)
        kept = snapshot(view)["down.adapters.default.lora_A"]
        report = view.load_adapter(folder, "default", ignore_mismatched_sizes=True)
        assert torch.equal(snapshot(view)["down.adapters.default.lora_A"], kept)
    else:
        view = get_peft_model(mlp(), lora(), "first")
        report = view.load_adapter(folder, "default", ignore_mismatched_sizes=True)
    assert report.mismatched_keys == {DOWN_A: ((4, 16), (3, 16))} and not report.missing_keys
    own, source = snapshot(view), snapshot(trained())
    assert all(own[k].device.type == "cpu" and own[k].isfinite().all() for k in own)
    equal = [k for k in source if k in own and "default" in k and torch.equal(own[k], source[k])]
    assert sorted(k[-1] for k in equal) == ["A", "B", "B"]
    rewrite(folder, lambda t: t.pop(UP_A))  # shapes only: keys still count
    refused(folder, MismatchError, UP_A, ignore_mismatched_sizes=True)


def test_the_class_is_that_of_the_task(tmp_path: Path) -> None:
    get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(tmp_path)
    view = PeftModel.from_pretrained(llama(), tmp_path)
    assert isinstance(view, inlay.PeftModelForCausalLM) and open_folder(tmp_path).verified
