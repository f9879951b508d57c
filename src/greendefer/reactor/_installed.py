"""A reactor that is there already: which one, and who imported it."""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

_IMPORT = re.compile(
    r"\s*(from\s+twisted\.internet\s+import\b.*\breactor\b|import\s+twisted\.internet\.reactor\b)"
)


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
        f"A reactor is installed already, {type(reactor).__module__}."
        f"{type(reactor).__qualname__}; call greendefer.install() before anything imports "
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
    number = next((n for n, line in enumerate(lines, 1) if _IMPORT.match(line)), None)
    return f"{name} ({file}{f', line {number}' if number else ''})"
