"""What worker processes do: they import it by its name."""

from __future__ import annotations

import os


def set_up(port: int, user: str) -> None:
    """Django in a worker process, with a connection that would stay."""
    import django
    from django.conf import settings

    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": user,
        "HOST": "127.0.0.1",
        "PORT": port,
    }
    settings.configure(DATABASES={"default": database})
    django.setup()


def connected() -> tuple[int, bool, bool]:
    """This process, and whether it was connected before, and is now."""
    from django.db import connection

    before = connection.connection is not None
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return os.getpid(), before, connection.connection is not None
