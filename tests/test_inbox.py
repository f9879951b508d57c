"""What other threads ask of a hub, and how it counts what is alive."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent import monkey

from greendefer._carriers.native import start_thread
from greendefer._reactor.loops import LoopInbox, is_libev

native_sleep = monkey.get_original("time", "sleep")


@pytest.fixture
def inbox() -> Any:
    box = LoopInbox(gevent.get_hub().loop, ref=False)
    yield box
    box.close()


def test_what_threads_ask_is_called_in_order(inbox: LoopInbox) -> None:
    called: list[int] = []
    start_thread(lambda: [inbox.ask(called.append, n) for n in range(100)], "asks")
    with gevent.Timeout(20):
        while len(called) < 100:
            gevent.sleep(0.001)
    assert called == list(range(100))


def test_one_that_fails_does_not_keep_others_from_being_called(
    inbox: LoopInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Any] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *args: errors.append(args[1]))
    called = gevent.event.Event()
    inbox.ask(int, "no number")
    inbox.ask(called.set)
    assert called.wait(20)
    assert errors == [ValueError]


def test_one_that_is_closed_says_so() -> None:
    box = LoopInbox(gevent.get_hub().loop, ref=True)
    box.close()
    called: list[int] = []
    assert not box.ask(called.append, 1)
    gevent.sleep(0.001)
    assert not called


COUNTS = """
    import gevent, threading
    from gevent import monkey
    from greendefer._carriers.native import start_thread
    from greendefer._reactor.loops import LoopInbox

    loop = gevent.get_hub().loop
    inbox = LoopInbox(loop, ref=False)
    native_sleep = monkey.get_original("time", "sleep")
    done = []

    def ask():
        for _ in range(5_000):
            inbox.ask(int)
            native_sleep(0.0002)
        inbox.ask(done.append, 1)

    def sleep():
        while len(done) < 4:
            gevent.sleep(0.0005)

    alive = loop.activecnt
    sleepers = [gevent.spawn(sleep) for _ in range(300)]
    for n in range(4):
        start_thread(ask, f"asks-{n}")
    gevent.joinall(sleepers, raise_error=True)
    gevent.sleep(0.01)
    assert loop.activecnt == alive, loop.activecnt
"""


def test_the_loop_does_not_lose_count(run_program: Any) -> None:
    """As it did a dozen times here, of 20,000, with gevent's run_callback_threadsafe()."""
    run_program(COUNTS)


@pytest.mark.skipif(not is_libev(gevent.get_hub().loop), reason="libuv counts for itself")
@pytest.mark.parametrize("kind", ["native", "poll", "select", "asyncio"])
def test_a_loop_that_somebody_else_has_made_lose_count(kind: str, run_program: Any) -> None:
    """The reactor's own watchers are alive: the hub must not say that it would wait for ever."""
    run_program(
        f"""
        import greendefer, os
        greendefer.install({kind!r})
        from twisted.internet import reactor, task
        from twisted.internet.defer import Deferred
        from twisted.internet.utils import getProcessOutput
        from twisted.logger import globalLogPublisher
        from greendefer.instrumentation import warn_of_holdups

        logged = []
        globalLogPublisher.addObserver(
            lambda event: logged.append(event) if event["log_level"].name != "info" else None
        )
        warn_of_holdups(None)  # a machine that is busy is none of this
        pool = greendefer.GreenPool(10)

        async def main():
            loop = reactor.cooperative_wait.loop
            for _ in range(5):
                loop.unref()
            await task.deferLater(reactor, 0.01)
            assert await getProcessOutput("/bin/echo", [b"it reads"]) == b"it reads\\n"
            assert await pool.submit(len, "four") == 4
            assert not logged, logged

        go(main)
        """
    )
