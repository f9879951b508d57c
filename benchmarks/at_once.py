"""So many calls, and never more than so many of them at once."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from harness import Round


async def make_calls(
    call: Callable[[Callable[[Any], None], Callable[[Any], None]], Any],
    is_right: Callable[[Any], bool],
    loop: Any,
    at_once: int,
    calls: int,
) -> tuple[float, Round]:
    """Make so many calls. Returns the seconds that they took, and how late the loop was meanwhile.

    :param call: makes one, and calls its first argument with the result, or its second, if there
        is a failure.
    :param is_right: whether that is the result that it should have.
    :param loop: an asyncio loop, or a reactor.
    """
    from tickers import Ticker
    from twisted.internet.defer import Deferred

    done: Deferred[None] = Deferred()
    to_start, to_end = calls, calls

    def start() -> None:
        nonlocal to_start
        to_start -= 1
        call(ended, done.errback)

    def ended(result: Any) -> None:
        nonlocal to_end
        assert is_right(result)
        to_end -= 1
        if to_start:
            start()
        if not to_end:
            done.callback(None)

    is_asyncio = hasattr(loop, "call_later")
    ticker = Ticker(loop.call_later if is_asyncio else loop.callLater)
    began = perf_counter()
    for _ in range(min(at_once, calls)):
        start()
    await (done.asFuture(loop) if is_asyncio else done)
    return perf_counter() - began, ticker.stop()
