"""What seldom happens to whole programs: no threads, other reactors, ends at the wrong moment."""

from __future__ import annotations

import os
from typing import Any

import pytest
from programs import MISSES_ENDS, NO_FORK_SERVER, PATCHED

NOT_GREEN = """
    import threading, time
    from twisted.internet import selectreactor
    selectreactor.install()
    import gevent, greendefer
    from gevent import monkey
    from greendefer import *
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.task import deferLater
"""

GREEN = """
    import os, signal, sys, threading, time
    import gevent, greendefer
    from gevent import monkey
    from greendefer import *
    greendefer.install({kind!r})
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.task import deferLater
"""


@pytest.fixture
def not_green(run_program: Any) -> Any:
    return lambda source: run_program(NOT_GREEN, source)


@pytest.fixture
def green(run_program: Any) -> Any:
    return lambda source, kind="native": run_program(GREEN.format(kind=kind), source)


class TestNoMoreThreads:
    def test_for_timeouts(self, not_green: Any) -> None:
        """Then they go by Twisted's clock, also one that is put off or called off meanwhile."""
        not_green(
            """
    from greendefer import _deadlines
    from _queue import SimpleQueue

    def refuse(*args):
        raise RuntimeError("can't start new thread")

    start, _deadlines.start_thread = _deadlines.start_thread, refuse

    async def main():
        pool = NativeThreadPool(4)
        never = SimpleQueue()
        def late(seconds):
            return green_deferred(pool=pool, timeout=seconds)(never.get)()
        async def times_out(d):
            try:
                await d
            except CallTimeout:
                return True
        called_off = late(0.05)
        called_off.addErrback(lambda failure: None)
        called_off.cancel()
        assert await times_out(late(0.1))
        first, second = late(0.05), late(0.15)
        assert await times_out(first) and await times_out(second)
        # Once there are threads again, they do it.
        third = late(0.05)
        _deadlines.start_thread = start
        fourth = late(0.01)
        assert await times_out(third) and await times_out(fourth)
        await deferLater(reactor, 0.1)
        for _ in range(5):
            never.put(None)

    go(main)
            """
        )

    def test_for_timeouts_after_a_while_without(self, not_green: Any) -> None:
        """The thread has ended meanwhile, and there is another one."""
        not_green(
            """
    from greendefer import _deadlines
    from _queue import SimpleQueue

    _deadlines.IDLE_SECONDS = 0.01
    ended = []
    start = _deadlines.start_thread
    _deadlines.start_thread = lambda f, name: start(lambda: (f(), ended.append(name)), name)

    async def main():
        pool = NativeThreadPool(2)
        for n in 1, 2:
            never = SimpleQueue()
            try:
                await green_deferred(pool=pool, timeout=0.01)(never.get)()
            except CallTimeout:
                pass
            else:
                raise AssertionError("it ended")
            while len(ended) < n:
                await deferLater(reactor, 0.001)
            never.put(None)

    go(main)
            """
        )

    def test_to_watch_for_holdups(self, green: Any) -> None:
        green(
            """
    from greendefer import _holdups

    def refuse(*args):
        refused.append(1)
        raise RuntimeError("can't start new thread")

    refused = []
    _holdups.start_thread = refuse
    _holdups.RETRY_SECONDS = 3600

    async def main():
        for n in range(3):
            assert await defer_to_greenlet(int, n) == n

    go(main)
    assert refused == [1]
            """
        )


