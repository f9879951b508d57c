"""A signal's handler may run at any line of what the reactor waits in. Whatever it does there, the
reactor goes on: it hears what the handler asks for, and what anybody asks for later."""

from __future__ import annotations

from typing import Any

import pytest

PROGRAM = """
    import asyncio, sys, threading
    import gevent, greendefer
    greendefer.install(sys.argv[1])
    from greendefer import _runtime, geventasyncioreactor
    from greendefer._reactor import wait
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred

    WAIT = [
        wait.CooperativeWait.wait,
        wait.CooperativeWait.patience,
        wait.CooperativeWait._go_round,
        wait.CooperativeWait._set_alarm,
        wait.CooperativeWait._park,
        wait.CooperativeWait._receive,
        wait.CooperativeWait._switch_to,
    ]
    ASYNCIO = [
        asyncio.base_events.BaseEventLoop._run_once,
        geventasyncioreactor.GreenEventLoop._run_once,
        geventasyncioreactor.GreenSelector.select,
    ]

    class Nth:
        # Calls a handler at the n-th line from now on that is one of these functions'.

        def __init__(self, n, functions, handler):
            self.left, self.handler = n, handler
            self.codes = {f.__code__ for f in functions}
            self.thread = threading.get_ident()
            self.was_hit = False
            sys.settrace(self.trace)
            frame = sys._getframe()
            while frame is not None:  # those that run
                frame.f_trace = self.trace(frame, "call", None)
                frame = frame.f_back

        def trace(self, frame, event, argument):
            return self.at_line if frame.f_code in self.codes else None

        def at_line(self, frame, event, argument):
            if event == "line" and self.left and threading.get_ident() == self.thread:
                self.left -= 1
                if not self.left:
                    self.was_hit = True
                    self.handler()
            return self.at_line

    pool = greendefer.GreenPool(1)
    n = 0
"""


@pytest.mark.parametrize("how", ["turn", "visit"])
@pytest.mark.parametrize("kind", ["native", "select", "asyncio"])
def test_a_handler_that_asks_for_something(kind: str, how: str, run_program: Any) -> None:
    """Nothing else wakes the reactor then, which is about to sleep: after a turn, or after a result
    was delivered where it waits."""
    run_program(
        PROGRAM,
        """
    async def main():
        global n
        while True:
            n += 1
            if sys.argv[2] == "visit":
                await pool.submit(gevent.sleep, 0.001)
            asked = Deferred()
            nth = Nth(n, WAIT + ASYNCIO, lambda: reactor.callFromThread(asked.callback, None))

            def no_such_line():
                if not nth.was_hit:
                    nth.left = 0
                    reactor.callFromThread(asked.callback, None)

            later = gevent.spawn_later(1, no_such_line)
            await asked  # if it was not heard, this is for ever
            later.kill(block=False)
            if not nth.was_hit:
                break

    go(main)
    assert n > (20 if sys.argv[2] == "turn" else 5), n
        """,
        args=[kind, how],
    )


@pytest.mark.parametrize("how", ["timers", "results"])
@pytest.mark.parametrize("kind", ["native", "select"])
def test_a_handler_that_raises_an_error(kind: str, how: str, run_program: Any) -> None:
    """Twisted's main loop logs that, and goes on; so do its timers, and results still come."""
    run_program(
        PROGRAM,
        """
    def fail():
        raise ZeroDivisionError

    async def timers():
        rings, rings_later = Deferred(), Deferred()
        reactor.callLater(0.005, rings.callback, None)
        reactor.callLater(0.01, rings_later.callback, None)
        await rings
        await rings_later

    async def results():
        for seconds in 0, 0.001, 0.001:
            assert await pool.submit(gevent.sleep, seconds) is None

    async def main():
        global n
        was_hit = True
        while was_hit:
            n += 1
            nth = Nth(n, WAIT, fail)
            await globals()[sys.argv[2]]()
            was_hit = nth.was_hit
            nth.left = 0
            assert await pool.submit(len, "four") == 4

    go(main)
    assert n > 20, n
        """,
        args=[kind, how],
    )


