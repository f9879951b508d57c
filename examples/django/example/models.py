"""Blocking code, as Django's always is; one method returns a Deferred."""

from django.db import models

import greendefer


class ExampleModel(models.Model):
    name = models.CharField(max_length=100)

    @greendefer.green_deferred
    def rename(self, name):
        self.name = name
        self.save()
        return self