class TestAnotherReactor:
    def test_in_place_of_one_with_calls(self, run_program: Any) -> None:
        run_program(
            """
            import sys
            from gevent import monkey
            from twisted.internet import selectreactor
            import greendefer

            class Client:
                def get(self):
                    return 1

            held = monkey.get_original("_thread", "allocate_lock")()
            held.acquire()
            selectreactor.install()
            pool = greendefer.NativeThreadPool(1)
            pool.submit(held.acquire).addErrback(lambda failure: None)
            del sys.modules["twisted.internet.reactor"]
            selectreactor.install()
            try:
                pool.submit(len, "four")
            except greendefer.GreendeferError as e:
                assert "no longer the installed one" in str(e), e
            else:
                raise AssertionError("not refused")
            from twisted.internet import reactor
            got = []
            # What begins later only is told when it does.
            greendefer.green_proxy(Client(), pool=pool).get().addErrback(
                lambda failure: got.append(failure.type))
            new = greendefer.NativeThreadPool(1)
            new.submit(len, "four").addBoth(lambda n: (got.append(n), reactor.stop()))
            reactor.run()
            assert got == [greendefer.GreendeferError, 4]
            held.release()
            """
        )

    def test_two_green_ones_and_a_fork(self, green: Any) -> None:
        green(
            """
    from greendefer._reactor.select import GreenSelectReactor
    other = GreenSelectReactor()
    pid = os.fork()
    if not pid:
        got = []
        for each in reactor, other:
            each.callLater(0, lambda: got.append(each))
            each.callLater(0.01, each.stop)
            each.run(installSignalHandlers=False)
        assert got == [reactor, other]
        os._exit(3)
    status = monkey.get_original("os", "waitpid")(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 3, status
            """
        )

    def test_in_another_thread_than_the_main_one(self, green: Any) -> None:
        """Where no signal can be handled."""
        green(
            """
    ident = monkey.get_original("_thread", "get_ident")

    async def main():
        assert await defer_to_greenlet(ident) == ident() != main_thread

    main_thread = ident()
    gevent.get_hub().threadpool.apply(
        go, (main,), {"installSignalHandlers": False})
            """
        )

    @pytest.mark.skipif(PATCHED, reason="gevent's subprocess needs the default loop")
    def test_where_the_loop_is_not_the_default_one(self, run_program: Any) -> None:
        """libev watches children on that one only: Twisted hears of its own by itself."""
        run_program(
            """
            import sys
            from gevent import _hub_local, hub
            _hub_local.set_hub(hub.Hub(default=False))
            import greendefer
            greendefer.install()
            from twisted.internet import protocol, reactor
            assert not reactor.cooperative_wait.hub.loop.default
            ended = []

            class Child(protocol.ProcessProtocol):
                def processEnded(self, reason):
                    ended.append(reason.value.exitCode)
                    reactor.stop()

            command = [sys.executable, "-c", "raise SystemExit(3)"]
            reactor.callWhenRunning(reactor.spawnProcess, Child(), command[0], command)
            reactor.run()
            assert ended == [3]
            """
        )


class TestAsyncio:
    def test_a_loop_that_was_made_before(self, run_program: Any) -> None:
        run_program(
            """
            import asyncio, os
            from greendefer import geventasyncioreactor
            loop = geventasyncioreactor.GreenEventLoop()
            asyncio.set_event_loop(loop)
            geventasyncioreactor.install(loop)
            from twisted.internet import reactor
            r, w = os.pipe()
            got = []

            def readable(n):
                got.append((n, os.read(r, 1)))
                loop.remove_reader(r)
                reactor.stop()

            loop.add_reader(r, readable, 7)
            reactor.callWhenRunning(os.write, w, b"x")
            reactor.run()
            assert got == [(7, b"x")]
            """
        )


def test_a_tracker_of_contexts_that_is_new(run_program: Any) -> None:
    """One that has kept nothing yet: each greenlet has its own all the same."""
    run_program(
        """
        import gevent, greendefer
        from twisted.python import context
        context.installContextTracker(context.ThreadedContextTracker())
        assert not hasattr(context.theContextTracker.storage, "ct")
        greendefer.install()

        def ask():
            gevent.sleep(0)
            return context.get("request")

        def asked_in(n):
            return context.call({"request": n}, ask)

        requests = [gevent.spawn(asked_in, n) for n in range(3)]
        gevent.joinall(requests, raise_error=True)
        assert [g.value for g in requests] == [0, 1, 2]
        assert ask() is None
        """
    )


