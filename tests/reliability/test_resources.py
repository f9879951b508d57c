"""What the system refuses: the call that asked for it fails, clearly, and the others go on."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gevent
import pytest
from programs import MISSES_ENDS, NO_FORK_SERVER, PATCHED

import greendefer
from greendefer import (
    ExecutorFailed,
    ExecutorPool,
    GreenPool,
    NativeThreadPool,
    _bridge,
    _crossing,
    _deadlines,
    _holdups,
    _runtime,
    wait_for_deferred,
)
from greendefer._carriers import executors, greenlets, native

LIMITED = """
    import errno, os, resource, shutil, socket, gevent, gevent.monkey, gevent.socket, greendefer
    greendefer.install({kind!r})
    from twisted.internet import reactor, protocol
    from twisted.internet.defer import gatherResults
    from twisted.internet.endpoints import TCP4ClientEndpoint

    class Echo(protocol.Protocol):
        def dataReceived(self, data):
            self.transport.write(data)

    port = reactor.listenTCP(
        0, protocol.Factory.forProtocol(Echo), interface="127.0.0.1").getHost().port

    def echo(connection):
        connection.sendall(b"x")
        return connection.recv(1)

    def one_more():
        connection = gevent.socket.create_connection(("127.0.0.1", port))
        kept.append(connection)
        return echo(connection)

    kept = []
    true = shutil.which("true")  # which is in /bin on Linux, and in /usr/bin on macOS

    # From here on there is no descriptor beyond that many.
    def take_all_descriptors(limit):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        hogs = []
        try:
            while True:
                hogs.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as e:
            assert e.errno == errno.EMFILE
        return hogs

    def give_back(hogs):
        for hog in hogs:
            close(hog)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    close = gevent.monkey.get_original("os", "close")  # gevent's waits for a turn of the loop
"""


HAS_FULL = pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no /dev/full")


@pytest.fixture
def run_limited(run_program: Any) -> Any:
    def run(*parts: str, kind: str = "native") -> Any:
        return run_program(LIMITED.format(kind=kind), *parts)

    return run


@pytest.mark.parametrize("kind", ["native", "poll", "asyncio"])
def test_no_descriptors_left(kind: str, run_limited: Any) -> None:
    """EMFILE is that call's; those that have their connection go on; and so do later ones."""
    run_limited(
        """
        async def main():
            assert await greendefer.defer_to_greenlet(one_more) == b"x"
            before = kept[0]
            hogs = take_all_descriptors(len(os.listdir("/dev/fd")) + 6)
            errors = [await error_of(greendefer.defer_to_greenlet(one_more)) for _ in range(20)]
            assert {getattr(e, "errno", e) for e in errors} == {errno.EMFILE}, errors
            # Without descriptors: a call on an open connection, a thread, a timer, Twisted.
            assert await greendefer.defer_to_greenlet(echo, before) == b"x"
            assert await greendefer.defer_to_greenlet(gevent.sleep, 0.001) is None
            assert await greendefer.NativeThreadPool(1).submit(len, "four") == 4
            give_back(hogs)
            assert await greendefer.defer_to_greenlet(one_more) == b"x"
        go(main)
        """,
        kind=kind,
    )


@pytest.mark.parametrize("what", ["gevent", "twisted", "executor"])
def test_too_few_descriptors_for_a_process(what: str, run_limited: Any) -> None:
    """It takes several: wherever they end, the call fails, and none of them is left."""
    run_limited(
        f"""
        import gc, gevent.subprocess, multiprocessing, time
        from concurrent.futures import ProcessPoolExecutor
        from twisted.internet.utils import getProcessValue
        spawn = multiprocessing.get_context("spawn")

        def make_executor():
            return ProcessPoolExecutor(1, mp_context=spawn)

        what = {what!r}
        pool = greendefer.GreenPool(1)
        if what == "gevent":
            call = gevent.subprocess.call, [true]
        elif what == "twisted":
            call = greendefer.blocking_from_greenlet(getProcessValue), true
        else:
            pool = greendefer.ExecutorPool(make_executor, 1)
            call = len, ""

        def used():
            gc.collect()
            multiprocessing.active_children()
            found = {{}}
            for each in map(int, os.listdir("/dev/fd")):
                try:
                    is_now = os.fstat(each)
                    found[each] = is_now.st_mode, is_now.st_dev, is_now.st_ino
                except OSError:
                    pass  # the one that has listed them
            return found

        async def nothing_is_left():
            until = time.monotonic() + 60  # processes end when they get to it
            while (now := used()) != before:
                assert time.monotonic() < until, (now, before)
                await greendefer.defer_to_greenlet(gevent.sleep, 0.01)

        async def main():
            global before
            # What is made once, and kept. (No child of gevent's where there is an executor: exits
            # that it has seen are lost to multiprocessing, see docs/limits.md.)
            if what == "executor":
                spawn.Lock()
            else:
                assert await pool.submit(*call) == 0
            await greendefer.defer_to_greenlet(gevent.sleep, 0.1)
            before = used()
            errors = []
            while True:
                hogs = take_all_descriptors(max(before) + 40)
                for _ in range(len(errors)):
                    close(hogs.pop())
                got = await error_of(pool.submit(*call))
                give_back(hogs)
                if not isinstance(got, Exception):
                    break
                if what == "executor":
                    assert type(got) is greendefer.ExecutorFailed, got
                    got = got.__cause__
                errors.append(got.errno)
                got = None  # it has frames, which may have what is about to be forgotten
                if what != "executor":  # whose pipes go when it does
                    await nothing_is_left()
            assert got == 0, got
            assert len(errors) > 1 and set(errors) == {{errno.EMFILE}}, errors
            assert len(multiprocessing.active_children()) == (what == "executor")
            assert await pool.submit(*call) == 0
            await pool.close()
            await nothing_is_left()
        go(main)
        """
    )


