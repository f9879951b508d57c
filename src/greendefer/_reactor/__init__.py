"""Reactors that run on gevent's hub, and how to install one."""

from __future__ import annotations

import importlib
import sys
from typing import Any, Literal

from .._errors import shown
from .._policy import is_one_of
from .stock import native_kind

KINDS = ("native", "poll", "select", "asyncio")


def install(kind: str = "native", *, threads: Literal["native", "green"] = "native") -> None:
    """Install a green reactor as Twisted's reactor.

    Call it before anything imports ``twisted.internet.reactor``. It works before and after
    ``gevent.monkey.patch_all()``; whoever patches should patch first of all.

    :param kind: which of Twisted's reactors is to wait in gevent's hub. ``"native"``: epoll on
        Linux, kqueue on macOS and BSD (untested), select elsewhere. ``"poll"``, ``"select"``.
        ``"asyncio"``: Twisted, asyncio and gevent on one thread, see
        :mod:`greendefer.geventasyncioreactor`.
    :param threads: what ``reactor.getThreadPool()``, ``deferToThread`` and ``callInThread`` run
        things in. ``"native"``: threads, patched or not, so that what computes can't hold the
        loop. ``"green"``: greenlets of the reactor's thread, for WSGI and old code that should
        scale past a few dozen threads (:class:`greendefer.threadpool.GreenThreadPool`).
    :raises ValueError: there is no such `kind`, or no such `threads`.
    :raises twisted.internet.error.ReactorAlreadyInstalledError: a reactor is there already.
    """
    if not is_one_of(KINDS, kind):
        kinds = ", ".join(map(repr, KINDS))
        raise ValueError(f"install(kind=...) must be one of {kinds}, not {shown(kind)}")
    if not is_one_of(("native", "green"), threads):
        raise ValueError(f"install(threads=...) must be 'native' or 'green', not {shown(threads)}")
    if kind == "asyncio":
        from .. import geventasyncioreactor

        geventasyncioreactor.install()
    else:
        kind = native_kind() if kind == "native" else kind
        importlib.import_module(f"{__name__}.{kind}").install()
    reactor: Any = sys.modules["twisted.internet.reactor"]
    reactor.threads = threads
