"""The manifest of an adapter folder: which files are the adapter, and which bytes each of them is.

    {"format": 1, "files": {"adapter_config.json": {"sha256": "...", "size": 1234}, ...}, ...}

It is the commit record of `inlay.io.transaction`, where the protocol is told. A file's bytes stand at its own name or,
after a save that was cut off, at its staged name; which of the two counts is decided by the sha256 alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inlay.errors import ConfigError, CorruptFileError, UnsafeFileError, VersionError
from inlay.io.disk import DISK, Disk, is_file, read_bytes
from inlay.io.strict_json import MAX_BYTES, dump_json, parse_json

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
STATE_NAME = "training_state.safetensors"  # what training on needs beyond the adapter; only ours have it
PICKLE_NAME = "adapter_model.bin"
MANIFEST_NAME = "inlay_manifest.json"
MANIFEST_FORMAT = 1

_STAGED = re.compile(r"\..+\.[0-9a-f]{16}\.inlay", re.DOTALL)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OWN_KEYS = {"format", "files"}


def sha256(data: bytes) -> str:
    """The sha256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def staged_path(folder: Path, name: str, digest: str) -> Path:
    """Where a save keeps the new bytes of `name` until they are committed: hidden, beside the final name."""
    return folder / f".{name}.{digest[:16]}.inlay"


def is_staged(name: str) -> bool:
    """Whether `name` is one that `staged_path` gives."""
    return _STAGED.fullmatch(name) is not None


def pack_manifest(files: Mapping[str, bytes], extra: Mapping[str, Any]) -> bytes:
    """The manifest of `files`, with `extra` entries. Equal arguments give equal bytes.

    Raises:
        ConfigError: a name is not a plain, visible file name, or is one that only the folder itself or peft writes;
            config or weights are absent; `extra` is not JSON or uses the keys `format` and `files`.
    """
    for name in files:
        if not _is_plain(name) or name in (MANIFEST_NAME, PICKLE_NAME):
            raise ConfigError.of("files", name, "a plain file name, not hidden, and neither manifest nor pickle")
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if name not in files:
            raise ConfigError.of("files", sorted(files), f"{CONFIG_NAME} and {WEIGHTS_NAME} among them")
    if taken := _OWN_KEYS & set(extra):
        raise ConfigError.of("extra", sorted(taken), f"keys other than {sorted(_OWN_KEYS)}")
    listed = {name: {"sha256": sha256(data), "size": len(data)} for name, data in files.items()}
    return dump_json({**extra, "format": MANIFEST_FORMAT, "files": listed})


def read_manifest(folder: Path, disk: Disk = DISK) -> dict[str, Any] | None:
    """The checked manifest of `folder`, or None where there is none (peft wrote the folder).

    Raises:
        CorruptFileError: it is not what Inlay writes; among others, when it does not list config and weights.
        UnsafeFileError: it names a file outside the folder.
        VersionError: its format is a later one.
        OSError: it cannot be read.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = parse_json(read_bytes(path, MAX_BYTES, disk), str(path))
    except FileNotFoundError:
        return None
    except ConfigError as error:
        raise CorruptFileError(f"{error} Fetch or save the adapter again.") from error
    version, files = manifest.get("format"), manifest.get("files")
    if type(version) is int and version > MANIFEST_FORMAT:
        raise VersionError(f"'{path}' has format {version}; this Inlay knows {MANIFEST_FORMAT}. Upgrade Inlay.")
    known = type(version) is int and version == MANIFEST_FORMAT
    if not known or not isinstance(files, dict) or not {CONFIG_NAME, WEIGHTS_NAME} <= files.keys():
        raise CorruptFileError(
            f"'{path}' is not a manifest: expected 'format': {MANIFEST_FORMAT} and 'files' that list {CONFIG_NAME} and "
            f"{WEIGHTS_NAME}. Fetch or save the adapter again."
        )
    for name, entry in files.items():
        if not _is_plain(name):
            raise UnsafeFileError(f"'{path}' lists {name!r}, which is no plain file name: do not trust this folder.")
        if not _is_entry(entry):
            raise CorruptFileError(
                f"'{path}' describes {name!r} by {str(entry)[:120]}: expected 'sha256' (64 hex digits) and 'size' "
                "(bytes). Fetch or save the adapter again."
            )
    return manifest


def find(folder: Path, name: str, entry: Mapping[str, Any], disk: Disk = DISK) -> Path | None:
    """The file that holds the bytes that `entry` describes, at its own name or staged; None when neither does."""
    for path in (folder / name, staged_path(folder, name, entry["sha256"])):
        if is_file(path, disk) and measure(path, disk) == (entry["size"], entry["sha256"]):
            return path
    return None


def measure(path: Path, disk: Disk = DISK) -> tuple[int, str]:
    """Size and sha256 of a file, read in chunks."""
    size, digest = 0, hashlib.sha256()
    fd = disk.open_read(path)
    try:
        while part := disk.read(fd):
            size += len(part)
            digest.update(part)
    finally:
        disk.close(fd)
    return size, digest.hexdigest()


def _is_plain(name: object) -> bool:
    """A visible name within the folder, short enough that its staged name is a name too."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and not name.startswith(".")
        and not set(name) & set("/\\:")
        and 0 < len(name.encode()) <= 200
    )


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and type(entry.get("size")) is int
        and isinstance(entry.get("sha256"), str)
        and _SHA256.fullmatch(entry["sha256"]) is not None
    )
