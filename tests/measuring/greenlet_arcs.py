"""A plugin for coverage: it has the C tracer know which greenlet runs, also between two calls.

coverage keeps a stack of frames for each greenlet, but looks which greenlet it is only when a
function is called or returns (CTracer_set_pdata_stack in tracer.c). So what a greenlet ran after
a ``switch()`` was put down to the greenlet that had run before, in another file even. Here each
switch is followed by a call and a return, of nothing.

In the C tracer only; and ``sys.monitoring``, which needs none of it, has branches from Python 3.14
on.
"""

from __future__ import annotations

import sys
from typing import Any

import greenlet
from coverage.collector import Collector


def coverage_init(registry: Any, options: dict[str, Any]) -> None:
    if Collector._start_tracer is not _start_tracer:
        Collector._start_tracer = _start_tracer  # type: ignore[method-assign]


_stock: Any = Collector._start_tracer


def _start_tracer(self: Any) -> Any:
    """In each thread that is traced."""
    tracer = _stock(self)

    def switched(event: str, args: object) -> None:
        if sys.gettrace() is tracer:
            frame = sys._getframe()
            tracer(frame, "call", None)
            tracer(frame, "return", None)

    greenlet.settrace(switched)
    return tracer
