"""Where results go: the reactor's greenlet."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable
from os import getpid
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import gevent
from gevent import hub as gevent_hub
from gevent import monkey
from twisted.python import threadable

from ._twistedcontext import make_greenlet_local
from .carriers.greenlets import GreenletCarrier
from .carriers.helper import HelperCarrier, HelperHub
from .carriers.native import native_sleep
from .carriers.threads import ThreadCarrier
from .deadlines import Deadlines, HubTimer, ThreadTimer, Timer
from .errors import GreendeferError
from .holdups import HoldupWatch
from .reactor.wait import SLICE, get_thread_ident
from .shutdown import MOMENT, Shutdown

if TYPE_CHECKING:
    from .admission import Pool
    from .carriers import Carrier
    from .reactor.wait import CooperativeWait

_modules = sys.modules
_MAIN_THREAD: int = gevent_hub.MAIN_THREAD_IDENT  # type: ignore[attr-defined]  # not in its stubs
_home: Home | None = None


class Home:
    """One installed reactor: what the calls of all pools have in common.

    :ivar now: the clock that all timeouts go by.
    :ivar deadlines: what is to happen in the reactor's greenlet at a time.
    :ivar pools: those that have had a call.
    :ivar waits: greenlets that wait for Deferreds.
    :ivar stopped: the reactor has stopped, and will not deliver anything more.
    """

    now: Callable[[], float] = staticmethod(monotonic)

    def __init__(self, reactor: Any, timer: Timer) -> None:
        self.reactor = reactor
        self.call_soon: Callable[..., object] = reactor.callFromThread
        self._timer = timer
        self.deadlines: Deadlines = Deadlines(timer)
        self.pools: WeakSet[Pool] = WeakSet()
        self._thread: int = get_thread_ident()
        self._outbox: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._posted = False
        self._process = getpid()
        self.stopped: bool = has_stopped(reactor)
        self.waits: set[Any] = set()
        Shutdown(self)
        # It may yet be run in another process, or thread, than the one that made its first call.
        reactor.callWhenRunning(self._runs_here)

    def _runs_here(self) -> None:
        self.renew_if_forked()

    def is_here(self) -> bool:
        """Is this still the installed reactor, and this its thread?"""
        return _modules.get("twisted.internet.reactor") is self.reactor and (
            get_thread_ident() == self._thread
        )

    def forked(self) -> None:
        """This is a child process. Most children execute another program at once; those that do
        not look again who is here, before their first call."""
        self._thread = -1

    def renew_if_forked(self) -> None:
        """Let go of the parent's threads, if this is a child process."""
        if self._process != getpid():
            self._process = getpid()
            self._thread = get_thread_ident()
            self._timer.forked()
            for pool in list(self.pools):
                pool.forked()

    def green_carrier(self) -> Carrier:
        """What runs the calls of a :class:`GreenPool` here."""
        raise NotImplementedError

    def call_where_it_may_wait(self, f: Callable[[], object]) -> None:
        """Call `f`, which takes locks or starts threads. Where gevent has patched these, `f` may
        switch greenlets, so on a green reactor it runs in a greenlet of its own."""
        f()

    def deliver(self, fire: Callable[[Any], object], result: Any) -> None:
        """Call ``fire(result)`` in the reactor's greenlet, after all earlier ones. From any
        thread: what was appended before the flag is asked, the flush that clears it will find."""
        self._outbox.append((fire, result))
        if not self._posted:
            self._posted = True
            self._post()

    def _post(self) -> None:
        self.call_soon(self._flush)

    def _flush(self, all_of_it: bool = False) -> None:
        self._posted = False
        outbox = self._outbox
        until = monotonic() + SLICE
        try:
            while outbox:
                fire, result = outbox.popleft()
                fire(result)
                if monotonic() >= until and not all_of_it:
                    break  # timers and descriptors first; the rest in the next turn
        finally:
            if outbox and not self._posted:
                self._posted = True
                self.call_soon(self._flush)

    def let_others_run(self) -> None:
        """Sleep for a moment in the reactor's greenlet, which takes no more turns."""
        raise NotImplementedError

    def reactor_stopped(self) -> None:
        """The very end: nobody can be told anything any more."""
        self.deadlines.stop()
        for pool in list(self.pools):
            pool.reactor_stopped()
        for wait in list(self.waits):
            wait.reactor_stopped()


class GreenHome(Home):
    """A reactor that runs on gevent's hub: greenlets are carried by that hub, too.

    :ivar wait: where it waits.
    :ivar hub: the hub, and `loop`, its loop.
    :ivar make_way: see :meth:`CooperativeWait.make_way`.
    """

    def __init__(self, reactor: Any, wait: CooperativeWait) -> None:
        self.wait = wait
        self.hub: Any = wait.hub
        self.loop: Any = wait.hub.loop
        self.make_way: Callable[[], None] = wait.make_way
        super().__init__(reactor, HubTimer(self.loop, reactor.callFromThread))
        self._thread = wait.hub.thread_ident
        if not reactor.running:
            reactor.interrupt_main.install()
        self._watch = HoldupWatch(self)

    def _post(self) -> None:
        wait = self.wait
        if wait.takes_visits and wait.is_this_thread():
            self.loop.run_callback(self._visit)
        else:
            self.call_soon(self._flush)

    def _visit(self) -> None:
        if not self.wait.visit(self._flush):
            self.call_soon(self._flush)  # it is in a turn, or does not run yet

    def leave(self) -> None:
        """The hub is gone, and with it whatever waited in it. The next call makes a new home."""
        self._thread = -1
        self.pools.clear()

    def let_others_run(self) -> None:
        self.wait.wait(MOMENT)

    def reactor_stopped(self) -> None:
        self._watch.stop()
        super().reactor_stopped()

    def green_carrier(self) -> Carrier:
        return GreenletCarrier(self)

    def call_where_it_may_wait(self, f: Callable[[], object]) -> None:
        if monkey.is_module_patched("threading"):
            gevent.spawn(f)
        else:
            f()


