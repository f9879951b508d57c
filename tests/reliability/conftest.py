"""The long form of what has no longer one of its own: each test several times."""

from __future__ import annotations

from typing import Any

import pytest

from . import LONG

TIMES = 10 if LONG else 1
AGAIN = ("ends", "fairness", "resources", "security")


@pytest.fixture
def nth_time(request: Any) -> Any:
    return request.param


def pytest_generate_tests(metafunc: Any) -> None:
    if TIMES > 1 and metafunc.module.__name__.rpartition("test_")[2] in AGAIN:
        metafunc.fixturenames.append("nth_time")
        metafunc.parametrize("nth_time", range(1, TIMES + 1), indirect=True)