@pytest.mark.skipif(PATCHED, reason="it patches a part")
def test_only_threads_are_patched(run_program: Any) -> None:
    """What is not patched is left alone, and Twisted's threads are native all the same."""
    run_program(
        """
        from gevent import monkey
        monkey.patch_thread()
        import socket
        before = dict(vars(socket))
        import greendefer
        greendefer.install()
        from twisted.internet import reactor, tcp
        from twisted.internet.threads import deferToThread
        assert tcp.socket is socket and dict(vars(socket)) == before
        ident = monkey.get_original("_thread", "get_ident")
        got = go(lambda: deferToThread(ident))
        assert isinstance(got, int) and got != ident(), got
        """
    )


def test_the_programs_own_socket_module_stays(run_program: Any) -> None:
    """Twisted has a native one, whose constants are those that the program has: also for pickle,
    which asks whether an enum is the one of that name."""
    run_program(
        """
        from gevent import monkey
        monkey.patch_all()
        import pickle, socket
        before = dict(vars(socket))
        family = before["AF_INET"]
        import greendefer
        greendefer.install()
        from twisted.internet import reactor, tcp
        assert tcp.socket is not socket
        assert vars(socket).keys() == before.keys()
        changed = [name for name, value in before.items() if vars(socket)[name] is not value]
        assert not changed, changed
        assert tcp.socket.AF_INET is family
        assert pickle.loads(pickle.dumps(family)) is family
        """
    )


class TestTheEnd:
    def test_a_shutdown_that_takes_longer_than_the_calls_grace(self, green: Any) -> None:
        """When that is over, nothing is left to be killed: the calls had ended before."""
        green(
            """
    from greendefer.shutdown import set_shutdown_grace
    set_shutdown_grace(running=0.02, ending=0.02)
    pool = GreenPool(1)
    late = []
    over = Deferred()

    async def main():
        await pool.submit(len, "four")
        reactor.addSystemEventTrigger("before", "shutdown", lambda: over)
        reactor.callLater(0, lambda: reactor.callLater(0.1, submit_late))

    def submit_late():
        d = pool.submit(gevent.sleep, 0.05).addBoth(late.append)
        d.addBoth(lambda _: reactor.callLater(0.05, over.callback, None))

    go(main)
    assert late == [None], late
            """
        )

    def test_a_native_call_that_ends_at_the_very_end(self, green: Any) -> None:
        """Its thread goes, rather than wait for more."""
        green(
            """
    from greendefer import _runtime
    from greendefer.shutdown import set_shutdown_grace
    set_shutdown_grace(running=0, ending=0)
    allocate_lock = monkey.get_original("_thread", "allocate_lock")
    held, ended = allocate_lock(), []
    held.acquire()
    pool = NativeThreadPool(1)

    def closed(failure):
        failure.trap(PoolClosed)
        held.release()
        outbox = _runtime._runtime._outbox
        while not outbox:  # the thread has ended its call
            monkey.get_original("time", "sleep")(0.001)
        ended.append(1)

    async def main():
        pool.submit(held.acquire).addErrback(closed)
        await deferLater(reactor, 0.01)

    go(main)
    assert ended == [1]
            """
        )

    @pytest.mark.parametrize("used", [False, True])
    def test_a_wait_in_a_thread_for_a_reactor_that_has_stopped(
        self, used: bool, green: Any
    ) -> None:
        """Whether anything of ours has used that reactor, or not."""
        green(
            f"""
    threadpool = gevent.get_hub().threadpool
    call = blocking_from_greenlet(int)

    def refused():
        try:
            call("7")
        except GreendeferError as e:
            return "has stopped" in str(e)

    if {used}:
        reactor.callWhenRunning(lambda: threadpool.spawn(call, "7").rawlink(
            lambda _: reactor.callFromThread(reactor.stop)))
    else:
        reactor.callWhenRunning(reactor.stop)
    reactor.run()
    assert threadpool.apply(refused)
            """
        )

    def test_a_greenlet_that_is_killed_at_the_very_end(self, green: Any) -> None:
        """What it waited for is cancelled there and then: nobody would later."""
        green(
            """
    from greendefer.shutdown import set_shutdown_grace
    set_shutdown_grace(running=0, ending=0)
    held = monkey.get_original("_thread", "allocate_lock")()
    held.acquire()
    cancelled = []
    waiting = gevent.spawn(wait_for_deferred, Deferred(cancelled.append))
    pool = NativeThreadPool(1)

    def closed(failure):
        failure.trap(PoolClosed)
        waiting.kill()
        assert len(cancelled) == 1
        cancelled.append("at once")

    async def main():
        await pool.submit(len, "four")
        reactor.addSystemEventTrigger(
            "before", "shutdown", lambda: pool.submit(held.acquire).addErrback(closed) and None)

    go(main)
    assert cancelled[1:] == ["at once"]
    held.release()
            """
        )

    @pytest.mark.parametrize("used", [False, True])
    def test_a_wait_in_a_thread_that_begins_as_the_reactor_goes(
        self, used: bool, green: Any
    ) -> None:
        """What it asks for is not called any more, and it is told so."""
        green(
            f"""
    allocate_lock = monkey.get_original("_thread", "allocate_lock")
    called, errors = [], []
    threadpool = gevent.get_hub().threadpool
    last: Deferred = Deferred()
    reactor.addSystemEventTrigger("before", "shutdown", lambda: last)

    def ask():
        try:
            blocking_from_greenlet(called.append)(1)
        except GreendeferError as e:
            errors.append(str(e))

    def at_the_end():
        # The reactor is held here, and both of these are in the queue that it comes to next.
        reactor.callFromThread(last.callback, None)
        n = len(reactor.threadCallQueue)
        asking.append(threadpool.spawn(ask))
        while len(reactor.threadCallQueue) == n:
            monkey.get_original("time", "sleep")(0.001)

    asking = []
    async def main():
        if {used}:
            await defer_to_greenlet(int)
        reactor.callLater(0.05, at_the_end)

    go(main)
    asking[0].get()
    assert called == []
    assert len(errors) == 1 and "has stopped" in errors[0], errors
            """
        )


