"""The system calls that saving and loading an adapter make, and nothing else of the file system.

Each method of `Disk` is one call of the operating system, or close to it. A test hands in its own
`Disk` that fails the N-th call, kills the process there, or forgets what was never synced; that is
how the promises of `inlay.io.transaction` are proved (`tests/io/`).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from inlay.errors import FileError, StateError

try:
    import fcntl
except ImportError:  # Windows: neither directory handles nor flock
    fcntl = None  # type: ignore[assignment]

LOCK_SECONDS = 300.0
"""How long a save or load waits for another one of the same folder to end."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EINVAL}
_NO_DIRECTORY_SYNC = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


class Disk:
    """The real file system. Methods raise `OSError`, as the calls beneath them do.

    Attributes:
        chunk: bytes per read or write.
    """

    chunk = 1 << 20

    # --- directories
    def mkdir(self, path: Path) -> None:
        os.mkdir(path)

    def rmdir(self, path: Path) -> None:
        os.rmdir(path)

    def listdir(self, path: Path) -> list[str]:
        return os.listdir(path)

    def fsync_dir(self, path: Path) -> None:
        """Make the names in a directory durable; nothing where the platform cannot (Windows, some network mounts)."""
        if fcntl is None:
            return
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY_SYNC:
                raise
        finally:
            os.close(fd)

    # --- names
    def stat(self, path: Path) -> os.stat_result:
        return os.stat(path)

    def lstat(self, path: Path) -> os.stat_result:
        return os.lstat(path)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    # --- contents
    def open_new(self, path: Path) -> int:
        """A file that did not exist, for writing. Its mode is what the umask leaves of 0666; no link is followed."""
        return os.open(path, _NEW, 0o666)

    def open_read(self, path: Path) -> int:
        """A regular file for reading. A pipe or a device is refused, never waited for."""
        fd = os.open(path, _READ)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return fd

    def read(self, fd: int) -> bytes:
        """The next bytes, at most `chunk`; empty at the end."""
        return os.read(fd, self.chunk)

    def write(self, fd: int, data: memoryview) -> int:
        """Write the start of `data`, at most `chunk` bytes; returns how many were taken."""
        return os.write(fd, data[: self.chunk])

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    # --- locks
    def open_dir(self, path: Path) -> int:
        """A handle of a directory, to lock it; -1 where the platform has none."""
        return -1 if fcntl is None else os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def try_lock(self, fd: int, exclusive: bool) -> bool:
        """False when another holds the lock; True when it is ours, or where the file system has no locks."""
        if fcntl is None:
            return True
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        return True

    def unlock(self, fd: int) -> None:
        """Release the lock (for forked children that hold the handle too) and close it."""
        if fcntl is None:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)


DISK = Disk()


def exists(path: Path, disk: Disk = DISK) -> bool:
    """Whether something of that name stands there (a dangling link counts)."""
    try:
        disk.lstat(path)
    except FileNotFoundError:
        return False
    return True


def is_file(path: Path, disk: Disk = DISK) -> bool:
    """Whether `path` is a regular file, or a link to one."""
    try:
        return stat.S_ISREG(disk.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def read_bytes(path: Path, limit: int, disk: Disk = DISK) -> bytes:
    """The content of a file, cut off one byte after `limit` so that the caller can tell."""
    parts: list[bytes] = []
    room = limit + 1
    fd = disk.open_read(path)
    try:
        while room > 0 and (part := disk.read(fd)):
            parts.append(part[:room])
            room -= len(part)
    finally:
        disk.close(fd)
    return b"".join(parts)


def write_new(path: Path, data: bytes, disk: Disk = DISK) -> None:
    """Create `path` with `data` and make its content durable (its name is not, before `fsync_dir`)."""
    try:
        fd = disk.open_new(path)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[disk.write(fd, rest) :]
            disk.fsync(fd)
        finally:
            disk.close(fd)
    except OSError as error:
        error.filename = error.filename or str(path)  # calls on a handle know no name
        raise


@contextmanager
def locked(folder: Path, *, exclusive: bool, disk: Disk = DISK) -> Iterator[None]:
    """Hold the lock of an existing folder for the block; it dies with the process, and leaves no file behind.

    Raises:
        TimeoutError: others held it for `LOCK_SECONDS`.
        OSError: the folder cannot be opened.
    """
    handle = disk.open_dir(folder)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not disk.try_lock(handle, exclusive):
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"in use by another process for {LOCK_SECONDS:g} s", str(folder))
            time.sleep(0.005)
        yield
    finally:
        with suppress(OSError):
            disk.unlock(handle)


def reason(error: OSError) -> str:
    """What the system said, and of which file."""
    said = error.strerror or str(error)
    return f"{said} ('{error.filename}')" if error.filename else said


def replace_file(path: Path, data: bytes, disk: Disk = DISK) -> None:
    """Writes a single file, whole or not at all; its folder is made. Raises FileError if the system refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent, exclusive=True, disk=disk):
            staged = path.with_name(f".{path.name}.new")
            staged.unlink(missing_ok=True)
            write_new(staged, data, disk)
            disk.replace(staged, path)
            disk.fsync_dir(path.parent)
    except OSError as error:
        raise FileError(f"'{path}' cannot be written: {reason(error)}.") from error


def check_free(out: Path) -> None:
    """Raises StateError if `out` is there and not an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StateError(f"'{out}' is there and not empty: remove it, or name another folder.")


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name at the end of the block, or goes away with an error.

    Raises StateError if `out` is there and not an empty folder.
    """
    check_free(out)
    staged = out.absolute().with_name(f".{out.name}.{os.getpid()}.part")
    staged.mkdir(parents=True)
    try:
        yield staged
        if out.exists():
            out.rmdir()
        staged.rename(out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
