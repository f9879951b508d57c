"""One side of a benchmark, in this process: see ``harness.Side``.

Reads a line, runs a round, writes what it has measured as a line of JSON; until there are no more.
"""

import json
import sys

task = json.loads(sys.argv[1])

if task["patched"]:
    from gevent import monkey

    monkey.patch_all()

loop = task["loop"]
if loop == "green":
    import greendefer

    greendefer.install()
elif loop == "green-asyncio":
    import greendefer

    greendefer.install("asyncio")
elif loop == "epoll":
    from twisted.internet import epollreactor

    epollreactor.install()
elif loop == "poll":
    from twisted.internet import pollreactor

    pollreactor.install()
elif loop == "stock-asyncio":
    import asyncio

    from twisted.internet import asyncioreactor

    asyncioreactor.install(asyncio.new_event_loop())

import gc
import importlib.util
import os
from collections.abc import Iterator
from time import process_time
from typing import Any


def asked() -> Iterator[None]:
    """Once for each time that a round is wanted. Until then the whole process stands still: a
    loop that it runs, too."""
    while os.read(0, 1):
        gc.collect()
        yield


def cpu(began: float) -> dict[str, float]:
    """What a round has used, of all processors together."""
    return {"cpu": process_time() - began}


def tell(what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def rounds() -> None:
    round = side(**task["options"])
    tell("ready")
    for _ in asked():
        began = process_time()
        costs = await round()
        tell({**cpu(began), **costs})


def run_in_reactor() -> None:
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    failures: list[Failure] = []

    def start() -> None:
        d = Deferred.fromCoroutine(rounds()).addErrback(failures.append)
        d.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(start)
    reactor.run()
    if failures:
        raise SystemExit(failures[0].getTraceback())


spec = importlib.util.spec_from_file_location("benchmark", task["script"])
assert spec is not None
assert spec.loader is not None
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
side = getattr(module, task["function"])

if loop is None:
    round = side(**task["options"])
    tell("ready")
    for _ in asked():
        began = process_time()
        costs = round()
        tell({**cpu(began), **costs})
elif loop == "asyncio":
    import asyncio

    asyncio.run(rounds())
else:
    run_in_reactor()