@pytest.mark.skipif(not PATCHED, reason="unpatched, calls run in native threads there")
class TestHelperThread:
    def test_what_is_raised_while_the_slot_is_still_lent(self, not_green: Any) -> None:
        """The first of it, and only when the borrower has ended; but a kill before all others."""
        not_green(
            """
    from gevent.event import Event
    from twisted.internet.defer import CancelledError

    async def main(how):
        pool = GreenPool(1)
        seen, raised = [], []
        begun, thrown, at_its_end, go = [], [], [], []

        def borrower():
            begun.append(1)
            try:
                while True:
                    gevent.sleep(0.01)
            finally:
                at_its_end.append(1)
                while not go:
                    gevent.sleep(0.01)
                seen.append("borrower")

        def throw(lender):
            while not begun:
                gevent.sleep(0.001)
            for error in IndexError(), KeyError():
                gevent.get_hub().loop.run_callback(lender.throw, error)
                gevent.sleep(0.01)
            thrown.append(1)

        def lender():
            gevent.spawn(throw, gevent.getcurrent())
            try:
                blocking_from_greenlet(green_deferred(borrower, pool=pool))()
            except BaseException as e:
                seen.append(type(e).__name__)
                raise

        running = pool.submit(lender)
        running.addErrback(lambda failure: raised.append(failure.type))
        while not (at_its_end and thrown):
            await deferLater(reactor, 0.01)
        if how == "kill":
            running.cancel()
            await GreenPool(1).submit(len, "")  # the helper gets to that after the kill
        assert seen == [], seen
        go.append(1)
        await running
        await pool.close()
        return seen, raised

    async def both():
        seen, raised = await main("")
        assert seen == ["borrower", "IndexError"] and raised == [IndexError], (seen, raised)
        seen, raised = await main("kill")
        assert seen == ["borrower", "Kill"] and raised == [CancelledError], (seen, raised)

    go(both)
            """
        )

    def test_it_is_told_nothing_once_it_has_ended(self, not_green: Any) -> None:
        not_green(
            """
    from greendefer._runtime import runtime_here
    async def main():
        assert await GreenPool(1).submit(len, "four") == 4
    go(main)
    helper = runtime_here()._helper
    helper.ask(print, "too late")
            """
        )


