"""The cooperative wait: a reactor sleeps in gevent's hub, and wakes when it should.

An epoll (or kqueue) descriptor can itself be polled. So a stock reactor whose poller first lets
the hub wait for that one descriptor, and then polls with a timeout of 0, is a green reactor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent.exceptions import LoopExit
from gevent.hub import Hub
from greenlet import getcurrent, greenlet

from .._patched import original
from .loops import LoopInbox, for_timer, is_destroyed, is_libev

#: The thread's own number, also where ``threading`` is patched to count greenlets as threads.
get_thread_ident: Callable[[], int] = original("_thread", "get_ident")

READ, WRITE = 1, 2  # libev's and libuv's numbers alike

SLICE = 0.002
"""Seconds that greendefer's own work (starting calls, delivering results) may take before
somebody else gets a turn, and that greenlets may take between two turns of the reactor. Half of
gevent's own bound for callbacks (``sys.getswitchinterval()``)."""


ALARM_PRECISION = 0.0001
"""Seconds. libev and libuv round to milliseconds."""


class Onlooker(Protocol):
    """What wants to know that the reactor is at work: :mod:`greendefer._holdups`."""

    asleep: bool

    def wake(self) -> None: ...

    def forked(self) -> None: ...

    def hub_is_gone(self) -> None: ...


