"""Where PostgreSQL is, libpq reads from PGHOST, PGPORT, PGUSER and PGPASSWORD."""

import os

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ.get("PGDATABASE", "postgres"),
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {"pool": {"min_size": 2, "max_size": 20, "timeout": 3}},
    }
}
INSTALLED_APPS = ["greendefer.contrib.django", "notes"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
