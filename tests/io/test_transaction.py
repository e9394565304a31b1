"""The promise of `inlay.io.transaction`, tried at every call: killed, failing, power lost, two at once.

Three doubles of `Disk`: `KillAt` kills the process at the N-th call, `FailAt` lets it fail, and `PowerLoss` is a file
system in memory that loses whatever was not synced, in any combination.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import inlay.io.disk
from inlay.errors import FileError, MissingFileError
from inlay.io.disk import Disk, locked
from inlay.io.folder import CONFIG_NAME, MANIFEST_NAME, PICKLE_NAME, WEIGHTS_NAME, open_folder, reading, write_folder
from inlay.io.manifest import pack_manifest, sha256, staged_path

Files = dict[str, bytes]

OLD: Files = {CONFIG_NAME: b'{"r": 8}', WEIGHTS_NAME: b"old weights " * 16, "notes.md": b"old notes"}
PEFT: Files = {CONFIG_NAME: b'{"r": 2}', PICKLE_NAME: b"old pickle " * 16}
NEW: Files = {CONFIG_NAME: b'{"r": 16}', WEIGHTS_NAME: b"new weights " * 16}
SAME: Files = {CONFIG_NAME: b'{"r": 99}', WEIGHTS_NAME: NEW[WEIGHTS_NAME], "notes.md": b"same"}
LAST: Files = {CONFIG_NAME: b'{"r": 32}', WEIGHTS_NAME: b"last"}
OTHERS: Files = {"tokenizer.json": b"{}", "README.md": b"# mine", ".hidden": b"mine too"}
EXTRA = {"inlay": "1.0"}
SOURCE = Path(inlay.io.disk.__file__).parents[2]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where the system has such a place: thousands of files are made here, and no disk is on trial."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


class Unsynced(Disk):
    """The real disk without the waiting: a killed process loses no synced and no unsynced byte."""

    chunk = 64

    def fsync(self, fd: int) -> None: ...

    def fsync_dir(self, path: Path) -> None: ...


UNSYNCED = Unsynced()


class StrikeAt(Unsynced):
    """Counts the calls and does `strike` at the N-th (from it on, when `sticky`, for the methods in `only`)."""

    def __init__(self, at: int, sticky: bool = False, only: tuple[str, ...] = ()):
        self._at, self._sticky, self._only = at, sticky, only
        self.calls = 0

    def __getattribute__(self, name: str) -> Any:
        real = super().__getattribute__(name)
        if name.startswith("_") or not callable(real) or (self._only and name not in self._only):
            return real

        def call(*args: Any) -> Any:
            self.calls += 1
            if self.calls == self._at or (self._sticky and self.calls > self._at):
                self._strike(name, real, args)
            return real(*args)

        return call

    def _strike(self, name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> None:
        raise NotImplementedError


class KillAt(StrikeAt):
    def _strike(self, name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if name == "write":
            real(args[0], args[1][: len(args[1]) // 2])
        os.kill(os.getpid(), signal.SIGKILL)


class FailAt(StrikeAt):
    def __init__(self, at: int, code: int, sticky: bool = False, only: tuple[str, ...] = ()):
        super().__init__(at, sticky, only)
        self._code = code

    def _strike(self, name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if name in ("close", "unlock"):  # they fail after letting go, or the test would keep the lock
            real(*args)
        raise OSError(self._code, os.strerror(self._code))


def content(folder: Path, disk: Disk = UNSYNCED) -> Files | None:
    """What Inlay reads; None when there is no adapter."""
    try:
        with reading(folder, disk=disk) as files:
            return {name: read_all(files.path(name), disk) for name in files.names}
    except MissingFileError:
        return None


def read_all(path: Path, disk: Disk) -> bytes:
    fd = disk.open_read(path)
    data = b"".join(iter(lambda: disk.read(fd), b""))
    disk.close(fd)
    return data


def as_peft_reads(folder: Path, disk: Disk = UNSYNCED) -> Files | None:
    """What a reader that knows no manifest finds: config and weights at their own names."""
    inside = set(disk.listdir(folder))
    if CONFIG_NAME not in inside or not inside & {WEIGHTS_NAME, PICKLE_NAME}:
        return None
    weights = WEIGHTS_NAME if WEIGHTS_NAME in inside else PICKLE_NAME
    return {name: read_all(folder / name, disk) for name in (CONFIG_NAME, weights)}


def pair(files: Files | None) -> Files | None:
    return files and {name: data for name, data in files.items() if name != "notes.md"}


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".inlay")] if folder.exists() else []


def spawn(work: Callable[[], None]) -> int:
    """The process id of a forked child that does `work`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork in a process with threads
        child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def fork_and(work: Callable[[], None]) -> int:
    """The wait status of a child that does `work`: 0, the signal that killed it, or 256 for an exception."""
    return os.waitpid(spawn(work), 0)[1]


