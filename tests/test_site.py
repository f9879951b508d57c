"""The built documentation: every link leads somewhere, every public name is there."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import greendefer

SITE = Path(os.environ.get("GREENDEFER_SITE", "nowhere")).resolve()

pytestmark = pytest.mark.skipif(
    "GREENDEFER_SITE" not in os.environ, reason="nox -s docs builds the site"
)


class Links(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.figures = 0
        self.titles = 0
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.anchors.add(given["id"] or "")
        if tag in ("a", "link") and given.get("href"):
            self.links.append(given["href"] or "")
        if tag in ("img", "script") and given.get("src"):
            self.links.append(given["src"] or "")
        if tag == "svg" and "gd-figure" in (given.get("class") or ""):
            self.figures += 1
            assert given.get("aria-labelledby"), "a figure that says nothing to those who can't see"


@pytest.fixture(scope="module")
def pages() -> dict[Path, Links]:
    return {page: Links(page) for page in SITE.rglob("*.html")}


def test_every_link_leads_somewhere(pages: dict[Path, Links]) -> None:
    assert len(pages) > 25
    broken = []
    for page, found in pages.items():
        for link in found.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            if target.is_dir():
                target /= "index.html"
            there = target.exists()
            if there and url.fragment and target in pages:
                there = unquote(url.fragment) in pages[target].anchors
            if not there:
                broken.append(f"{page.relative_to(SITE)}: {link}")
    assert not broken


def test_signatures_that_the_reference_states() -> None:
    """Where a function has overloads, the page says what they amount to."""
    pages = (Path(__file__).parent.parent / "docs" / "reference").glob("*.md")
    text = "".join(page.read_text() for page in pages)
    stated = re.findall(r"autofunction:: (\w+)\((.*)\)", text)
    assert stated
    for name, parameters in stated:
        real = inspect.signature(getattr(greendefer, name)).parameters
        names = {each.partition("=")[0].strip(" *") for each in parameters.split(",")} - {"", "/"}
        if name == "with_options":  # it takes `prefetch` among `others`
            names = names - {"prefetch"} | {"others"}
        assert names == set(real), name


def test_the_figures_are_there(pages: dict[Path, Links]) -> None:
    assert pages[SITE / "principle.html"].figures == 3


def documented() -> set[str]:
    """Every name that the reference has."""
    _, _, _, _, *rest = (SITE / "objects.inv").read_bytes().split(b"\n", 4)
    lines = zlib.decompress(rest[0]).decode().splitlines()
    return {line.split(" ")[0] for line in lines if " py:" in line}


def public_names(module: Any) -> set[str]:
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
    return {f"{module.__name__}.{name}" for name in names}


def test_every_public_name_is_in_the_reference() -> None:
    wanted = public_names(greendefer)
    modules = [
        name for _, name, _ in pkgutil.iter_modules(greendefer.__path__) if not name.startswith("_")
    ]
    assert "geventreactor" in modules
    assert "testing" in modules
    for name in [*modules, "contrib.psycopg"]:
        wanted |= public_names(importlib.import_module(f"greendefer.{name}"))
    wanted |= {
        "greendefer.contrib.django.closing_connections",
        "greendefer.instrumentation.warn_of_holdups",
        "greendefer.__main__",
    }
    # One name of two.
    wanted -= {"greendefer.protocols.in_order"}
    # Used inside only, and given to nobody by name.
    wanted -= {
        "greendefer.doctor.main",
        "greendefer.geventasyncioreactor.GreenSelector",
        "greendefer.instrumentation.CallObserver",
        "greendefer.protocols.F",
    }
    missing = wanted - documented()
    assert not missing
