"""A call of a proxied object's method: a Deferred, an async iterator or an async context manager,
whichever it is used as."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextvars import ContextVar, copy_context
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure

from ._admission import Call, Pool
from ._behaviours import PoolChoice, ReturnsDeferred
from ._errors import GreendeferError, PoolClosed, shown
from ._iterators import GreenIterator
from ._lending import lend_along
from ._policy import OnCancel, Timeouts, check_count
from ._runtime import Runtime
from ._steps import close_one
from ._stream import take_worker
from ._worker import PoolWorker

_log = Logger(namespace="greendefer")


class MethodOptions(ReturnsDeferred):
    """The options of one method of a proxied object."""

    def __init__(
        self,
        pool: PoolChoice = None,
        timeout: float | Timeouts | None = None,
        on_cancel: OnCancel = "kill",
        prefetch: int = 0,
    ) -> None:
        super().__init__(pool, timeout, on_cancel)
        check_count("prefetch=...", prefetch, 0)
        self.prefetch = prefetch

    @property
    def options(self) -> dict[str, Any]:
        return {**super().options, "prefetch": self.prefetch}


class Scope(Protocol):
    """What a call comes from, and what that makes of its result."""

    def outgoing(
        self, value: Any, options: MethodOptions | None = None, pool: Pool | None = None
    ) -> Any:
        """`value` as it leaves an iterator, or a method that has `options` and ran on `pool`."""

    def bare(self, value: Any) -> Any:
        """What `value` is a proxy of, if it is one of ours; else `value` itself."""

    def entered(self, value: Any, worker: PoolWorker, options: MethodOptions) -> Any:
        """`value` as ``__enter__`` returned it, on `worker`."""

    def stream(
        self, pool: Pool, open_source: Callable[[], Any], name: str, options: MethodOptions
    ) -> GreenIterator[Any]:
        """An iteration over what `open_source` returns."""


class ProxyCall(Call):
    """A call of a method of a proxied object: a Deferred, ``async with`` and ``async for`` in one.

    Which of these it is to be is known only after it was made. So it begins when it is awaited,
    or at the reactor's next turn; entered or iterated over before, it begins on a worker of its
    own, together with what is done to its result.
    """

    _pending = True
    _taken_over = False
    _block: Block | None = None
    _value: Any = None

    def __init__(
        self,
        scope: Scope,
        options: MethodOptions,
        pool: Pool,
        f: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        super().__init__(pool, f, args, kwargs, options.timeouts, options.on_cancel)
        self._options = options
        self._scope = scope
        self.addCallback(scope.outgoing, options, pool)
        _begin_soon(self)

    @property
    def is_queued(self) -> bool:
        return not self._pending and super().is_queued

    def begin_now(self) -> None:
        """Be admitted to the pool, if nothing else has become of it."""
        if not self._pending:
            return
        self._pending = False
        try:
            self.pool._admit(self)
        except GreendeferError:
            self.errback(Failure())
            return
        if self.is_queued:
            for waiter in self.waiters:
                lend_along(waiter)

    def refuse(self, failure: Failure) -> None:
        # Whoever begins it now is perhaps not the one who has called.
        runtime = self.pool._runtime
        if runtime.stopped:
            super().refuse(failure)
        else:
            runtime.deliver(self.fire, failure)

    def cancel(self) -> None:
        if self._taken_over:
            return  # nothing waits for it: cancel what waits for the block, or for an item
        if self._pending:
            self._pending = False
            self.forget()
            self.errback(Failure(CancelledError()))
        else:
            super().cancel()

    def __await__(self) -> Generator[Any, None, Any]:
        if self._taken_over:
            raise RuntimeError(
                f"The call of {self.name} was entered, or iterated over: it has no other result"
            )
        if self._pending:
            begin_all()
        return super().__await__()

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            if name.startswith("_") or "f" not in vars(self):  # copying and the like may ask
                raise AttributeError(name)
            raise AttributeError(f"{self.unused} It has no attribute {name!r} itself.")

    def __getitem__(self, key: Any) -> Any:
        raise TypeError(f"{self.unused} It has no items itself.")

    def __enter__(self) -> Any:
        raise TypeError(f"{self.unused} It can't be entered by a plain `with`.")

    __exit__ = __enter__

    @property
    def unused(self) -> str:
        return f"A call of {self.name} is a Deferred: await it, or use `async for` or `async with`."

    def _take_over(self) -> Callable[[], Any] | None:
        """What it would call, to be called elsewhere in its place; ``None`` if it has begun."""
        if not self._pending:
            return None
        self._pending = False
        self._taken_over = True
        args, kwargs = self.arguments
        f = partial(self.f, *args, **kwargs)
        begin_all()
        return f

    def __aiter__(self) -> Any:
        f = self._take_over()
        if f is None:
            return _iterate_later(self)
        return self._scope.stream(self.pool, f, self.name, self._options)

    async def __aenter__(self) -> Any:
        f = self._take_over()
        if f is None:
            value = self._scope.bare(await self)
            if hasattr(type(value), "__aenter__"):
                self._value = value
                return await type(value).__aenter__(value)
            f = partial(_same, value)
        self._block = Block(self._scope, self.pool, f, self.name, self._options)
        return await self._block.enter()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> Any:
        if self._block is not None:
            return await self._block.exit(exc)
        return await type(self._value).__aexit__(self._value, exc_type, exc, tb)


async def _iterate_later(call: ProxyCall) -> Any:
    value = call._scope.bare(await call)
    if not hasattr(type(value), "__aiter__"):
        value = call._scope.stream(call.pool, partial(_same, value), call.name, call._options)
    async for item in value:
        yield item


def _same(value: Any) -> Any:
    return value


_pending: deque[ProxyCall] = deque()
_pending_runtime: Runtime | None = None


def _begin_soon(call: ProxyCall) -> None:
    global _pending_runtime
    runtime = call.pool._find_runtime()
    _pending.append(call)
    if _pending_runtime is not runtime:
        _pending_runtime = runtime
        if runtime.stopped:  # there is no next turn
            begin_all()
        else:
            runtime.deliver(lambda _: begin_all(), None)


def begin_all() -> None:
    """Begin the calls that were made, in their order."""
    global _pending_runtime
    _pending_runtime = None
    while _pending:
        _pending.popleft().begin_now()


class Block:
    """A context manager that was entered on a worker, and is left there.

    An iterator that is no context manager is entered as it is; to leave it is to close it.
    """

    def __init__(
        self,
        scope: Scope,
        pool: Pool,
        open_manager: Callable[[], Any],
        name: str,
        options: MethodOptions,
    ) -> None:
        self._scope = scope
        self._owned = not isinstance(pool, PoolWorker)
        self.worker: PoolWorker = pool if isinstance(pool, PoolWorker) else take_worker(pool)
        self._open_manager = open_manager
        self._name = name
        self._options = options
        self._timeouts = options.timeouts
        self._value: Any = None
        self._context = copy_context()
        self._no_worker: Failure | None = None
        self._leave: Callable[..., Any] | None = None
        self._why: BaseException | None = None

    async def enter(self) -> Any:
        worker = self.worker
        if self._owned:
            worker._open(self._timeouts, self._name).addErrback(self._got_no_worker)
        try:
            value = await worker._call(self._enter, (), {}, self._timeouts, "kill")
        except BaseException as e:  # GeneratorExit too: nobody will leave the block
            self._why = e
            if self._owned:
                left = worker._leave(kill=True)
            else:
                left = worker._call(self._exit_at_last, (), {}, None, "abandon")
            left.addErrback(self._failed_unheard)
            if self._no_worker is not None:
                self._no_worker.raiseException()
            raise
        finally:
            self._why = None if self._leave is not None else self._why
        self._value = self._scope.entered(value, self.worker, self._options)
        return self._value

    def _got_no_worker(self, failure: Failure) -> None:
        self._no_worker = failure

    def _failed_unheard(self, failure: Failure) -> None:
        if not failure.check(PoolClosed, CancelledError):
            _log.failure(
                "Leaving {name} failed, and nobody waited for it", failure, name=self._name
            )

    async def exit(self, exc: BaseException | None) -> bool:
        begin_all()
        worker = self.worker
        if exc is not None and self._owned:
            worker._abort()
        try:
            if isinstance(self._value, GreenIterator):
                await self._value.aclose()  # which ends a step that runs
        finally:
            swallowed = await self._leave_worker(exc)
        return swallowed

    async def _leave_worker(self, exc: BaseException | None) -> bool:
        worker = self.worker
        try:
            args = (
                type(exc) if exc is not None else None,
                exc,
                getattr(exc, "__traceback__", None),
            )
            timeouts = self._timeouts
            if timeouts is not None:  # it has its slot; what it waits for are the block's own calls
                timeouts = replace(timeouts, queued=None)
            return bool(await worker._call(self._exit, args, {}, timeouts, "abandon"))
        finally:
            if self._owned:
                left = worker._leave()
                left.addErrback(self._failed_unheard)
                await left

    # On the worker.

    def _enter(self) -> Any:
        manager = self._context.run(self._open_manager)
        kind = type(manager)
        leave: Callable[..., Any]
        if hasattr(kind, "__next__") and not hasattr(kind, "__enter__"):
            leave, value = partial(close_one, manager), manager
        elif not (hasattr(kind, "__enter__") and hasattr(kind, "__exit__")):
            raise TypeError(
                f"{self._name} returned {shown(manager)}, which is no context manager: await it, "
                "rather than async with"
            )
        else:
            leave = partial(kind.__exit__, manager)
            value = self._context.run(kind.__enter__, manager)
        self._leave = leave
        self.worker._at_exit(self._exit_at_last)
        return value

    def _exit(self, *exc_info: Any) -> bool:
        self.worker._not_at_exit(self._exit_at_last)
        leave, self._leave = self._leave, None
        assert leave is not None
        return bool(self._context.run(leave, *exc_info))

    def _exit_at_last(self) -> None:
        """The worker is about to go, and nobody has left the block, or ever will."""
        if self._leave is not None:
            why = self._why or PoolClosed(f"{self._name}: its worker was ended")
            self._exit(type(why), why, why.__traceback__)

    # What hooks are told that was called.
    _enter.__qualname__ = "__enter__"
    _exit.__qualname__ = _exit_at_last.__qualname__ = "__exit__"


_entered: ContextVar[tuple[tuple[Any, Block], ...]] = ContextVar("greendefer_entered", default=())


def block_around(owner: Any) -> Block | None:
    """The innermost ``async with`` over `owner` itself that the current code is in."""
    for each, block in _entered.get()[::-1]:
        if each is owner:
            return block
    return None


def block_begins(owner: Any, block: Block) -> None:
    """The current code is in that block from now on."""
    _entered.set((*_entered.get(), (owner, block)))


def block_ends(block: Block) -> None:
    """... and not any more."""
    _entered.set(tuple(each for each in _entered.get() if each[1] is not block))
