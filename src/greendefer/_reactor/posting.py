"""Asking once for all that there is to do, whoever adds to it."""

from __future__ import annotations


class PostsOnce:
    """Has its reactor called, by :meth:`_post`, which then does all that there is. Who adds more
    asks ``if not self._posted``; what is called clears that first."""

    _posted: bool = False

    def _post_once(self) -> None:
        self._posted = True
        try:
            self._post()
        except BaseException:  # Ctrl-C, in the main greenlet: perhaps before it was done
            self._post()
            raise

    def _post(self) -> None:
        raise NotImplementedError
