"""What ``greendefer.doctor`` says of the drivers that are installed."""

from __future__ import annotations

import importlib.util

import pytest
from programs import run_python

DATABASES = '{"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}'
PROGRAMS = {
    "psycopg2": [
        ("", "BLOCKS  psycopg2"),
        (
            "import psycogreen.gevent; psycogreen.gevent.patch_psycopg()",
            "ok      psycopg2",
        ),
        (
            "import greendefer.contrib.psycopg; greendefer.contrib.psycopg.install()",
            "ends killed queries",
        ),
    ],
    "psycopg": [
        ("", "note    psycopg"),
        (
            "import greendefer.contrib.psycopg; greendefer.contrib.psycopg.install()",
            "ok      psycopg",
        ),
    ],
    "requests": [("", "ok      requests")],
    "urllib3": [("", "ok      urllib3")],
    "sqlite3": [("", "note    sqlite3")],
    "pymysql": [("", "ok      PyMySQL")],
    "redis": [("", "ok      redis")],
    "MySQLdb": [("", "note    mysqlclient")],
    "django": [
        ("", "note    Django"),
        (
            "from django.conf import settings\nsettings.configure()",
            'Put "greendefer.contrib.django" into INSTALLED_APPS.',
        ),
        (
            "from django.conf import settings\n"
            'settings.configure(INSTALLED_APPS=["greendefer.contrib.django"], '
            f"DATABASES={DATABASES})",
            "ok      Django",
        ),
        (
            f"from django.conf import settings\nsettings.configure(DATABASES={DATABASES})",
            "note    DATABASES['default']: The driver of django.db.backends.sqlite3",
        ),
    ],
}


@pytest.mark.parametrize(
    ("module", "program", "finding"),
    [(module, *each) for module, programs in PROGRAMS.items() for each in programs],
)
def test_a_driver(module: str, program: str, finding: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    if "psycogreen" in program:
        pytest.importorskip("psycogreen")
    source = "from gevent import monkey; monkey.patch_all()\n" + program
    source += "\nimport greendefer.doctor\nprint(greendefer.doctor.report())"
    done = run_python("-c", source, check=False)
    assert finding in done.stdout, done.stdout + done.stderr


UNPATCHED = {
    "requests": "BLOCKS  requests",
    "urllib3": "BLOCKS  urllib3",
    "redis": "BLOCKS  redis",
    "pymysql": "BLOCKS  PyMySQL",
    "psycopg": "BLOCKS  psycopg ",
    "psycopg2": "BLOCKS  psycopg2",
    "MySQLdb": "note    mysqlclient",
    "sqlite3": "note    sqlite3",
    "subprocess": "BLOCKS  subprocess",
    "socket": "BLOCKS  socket.getaddrinfo",
}


@pytest.mark.parametrize("module", UNPATCHED)
def test_unpatched(module: str, of_this_environment: list[str]) -> None:
    """Each that blocks is followed by what to do about it."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    (n,) = (n for n, line in enumerate(of_this_environment) if line.startswith(UNPATCHED[module]))
    assert of_this_environment[n + 1].startswith("        -> ")


@pytest.fixture(scope="module")
def of_this_environment() -> list[str]:
    """What ``python -m greendefer.doctor`` prints."""
    done = run_python("-m", "greendefer.doctor", check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(not importlib.util.find_spec("psycopg"), reason="psycopg is not installed")
def test_psycopg_that_was_imported_too_early() -> None:
    source = "import psycopg\nfrom gevent import monkey; monkey.patch_all()\n"
    source += "import greendefer.doctor\nprint(greendefer.doctor.report())"
    done = run_python("-W", "ignore", "-c", source, check=False)
    assert "BLOCKS  psycopg " in done.stdout, done.stdout + done.stderr


def test_databases_of_django_whose_drivers_give_way() -> None:
    """There is nothing to say of them: psycopg's, and pymysql in MySQLdb's place."""
    for module in "django", "pymysql":
        pytest.importorskip(module)
    databases = {
        name: {"ENGINE": f"django.db.backends.{name}", "NAME": "one"}
        for name in ("postgresql", "mysql", "sqlite3")
    }
    source = "from gevent import monkey; monkey.patch_all()\n"
    source += "import pymysql; pymysql.install_as_MySQLdb()\n"
    source += "from django.conf import settings\n"
    source += f"settings.configure(DATABASES={databases})\n"
    source += "import greendefer.doctor\nprint(greendefer.doctor.report())"
    done = run_python("-c", source)
    said = [line for line in done.stdout.splitlines() if "DATABASES" in line]
    assert len(said) == 1, done.stdout + done.stderr
    assert "DATABASES['sqlite3']" in said[0]
