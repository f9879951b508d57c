"""The reactor that is installed: which one it is, whose thread this is, and who imported it."""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from gevent import hub as gevent_hub

from .._errors import GreendeferError
from .wait import get_thread_ident

if TYPE_CHECKING:
    from .wait import CooperativeWait

_MAIN_THREAD: int = gevent_hub.MAIN_THREAD_IDENT  # type: ignore[attr-defined]  # not in its stubs

_IMPORT = (
    r"\s*(from\s+twisted\.internet\s+import\b.*\breactor\b|import\s+twisted\.internet\.reactor\b)"
)


def installed_reactor() -> Any:
    """The reactor, if there is one. Looking must never install Twisted's default one.

    :raises GreendeferError: no reactor is installed.
    """
    reactor = sys.modules.get("twisted.internet.reactor")
    if reactor is None:
        raise GreendeferError(
            "No reactor is installed, and greendefer never installs Twisted's default one for "
            "you. Call greendefer.install() at the top of the program, before anything imports "
            "twisted.internet.reactor."
        )
    return reactor


def is_reactor_thread(reactor: Any) -> bool:
    """Is the calling thread the one that runs, or will run, the reactor?

    Where Twisted itself was imported patched, its threads are greenlets: for a reactor that is
    not ours, the answer is then ``True`` in the greenlet that runs it, and in no other.
    """
    wait: CooperativeWait | None = getattr(reactor, "cooperative_wait", None)
    if wait is not None:
        return wait.is_this_thread()
    from twisted.python import threadable  # which every reactor has imported

    if threadable.ioThread is None:  # it does not run yet
        return bool(get_thread_ident() == _MAIN_THREAD)
    return bool(threadable.isInIOThread())


def name_of(reactor: Any) -> str:
    return f"{type(reactor).__module__}.{type(reactor).__qualname__}"


def has_stopped(reactor: Any) -> bool:
    """Has a reactor stopped for good? What it is asked to call will never be called then."""
    return bool(getattr(reactor, "_startedBefore", False)) and not reactor.running


def refuse_if_installed() -> None:
    """
    :raises twisted.internet.error.ReactorAlreadyInstalledError: a reactor is installed. It says
        which, and which modules have imported it.
    """
    reactor = sys.modules.get("twisted.internet.reactor")
    if reactor is None:
        return
    from twisted.internet.error import ReactorAlreadyInstalledError

    if hasattr(reactor, "cooperative_wait"):
        raise ReactorAlreadyInstalledError(
            f"greendefer's own reactor is installed already, {type(reactor).__qualname__}: by an "
            "earlier install(), or by `python -m greendefer` or `--reactor=gevent`, which do it "
            "for the program. Leave this install() out."
        )
    importers = [*_modules_with(reactor), *_frames_with(reactor, sys._getframe(1))]
    raise ReactorAlreadyInstalledError(
        f"A reactor is installed already, {name_of(reactor)}; call greendefer.install() before "
        "anything imports "
        "twisted.internet.reactor. "
        + (
            f"It was imported by {'; '.join(dict.fromkeys(importers))}."
            if importers
            else "No module that is loaded has it as a global name, so it was installed, or "
            "imported in a function: python -v shows where."
        )
    )


def _modules_with(reactor: Any) -> Iterator[str]:
    """Modules that have it as a global name, in the order in which they were imported."""
    for name, module in list(sys.modules.items()):
        names = getattr(module, "__dict__", None)
        # Not the reactor itself, and not the package that it is an attribute of.
        if module is reactor or name == "twisted.internet" or not isinstance(names, dict):
            continue
        if any(value is reactor for value in list(names.values())):
            yield _where(name, getattr(module, "__file__", None))


def _frames_with(reactor: Any, frame: FrameType | None) -> Iterator[str]:
    """Functions that run now, and have it as a local name."""
    while frame is not None:
        if frame.f_locals is not frame.f_globals and any(
            value is reactor for value in frame.f_locals.values()
        ):
            yield _where(f"{frame.f_code.co_name}()", frame.f_code.co_filename)
        frame = frame.f_back


def _where(name: str, file: str | None) -> str:
    if file is None:
        return name
    lines = linecache.getlines(file)
    number = next((n for n, line in enumerate(lines, 1) if re.match(_IMPORT, line)), None)
    return f"{name} ({file}{f', line {number}' if number else ''})"
