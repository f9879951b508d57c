"""What would block the loop here, in plain words, and what to do about it::

    python -m greendefer.doctor                  # of this environment, unpatched
    python -m greendefer -m greendefer.doctor    # as in a program that is run like this

In a program of your own, once it has patched, installed a reactor and imported what it needs::

    print(greendefer.doctor.report())
"""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Literal

import gevent

from ._errors import shown
from ._patched import WAITS, is_patched, kept_natives

Verdict = Literal["ok", "BLOCKS", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    :ivar what: its name, and its version where it has one.
    :ivar verdict: ``"ok"``; ``"BLOCKS"``: it holds the loop as things are here; ``"note"``: it
        depends on how it is used.
    :ivar says: why.
    :ivar advice: what to change; empty where nothing needs to be.
    """

    what: str
    verdict: Verdict
    says: str
    advice: str = ""


PATCH = (
    "Make `from gevent import monkey; monkey.patch_all()` the first lines of the program, or run "
    "it with `python -m greendefer SCRIPT`."
)
HOST_NAME = "Names of hosts it looks up in C: say hostaddr=, beside host=, if that may take long."
IN_THREADS = "Give its calls to native threads: greendefer.NativeThreadPool."


def examine() -> list[Finding]:
    """Look at this process: what is patched, the reactor, the resolver and the drivers.

    It imports those drivers that have to be asked, if they are installed. It installs nothing.

    :returns: the findings, in the order in which to read them.
    """
    findings = [_patches(), *_imported_too_early(), _reactor(), _threads(), _resolver()]
    findings += [_subprocess(), *_pure_python(), *_in_c(), *_psycopg(), *_django()]
    return findings


def report() -> str:
    """What :func:`examine` has found, as text of some lines."""
    return _report(examine())


def _report(findings: list[Finding]) -> str:
    versions = ", ".join(
        [
            f"greendefer {_version('greendefer')}",
            f"Python {platform.python_version()}",
            f"Twisted {_version('twisted')}",
            f"gevent {_version('gevent')} ({type(gevent.get_hub().loop).__module__})",
        ]
    )
    lines = [versions, ""]
    for finding in findings:
        lines.append(f"{finding.verdict:7} {finding.what}: {finding.says}")
        if finding.advice:
            lines.append(f"        -> {finding.advice}")
    blocking = sum(finding.verdict == "BLOCKS" for finding in findings)
    lines += ["", f"{blocking} of these would block the loop." if blocking else "Nothing blocks."]
    return "\n".join(lines)


def _patches() -> Finding:
    patched = [name for name in WAITS if is_patched(name)]
    missing = [name for name in WAITS if name not in patched]
    if not patched:
        says = "Nothing is patched, so whatever waits in the standard library holds the loop."
        return Finding("monkey.patch_all()", "BLOCKS", says, PATCH)
    if missing:
        says = f"Patched, but not {', '.join(missing)}: waiting there holds the loop."
        return Finding("monkey.patch_all()", "BLOCKS", says, PATCH)
    return Finding("monkey.patch_all()", "ok", "All of the standard library that waits is patched.")


def _imported_too_early() -> Iterator[Finding]:
    kept: dict[str, list[str]] = {}
    for module, _, native in kept_natives():
        kept.setdefault(module.__name__, []).append(native)
    for name, natives in kept.items():
        says = f"It was imported before the patch, and keeps {', '.join(sorted(natives))}."
        yield Finding(f"import {name}", "BLOCKS", says, "Patch before anything imports it.")


def _reactor() -> Finding:
    reactor = sys.modules.get("twisted.internet.reactor")
    install = "Call greendefer.install() before anything imports twisted.internet.reactor."
    if reactor is None:
        return Finding("reactor", "note", "None is installed yet.", install)
    name = f"{type(reactor).__module__}.{type(reactor).__qualname__}"
    if getattr(reactor, "cooperative_wait", None) is None:
        says = f"{name} does not run on gevent's hub: greenlets and it stop each other."
        return Finding("reactor", "BLOCKS", says, install)
    return Finding("reactor", "ok", f"{name} waits in gevent's hub.")


def _threads() -> Finding:
    kind = getattr(sys.modules.get("twisted.internet.reactor"), "threads", "native")
    if kind == "green":
        says = "Greenlets. What computes, or waits in C, in deferToThread() holds the loop."
        return Finding("reactor.getThreadPool()", "note", says)
    says = "Native threads: what runs in deferToThread() can't hold the loop."
    return Finding("reactor.getThreadPool()", "ok", says)


def _resolver() -> Finding:
    resolver = gevent.get_hub().resolver
    name = f"{type(resolver).__module__}.{type(resolver).__qualname__}"
    what = "socket.getaddrinfo"
    if not is_patched("socket"):
        return Finding(
            what, "BLOCKS", "Not patched: it holds the loop until the name is known.", PATCH
        )
    if "blocking" in name:
        says = f"GEVENT_RESOLVER is {name}: it holds the loop until the name is known."
        return Finding(what, "BLOCKS", says, "Set GEVENT_RESOLVER=thread, or ares.")
    if "thread" in name:
        size = gevent.get_hub().threadpool.maxsize
        says = f"{name}: at most {size} names are looked up at once, the others wait."
        return Finding(what, "ok", says, "For more, set GEVENT_RESOLVER=ares.")
    return Finding(what, "ok", f"{name} gives way while it waits.")


def _subprocess() -> Finding:
    if is_patched("subprocess"):
        return Finding("subprocess", "ok", "Patched: waiting for a child gives way.")
    says = "Not patched: run(), wait() and communicate() hold the loop."
    return Finding("subprocess", "BLOCKS", says, f"{PATCH} Or use gevent.subprocess.")


_PURE_PYTHON = {
    "requests": "requests",
    "urllib3": "urllib3",
    "pymysql": "PyMySQL",
    "redis": "redis",
}


def _pure_python() -> Iterator[Finding]:
    for module, package in _PURE_PYTHON.items():
        if _installed(module):
            what = f"{package} {_version(package)}"
            if is_patched("socket"):
                yield Finding(what, "ok", "Pure Python on patched sockets: it gives way.")
            else:
                says = "It is pure Python on the socket module, which is not patched."
                yield Finding(what, "BLOCKS", says, PATCH)


def _in_c() -> Iterator[Finding]:
    never = "It waits in C, where nothing gives way, patched or not."
    if _installed("MySQLdb"):
        advice = f"{IN_THREADS} Or use PyMySQL."
        yield Finding(f"mysqlclient {_version('mysqlclient')}", "note", never, advice)
    if _installed("_sqlite3"):
        says = "It works, and waits for locks, in C: nothing gives way, patched or not."
        yield Finding("sqlite3", "note", says, f"{IN_THREADS} One pool.worker() a connection.")


def _psycopg() -> Iterator[Finding]:
    install = "Call greendefer.contrib.psycopg.install()."
    psycopg2 = _import("psycopg2.extensions")
    if psycopg2 is not None:
        package = "psycopg2" if _version("psycopg2") != "?" else "psycopg2-binary"
        what = f"{package} {_version(package)}"
        callback: Any = psycopg2.get_wait_callback()
        if callback is None:
            says = "It waits in C, because it has no wait callback."
            yield Finding(what, "BLOCKS", says, install)
        elif callback.__module__ == "greendefer.contrib.psycopg":
            says = "Its wait callback gives way, and ends killed queries."
            yield Finding(what, "ok", says, HOST_NAME)
        else:
            says = f"Its wait callback is {callback.__module__}.{callback.__qualname__}. "
            says += "The server may go on with the query of a call that was killed."
            yield Finding(what, "ok", says, install)
    waiting = _import("psycopg.waiting")
    if waiting is not None:
        what = f"psycopg {_version('psycopg')}"
        connection = importlib.import_module("psycopg").Connection
        if not is_patched("select"):
            yield Finding(what, "BLOCKS", "It waits by the select module, not patched.", PATCH)
        elif waiting.wait is getattr(waiting, "wait_c", None):
            says = "It was imported before the patch, and waits in C."
            yield Finding(what, "BLOCKS", says, PATCH)
        elif hasattr(connection.wait, "__wrapped__"):
            yield Finding(what, "ok", "It gives way, and ends killed queries.")
        else:
            says = "It gives way. But a call that is killed leaves its connection half-read."
            yield Finding(what, "note", says, install)


def _django() -> Iterator[Finding]:
    if not _installed("django"):
        return
    what = f"Django {_version('django')}"
    settings: Any = importlib.import_module("django.conf").settings
    if not settings.configured:
        yield Finding(
            what, "note", "Its settings are not loaded here, so its databases are unknown."
        )
        return
    app = "greendefer.contrib.django"
    if any(name.startswith(app) for name in settings.INSTALLED_APPS):
        yield Finding(what, "ok", "Connections go back when a call ends.")
    else:
        says = "A call keeps its database connection for as long as its worker lives."
        yield Finding(what, "note", says, f'Put "{app}" into INSTALLED_APPS.')
    for alias, database in settings.DATABASES.items():
        engine = database.get("ENGINE", "")
        if engine.rpartition(".")[2] in ("sqlite3", "mysql", "spatialite", "oracle"):
            says = f"The driver of {engine} waits in C."
            if "mysql" in engine and "pymysql" in str(vars(sys.modules.get("MySQLdb", sys))):
                continue  # pymysql.install_as_MySQLdb()
            yield Finding(f"DATABASES[{alias!r}]", "note", says, IN_THREADS)


def _installed(module: str) -> bool:
    if module in sys.modules:
        return True
    spec = find_spec(module)
    # Any folder of that name has one, as a namespace package, but no origin.
    return spec is not None and spec.origin is not None


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "?"


def main() -> int:
    """Print the report.

    :returns: 1 if something blocks, 2 if there are arguments, of which it has none, else 0.
    """
    arguments = sys.argv[1:]
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if arguments:
        print(
            f"python -m greendefer.doctor takes no arguments, not {shown(arguments[0])}. It looks "
            "at this environment; for one program, have that print(greendefer.doctor.report()) "
            "after its imports.",
            file=sys.stderr,
        )
        return 2
    findings = examine()
    print(_report(findings))
    return int("BLOCKS" in {finding.verdict for finding in findings})


if __name__ == "__main__":
    sys.exit(main())