@pytest.mark.parametrize("side", ["gevent", "twisted"])
def test_no_memory_for_a_fork(side: str, run_limited: Any) -> None:
    """ENOMEM is raised where the process was asked for, on whichever side."""
    run_limited(
        f"""
        import gevent.subprocess
        from gevent import monkey
        side = {side!r}

        def no_memory(*args, **kwargs):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        def child():
            if side == "gevent":
                return gevent.subprocess.call([true])
            return spawn_by_twisted()

        @greendefer.blocking_from_greenlet
        def spawn_by_twisted():
            from twisted.internet.utils import getProcessValue
            return getProcessValue(true)

        async def main():
            assert await greendefer.defer_to_greenlet(child) == 0
            import gevent.subprocess as subprocess
            from twisted.internet import process  # its os is the native one
            forks = [(subprocess, "fork"), (subprocess, "fork_and_watch"), (process.os, "fork"),
                     (os, "posix_spawnp"), (process.os, "posix_spawnp")]
            forks = [(where, name) for where, name in forks if hasattr(where, name)]
            saved = [getattr(*each) for each in forks]
            for where, name in forks:
                setattr(where, name, no_memory)
            e = await error_of(greendefer.defer_to_greenlet(child))
            for (where, name), f in zip(forks, saved):
                setattr(where, name, f)
            assert isinstance(e, OSError) and e.errno == errno.ENOMEM, e
            results = [greendefer.defer_to_greenlet(child) for _ in range(5)]
            assert await gatherResults(results) == [0] * 5
        go(main)
        """
    )


@HAS_FULL
def test_a_full_disk_under_the_log(run_limited: Any) -> None:
    """/dev/full: warnings and logged errors are lost; results are not."""
    run_limited(
        """
        import sys
        from twisted.logger import globalLogPublisher, textFileLogObserver, globalLogBeginner
        globalLogBeginner.beginLoggingTo(
            [textFileLogObserver(open("/dev/full", "w", buffering=1))], redirectStandardIO=False)

        def swallow():
            try:
                gevent.sleep(3600)
            except BaseException:
                pass
            gevent.sleep(0.01)
            return "late"

        async def main():
            pool = greendefer.GreenPool(3)
            d = pool.submit(swallow)
            await pool.submit(gevent.sleep, 0.001)
            d.addErrback(lambda f: None)
            d.cancel()  # is warned of, into the log
            assert await pool.submit(len, "four") == 4
            e = await error_of(pool.submit(lambda: 1 / 0))
            assert isinstance(e, ZeroDivisionError)
            pool.submit(lambda: 1 / 0)  # "Unhandled error in Deferred", into the log
            await pool.close()
            import gc
            gc.collect()
            stats = pool.stats()
            assert (stats.completed, stats.failed, stats.cancelled) == (2, 2, 1), stats
        go(main)
        """
    )


