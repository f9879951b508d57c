"""What threads wait in for each other."""

from __future__ import annotations

import sys
from _queue import Empty
from collections.abc import Iterator
from typing import Any

import pytest

from greendefer._carriers.native import Mailbox, start_thread


def test_in_the_order_in_which_they_were_put() -> None:
    mailbox = Mailbox()
    for n in range(3):
        mailbox.put(n)
    assert [mailbox.get(), mailbox.get(timeout=0), mailbox.get(timeout=10)] == [0, 1, 2]
    with pytest.raises(Empty):
        mailbox.get(timeout=0)
    with pytest.raises(Empty):
        mailbox.get(timeout=0.01)
    mailbox.put(3)
    assert mailbox.get() == 3


@pytest.fixture
def switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("timeout", [None, 20])
def test_all_that_many_threads_put(switch_often: None, timeout: float | None) -> None:
    """Nothing is lost, nobody sleeps on, and what one of them put is in its order."""
    mailbox, threads, each = Mailbox(), 8, 5000

    def put(thread: int) -> None:
        for n in range(each):
            mailbox.put((thread, n))

    joins = [
        start_thread(lambda thread=thread: put(thread), "puts")  # type: ignore[misc]
        for thread in range(threads)
    ]
    got: list[list[int]] = [[] for _ in joins]
    for _ in range(threads * each):
        thread, n = mailbox.get(timeout)
        got[thread].append(n)
    assert got == [[*range(each)]] * threads
    for join in joins:
        join(20)


def test_two_that_answer_each_other(switch_often: None) -> None:
    """Each waits before the other one puts, or just as it does."""
    there, back = Mailbox(), Mailbox()

    def answer() -> None:
        while (item := there.get(timeout=20)) is not None:
            back.put(item)

    join = start_thread(answer, "answers")
    for n in range(5000):
        there.put(n)
        assert back.get(timeout=20) == n
    there.put(None)
    join(20)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pthread_kill()")
def test_a_signal_as_its_time_runs_out(run_program: Any) -> None:
    """The thread that waits has its turn only when its time is over: so it is, and not for ever."""
    run_program(
        """
        import signal, sys, time
        from _queue import Empty
        from greendefer._carriers.native import Mailbox, native_sleep, start_thread
        from greendefer._reactor.wait import get_thread_ident

        signal.signal(signal.SIGUSR1, lambda *_: None)
        sys.setswitchinterval(10)
        idents, mailbox, go, ended = Mailbox(), Mailbox(), Mailbox(), []

        def wait():
            idents.put(get_thread_ident())
            try:
                mailbox.get(timeout=0.3)
            except Empty:
                ended.append(True)
            go.get()  # it is there when it is sent the signal

        join = start_thread(wait, "waits")
        ident = idents.get()
        native_sleep(0.1)
        signal.pthread_kill(ident, signal.SIGUSR1)
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            pass
        go.put(None)
        join(20)
        assert ended
        """
    )
