"""What ``gevent.monkey`` has patched, and what it was too late for.

A program that has not imported that module has patched nothing, and need not import it to be told.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

WAITS = ("socket", "ssl", "select", "time", "threading", "queue", "subprocess", "os")
"""The modules of the standard library in which programs wait."""


def is_patched(module: str, name: str | None = None) -> bool:
    """Has anything in a module been patched, or the one that has this name there?"""
    saved = originals(module)
    return bool(saved) if name is None else name in saved


def original(module: str, name: str) -> Any:
    """What a module had by this name before it was patched; what it has, where it was not.

    :raises AttributeError: nothing.
    """
    saved = originals(module)
    return saved[name] if name in saved else getattr(import_module(module), name)


def originals(module: str) -> dict[str, Any]:
    """All that was patched in a module, by name, as it was before."""
    return _saved().get(module, {})


def patched_modules() -> frozenset[str]:
    """The modules in which anything was patched."""
    return frozenset(_saved())


def _saved() -> dict[str, dict[str, Any]]:
    # It is for other monkey patchers, too, they say there (gevent/monkey/_state.py).
    if "gevent.monkey" not in sys.modules:
        return {}
    from gevent import monkey  # which waits, where another thread is importing it

    saved: dict[str, dict[str, Any]] = monkey.saved  # type: ignore[attr-defined]
    return saved


def kept_natives() -> Iterator[tuple[ModuleType, str, str]]:
    """Modules that have said ``from socket import socket`` before that was patched: the module,
    its name for what it has kept, and what that is. Those that greendefer, gevent and Twisted
    have, and the standard library's own, are as they should be."""
    natives: dict[int, str] = {}
    for waits in WAITS:
        for name, native in originals(waits).items():
            if callable(native) and getattr(sys.modules[waits], name, native) is not native:
                natives[id(native)] = f"{waits}.{name}"
    fine = {"gevent", "greendefer", "greenlet", "twisted", *sys.stdlib_module_names}
    for name, module in sorted(sys.modules.copy().items()):
        if name.partition(".")[0] not in fine and isinstance(module, ModuleType):
            for attribute, value in list(vars(module).items()):
                if id(value) in natives:
                    yield module, attribute, natives[id(value)]
