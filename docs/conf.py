"""How the documentation is built: ``nox -s docs``."""

from __future__ import annotations

import importlib
import inspect
import os
from functools import reduce
from pathlib import Path
from typing import Any

import greendefer

REPOSITORY = "https://github.com/greendefer/greendefer"
SOURCE = Path(greendefer.__file__).parent

project = "greendefer"
author = "The greendefer developers"
copyright = "the greendefer developers"
version = release = greendefer.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.linkcode",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# What the overloads of a decorator say to a type checker is nothing to read.
autodoc_typehints = "none"

# Every reference must lead somewhere, but for other projects' names: a build needs no network.
# Where there is one their documentation is linked.
nitpick_ignore_regex = [
    (r"py:.*", r"(twisted|gevent|greenlet|zope|django|concurrent)\..*"),
    (r"py:.*", r"CancelledError|GreenSelector|ImproperlyConfigured"),
    # Python's own.
    (r"py:.*", r"[A-Z]\w*(Error|Exception)|OSError"),
]
if os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "twisted": ("https://docs.twisted.org/en/stable/api", None),
        "gevent": ("https://www.gevent.org", None),
    }

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "greendefer"
html_static_path = ["_static"]
html_css_files = ["greendefer.css"]
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#1a7f37",
        "color-brand-content": "#116329",
    },
    "dark_css_variables": {
        "color-brand-primary": "#4ac26b",
        "color-brand-content": "#6fdd8b",
    },
    "source_repository": f"{REPOSITORY}/",
    "source_branch": "main",
    "source_directory": "docs/",
}


def linkcode_resolve(domain: str, info: dict[str, Any]) -> str | None:
    """Where the source of a name is."""
    try:
        obj = reduce(getattr, info["fullname"].split("."), importlib.import_module(info["module"]))
        path = Path(inspect.getsourcefile(inspect.unwrap(obj)) or "").relative_to(SOURCE)
        lines, first = inspect.getsourcelines(inspect.unwrap(obj))
    except (AttributeError, OSError, TypeError, ValueError):
        return None  # it is data, or somebody else's
    version = "main" if ".dev" in release else f"v{release}"
    file = f"{REPOSITORY}/blob/{version}/src/greendefer/{path.as_posix()}"
    return f"{file}#L{first}-L{first + len(lines) - 1}"
