"""A warning of what holds the loop: code that runs on without ever giving way to others.

A native thread knocks at the hub, and looks what runs where nobody answers in time. It sleeps
while the loop has nothing to do. (gevent's own monitor thread traces every switch between
greenlets for the same purpose, which costs each of them.)
"""

from __future__ import annotations

import sys
import threading
import traceback
from _queue import Empty
from time import monotonic
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from ._carriers.greenlets import Worker
from ._carriers.native import ENDING_SECONDS, IDLE_SECONDS, Mailbox, start_thread
from ._deadlines import LONGEST_SLEEP
from ._errors import shown
from ._policy import check_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._runtime import GreenRuntime

_log = Logger(namespace="greendefer")

_threshold: float | None = 0.25
_warned: set[Any] = set()


def warn_of_holdups(seconds: float | None) -> None:
    """Warn of whatever holds the loop for longer than this; once for each function.

    It works on a green reactor, from its first call on. A call that holds the loop is logged with
    the time and the stack where it sat; so is the reactor's own greenlet, if it waits outside of
    its own wait: for a patched ``time.sleep`` or a query in a callback, say, while other
    greenlets go on and the reactor does not.

    :param seconds: the limit, at first 0.25; ``None`` switches it off.
    :raises TypeError: `seconds` is not a number.
    :raises ValueError: `seconds` is zero, negative, NaN or infinite.
    """
    global _threshold
    if seconds is not None:
        check_seconds("warn_of_holdups(seconds)", seconds, needed=True)
        if not seconds:
            raise ValueError(
                f"warn_of_holdups(seconds) must be more than 0, not {shown(seconds)}; None "
                "switches it off"
            )
    _threshold = seconds


RETRY_SECONDS = 1.0
"""How long to wait for another try, where no thread could be started."""

NEXT_SECONDS = 1.0
"""How long it pauses at most: a lower limit counts after that."""


class HoldupWatch:
    """Watches one hub."""

    def __init__(self, runtime: GreenRuntime) -> None:
        self._runtime = runtime
        self._inbox: Mailbox = Mailbox()
        self._answers: Mailbox = Mailbox()
        self._stopped = False
        self._out: tuple[int, float] | None = None
        self._join: Callable[[float], object] | None = None
        self._runs = False
        self._not_before = 0.0
        self.asleep: bool = True
        runtime.wait.onlooker = self

    def wake(self) -> None:
        """There is something to do: watch it. Cheap; for the reactor's thread."""
        if self._runs:
            self.asleep = False
            self._inbox.put(None)
        elif monotonic() >= self._not_before:
            self.asleep = False
            try:
                self._join = start_thread(self._run, "greendefer-holdups")
                self._runs = True
            except RuntimeError:  # no more threads: there is nobody to watch now, perhaps later
                self.asleep = True
                self._not_before = monotonic() + RETRY_SECONDS

    def forked(self) -> None:
        """This is a child process, without the thread."""
        self._inbox = Mailbox()
        self._join = None
        self._runs = False
        self.asleep = True

    def hub_is_gone(self) -> None:
        """The reactor waits in another hub from now on."""
        self._stop(is_over=False)  # nobody holds this one, and nobody will answer
        self._runtime.leave()

    def stop(self) -> None:
        """Nothing holds the loop any more, since this is its thread. What did has been logged
        when this returns."""
        self._stop(is_over=True)

    def _stop(self, *, is_over: bool) -> None:
        self._stopped = True
        self._inbox.put(None)
        self._answers.put(is_over)
        if self._join is not None:
            self._join(ENDING_SECONDS)

    # In the thread.

    def _run(self) -> None:
        while not self._stopped:
            threshold = _threshold
            if self.asleep:
                self._inbox.get()
                continue
            if threshold is None:
                self._pause(IDLE_SECONDS)
                continue
            turns = self._runtime.wait.turns
            self._knock(min(threshold, LONGEST_SLEEP))
            self._pause(min(threshold / 2, NEXT_SECONDS))
            wait = self._runtime.wait
            # Results are delivered within the reactor's wait, too, where no turn is counted.
            if wait.turns == turns and wait.is_parked and self._out is None:
                # Nothing happened, but our own knocking. (wake() may be called at any moment.)
                self.asleep = True
                if self._has_calls():
                    self.asleep = False

    def _has_calls(self) -> bool:
        try:
            return any(pool._active_calls() for pool in list(self._runtime.pools))
        except RuntimeError:  # one was added meanwhile
            return True

    def _pause(self, seconds: float) -> None:
        until = monotonic() + seconds
        while not self._stopped and (left := until - monotonic()) > 0:
            try:
                self._inbox.get(timeout=left)
            except Empty:
                return

    def _knock(self, threshold: float) -> None:
        knocked_at = monotonic()
        answers: Mailbox = Mailbox()
        self._answers = answers
        if self._stopped:
            return
        if not self._runtime.wait.inbox.ask(self._answer, answers.put):  # the loop is destroyed
            self._stopped = True
            return
        try:
            answers.get(timeout=threshold)
            return
        except Empty:
            pass
        frame = sys._current_frames().get(self._runtime.wait.hub.thread_ident)
        stack = traceback.extract_stack(frame) if frame is not None else None
        name, key = _culprit(frame)
        del frame
        is_over = True
        for _ in range(20):  # say so also of what never ends
            try:
                is_over = answers.get(timeout=threshold)
                break
            except Empty:
                pass
        if stack is not None and is_over and _threshold is not None:
            _warn_of_holding(name, key, monotonic() - knocked_at, stack)

    # In the hub.

    def _answer(self, answer: Any) -> None:
        answer(True)
        wait = self._runtime.wait
        reactors = wait.greenlet
        if reactors is None or wait.is_parked:
            self._out = None
            return
        # This is the hub, so the reactor's greenlet does not run; and it is not in its wait.
        now = monotonic()
        if self._out is None or self._out[0] != wait.turns:
            self._out = (wait.turns, now)
        elif _threshold is not None and now - self._out[1] > _threshold:
            _warn_of_parking(now - self._out[1], reactors.gr_frame)


