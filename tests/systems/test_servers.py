"""The private servers of these tests: what happens where one can't be started."""

from __future__ import annotations

import pytest
from servers import Server


class Missing(Server):
    package = "no-such-package"
    programs = ("no-such-program",)


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)]
)
def test_a_server_that_is_not_installed(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tests are skipped, and say what to install; in CI they fail."""
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no-such-program is not there: apt-get install no-such"):
        Missing()
