"""Each example runs, and ends by itself."""

from __future__ import annotations

import pytest
from programs import EXAMPLES, run_python
from servers import PostgreSQL

from .conftest import needs


def run(example: str) -> str:
    return run_python("-W", "ignore", EXAMPLES / example).stdout


@pytest.fixture
def psycopg2() -> None:
    pytest.importorskip("psycopg2")


def test_django(django: object, psycopg2: None, postgresql: PostgreSQL) -> None:
    """(The server of these tests is not used: it tells whether there can be one.)"""
    out = run("django/run.py")
    assert "in the table: ['second']" in out
    assert "500 queries of 100 ms; never more than 20 connections" in out


def test_flask() -> None:
    needs("flask")
    assert "300 requests of 0.5 s each" in run("flask_wsgi.py")


def test_scrapy() -> None:
    needs("scrapy")
    assert "31 items stored" in run("scrapy_pipeline.py")