class CooperativeWait:
    """Where the reactor's greenlet is parked while it has nothing to do.

    :ivar hub: the hub that the reactor waits in.
    :ivar inbox: what other threads want that hub to call.
    :ivar greenlet: the reactor's greenlet while the reactor runs, else ``None``.
    :ivar takes_visits: may :meth:`visit` be used here?
    :ivar turns: how often it has waited.
    :ivar onlooker: is to be woken by whatever happens, if it is asleep.
    :ivar when_moved: is called when it has got another hub.
    """

    greenlet: greenlet | None = None
    turns: int = 0
    onlooker: Onlooker | None = None
    takes_visits: bool = True

    def __init__(self) -> None:
        self.when_moved: Callable[[], object] = nothing
        self._descriptors: Callable[[], Iterable[tuple[int, int]]] | None = None
        self._fd: int | None = None
        self._parked: greenlet | None = None
        self._woken = False
        self._visitor: Callable[[], object] | None = None
        self._has_visit = False
        self._due = 0.0
        self._last_round = 0.0
        self._enter(gevent.get_hub())

    def _enter(self, hub: Hub) -> None:
        self.hub = hub
        loop: Any = hub.loop
        self.loop = loop
        self.inbox: LoopInbox = LoopInbox(loop, ref=False)
        self._watchers: list[Any] = []
        self._each: list[Any] = []  # one for each descriptor, made for one round
        self._at_once: Any = loop.timer(0.0, priority=loop.MAXPRI)
        self._alarm: Any = None
        self._alarm_at = inf
        self._is_busy = False
        # libuv's loop can't say whether anything is alive in it: there is 0 whatever there is
        # (gevent/_ffi/loop.py, activecnt and pendingcnt).
        self._is_libev = is_libev(loop)
        if self._is_libev:
            # What yield_to_reactor() puts before all others. (libuv's watchers have feed(), but it
            # raises.) It is never started, only fed, so it keeps no loop alive. With ref=False
            # feed() would take one from activecnt until _resume() has returned
            # (gevent/libev/corecext.pyx).
            self._express: Any = loop.async_(priority=loop.MAXPRI)
            self._once_more: Any = loop.timer(0.0, ref=False)
        if self._fd is not None:
            self.watch(self._fd)

    def enter_hub_of_thread(self) -> Hub:
        """Wait in the hub of the current thread from now on: another thread runs the reactor now,
        or the hub that it had was destroyed."""
        hub = gevent.get_hub()
        if hub is not self.hub:
            self._leave()
            if self.onlooker is not None:
                self.onlooker.hub_is_gone()
                self.onlooker = None
            self._enter(hub)
            self.when_moved()
        return hub

    def _leave(self) -> None:
        """Close what is in the hub that is left. If another thread has it, that thread must close
        it, whenever its hub runs: libuv has pointers to what is not closed."""
        left = [*self._watchers, self._at_once]
        if self._alarm is not None:
            left.append(self._alarm)
        for each in (*left, self.inbox):
            self.inbox.ask(each.close)  # unless the loop was destroyed, and has closed them

    def is_this_thread(self) -> bool:
        """Is the calling thread the one that the reactor waits in?"""
        return get_thread_ident() == self.hub.thread_ident

    def watch(self, fd: int) -> None:
        """End the wait when `fd`, which is an epoll or kqueue, becomes readable."""
        for watcher in self._watchers:
            watcher.close()
        self._fd = fd
        self._watchers = [self._watcher(fd, READ)]
        if self._parked is not None:
            self._watchers[0].start(self._resume)

    def watch_each(self, descriptors: Callable[[], Iterable[tuple[int, int]]]) -> None:
        """End the wait when one of the `descriptors` is ready, for a poller that has no
        descriptor of its own. They are asked for at each wait: number, and READ or WRITE."""
        self._descriptors = descriptors

    def _watcher(self, fd: int, events: int) -> Any:
        # At the highest priority: all that one poll of the hub found ready runs before the next,
        # and the reactor should be the first of them, not the last (libev(3), "WATCHER PRIORITY
        # MODELS"; libuv has no priorities).
        return self.loop.io(fd, events, priority=self.loop.MAXPRI)

    def patience(self, timeout: float | None) -> float:
        """How many seconds the reactor may block in its own poller instead of in the hub.

        Above 0 only while it is busy and no greenlet waits in the hub for anything. At most
        :data:`SLICE`, because ``activecnt`` misses watchers with ``ref=False`` and callbacks from
        other threads.
        """
        if not self._is_busy or self._woken or is_destroyed(self.loop):
            return 0.0
        if self.loop.activecnt or self.loop.pendingcnt:
            return 0.0
        if monotonic() - self._last_round >= SLICE:
            return 0.0
        return SLICE if timeout is None else min(timeout, SLICE)

    def wait(self, timeout: float | None) -> None:
        """Give way to the hub until something happens, or `timeout` seconds have passed.

        With a timeout of 0 all others who can run have their turn first: a reactor that is always
        busy must not starve greenlets. Every :data:`SLICE` the hub goes all the way round,
        input and output included.
        """
        hub = self.enter_hub_of_thread()
        me = getcurrent()
        if self._parked is not None and self._parked is not me:
            # Somebody calls reactor.iterate() while the reactor sleeps in its own greenlet. (This
            # one is not asleep: an error of a signal's handler has kept that from being noted.)
            gevent.sleep(0)
            return
        now = monotonic()
        self._due = now + SLICE
        onlooker = self.onlooker
        try:
            # In this order: a signal's handler may call wake() anywhere, which is seen here, or
            # has seen that this one is parked.
            self._parked = me
            if self._woken:
                timeout = 0.0
            if onlooker is not None and onlooker.asleep:
                onlooker.wake()
            if timeout == 0.0 and now - self._last_round < SLICE:
                self.loop.run_callback(self._resume)
                self._park(hub)
            else:
                self._go_round(timeout)
                self._last_round = monotonic()
                self._is_busy = self._is_libev and self._last_round - now < SLICE
        finally:
            self._parked = None
            self._woken = False
            self.turns += 1
            if onlooker is not None and onlooker.asleep:
                onlooker.wake()

    def pause(self, seconds: float) -> None:
        """Give way to the hub for as long, whatever there is to be read meanwhile."""
        self.turns += 1
        gevent.sleep(seconds)

    @property
    def is_parked(self) -> bool:
        """Is the reactor's greenlet in its wait?"""
        return self._parked is not None

    def _go_round(self, timeout: float | None) -> None:
        new = self._each
        while new:  # a signal's handler has raised an error as they were closed
            new.pop().close()
        if self._descriptors is not None:
            try:
                new += [self._watcher(fd, events) for fd, events in self._descriptors()]
            except (OSError, ValueError):
                # One that is no longer open. The stock poller will find it, and say so.
                timeout = 0.0
            if not new and timeout:
                new.append(
                    self.loop.timer(for_timer(self.loop, timeout))
                )  # something must keep the loop alive
        try:
            for watcher in self._watchers or new:
                watcher.start(self._resume)
            if timeout is not None:
                self._set_alarm(timeout)
            self._park(self.hub)
        except LoopExit:
            if not self._is_libev:  # pragma: no cover - libuv counts for itself
                raise
            # Our watcher is alive, so the loop has lost count: see LoopInbox. Who sets gevent's
            # events from other threads, say, does that to it, too.
            while self.loop.activecnt <= 0:
                self.loop.ref()
        finally:
            for watcher in self._watchers or new:  # other ones in a forked child
                watcher.stop()
            while new:
                new.pop().close()
            self._at_once.stop()

    def _set_alarm(self, timeout: float) -> None:
        """Wake the reactor in `timeout` seconds, or earlier.

        An earlier alarm is kept, at the price of one needless turn: protocols postpone their
        timeouts with every event, and starting the timer anew each time would cost more. It keeps
        no loop alive.
        """
        if timeout <= 0.0:
            self._at_once.start(self._resume, update=True)
            return
        at = monotonic() + timeout
        if at > self._alarm_at - ALARM_PRECISION:
            return
        self._alarm_at = inf
        if self._alarm is not None:
            self._alarm.close()
        self._alarm = self.loop.timer(
            for_timer(self.loop, timeout), ref=False, priority=self.loop.MAXPRI
        )
        self._alarm.start(self._ring, update=True)
        self._alarm_at = at  # last: a signal's handler may have raised an error

    def _ring(self) -> None:
        self._alarm_at = inf
        self._resume()

    def _park(self, hub: Hub) -> None:
        me = getcurrent()
        if self._visitor is None:  # else it was left: see _receive()
            self._switch_to(hub)
        while self._visitor is not None:
            turns = self.turns
            if self.onlooker is not None and self.onlooker.asleep:
                self.onlooker.wake()
            self._receive(self._visitor)
            self._parked = me
            if self._woken or self.turns != turns or monotonic() >= self._due:
                return
            self._switch_to(hub)

    def _receive(self, visitor: Callable[[], object]) -> None:
        """Call the visitor. If a signal's handler raises an error before that has done its work, it
        is called once more, in the next wait: nobody else would come for what it brings."""
        try:
            self._visitor = self._parked = None
            self._has_visit = True
            visitor()
        except BaseException:
            self._visitor = visitor
            raise
        finally:
            self._has_visit = False

    def _switch_to(self, hub: Hub) -> None:
        if self._parked is not None:
            # Else it was resumed already, in a signal's handler that has switched greenlets.
            hub.switch()

    def _resume(self) -> None:
        """End the wait. Runs in the hub, which is the only one that may switch here."""
        parked = self._parked
        if parked is not None:
            self._parked = None
            parked.switch()
        elif self._has_visit:
            # The visitor waits for something, which it should not. Meanwhile nobody takes what is
            # ready, and the hub would say so again and again: also where the reactor is to take
            # its turn after that anyway.
            self._woken = True
            for watcher in self._watchers or self._each:
                watcher.stop()

    def visit(self, visitor: Callable[[], object]) -> bool:
        """Have the reactor's greenlet call `visitor` now, where it is parked, and then wait on,
        unless it was woken meanwhile. Runs in the hub.

        A turn of the reactor costs more than most results that are delivered, and they leave it
        nothing to do. It has one all the same every :data:`SLICE`.

        :returns: ``False`` if it is not parked, and `visitor` was not called.
        """
        parked = self._parked
        if parked is None:
            return False
        self._parked = None
        self._visitor = visitor
        parked.switch()
        return True

    def wake(self) -> None:
        """Make the reactor take a turn soon: now, if it is parked, or in place of its next wait.

        For any greenlet of the reactor's thread, the hub included.
        """
        if not self._woken:
            self._woken = True
            if self._parked is not None:
                self.loop.run_callback(self._resume)

    def wake_if_parked(self) -> None:
        """The same, for what the reactor looks at by itself before its next wait."""
        if self._parked is not None or self._has_visit:
            self.wake()

    def forked(self) -> None:
        """This is a child process."""
        if self.onlooker is not None:
            self.onlooker.forked()
        self.wake_if_parked()

    def yield_to_reactor(self) -> None:
        """Let the reactor run next if greenlets have run for longer than :data:`SLICE` without it.

        One poll of the hub may find hundreds of greenlets ready, and runs them all before the
        next. A greenlet that calls this as it switches to the hub puts the reactor before the
        rest of them: libev takes the event with the highest priority next, a new one included
        (``ev_invoke_pending`` in ev.c). libuv can't, and there the bound does not hold.
        """
        if self._parked is not None and monotonic() >= self._due:
            self._due = monotonic() + SLICE
            if not self._is_libev:
                self.wake()
            else:
                self._express.feed(1, self._resume)
                # gevent runs callbacks just before libev polls (its prepare watcher), and that is
                # where we may be. Those that the reactor adds in its turn would not be seen until
                # something else ends the poll; a timer that is due does.
                self._once_more.start(nothing)


def nothing() -> None:
    """What a watcher calls that is only to be there."""
