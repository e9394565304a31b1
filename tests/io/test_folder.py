"""What a reader accepts as an adapter folder, and what it says of everything else."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import inlay.io.disk
from inlay.errors import (
    ConfigError,
    CorruptFileError,
    FileError,
    InlayError,
    MissingFileError,
    UnsafeFileError,
    VersionError,
)
from inlay.io.disk import write_new
from inlay.io.folder import (
    CONFIG_NAME,
    MANIFEST_NAME,
    PICKLE_NAME,
    WEIGHTS_NAME,
    open_folder,
    reading,
    subfolder_of,
    write_folder,
)

FILES = {CONFIG_NAME: b'{"r": 8}\n', WEIGHTS_NAME: bytes(range(100)), "notes.md": b"hello"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "adapter", FILES, {"inlay": "1.0", "base": {"sha256": "abc"}})
    return tmp_path / "adapter"


@pytest.fixture
def peft_folder(tmp_path: Path) -> Path:
    path = tmp_path / "peft"
    path.mkdir()
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        (path / name).write_bytes(FILES[name])
    return path


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a local folder never causes a network call")

    monkeypatch.setattr(socket.socket, "connect", refuse)


# --- what is written is what is read


def test_round_trip(folder: Path) -> None:
    files = open_folder(folder)
    assert files.verified and files.names == sorted(FILES) and files.has(CONFIG_NAME) and not files.has(PICKLE_NAME)
    assert {name: files.path(name).read_bytes() for name in files.names} == FILES
    assert files.manifest is not None and files.manifest["inlay"] == "1.0" and files.manifest["base"]["sha256"] == "abc"
    with pytest.raises(MissingFileError, match=r"has no adapter_model.bin; it has adapter_config.json"):
        files.path(PICKLE_NAME)


def test_manifest_says_what_the_files_are(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    assert manifest["format"] == 1
    assert manifest["files"]["notes.md"] == {
        "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        "size": 5,
    }


def test_equal_saves_give_equal_folders(folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "again", dict(reversed(FILES.items())), {"base": {"sha256": "abc"}, "inlay": "1.0"})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == before
    write_folder(folder, FILES, {"inlay": "1.0", "base": {"sha256": "abc"}})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_old_files_of_the_adapter_go_and_others_stay(folder: Path) -> None:
    (folder / PICKLE_NAME).write_bytes(b"stale")
    (folder / "tokenizer.json").write_bytes(b"{}")
    write_folder(folder, {CONFIG_NAME: b"{}", WEIGHTS_NAME: b""}, {})
    assert set(os.listdir(folder)) == {CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME, "tokenizer.json"}


def test_a_listed_file_that_someone_changed_is_theirs(folder: Path) -> None:
    (folder / "notes.md").write_bytes(b"my own notes")
    write_folder(folder, {CONFIG_NAME: b"{}", WEIGHTS_NAME: b""}, {})
    assert (folder / "notes.md").read_bytes() == b"my own notes"


def test_writing_over_a_damaged_folder_repairs_it(folder: Path) -> None:
    (folder / MANIFEST_NAME).write_bytes(b'{"format": ')
    write_folder(folder, FILES, {})
    assert open_folder(folder).verified


def test_config_only_needs_no_weights(folder: Path, peft_folder: Path) -> None:
    (folder / WEIGHTS_NAME).write_bytes(b"damaged")
    (peft_folder / WEIGHTS_NAME).unlink()
    assert open_folder(folder, config_only=True).names == [CONFIG_NAME]
    assert open_folder(peft_folder, config_only=True).names == [CONFIG_NAME]
    with pytest.raises(CorruptFileError):
        open_folder(folder)


@pytest.mark.parametrize(
    ("files", "extra", "said"),
    [
        ({CONFIG_NAME: b"{}"}, {}, "adapter_config.json and adapter_model.safetensors among them"),
        ({**FILES, "../evil": b""}, {}, "files='../evil' is not allowed: expected a plain file name"),
        ({**FILES, "a/b": b""}, {}, "'a/b'"),
        ({**FILES, "": b""}, {}, "''"),
        ({**FILES, ".hidden": b""}, {}, "'.hidden'"),
        ({**FILES, "a\n": b""}, {}, "plain"),
        ({**FILES, "x" * 201: b""}, {}, "plain"),
        ({**FILES, PICKLE_NAME: b""}, {}, "neither manifest nor pickle"),
        ({**FILES, MANIFEST_NAME: b""}, {}, "neither manifest nor pickle"),
        (FILES, {"files": {}}, r"extra=\['files'\]"),
        (FILES, {"loss": float("nan")}, "loss=nan"),
    ],
)
def test_what_is_not_written(tmp_path: Path, files: dict[str, bytes], extra: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        write_folder(tmp_path / "a", files, extra)
    assert not (tmp_path / "a").exists()


# --- peft's folders


@pytest.mark.parametrize("weights", [WEIGHTS_NAME, PICKLE_NAME])
def test_a_peft_folder_is_read_unverified(peft_folder: Path, weights: str) -> None:
    (peft_folder / WEIGHTS_NAME).rename(peft_folder / weights)
    (peft_folder / "README.md").write_text("card")
    files = open_folder(peft_folder)
    assert not files.verified and files.manifest is None and files.names == sorted([CONFIG_NAME, weights])


def test_links_are_read_as_in_the_hub_cache(peft_folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        (snapshot / name).symlink_to(peft_folder / name)
    assert open_folder(snapshot).path(CONFIG_NAME).read_bytes() == FILES[CONFIG_NAME]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / CONFIG_NAME).unlink(), "has no adapter_config.json, so it is not an adapter. Nothing was"),
        (lambda f: (f / WEIGHTS_NAME).unlink(), r"has no adapter_model.safetensors \(or adapter_model.bin\)"),
        (lambda f: (f / CONFIG_NAME).rename(f / "config.json"), "looks like a whole model"),
        (lambda f: nest(f), "subfolders hold adapters: alpha. Pass one of them as subfolder"),
        (lambda f: dangle(f / CONFIG_NAME), "has no adapter_config.json"),
        (lambda f: pipe(f / CONFIG_NAME), "has no adapter_config.json"),
    ],
    ids=["config", "weights", "whole model", "nested", "dangling link", "pipe"],
)
def test_what_is_missing_is_named(peft_folder: Path, spoil: Callable[[Path], None], said: str) -> None:
    spoil(peft_folder)
    with pytest.raises(MissingFileError, match=said):
        open_folder(peft_folder)


def nest(folder: Path) -> None:
    (folder / "alpha").mkdir()
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        (folder / name).rename(folder / "alpha" / name)


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def test_no_folder(tmp_path: Path, peft_folder: Path) -> None:
    for path in (tmp_path / "nothing", peft_folder / CONFIG_NAME, peft_folder / CONFIG_NAME / "below"):
        with pytest.raises(MissingFileError, match=r"is not a folder on this machine. An adapter is a folder with"):
            open_folder(path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


# --- damage


@pytest.mark.parametrize("name", sorted(FILES))
def test_any_change_of_a_listed_file_is_found(folder: Path, name: str) -> None:
    path, data = folder / name, FILES[name]
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        with pytest.raises(CorruptFileError, match=f"{name}.*expected {len(data)} bytes.*got {cut} bytes"):
            open_folder(folder)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(CorruptFileError, match=r"delete inlay_manifest.json to load the folder unverified"):
            open_folder(folder)
    path.unlink()
    with pytest.raises(MissingFileError, match=r"inlay_manifest.json lists it"):
        open_folder(folder)
    path.write_bytes(data + b"\0")
    with pytest.raises(CorruptFileError):
        open_folder(folder)
    path.write_bytes(data)
    assert open_folder(folder).verified


def test_the_remedy_works(folder: Path) -> None:
    (folder / CONFIG_NAME).write_bytes(b'{"r": 9}')
    (folder / MANIFEST_NAME).unlink()
    assert not open_folder(folder).verified


def test_a_cut_or_flipped_manifest_never_changes_the_answer(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    data = path.read_bytes()
    good = json.loads(data)
    for cut in range(len(data) - 1):  # the last byte is a newline
        path.write_bytes(data[:cut])
        with pytest.raises(CorruptFileError, match=MANIFEST_NAME):
            open_folder(folder)
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1
        path.write_bytes(flipped)
        try:
            files = open_folder(folder)
        except FileError:
            continue
        assert files.manifest is not None and files.manifest["files"] == good["files"]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"format": 2}, VersionError, "has format 2; this Inlay knows 1. Upgrade Inlay"),
        ({"format": "1"}, CorruptFileError, "is not a manifest"),
        ({"format": True}, CorruptFileError, "is not a manifest"),
        ({"files": []}, CorruptFileError, "is not a manifest"),
        ({"files": {CONFIG_NAME: {}}}, CorruptFileError, "list adapter_config.json and adapter_model.safetensors"),
        ({"more": {"a": "x"}}, CorruptFileError, "describes 'a' by x: expected 'sha256'"),
        ({"more": {"a": {"sha256": "A" * 64, "size": 1}}}, CorruptFileError, "64 hex digits"),
        ({"more": {"a": {"sha256": "a" * 64, "size": 1.0}}}, CorruptFileError, "expected"),
        ({"more": {"a": {"sha256": "a" * 64, "size": 1}}}, MissingFileError, "a' is not there"),
        ({"more": {"../a": {"sha256": "a" * 64, "size": 1}}}, UnsafeFileError, "'../a', which is no plain file name"),
        ({"more": {"/etc/passwd": {"sha256": "a" * 64, "size": 1}}}, UnsafeFileError, "do not trust this folder"),
        ({"more": {"..": {"sha256": "a" * 64, "size": 1}}}, UnsafeFileError, "plain"),
        ({"more": {"a\0": {"sha256": "a" * 64, "size": 1}}}, UnsafeFileError, "plain"),
    ],
)
def test_manifests_that_are_refused(folder: Path, change: dict[str, Any], error: type[InlayError], said: str) -> None:
    manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    manifest["files"].update(change.pop("more", {}))
    (folder / MANIFEST_NAME).write_text(json.dumps({**manifest, **change}))
    with pytest.raises(error, match=said):
        open_folder(folder)


def test_a_manifest_with_a_key_twice_is_damaged(folder: Path) -> None:
    text = (folder / MANIFEST_NAME).read_text()
    (folder / MANIFEST_NAME).write_text(text.replace('"format": 1', '"format": 1, "format": 1'))
    with pytest.raises(CorruptFileError, match=r"gives the key 'format' twice"):
        open_folder(folder)


def test_a_pipe_or_device_is_never_waited_for(folder: Path, peft_folder: Path) -> None:
    os.mkfifo(peft_folder / MANIFEST_NAME)
    with pytest.raises(FileError, match=r"not a regular file"):
        open_folder(peft_folder)
    (folder / WEIGHTS_NAME).unlink()
    (folder / WEIGHTS_NAME).symlink_to("/dev/zero")
    with pytest.raises(MissingFileError):
        open_folder(folder)


# --- links, modes, names


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME, PICKLE_NAME])
def test_a_link_is_replaced_and_never_followed(folder: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(victim)
    write_folder(folder, FILES, {})
    assert victim.read_bytes() == b"precious" and not (folder / name).is_symlink()
    assert open_folder(folder).verified


def test_a_link_at_a_staged_name_is_not_followed(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    config = json.loads((folder / MANIFEST_NAME).read_bytes())["files"][CONFIG_NAME]["sha256"]
    (folder / f".{CONFIG_NAME}.{config[:16]}.inlay").symlink_to(victim)
    write_folder(folder, FILES, {})
    assert victim.read_bytes() == b"precious" and open_folder(folder).verified


def test_a_new_file_is_new(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name in ("file", "link"):
        with pytest.raises(FileExistsError):
            write_new(tmp_path / name, b"x")
    assert (tmp_path / "file").read_bytes() == b"precious" and not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME, PICKLE_NAME])
def test_a_folder_in_the_way_is_named_before_anything_changes(peft_folder: Path, name: str) -> None:
    (peft_folder / name).unlink(missing_ok=True)
    (peft_folder / name).mkdir()
    before = sorted(os.listdir(peft_folder))
    with pytest.raises(FileError, match=f"is a folder, where a file of the adapter goes.*{name}"):
        write_folder(peft_folder, FILES, {})
    assert sorted(os.listdir(peft_folder)) == before


def test_a_file_where_the_folder_goes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FileError, match=r"was not saved.*Not a directory"):
            write_folder(path, FILES, {})
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_honour_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_folder(tmp_path / "a", FILES, {})
    finally:
        os.umask(before)
    for path in (tmp_path / "a").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o777 & ~umask


def test_a_relative_folder_and_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder("runs/a", FILES, {})
    write_folder(".", FILES, {})
    assert open_folder("runs/a").verified and open_folder(tmp_path).verified


@pytest.mark.parametrize("name", ["alpha", "checkpoints/step-100", "a b", "ä", ".", "./a"])
def test_subfolders(tmp_path: Path, name: str) -> None:
    assert subfolder_of(tmp_path, name) == tmp_path / name
    assert subfolder_of(tmp_path, None) == subfolder_of(tmp_path, "") == tmp_path


@pytest.mark.parametrize(
    "name", ["../other", "a/../..", "..", "/etc", "a\\b", "C:x", "C:/x", "//host/x", "a\0b", "a\nb"]
)
def test_subfolders_that_lead_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"subfolder=.*expected a relative path"):
        subfolder_of(tmp_path / "a", name)


def test_a_subfolder_that_is_a_link(tmp_path: Path) -> None:
    for name in ("a", "a/inside", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "link").symlink_to("../outside")
    (tmp_path / "a" / "best").symlink_to("inside")
    with pytest.raises(UnsafeFileError, match=r"outside.*Pass that path itself"):
        subfolder_of(tmp_path / "a", "link")
    assert subfolder_of(tmp_path / "a", "best") == tmp_path / "a" / "best"


def test_a_body_of_reading_keeps_its_own_errors(folder: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, reading(folder):
        raise FileNotFoundError("mine")
    assert not isinstance(caught.value, FileError)
    write_folder(folder, FILES, {})  # and the lock is gone


def test_the_lowest_layer_is_light(tmp_path: Path) -> None:
    """Saving and checking a folder imports neither torch nor anything that is not Python's own."""
    script = "import sys, inlay.io.folder; print([m for m in ('torch', 'numpy', 'safetensors') if m in sys.modules])"
    source = str(Path(inlay.io.disk.__file__).parents[2])
    run = [sys.executable, "-c", script]
    assert subprocess.run(run, env={"PYTHONPATH": source}, capture_output=True, text=True, check=True).stdout == "[]\n"
