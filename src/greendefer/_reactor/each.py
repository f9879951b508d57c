"""For pollers that no descriptor stands for: the hub watches each of theirs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .green import GreenReactor


class WatchesEach(GreenReactor):
    """The hub knows those that there were when the wait began. So the wait is begun again
    whenever any greenlet adds one, or takes one away."""

    def __init__(self) -> None:
        super().__init__()
        self.cooperative_wait.watch_each(self._descriptors)

    def _descriptors(self) -> Iterable[tuple[int, int]]:
        """Each descriptor, with READ or WRITE or both."""
        raise NotImplementedError

    def addReader(self, reader: Any) -> None:
        super().addReader(reader)
        self.cooperative_wait.wake_if_parked()

    def addWriter(self, writer: Any) -> None:
        super().addWriter(writer)
        self.cooperative_wait.wake_if_parked()

    def removeReader(self, reader: Any) -> None:
        super().removeReader(reader)
        self.cooperative_wait.wake_if_parked()

    def removeWriter(self, writer: Any) -> None:
        super().removeWriter(writer)
        self.cooperative_wait.wake_if_parked()