FULL = """
    import gc, io, logging, sys
    from gevent import monkey
    from greendefer import instrumentation
    from twisted.internet.defer import Deferred
    from twisted.logger import STDLibLogObserver, globalLogBeginner
    from twisted.python import log, logfile

    lost = []
    full = os.open("/dev/full", os.O_WRONLY)

    class Stream(io.FileIO):
        def write(self, data):
            try:
                return super().write(data)
            except OSError as e:
                lost.append(e.errno)
                raise

    def swallow():
        try:
            gevent.sleep(3600)
        except BaseException:
            return "late"

    def fails(*args, **kwargs):
        raise ZeroDivisionError("x" * 10_000)  # more than a buffer keeps

    class BadHook:
        def submitted(self, *args, **kwargs):
            os.write(full, b"a record of its own")

        started = ended = rejected = submitted

    async def use(pool):
        # All that somebody is told of, and nobody waits for.
        killed = pool.submit(swallow)
        await pool.submit(gevent.sleep, 0)
        killed.addErrback(lambda failure: None).cancel()  # is warned of
        inner = Deferred(fails)
        waits = pool.submit(lambda: inner)
        await pool.submit(gevent.sleep, 0)
        waits.addErrback(lambda failure: None).cancel()  # its canceller fails
        pool.submit(fails)  # "Unhandled error in Deferred"
        reactor.callInGreenlet(fails)
        reactor.callLater(0, fails)
        reactor.callFromThread(fails)
        if sink != "logging" or not monkey.is_module_patched("threading"):
            reactor.callInThread(fails)  # (else the handlers' locks are gevent's)
        gevent.spawn(fails)  # gevent writes to stderr
        gevent.get_hub().loop.run_callback(fails)

    async def main():
        stderr = os.dup(2)
        os.dup2(full, 2)
        try:
            instrumentation.set_hooks([instrumentation.LoggingHook(), BadHook()])
            pool, threads = greendefer.GreenPool(3), greendefer.NativeThreadPool(1)
            for n in range(20):
                await use(pool)
                assert await pool.submit(echo, one) == b"x"
                assert await threads.submit(len, "four") == 4
                e = await error_of(pool.submit(print, "said", file=sys.stderr))
                assert e is None if sink == "a log file" else e.errno == errno.ENOSPC
            await pool.close()
            gc.collect()
            stats = pool.stats()
            instrumentation.set_hooks([])
        finally:
            os.dup2(stderr, 2)
        said = "completed" if sink == "a log file" else "failed"
        ends = dict.fromkeys(["completed", "failed", "cancelled"], 0)
        ends.update(completed=60, failed=20, cancelled=40)
        ends[said] += 20
        assert {end: getattr(stats, end) for end in ends} == ends, stats
        assert stats.running == stats.lingering == stats.queued == 0, stats
        assert set(lost) == (set() if sink == "stderr" else {errno.ENOSPC})
"""


@HAS_FULL
@pytest.mark.parametrize("kind", ["native", "asyncio"])
@pytest.mark.parametrize("sink", ["logging", "a log file", "stderr"])
def test_a_full_disk(sink: str, kind: str, run_limited: Any, tmp_path: Path) -> None:
    """What is told is lost, and a call that writes there itself has the error; all others go on,
    and so does the reactor. Standard error is full, too: that is where those go that can't log."""
    run_limited(
        f"sink = {sink!r}\n",
        FULL,
        f"""
        one = gevent.socket.create_connection(("127.0.0.1", port))
        if sink == "logging":
            stream = io.TextIOWrapper(Stream(full, "w", closefd=False), write_through=True)
            logging.basicConfig(stream=stream, level=logging.DEBUG)
            globalLogBeginner.beginLoggingTo([STDLibLogObserver()], redirectStandardIO=False)
        elif sink == "a log file":
            class LogFile(logfile.LogFile):
                def _openFile(self):
                    super()._openFile()
                    self._file.close()
                    self._file = Stream(full, "w", closefd=False)
            log.startLogging(LogFile("log", {str(tmp_path)!r}))
        go(main)
        """,
        kind=kind,
    )


def refuse(*args: Any, **kwargs: Any) -> None:
    """What starts a thread, where the system has none."""
    raise RuntimeError("can't start new thread")


class TestThreadsThatCannotStart:
    @pytest.fixture
    def no_threads(self, monkeypatch: Any) -> None:
        if PATCHED:
            monkeypatch.setattr(native, "_start", refuse)
        else:
            monkeypatch.setattr(threading.Thread, "start", refuse)

    def test_a_call(
        self, in_reactor: Any, result: Any, stats: Any, no_threads: None, monkeypatch: Any
    ) -> None:
        pool = NativeThreadPool(2)
        calls = [result(in_reactor(lambda: [pool.submit(len, "four")])[0]) for _ in range(5)]
        for call in calls:
            error = call.get().value
            assert "no thread could be started" in str(error)
            assert "can't start new thread" in str(error.__cause__)
        assert stats(pool).failed == 5
        assert wait_for_deferred(GreenPool(1).submit(len, "four")) == 4
        monkeypatch.undo()
        assert wait_for_deferred(pool.submit(len, "four")) == 4

    def test_a_worker(self, in_reactor: Any, no_threads: None) -> None:
        async def work() -> None:
            async with NativeThreadPool(1).worker() as w:
                await w.submit(len, "four")

        from twisted.internet.defer import Deferred

        with pytest.raises(Exception, match="no thread could be started"):
            in_reactor(lambda: Deferred.fromCoroutine(work()))

    def test_those_of_a_reactor_that_is_not_green(self, run_program: Any) -> None:
        """The timer's thread, the helper's, and those of calls."""
        run_program(
            """
            import threading
            from gevent import monkey
            from twisted.internet import selectreactor
            selectreactor.install()
            import greendefer
            from greendefer._carriers import native
            from twisted.internet import reactor

            def refuse(*args, **kwargs):
                raise RuntimeError("can't start new thread")

            start, native_start = threading.Thread.start, native._start
            async def main():
                pool = greendefer.GreenPool(2)
                threading.Thread.start, native._start = refuse, refuse
                for timeout in None, 5:
                    try:
                        await greendefer.green_deferred(pool=pool, timeout=timeout)(len)("four")
                    except greendefer.GreendeferError as e:
                        assert "thread could" in str(e), e
                    else:
                        raise AssertionError("it ran")
                threading.Thread.start, native._start = start, native_start
                s = pool.stats()
                assert s.running == s.lingering == s.queued == 0, s
                got = await greendefer.green_deferred(pool=pool, timeout=5)(len)("four")
                assert got == 4
            go(main)
            """
        )


