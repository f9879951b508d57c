"""Views that wait in the database."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.urls import path

from .models import sql


def wait(request: Any) -> HttpResponse:
    """Wait for the lock 1, in the server."""
    sql("default", "SELECT pg_advisory_lock_shared(1) IS NULL")
    sql("default", "SELECT pg_advisory_unlock_shared(1)")
    return HttpResponse("through\n")


def fail(request: Any) -> HttpResponse:
    raise RuntimeError(sql("default", "SELECT 'as ordered'"))


urlpatterns = [path("wait", wait), path("fail", fail)]
