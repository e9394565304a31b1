"""The two files of a run: the accepted rows, and beside them the journal that makes them resumable.

    regen.jsonl            one accepted row a line
    regen.jsonl.journal    {"settings": ...}                              first
                           {"call": k, "answers": [...], "usage": ...}    when the answer to call k has arrived
                           {"done": k, "rows": n, "dropped": ...}         when its rows are in the file, n by now

Both are only ever appended to, a line at a time, and every line is on the disk (fsync) before the next step is taken.
Calls are done in their order, so a run that was killed anywhere goes on: answers that arrived are not asked for again,
and of the call that was being done, the rows that are there already are recognised. A last line without its end is all
that a kill can leave behind; it is cut off, with a warning.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter, deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inlay.errors import CorruptFileError, InlayWarning, ResumeError, StateError
from inlay.selfinstruct.generate import Answer, Reply

try:
    import fcntl
except ImportError:  # Windows: two runs at one file are not noticed there
    fcntl = None  # type: ignore[assignment]

Row = dict[str, Any]


class _Lines:
    """A file of JSON lines: what it holds, and a way to append. `keep`: objects that were read."""

    def __init__(self, path: Path):
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)

    def lock(self) -> None:
        """Raises StateError if another process has this file open here."""
        if fcntl is not None:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(
                    f"Another process is writing {self.path}. Wait for it, or give another output."
                ) from None

    def read(self) -> list[Row]:
        """The objects of the file, after a last line without end was cut off."""
        whole, newline, torn = self.path.read_bytes().rpartition(b"\n")
        if torn:
            warnings.warn(
                f"{self.path} ended in a line that was not written to its end ({len(torn)} bytes); it was removed.",
                InlayWarning,
                stacklevel=4,
            )
            os.ftruncate(self._fd, len(whole) + len(newline))
            os.fsync(self._fd)
        rows = []
        for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CorruptFileError(f"{self.path}, line {number}, is not JSON: {error}.") from None
            if not isinstance(row, dict):
                raise CorruptFileError(f"{self.path}, line {number}, is not a JSON object.")
            rows.append(row)
        return rows

    def append(self, row: Row) -> None:
        """The row as a line, on the disk when this returns."""
        left = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        size = os.fstat(self._fd).st_size
        try:
            while left:
                left = left[os.write(self._fd, left) :]
            os.fsync(self._fd)
        except BaseException:  # a full disk, Ctrl-C: another line must not follow half of this one
            os.ftruncate(self._fd, size)
            raise

    def close(self) -> None:
        os.close(self._fd)


class Journal:
    """The state of a run at `output`, as it is on the disk.

    Attributes:
        rows: the accepted rows, those included that `accept` takes on.
        replies: call -> the model's reply, of the calls that are not done.
        next_call: the first call that is not done.
        dropped: filter -> tasks dropped, over all calls done.
        skipped: calls whose prompt left no room for an answer.
        usage: (prompt tokens, completion tokens) of all answers that arrived.

    Raises StateError if another process writes there, ResumeError if the run that left the files had other settings or
    the files do not belong together, CorruptFileError for lines that are no JSON.
    """

    def __init__(self, output: Path, settings: Row):
        self.rows: list[Row] = []
        self.replies: dict[int, Reply] = {}
        self.next_call = 0
        self.dropped: Counter[str] = Counter()
        self.skipped = 0
        self.usage = (0, 0)
        self._output = output
        self._ahead: deque[Row] = deque()  # rows on the disk of the call that was being done
        output.parent.mkdir(parents=True, exist_ok=True)
        fresh = not output.exists()
        self._calls = _Lines(output.with_name(output.name + ".journal"))
        self._rows: _Lines | None = None
        try:
            self._calls.lock()
            records = self._calls.read()
            if not records and not fresh and output.stat().st_size:
                raise ResumeError(
                    f"{output} has rows but no journal ({self._calls.path.name}), so the run behind it cannot go on. "
                    "Give another output, or its rows as seeds."
                )
            self._rows = _Lines(output)
            if records:
                self._replay(records, settings)
            else:
                self._calls.append({"settings": settings})
            _sync_folder(output.parent)
        except BaseException:
            self.close()
            raise

    def _replay(self, records: list[Row], settings: Row) -> None:
        """Take over what the files say."""
        _same(records[0].get("settings"), settings, self._calls.path)
        done = 0
        for number, record in enumerate(records[1:], 2):
            try:
                if "done" in record:
                    if record["done"] != self.next_call:
                        raise ValueError(f"call {record['done']} is done before call {self.next_call}")
                    done = int(record["rows"])
                    self._finish(self.replies[self.next_call], Counter(record["dropped"]))
                else:
                    reply = Reply(tuple(Answer(**a) for a in record["answers"]), skipped=record["skipped"])
                    self.replies[record["call"]] = reply
                    self._use(*record["usage"])
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise CorruptFileError(
                    f"{self._calls.path}, line {number}, is no record of a run: {error!r}."
                ) from None
        assert self._rows is not None
        rows = self._rows.read()
        if len(rows) < done:
            raise self._differs(f"{len(rows)} rows where {done} were accepted")
        self.rows, self._ahead = rows[:done], deque(rows[done:])
        if self._ahead and self.next_call not in self.replies:
            raise self._differs(f"{len(rows)} rows where {done} were accepted")

    def answered(self, call: int, reply: Reply, usage: tuple[int, int]) -> None:
        """Keep the reply to a call."""
        answers = [asdict(a) for a in reply.answers]
        self._calls.append(
            {"call": call, "answers": answers, "usage": usage, "max_tokens": reply.max_tokens, "skipped": reply.skipped}
        )
        self.replies[call] = reply
        self._use(*usage)

    def accept(self, row: Row) -> None:
        """Keep a row of the call that is being done."""
        assert self._rows is not None
        if self._ahead:
            if json.loads(json.dumps(row)) != self._ahead.popleft():
                raise self._differs(f"another row {len(self.rows) + 1} than its answers lead to")
        else:
            self._rows.append(row)
        self.rows.append(row)

    def done(self, dropped: Counter[str]) -> None:
        """All rows of the call `next_call` are kept."""
        if self._ahead:
            raise self._differs(f"{len(self._ahead)} rows more than its answers lead to")
        self._calls.append({"done": self.next_call, "rows": len(self.rows), "dropped": dict(+dropped)})
        self._finish(self.replies[self.next_call], dropped)

    def _use(self, read: int, written: int) -> None:
        self.usage = self.usage[0] + read, self.usage[1] + written

    def _finish(self, reply: Reply, dropped: Counter[str]) -> None:
        self.dropped += dropped
        self.skipped += reply.skipped
        del self.replies[self.next_call]
        self.next_call += 1

    def _differs(self, how: str) -> ResumeError:
        return ResumeError(
            f"{self._output} is not what its journal says: it has {how}. It was changed since. Put it back, or give "
            "another output."
        )

    def close(self) -> None:
        """Close both files."""
        self._calls.close()
        if self._rows is not None:
            self._rows.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _same(then: Any, now: Row, path: Path) -> None:
    """Raises ResumeError where the settings of the run that left the files are others than those given now."""
    if not isinstance(then, dict):
        raise CorruptFileError(f"{path} does not begin with the settings of a run.")
    now = json.loads(json.dumps(now))
    changed = [f"{k}: {then.get(k)!r} then, {now.get(k)!r} now" for k in {**now, **then} if then.get(k) != now.get(k)]
    if changed:
        raise ResumeError(
            f"{path.with_suffix('')} was begun with other settings ({'; '.join(changed)}). "
            "Give these again to go on, or another output to begin anew."
        )


def _sync_folder(folder: Path) -> None:
    """Make the names of new files durable, where the platform can."""
    if fcntl is None:
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
