"""Seeing what pools do: hooks, and adaptors of them to logging, structlog and Prometheus.

::

    from greendefer.instrumentation import PrometheusHook, set_hooks

    set_hooks([PrometheusHook()])
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from twisted.logger import Logger

from . import _admission
from ._errors import shown
from ._holdups import warn_of_holdups as warn_of_holdups

if TYPE_CHECKING:
    from ._admission import Call

_log = Logger(namespace="greendefer")


@dataclass(frozen=True)
class CallDetails:
    """Which call it is that something happens to."""

    function: str
    """The qualified name of what it calls."""
    pool: str
    """The name of its pool; the kind of pool, if it has none."""


class Hook(Protocol):
    """What is called when something happens to a call; in the reactor's thread, and it must not
    wait. What it raises is logged, and does the call no harm. Times are in seconds."""

    def submitted(self, call: CallDetails) -> None:
        """It was made."""

    def started(self, call: CallDetails, *, queued: float) -> None:
        """The call starts running, `queued` seconds after it was submitted."""

    def ended(self, call: CallDetails, *, how: str, queued: float, running: float | None) -> None:
        """Its Deferred fires now.

        :param how: as in :class:`greendefer.PoolStats`: ``"completed"``, ``"failed"``,
            ``"cancelled"`` or ``"timed_out"``. (The last two may linger after that.)
        :param queued: from its submission to its start; to its end, if it never started.
        :param running: from its start to now; ``None``, if it never started.
        """

    def rejected(self, call: CallDetails) -> None:
        """It never ran: the pool was full or closed."""


_EVENTS = [name for name in vars(Hook) if not name.startswith("_")]

_hooks: tuple[Hook, ...] = ()


def set_hooks(hooks: Iterable[Hook]) -> None:
    """Replace the hooks. They are told of calls submitted from now on. With none, a call costs
    one check of a name.

    :raises TypeError: `hooks` can't be iterated over, or one lacks a method of :class:`Hook`.
    """
    global _hooks
    if not isinstance(hooks, Iterable):
        raise TypeError(f"set_hooks(hooks) needs a list of hooks, not {shown(hooks)}")
    checked = tuple(hooks)
    for hook in checked:
        missing = [name for name in _EVENTS if not callable(getattr(hook, name, None))]
        if missing:
            raise TypeError(
                f"set_hooks(hooks): {shown(hook)} has no method {', '.join(missing)}; a hook has "
                f"{', '.join(_EVENTS)}"
            )
    _hooks = checked
    _admission.observe = _observe if checked else None


def get_hooks() -> tuple[Hook, ...]:
    """:returns: the hooks that are told now."""
    return _hooks


def _observe(call: Call) -> CallObserver:
    return CallObserver(call, _hooks)


class CallObserver:
    """One call, as the hooks see it. Made when it is submitted, if there are any."""

    __slots__ = ("_details", "_hooks", "_started", "_submitted")

    def __init__(self, call: Call, hooks: tuple[Hook, ...]) -> None:
        pool = call.pool
        self._details = CallDetails(call.name, pool.name or type(pool).__name__)
        self._hooks = hooks
        self._submitted = perf_counter()
        self._started: float | None = None
        self._tell("submitted")

    def _tell(self, what: str, **values: Any) -> None:
        for hook in self._hooks:
            try:
                getattr(hook, what)(self._details, **values)
            except BaseException:  # which would end the worker that it was called in
                _log.failure("{hook!r}.{what}() failed", hook=hook, what=what)

    def started(self) -> None:
        self._started = perf_counter()
        self._tell("started", queued=self._started - self._submitted)

    def ended(self, how: str) -> None:
        if how == "rejected":
            self._tell("rejected")
            return
        now = perf_counter()
        started = self._started
        self._tell(
            "ended",
            how=how,
            queued=(now if started is None else started) - self._submitted,
            running=None if started is None else now - started,
        )


def _check_has(what: str, allowed: str, value: object, *methods: str) -> None:
    if value is not None and not all(callable(getattr(value, name, None)) for name in methods):
        raise TypeError(f"{what} must be {allowed} or None, not {shown(value)}")


class LoggingHook:
    """Logs through the standard library: what went well at DEBUG, the rest at WARNING.

    :param logger: where to; ``None`` is the logger ``"greendefer"``.
    :raises TypeError: `logger` is not a logger.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        _check_has("LoggingHook(logger)", "a logging.Logger", logger, "debug", "log", "warning")
        self._logger = logging.getLogger("greendefer") if logger is None else logger

    def submitted(self, call: CallDetails) -> None:
        self._logger.debug("%s submitted to %s", call.function, call.pool)

    def started(self, call: CallDetails, *, queued: float) -> None:
        self._logger.debug("%s started on %s after %.3f s", call.function, call.pool, queued)

    def ended(self, call: CallDetails, *, how: str, queued: float, running: float | None) -> None:
        self._logger.log(
            logging.DEBUG if how == "completed" else logging.WARNING,
            "%s %s on %s: %.3f s queued, %s running",
            call.function,
            how,
            call.pool,
            queued,
            "never" if running is None else f"{running:.3f} s",
        )

    def rejected(self, call: CallDetails) -> None:
        self._logger.warning("%s rejected by %s", call.function, call.pool)


