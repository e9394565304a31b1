"""Calls that are on their way, several at a time, and the answers as they arrive."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from inlay.selfinstruct.generate import Reply

Wait = Callable[[float], None]


class _Abandoned(Exception):
    """The run ended while this call was waiting to be made again."""


class Calls:
    """At most `limit` calls at a time, each in a thread; with a limit of 1 in this one, so that Ctrl-C reaches a model.

    `make(call, wait)` makes a call; `keep(call, reply)` takes what comes back, in the thread that waits. Used as a
    context: what is on its way at the end is waited for and kept, but for Ctrl-C, when only what has arrived is; calls
    that wait to be made again are given up either way.

    Attributes:
        flying: the calls on their way.
    """

    def __init__(
        self,
        make: Callable[[int, Wait], Reply],
        keep: Callable[[int, Reply], None],
        limit: int,
        sleep: Callable[[float], object] | None = None,
    ):
        self.flying: set[int] = set()
        self._make, self._keep, self._limit = make, keep, limit
        self._over = threading.Event()
        self._sleep = sleep or self._over.wait
        self._inbox: queue.SimpleQueue[tuple[int, Reply | Exception]] = queue.SimpleQueue()

    def has_room(self) -> bool:
        """Whether another call may be started."""
        return len(self.flying) < self._limit

    def start(self, call: int) -> None:
        """Make this call."""
        self.flying.add(call)
        if self._limit == 1:
            self._run(call)
        else:
            threading.Thread(target=self._run, args=(call,), daemon=True, name=f"call-{call}").start()

    def receive(self) -> None:
        """Wait for one call and keep its reply, or raise its error."""
        call, outcome = self._inbox.get()
        self.flying.discard(call)
        if isinstance(outcome, Reply):
            self._keep(call, outcome)
        elif not isinstance(outcome, _Abandoned):
            raise outcome

    def _run(self, call: int) -> None:
        try:
            self._inbox.put((call, self._make(call, self._wait)))
        except Exception as error:
            self._inbox.put((call, error))

    def _wait(self, seconds: float) -> None:
        if not self._over.is_set():
            self._sleep(seconds)
        if self._over.is_set():
            raise _Abandoned

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._over.set()
        interrupted = kind is not None and not issubclass(kind, Exception)
        while self.flying and not (interrupted and self._inbox.empty()):
            call, outcome = self._inbox.get()
            self.flying.discard(call)
            if isinstance(outcome, Reply):
                self._keep(call, outcome)
