"""An adapter folder as a reader sees it: which files are the adapter, checked before anything is built from them.

An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors` (peft: or `adapter_model.bin`). One
that Inlay wrote has `inlay_manifest.json` beside them, with the sha256 of every file, and is verified; how it is
written, and why it can be trusted after a crash, is told in `inlay.io.transaction`. Nothing here looks on the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn

from inlay.errors import ConfigError, CorruptFileError, FileError, MissingFileError, UnsafeFileError
from inlay.io.disk import DISK, Disk, is_file, locked, reason
from inlay.io.manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    PICKLE_NAME,
    STATE_NAME,
    WEIGHTS_NAME,
    find,
    measure,
    read_manifest,
)
from inlay.io.transaction import write_folder

__all__ = [
    "CONFIG_NAME",
    "MANIFEST_NAME",
    "PICKLE_NAME",
    "STATE_NAME",
    "WEIGHTS_NAME",
    "AdapterFiles",
    "adapter_in",
    "open_folder",
    "reading",
    "subfolder_of",
    "write_folder",
]


@dataclass(frozen=True)
class AdapterFiles:
    """The files of one adapter, as `open_folder` found them.

    Attributes:
        folder: where they are.
        manifest: what the save recorded about them, or None in a folder that Inlay did not write.
        paths: name -> the file that holds its bytes (a staged one after a save that was cut off).
    """

    folder: Path
    manifest: dict[str, Any] | None
    paths: Mapping[str, Path]

    @property
    def verified(self) -> bool:
        """Whether the bytes were checked against a manifest."""
        return self.manifest is not None

    @property
    def names(self) -> list[str]:
        return sorted(self.paths)

    def has(self, name: str) -> bool:
        return name in self.paths

    def path(self, name: str) -> Path:
        """The file that holds the bytes of `name`; MissingFileError when the adapter has none."""
        if name not in self.paths:
            raise MissingFileError(f"The adapter in '{self.folder}' has no {name}; it has {', '.join(self.names)}.")
        return self.paths[name]


def open_folder(folder: Path | str, *, config_only: bool = False, disk: Disk = DISK) -> AdapterFiles:
    """Find and check the files of the adapter in a local `folder`. Never looks anywhere else.

    With a manifest, the size and sha256 of every file it lists are verified, and other files are ignored. Without one
    (a folder written by peft) the adapter files that are there are taken unverified. With `config_only` the weights
    are neither required nor read.

    The paths hold until the next save to the folder; use `reading` to keep saves out while you read them.

    Raises:
        MissingFileError: no folder, no `adapter_config.json`, no weights, or a listed file that is not there.
        CorruptFileError: a file is not the one that was saved, or the manifest is damaged.
        UnsafeFileError: the manifest names a file outside the folder.
        VersionError: the manifest is of a later format.
        FileError: the system refused (rights, a failing disk, a save by another process that does not end).
    """
    with reading(folder, config_only=config_only, disk=disk) as files:
        return files


@contextmanager
def reading(folder: Path | str, *, config_only: bool = False, disk: Disk = DISK) -> Iterator[AdapterFiles]:
    """`open_folder`, with saves to the folder held off (by a shared lock) until the block ends.

    Do not save to the same folder inside the block: that save would wait for it.
    """
    folder = Path(folder)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, exclusive=False, disk=disk))
            files = _resolve(folder, config_only, disk)
        except FileError:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingFileError(
                f"'{folder}' is not a folder on this machine. An adapter is a folder with {CONFIG_NAME} and "
                f"{WEIGHTS_NAME} (or {PICKLE_NAME})."
            ) from error
        except OSError as error:
            raise FileError(f"The adapter in '{folder}' cannot be read: {reason(error)}.") from error
        yield files


def adapter_in(path: Path | str) -> Path | None:
    """Where the adapter at `path` is: there, or in its `adapter/`, as in a run's folder; None if in neither."""
    return next((p for p in (Path(path), Path(path) / "adapter") if (p / CONFIG_NAME).is_file()), None)


def subfolder_of(folder: Path | str, name: str | None) -> Path:
    """`folder/name`, where `name` is a relative path with no way out of `folder`; `folder` itself for None or "".

    Raises:
        ConfigError: `name` is absolute, has a `..`, a backslash, a drive or a control character.
        UnsafeFileError: a link on the way leads outside.
    """
    folder = Path(folder)
    if not name:
        return folder
    parts = PurePosixPath(name).parts
    if ".." in parts or PureWindowsPath(name).anchor or "\\" in name or not name.isprintable():
        raise ConfigError.of("subfolder", name, "a relative path such as 'checkpoint-100', inside the adapter's folder")
    path = folder.joinpath(*parts)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UnsafeFileError(f"'{path}' is a link to '{path.resolve()}', outside '{folder}'. Pass that path itself.")
    return path


def _resolve(folder: Path, config_only: bool, disk: Disk) -> AdapterFiles:
    manifest = read_manifest(folder, disk)
    if manifest is None:
        names = [name for name in (CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME) if is_file(folder / name, disk)]
        if CONFIG_NAME not in names or (len(names) == 1 and not config_only):
            raise _incomplete(folder, names, disk)
        paths = {name: folder / name for name in names}
    else:
        paths = {
            name: find(folder, name, entry, disk) or _refuse(folder, name, entry, disk)
            for name, entry in manifest["files"].items()
            if name == CONFIG_NAME or not config_only
        }
    return AdapterFiles(folder, manifest, paths)


def _refuse(folder: Path, name: str, entry: Mapping[str, Any], disk: Disk) -> NoReturn:
    path = folder / name
    if not is_file(path, disk):
        raise MissingFileError(
            f"'{path}' is not there, though {MANIFEST_NAME} lists it: the copy or download of the folder is not "
            "complete (hidden files belong to it). Fetch or save the adapter again."
        )
    size, digest = measure(path, disk)
    raise CorruptFileError(
        f"'{path}' is not the file that was saved: expected {entry['size']} bytes with sha256 {entry['sha256']}, got "
        f"{size} bytes with sha256 {digest}. Fetch or save the adapter again; if it was changed on purpose, by hand or "
        f"by another tool, delete {MANIFEST_NAME} to load the folder unverified."
    )


def _incomplete(folder: Path, names: list[str], disk: Disk) -> MissingFileError:
    """The error of a folder without config or weights, with the likeliest reason."""
    lacks = f"{WEIGHTS_NAME} (or {PICKLE_NAME})" if CONFIG_NAME in names else CONFIG_NAME
    inside = sorted(disk.listdir(folder))
    hint = "Nothing was looked up on the network."
    adapters: list[str] = []
    with suppress(OSError):
        adapters = [name for name in inside if is_file(folder / name / CONFIG_NAME, disk)]
    if adapters:
        hint = f"Its subfolders hold adapters: {', '.join(adapters[:5])}. Pass one of them as subfolder."
    elif "config.json" in inside:
        hint = "It looks like a whole model, which is loaded with from_pretrained of its own class."
    return MissingFileError(f"'{folder}' has no {lacks}, so it is not an adapter. {hint}")
