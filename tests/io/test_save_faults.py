"""Saving a view under bad conditions: odd names, killed or failing at every call, merged, not finite."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import inlay.io.disk
from inlay import LoraConfig, PeftModel, get_peft_model
from inlay.errors import ConfigError, FileError, MissingFileError, NumericsError
from inlay.io.folder import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME, open_folder

from ..tiny import mlp, scramble
from .test_load import DOWN_B, X, lora, tensors_in, trained, untouched
from .test_transaction import FailAt, KillAt, StrikeAt, Unsynced, fork_and

FILES = {CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME, "README.md"}


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def loaded(folder: Path, **arguments: Any) -> torch.Tensor:
    found: torch.Tensor = PeftModel.from_pretrained(mlp(), folder, **arguments)(X)
    return found


def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    before = content(tmp_path)
    view = PeftModel.from_pretrained(mlp(), tmp_path, is_trainable=True)
    with untouched(view):
        view.save_pretrained(tmp_path)
    assert content(tmp_path) == before


# --- names


@pytest.mark.parametrize(
    "name",
    ["/x", "a/b", "..", ".", "a.b", "", "x" * 65, "a\n", "a ", " a", "a\0", "a\\b", "e\u0301", "keys", "__base__", 3],
)
def test_fault_42_and_43_names_that_are_no_folders_name(tmp_path: Path, name: Any) -> None:
    base, view = mlp(), trained()
    trained().save_pretrained(tmp_path / "a")
    for refuse in (
        lambda: get_peft_model(base, lora(), name),
        lambda: view.add_adapter(name, lora()),
        lambda: view.load_adapter(tmp_path / "a", name),
        lambda: PeftModel.from_pretrained(base, tmp_path / "a", name),
    ):
        with untouched(view), pytest.raises(ConfigError) as caught:
            refuse()
        assert caught.value.field == "adapter_name" and f"adapter_name={name!r}"[:60] in str(caught.value)


def test_fault_44_names_equal_up_to_case(tmp_path: Path) -> None:
    view = get_peft_model(mlp(), lora(), "A")
    trained().save_pretrained(tmp_path)
    for add in (lambda: view.add_adapter("a", lora()), lambda: view.load_adapter(tmp_path, "a")):
        with untouched(view), pytest.raises(ConfigError, match=r"adapter_name='a'.*differs from 'A' in more than case"):
            add()


@pytest.mark.parametrize("name", ["lora", "weight", "base_layer", "default", "adapters", "lora_A", "ärmel-2", "0"])
def test_fault_45_names_that_are_words_of_ours(tmp_path: Path, name: str) -> None:
    trained().save_pretrained(tmp_path / "reference")
    view = scramble(get_peft_model(mlp(), lora(), name))
    view.save_pretrained(tmp_path)
    folder = tmp_path if name == "default" else tmp_path / name
    assert tensors_in(folder).keys() == tensors_in(tmp_path / "reference").keys()
    again = PeftModel.from_pretrained(mlp(), folder, name)
    assert torch.equal(again(X), view(X)) and again.active_adapters == [name]


def test_fault_45_modules_that_are_called_by_words_of_ours(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight_proj = nn.Linear(8, 8)
            self.lora_A = nn.ModuleDict({"default": nn.Linear(8, 8), "base_layer": nn.Linear(8, 8)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in (self.weight_proj, *self.lora_A.values()):
                x = layer(x)
            return x

    base = Odd()
    view = scramble(get_peft_model(base, LoraConfig(target_modules=["weight_proj", "default", "base_layer"])))
    view.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(again(X), view(X)) and not torch.equal(view(X), base(X))
    assert "base_model.model.lora_A.base_layer.lora_B.weight" in tensors_in(tmp_path)


# --- merged, not finite


def test_fault_57_saving_while_merged_equals_unmerged(tmp_path: Path) -> None:
    view = trained(bias="all", modules_to_save=["down"], target_modules=["up"])
    view.save_pretrained(tmp_path / "a" / "x", save_embedding_layers=True)
    before = view(X)
    view.merge_adapter()
    with untouched(view):
        view.save_pretrained(tmp_path / "b" / "x", save_embedding_layers=True)
    own, other = content(tmp_path / "a" / "x"), content(tmp_path / "b" / "x")
    assert own.pop("README.md") and other.pop("README.md") and own == other and len(own) == 3
    assert torch.equal(loaded(tmp_path / "b" / "x"), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_fault_58_an_adapter_that_is_not_finite_is_not_saved(tmp_path: Path, bad: float) -> None:
    view = trained()
    view.add_adapter("other", lora(r=2))
    view.save_pretrained(tmp_path)
    before = content(tmp_path)
    scramble(view, seed=9)
    with torch.no_grad():
        view._inlay.placed["other"]["down"].B[0, 0] = bad
    with pytest.raises(NumericsError, match=rf"'{DOWN_B}'.*being saved.*1 value\(s\) of 16.*earlier checkpoint"):
        view.save_pretrained(tmp_path)
    assert content(tmp_path) == before, "of neither adapter"
    view.save_pretrained(tmp_path, selected_adapters=["default"])
    assert content(tmp_path) != before


# --- killed, failing, refused


def through(disk: Any, work: Callable[[], Any]) -> None:
    """Does `work` with every call to the file system going through `disk`, then restores the real one."""
    real = inlay.io.disk.DISK
    vars(real).update(object.__getattribute__(disk, "__dict__"))
    real.__class__ = type(disk)
    try:
        work()
    finally:
        object.__getattribute__(real, "__dict__").clear()
        real.__class__ = inlay.io.disk.Disk


def old_and_new() -> tuple[Any, Any, list[torch.Tensor]]:
    """Two adapters of equal shapes: a mix of their files would load, and give a third output."""
    old, new = trained(), scramble(trained(lora_alpha=64), seed=3)
    outputs = [old(X), new(X)]
    mixed = [trained(lora_alpha=64)(X), scramble(trained(), seed=3)(X)]
    assert not any(torch.equal(m, y) for m in mixed for y in outputs)
    return old, new, outputs


def which(output: torch.Tensor, outputs: list[torch.Tensor]) -> int:
    return next(i for i, y in enumerate(outputs) if torch.equal(y, output))


def test_the_double_sees_every_call(tmp_path: Path) -> None:
    """What follows stands on `through`: it reaches the lock, the files, the manifest and the card."""
    calls = []

    class Log(StrikeAt):
        def _strike(self, name: str, real: Any, args: Any) -> None:
            calls.append((name, str(args[0]) if args else ""))

    through(Log(1, sticky=True), lambda: trained().save_pretrained(tmp_path / "a"))
    assert type(inlay.io.disk.DISK) is inlay.io.disk.Disk and not vars(inlay.io.disk.DISK)
    written = [path for name, path in calls if name == "open_new"]
    assert len(written) == len(FILES) and all(any(name in path for path in written) for name in FILES)
    assert {"try_lock", "replace", "fsync_dir"} <= {name for name, _ in calls}


def folders(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    for at in range(1, 1000):
        yield at, tmp_path / str(at)
        shutil.rmtree(tmp_path / str(at), ignore_errors=True)
    raise AssertionError("a save makes fewer calls")


@pytest.mark.parametrize("first", [True, False], ids=["first save", "over an old one"])
def test_fault_50_killed_at_every_call_leaves_old_or_new(tmp_path: Path, first: bool) -> None:
    old, new, outputs = old_and_new()
    old.save_pretrained(tmp_path / "template")
    (tmp_path / "template" / "tokenizer.json").write_bytes(b"{}")
    readme = (tmp_path / "template" / "README.md").read_bytes()
    seen: list[int] = []
    for at, folder in folders(tmp_path):
        if not first:
            shutil.copytree(tmp_path / "template", folder)
        status = fork_and(lambda at=at, folder=folder: through(KillAt(at), lambda: new.save_pretrained(folder)))
        assert status in (0, signal.SIGKILL)
        try:
            seen.append(which(loaded(folder), outputs))
        except MissingFileError:
            assert first
            seen.append(0)
        if not first:
            assert (folder / "tokenizer.json").exists() and (folder / "README.md").read_bytes() == readme
        if status == 0:
            break
        if at % 7 == 0:  # and the next save heals what the kill left
            through(Unsynced(), lambda folder=folder: new.save_pretrained(folder))
            assert torch.equal(loaded(folder), outputs[1])
            assert set(os.listdir(folder)) - {"tokenizer.json"} == FILES
    assert len(seen) > 40 and seen == sorted(seen) and seen[0] == 0 and seen[-1] == 1


@pytest.mark.parametrize(("code", "sticky"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_fault_51_failing_at_every_call_is_an_error_and_old_or_new(tmp_path: Path, code: int, sticky: bool) -> None:
    old, new, outputs = old_and_new()
    seen = []
    for at, folder in folders(tmp_path):
        through(Unsynced(), lambda folder=folder: old.save_pretrained(folder))
        disk = FailAt(at, code, sticky, ("mkdir", "open_new", "write", "fsync", "replace", "fsync_dir"))
        try:
            through(disk, lambda folder=folder, disk=disk: new.save_pretrained(folder))
        except FileError as error:
            assert os.strerror(code) in str(error) and str(folder) in str(error)
        else:
            break
        seen.append(which(loaded(folder), outputs))
    assert len(seen) > 8 and seen == sorted(seen) and seen[0] == 0 and seen[-1] == 1


def test_fault_52_a_disk_that_is_full_at_the_first_save(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=os.strerror(errno.ENOSPC)):
        through(FailAt(1, errno.ENOSPC, True, ("write",)), lambda: trained().save_pretrained(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_fault_53_a_folder_that_may_not_be_written(tmp_path: Path, code: int) -> None:
    """By a double, as the tests may run as root, whom no mode stops."""
    trained().save_pretrained(tmp_path)
    before = content(tmp_path)
    for save in (trained(lora_alpha=1).save_pretrained, lora(r=1).save_pretrained):
        disk = FailAt(1, code, True, ("mkdir", "open_new", "replace", "unlink"))
        with pytest.raises(FileError, match=rf"{tmp_path}.*{os.strerror(code)}"):
            through(disk, lambda save=save: save(tmp_path))
    assert content(tmp_path) == before and torch.equal(loaded(tmp_path), trained()(X))


def test_fault_56_a_checkpoint_that_was_cut_off_is_none(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path / "checkpoint-1")
    later, folder = scramble(trained(), seed=4), tmp_path / "checkpoint-2"
    disk = KillAt(2, only=("open_new",))
    assert fork_and(lambda: through(disk, lambda: later.save_pretrained(folder))) == signal.SIGKILL
    assert len(os.listdir(folder)) == 1
    with pytest.raises(MissingFileError, match=f"'{folder}' has no {CONFIG_NAME}"):
        loaded(folder)
    assert torch.equal(loaded(tmp_path / "checkpoint-1"), trained()(X))


# --- a config alone


def test_a_config_alone_keeps_manifest_and_weights(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST_NAME).read_bytes())
    LoraConfig.from_pretrained(tmp_path, lora_alpha=16).save_pretrained(tmp_path)
    assert open_folder(tmp_path).verified and torch.equal(loaded(tmp_path), trained(lora_alpha=16)(X))
    after = json.loads((tmp_path / MANIFEST_NAME).read_bytes())
    assert after["base"] == manifest["base"] and after["files"][WEIGHTS_NAME] == manifest["files"][WEIGHTS_NAME]


def test_a_config_alone_killed_at_every_call(tmp_path: Path) -> None:
    seen = []
    for at, _ in folders(tmp_path):
        lora(r=3).save_pretrained(tmp_path)
        status = fork_and(lambda at=at: through(KillAt(at), lambda: lora(r=5).save_pretrained(tmp_path)))
        seen.append(LoraConfig.from_pretrained(tmp_path).r)
        if status == 0:
            break
    assert seen == sorted(seen) and seen[0] == 3 and seen[-1] == 5 and len(seen) > 6
    assert os.listdir(tmp_path) == [CONFIG_NAME]


# --- the card


def test_a_card_that_is_there_survives_a_kill_and_a_full_disk(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    text = b"---\r\nlicense: mit\r\n---\r\n# My own words\r\n\r\ntext  "
    for at, _ in folders(tmp_path):
        (tmp_path / "README.md").write_bytes(text)
        view = trained()
        status = fork_and(
            lambda at=at, view=view: through(KillAt(at), lambda: view.create_or_update_model_card(tmp_path))
        )
        found = (tmp_path / "README.md").read_bytes()
        assert found.endswith(b"# My own words\r\n\r\ntext  ") and b"license: mit" in found
        if status == 0:
            break
    assert at > 6 and found != text
    with pytest.raises(FileError, match=rf"'{tmp_path}/README.md' cannot be written: {os.strerror(errno.ENOSPC)}"):
        through(FailAt(1, errno.ENOSPC, True, ("write",)), lambda: trained(r=1).create_or_update_model_card(tmp_path))
    assert (tmp_path / "README.md").read_bytes() == found