class OwnExecutor(ThreadPoolExecutor):
    """As a program might have it."""

    def submit(self, f: Any, /, *args: Any, **kwargs: Any) -> Any:
        return super().submit(f, *args, **kwargs)


class TestThreadsOfAnExecutor:
    """ThreadPoolExecutor queues a call before it starts a thread for it."""

    @pytest.mark.parametrize("cls", [ThreadPoolExecutor, OwnExecutor])
    def test_a_call_that_is_refused_never_runs(
        self, cls: Any, in_reactor: Any, result: Any, stats: Any, monkeypatch: Any
    ) -> None:
        executor = cls(2)
        pool = ExecutorPool(executor, 2)
        ran: list[int] = []
        monkeypatch.setattr(threading.Thread, "start", refuse)
        for n in range(3):
            error = result(in_reactor(lambda n: [pool.submit(ran.append, n)], n)[0]).get().value
            assert type(error) is ExecutorFailed
            assert "refused it" in str(error)
            assert "can't start new thread" in str(error.__cause__)
        monkeypatch.undo()
        both = threading.Barrier(2)  # they have a thread each: nobody counts those that never were
        meet = [pool.submit(both.wait, 20) for _ in range(2)]
        assert sorted(wait_for_deferred(d, 30) for d in meet) == [0, 1]
        assert ran == []
        s = stats(pool)
        assert (s.failed, s.completed, s.running) == (3, 2, 0)
        executor.shutdown()

    def test_a_call_that_another_thread_has_taken_is_not_refused(self, stats: Any) -> None:
        executor: Any = ThreadPoolExecutor(2)
        pool = ExecutorPool(executor, 2)
        begun, go, taken, refused = (threading.Event() for _ in range(4))
        ran: list[str] = []

        def busy() -> None:
            begun.set()
            go.wait()

        def take(what: str) -> str:
            ran.append(what)
            taken.set()
            refused.wait()
            return what

        def no_thread() -> None:
            go.set()
            taken.wait()
            refused.set()
            raise RuntimeError("can't start new thread")

        first = pool.submit(busy)
        begun.wait()
        executor._adjust_thread_count = no_thread
        assert wait_for_deferred(pool.submit(take, "it"), 20) == "it"
        assert wait_for_deferred(first, 20) is None
        assert ran == ["it"]
        assert stats(pool).completed == 2
        executor.shutdown()

    def test_what_others_have_queued_there_is_not_lost(
        self, in_reactor: Any, result: Any, monkeypatch: Any
    ) -> None:
        executor = ThreadPoolExecutor(2)
        begun, go = threading.Event(), threading.Event()
        executor.submit(lambda: (begun.set(), go.wait()))
        begun.wait()
        monkeypatch.setattr(threading.Thread, "start", refuse)
        ran: list[str] = []
        with pytest.raises(RuntimeError):
            executor.submit(ran.append, "theirs")  # it stays there all the same
        pool = ExecutorPool(executor, 2)
        refused = result(in_reactor(lambda: [pool.submit(ran.append, "ours")])[0]).get()
        assert type(refused.value) is ExecutorFailed
        monkeypatch.undo()
        go.set()
        executor.shutdown()
        assert ran == ["theirs"]


NO_PROCESS = """
    import errno, multiprocessing, os, sys, threading
    import _posixsubprocess
    from concurrent.futures import ProcessPoolExecutor
    from pathlib import Path
    import greendefer
    greendefer.install()
    from twisted.internet import reactor
    from greendefer import ExecutorFailed, ExecutorPool

    os.chdir({folder!r})
    os.mkfifo("held")
    method = {method!r}
    context = multiprocessing.get_context(method)
    starts = [(os, "fork"), (_posixsubprocess, "fork_exec")]
    if method == "forkserver":
        from multiprocessing import forkserver  # which forks in another process
        starts.append((forkserver, "connect_to_new_process"))
    real = [getattr(*start) for start in starts]
    thread_start = threading.Thread.start

    def no_memory(*args):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    def no_more_memory(after=0):
        left = [after]
        def limited(f):
            def start(*args):
                if not left[0]:
                    no_memory()
                left[0] -= 1
                return f(*args)
            return start
        for (where, name), f in zip(starts, real):
            setattr(where, name, limited(f))

    def no_threads(refused):
        def start(thread):
            if refused in (type(thread).__name__, thread.name):
                raise RuntimeError("can't start new thread")
            thread_start(thread)
        threading.Thread.start = start

    def memory_again():
        threading.Thread.start = thread_start
        for (where, name), f in zip(starts, real):
            setattr(where, name, f)

    async def run_held(pool):
        # A call that runs, and what ends it when that is closed.
        call = pool.submit(Path.read_text, Path("held"))
        return call, await greendefer.NativeThreadPool(1).submit(open, "held", "w")

    async def is_refused(pool, why):
        e = await error_of(pool.submit(os.mkdir, "refused"))
        assert type(e) is ExecutorFailed, e
        assert "refused it" in str(e) and why in str(e.__cause__), (e, e.__cause__)

    async def no_process_is_left():
        while multiprocessing.active_children():  # a fork server tells when it gets to it
            await greendefer.defer_to_greenlet(gevent.sleep, 0.01)

    async def all_is_well(pool, workers):
        calls = [pool.submit(os.getpid) for _ in range(5)]
        assert os.getpid() not in [await call for call in calls]
        assert not os.path.exists("refused")
        assert len(multiprocessing.active_children()) <= workers
        s = pool.stats()
        assert s.running == s.lingering == s.queued == 0, s
"""


