"""What the decorators keep of a callable, and what a call carries with it."""

from __future__ import annotations

import contextvars
import copy
import copyreg
import functools
import inspect
import operator
import pickle
import re
import sys
import time
import traceback
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import gevent
import pytest
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks, succeed
from twisted.python import context as twisted_context
from twisted.python.failure import Failure

import greendefer
from greendefer import (
    GreenPool,
    Timeouts,
    blocking_from_greenlet,
    defer_to_greenlet,
    green_deferred,
    wait_for_deferred,
    with_options,
)


@green_deferred
def plain(a: int, b: int = 2, *, c: int = 3) -> tuple[int, int, int]:
    """Returns its arguments."""
    gevent.sleep(0)
    return a, b, c


class Client:
    """Each kind of method, in each decorator order."""

    def __init__(self, name: str = "client") -> None:
        self.name = name
        self.pool = GreenPool(2, name=name)

    @green_deferred
    def method(self, key: str) -> tuple[str, str]:
        """A method."""
        gevent.sleep(0)
        return self.name, key

    @green_deferred(pool=lambda self: self.pool)
    def on_its_own_pool(self) -> str:
        return self.name

    @classmethod
    @green_deferred
    def class_inside(cls, key: str) -> tuple[str, str]:
        return cls.__name__, key

    @green_deferred
    @classmethod
    def class_outside(cls, key: str) -> tuple[str, str]:
        return cls.__name__, key

    @staticmethod
    @green_deferred
    def static_inside(key: str) -> str:
        return key

    @green_deferred
    @staticmethod
    def static_outside(key: str) -> str:
        return key

    @blocking_from_greenlet
    async def lookup(self, key: str) -> tuple[str, str]:
        return await self.method(key)

    @classmethod
    @blocking_from_greenlet
    def lookup_class(cls, key: str) -> Deferred[tuple[str, str]]:
        return cls.class_inside(key)


class Picklable(Client):
    def __init__(self, name: str) -> None:
        self.name = name


class Callable_:
    def __call__(self, x: int) -> int:
        """Doubles."""
        return x * 2


class TestEveryCallable:
    def test_function(self) -> None:
        assert isinstance(plain(1), Deferred)
        assert wait_for_deferred(plain(1, c=4)) == (1, 2, 4)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("method", ("client", "k")),
            ("class_inside", ("Client", "k")),
            ("class_outside", ("Client", "k")),
            ("static_inside", "k"),
            ("static_outside", "k"),
        ],
    )
    def test_methods(self, name: str, expected: Any) -> None:
        assert wait_for_deferred(getattr(Client(), name)("k")) == expected
        assert wait_for_deferred(with_options(getattr(Client(), name), timeout=10)("k")) == expected
        if name != "method":
            assert wait_for_deferred(getattr(Client, name)("k")) == expected
        else:
            assert wait_for_deferred(Client.method(Client(), "k")) == expected

    def test_others(self) -> None:
        for f, args, expected in [
            (Callable_(), (2,), 4),
            (functools.partial(pow, 2), (3,), 8),
            (functools.partial(functools.partial(pow), 2), (3,), 8),
            (len, ("four",), 4),
            ("a-b".split, ("-",), ["a", "b"]),
            (lambda: 1, (), 1),
            (dict, (), {}),
        ]:
            assert wait_for_deferred(green_deferred(f)(*args)) == expected
            assert wait_for_deferred(defer_to_greenlet(f, *args)) == expected

    def test_as_class_attributes(self) -> None:
        def packed(*args: Any) -> tuple[Any, ...]:
            return args

        class Holder:
            part: Any = green_deferred(functools.partial(packed, 2))
            static: Any = green_deferred(staticmethod(functools.partial(pow, 2)))
            builtin = green_deferred(len)
            obj = green_deferred(Callable_())

        holder = Holder()
        # Undecorated, too, it binds as a function does since Python 3.14.
        bound = (holder,) if sys.version_info >= (3, 14) else ()
        assert wait_for_deferred(holder.part(3)) == (2, *bound, 3)
        assert wait_for_deferred(holder.static(3)) == 8
        assert wait_for_deferred(holder.builtin("xy")) == 2
        assert wait_for_deferred(holder.obj(4)) == 8

    def test_a_blocking_builtin_when_patched(self) -> None:
        assert wait_for_deferred(green_deferred(time.sleep)(0)) is None


