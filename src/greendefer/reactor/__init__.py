"""Reactors that run on gevent's hub, and how to install one."""

from __future__ import annotations

import sys


def install(kind: str = "native") -> None:
    """Install a green reactor as Twisted's reactor.

    Call it before anything imports ``twisted.internet.reactor``. It works before and after
    ``gevent.monkey.patch_all()``; whoever patches should patch first of all.

    :param kind: ``"native"`` is Twisted's epoll reactor.
    :raises ValueError: there is no such kind.
    :raises twisted.internet.error.ReactorAlreadyInstalledError: a reactor is there already.
    """
    if kind != "native":
        raise ValueError(f"install(kind=...) must be 'native', not {kind!r}")
    from twisted.internet.error import ReactorAlreadyInstalledError

    if "twisted.internet.reactor" in sys.modules:
        raise ReactorAlreadyInstalledError(
            "A reactor is installed already: call greendefer.install() before anything imports "
            "twisted.internet.reactor."
        )
    from . import native

    native.install()
