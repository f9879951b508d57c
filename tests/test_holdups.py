"""The warning of what holds the loop."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from programs import ON_LIBUV

from greendefer._holdups import HoldupWatch, _culprit
from greendefer.instrumentation import warn_of_holdups

WATCHED = """
    import sys, time
    from gevent import monkey
    native_sleep = monkey.get_original("time", "sleep")
    if {patch}:
        monkey.patch_all()
    import greendefer
    from greendefer.instrumentation import warn_of_holdups
    greendefer.install()
    import gevent
    from twisted.internet import reactor, task
    from twisted.internet.threads import deferToThread
    from twisted.logger import globalLogPublisher, formatEvent
    warn_of_holdups(0.05)
    warnings = []

    def observe(event):
        if "loop" in event["log_format"] or "reactor has not run" in event["log_format"]:
            warnings.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)

    # On a busy machine the loop may be held for 50 ms by other programs, and that is said, too; and
    # who watches may come too late to see it held.
    def said(what):
        return [each for each in warnings if what in each]

    async def until(what, f):
        while not said(what):
            await f()
"""


def test_after_a_time_without_threads(run_program: Any) -> None:
    """Nobody watches while there is none to be had; but as soon as there is."""
    run_program(
        WATCHED.format(patch=False)
        + """
    import threading

    def refuse(*args):
        raise RuntimeError("can't start new thread")

    def greedy():
        native_sleep(0.4)

    async def main(reactor):
        threading.Thread.start = start
        await task.deferLater(reactor, 0.01)
        await until("greedy held the loop", lambda: greendefer.defer_to_greenlet(greedy))

    start, threading.Thread.start = threading.Thread.start, refuse
    task.react(main)
    """
    )


def test_a_call_that_holds_it(run_program: Any) -> None:
    run_program(
        WATCHED.format(patch=False)
        + """
    def greedy():
        gevent.sleep(0.2)  # the reactor has nothing to do meanwhile
        native_sleep(0.4)

    async def main(reactor):
        await until("greedy held the loop", lambda: greendefer.defer_to_greenlet(greedy))
        (text,) = said("greedy held the loop")
        assert "native_sleep(0.4)" in text or "in greedy" in text, text
        assert "patch" in text and "NativeThreadPool" in text, text
        await greendefer.defer_to_greenlet(greedy)  # once for each function
        await greendefer.NativeThreadPool(1).submit(native_sleep, 0.3)
        await greendefer.defer_to_greenlet(gevent.sleep, 0.3)
        assert len(said("greedy held the loop")) == 1, warnings
        assert not said("The call sleep"), warnings

    task.react(main)
    """
    )


def test_a_callback_that_holds_it(run_program: Any) -> None:
    run_program(
        WATCHED.format(patch=False)
        + """
    def callback(_):
        native_sleep(0.4)

    async def main(reactor):
        await until(
            "callback (", lambda: greendefer.defer_to_greenlet(len, "").addCallback(callback))
        assert "outside of calls" in said("callback (")[0], warnings

    task.react(main)
    """
    )


def test_a_callback_that_waits_while_others_go_on(run_program: Any) -> None:
    run_program(
        WATCHED.format(patch=True)
        + """
    def callback(_):
        time.sleep(0.4)  # patched

    async def main(reactor):
        others = greendefer.defer_to_greenlet(lambda: [time.sleep(0.01) for _ in range(60)])
        await until(
            "reactor has not run",
            lambda: greendefer.defer_to_greenlet(len, "").addCallback(callback),
        )
        await others
        (warning,) = said("reactor has not run")
        assert "in callback" in warning, warnings
        assert "defer_to_greenlet" in warning, warnings

    task.react(main)
    """
    )


def test_switched_off_and_asleep(run_program: Any) -> None:
    run_program(
        WATCHED.format(patch=False)
        + """
    async def main(reactor):
        await greendefer.defer_to_greenlet(len, "")
        watch = reactor.cooperative_wait.onlooker

        def until_it_sleeps():  # which it does when nothing happens
            while not watch.asleep:
                native_sleep(0.005)

        await deferToThread(until_it_sleeps)
        warn_of_holdups(None)
        await greendefer.defer_to_greenlet(native_sleep, 0.3)
        assert not said("The call sleep"), warnings

    task.react(main)
    """
    )


def test_a_call_that_never_ends(run_program: Any) -> None:
    """It is warned of while it holds the loop, after some time: it may not let go at all."""
    run_program(
        WATCHED.format(patch=False)
        + """
    def greedy():
        while not said("greedy held the loop"):
            native_sleep(0.005)
        return "warned"

    async def main(reactor):
        assert await greendefer.defer_to_greenlet(greedy) == "warned"

    task.react(main)
    """
    )


HELD = (
    WATCHED.format(patch=False)
    + """
    from greendefer import _holdups
    culprit, looked = _holdups._culprit, []

    def look(frame):
        looked.append(frame)
        return culprit(frame)

    _holdups._culprit = look

    def crash(_):
        reactor.crash()

    greendefer.defer_to_greenlet(len, "").addBoth(crash)
    reactor.run()
    watch = reactor.cooperative_wait.onlooker
    """
)
"""The reactor has been left, for the time being, and nobody answers the knocking."""


def test_a_hub_that_is_left_while_it_is_held(run_program: Any) -> None:
    """Nobody waits for what will never be answered, and there is nothing to warn of. (On libuv,
    gevent calls what is there to be called as it destroys a hub, and so it is answered.)"""
    run_program(
        f"on_libuv = {ON_LIBUV}",
        HELD
        + """
    looked.clear()
    warnings.clear()
    watch.wake()
    while not looked:  # somebody holds the loop, it has just found out
        native_sleep(0.001)
    warn_of_holdups(3600)  # the next one is of no interest
    gevent.get_hub().destroy()
    reactor.callWhenRunning(
        lambda: greendefer.defer_to_greenlet(len, "").addBoth(crash))
    reactor.run()
    assert reactor.cooperative_wait.onlooker is not watch
    assert on_libuv or not [each for each in warnings if "held" in each], warnings
    """,
    )


def test_a_loop_that_is_destroyed(run_program: Any) -> None:
    run_program(
        HELD
        + """
    gevent.get_hub().destroy(destroy_loop=True)
    watch.wake()
    while not watch._stopped:  # it knocks, and finds no door
        native_sleep(0.001)
    watch._join(60)
    """
    )


def test_nobody_is_named_where_only_libraries_run() -> None:
    """Nor where the thread has just gone."""
    assert _culprit(None) == ("Some code outside of calls", None)
    get_ident: Any = gevent.monkey.get_original("_thread", "get_ident")
    ident = gevent.get_hub().threadpool.apply(get_ident)
    frame = sys._current_frames()[ident]  # one of gevent's own threads, which waits for work
    assert "gevent" in frame.f_code.co_filename
    assert _culprit(frame) == ("Some code outside of calls", None)


def test_a_reactor_that_stops_just_before_it_knocks() -> None:
    """It knocks at nothing, and waits for nobody: the runtime of this one has no loop."""
    runtime: Any = types.SimpleNamespace(wait=types.SimpleNamespace())
    watch = HoldupWatch(runtime)
    watch.stop()
    watch._knock(3600.0)
    watch._run()


def test_the_last_thing_before_the_reactor_stops(run_program: Any) -> None:
    run_program(
        WATCHED.format(patch=False)
        + """
    def greedy():
        native_sleep(1.0)
        sys.setswitchinterval(60)  # the watching thread comes late to all that follows

    greendefer.defer_to_greenlet(greedy).addBoth(lambda _: reactor.stop())
    reactor.run()
    assert said("greedy held the loop"), warnings
    assert warnings[-1] == "Main loop terminated."
    """
    )


def test_a_limit_that_no_clock_counts_to(run_program: Any) -> None:
    """It is one like any other: a lower one that is set after it still counts."""
    run_program(
        WATCHED.format(patch=False)
        + """
    from greendefer import _holdups

    asked = []
    knock = _holdups.HoldupWatch._knock

    def knocks(self, threshold):
        knock(self, threshold)
        asked.append(threshold)

    _holdups.HoldupWatch._knock = knocks

    def greedy():
        native_sleep(0.4)

    async def main(reactor):
        warn_of_holdups(1e10)
        while not asked:
            await greendefer.defer_to_greenlet(gevent.sleep, 0.01)
        warn_of_holdups(0.05)
        await until("greedy held the loop", lambda: greendefer.defer_to_greenlet(greedy))

    task.react(main)
    """
    )


@pytest.mark.parametrize("seconds", ["1", True])
def test_a_limit_that_is_no_number(seconds: Any) -> None:
    with pytest.raises(TypeError, match=r"warn_of_holdups\(seconds\) must be a number"):
        warn_of_holdups(seconds)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_can_not_be(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"warn_of_holdups\(seconds\) must be"):
        warn_of_holdups(seconds)


def test_pools_that_change_while_the_watch_looks_at_them(reactor: Any) -> None:
    class Changing:
        def __iter__(self) -> Iterator[Any]:
            raise RuntimeError("Set changed size during iteration")

    runtime: Any = types.SimpleNamespace(wait=types.SimpleNamespace(), pools=Changing())
    assert HoldupWatch(runtime)._has_calls()
