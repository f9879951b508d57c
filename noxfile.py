"""Everything that checks greendefer: ``nox`` runs the tests, ``nox -s NAME`` one session."""

import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True  # rather than skip what was asked for
nox.needs_version = ">=2024.4.15"

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15"]
YOUNG = ["3.14", "3.15"]  # younger than the lowest gevent and wrapt, which can't be built there
ON_PSYCOPG3 = [
    f"tests/systems/test_{name}.py"
    for name in ("django", "django_native", "doctor", "psycopg", "wsgi")
]
BOTH_WAYS = ("-m", "pytest"), ("-m", "gevent.monkey", "--module", "pytest")
# These have bounds in time and memory, for programs that nobody traces, stops or slows down.
BOUNDED = [f"--ignore=tests/reliability/test_{name}.py" for name in ("chaos", "fairness")]
LOOPS = {"libev": "libev-cext", "libuv": "libuv"}  # as GEVENT_LOOP has them


def install(session: nox.Session, *groups: str, args: Sequence[str] = ()) -> None:
    groups = nox.project.dependency_groups(PROJECT, *groups)
    session.install("-e", ".[quickstart]", *groups, *args)


@nox.session
def tests(session: nox.Session) -> None:
    """The tests, unpatched and then under gevent.monkey.patch_all()."""
    install(session, "test")
    for pytest in BOTH_WAYS:
        session.run("python", *pytest, *session.posargs)


@nox.session
@nox.parametrize("loop", [nox.param(loop, id=loop) for loop in LOOPS])
@nox.parametrize(
    "python, dependencies",
    [
        nox.param(python, each, id=f"{python}, {each}")
        for python in PYTHONS
        for each in ("lowest", "newest")
        if each == "newest" or python not in YOUNG
    ],
)
def versions(session: nox.Session, dependencies: str, loop: str) -> None:
    """The tests on each Python, the lowest and newest of what we need, and both loops of gevent.

    All of them: ``nox -s versions``; one: ``nox -s "versions(3.12, lowest, libuv)"``.
    """
    install(session, "test", args=needed(dependencies))
    session.run("python", "-m", "pip", "list")
    env = {"GEVENT_LOOP": LOOPS[loop]}
    for pytest in BOTH_WAYS:
        session.run("python", *pytest, *session.posargs, env=env)


def needed(which: str) -> list[str]:
    """For pip: what greendefer depends on, at its lower bounds or as new as can be."""
    dependencies = PROJECT["project"]["dependencies"]
    if which == "newest":
        return ["--upgrade", *(each.partition(">=")[0] for each in dependencies)]
    return [each.replace(">=", "==") for each in dependencies]


# Until 3.12 a tracer is not told when something is thrown into a coroutine. And what is installed
# on the way must not be there at its start.
@nox.session(python="3.13", reuse_venv=False)
def coverage(session: nox.Session) -> None:
    """How much of src/ the tests run, by lines and branches: below 100 %, this fails.

    The tests and the systems tests, unpatched and patched. See [tool.coverage] in pyproject.toml
    for what is left out, and why.
    """
    install(session, "test", "coverage")
    # The plugin that [tool.coverage] names; also for the programs that tests run.
    session.env["PYTHONPATH"] = str(Path("tests/measuring").resolve())
    session.run("coverage", "erase")
    measured = ("coverage", "run", "-m")
    patched = (*measured, "gevent.monkey", "--module")
    # This one interrupts a loop that does nothing else, which is then the tracer's.
    bounded = [*BOUNDED, "--deselect=tests/test_programs.py::TestInterrupt::"]
    # This one counts on what nobody has being gone at once, and a tracer keeps it for longer.
    bounded.append("--deselect=tests/test_testing.py::TestInlineIterators::test_half_of_it")
    # Dask's workers, traced, take so long to come back that it gives up on a call.
    bounded.append("--deselect=tests/test_cluster.py::test_on_a_local_cluster")
    bounded.append("--override-ini=faulthandler_timeout=900")
    session.run(*measured, "pytest", *bounded, *session.posargs)
    session.run(*patched, "pytest", *bounded, *session.posargs)
    install(session, "systems", "coverage")
    session.run(*measured, "pytest", "tests/systems", *session.posargs)
    session.run(*patched, "pytest", "tests/systems", *session.posargs)
    # Django takes psycopg 3 wherever it can import it, so psycopg2 had its turn first.
    install(session, "systems-psycopg3", "coverage")
    session.run(*patched, "pytest", *ON_PSYCOPG3, *session.posargs)
    session.run("coverage", "combine", "-q")
    session.run("coverage", "html", "-q", "--fail-under=0")
    session.run("coverage", "report")


@nox.session
def sdks(session: nox.Session) -> None:
    """The examples with real SDKs on real servers, and the guide."""
    install(session, "sdks")
    tests = ("tests/test_examples.py", "tests/test_docs.py")
    env = {"GREENDEFER_TEST_SDKS": "1"}
    session.run("python", "-m", "pytest", *tests, *session.posargs, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: the rules, and the format; and whether GitHub can read its workflows."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    workflows = map(str, Path(".github/workflows").glob("*.yml"))
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)


@nox.session
def types(session: nox.Session) -> None:
    """What type checkers see: mypy --strict on src/, and both on right and wrong uses."""
    # Not editable: pyright looks for the types of an installed package.
    session.install(".", *nox.project.dependency_groups(PROJECT, "types"))
    session.run("mypy", "--strict")
    session.run("pyright")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "greendefer")


@nox.session
def conformance(session: nox.Session) -> None:
    """Twisted's own tests on our reactor, compared with the stock one."""
    install(session, "conformance")
    session.run("python", "tests/conformance/compare.py", *session.posargs)


