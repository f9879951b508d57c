"""What a green reactor provides besides Twisted's own interfaces."""

from zope.interface import Interface


class IReactorGreenlets(Interface):
    """A reactor that runs functions in greenlets of its thread (a historical interface)."""

    def deferToGreenlet(f, *args, **kwargs):
        """Run `f` in a greenlet. Returns a Deferred, which fires in the reactor's greenlet."""

    def callInGreenlet(f, *args, **kwargs):
        """Run `f` in a greenlet, and log its exception, if it raises one. Returns ``None``."""

    def callFromGreenlet(f, *args, **kwargs):
        """Run `f` in the reactor's greenlet, soon. Returns ``None``."""

    def getGreenletPool():
        """The :class:`greendefer.GreenPool` of these greenlets."""

    def suggestGreenletPoolSize(size):
        """Let `size` of them run at once."""
