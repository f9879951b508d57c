"""What a green reactor provides besides Twisted's own interfaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from .._pool import GreenPool

    # zope.interface has no types, and an interface's methods have no self.
    class Interface: ...
else:
    from zope.interface import Interface


class IReactorGreenlets(Interface):
    """A reactor that runs functions in greenlets of its thread (a historical interface)."""

    def deferToGreenlet(f: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Run `f` in a greenlet. Returns a Deferred, which fires in the reactor's greenlet."""

    def callInGreenlet(f: Any, *args: Any, **kwargs: Any) -> None:
        """Run `f` in a greenlet, and log its exception, if it raises one. Returns ``None``."""

    def callFromGreenlet(f: Any, *args: Any, **kwargs: Any) -> None:
        """Run `f` in the reactor's greenlet, soon. Returns ``None``."""

    def getGreenletPool() -> GreenPool:
        """The :class:`greendefer.GreenPool` of these greenlets."""

    def suggestGreenletPoolSize(size: int) -> None:
        """Let `size` of them run at once."""