ends_are_seen = pytest.mark.skipif(MISSES_ENDS, reason="Python's executor waits for ever there")


@ends_are_seen
@pytest.mark.skipif(not PATCHED, reason="unpatched, the executor's own threads do it")
class TestWorkerProcesses:
    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    @pytest.mark.parametrize("ignores", [False, True])
    def test_those_that_still_run_at_the_end(
        self, method: str, ignores: bool, tmp_path: Any, run_program: Any
    ) -> None:
        """They are terminated, and killed if that is not enough; the program ends."""
        if ignores and method == "forkserver":
            pytest.skip("what a fork server has started is told once")
        if NO_FORK_SERVER and method == "forkserver":
            pytest.skip("there is none")
        (tmp_path / "in_worker.py").write_text(WORK)
        run_program(
            f"""
            import sys
            sys.path.insert(0, {str(tmp_path)!r})
            import multiprocessing, os
            from concurrent.futures import ProcessPoolExecutor
            import greendefer, in_worker
            if __name__ == "__main__":
                greendefer.install()
                from greendefer.shutdown import set_shutdown_grace
                set_shutdown_grace(0.01, 0.01)
                from twisted.internet import reactor, task
                context = multiprocessing.get_context({method!r})
                made = []
                def make():
                    made.append(ProcessPoolExecutor(1, mp_context=context))
                    return made[-1]
                pool = greendefer.ExecutorPool(make, 1)
                path = {str(tmp_path / "begun")!r}
                errors = []
                pool.submit(in_worker.work, path, {ignores}).addErrback(
                    lambda failure: errors.append(failure.type))
                look = task.LoopingCall(lambda: os.path.exists(path) and reactor.stop())
                look.start(0.01)
                reactor.run()
                assert errors == [greendefer.PoolClosed], errors
            """
        )
        pid = int((tmp_path / "begun").read_text())
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    def test_one_whose_exit_somebody_else_has_taken(self, run_program: Any) -> None:
        run_program(
            """
            import multiprocessing, os, signal, time
            import greendefer
            from greendefer._carriers import executors
            process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            process.start()
            process.kill()
            executors.native_waitpid(process.pid, 0)
            executors._reap(process)
            assert process._popen.returncode == -signal.SIGTERM
            process.join()
            """
        )


@pytest.mark.skipif(PATCHED, reason="patched, the executor's own threads are greenlets")
@pytest.mark.parametrize("last", ["runtime_here().pools.clear()", "pass"])
def test_what_a_closed_pool_made_ends_before_python_does(last: str, run_program: Any) -> None:
    """Python fails where it wakes the manager of processes that is ending by itself. The pool
    may have been forgotten by then."""
    run_program(
        f"""
        import atexit, multiprocessing, threading, time
        from concurrent.futures import ProcessPoolExecutor, process
        import greendefer
        from greendefer._runtime import runtime_here
        greendefer.install()

        managers = []
        def look():
            assert managers and not managers[0].is_alive(), managers
            print("looked")
        # After all that an executor's pool registers, and before what Python itself has.
        threading._register_atexit(look)

        def make():
            context = multiprocessing.get_context("spawn")
            return ProcessPoolExecutor(1, mp_context=context)

        async def main():
            pool = greendefer.ExecutorPool(make, 1)
            await pool.submit(atexit.register, time.sleep, 1.5)
            managers.extend(each for each in threading.enumerate()
                            if isinstance(each, process._ExecutorManagerThread))
            await pool.close()
            {last}
        go(main)
        """
    ).stdout.index("looked")


