"""Run some of Twisted's own tests on one reactor, and write down how each one ended.

    python suite.py KIND [--stock] [--patched] --out FILE [TEST ...]

The reactor is both the one that trial itself runs on and the one that every ReactorBuilder test
builds. ``--patched`` calls ``gevent.monkey.patch_all()`` before anything else.
"""

from __future__ import annotations

import sys

if "--patched" in sys.argv:
    from gevent import monkey

    monkey.patch_all(os="--native-os" not in sys.argv)

import argparse
import importlib
import json
import os
import re
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import gevent
import greenlet
from gevent import get_hub, monkey

SECONDS_EACH = 30.0
TESTS = re.compile(r"twisted\..*\btest\b")
LIMIT = partial(signal.setitimer, signal.ITIMER_REAL)

# Ours, the stock one of the same kind, and its module.
REACTORS = {
    "native": (
        "greendefer._reactor.epoll.GreenEPollReactor",
        "twisted.internet.epollreactor.EPollReactor",
    ),
    "poll": (
        "greendefer._reactor.poll.GreenPollReactor",
        "twisted.internet.pollreactor.PollReactor",
    ),
    "select": (
        "greendefer._reactor.select.GreenSelectReactor",
        "twisted.internet.selectreactor.SelectReactor",
    ),
    "asyncio": (
        "greendefer.geventasyncioreactor.GeventAsyncioReactor",
        "twisted.internet.asyncioreactor.AsyncioSelectorReactor",
    ),
}


def known(what: str, variant: str) -> dict[str, list[str]]:
    """What known.txt lists as `what` for a variant of ours: each test, and the rest of its line."""
    lines = Path(__file__).with_name("known.txt").read_text().splitlines()
    entries = (line.split(None, 4) for line in lines if line and not line.startswith("#"))
    return {
        test: rest
        for listed, variants, test, *rest in entries
        if listed == what and variant in variants.split(",")
    }


def give_up(signum: int, frame: object) -> None:
    """A test that hangs is one that fails, also where it hangs in the hub."""
    main = get_hub().parent
    error = TimeoutError(f"nothing happened for {SECONDS_EACH} s")
    if greenlet.getcurrent() is main:
        raise error
    get_hub().loop.run_callback(main.throw, error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=REACTORS)
    parser.add_argument("--stock", action="store_true", help="Twisted's own reactor of that kind")
    parser.add_argument("--patched", action="store_true")
    parser.add_argument(
        "--native-tests",
        action="store_true",
        help="what the tests themselves have imported is not patched",
    )
    parser.add_argument("--native-os", action="store_true", help="all but the os module is patched")
    parser.add_argument("--out", required=True)
    parser.add_argument("tests", nargs="*", default=["twisted"])
    options = parser.parse_intermixed_args()

    reactor = REACTORS[options.kind][options.stock]
    module, _, built = reactor.rpartition(".")
    importlib.import_module(module).install()

    from twisted.internet.test.reactormixins import ReactorBuilder
    from twisted.python.reflect import namedAny
    from twisted.trial import reporter, runner

    ReactorBuilder._reactors = [reactor]
    if not options.stock:
        variant = options.kind + "+patched" * options.patched
        for test, reason in known("skip", variant).items():
            namedAny(test).skip = " ".join(reason)
        for thing in known("drop", variant):
            module, _, name = thing.rpartition(".")
            delattr(namedAny(module), name)
    if os.getuid() == 0:
        # As root it succeeds, and the machine has a /dev/null that only root can write to.
        namedAny("twisted.test.test_logfile.LogFileTests.test_cantChangeFileMode").skip = "as root"
    outcomes: dict[str, str] = {}

    class Recorder(reporter.Reporter):
        """Writes down the outcome of each test; the worst one, where there are several."""

        def startTest(self, test):
            print(test.id(), file=self._stream, flush=True)
            LIMIT(SECONDS_EACH)
            super().startTest(test)

        def stopTest(self, test):
            LIMIT(0)
            super().stopTest(test)
            if options.patched:
                gevent.sleep(1e-6)  # what the test has closed through gevent is closed after this

        def _record(self, test, outcome, detail=""):
            name = test.id().replace(f"_{built}Tests.", "_ReactorTests.")
            if outcomes.get(name, ("passed",))[0] in ("passed", "skipped"):
                outcomes[name] = (outcome, detail)

        def addSuccess(self, test):
            self._record(test, "passed")
            super().addSuccess(test)

        def addError(self, test, error):
            self._record(test, "failed", str(error))
            super().addError(test, error)

        def addFailure(self, test, failure):
            self._record(test, "failed", str(failure))
            super().addFailure(test, failure)

        def addSkip(self, test, reason):
            self._record(test, "skipped", str(reason))
            super().addSkip(test, reason)

        def addExpectedFailure(self, test, failure, todo=None):
            self._record(test, "passed")
            super().addExpectedFailure(test, failure, todo)

        def addUnexpectedSuccess(self, test, todo=None):
            self._record(test, "passed")
            super().addUnexpectedSuccess(test, todo)

    monkey.get_original("signal", "signal")(signal.SIGALRM, give_up)
    loader = runner.TestLoader()
    suite = loader.loadByNames(options.tests, recurse=True)
    if options.native_tests:
        from greendefer._reactor.unpatched import give_back

        give_back(name for name in list(sys.modules) if TESTS.match(name))
    with open(options.out + ".log", "w") as log:
        trial = runner.TrialRunner(
            lambda stream, *args: Recorder(log, *args),
            workingDirectory=options.out + ".trial",
        )
        trial.run(suite)
    with open(options.out, "w") as out:
        json.dump(outcomes, out, indent=1, sort_keys=True)
    print(reactor, dict(Counter(outcome for outcome, _ in outcomes.values())))


if __name__ == "__main__":
    main()