@nox.session
def reliability(session: nox.Session) -> None:
    """tests/reliability: ends, the model, chaos, resources. With ``-- --long``: 1,000,000 calls."""
    install(session, "test")
    posargs = [arg for arg in session.posargs if arg != "--long"]
    env = {"GREENDEFER_RELIABILITY": "long"} if "--long" in session.posargs else {}
    # Chaos in its long form reports figures, for docs/reliability.md.
    if env:
        session.run("python", "tests/reliability/chaos.py", "1000000")
        session.run("python", "tests/reliability/chaos.py", "1000000", "patched")
        posargs += ["-o", "faulthandler_timeout=7200"]
    for pytest in BOTH_WAYS:
        session.run("python", *pytest, "tests/reliability", *posargs, env=env)


@nox.session
def jitter(session: nox.Session) -> None:
    """The tests, while their processes are stopped and continued at random, as busy machines do."""
    install(session, "test")
    # This one counts how often it is woken, which is here all the time.
    args = [*BOUNDED, "--deselect=tests/test_lifecycle.py::test_an_idle_reactor_sleeps"]
    for pytest in BOTH_WAYS:
        session.run("python", "tests/reliability/jitter.py", *pytest, *args, *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Known holes in what is installed with greendefer, extras included."""
    session.install("pip-audit")
    project = PROJECT["project"]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    path = session.create_tmp() + "/requirements.txt"
    with open(path, "w") as f:
        f.write("\n".join(dict.fromkeys([*project["dependencies"], *extras])))
    session.run("pip-audit", "--strict", "--requirement", path)


def systems_tests(session: nox.Session, *tests: str) -> None:
    """Patched, on the native reactor and on the asyncio one."""
    pytest = ("python", "-m", "gevent.monkey", "--module", "pytest")
    session.run(*pytest, *tests, *session.posargs)
    # Not again those that only run programs, which install a reactor of their own.
    names = ("doctor", "examples", "scrapy")
    programs = [f"--deselect=tests/systems/test_{name}.py" for name in names]
    asyncio = {"GREENDEFER_TEST_REACTOR": "asyncio"}
    session.run(*pytest, *tests, *programs, *session.posargs, env=asyncio)


@nox.session
def systems(session: nox.Session) -> None:
    """Real drivers on real servers: Django on psycopg2, and all others but psycopg 3."""
    install(session, "systems")
    systems_tests(session, "tests/systems")
    # And what waits in C, unpatched.
    session.run("python", "-m", "pytest", "tests/systems", *session.posargs)


@nox.session
def systems_psycopg3(session: nox.Session) -> None:
    """Django on psycopg 3, and psycopg 3. (Django takes it wherever it can import it.)"""
    install(session, "systems-psycopg3")
    systems_tests(session, *ON_PSYCOPG3)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure, and write docs/benchmarks.md; `-- --small` only sees whether that works."""
    install(session, "benchmarks")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def benchmarks_small(session: nox.Session) -> None:
    """All benchmarks, as small as they go: they still work. No time is asserted."""
    install(session, "benchmarks")
    session.run("python", "-m", "benchmarks", "--small", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation: built with warnings as errors, its links checked, its code run."""
    install(session, "docs")
    site = "docs/_build/html"
    session.run("sphinx-build", "-W", "-n", "--keep-going", "-E", "-q", "docs", site)
    tests = ("tests/test_site.py", "tests/test_docs.py", "tests/test_howto.py")
    env = {"GREENDEFER_TEST_DOCS": "1", "GREENDEFER_SITE": site}
    session.run("python", "-m", "pytest", *tests, *session.posargs, env=env)


@nox.session
def package(session: nox.Session) -> None:
    """Wheel and sdist: built, checked, and tested as whoever installs them has them."""
    session.install(*nox.project.dependency_groups(PROJECT, "package"))
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", "--quiet")
    (sdist,) = Path("dist").glob("*.tar.gz")
    (wheel,) = Path("dist").glob("*.whl")
    session.run("twine", "check", "--strict", str(wheel), str(sdist))
    session.run("check-wheel-contents", str(wheel))
    # Of 10: the authors have no address for mail.
    session.run("pyroma", "--min=8", str(sdist))

    # An environment with nothing but the wheel and what tests need; and the tests of the sdist,
    # without its source.
    place = Path(session.create_tmp()).resolve()
    shutil.rmtree(place, ignore_errors=True)
    session.run("python", "-m", "venv", str(place / "venv"))
    python = str(place / "venv" / "bin" / "python")
    test = nox.project.dependency_groups(PROJECT, "test")
    session.run(python, "-m", "pip", "install", "-q", f"{wheel}[quickstart]", *test, external=True)
    shutil.unpack_archive(sdist, place)  # our own: it needs no filter, which Debian's 3.11 lacks
    (source,) = place.glob("greendefer-*")
    shutil.rmtree(source / "src")
    with session.chdir(source):
        # What could be amiss in a wheel: modules, plugins, programs. `-- tests` runs all.
        names = ("decorators", "installed", "main", "pool", "programs", "variants")
        some = session.posargs or [f"tests/test_{name}.py" for name in names]
        session.run(python, "-m", "pytest", "-q", *some, external=True)
        tests = ("tests/test_installed.py",)
        env = {"GREENDEFER_TEST_READ_ONLY": "1"}
        may_write(place / "venv", False)
        try:
            session.run(python, "-B", "-m", "pytest", "-q", *tests, env=env, external=True)
        finally:
            may_write(place / "venv", True)


def may_write(folder: Path, allowed: bool) -> None:
    """Take everybody's right to write away, for all that is in there; or give its owner's back."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
            path.chmod(mode | stat.S_IWUSR if allowed else mode)