@pytest.mark.skipif(PATCHED, reason="patched, the executor's own threads are greenlets")
def test_a_pool_that_has_just_broken_ends_before_python_does(run_program: Any) -> None:
    """Its manager, too, may close what Python is about to wake it by."""
    run_program(
        """
        import multiprocessing, signal, threading, time
        from concurrent.futures import ProcessPoolExecutor, process
        import greendefer
        greendefer.install()

        terminate = process._ExecutorManagerThread.terminate_broken
        def slowly(self, cause):
            managers.append(self)
            terminate(self, cause)
            time.sleep(0.5)
        process._ExecutorManagerThread.terminate_broken = slowly

        managers = []
        def look():
            assert managers and not managers[0].is_alive(), managers
            print("looked")
        threading._register_atexit(look)  # see above
        executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

        async def main():
            pool = greendefer.ExecutorPool(executor, 1)
            got = await error_of(pool.submit(signal.raise_signal, signal.SIGKILL))
            assert type(got) is greendefer.ExecutorFailed, got
        go(main)
        """
    ).stdout.index("looked")


def test_the_garbage_collector_in_an_executors_manager(run_program: Any) -> None:
    """It finds no executor, for which the manager would wait for a lock that it has."""
    run_program(
        """
        import gc, multiprocessing, threading
        from concurrent.futures import ProcessPoolExecutor, process
        import greendefer
        greendefer.install()

        closed = threading.Event()
        close = process._ThreadWakeup.close
        def close_and_collect(self):  # its manager has the lock
            if threading.current_thread() is not threading.main_thread():
                gc.collect()
                closed.set()
            close(self)
        process._ThreadWakeup.close = close_and_collect

        def make():
            return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

        async def main():
            pool = greendefer.ExecutorPool(make, 1)
            assert await pool.submit(len, "four") == 4
            gc.disable()
        go(main)
        assert closed.wait(20)
        """
    )


WORK = """
import os, signal, time

def work(path, ignores):
    if ignores:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(path + ".new", "w") as f:
        f.write(str(os.getpid()))
    os.rename(path + ".new", path)
    time.sleep(60)
"""


@ends_are_seen
class TestWorkersThatDieAsOthersStart:
    """ProcessPoolExecutor starts one for a call, and its manager does not see that at once."""

    POOL = """
        import os, signal, time
        from concurrent.futures import Future, ProcessPoolExecutor
        from multiprocessing import get_context, popen_spawn_posix
        import greendefer
        from greendefer import ExecutorFailed, ExecutorPool

        async def fails(call):
            try:
                await call
            except ExecutorFailed:
                return True
            return False

        def make():
            return ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    """

    def test_the_other_one(self, tmp_path: Any, run_program: Any) -> None:
        """It is known to be dead although the first one still runs its call."""
        run_program(
            self.POOL,
            f"""
            if __name__ == "__main__":
                greendefer.install()
                from twisted.internet import reactor, task
                begun = {str(tmp_path / "begun")!r}
                WORK = "open(%r, 'w'); import time; time.sleep(600)"

                async def main():
                    pool = ExecutorPool(make, 2)
                    first = pool.submit(exec, WORK % begun)
                    while not os.path.exists(begun):
                        await task.deferLater(reactor, 0.01)
                    assert await fails(pool.submit(signal.raise_signal, signal.SIGKILL))
                    assert await fails(first)
                    assert await pool.submit(len, "four") == 4

                go(main)
            """,
        )

    def test_the_first_one(self, run_program: Any) -> None:
        """The one that has just been started then is ended, so that Python can exit."""
        run_program(
            self.POOL,
            """
            if __name__ == "__main__":
                greendefer.install()
                from twisted.internet import reactor, task
                executor = make()
                launch = popen_spawn_posix.Popen._launch

                def launch_late(self, obj):
                    launch(self, obj)
                    # Where submit() holds a lock that the manager needs first (Python 3.10, and
                    # 3.13), it is not broken for as long as this is on.
                    until = time.monotonic() + 1
                    while not executor._broken and time.monotonic() < until:
                        time.sleep(0.01)
                    executor._executor_manager_thread.join(0.3)  # it ends who is there

                async def main():
                    pool = ExecutorPool(executor, 2)
                    assert await pool.submit(len, "four") == 4
                    while not executor._idle_worker_semaphore._value:
                        await task.deferLater(reactor, 0.01)
                    first = pool.submit(signal.raise_signal, signal.SIGKILL)
                    popen_spawn_posix.Popen._launch = launch_late
                    # It fails; or it runs on another executor, if this one was broken by then.
                    got = await error_of(pool.submit(len, "fives"))
                    assert type(got) is ExecutorFailed or got == 5, got
                    assert await fails(first)

                go(main)
            """,
        )

    def test_as_a_call_is_noted(self, run_program: Any) -> None:
        """One that the broken executor has forgotten runs on the next one."""
        run_program(
            self.POOL,
            """
            if __name__ == "__main__":
                greendefer.install()

                class Forgets(ProcessPoolExecutor):
                    def submit(self, *args):
                        self._broken = "as it noted the call"
                        return Future()

                made = []

                def make_forgetful():
                    made.append((Forgets if not made else ProcessPoolExecutor)(2))
                    return made[-1]

                async def main():
                    pool = ExecutorPool(make_forgetful, 2)
                    assert await pool.submit(len, "four") == 4
                    assert len(made) == 2

                go(main)
            """,
        )


