"""Twisted's own modules on the native primitives, in a program that gevent has patched.

Twisted's transports, processes and threads do their own non-blocking input and output. On gevent's
classes they gain nothing, lose speed, and differ: a cooperative socket waits where Twisted expects
an error, ``os.fork`` and SIGCHLD are gevent's, and the thread pool has greenlets in it. So these
modules get back what ``gevent.monkey`` has taken; what the program itself imports stays patched.
"""

from __future__ import annotations

import builtins
import enum
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from functools import cache
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import gevent.events
from twisted.python import threadable

from .._patched import originals, patched_modules
from .stock import stock_module

_TWISTED = (
    "twisted._threads._pool",
    "twisted._threads._threadworker",
    "twisted.internet._signals",
    "twisted.internet.abstract",
    "twisted.internet.base",
    "twisted.internet.endpoints",
    "twisted.internet.fdesc",
    "twisted.internet.inotify",
    "twisted.internet.posixbase",
    "twisted.internet.process",
    "twisted.internet.tcp",
    "twisted.internet.udp",
    "twisted.internet.unix",
    "twisted.pair.tuntap",
    "twisted.python.threadable",
    "twisted.python.threadpool",
)
"""Those that do input and output, processes, signals and threads themselves. Not
``twisted.python.context``, which stays greenlet-local."""

_POLLERS = {"twisted.internet.epollreactor": "epoll", "twisted.internet.pollreactor": "poll"}

_done: frozenset[str] = frozenset()
"""The modules that were patched when this was last done."""

_VIEWS = ("_thread", "os", "select", "signal", "time")
_COPIES = ("threading", "queue", "socket")
"""Pure Python on top of the views: their functions look names up in their own module, so
``socket.socket.accept`` makes a patched socket of the native one. They are executed anew."""


class _View(ModuleType):
    """A module as it was before it was patched."""

    def __init__(self, patched: ModuleType, copy: ModuleType | None = None) -> None:
        super().__init__(patched.__name__, patched.__doc__)
        saved = originals(patched.__name__)
        vars(self).update({name: getattr(copy, name, saved[name]) for name in saved})
        self._patched = patched

    def __getattr__(self, name: str) -> Any:
        return getattr(self._patched, name)


@cache
def _natives(patched_modules: frozenset[str]) -> dict[str, ModuleType]:
    natives: dict[str, ModuleType] = {name: _View(importlib.import_module(name)) for name in _VIEWS}
    for name in _COPIES:
        patched = importlib.import_module(name)
        # The queues are made of the locks of threading, which may be patched alone.
        if name in patched_modules or (name == "queue" and "threading" in natives):
            natives[name] = _executed_anew(patched, natives)
    if "socket" in natives:
        # All but what gevent replaces is the program's own module: who changes that (a test, say)
        # changes it for Twisted, too.
        natives["socket"] = _View(sys.modules["socket"], natives["socket"])
    return natives


def _executed_anew(patched: ModuleType, natives: dict[str, ModuleType]) -> ModuleType:
    """A copy of a module, on the native ones that there are already."""
    spec = importlib.util.find_spec(patched.__name__)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)

    def import_native(name: str, *args: Any, **kwargs: Any) -> Any:
        return natives.get(name) or builtins.__import__(name, *args, **kwargs)

    vars(copy)["__builtins__"] = {**vars(builtins), "__import__": import_native}
    before = dict(vars(patched))
    spec.loader.exec_module(copy)
    # An enum that is made anew puts itself and its members in sys.modules[its module] (enum.py,
    # _convert_). The program goes on with those that it has.
    vars(patched).update(before)
    for name, value in before.items():
        # AF_INET is AF_INET, in whichever of the two modules.
        if isinstance(value, enum.Enum) or (
            isinstance(value, type) and issubclass(value, enum.Enum)
        ):
            setattr(copy, name, value)
    return copy


def use_native_primitives() -> None:
    """Give Twisted's modules back what they were written for, now, and again when the program is
    patched later. Nothing happens unpatched."""
    global _done
    if _after_patching not in gevent.events.subscribers:
        gevent.events.subscribers.append(_after_patching)
    patched = patched_modules()
    if patched == _done:
        return
    _done = patched
    give_back(_TWISTED)
    # Without a poller in the patched select module, these could not be imported any more.
    for module, poller in _POLLERS.items():
        try:
            stock_module(module, poller)
        except (ImportError, AttributeError):  # pragma: no cover - Linux has all of them
            continue  # one that is for another platform
    # It makes a class and a lock of what it has imported, in a function for that.
    threadable.threaded = False
    threadable.init()


def give_back(modules: Iterable[str]) -> None:
    """Give these modules the native primitives, where they have imported gevent's."""
    natives = _natives(patched_modules())
    replacements: dict[int, Any] = {}
    for name, native in natives.items():
        patched = sys.modules[name]
        replacements[id(patched)] = native
        # Those that were there before the patch, too: their functions look names up in the
        # patched module, and a module that was imported before still has them.
        before: dict[str, Any] = originals(name)
        for attribute, value in [*vars(patched).items(), *before.items()]:
            original = getattr(native, attribute, value)
            if original is not value and isinstance(
                value, (type, FunctionType, BuiltinFunctionType)
            ):
                replacements[id(value)] = original
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ImportError:  # pragma: no cover - Linux has all of them
            continue  # one that is for another platform
        _replace(module, replacements)
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == name:
                _replace(value, replacements)


def _after_patching(event: object) -> None:
    if isinstance(event, gevent.events.GeventDidPatchAllEvent):
        use_native_primitives()


def _replace(owner: ModuleType | type, replacements: dict[int, Any]) -> None:
    """In a module or a class: what is imported into it, and what its functions have as defaults."""
    for attribute, value in list(vars(owner).items()):
        if id(value) in replacements:
            setattr(owner, attribute, replacements[id(value)])
        elif isinstance(value, staticmethod) and id(value.__func__) in replacements:
            setattr(owner, attribute, staticmethod(replacements[id(value.__func__)]))
        elif isinstance(value, FunctionType) and value.__defaults__:
            value.__defaults__ = tuple(
                replacements.get(id(each), each) for each in value.__defaults__
            )