class TestWhatSurvives:
    def test_signature_name_doc_annotations(self) -> None:
        f = plain.__wrapped__  # type: ignore[attr-defined]
        assert inspect.signature(plain) == inspect.signature(f)
        assert (plain.__name__, plain.__qualname__, plain.__module__) == (
            "plain",
            "plain",
            __name__,
        )
        assert plain.__doc__ == "Returns its arguments."
        assert plain.__annotations__ == f.__annotations__
        assert str(inspect.signature(Client().method)) == "(key: 'str') -> 'tuple[str, str]'"
        assert str(inspect.signature(Client.class_outside)).startswith("(key: 'str')")

    def test_a_blocking_coroutine_function_is_no_coroutine_function(self) -> None:
        @blocking_from_greenlet
        async def f(x: int) -> int:
            return x

        assert not inspect.iscoroutinefunction(f)
        assert not inspect.iscoroutinefunction(Client().lookup)
        assert inspect.signature(f).parameters.keys() == {"x"}
        assert f(3) == 3

    def test_an_async_staticmethod_made_blocking(self) -> None:
        class Holder:
            @blocking_from_greenlet
            @staticmethod
            async def f() -> int:
                return 1

        assert Holder.f() == 1
        assert not inspect.iscoroutinefunction(Holder.f)
        assert not inspect.iscoroutinefunction(with_options(Client().lookup, timeout=1))

    def test_copied_as_itself_and_pickled_by_name(self) -> None:
        assert copy.copy(plain) is plain
        assert copy.deepcopy({"call": plain})["call"] is plain
        assert pickle.loads(pickle.dumps(plain)) is plain

    @pytest.mark.parametrize("name", ["method", "class_inside", "class_outside", "lookup"])
    def test_bound_ones_as_methods_are(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        # What a classmethod makes is Python's own, since 3.13. Once twisted.persisted.styles is
        # imported, Twisted has these pickled as methods of an instance, and fails.
        monkeypatch.delitem(copyreg.dispatch_table, types.MethodType, raising=False)
        client = Picklable("a")
        bound = getattr(client, name)
        assert copy.copy(bound) == bound
        copies = [copy.deepcopy(bound), pickle.loads(pickle.dumps(bound))]
        copies.append(copy.deepcopy({"a client": client, "its method": bound})["its method"])
        client.name = "another"
        expected = "Picklable" if name.startswith("class") else "a"
        for each in copies:
            got = each("k")
            if name == "lookup":
                got = green_deferred(each)("k")
            assert wait_for_deferred(got) == (expected, "k")

    def test_a_static_one_as_a_function(self) -> None:
        assert copy.deepcopy(Client.static_outside).__wrapped__ is Client.static_outside.__wrapped__


class TestResults:
    def test_in_the_reactors_greenlet(self, result: Any, reactor: Any) -> None:
        for f in (lambda: 1), (lambda: 1 / 0):
            heard = result(defer_to_greenlet(f))
            heard.get()
            assert heard.greenlets == [reactor.cooperative_wait.greenlet]

    def test_original_exception_and_traceback(self, result: Any) -> None:
        error = KeyError("x")

        def deep() -> None:
            gevent.sleep(0)
            raise error

        def shallow() -> None:
            deep()

        failure = result(defer_to_greenlet(shallow)).get()
        assert failure.value is error
        assert [f.name for f in traceback.extract_tb(failure.getTracebackObject())][-2:] == [
            "shallow",
            "deep",
        ]

    @pytest.mark.parametrize(
        "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopIteration(1)]
    )
    def test_any_exception_ends_in_the_deferred(
        self, error: BaseException, result: Any, reactor: Any
    ) -> None:
        def fail() -> None:
            gevent.sleep(0)
            raise error

        assert result(defer_to_greenlet(fail)).get().value is error
        assert reactor.running

    def test_a_deferred_is_chained(self, reactor: Any, result: Any) -> None:
        inner: Deferred[str] = Deferred()
        heard = result(defer_to_greenlet(lambda: inner))
        reactor.callLater(0, inner.callback, "later")
        assert heard.get() == "later"
        assert heard.greenlets == [reactor.cooperative_wait.greenlet]

    def test_a_deferred_that_failed_is_chained(self, result: Any) -> None:
        from twisted.internet.defer import fail

        pool = GreenPool(1)
        assert result(pool.submit(lambda: fail(KeyError("inner")))).error() is KeyError
        assert (pool.stats().completed, pool.stats().failed) == (0, 1)

    def test_a_failure_returned(self, result: Any) -> None:
        assert result(defer_to_greenlet(lambda: Failure(KeyError()))).error() is KeyError

    def test_awaitable(self, in_reactor: Any) -> None:
        async def main() -> Any:
            return await plain(1)

        assert in_reactor(main) == (1, 2, 3)

    def test_kwargs_named_like_ours(self) -> None:
        @green_deferred
        def f(self: int, pool: int, timeout: int, f: int) -> int:
            return self + pool + timeout + f

        assert wait_for_deferred(f(self=1, pool=2, timeout=3, f=4)) == 10
        assert wait_for_deferred(defer_to_greenlet(lambda f: f, f=1)) == 1


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class TestContexts:
    def test_the_callers_contextvars_are_seen_and_do_not_leak(self) -> None:
        pool = GreenPool(1)
        seen: list[str] = []

        def call(value: str) -> None:
            seen.append(variable.get())
            variable.set(value)
            gevent.sleep(0)
            seen.append(variable.get())

        variable.set("caller")
        wait_for_deferred(pool.submit(call, "one"))
        wait_for_deferred(pool.submit(call, "two"))
        assert seen == ["caller", "one", "caller", "two"]
        assert variable.get() == "caller"

    def test_the_callers_log_context_is_seen_and_each_greenlet_has_its_own(self) -> None:
        pool = GreenPool(3)
        seen: list[tuple[str, Any]] = []

        def call(name: str) -> None:
            for _ in range(3):
                gevent.sleep(0)
                seen.append((name, twisted_context.get("request")))

        def inside(name: str) -> Deferred[Any]:
            return twisted_context.call({"request": name}, pool.submit, call, name)

        wait_for_deferred(gatherResults([inside(name) for name in "abc"]))
        assert len(seen) == 9
        assert all(name == request for name, request in seen)
        assert twisted_context.get("request") is None
        wait_for_deferred(pool.submit(call, "none"))
        assert seen[-1] == ("none", None)

    def test_a_call_may_push_its_own(self) -> None:
        def nested() -> list[Any]:
            gevent.sleep(0)
            return [twisted_context.get("outer"), twisted_context.get("inner")]

        def call() -> list[Any]:
            return twisted_context.call({"inner": 2}, nested)

        d = twisted_context.call({"outer": 1}, defer_to_greenlet, call)
        assert wait_for_deferred(d) == [1, 2]

    def test_the_whole_stack_of_contexts_is_seen(self) -> None:
        def get() -> list[Any]:
            return [twisted_context.get(key) for key in "ab"]

        d = twisted_context.call({"a": 1}, twisted_context.call, {"b": 2}, defer_to_greenlet, get)
        assert wait_for_deferred(d) == [1, 2]

    def test_keyword_arguments_of_any_name(self) -> None:
        """In a log context, and inside of what is around the calls of a pool."""

        def get(**kwargs: Any) -> Any:
            return kwargs

        names = {"func": 1, "ctx": 2, "f": 3, "self": 4, "args": 5, "pool": 6, "context": 7}
        for pool in GreenPool(1), GreenPool(1, around=nullcontext):
            assert wait_for_deferred(pool.submit(get, **names)) == names
            d = twisted_context.call({"system": "x"}, lambda pool=pool: pool.submit(get, **names))
            assert wait_for_deferred(d) == names
            get_them = green_deferred(pool=pool)(get)
            d = twisted_context.call({"system": "x"}, lambda get=get_them: get(**names))
            assert wait_for_deferred(d) == names

    def test_blocking_from_greenlet_in_a_thread_sees_contextvars(self) -> None:
        @blocking_from_greenlet
        def get() -> str:
            return variable.get()

        @blocking_from_greenlet
        async def get_async() -> str:
            return variable.get()

        def thread() -> tuple[str, str]:
            variable.set("of the thread")
            return get(), get_async()

        assert gevent.get_hub().threadpool.apply(thread) == ("of the thread", "of the thread")


class TestOptions:
    def test_pools(self) -> None:
        pool, other = GreenPool(1), GreenPool(1)
        call = green_deferred(pool=pool)(lambda: 1)
        wait_for_deferred(call())
        wait_for_deferred(with_options(call, pool=other)())
        wait_for_deferred(with_options(call, pool=lambda instance: other)())
        assert (pool.stats().completed, other.stats().completed) == (1, 2)

    def test_a_pool_of_the_instance(self) -> None:
        a, b = Client("a"), Client("b")
        assert wait_for_deferred(a.on_its_own_pool()) == "a"
        assert (a.pool.stats().completed, b.pool.stats().completed) == (1, 0)
        assert wait_for_deferred(with_options(b.on_its_own_pool, timeout=10)()) == "b"
        assert b.pool.stats().completed == 1

    def test_a_pool_callable_gets_none_for_a_function(self) -> None:
        got: list[Any] = []
        pool = GreenPool(1)

        @green_deferred(pool=lambda instance: got.append(instance) or pool)
        def f() -> None: ...

        wait_for_deferred(f())
        assert got == [None]

    def test_a_pool_callable_that_returns_something_else(self) -> None:
        @green_deferred(pool=lambda instance: "pool")  # type: ignore[arg-type,return-value]
        def f() -> None: ...

        with pytest.raises(TypeError, match="must return a pool, not 'pool'"):
            f()

    def test_with_options_keeps_the_others_and_the_original(self, gate: Any, result: Any) -> None:
        pool = GreenPool(1)
        call = green_deferred(pool=pool, timeout=3600, on_cancel="abandon")(gate)
        quick = with_options(call, timeout=0.01)
        assert result(quick()).error() is greendefer.CallTimeout
        assert pool.stats().timed_out == 1
        heard = result(call())
        gate.opened.set()
        assert heard.get() == "through"
        assert inspect.signature(quick) == inspect.signature(call)

    def test_with_options_of_a_blocking_one(self) -> None:
        never: Deferred[None] = Deferred()

        @blocking_from_greenlet
        def wait() -> Deferred[None]:
            return never

        with pytest.raises(greendefer.CallTimeout):
            with_options(wait, timeout=0.01)()
        with pytest.raises(TypeError, match=r"<blocking_from_greenlet of .*> has no option 'pool'"):
            with_options(wait, pool=GreenPool())


class TestBadInput:
    def test_a_generator_function(self) -> None:
        """Its body would run wherever somebody iterates over its result."""

        def generator() -> Iterator[int]:
            yield 1

        class Callable:
            def __call__(self) -> Iterator[int]:
                yield 1

        for f in (
            generator,
            functools.partial(generator),
            staticmethod(generator),
            classmethod(generator),  # type: ignore[arg-type]
            Callable(),
        ):
            with pytest.raises(TypeError, match=r"is a generator function: .* @green_iterator"):
                green_deferred(f)

    def test_a_function_of_inline_callbacks_is_none(self) -> None:
        @green_deferred
        @inlineCallbacks
        def f() -> Any:
            got = yield succeed(3)
            return got

        assert wait_for_deferred(f()) == 3

    @pytest.mark.parametrize("decorate", [green_deferred, greendefer.green_iterator])
    @pytest.mark.parametrize(
        ("option", "says"),
        [
            (GreenPool(3), r"Options have names: @{}\(pool=\.\.\.\)"),
            (5, r"not 5. Options have names: @{}\(timeout=\.\.\.\)"),
            (Timeouts(5), r"Options have names: @{}\(timeout=\.\.\.\)"),
            (property(len), "Write @property above @{}"),
        ],
    )
    def test_an_option_without_its_name(self, decorate: Any, option: Any, says: str) -> None:
        with pytest.raises(TypeError, match=says.format(decorate.__name__)):
            decorate(option)

    @pytest.mark.parametrize(
        ("pool", "says"),
        [
            ("http", "must be a pool, a callable that returns one, or None .*, not 'http'"),
            (GreenPool, "which is the class: make a pool of it"),
            (ThreadPoolExecutor(1), r"make a pool of it, greendefer\.ExecutorPool\(executor, size"),
            (lambda: GreenPool(), r"<lambda> at .*> is called with one argument, the instance"),
            (lambda self, extra: extra, "is called with one argument, .*: missing a required"),
        ],
    )
    def test_what_no_call_gets_a_pool_from(self, pool: Any, says: str) -> None:
        for decorate in green_deferred, greendefer.green_iterator:
            with pytest.raises(TypeError, match=says):
                decorate(pool=pool)  # type: ignore[operator]

    def test_the_result_of_a_call_has_no_options(self) -> None:
        d = plain(1)
        with pytest.raises(TypeError, match=r"a call has returned. Write with_options\(f, "):
            with_options(d, timeout=1)  # type: ignore[call-overload]
        assert wait_for_deferred(d) == (1, 2, 3)

    def test_what_was_called_already(self) -> None:
        with pytest.raises(TypeError, match=r"not 3; .*: pass f and x to it, not f\(x\)"):
            GreenPool().submit(len("abc"))  # type: ignore[arg-type]

    @pytest.mark.parametrize("f", [None, 1, "f", [len]])
    def test_not_callable(self, f: Any) -> None:
        for decorate in green_deferred(pool=GreenPool()), blocking_from_greenlet(timeout=1):
            with pytest.raises(TypeError, match="something to call"):
                decorate(f)
        with pytest.raises(TypeError):
            defer_to_greenlet(f)

    def test_async_is_refused(self) -> None:
        async def coroutine() -> None: ...

        async def generator() -> Any:
            yield

        class Async:
            async def __call__(self) -> None: ...

        for f in (
            coroutine,
            generator,
            functools.partial(coroutine),
            Async(),
            classmethod(coroutine),
            staticmethod(coroutine),
            Async().__call__,
        ):
            with pytest.raises(TypeError, match="async already"):
                green_deferred(f)
        for f in coroutine, lambda: coroutine():
            with pytest.raises(TypeError, match="async already"):
                wait_for_deferred(defer_to_greenlet(f))

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"timeout": -1}, ValueError, "0 or more seconds"),
            ({"timeout": float("nan")}, ValueError, "0 or more seconds"),
            ({"timeout": "5"}, TypeError, "not '5'"),
            ({"timeout": True}, TypeError, "not True"),
            ({"pool": 5}, TypeError, "pool=... must be a pool"),
            ({"on_cancel": "explode"}, ValueError, "'kill' or 'abandon', not 'explode'"),
        ],
    )
    def test_options(self, options: Any, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            green_deferred(**options)
        with pytest.raises(error, match=words):
            with_options(plain, **options)

    def test_unknown_options(self) -> None:
        with pytest.raises(TypeError, match="options are pool, timeout, on_cancel"):
            with_options(plain, tiemout=1)
        with pytest.raises(TypeError):
            green_deferred(tiemout=1)  # type: ignore[call-overload]

    def test_with_options_of_what_is_not_decorated(self) -> None:
        for f in len, lambda: 1, None:
            with pytest.raises(TypeError, match="green_deferred"):
                with_options(f, timeout=1)  # type: ignore[type-var,arg-type]

    def test_timeouts_are_kept_as_given(self) -> None:
        assert Timeouts(total=5) == Timeouts(5)


def test_a_call_says_that_it_is_a_deferred_and_of_what() -> None:
    pool = GreenPool(1)
    call = pool.submit(len, "abc")
    assert re.fullmatch(r"<Deferred of len at 0x[0-9a-f]+>", repr(call))
    with pytest.raises(TypeError, match="A call of len is a Deferred: await it"):
        for _ in call:  # would go on for ever
            pass
    assert wait_for_deferred(call) == 3
    assert str(call).endswith("current result: 3>")


def test_yield_from_a_call() -> None:
    pool = GreenPool(1)

    @inlineCallbacks
    def length() -> Any:
        return (yield from pool.submit(len, "abc"))

    assert wait_for_deferred(length()) == 3


def test_options_of_a_decorated_function_that_is_bound_by_hand() -> None:
    """As Python 3.13 has a classmethod around one."""
    call = with_options(types.MethodType(green_deferred(pow), 2), timeout=20)
    assert wait_for_deferred(call(10)) == 1024


@pytest.mark.parametrize("which", [operator.attrgetter("pool"), next])
def test_a_pool_that_is_told_by_code_in_c(which: Any) -> None:
    """It need not have a signature to be looked at."""

    class Client:
        pool = GreenPool(1)

        def __next__(self) -> GreenPool:
            return self.pool

        @green_deferred(pool=which)
        def call(self) -> str:
            return "done"

    assert wait_for_deferred(Client().call(), 20) == "done"
    assert Client.pool.stats().completed == 1