class TestProcessesOfAnExecutor:
    """ProcessPoolExecutor notes a call before it starts a process for it, and then its threads."""

    @pytest.fixture(params=["spawn", "forkserver", "fork"])
    def run(self, request: Any, run_program: Any, tmp_path: Path) -> Any:
        if PATCHED and request.param == "fork":
            pytest.skip("a fork has the greenlets that its executor's threads are")
        if NO_FORK_SERVER and request.param == "forkserver":
            pytest.skip("there is no fork server")

        def run(source: str) -> None:
            run_program(NO_PROCESS.format(folder=str(tmp_path), method=request.param), source)

        return run

    @pytest.mark.parametrize("mine", [True, False])
    @pytest.mark.parametrize("after", [0, 1, 2])
    def test_no_memory_for_the_first(self, run: Any, mine: bool, after: int) -> None:
        """Nor, with ``fork``, for the last of those that are all started at once."""
        run(
            f"""
            def make():
                return ProcessPoolExecutor(3, mp_context=context)

            async def main():
                executor = make() if {mine} else make
                pool = ExecutorPool(executor, 3)
                no_more_memory({after} if method == "fork" else 0)
                for _ in range(3):
                    await is_refused(pool, "Cannot allocate memory")
                    await no_process_is_left()
                memory_again()
                await all_is_well(pool, 3)
                if {mine}:
                    executor.shutdown()
            go(main)
            """
        )

    @pytest.mark.parametrize("thread", ["_ExecutorManagerThread", "QueueFeederThread"])
    def test_no_thread_that_feeds_them(self, run: Any, thread: str) -> None:
        """The processes that were started for the call are not left, and the program ends. This
        executor is a class of the program's own."""
        run(
            f"""
            class Derived(ProcessPoolExecutor):
                pass

            async def main():
                pool = ExecutorPool(lambda: Derived(2, mp_context=context), 2)
                no_threads({thread!r})
                for _ in range(2):
                    await is_refused(pool, "can't start new thread")
                    await no_process_is_left()
                memory_again()
                await all_is_well(pool, 2)
            go(main)
            """
        )

    def test_no_memory_for_one_more(self, run: Any) -> None:
        """The call that another process runs goes on. (With ``fork``, all are there by then.)"""
        run(
            """
            async def main():
                pool = ExecutorPool(lambda: ProcessPoolExecutor(2, mp_context=context), 2)
                held, end = await run_held(pool)
                no_more_memory()
                if method == "fork":
                    assert await pool.submit(len, "four") == 4
                else:
                    await is_refused(pool, "Cannot allocate memory")
                    await is_refused(pool, "Cannot allocate memory")
                end.close()
                assert await held == ""
                memory_again()
                await all_is_well(pool, 2)
            go(main)
            """
        )

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="max_tasks_per_child came with 3.11")
    def test_no_memory_for_one_in_place_of_another(self, run: Any) -> None:
        """Python's manager of them may end by that; the calls that it had fail, and do not wait."""
        run(
            """
            async def main():
                made = []
                def make():
                    made.append(ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1))
                    return made[-1]
                pool = ExecutorPool(make, 3)
                held, end = await run_held(pool)
                next = pool.submit(os.mkdir, "refused")
                dropped = pool.submit(os.mkdir, "refused")
                dropped.addErrback(lambda failure: None).cancel()
                no_more_memory()
                end.close()
                assert await held == ""
                e = await error_of(next)
                assert type(e) is ExecutorFailed, e
                # Since Python 3.14 its manager may stand that, and have the pool be broken itself.
                by_itself = "A replacement worker process could not be started" in str(e)
                assert not by_itself or sys.version_info >= (3, 14), e
                if not by_itself:
                    assert "its manager has failed" in str(e), e
                    assert "Cannot allocate memory" in str(e), e
                await no_process_is_left()
                memory_again()
                await all_is_well(pool, 1)
                assert len(made) == 2
            if method != "fork":  # where Python refuses it
                go(main)
            """
        )


