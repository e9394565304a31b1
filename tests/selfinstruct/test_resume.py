"""Nothing is lost and nothing comes twice: after a kill at any write, SIGKILL, Ctrl-C; damaged files are refused."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from inlay.errors import CorruptFileError, InlayWarning, ResumeError, StateError
from inlay.selfinstruct import Endpoint, Reply, Sampling, generate_instructions
from inlay.selfinstruct.generate import Answer
from inlay.selfinstruct.journal import _Lines
from tests.selfinstruct.endpoint import KEY, FakeEndpoint
from tests.selfinstruct.test_pipeline import mixed, read

for needed in ("openai", "rapidfuzz", "numpy"):
    pytest.importorskip(needed, reason="needs the extra generate")

SRC = Path(__file__).parents[2] / "src"
COUNT = 20


class Writer:
    """A model in this process; `asked` counts how often each prompt came."""

    name, batch = "m", 2

    def __init__(self, concurrency: int = 1, interrupt_at: int | None = None):
        self.concurrency, self.interrupt_at = concurrency, interrupt_at
        self.asked: list[str] = []

    def ask(self, prompts: Sequence[str], sampling: Sampling, seed: int) -> Reply:
        if len(self.asked) == self.interrupt_at:
            raise KeyboardInterrupt
        self.asked.extend(prompts)
        return Reply(tuple(Answer(mixed(p)) for p in prompts), 10, 10)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of a run that nothing disturbed."""
    path = tmp_path_factory.mktemp("whole") / "r"
    generate_instructions(path, Writer(), COUNT)
    return path


class _Killed(BaseException):
    pass


