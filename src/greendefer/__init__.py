"""Blocking code inside Twisted, and Twisted inside blocking code, on one thread, through gevent.

::

    import greendefer
    greendefer.install()
"""

from typing import TYPE_CHECKING

from ._admission import Pool
from ._bridge import wait_for_deferred, wait_for_greenlet
from ._decorators import (
    blocking_from_greenlet,
    defer_to_greenlet,
    green_deferred,
    green_iterator,
    with_options,
)
from ._errors import (
    CallTimeout,
    ExecutorFailed,
    GreendeferError,
    PoolClosed,
    PoolFull,
    WouldDeadlock,
)
from ._policy import Timeouts
from ._pool import ExecutorPool, GreenPool, NativeThreadPool
from ._reactor import install
from ._worker import PoolWorker

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
    "Pool",
    "PoolClosed",
    "PoolFull",
    "PoolStats",
    "PoolWorker",
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
    from ._background import start_reactor
    from ._blocking import BlockingIterator
    from ._iterators import GreenIterator
    from ._proxy import green_proxy
    from ._stats import PoolStats
    from .protocols import in_order
else:
    _LATER = {
        "BlockingIterator": "_blocking",
        "GreenIterator": "_iterators",
        "PoolStats": "_stats",
        "green_proxy": "_proxy",
        "in_order": "protocols",
        "start_reactor": "_background",
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
