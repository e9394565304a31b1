"""An adapter folder on disk, as a transaction.

**Promise.** `write_folder` killed at any instant, or the power lost, leaves a folder in which `open_folder` finds the
old adapter or the new one: complete, never a mix. That holds too when the old adapter was written by peft (no manifest)
and when there was none. Files that belong to no adapter (a tokenizer, a README) are not touched.

**Protocol** (a redo log; the manifest is the commit record). Under an exclusive lock on the folder:

1. *Recover.* If an earlier save died, sync the folder, move the files that its manifest committed into place, and
   remove every other staged file. From here on nothing staged is of use to anyone.
2. *Stage.* Write each file as `.{name}.{start of its sha256}.inlay`, the manifest last; sync each, then the folder.
3. *Commit.* Rename the staged manifest into place; sync the folder. Before this instant a reader finds the old adapter,
   after it the new one: the manifest names every file with its sha256, and a reader that finds other bytes at the
   final name takes the staged file, if its bytes match.
4. *Roll forward.* Remove the old config (sync), rename the weights and the rest, remove what the old manifest listed
   and the new one does not, and peft's pickle (sync), rename the config (sync).

Why each step is there: without the sync before 3 the manifest could survive a power loss that its files did not;
without the one after it, files could be replaced beneath the old manifest. Step 1 syncs before it acts because a
process sees names that are not durable yet. Step 4 takes the config away first and brings it back last, so that
readers that know no manifest (peft, vLLM) find the old adapter, the new one or none, never a new config with old
weights.

**Failure.** An error before the commit removes what was staged and leaves the old adapter as it was. After the commit
nothing can be taken back and nothing needs to be: the error says that the adapter is saved, and the next save tidies
up. An error of the commit itself is decided by whether the staged manifest still stands there.

**Limits.** Where the file system has no `flock` (NFS, Windows), two simultaneous writers can leave a folder that is
refused by the next reader, though never misread by Inlay. A file that the old manifest listed and whose removal in
step 4 was cut off stays as a stray. A tool that overwrites the folder after a save was cut off (and before the next
one) is not noticed: the staged files still count. `fsync` is as good as the system's own; on macOS it stops at the
drive's cache.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from inlay.errors import CorruptFileError, FileError, UnsafeFileError, VersionError
from inlay.io.disk import DISK, Disk, exists, locked, reason, write_new
from inlay.io.manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    PICKLE_NAME,
    find,
    is_staged,
    pack_manifest,
    read_manifest,
    sha256,
    staged_path,
)

_KEPT = (
    "The adapter was not saved to '{folder}': {reason}. An adapter that was there is there unchanged. "
    "Remove the cause and save again."
)
_SAVED = (
    "The adapter is saved in '{folder}' and Inlay loads it, but its files did not all reach their final names, so "
    "other tools cannot read it yet: {reason}. Remove the cause and save again."
)
_UNKNOWN = (
    "Saving the adapter to '{folder}' failed: {reason}; nor does the disk tell whether the new adapter is in force. "
    "The folder holds the old one or the new one, complete. Remove the cause and save again."
)


def write_folder(folder: Path | str, files: Mapping[str, bytes], extra: Mapping[str, Any], disk: Disk = DISK) -> None:
    """Make `folder` hold exactly the adapter `files`, all or nothing (see the protocol above).

    Args:
        folder: created, with its parents, where it does not exist.
        files: name -> content; `adapter_config.json` and `adapter_model.safetensors` must be among them.
        extra: further entries of the manifest, such as `inlay` (the version) and facts about the base.

    Equal arguments give equal bytes on disk, the manifest included.

    Raises:
        ConfigError: a name is not a plain file name, or `extra` is not JSON. Nothing was touched.
        FileError: the system refused (full, read-only, failing disk; another process holds the folder). The message
            says which adapter the folder holds now: before the commit the old one, untouched; after it the new one.
    """
    folder = Path(folder)
    blobs = {**files, MANIFEST_NAME: pack_manifest(files, extra)}
    staged = {name: staged_path(folder, name, sha256(data)) for name, data in blobs.items()}
    made: list[Path] = []
    begun: list[Path] = []
    outcome = _KEPT
    try:
        _make_folder(folder, made, disk)
        with locked(folder, exclusive=True, disk=disk):
            try:
                obsolete = _prepare(folder, blobs, disk)
                for name, data in blobs.items():
                    begun.append(staged[name])
                    write_new(staged[name], data, disk)
                disk.fsync_dir(folder)
                outcome = _UNKNOWN
                disk.replace(staged[MANIFEST_NAME], folder / MANIFEST_NAME)
                disk.fsync_dir(folder)
                _roll_forward(folder, {name: staged[name] for name in files}, obsolete, disk)
            except BaseException:
                if outcome is _UNKNOWN:
                    with suppress(OSError):
                        outcome = _KEPT if exists(staged[MANIFEST_NAME], disk) else _SAVED
                if outcome is _KEPT:
                    _discard(begun, disk.unlink)
                raise
    except BaseException as error:
        if outcome is _KEPT:
            _discard(reversed(made), disk.rmdir)
        if isinstance(error, OSError) and not isinstance(error, FileError):
            raise FileError(outcome.format(folder=folder, reason=reason(error))) from error
        raise


def _make_folder(folder: Path, made: list[Path], disk: Disk) -> None:
    """Create `folder` and its parents, durably; `made` is told of each as it appears."""
    absent: list[Path] = []
    while not exists(folder, disk):
        absent.append(folder)
        folder = folder.parent
    for path in reversed(absent):
        try:
            disk.mkdir(path)
        except FileExistsError:
            continue
        made.append(path)
        disk.fsync_dir(path.parent)


def _prepare(folder: Path, names: Mapping[str, bytes], disk: Disk) -> list[str]:
    """Step 1 of the protocol. Returns the names that step 4 has to remove."""
    for name in (*names, PICKLE_NAME):
        if exists(folder / name, disk) and stat.S_ISDIR(disk.lstat(folder / name).st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder, where a file of the adapter goes", str(folder / name))
    listed: dict[str, dict[str, Any]] = {}
    with suppress(CorruptFileError, UnsafeFileError, VersionError):  # then there is nothing to recover
        listed = (read_manifest(folder, disk) or {"files": {}})["files"]
    leftovers = [folder / name for name in disk.listdir(folder) if is_staged(name)]
    if leftovers:
        disk.fsync_dir(folder)
        found = {name: find(folder, name, entry, disk) for name, entry in listed.items()}
        pending = {name: path for name, path in found.items() if path in leftovers}
        if pending:
            _roll_forward(folder, pending, [], disk)
        for path in leftovers:
            if path not in pending.values():
                disk.unlink(path)
    obsolete = [name for name in listed if name not in names and find(folder, name, listed[name], disk)]
    return obsolete + [PICKLE_NAME] * exists(folder / PICKLE_NAME, disk)


def _roll_forward(folder: Path, staged: Mapping[str, Path], obsolete: list[str], disk: Disk) -> None:
    """Step 4 of the protocol: the staged files to their names, the config away first and back last."""
    config = folder / CONFIG_NAME
    if CONFIG_NAME in staged and exists(config, disk):
        disk.unlink(config)
        disk.fsync_dir(folder)
    for name, path in staged.items():
        if name != CONFIG_NAME:
            disk.replace(path, folder / name)
    for name in obsolete:
        disk.unlink(folder / name)
    disk.fsync_dir(folder)
    if CONFIG_NAME in staged:
        disk.replace(staged[CONFIG_NAME], config)
        disk.fsync_dir(folder)


def _discard(paths: Iterable[Path], remove: Callable[[Path], None]) -> None:
    for path in paths:
        with suppress(OSError):
            remove(path)
