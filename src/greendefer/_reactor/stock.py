"""Twisted's own reactor modules, on the pollers that they were written for."""

from __future__ import annotations

import importlib
import select
from typing import Any

from .._patched import original


def native_kind() -> str:
    """The best poller that the platform has: epoll, kqueue or select."""
    for poller in "epoll", "kqueue":
        try:
            original("select", poller)
        except AttributeError:
            continue
        return poller
    return "select"


def stock_module(module: str, *pollers: str) -> Any:
    """Import a reactor module of Twisted's, with the names that it takes from ``select``.

    ``gevent.monkey.patch_select()`` takes some of them away, and replaces others, because code
    that polls by itself would block. A green reactor does not; it polls when the wait is over.
    """
    patched = {name: vars(select).get(name) for name in pollers}
    for name in pollers:
        vars(select)[name] = original("select", name)
    try:
        stock = importlib.import_module(module)
        for name in pollers:  # where it was imported before, and after the patch
            if name in vars(stock):
                setattr(stock, name, vars(select)[name])
    finally:
        for name, value in patched.items():
            if value is None:
                del vars(select)[name]
            else:
                vars(select)[name] = value
    return stock