def put(folder: Path, files: Files) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in {**files, **OTHERS}.items():
        (folder / name).write_bytes(data)


def start_none(folder: Path) -> Files | None:
    return None


def start_peft(folder: Path) -> Files | None:
    put(folder, PEFT)
    return PEFT


def start_inlay(folder: Path) -> Files | None:
    put(folder, {})
    write_folder(folder, OLD, EXTRA, UNSYNCED)
    return OLD


def start_interrupted(folder: Path, committed: Files = SAME) -> Files | None:
    """Committed, killed before anything was rolled forward; the weights are those of the save to come."""
    start_inlay(folder)
    assert (
        fork_and(lambda: write_folder(folder, committed, EXTRA, KillAt(2, only=("replace", "unlink"))))
        == signal.SIGKILL
    )
    assert len(leftovers(folder)) == len(committed)
    return committed


def start_interrupted_same_config(folder: Path) -> Files | None:
    return start_interrupted(folder, {**SAME, CONFIG_NAME: OLD[CONFIG_NAME]})


STARTS = [start_none, start_peft, start_inlay, start_interrupted, start_interrupted_same_config]


@pytest.fixture(params=STARTS, ids=lambda start: start.__name__[6:])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Files | None, Iterator[Path]]]:
    """What the folder holds at first, and any number of fresh copies of it."""
    old = request.param(tmp_path / "template")

    def copies() -> Iterator[Path]:
        for number in itertools.count(1):
            folder = tmp_path / str(number) / "runs" / "adapter"
            if old is not None:
                shutil.copytree(tmp_path / "template", folder)
            yield folder
            assert not old or {name: (folder / name).read_bytes() for name in OTHERS} == OTHERS
            shutil.rmtree(tmp_path / str(number), ignore_errors=True)

    yield old, copies()


def test_killed_at_every_call_leaves_old_or_new(scene: tuple[Files | None, Iterator[Path]]) -> None:
    old, copies = scene
    seen: list[bool] = []
    for at, folder in enumerate(copies, 1):
        status = fork_and(partial(write_folder, folder, NEW, EXTRA, KillAt(at)))
        assert status in (0, signal.SIGKILL)
        found = content(folder)
        assert found in (old, NEW)
        if folder.exists():
            assert as_peft_reads(folder) in (pair(old), pair(OLD), NEW, None)
        seen.append(found == NEW)
        write_folder(folder, LAST, EXTRA, UNSYNCED)
        assert content(folder) == as_peft_reads(folder) == LAST
        assert set(os.listdir(folder)) - set(OTHERS) - {"notes.md"} == {*LAST, MANIFEST_NAME}
        if status == 0:
            break
    assert len(seen) > 40 and seen == sorted(seen) and seen[0] is False and seen[-1] is True


SPACE = ("mkdir", "open_new", "write", "fsync", "replace", "fsync_dir")


@pytest.mark.parametrize(
    ("code", "sticky", "only"),
    [(errno.EIO, False, ()), (errno.ENOSPC, True, SPACE), (errno.EROFS, True, (*SPACE, "unlink", "rmdir"))],
    ids=["EIO once", "disk full", "disk turns read-only"],
)
def test_failing_at_every_call_says_what_holds(
    scene: tuple[Files | None, Iterator[Path]], code: int, sticky: bool, only: tuple[str, ...]
) -> None:
    old, copies = scene
    seen = []
    for at, folder in enumerate(copies, 1):
        disk = FailAt(at, code, sticky, only)
        before = set(leftovers(folder))
        try:
            write_folder(folder, NEW, EXTRA, disk)
        except FileError as error:
            assert os.strerror(code) in str(error) and str(folder) in str(error)
            saved = "is saved" in str(error)
            assert saved or "was not saved" in str(error)
            assert isinstance(error.__cause__, OSError) and error.__cause__.errno == code
        else:
            saved = True
            if disk.calls < at:
                break
        assert content(folder) == (NEW if saved else old)
        if not saved and "unlink" not in only:
            assert folder.exists() == (old is not None)
            assert set(leftovers(folder)) <= before  # what an earlier save left is not ours to lose
        seen.append(saved)
        write_folder(folder, LAST, EXTRA, UNSYNCED)
        assert content(folder) == LAST and not leftovers(folder)
    assert len(seen) > 10 and True in seen and False in seen


