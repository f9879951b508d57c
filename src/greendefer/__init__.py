"""Blocking code inside Twisted, and Twisted inside blocking code, on one thread, through gevent.

::

    import greendefer
    greendefer.install()
"""

from typing import TYPE_CHECKING

from .blocking import BlockingIterator
from .bridge import wait_for_deferred, wait_for_greenlet
from .decorators import (
    blocking_from_greenlet,
    defer_to_greenlet,
    green_deferred,
    green_iterator,
    with_options,
)
from .errors import (
    CallTimeout,
    ExecutorFailed,
    GreendeferError,
    PoolClosed,
    PoolFull,
    WouldDeadlock,
)
from .iterators import GreenIterator
from .policy import Timeouts
from .pool import ExecutorPool, GreenPool, NativeThreadPool
from .reactor import install

__version__ = "0.1.0.dev0"

__all__ = [
    "BlockingIterator",
    "CallTimeout",
    "ExecutorFailed",
    "ExecutorPool",
    "GreenIterator",
    "GreenPool",
    "GreendeferError",
    "NativeThreadPool",
    "PoolClosed",
    "PoolFull",
    "PoolStats",
    "Timeouts",
    "WouldDeadlock",
    "blocking_from_greenlet",
    "defer_to_greenlet",
    "green_deferred",
    "green_iterator",
    "green_proxy",
    "in_order",
    "install",
    "start_reactor",
    "wait_for_deferred",
    "wait_for_greenlet",
    "with_options",
]

# What not every program needs is imported when it is asked for (PEP 562).
if TYPE_CHECKING:
    from .background import start_reactor
    from .protocols import in_order
    from .proxy import green_proxy
    from .stats import PoolStats
else:
    _LATER = {
        "PoolStats": "stats",
        "green_proxy": "proxy",
        "in_order": "protocols",
        "start_reactor": "background",
    }

    def __getattr__(name):
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
