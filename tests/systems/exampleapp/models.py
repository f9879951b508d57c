"""The model of the article that greendefer comes from."""

from __future__ import annotations

from typing import Any

from django.db import connections, models

import greendefer


class ExampleModel(models.Model):
    name = models.CharField(max_length=100)

    class Meta:
        app_label = "exampleapp"

    def rename(self, name: str) -> ExampleModel:
        self.name = name
        self.save()
        return self

    renamed = greendefer.green_deferred(rename)

    @greendefer.green_deferred
    def reread(self) -> str:
        self.refresh_from_db()
        return str(self.name)

    @classmethod
    @greendefer.green_deferred
    def count_in(cls, using: str) -> int:
        return cls.objects.using(using).count()


def sql(using: str, statement: str, *args: Any) -> Any:
    """The first column of the first row."""
    with connections[using].cursor() as cursor:
        cursor.execute(statement, args)
        return cursor.fetchone()[0]