def test_error_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"No space left on device \('.*adapter_config.json.*'\)"):
        write_folder(tmp_path / "a", NEW, EXTRA, FailAt(1, errno.ENOSPC, only=("write",)))


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, MemoryError])
def test_other_exceptions_pass_and_leave_nothing(tmp_path: Path, interrupt: type[BaseException]) -> None:
    class Interrupted(StrikeAt):
        def _strike(self, name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> None:
            raise interrupt

    start_inlay(tmp_path / "a")
    with pytest.raises(interrupt):
        write_folder(tmp_path / "a", NEW, EXTRA, Interrupted(2, only=("fsync",)))
    assert content(tmp_path / "a") == OLD and not leftovers(tmp_path / "a")


def test_a_rename_that_is_done_and_fails_counts_as_done(tmp_path: Path) -> None:
    class Lost(Unsynced):  # what a network mount does when the answer is lost
        def replace(self, source: Path, target: Path) -> None:
            super().replace(source, target)
            raise OSError(errno.EIO, "answer lost")

    start_inlay(tmp_path / "a")
    with pytest.raises(FileError, match=r"is saved"):
        write_folder(tmp_path / "a", NEW, EXTRA, Lost())
    assert content(tmp_path / "a") == NEW


def test_a_disk_that_dies_at_the_commit(tmp_path: Path) -> None:
    class Dead(Unsynced):
        dead = False

        def replace(self, source: Path, target: Path) -> None:
            self.dead = True
            raise OSError(errno.EIO, "dead")

        def lstat(self, path: Path) -> os.stat_result:
            if self.dead:
                raise OSError(errno.EIO, "dead")
            return super().lstat(path)

    start_inlay(tmp_path / "a")
    with pytest.raises(FileError, match=r"the old one or the new one, complete"):
        write_folder(tmp_path / "a", NEW, EXTRA, Dead())
    assert content(tmp_path / "a") == OLD


def test_the_same_again_that_fails(tmp_path: Path) -> None:
    start_inlay(tmp_path / "a")
    for at in (1, 2, 3, 4):
        with pytest.raises(FileError, match=r"was not saved"):
            write_folder(tmp_path / "a", OLD, EXTRA, FailAt(at, errno.EIO, only=("fsync",)))
        assert content(tmp_path / "a") == OLD and not leftovers(tmp_path / "a")


def test_new_folders_are_durable(tmp_path: Path) -> None:
    synced = []

    class Recording(Disk):
        def fsync_dir(self, path: Path) -> None:
            synced.append(path)
            super().fsync_dir(path)

    write_folder(tmp_path / "a" / "b", NEW, EXTRA, Recording())
    assert synced[:3] == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


def test_short_writes_are_continued(tmp_path: Path) -> None:
    class Short(Unsynced):
        def write(self, fd: int, data: memoryview) -> int:
            return os.write(fd, data[:1])

    write_folder(tmp_path, NEW, EXTRA, Short())
    assert content(tmp_path) == NEW


def test_a_failing_read_is_never_an_answer(tmp_path: Path) -> None:
    start_interrupted(tmp_path / "a")
    for at in itertools.count(1):
        disk = FailAt(at, errno.EIO)
        try:
            assert open_folder(tmp_path / "a", disk=disk).names == sorted(SAME)
        except FileError as error:
            assert "Input/output error" in str(error)
        if disk.calls < at:
            break
    assert at > 20


# --- power loss


class PowerLost(BaseException):
    pass


class Inode:
    def __init__(self, data: bytes = b""):
        self.data = self.durable = data

    def after_power_loss(self, survived: float) -> bytes:
        """The bytes, when that part of what was not synced is there."""
        return self.data[: int(len(self.data) * survived)] if survived and self.data != self.durable else self.durable


class PowerLoss(Disk):
    """One folder in memory. A file's bytes are durable from `fsync` on, the names from `fsync_dir` on.

    Each change of names is atomic; those that are not durable may survive a loss of power in any combination, and
    bytes that are not durable may be there, partly there, or not. The power goes before change number `left`.
    """

    folder = Path("/memory/adapter")

    def __init__(self, files: Files):
        self.names = {name: Inode(data) for name, data in files.items()}
        self.durable = dict(self.names)
        self.pending: list[dict[str, Inode | None]] = []
        self.handles: dict[int, list[Any]] = {}
        self.left = -1

    def spend(self) -> None:
        if self.left == 0:
            raise PowerLost
        self.left -= 1

    def change(self, **names: Inode | None) -> None:
        self.spend()
        self.pending.append(names)
        apply(self.names, names)

    def after_power_loss(self) -> Iterator[Files]:
        for count in range(len(self.pending) + 1):
            for kept in itertools.combinations(self.pending, count):
                names = dict(self.durable)
                for changes in kept:
                    apply(names, changes)
                for survived in (0, 0.5, 1):
                    yield {name: node.after_power_loss(survived) for name, node in names.items()}

    def listdir(self, path: Path) -> list[str]:
        return list(self.names)

    def fsync_dir(self, path: Path) -> None:
        self.spend()
        self.durable, self.pending = dict(self.names), []

    def lstat(self, path: Path) -> os.stat_result:
        if path != self.folder and path.name not in self.names:
            raise FileNotFoundError(errno.ENOENT, "gone", str(path))
        return os.stat_result((stat.S_IFDIR if path == self.folder else stat.S_IFREG, *[0] * 9))

    stat = lstat

    def replace(self, source: Path, target: Path) -> None:
        self.lstat(source)
        self.change(**{source.name: None, target.name: self.names[source.name]})

    def unlink(self, path: Path) -> None:
        self.lstat(path)
        self.change(**{path.name: None})

    def open_new(self, path: Path) -> int:
        assert path.name not in self.names
        self.change(**{path.name: Inode()})
        return self.open_read(path)

    def open_read(self, path: Path) -> int:
        self.lstat(path)
        self.handles[len(self.handles)] = [self.names[path.name], False]
        return len(self.handles) - 1

    def read(self, fd: int) -> bytes:
        node, done = self.handles[fd]
        self.handles[fd][1] = True
        return b"" if done else node.data

    def write(self, fd: int, data: memoryview) -> int:
        self.spend()
        self.handles[fd][0].data = bytes(data)
        return len(data)

    def fsync(self, fd: int) -> None:
        self.spend()
        self.handles[fd][0].durable = self.handles[fd][0].data

    def close(self, fd: int) -> None: ...

    def open_dir(self, path: Path) -> int:
        return -1

    def try_lock(self, fd: int, exclusive: bool) -> bool:
        return True

    def unlock(self, fd: int) -> None: ...

    def save(self, files: Files, changes: int) -> bool:
        """Save until the power goes; whether the save came to its end."""
        self.left = changes
        try:
            write_folder(self.folder, files, EXTRA, self)
        except PowerLost:
            return False
        finally:
            self.left = -1
        return True


def apply(names: dict[str, Inode], changes: dict[str, Inode | None]) -> None:
    for name, node in changes.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def check_after_power_loss(disk: PowerLoss, allowed: list[Files | None], known: set[Any]) -> None:
    for state in disk.after_power_loss():
        key = (frozenset(state.items()), len(allowed))
        if key not in known:
            known.add(key)
            rest = PowerLoss(state)
            assert content(disk.folder, rest) in allowed
            assert as_peft_reads(disk.folder, rest) in [None, *map(pair, allowed), pair(OLD)]


def on_disk(start: Callable[[Path], Files | None], folder: Path) -> tuple[Files | None, Files]:
    old = start(folder)
    return old, {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.__name__[6:])
def test_power_lost_at_every_change_leaves_old_or_new(start: Callable[[Path], Files | None], tmp_path: Path) -> None:
    old, files = on_disk(start, tmp_path / "a")
    known: set[Any] = set()
    for changes in itertools.count():
        disk = PowerLoss(files)
        if disk.save(NEW, changes):
            break
        check_after_power_loss(disk, [old, NEW], known)
    check_after_power_loss(disk, [NEW], set())  # a save that returned is durable
    assert changes > 15 and len(known) > 20


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.__name__[6:])
def test_power_lost_after_a_kill(start: Callable[[Path], Files | None], tmp_path: Path) -> None:
    """The first save is killed, the second acts on names that are not durable yet, then the power goes."""
    old, files = on_disk(start, tmp_path / "a")
    known: set[Any] = set()
    for first in itertools.count():
        done = False
        for second in itertools.count():
            disk = PowerLoss(files)
            done = disk.save(NEW, first)
            if disk.save(LAST, second):
                break
            check_after_power_loss(disk, [NEW, LAST] if done else [old, NEW, LAST], known)
        check_after_power_loss(disk, [LAST], known)
        if done:
            break
    assert len(known) > 100