def test_no_descriptors_left_for_the_hub_of_the_helper_thread(run_program: Any) -> None:
    """Where the reactor is not green: the call that asked for it fails, and the next has one."""
    run_program(
        """
        from gevent import monkey
        monkey.patch_all()
        import errno, os, resource
        from twisted.internet import selectreactor
        selectreactor.install()
        import greendefer
        from twisted.internet import reactor
        from twisted.internet.defer import ensureDeferred

        async def main():
            pool = greendefer.GreenPool(1)
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
            taken = []
            try:
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                pass
            # With none, and with some, of which libev would take the first and end the process.
            for free in range(7):
                try:
                    await pool.submit(len, "four")
                except greendefer.GreendeferError as e:
                    assert e.__cause__.errno == errno.EMFILE, e
                    assert "no such thread could be started" in str(e), e
                else:
                    raise AssertionError("it ran")
                os.close(taken.pop())
            for each in taken:
                os.close(each)
            assert await pool.submit(len, "four") == 4
            return "done"

        got = []
        reactor.callWhenRunning(lambda: ensureDeferred(main()).addBoth(
            lambda r: (got.append(r), reactor.stop())))
        reactor.run()
        assert got == ["done"], got[0].getTraceback()
        """
    )


def test_a_hub_that_is_destroyed(run_program: Any) -> None:
    """By somebody, under us: what waited on it is lost, and says so; the next has a new hub."""
    run_program(
        """
        import gevent, greendefer
        greendefer.install()
        from twisted.internet import reactor
        pool = greendefer.GreenPool(2)
        got = []
        def begin():
            pool.submit(len, "four").addBoth(got.append).addBoth(lambda _: reactor.crash())
        reactor.callWhenRunning(begin)
        reactor.run()
        assert got == [4]
        gevent.get_hub().destroy(destroy_loop=True)
        del got[:]
        reactor.callWhenRunning(begin)
        reactor.run()
        assert got == [4], got
        reactor.callWhenRunning(lambda: pool.submit(gevent.sleep, 3600).addBoth(got.append))
        reactor.callLater(0.05, reactor.stop)
        reactor.run()
        assert got[1].type is greendefer.PoolClosed, got
        """
    )


@pytest.mark.parametrize("kind", ["native", "asyncio"])
def test_a_hub_that_is_destroyed_with_calls_in_flight(kind: str, run_program: Any) -> None:
    """Those that it carried fail, queued ones too; what runs in native threads goes on, and is out
    of time when it should be; slots are free again, and what is garbage by then changes nothing.

    On libev: on libuv gevent waits for ever as it destroys a hub in which greenlets wait.
    """
    run_program(
        """
        import gc, sys
        import gevent, greendefer
        from gevent import monkey
        greendefer.install(sys.argv[1])
        from twisted.internet import reactor
        from twisted.internet.defer import Deferred, DeferredList
        from twisted.python import log
        errors = []
        log.addObserver(lambda event: errors.append(event) if event["isError"] else None)
        pool, threads = greendefer.GreenPool(4), greendefer.NativeThreadPool(3)
        never = monkey.get_original("_thread", "allocate_lock")()
        never.acquire()
        released = monkey.get_original("_thread", "allocate_lock")()
        released.acquire()

        workers = []
        later = Deferred()

        def sleeps():
            workers.append(gevent.getcurrent())
            gevent.sleep(3600)

        @greendefer.blocking_from_greenlet
        def waits_in_thread():
            return later

        def waits():
            greendefer.wait_for_deferred(Deferred())

        def nests():
            greendefer.wait_for_deferred(pool.submit(gevent.sleep, 3600))

        async def on_a_worker():
            async with pool.worker() as w:
                await w.submit(gevent.sleep, 3600)

        async def main():
            timed = greendefer.green_deferred(pool=pool, timeout=3600)
            lost = [
                pool.submit(sleeps),
                pool.submit(waits),
                Deferred.fromCoroutine(on_a_worker()),
                pool.submit(nests),  # and what it waits for runs in its slot
                timed(len)("queued"),
            ]
            cancelled = pool.submit(len, "cancelled")
            cancelled.addErrback(lambda failure: None)
            in_thread = threads.submit(released.acquire)
            in_both = threads.submit(waits_in_thread)
            late = greendefer.green_deferred(pool=threads, timeout=0.5)(never.acquire)()
            while pool.stats().submitted < 7:  # then what `nests`, the last to begin, waits for is
                turn = Deferred()
                reactor.callLater(0.01, turn.callback, None)
                await turn
            assert pool.stats().running == 4, pool.stats()
            cancelled.cancel()
            gevent.get_hub().destroy(destroy_loop=True)
            for ok, failure in await DeferredList(lost, consumeErrors=True):
                assert not ok and failure.type is greendefer.GreendeferError, failure
                assert "was lost: somebody has destroyed gevent's" in str(failure.value), failure
            s = pool.stats()
            # Whoever leaves the block of a worker that is lost, and was not told yet, cancels that.
            assert (s.submitted, s.failed + s.cancelled) == (7, 7), s
            assert s.running == s.lingering == s.queued == 0, s
            released.release()
            assert await in_thread is True
            later.callback("it")
            assert await in_both == "it"
            assert type(await error_of(late)) is greendefer.CallTimeout
            gc.collect()
            (worker,) = workers
            try:
                worker.throw()  # by whoever still has it
            except AttributeError:
                pass  # its hub can't go on when it has ended
            assert worker.dead
            assert await pool.submit(len, "four") == 4
            short = greendefer.green_deferred(pool=pool, timeout=0.01)(gevent.sleep)(3600)
            assert type(await error_of(short)) is greendefer.CallTimeout
            s = pool.stats()
            assert s.submitted == s.failed + s.completed + s.cancelled + s.timed_out == 9, s
            never.release()
            left = pool.submit(gevent.sleep, 3600)  # until the reactor stops
            left.addErrback(lambda failure: ends.append(failure.type))
        ends = []
        go(main)
        assert ends == [greendefer.PoolClosed], ends
        assert not errors, [log.textFromEventDict(event) for event in errors]
        """,
        args=[kind],
        GEVENT_LOOP="libev-cext",
    )


