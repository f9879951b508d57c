"""Blocking code inside Twisted, and Twisted inside blocking code, on one thread, through gevent.

::

    import greendefer
    greendefer.install()
"""

from .background import start_reactor
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
from .policy import PoolStats, Timeouts
from .pool import ExecutorPool, GreenPool, NativeThreadPool
from .protocols import in_order
from .proxy import green_proxy
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
