"""The settings of run.py: django-db-geventpool with 20 connections, and greendefer's hook."""

import os

DATABASES = {
    "default": {
        "ENGINE": "django_db_geventpool.backends.postgresql_psycopg2",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": "127.0.0.1",
        "PORT": os.environ["EXAMPLE_PORT"],
        "CONN_MAX_AGE": 0,
        "OPTIONS": {"MAX_CONNS": 20},
    }
}
INSTALLED_APPS = ["greendefer.contrib.django", "example"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
