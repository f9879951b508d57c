"""The cooperative wait: a reactor sleeps in gevent's hub, and wakes when it should.

An epoll (or kqueue) descriptor can itself be polled. So a stock reactor whose poller first lets
the hub wait for that one descriptor, and then polls with a timeout of 0, is a green reactor.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent.hub import Hub
from greenlet import getcurrent, greenlet

SLICE = 0.002
"""Seconds that greendefer's own work (starting calls, delivering results) may take before
somebody else gets a turn, and that greenlets may take between two turns of the reactor. Half of
gevent's own bound for callbacks (``sys.getswitchinterval()``)."""


class CooperativeWait:
    """Where the reactor's greenlet is parked while it has nothing to do.

    :ivar hub: the hub that the reactor waits in.
    :ivar greenlet: the reactor's greenlet while the reactor runs, else ``None``.
    """

    greenlet: greenlet | None = None

    def __init__(self) -> None:
        self._fd: int | None = None
        self._parked: greenlet | None = None
        self._woken = False
        self._due = 0.0
        self._last_round = 0.0
        self._enter(gevent.get_hub())

    def _enter(self, hub: Hub) -> None:
        self.hub = hub
        self.loop: Any = hub.loop
        self._io: Any = None
        if self._fd is not None:
            self.watch(self._fd)

    def watch(self, fd: int) -> None:
        """End the wait when `fd` becomes readable."""
        self._fd = fd
        # At the highest priority: all that one poll of the hub found ready runs before the next,
        # and the reactor should be the first of them, not the last (libev(3), "WATCHER PRIORITY
        # MODELS"; libuv has no priorities).
        self._io = self.loop.io(fd, 1, priority=self.loop.MAXPRI)

    def wait(self, timeout: float | None) -> None:
        """Give way to the hub until something happens, or `timeout` seconds have passed.

        With a timeout of 0 all others who can run have their turn first: a reactor that is always
        busy must not starve greenlets. Every :data:`SLICE` the hub goes all the way round,
        input and output included.
        """
        hub = gevent.get_hub()
        if hub is not self.hub:  # another thread runs the reactor now, or the hub was destroyed
            self._enter(hub)
        if self._parked is not None:
            # Somebody calls reactor.iterate() while the reactor sleeps in its own greenlet.
            gevent.sleep(0)
            return
        if self._woken:
            timeout = 0.0
        timer = None
        now = monotonic()
        all_the_way = timeout != 0.0 or now - self._last_round >= SLICE
        self._due = now + SLICE
        self._parked = getcurrent()
        try:
            if not all_the_way:
                self.loop.run_callback(self._resume)
            else:
                if timeout is not None:
                    timer = self.loop.timer(timeout, priority=self.loop.MAXPRI)
                    # update: libev counts from when its loop last looked at the clock.
                    timer.start(self._resume, update=True)
                if self._io is not None:
                    self._io.start(self._resume)
            hub.switch()
        finally:
            self._parked = None
            self._woken = False
            if all_the_way:
                self._last_round = monotonic()
                if self._io is not None:
                    self._io.stop()
                if timer is not None:
                    timer.close()

    def _resume(self) -> None:
        """End the wait. Runs in the hub, which is the only one that may switch here."""
        parked = self._parked
        if parked is not None:
            self._parked = None
            parked.switch()

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
        if self._parked is not None:
            self.wake()

    def make_way(self) -> None:
        """Let the reactor run next if greenlets have run for longer than :data:`SLICE` without it.

        One poll of the hub may find hundreds of greenlets ready, and runs them all before the
        next. A greenlet that calls this as it switches to the hub puts the reactor before the
        rest of them: libev takes the event with the highest priority next, a new one included
        (``ev_invoke_pending`` in ev.c). libuv can't, and there the bound does not hold.
        """
        if self._parked is not None and monotonic() >= self._due:
            self._due = monotonic() + SLICE
            try:
                self._io.feed(1, self._resume)
            except Exception:  # libuv's watchers: "Not implemented"
                self.wake()


class Poller(Protocol):
    """What epoll and kqueue objects have in common here."""

    def fileno(self) -> int: ...
    def poll(self, timeout: float = ..., maxevents: int = ...) -> list[tuple[int, int]]: ...


class GreenPoller:
    """A poller that waits in the hub; all else is the stock poller's."""

    def __init__(self, poller: Any, wait: CooperativeWait) -> None:
        self._stock = poller
        self._wait = wait.wait
        self._poll: Callable[..., list[tuple[int, int]]] = poller.poll
        self.register = poller.register
        self.modify = poller.modify
        self.unregister = poller.unregister
        self.fileno = poller.fileno
        wait.watch(poller.fileno())

    def poll(self, timeout: float, maxevents: int = -1) -> list[tuple[int, int]]:
        """Wait in the hub for at most `timeout` seconds (negative: no limit), then poll.

        The stock poller is asked after the wait, never before: what was ready before other
        greenlets ran may be closed by now, and its number taken by another descriptor.
        """
        self._wait(None if timeout < 0 else timeout)
        return self._poll(0, maxevents)

    def close(self) -> None:
        self._stock.close()
