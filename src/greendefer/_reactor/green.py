"""What makes a stock Twisted reactor green, whichever poller it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from greenlet import getcurrent, greenlet
from twisted.internet._signals import _MultiSignalHandling
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ReactorAlreadyRunning
from twisted.python import log
from twisted.python.failure import Failure
from zope.interface import implementer

from .._carriers.native import native_sleep
from .._policy import check_is_callable
from .._twistedcontext import make_greenlet_local
from . import blockingcalls, fork, unpatched
from .children import ChildExits
from .interfaces import IReactorGreenlets
from .interrupt import InterruptMain
from .resolver import GeventResolver
from .wait import CooperativeWait
from .writes import WritesFirst

if TYPE_CHECKING:
    from twisted.internet.base import ReactorBase as _Base

    from .._pool import GreenPool
else:
    _Base = object


BACKLOG = 1000
"""How many calls from threads may wait, before each further one has its thread let go of Python's
lock. Eight threads that do nothing but call hand it to each other, and add more meanwhile than the
reactor's can run in its turn."""

PAUSE = 1e-6
"""Seconds for which it sleeps then: with none, Python 3.10 is back before anybody else is there (it
asks ``select()``, which does not wait then, where later ones ask ``clock_nanosleep()``)."""


@implementer(IReactorGreenlets)
class GreenReactor(WritesFirst, _Base):
    """A mixin, first of a reactor's bases: the reactor waits cooperatively, and whatever any
    greenlet of its thread asks of it takes effect at once.

    A stock reactor may take for granted that nobody calls it while it waits, other threads and
    signal handlers apart. Here every greenlet may. So each method that changes what the reactor
    waits for wakes it; a new descriptor needs no waking, the kernel sees it.

    :ivar cooperative_wait: where it waits, and which greenlet is the reactor's.
    :ivar forked_while_running: this process was forked from one in which it ran.
    :ivar interrupt_main: what Ctrl-C does while the reactor itself does not handle it.
    :ivar threads: what the reactor's thread pool is made of, once somebody asks for it:
        ``"native"`` threads, or ``"green"`` ones: :class:`greendefer.threadpool.GreenThreadPool`.
    """

    threads: Literal["native", "green"] = "native"

    def __init__(self, *args: Any, cooperative_wait: CooperativeWait | None = None) -> None:
        self.cooperative_wait: CooperativeWait = cooperative_wait or CooperativeWait()
        self.forked_while_running: bool = False
        self.interrupt_main: InterruptMain = InterruptMain(self)
        self._run_in: list[greenlet] = []
        self._child_exits = ChildExits(self)
        self.cooperative_wait.when_moved = self._child_exits.moved
        make_greenlet_local()
        unpatched.use_native_primitives()
        blockingcalls.make_cooperative()
        super().__init__(*args)
        resolver: Any = GeventResolver(self)
        self.installNameResolver(resolver)
        self.resolver = resolver  # Twisted's adapter, which that put here, ignores timeouts
        fork.renew_in_child(self)

    def doIteration(self, delay: float | None) -> None:
        # The stock poller is asked after the wait, never before: what was ready before other
        # greenlets ran may be closed by now, and its number taken by another descriptor.
        if self._eager:
            self._write_eagerly()
            delay = 0.0  # who knows what they have asked for, in the meantime
        if not self._poll_by_itself(delay):
            self.cooperative_wait.wait(delay)
            self._poll(0.0)
        if self._eager:
            self._write_eagerly()

    def _poll_by_itself(self, delay: float | None) -> bool:
        """Have the poller wait instead of the hub, if it may. ``True``: something was ready."""
        return False

    def _poll(self, delay: float) -> bool:
        """Ask the poller, and tell those that are ready."""
        super().doIteration(delay)
        return True

    def _write_soon(self) -> None:
        self.cooperative_wait.wake_if_parked()

    # Which greenlet is the reactor's.

    def run(self, *args: Any, **kwargs: Any) -> None:
        if self._started:
            raise ReactorAlreadyRunning()  # before anything that the one that runs has is changed
        self.cooperative_wait.enter_hub_of_thread()
        try:
            self._in_this_greenlet(super().run, *args, **kwargs)
        finally:
            self._signals.uninstall()

    def iterate(self, delay: float = 0.0) -> None:
        self._in_this_greenlet(super().iterate, delay)

    def _in_this_greenlet(self, f: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        wait = self.cooperative_wait
        me = getcurrent()
        wait.greenlet = me  # first: then Ctrl-C is no exception here
        self._run_in.append(me)
        try:
            f(*args, **kwargs)
        finally:
            # Greenlets that call iterate() need not end in the order in which they began.
            self._run_in.remove(me)
            wait.greenlet = self._run_in[-1] if self._run_in else None
        if self.interrupt_main.interrupted and me is wait.hub.parent and me not in self._run_in:
            self.interrupt_main.interrupted = False
            raise KeyboardInterrupt

    def _makeSignalHandling(self, installSignalHandlers: bool) -> Any:
        # Twisted sets a handler of its own only where there is none but Python's.
        self.interrupt_main.uninstall()
        if installSignalHandlers:
            return super()._makeSignalHandling(installSignalHandlers)
        return self.interrupt_main

    def _signalsFactory(self) -> Any:
        return _MultiSignalHandling((super()._signalsFactory(), self._child_exits))

    def _reallyStartRunning(self) -> None:
        super()._reallyStartRunning()
        if self._signals is self.interrupt_main:
            self._signals.install()

    def _initThreadPool(self) -> None:
        if self.threads == "native":
            super()._initThreadPool()
            return
        from ..threadpool import GreenThreadPool  # which is made of what is above this module

        self.threadpool: Any = GreenThreadPool(name="reactor's threads")
        self.threadpoolShutdownID: Any = self.addSystemEventTrigger(
            "during", "shutdown", self._stopThreadPool
        )

    # Children.

    spawning: bool = False

    def spawnProcess(self, *args: Any, **kwargs: Any) -> Any:
        self.spawning = True
        try:
            transport: Any = super().spawnProcess(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.spawning = False
        self._child_exits.spawned(transport.pid)
        return transport

    def forked(self) -> None:
        """This is a child process: share nothing with the parent that either could disturb."""
        base: Any = self
        self.forked_while_running = base.running
        waker = base.waker
        base._internalReaders.discard(waker)
        base.removeReader(waker)
        waker.connectionLost(Failure(ConnectionDone("This process was forked")))
        base.waker = None
        self.installWaker()
        self.cooperative_wait.forked()

    # Waking.

    def wakeUp(self) -> None:
        # callFromThread appends to a list and calls this: in our own thread a pipe is too much.
        if self.cooperative_wait.is_this_thread():
            self.cooperative_wait.wake()
        else:
            super().wakeUp()
            self._hold_back()

    def _hold_back(self) -> None:
        """Have a thread that calls faster than the reactor can run it wait for others."""
        if len(self.threadCallQueue) > BACKLOG and not self.cooperative_wait.is_this_thread():
            native_sleep(PAUSE)

    def callLater(
        self, delay: float, callable: Callable[..., Any], *args: object, **kw: object
    ) -> Any:
        call = super().callLater(delay, callable, *args, **kw)
        self.cooperative_wait.wake_if_parked()
        return call

    def _moveCallLaterSooner(self, delayedCall: Any) -> None:
        # DelayedCall.reset() and .delay() call this when the time gets earlier.
        super()._moveCallLaterSooner(delayedCall)
        self.cooperative_wait.wake_if_parked()

    # IReactorGreenlets

    def deferToGreenlet(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        return self.getGreenletPool().submit(f, *args, **kwargs)

    def callInGreenlet(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.deferToGreenlet(f, *args, **kwargs).addErrback(lambda failure: log.err(failure))

    def callFromGreenlet(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        check_is_callable("callFromGreenlet(f, ...)", f)
        self.callFromThread(f, *args, **kwargs)

    def getGreenletPool(self) -> GreenPool:
        from .._pool import default_pool  # which is made of what is above this module

        return default_pool

    def suggestGreenletPoolSize(self, size: int) -> None:
        self.getGreenletPool().resize(size)

    # The end.

    def stop(self) -> None:
        super().stop()
        self.wakeUp()

    def crash(self) -> None:
        super().crash()
        self.wakeUp()
