"""Run a program patched, and on a green reactor::

    python -m greendefer [--reactor KIND] SCRIPT [ARG...]
    python -m greendefer [--reactor KIND] -m MODULE [ARG...]

It calls ``gevent.monkey.patch_all()`` and ``greendefer.install()`` before the first line of the
program runs. So an ordinary Twisted program needs no change: it finds a reactor that is installed.
``KIND`` is that of :func:`greendefer.install`, ``native`` by default.
"""

from __future__ import annotations

import os
import sys

from gevent import monkey

USAGE = """\
usage: python -m greendefer [--reactor KIND] SCRIPT [ARG...]
       python -m greendefer [--reactor KIND] -m MODULE [ARG...]

Patches (gevent.monkey.patch_all()), installs the green reactor, and runs the program.
KIND is native (the default), poll, select or asyncio: see greendefer.install().
`python -m greendefer -m greendefer.doctor` says what would block in a program run so.
"""


def main() -> None:
    """What ``python -m greendefer`` does.

    :raises SystemExit: the command line makes no sense (2), or the program ends so.
    """
    kind = "native"
    args = sys.argv[1:]
    while args and args[0].startswith("-") and args[0] != "-m":
        option, _, value = args.pop(0).partition("=")
        if option in ("-h", "--help"):
            sys.stdout.write(USAGE)
            return
        if option != "--reactor" or not (value or args):
            _refuse(f"unknown option {option}" if option != "--reactor" else "--reactor which?")
        kind = value or args.pop(0)
    as_module = args[:1] == ["-m"]
    if len(args) < 1 + as_module:
        _refuse("which program?")

    monkey.patch_all()
    # Only now, so that what they import is patched.
    import runpy

    from ._patched import kept_natives
    from ._reactor import KINDS, install

    # `python -m greendefer` has imported greendefer, and what that needs, before this module.
    for module, name, native in kept_natives():
        waits, _, original = native.partition(".")
        setattr(module, name, getattr(sys.modules[waits], original))

    if kind not in KINDS:
        _refuse(f"--reactor must be one of {', '.join(KINDS)}, not {kind}")
    install(kind)
    if as_module:
        sys.path[0] = os.getcwd()  # as `python -m` has it
        sys.argv = args[1:]
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        script = args[0]
        if not os.path.exists(script):
            _refuse(f"can't open file {script!r}")
        sys.path[0] = os.path.dirname(os.path.abspath(script))
        sys.argv = args
        runpy.run_path(script, run_name="__main__")


def _refuse(why: str) -> None:
    sys.stderr.write(f"python -m greendefer: {why}\n\n{USAGE}")
    raise SystemExit(2)


if __name__ == "__main__":
    main()
