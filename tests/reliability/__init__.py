"""Whatever happens, nothing is lost and nothing is left: see docs/reliability.md."""

import os

LONG = os.environ.get("GREENDEFER_RELIABILITY") == "long"
"""Whether it is the long form: ``nox -s reliability -- --long``."""
