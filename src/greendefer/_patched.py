"""What ``gevent.monkey`` was too late for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

from gevent import monkey

WAITS = ("socket", "ssl", "select", "time", "threading", "queue", "subprocess", "os")
"""The modules of the standard library in which programs wait."""


def kept_natives() -> Iterator[tuple[ModuleType, str, str]]:
    """Modules that have said ``from socket import socket`` before that was patched: the module,
    its name for what it has kept, and what that is. Those that greendefer, gevent and Twisted
    have, and the standard library's own, are as they should be."""
    natives: dict[int, str] = {}
    for waits in WAITS:
        for name, native in monkey.saved.get(waits, {}).items():  # type: ignore[attr-defined]
            if callable(native) and getattr(sys.modules[waits], name, native) is not native:
                natives[id(native)] = f"{waits}.{name}"
    fine = {"gevent", "greendefer", "greenlet", "twisted", *sys.stdlib_module_names}
    for name, module in sorted(sys.modules.copy().items()):
        if name.partition(".")[0] not in fine and isinstance(module, ModuleType):
            for attribute, value in list(vars(module).items()):
                if id(value) in natives:
                    yield module, attribute, natives[id(value)]
