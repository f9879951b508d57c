"""Twisted, asyncio and gevent on one thread: Twisted's asyncio reactor, on a loop whose selector
waits in gevent's hub.

::

    from greendefer import geventasyncioreactor
    geventasyncioreactor.install()

Coroutines, tasks, Deferreds and greenlets take turns. No other greenlet sees the reactor's loop:
while that waits it is not *the running loop*, so Django's ORM, ``asyncio.run`` and
``asgiref.sync.async_to_sync`` work in a decorated call. (A loop that a call runs itself is another
matter: there can be one in a thread, so two such calls must not overlap.)
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.main import installReactor
from twisted.python import log

from ._errors import shown
from ._patched import original
from ._reactor.dispatch import call_with_logger
from ._reactor.green import GreenReactor
from ._reactor.installed import refuse_if_installed
from ._reactor.posting import PostsOnce
from ._reactor.stock import native_kind
from ._reactor.wait import READ, WRITE, CooperativeWait, nothing


def _stock_selector() -> Any:
    """The class of selectors that Python would choose on this platform, unpatched."""
    name = {"epoll": "EpollSelector", "kqueue": "KqueueSelector"}.get(native_kind())
    return original("selectors", name or "SelectSelector")


if TYPE_CHECKING:
    from selectors import DefaultSelector as _StockSelector
else:
    _StockSelector = _stock_selector()


class GreenSelector(_StockSelector):
    """A selector that waits in the hub, and then asks the stock one."""

    def __init__(self, wait: CooperativeWait) -> None:
        super().__init__()
        self._wait = wait
        self._watch()

    def renew(self) -> None:
        """Have an epoll of its own, with the same descriptors."""
        keys = list(self.get_map().values())
        self.close()
        super().__init__()
        for key in keys:
            self.register(key.fileobj, key.events, key.data)
        self._watch()

    def _watch(self) -> None:
        wait = self._wait
        if hasattr(self, "fileno"):
            wait.watch(self.fileno())
        else:  # pragma: no cover - that of Linux, an epoll, has one
            wait.watch_each(
                lambda: (
                    (
                        key.fd,
                        READ * bool(key.events & selectors.EVENT_READ)
                        | WRITE * bool(key.events & selectors.EVENT_WRITE),
                    )
                    for key in self.get_map().values()
                )
            )

    def select(self, timeout: float | None = None) -> Any:
        # asyncio keeps the running loop for each thread, and so for all its greenlets. Whoever
        # runs while this one waits must not take it for theirs; and if one of them runs a loop of
        # its own, that stays theirs when this one goes on.
        patience = self._wait.patience(timeout)
        if patience > 0 and (ready := super().select(patience)):
            return ready
        loop = asyncio._get_running_loop()
        asyncio._set_running_loop(self._loop_of_others)
        try:
            self._wait.wait(None if timeout is None else max(0.0, timeout))
        finally:
            self._loop_of_others = asyncio._get_running_loop()
            asyncio._set_running_loop(loop)
        return super().select(0)

    _loop_of_others: Any = None


class GreenEventLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, on a :class:`GreenSelector`.

    What any greenlet of its thread schedules takes effect at once, as it does on the reactor.
    """

    def __init__(self) -> None:
        self.cooperative_wait: CooperativeWait = CooperativeWait()
        # Its selector waits where this loop is not the running one.
        self.cooperative_wait.takes_visits = False
        super().__init__(GreenSelector(self.cooperative_wait))

    _reactor: GeventAsyncioReactor | None = None

    def _run_once(self) -> None:
        # One turn (asyncio/base_events.py, run_forever): what there is to write goes before it
        # decides how long to wait. A handle, from call_soon(), would cost a turn more. But a turn
        # has its events before its timers: what is due comes before what a peer answers, as it
        # does on the stock reactor, which writes in this turn what was asked for in the last.
        reactor = self._reactor
        if reactor is not None and reactor._eager:
            if self._scheduled and self._scheduled[0].when() <= self.time():
                self.call_soon(reactor._write_eagerly)
            else:
                reactor._write_eagerly()
                if reactor._eager:  # what producers have added meanwhile: in the next turn, soon
                    self.call_soon(nothing)
        super()._run_once()  # type: ignore[misc]

    def forked(self) -> None:
        """This is a child process: its epoll, and the pipe that wakes it, are to be its own."""
        self._selector.renew()
        self._close_self_pipe()
        self._make_self_pipe()

    def add_reader(  # type: ignore[override]
        self, fd: Any, callback: Callable[..., Any], *args: Any
    ) -> None:
        # Twisted's reactor asks for callWithLogger().
        if callback is log.callWithLogger:
            callback = call_with_logger
        super().add_reader(fd, callback, *args)

    _scheduled: list[asyncio.TimerHandle]
    _selector: GreenSelector
    _close_self_pipe: Any
    _make_self_pipe: Any

    def call_soon(  # type: ignore[override]  # which has a TypeVarTuple
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = super().call_soon(callback, *args, context=context)
        self.cooperative_wait.wake_if_parked()
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = super().call_at(when, callback, *args, context=context)
        self.cooperative_wait.wake_if_parked()
        return handle


class GeventAsyncioReactor(PostsOnce, GreenReactor, AsyncioSelectorReactor):
    """Twisted's asyncio reactor, waiting in gevent's hub.

    :param eventloop: a :class:`GreenEventLoop`; ``None`` makes one, and makes it asyncio's
        current loop.
    :raises TypeError: another kind of loop, whose waiting nobody could share.
    """

    _asyncioEventloop: GreenEventLoop

    def __init__(self, eventloop: GreenEventLoop | None = None) -> None:
        if eventloop is None:
            eventloop = GreenEventLoop()
            asyncio.set_event_loop(eventloop)
        elif not isinstance(eventloop, GreenEventLoop):
            raise TypeError(
                "GeventAsyncioReactor(eventloop) runs on a GreenEventLoop of this module, not "
                f"{shown(eventloop)}"
            )
        super().__init__(eventloop, cooperative_wait=eventloop.cooperative_wait)
        eventloop._reactor = self

    def forked(self) -> None:
        self._asyncioEventloop.forked()
        super().forked()
        # Another thread may have noted it, and not come to posting it.
        self._posted = True
        self._asyncioEventloop.call_soon(self._run_thread_calls)

    def callFromThread(  # type: ignore[override]
        self, f: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> None:
        # Twisted's makes a timer of each: in a storm of them from threads, each turn of the loop
        # took a second. Its other reactors have this queue, which one turn runs as far as it was.
        self.threadCallQueue.append((f, args, kwargs))
        self._hold_back()
        if not self._posted:
            self._post_once()

    def _post(self) -> None:
        if self.cooperative_wait.is_this_thread():
            # In our own thread, asyncio's pipe is too much.
            self._asyncioEventloop.call_soon(self._run_thread_calls)
            # In a signal's handler, asyncio may have decided already how long it waits.
            self.cooperative_wait.wake()
        else:
            self._asyncioEventloop.call_soon_threadsafe(self._run_thread_calls)

    def _run_thread_calls(self) -> None:
        self._posted = False  # first: what is appended from now on is posted again
        self._onTimer()  # type: ignore[no-untyped-call]


def install(eventloop: GreenEventLoop | None = None) -> None:
    """Install it, as :func:`twisted.internet.asyncioreactor.install` does the stock one.

    :param eventloop: as for :class:`GeventAsyncioReactor`.
    :raises twisted.internet.error.ReactorAlreadyInstalledError: a reactor is there already.
    :raises TypeError: `eventloop` is of another kind.
    """
    refuse_if_installed()
    installReactor(GeventAsyncioReactor(eventloop))