# --- several at once, and the real system


def test_writers_and_readers_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    versions = [{CONFIG_NAME: b"{%d}" % n, WEIGHTS_NAME: bytes([n]) * 5000} for n in range(4)]
    write_folder(folder, versions[0], EXTRA, UNSYNCED)

    def save_often(version: Files) -> None:
        for _ in range(20):
            write_folder(folder, version, EXTRA, UNSYNCED)
            time.sleep(0.01)

    writers = [spawn(partial(save_often, version)) for version in versions]
    reads = 0
    while os.waitpid(writers[0], os.WNOHANG) == (0, 0):
        assert content(folder) in versions
        reads += 1
    assert [os.waitpid(writer, 0)[1] for writer in writers[1:]] == [0, 0, 0]
    assert reads > 0
    assert content(folder) in versions
    assert set(os.listdir(folder)) == {*versions[0], MANIFEST_NAME}


def test_waiting_for_the_lock_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, OLD, EXTRA)
    monkeypatch.setattr(inlay.io.disk, "LOCK_SECONDS", 0.05)
    refused = pytest.raises(FileError, match=r"in use by another process")
    with reading(tmp_path), reading(tmp_path), refused:  # readers share
        write_folder(tmp_path, NEW, EXTRA)
    with locked(tmp_path, exclusive=True), refused:
        open_folder(tmp_path)
    assert content(tmp_path) == OLD and not leftovers(tmp_path)
    write_folder(tmp_path, NEW, EXTRA)