@ends_are_seen
def test_an_executor_that_is_made_as_python_ends(run_program: Any) -> None:
    """Nothing more can be registered then. Python refuses it; that is no error of the call's."""
    done = run_program(
        """
        import threading
        import greendefer
        from concurrent.futures import ThreadPoolExecutor
        reactor = greendefer.start_reactor()

        def refuse(f):
            raise RuntimeError("can't register atexit after shutdown")

        threading._register_atexit = refuse
        pool = greendefer.ExecutorPool(lambda: ThreadPoolExecutor(1), 1)
        submit = greendefer.blocking_from_greenlet(lambda: pool.submit(len, "four"))
        print(submit())
        """
    )
    assert done.stdout == "4\n"


@ends_are_seen
def test_workers_that_die_while_they_are_idle(run_program: Any) -> None:
    """Others take their place, for calls that have never run; also if one dies after that."""
    run_program(
        """
        import os, signal, time
        from concurrent.futures import ProcessPoolExecutor
        from gevent import monkey
        from multiprocessing import get_context
        if __name__ == "__main__":
            import greendefer
            from greendefer import ExecutorFailed, ExecutorPool
            greendefer.install()
            from twisted.internet import reactor, task
            made = []

            def make():
                made.append(ProcessPoolExecutor(2, mp_context=get_context("spawn")))
                return made[-1]

            async def main():
                pool = ExecutorPool(make, 2)
                pid = await pool.submit(os.getpid)
                os.kill(pid, signal.SIGKILL)
                while not made[0]._broken:
                    await task.deferLater(reactor, 0.01)
                assert await pool.submit(len, "four") == 4
                assert len(made) == 2
                lost = pool.submit(signal.raise_signal, signal.SIGKILL)
                try:
                    await lost
                except ExecutorFailed:
                    lost = None
                assert lost is None
                assert await pool.submit(len, "fives") == 5
                assert len(made) == 3
                if not monkey.is_module_patched("threading"):  # else nothing moves meanwhile
                    # One that is lost is heard of when another executor is there already.
                    lost = pool.submit(time.sleep, 60)
                    broken = made[-1]
                    for process in broken._processes.values():
                        process.kill()
                    while not broken._broken:
                        time.sleep(0.001)
                    assert await pool.submit(len, "sixsix") == 6
                    try:
                        await lost
                    except ExecutorFailed:
                        lost = None
                    assert lost is None
                    assert await pool.submit(len, "sixsix") == 6
                    assert len(made) == 4
                made[-1].shutdown()

            go(main)
        """
    )


def test_a_wait_before_react_has_started_the_reactor(green: Any) -> None:
    """The way out is said for whoever wrote a coroutine, and for blocking code."""
    green(
        """
    from twisted.internet.task import react

    async def main(reactor):
        try:
            wait_for_deferred(Deferred())
        except WouldDeadlock as e:
            assert "await the Deferred" in str(e), e
            assert "react() calls its function before" in str(e), e
        else:
            raise AssertionError("it waited")

    react(main)
    """
    )