def _culprit(frame: FrameType | None) -> tuple[str, Any]:
    """What runs there: the name of a call, or of the code that it is in."""
    top: CodeType | None = None
    at = frame
    while at is not None:
        if at.f_code is Worker.execute.__code__:
            call = at.f_locals["call"]
            return f"The call {call.name}", call.name
        if top is None and not _is_library(at.f_code):
            top = at.f_code
        at = at.f_back
    if top is None:
        return "Some code outside of calls", None
    return f"{top.co_name} ({top.co_filename}:{top.co_firstlineno}), outside of calls", top


def _is_library(code: CodeType) -> bool:
    return any(part in code.co_filename for part in ("/gevent/", "/twisted/", "/greendefer/")) or (
        code.co_filename == threading.__file__
    )


def _warn_of_holding(name: str, key: Any, seconds: float, stack: Any) -> None:
    if key in _warned:
        return
    _warned.add(key)
    _log.warn(
        "{name} held the loop for {seconds:.2f} s: nothing else in this thread ran meanwhile, the "
        "reactor and all other greenlets. If it waits, what it calls is not cooperative: patch "
        "first of all (gevent.monkey.patch_all()), or, for C code and for long computations, give "
        "it a greendefer.NativeThreadPool. (This is logged once for each function.) "
        "It sat here:\n{stack}",
        name=name,
        seconds=seconds,
        stack="".join(traceback.format_list(stack)),
    )


def _warn_of_parking(seconds: float, frame: FrameType | None) -> None:
    name, key = _culprit(frame)
    if frame is None or ("parked", key) in _warned:
        return
    _warned.add(("parked", key))
    _log.warn(
        "The reactor has not run for {seconds:.2f} s: a callback waits in its greenlet, in "
        "{name}, while other greenlets go on. Do not wait there: use Deferreds (task.deferLater "
        "for a sleep), or run this code in a greenlet of its own: decorate it with "
        "@green_deferred, or call defer_to_greenlet(f, ...). (This is logged once for each "
        "function.) It sits here:\n{stack}",
        name=name,
        seconds=seconds,
        stack="".join(traceback.format_stack(frame)),
    )
