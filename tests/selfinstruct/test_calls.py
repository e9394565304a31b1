"""Calls on their way: kept as they arrive, and what becomes of them when the run ends."""

from __future__ import annotations

import threading
import time

import pytest

from inlay.errors import EndpointError
from inlay.selfinstruct import Reply
from inlay.selfinstruct.calls import Calls, Wait

REPLY = Reply(())


def test_one_at_a_time_runs_in_the_callers_thread() -> None:
    threads, kept = [], []

    def make(call: int, wait: Wait) -> Reply:
        threads.append(threading.current_thread())
        return REPLY

    with Calls(make, lambda call, reply: kept.append(call), 1) as calls:
        calls.start(0)
        assert not calls.has_room()
        calls.receive()
        assert calls.has_room()
    assert threads == [threading.current_thread()] and kept == [0]


def test_after_an_error_what_arrives_is_kept_and_what_waits_is_given_up() -> None:
    tries, kept = [0, 0, 0], []
    both = threading.Barrier(3)

    def make(call: int, wait: Wait) -> Reply:
        both.wait()
        if call == 0:
            raise EndpointError("no")
        for _ in range(3):
            tries[call] += 1
            if call == 1:
                time.sleep(0.1)
                return REPLY
            wait(1000.0)
        raise AssertionError("asked again")

    begun = time.monotonic()
    with pytest.raises(EndpointError, match="no"), Calls(make, lambda call, reply: kept.append(call), 3) as calls:
        for call in range(3):
            calls.start(call)
        calls.receive()
    assert kept == [1] and tries == [0, 1, 1] and not calls.flying and time.monotonic() - begun < 10


def test_an_interrupt_keeps_what_has_arrived_and_waits_for_nothing() -> None:
    kept: list[int] = []
    arrived, end = threading.Event(), threading.Event()

    def make(call: int, wait: Wait) -> Reply:
        if call == 1:
            end.wait(30)
        return REPLY

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Calls(make, lambda call, reply: kept.append(call), 2) as calls:
        calls.start(0)
        calls.start(1)
        while calls._inbox.empty():
            arrived.wait(0.01)
        raise KeyboardInterrupt
    assert kept == [0] and calls.flying == {1} and time.monotonic() - begun < 10
    end.set()