class ForeignHome(Home):
    """Any other reactor. Greenlets in its thread would never run, so calls run in other threads:
    in greenlets of one helper thread where sockets are patched, else in native threads, since
    unpatched code that waits would hold that hub."""

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor, ThreadTimer(reactor.callFromThread, reactor.callLater))
        self._helper: HelperHub | None = None

    def _runs_here(self) -> None:
        super()._runs_here()
        self._thread = get_thread_ident()

    def renew_if_forked(self) -> None:
        if self._process != getpid():
            self._helper = None
        super().renew_if_forked()

    def green_carrier(self) -> Carrier:
        if not monkey.is_module_patched("socket"):
            return ThreadCarrier(self)
        make_greenlet_local()
        if self._helper is None:
            try:
                self._helper = HelperHub(self)
            except (RuntimeError, OSError) as e:
                raise GreendeferError(
                    "The calls of a GreenPool run in a helper thread here, and no such thread "
                    f"could be started: {e}"
                ) from e
        return HelperCarrier(self, self._helper)

    def let_others_run(self) -> None:
        native_sleep(MOMENT)

    def reactor_stopped(self) -> None:
        super().reactor_stopped()
        if self._helper is not None:
            self._helper.stop()


def _forked() -> None:
    if _home is not None:
        _home.forked()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows alone has none
    os.register_at_fork(after_in_child=_forked)


def installed_reactor() -> Any:
    """The reactor, if there is one. Looking must never install Twisted's default one.

    :raises GreendeferError: no reactor is installed.
    """
    reactor = _modules.get("twisted.internet.reactor")
    if reactor is None:
        raise GreendeferError(
            "No reactor is installed, and greendefer never installs Twisted's default one for "
            "you. Call greendefer.install() at the top of the program, before anything imports "
            "twisted.internet.reactor."
        )
    return reactor


def is_reactor_thread(reactor: Any) -> bool:
    """Is the calling thread the one that runs, or will run, the reactor?

    Where Twisted itself was imported patched, its threads are greenlets: for a reactor that is
    not ours, the answer is then ``True`` in the greenlet that runs it, and in no other.
    """
    wait: CooperativeWait | None = getattr(reactor, "cooperative_wait", None)
    if wait is not None:
        return wait.is_this_thread()
    if threadable.ioThread is None:  # it does not run yet
        return bool(get_thread_ident() == _MAIN_THREAD)
    return bool(threadable.isInIOThread())


def home_here() -> Home:
    """The home of the installed reactor, for a caller in its thread.

    :raises GreendeferError: no reactor is installed, it can't be called from threads, or it runs
        in another thread.
    """
    global _home
    home = _home
    if home is not None and home.is_here():
        return home
    reactor = installed_reactor()
    wait: CooperativeWait | None = getattr(reactor, "cooperative_wait", None)
    if not is_reactor_thread(reactor):
        error = (
            "This is not the reactor's thread. Call from there with "
            "reactor.callFromThread(f, ...), or decorate a function that makes the call with "
            "@blocking_from_greenlet: it may be called from any thread, and waits for the result."
        )
        if wait is None:
            error += (
                f" (The installed reactor, {_name_of(reactor)}, does not run on gevent's hub, so "
                "the calls of pools run in other threads than its own. On greendefer's, "
                "greendefer.install(), those of a GreenPool run in the same.)"
            )
        raise GreendeferError(error)
    if not hasattr(reactor, "callFromThread"):
        raise GreendeferError(
            f"The installed reactor, {_name_of(reactor)}, has no callFromThread(), so nothing can "
            "come back to it from another thread or greenlet. (A test on a reactor in memory uses "
            "a pool of greendefer.testing.)"
        )
    if wait is None:
        if home is None or home.reactor is not reactor:
            _home = home = ForeignHome(reactor)
    elif not isinstance(home, GreenHome) or home.reactor is not reactor or home.hub is not wait.hub:
        _home = home = GreenHome(reactor, wait)
    home.renew_if_forked()
    return home


def green_home_here() -> GreenHome:
    """The home of a reactor that is green, for a caller in its thread.

    :raises GreendeferError: as :func:`home_here`; or the reactor is not green.
    """
    home = home_here()
    if isinstance(home, GreenHome):
        return home
    raise GreendeferError(
        f"The installed reactor, {_name_of(home.reactor)}, does not run on gevent's hub, so a "
        "greenlet in its thread that waits would never go on. Call greendefer.install() at the "
        "top of the program, before anything imports twisted.internet.reactor."
    )


def home_if_made(reactor: Any) -> Home | None:
    """The home of `reactor`, if it has one already. For any thread."""
    return _home if _home is not None and _home.reactor is reactor else None


def home_if_any() -> Home | None:
    """The home of the installed reactor, if it has one, and this is its thread."""
    return _home if _home is not None and _home.is_here() else None


def _name_of(reactor: Any) -> str:
    return f"{type(reactor).__module__}.{type(reactor).__qualname__}"


def has_stopped(reactor: Any) -> bool:
    """Has a reactor stopped for good? What it is asked to call will never be called then."""
    return bool(getattr(reactor, "_startedBefore", False)) and not reactor.running
