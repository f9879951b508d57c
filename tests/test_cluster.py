"""ExecutorPool on other people's executors: a real cluster of dask.distributed's, and loky."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from programs import PATCHED


@pytest.mark.skipif(PATCHED, reason="a LocalCluster does not start under gevent's patch")
@pytest.mark.parametrize("kind", ["green", "stock"])
def test_on_a_local_cluster(kind: str, run_program: Any) -> None:
    pytest.importorskip("distributed")
    run_program(
        """
        import sys
        if __name__ == "__main__":
            import greendefer
            if sys.argv[1] == "green":
                greendefer.install()

        import greendefer
        sys.path.insert(0, sys.argv[2])
        import anywhere_calls as calls
        import os
        from distributed import Client, LocalCluster
        from twisted.internet.defer import CancelledError, gatherResults
        from twisted.internet.task import react

        async def main(reactor):
            pids = set(await gatherResults([pool.submit(calls.process_id) for _ in range(20)]))
            assert os.getpid() not in pids, pids
            got = await gatherResults([pool.submit(divmod, n, 7) for n in range(50)])
            assert got == [divmod(n, 7) for n in range(50)], got
            assert await calls.decorated_on(pool)(20) == 21
            e = await error_of(pool.submit(calls.raises))
            assert isinstance(e, KeyError) and "from the call" in str(e), e
            e = await error_of(pool.submit(lambda: 1))
            assert isinstance(e, greendefer.GreendeferError) and "can't be sent" in str(e), e
            e = await error_of(pool.submit(calls.dies))
            assert isinstance(e, Exception), e
            assert await pool.submit(len, "four") == 4
            d = pool.submit(len, "")
            d.cancel()
            try:
                await d
            except CancelledError:
                pass
            client.close()
            cluster.close()
            e = await error_of(pool.submit(len, ""))
            assert isinstance(e, greendefer.GreendeferError), e
            s = pool.stats()
            assert s.submitted == s.completed + s.failed + s.cancelled, s

        if __name__ == "__main__":
            cluster = LocalCluster(
                n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
            )
            client = Client(cluster)
            pool = greendefer.ExecutorPool(client.get_executor(), 4, name="cluster")
            react(main)
        """,
        args=[kind, str(Path(__file__).parent)],
    )


@pytest.mark.skipif(PATCHED, reason="its threads are greenlets that wait for its processes")
@pytest.mark.parametrize("kind", ["green", "stock"])
def test_on_loky(kind: str, run_program: Any) -> None:
    """A ProcessPoolExecutor by its name, and not inside."""
    pytest.importorskip("loky")
    run_program(
        """
        import sys
        import greendefer
        if sys.argv[1] == "green":
            greendefer.install()
        sys.path.insert(0, sys.argv[2])
        import anywhere_calls as calls
        import os, time
        from loky import ProcessPoolExecutor
        from twisted.internet.defer import gatherResults
        from twisted.internet.task import react

        async def main(reactor):
            mine = ProcessPoolExecutor(2)
            for executor in mine, lambda: ProcessPoolExecutor(2):
                pool = greendefer.ExecutorPool(executor, 2)
                pids = set(await gatherResults([pool.submit(calls.process_id) for _ in range(9)]))
                assert os.getpid() not in pids, pids
                e = await error_of(pool.submit(calls.raises))
                assert isinstance(e, KeyError) and "from the call" in str(e), e
                e = await error_of(pool.submit(calls.dies))
                assert isinstance(e, greendefer.ExecutorFailed) and "a worker of" in str(e), e
            mine.shutdown()
            assert await pool.submit(len, "four") == 4
            left = pool.submit(time.sleep, 3600)  # which ends with the reactor
            left.addErrback(lambda failure: print(failure.type.__name__))

        react(main)
        """,
        args=[kind, str(Path(__file__).parent)],
    )