class StructlogHook:
    """The same as events with keys, through structlog (which must be installed).

    :param logger: where to; ``None`` is ``structlog.get_logger("greendefer")``.
    :raises TypeError: `logger` is not a logger.
    """

    def __init__(self, logger: Any = None) -> None:
        _check_has("StructlogHook(logger)", "a logger of structlog's", logger, "debug", "warning")
        if logger is None:
            import structlog

            logger = structlog.get_logger("greendefer")
        self._logger = logger

    def submitted(self, call: CallDetails) -> None:
        self._logger.debug("call submitted", function=call.function, pool=call.pool)

    def started(self, call: CallDetails, *, queued: float) -> None:
        self._logger.debug("call started", function=call.function, pool=call.pool, queued=queued)

    def ended(self, call: CallDetails, *, how: str, queued: float, running: float | None) -> None:
        log = self._logger.debug if how == "completed" else self._logger.warning
        log(
            "call ended",
            function=call.function,
            pool=call.pool,
            how=how,
            queued=queued,
            running=running,
        )

    def rejected(self, call: CallDetails) -> None:
        self._logger.warning("call rejected", function=call.function, pool=call.pool)


class PrometheusHook:
    """Counts and times calls for Prometheus (``prometheus_client`` must be installed).

    ``greendefer_calls_total`` has labels `pool`, `function` and `outcome` (``rejected`` included);
    ``greendefer_call_queued_seconds`` and ``greendefer_call_running_seconds``, histograms, the
    first two.

    :param registry: which registry; ``None`` is the client's default one.
    :raises TypeError: `registry` is not a registry.
    :raises ImportError: ``prometheus_client`` is not installed.
    """

    def __init__(self, registry: Any = None) -> None:
        _check_has("PrometheusHook(registry)", "a CollectorRegistry", registry, "register")
        from prometheus_client import REGISTRY, Counter, Histogram

        registry = REGISTRY if registry is None else registry
        labels = ("pool", "function")
        self._calls = Counter(
            "greendefer_calls", "Calls by outcome", (*labels, "outcome"), registry=registry
        )
        self._queued = Histogram(
            "greendefer_call_queued_seconds", "From submission to start", labels, registry=registry
        )
        self._running = Histogram(
            "greendefer_call_running_seconds", "From start to end", labels, registry=registry
        )

    def submitted(self, call: CallDetails) -> None:
        pass

    def started(self, call: CallDetails, *, queued: float) -> None:
        self._queued.labels(call.pool, call.function).observe(queued)

    def ended(self, call: CallDetails, *, how: str, queued: float, running: float | None) -> None:
        self._calls.labels(call.pool, call.function, how).inc()
        if running is not None:
            self._running.labels(call.pool, call.function).observe(running)

    def rejected(self, call: CallDetails) -> None:
        self._calls.labels(call.pool, call.function, "rejected").inc()