def can_trace() -> bool:
    strace = shutil.which("strace")
    return strace is not None and subprocess.run([strace, "-qo", os.devnull, "true"], check=False).returncode == 0


STRACED = """
import sys
from inlay.io.transaction import write_folder
write_folder(sys.argv[1], {"adapter_config.json": b"{}", "adapter_model.safetensors": b"new" * 99}, {})
"""


@pytest.mark.skipif(not can_trace(), reason="needs strace, and the right to use it")
@pytest.mark.parametrize("call", ["openat", "write", "fsync", "rename", "unlink", "close"])
def test_killed_at_every_system_call(call: str, tmp_path: Path) -> None:
    """The same by the kernel's own count, with the real syncs: nothing is missed that does not go through `Disk`."""
    old = {CONFIG_NAME: b'{"r": 1}', WEIGHTS_NAME: b"old" * 99}
    new = {CONFIG_NAME: b"{}", WEIGHTS_NAME: b"new" * 99}
    found = []
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        write_folder(folder, old, {}, UNSYNCED)
        manifest = pack_manifest(new, {})
        blobs = {**new, MANIFEST_NAME: manifest}
        paths = [folder, *(folder / name for name in blobs)]
        paths += [staged_path(folder, name, sha256(data)) for name, data in blobs.items()]
        done = subprocess.run(
            ["strace", "-f", "-o", os.devnull, *(f"-P{path}" for path in paths)]
            + [f"-einject={call}:signal=KILL:when={at}", sys.executable, "-S", "-c", STRACED, str(folder)],
            env={"PYTHONPATH": str(SOURCE)},
            check=False,
        )
        assert done.returncode in (0, -signal.SIGKILL)
        found.append(content(folder))
        if done.returncode == 0:
            break
    assert found[-1] == new and len(found) > 1
    assert found == [old] * found.count(old) + [new] * found.count(new)
