"""Everything that checks greendefer: ``nox`` runs the tests, ``nox -s NAME`` one session."""

import nox

nox.options.sessions = ["tests"]
nox.options.reuse_existing_virtualenvs = True
nox.needs_version = ">=2024.4.15"

PROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, *groups: str) -> None:
    session.install("-e", ".[quickstart]", *nox.project.dependency_groups(PROJECT, *groups))


@nox.session
def tests(session: nox.Session) -> None:
    """The tests, unpatched and then under gevent.monkey.patch_all()."""
    install(session, "test")
    session.run("python", "-m", "pytest", *session.posargs)
    session.run("python", "-m", "gevent.monkey", "--module", "pytest", *session.posargs)


@nox.session
def sdks(session: nox.Session) -> None:
    """The examples with real SDKs on real servers, and the guide."""
    install(session, "sdks")
    tests = ("tests/test_examples.py", "tests/test_guide.py")
    env = {"GREENDEFER_TEST_SDKS": "1"}
    session.run("python", "-m", "pytest", *tests, *session.posargs, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: the rules, and the format."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


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
    for pytest in ("-m", "pytest"), ("-m", "gevent.monkey", "--module", "pytest"):
        session.run("python", *pytest, "tests/reliability", *posargs, env=env)


@nox.session
def audit(session: nox.Session) -> None:
    """Known holes in what is installed with greendefer."""
    session.install("pip-audit")
    requirements = [*PROJECT["project"]["dependencies"]]
    path = session.create_tmp() + "/requirements.txt"
    with open(path, "w") as f:
        f.write("\n".join(requirements))
    session.run("pip-audit", "--strict", "--requirement", path)


def systems_tests(session: nox.Session, *args: str) -> None:
    """Patched, on the native reactor; and what concerns Django on the asyncio one, too."""
    pytest = ("python", "-m", "gevent.monkey", "--module", "pytest")
    session.run(*pytest, *args, *session.posargs)
    asyncio = {"GREENDEFER_TEST_REACTOR": "asyncio"}
    session.run(*pytest, "tests/systems/test_django.py", *session.posargs, env=asyncio)


@nox.session
def systems(session: nox.Session) -> None:
    """Real drivers on real servers: Django on psycopg2, and all others but psycopg 3."""
    install(session, "systems")
    systems_tests(session, "tests/systems")


@nox.session
def systems_psycopg3(session: nox.Session) -> None:
    """Django on psycopg 3, and psycopg 3. (Django takes it wherever it can import it.)"""
    install(session, "systems-psycopg3")
    tests = ("test_django.py", "test_psycopg.py", "test_doctor.py")
    systems_tests(session, *(f"tests/systems/{test}" for test in tests))