@pytest.mark.filterwarnings("ignore:.*ended in a line:inlay.errors.InlayWarning")
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["before", "within", "after"])
def test_killed_at_every_write(tmp_path: Path, whole: Path, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th line gets to the disk not at all, in part, or whole, and then the process is gone; for every n."""
    append = _Lines.append
    lines = len(whole.read_bytes().splitlines()) + len(whole.with_name("r.journal").read_bytes().splitlines())
    for victim in range(lines):
        left = victim

        def dying(self: _Lines, row: dict[str, Any]) -> None:
            nonlocal left
            if left == 0:
                line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
                os.write(self._fd, line[: int(len(line) * share)])
                raise _Killed
            left -= 1
            append(self, row)

        path, model = tmp_path / f"r{victim}", Writer()
        monkeypatch.setattr(_Lines, "append", dying)
        with pytest.raises(_Killed):
            generate_instructions(path, model, COUNT)
        monkeypatch.setattr(_Lines, "append", append)
        generate_instructions(path, model, COUNT)
        assert path.read_bytes() == whole.read_bytes(), victim
        assert len(model.asked) - len(set(model.asked)) in (0, 2), "only the answer that was not yet kept"


@pytest.mark.parametrize("at", range(1, 26, 3))
def test_a_full_disk_leaves_whole_lines(tmp_path: Path, whole: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write, count = os.write, 0

    def full(fd: int, data: bytes) -> int:
        nonlocal count
        count += 1
        if count == at:
            return write(fd, data[: len(data) // 2])  # and the rest does not fit
        if count == at + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        generate_instructions(tmp_path / "r", Writer(), COUNT)
    for path in tmp_path.iterdir():
        assert path.read_bytes()[-1:] in (b"", b"\n")
    generate_instructions(tmp_path / "r", Writer(), COUNT)
    assert (tmp_path / "r").read_bytes() == whole.read_bytes()


@pytest.mark.filterwarnings("ignore:.*ended in a line:inlay.errors.InlayWarning")
def test_ctrl_c_while_the_model_works(tmp_path: Path, whole: Path) -> None:
    for at in (0, 2, 4):
        path, model = tmp_path / str(at), Writer(interrupt_at=at)
        with pytest.raises(KeyboardInterrupt):
            generate_instructions(path, model, COUNT)
        model.interrupt_at = None
        generate_instructions(path, model, COUNT)
        assert path.read_bytes() == whole.read_bytes() and len(model.asked) == len(set(model.asked))


CHILD = """
import sys
from inlay.selfinstruct import Endpoint, generate_instructions
output, url, count = sys.argv[1:]
model = Endpoint("m", base_url=url, api_key="{key}", concurrency=3)
print("started", flush=True)
print(generate_instructions(output, model, int(count)))
""".format(key=KEY)  # noqa: UP032


def child(output: Path, server: FakeEndpoint, count: int) -> subprocess.Popen[str]:
    """A process that generates, once it has begun."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(output), server.url, str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(SRC), "PATH": "/usr/bin:/bin", "HOME": "/tmp"},
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    return process


def test_sigkill_five_times(tmp_path: Path) -> None:
    rng = random.Random(0)
    slow = {"write": mixed, "delay": lambda prompt: 0.01 + rng.random() / 30}
    with FakeEndpoint(**slow) as server:
        for _ in range(5):
            served = len(server.served)
            process = child(tmp_path / "r", server, 10**6)
            deadline = time.monotonic() + 30
            while len(server.served) < served + 3 and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(rng.random() / 4)
            process.kill()
            _, errors = process.communicate()
            assert process.returncode == -signal.SIGKILL, errors
        count = (tmp_path / "r").read_bytes().count(b"\n") + 10
        process = child(tmp_path / "r", server, count)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    with FakeEndpoint(write=mixed) as calm, Endpoint("m", base_url=calm.url, api_key=KEY) as model:
        generate_instructions(tmp_path / "calm", model, count)
    assert (tmp_path / "r").read_bytes() == (tmp_path / "calm").read_bytes()
    instructions = [row["instruction"] for row in read(tmp_path / "r")]
    assert len(instructions) == len(set(instructions)) >= count and f"{len(instructions)} rows" in out
    again = len(server.prompts) - len(set(server.prompts))
    assert again <= 5 * 3, "at most the calls that were on their way are made again"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_does_not_wait_for_answers(tmp_path: Path) -> None:
    with FakeEndpoint(write=mixed, delay=lambda prompt: 20.0 if zlib.crc32(prompt.encode()) % 2 else 0.0) as server:
        process = child(tmp_path / "r", server, 10**6)
        deadline = time.monotonic() + 30
        while server.most_at_once < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        _, errors = process.communicate(timeout=15)
    assert time.monotonic() - begun < 10 and "KeyboardInterrupt" in errors and process.returncode != 0
    journal = [json.loads(line) for line in (tmp_path / "r.journal").read_bytes().splitlines()]
    assert "settings" in journal[0]


def test_a_torn_line_is_cut_off_and_said_so(tmp_path: Path, whole: Path) -> None:
    for name in ("r", "r.journal"):
        folder = tmp_path / name
        folder.mkdir()
        generate_instructions(folder / "r", Writer(), 8)
        with (folder / name).open("ab") as file:
            file.write(b'{"torn": "lin')
        with pytest.warns(InlayWarning, match=rf"{name} ended in a line that was not written to its end \(13 bytes\)"):
            generate_instructions(folder / "r", Writer(), COUNT)
        assert (folder / "r").read_bytes() == whole.read_bytes()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "r"
    generate_instructions(path, Writer(), 8)
    return path


def refuses(path: Path, error: type[Exception], message: str, **arguments: Any) -> None:
    """The call raises, and changes nothing."""
    before = {p: p.read_bytes() for p in path.parent.iterdir()}
    with pytest.raises(error, match=message):
        generate_instructions(path, Writer(), COUNT, **arguments)
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == before


def test_other_settings_are_refused(run: Path, tmp_path: Path) -> None:
    refuses(run, ResumeError, r"r was begun with other settings \(seed: 42 then, 1 now\)\. Give these again", seed=1)
    refuses(run, ResumeError, r"profile: 'alpaca' then, 'any' now; prompt: .*", profile="any")
    refuses(run, ResumeError, r"sampling: .*3072.*100", sampling=Sampling(max_tokens=100))
    head = tmp_path / "prompt.txt"
    head.write_text("x")
    refuses(run, ResumeError, r"\(prompt: '\w+' then, '\w+' now\)", prompt=head)


def test_rows_that_were_changed_are_refused(run: Path) -> None:
    rows = run.read_bytes()
    run.write_bytes(b"".join(rows.splitlines(keepends=True)[:-1]))
    refuses(run, ResumeError, r"it has \d+ rows where \d+ were accepted\. It was changed since")
    run.write_bytes(rows + b"{}\n")
    refuses(run, ResumeError, r"it has \d+ rows where \d+ were accepted")
    run.write_bytes(rows + b"{,}\n")
    refuses(run, CorruptFileError, r"r, line \d+, is not JSON")
    run.with_name("r.journal").unlink()
    run.write_bytes(rows)
    with pytest.raises(ResumeError, match=r"has rows but no journal \(r\.journal\)"):
        generate_instructions(run, Writer(), COUNT)
    assert run.read_bytes() == rows


def test_a_row_changed_within_the_call_that_was_being_done_is_refused(run: Path) -> None:
    journal = run.with_name("r.journal")
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))  # the last "done" is missing
    rows = run.read_bytes()
    run.write_bytes(rows.replace(b'"avg_similarity_score": 0.', b'"avg_similarity_score": 1.'))
    refuses(run, ResumeError, r"it has another row \d+ than its answers lead to")
    run.write_bytes(rows + rows.splitlines(keepends=True)[-1])
    refuses(run, ResumeError, "it has 1 rows more than its answers lead to")


@pytest.mark.parametrize("line", [b'{"done": 99, "rows": 0, "dropped": {}}', b'{"call": 99}', b'{"else": 1}'])
def test_a_journal_that_is_none_is_refused(run: Path, line: bytes) -> None:
    with run.with_name("r.journal").open("ab") as file:
        file.write(line + b"\n")
    refuses(run, CorruptFileError, r"r\.journal, line \d+, is no record of a run")
    run.with_name("r.journal").write_bytes(b'{"what": 1}\n')
    refuses(run, CorruptFileError, "does not begin with the settings of a run")


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
def test_one_process_at_a_time(run: Path) -> None:
    import fcntl

    with run.with_name("r.journal").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refuses(run, StateError, r"Another process is writing .*r\.journal")
