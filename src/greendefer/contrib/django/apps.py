"""``"greendefer.contrib.django"`` in ``INSTALLED_APPS``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import connections

from ..._pool import default_pool
from .. import psycopg

if TYPE_CHECKING:
    AppConfig = object  # Django has no types
else:
    from django.apps import AppConfig


class GreendeferConfig(AppConfig):
    """Makes the default pool and the database backends fit for each other."""

    name = "greendefer.contrib.django"
    label = "greendefer"

    def ready(self) -> None:
        from . import closing_connections

        wrappers = {type(connection) for connection in connections.all()}
        if any(wrapper.vendor == "postgresql" for wrapper in wrappers):
            psycopg.install()
        if any("django_db_geventpool" in base.__module__ for w in wrappers for base in w.__mro__):
            from .geventpool import keep_to_maximum

            for wrapper in wrappers:
                keep_to_maximum(wrapper)
        if default_pool.around is None:
            default_pool.around = closing_connections