@pytest.mark.parametrize("loop", ["libev-cext", "libuv"])
def test_a_loop_that_is_destroyed_with_an_alarm_and_a_child(
    loop: str, run_program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reactor's watchers have gone with it, and nobody closes them again."""
    monkeypatch.setenv("GEVENT_LOOP", loop)
    run_program(
        """
        import gevent, greendefer, signal
        greendefer.install()
        from twisted.internet import protocol, reactor
        from twisted.internet.defer import Deferred

        class Child(protocol.ProcessProtocol):
            def __init__(self):
                self.ended = Deferred()
            def processEnded(self, reason):
                self.ended.callback(reason.value.signal)

        got = []
        child = Child()
        # Before the reactor runs, and for as long as it is not told to end.
        process = reactor.spawnProcess(child, "/bin/sleep", ["sleep", "3600"])
        reactor.callLater(3600, print)
        reactor.callLater(0.01, reactor.crash)
        reactor.run()
        gevent.get_hub().destroy(destroy_loop=True)
        reactor.callWhenRunning(process.signalProcess, "KILL")
        child.ended.addBoth(got.append).addBoth(lambda _: reactor.crash())
        reactor.run()
        assert got == [signal.SIGKILL], got

        # And while it runs.
        child = Child()
        reactor.spawnProcess(child, "/bin/sleep", ["sleep", "0.1"])
        def destroy():
            gevent.get_hub().destroy(destroy_loop=True)
            child.ended.addBoth(got.append).addBoth(lambda _: reactor.crash())
        reactor.callLater(0.01, destroy)
        reactor.run()
        assert got[1:] == [None], got
        """
    )


@pytest.mark.parametrize("path", [None, "/"])  # with a path it is forked, and not spawned
@pytest.mark.parametrize("kind", ["native", "asyncio"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("loop", ["libev-cext", "libuv"])
def test_a_child_that_ends_as_the_loop_is_destroyed(
    loop: str,
    when: str,
    kind: str,
    path: str | None,
    run_program: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGCHLD came to the loop that has gone, or to nobody; and there are no pipes that would say
    that the child has closed them."""
    monkeypatch.setenv("GEVENT_LOOP", loop)
    run_program(
        """
        import os, sys
        import gevent, greendefer
        kind, when, path = sys.argv[1:]
        greendefer.install(kind)
        from twisted.internet import protocol, reactor

        class Child(protocol.ProcessProtocol):
            def processEnded(self, reason):
                got.append(reason.value.signal)
                reactor.crash()

        def end():
            command = "/bin/sleep", ["sleep", "3600"]
            child = reactor.spawnProcess(Child(), *command, path=path or None, childFDs={})
            child.signalProcess("KILL")
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # the signal has been sent

        def destroy():
            if when == "before":
                end()
            gevent.get_hub().destroy(destroy_loop=True)
            if when == "after":
                end()

        got = []
        reactor.callLater(0, destroy)
        reactor.run()
        reactor.callLater(0, destroy)
        reactor.run()
        assert got == [9, 9], got
        """,
        args=[kind, when, path or ""],
    )


def test_a_hub_that_is_destroyed_in_a_thread(in_reactor: Any) -> None:
    """A native thread's hub goes while something waits for it."""

    def use_and_destroy() -> str:
        gevent.sleep(0.001)
        gevent.get_hub().destroy(destroy_loop=True)
        gevent.sleep(0.001)
        return "done"

    pool = NativeThreadPool(1)
    assert wait_for_deferred(pool.submit(use_and_destroy), 20) == "done"
    assert wait_for_deferred(pool.submit(use_and_destroy), 20) == "done"


@pytest.mark.parametrize("by", [-86400.0, 86400.0])
def test_a_wall_clock_that_jumps(by: float, run_program: Any) -> None:
    """On every carrier, and for what waits: nothing is early, nothing is late."""
    run_program(
        f"""
        import time
        real = time.time
        time.time = lambda: real() + jump
        jump = 0.0
        import gevent, greendefer
        greendefer.install()
        from twisted.internet import reactor
        from twisted.internet.defer import Deferred
        greens, threads = greendefer.GreenPool(5), greendefer.NativeThreadPool(2)

        def wait():
            greendefer.wait_for_deferred(Deferred(), 0.05)

        async def main():
            global jump
            long = greendefer.green_deferred(pool=greens, timeout=3600)(gevent.sleep)(0.2)
            short = greendefer.green_deferred(pool=greens, timeout=0.05)(gevent.sleep)(3600)
            waits = greens.submit(wait)
            # (An Event would make a hub in that thread, with which Python can't end on libuv.)
            held = __import__("gevent.monkey").monkey.get_original("_thread", "allocate_lock")()
            held.acquire()
            native = greendefer.green_deferred(pool=threads, timeout=0.05)(held.acquire)(True, 30)
            grace = greendefer.GreenPool(1)
            grace.submit(gevent.sleep, 3600).addErrback(lambda f: None)
            jump = {by}
            for d in short, waits, native:
                try:
                    await d
                except greendefer.CallTimeout:
                    pass
                else:
                    raise AssertionError("not in time")
            held.release()
            assert await long is None
            await grace.close(grace=0.01)
        go(main)
        """
    )


INSTALL = {
    "native": "greendefer.install()",
    "asyncio": "greendefer.install('asyncio')",
    "stock select": "from twisted.internet import selectreactor; selectreactor.install()",
    "stock asyncio": "from twisted.internet import asyncioreactor; asyncioreactor.install()",
}


@pytest.mark.parametrize("by", [-7200.0, 86400.0])
@pytest.mark.parametrize("kind", INSTALL)
def test_a_wall_clock_that_jumps_under_all_pools(
    kind: str, by: float, run_program: Any, tmp_path: Path
) -> None:
    """Executors and native threads too, and on reactors that are not green: calls made before it
    and after it are out of time when they should be, in the queue and while they run."""
    run_program(
        f"""
        import time
        real, jump = time.time, 0.0
        time.time = lambda: real() + jump
        import greendefer
        {INSTALL[kind]}
        """,
        f"""
        import gevent, multiprocessing, os, threading
        from _queue import SimpleQueue
        from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
        from pathlib import Path
        from greendefer import ExecutorPool, GreenPool, NativeThreadPool, Timeouts, green_deferred
        from twisted.internet.defer import CancelledError

        os.chdir({str(tmp_path)!r})
        os.mkfifo("held")
        held, event = SimpleQueue(), threading.Event()
        executor = ThreadPoolExecutor(2)
        spawn = multiprocessing.get_context("spawn")
        pools = [(NativeThreadPool(2), held.get), (ExecutorPool(executor, 2), event.wait)]
        if {kind.startswith("stock ") and not PATCHED}:
            # In native threads: gevent's hub must not be in use in these as Python ends, on libuv.
            pools.append((GreenPool(2), held.get))
        else:
            pools.append((GreenPool(2), gevent.sleep, 3600))
        if not {MISSES_ENDS}:
            processes = ExecutorPool(lambda: ProcessPoolExecutor(2, mp_context=spawn), 2)
            pools.append((processes, Path.read_text, Path("held")))

        def on(pool, timeout, f, *args):
            return green_deferred(pool=pool, timeout=timeout)(f)(*args)

        async def expires(d):
            assert type(e := await error_of(d)) is greendefer.CallTimeout, e

        async def main():
            global jump
            long, short = [], []
            for pool in pools:
                long.append(on(pool[0], 3600, *pool[1:]))
                short.append(on(pool[0], Timeouts(running=0.05), *pool[1:]))
                short.append(on(pool[0], 0.05, *pool[1:]))
            jump = {by}
            for d in short:
                await expires(d)
            for pool in pools:
                await expires(on(pool[0], 0.05, *pool[1:]))
            for d in long:
                d.cancel()
                assert type(e := await error_of(d)) is CancelledError, e
            for _ in range(20):
                held.put(None)
            event.set()
        go(main)
        executor.shutdown()
        """,
    )


def test_our_clock_is_monotonic() -> None:
    """That of all our modules: none has one that jumps."""
    package = Path(greendefer.__file__).parent
    goes_by_it = []
    for path in package.rglob("*.py"):
        text = path.read_text()
        assert "time.time" not in text, path
        assert "import time" not in text, path
        if "from time import monotonic" in text:
            goes_by_it.append(path.stem)
    assert len(goes_by_it) > 8, goes_by_it
    for module in _bridge, _crossing, _deadlines, _runtime, _holdups, executors, greenlets:
        assert module.monotonic is time.monotonic  # type: ignore[attr-defined]
    assert _runtime.Runtime.now is time.monotonic