@pytest.mark.parametrize("kind", ["native", "select"])
def test_a_handler_that_raises_an_error_as_a_result_is_taken(kind: str, run_program: Any) -> None:
    """The reactor takes it all the same, and those that come later."""
    run_program(
        """
        import signal, sys
        import gevent, greendefer
        greendefer.install(sys.argv[1])
        from greendefer._runtime import GreenRuntime
        from twisted.internet import reactor

        def fail(signum, frame):
            raise ZeroDivisionError

        signal.signal(signal.SIGUSR1, fail)
        pool = greendefer.GreenPool(1)
        original = GreenRuntime._flush
        left = [1]

        def interrupted(runtime):
            if left[0] and runtime.wait._has_visit:
                left[0] = 0
                signal.raise_signal(signal.SIGUSR1)
            original(runtime)

        GreenRuntime._flush = interrupted

        async def main():
            for _ in range(3):
                assert await pool.submit(gevent.sleep, 0.001) is None
            assert not left[0]

        go(main)
        """,
        args=[kind],
    )


@pytest.mark.parametrize(
    "before", ["wait", "_go_round", "_set_alarm", "_park", "_switch_to", "_switch_to, woken"]
)
@pytest.mark.parametrize("kind", ["native", "select", "asyncio"])
def test_ctrl_c_in_the_reactors_greenlet(kind: str, before: str, run_program: Any) -> None:
    """It goes to the program's main greenlet, which cleans up with the reactor's help."""
    run_program(
        """
        import signal, sys
        import gevent, greendefer
        from gevent.event import Event
        signal.signal(signal.SIGINT, signal.default_int_handler)
        kind, (before, *woken) = sys.argv[1], sys.argv[2].split(", ")
        greendefer.install(kind)
        reactor = greendefer.start_reactor()
        from greendefer._reactor.wait import CooperativeWait
        from twisted.internet.task import deferLater

        ask = greendefer.blocking_from_greenlet(deferLater)
        assert ask(reactor, 0.001, len, "four") == 4
        original = getattr(CooperativeWait, before)
        left = [1]

        def interrupted(*args):
            if left[0]:
                left[0] = 0
                if woken:  # then the hub takes the reactor's greenlet out of the handler
                    reactor.callFromThread(len, "")
                signal.raise_signal(signal.SIGINT)
            return original(*args)

        setattr(CooperativeWait, before, interrupted)
        # It takes a turn at once, and then sleeps for a while.
        reactor.callLater(0, reactor.callLater, 0.01, len, "")
        try:
            Event().wait()
        except KeyboardInterrupt:
            assert not left[0]
            assert ask(reactor, 0.001, len, "four") == 4
        """,
        args=[kind, before],
    )


@pytest.mark.parametrize("kind", ["native", "asyncio"])
def test_ctrl_c_as_a_result_is_posted(kind: str, run_program: Any) -> None:
    """In the main greenlet it is raised just there. What was to be told is told with the next."""
    run_program(
        """
        import signal, sys
        import gevent, greendefer
        from greenlet import getcurrent
        signal.signal(signal.SIGINT, signal.default_int_handler)
        greendefer.install(sys.argv[1])
        reactor = greendefer.start_reactor()
        from greendefer._runtime import GreenRuntime
        from twisted.internet.defer import Deferred

        pool, closed = greendefer.GreenPool(2), greendefer.GreenPool(1)
        for each in pool, closed:
            assert greendefer.wait_for_deferred(each.submit(len, "four")) == 4
        main = getcurrent()

        def interrupt_in(cls, name):
            original = getattr(cls, name)

            def interrupted(*args):
                if getcurrent() is main:
                    setattr(cls, name, original)
                    signal.raise_signal(signal.SIGINT)
                return original(*args)

            setattr(cls, name, interrupted)

        interrupt_in(GreenRuntime, "_post")
        try:
            closed.close()
        except KeyboardInterrupt:
            assert greendefer.wait_for_deferred(pool.submit(len, "four")) == 4
        if sys.argv[1] == "asyncio":
            interrupt_in(type(reactor), "_post")
            called = Deferred()
            try:
                reactor.callFromThread(called.callback, "it")
            except KeyboardInterrupt:
                reactor.callFromThread(len, "")
                assert greendefer.wait_for_deferred(called) == "it"
        """,
        args=[kind],
    )
