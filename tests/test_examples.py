"""The examples with real SDKs, whole, on real servers: each with 200 calls at once."""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
import sys

import pytest
from programs import EXAMPLES, run_python


def needs(what: str, there: bool) -> None:
    """Skip where something is missing; in `nox -s sdks` that is a failure."""
    if not there:
        message = f"{what} is not installed"
        if os.environ.get("GREENDEFER_TEST_SDKS"):
            pytest.fail(message)
        pytest.skip(message)


def run(name: str, *modules: str) -> str:
    for module in modules:
        needs(module, importlib.util.find_spec(module) is not None)
    done = run_python(EXAMPLES / name)
    assert "Unhandled" not in done.stderr
    return done.stdout


@pytest.mark.skipif("gevent.monkey" in sys.orig_argv, reason="each is patched by itself")
class TestExamples:
    def test_boto3(self) -> None:
        said = run("s3_boto3.py", "boto3", "moto", "flask")
        assert "200 objects put at once, and streamed back at once" in said
        assert "5000 keys in 5 pages" in said
        assert "3 parts of 5242880 bytes" in said
        assert "NoSuchKey" in said

    def test_redis(self) -> None:
        needs("redis-server", shutil.which("redis-server") is not None)
        said = run("redis_pubsub.py", "redis")
        assert "200 commands at once; 200 keys scanned" in said
        assert "200 subscribers heard 20 messages each" in said

    def test_sqlalchemy(self) -> None:
        found = shutil.which("initdb") or glob.glob("/usr/lib/postgresql/*/bin/initdb")
        needs("PostgreSQL", bool(found))
        said = run("sqlalchemy_postgres.py", "sqlalchemy", "psycopg")
        assert "200 transactions of 20 ms at once" in said
        assert "the books balance" in said
        assert "5000 rows streamed" in said
