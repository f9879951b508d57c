"""How an admitted call runs. Each carrier is one way; the pool does not know which it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..call import Call


class Carrier(Protocol):
    """What a pool asks of whatever runs its calls. All of it in the reactor's thread.

    In return, and in that thread too, the carrier tells the call when it begins (``begin()``) and
    with what it has ended (``end(result)``).
    """

    can_kill: bool
    """Can a running call be ended from outside?"""
    can_nest: bool
    """Can a call run while another one waits for it in the same slot?"""

    def start(self, call: Call) -> None:
        """Have the call run soon, in the order of these requests."""

    def withdraw(self, call: Call) -> bool:
        """Take back a call that was started; ``False`` if it runs already."""

    def kill(self, call: Call) -> None:
        """End a running call, which may take its time or refuse."""
