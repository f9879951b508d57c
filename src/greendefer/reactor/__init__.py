"""Reactors that run on gevent's hub, and how to install one."""

from __future__ import annotations

import importlib
import sys

from ._stock import native_kind

KINDS = ("native", "poll", "select", "asyncio")


def install(kind: str = "native") -> None:
    """Install a green reactor as Twisted's reactor.

    Call it before anything imports ``twisted.internet.reactor``. It works before and after
    ``gevent.monkey.patch_all()``; whoever patches should patch first of all.

    :param kind: which of Twisted's reactors is to wait in gevent's hub. ``"native"``: epoll on
        Linux, kqueue on macOS and BSD (untested), select elsewhere. ``"poll"``, ``"select"``.
        ``"asyncio"``: Twisted, asyncio and gevent on one thread, see
        :mod:`greendefer.geventasyncioreactor`.
    :raises ValueError: there is no such kind.
    :raises twisted.internet.error.ReactorAlreadyInstalledError: a reactor is there already.
    """
    if kind not in KINDS:
        kinds = ", ".join(map(repr, KINDS))
        raise ValueError(f"install(kind=...) must be one of {kinds}, not {kind!r}")
    from twisted.internet.error import ReactorAlreadyInstalledError

    reactor = sys.modules.get("twisted.internet.reactor")
    if reactor is not None:
        raise ReactorAlreadyInstalledError(
            f"A reactor is installed already, {type(reactor).__module__}."
            f"{type(reactor).__qualname__}: call greendefer.install() before anything imports "
            "twisted.internet.reactor."
        )
    if kind == "asyncio":
        from .. import geventasyncioreactor

        geventasyncioreactor.install()
    else:
        kind = native_kind() if kind == "native" else kind
        importlib.import_module(f"{__name__}.{kind}").install()
