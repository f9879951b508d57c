"""The code in README.md and docs/: which blocks there are, and what each is run with.

- A block of Python that begins with ``# file: NAME`` is a file. All files of a page lie in one
  folder, and each is run as a program (``test_...py`` by trial, as the page says); where a block
  marked ``text`` follows, that is what it prints (``...`` stands for anything).
- Any other block of Python is a fragment, which FRAGMENTS says how to run.
- Files that a page includes are run by tests of their own.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


@dataclass
class Block:
    """One fenced block."""

    language: str
    text: str
    line: int
    output: str | None = None
    "What the text block behind it says."

    @property
    def file(self) -> str | None:
        """What it is called, if it is a file."""
        name = re.match(r"# file: (\S+)\n", self.text)
        return name[1] if name else None


@dataclass
class Page:
    """One page, and its blocks in order."""

    path: Path
    blocks: list[Block] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def python(self) -> list[Block]:
        return [block for block in self.blocks if block.language == "python"]

    @property
    def files(self) -> dict[str, str]:
        return {block.file: block.text for block in self.python if block.file}

    @property
    def included(self) -> list[Path]:
        """Files that it includes, whole or in part."""
        found = re.findall(r"^[`:]{3,}\{literalinclude\} (\S+)$", self.path.read_text(), re.M)
        return [(self.path.parent / name).resolve() for name in found]


def read(path: Path) -> Page:
    """
    :raises ValueError: a block says no language, or one that nobody looks at.
    """
    page = Page(path)
    text = path.read_text()
    end = 0
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.M | re.S):
        language, body = match[1], match[2]
        line = text.count("\n", 0, match.start()) + 1
        between, end = text[end : match.start()], match.end()
        if language.startswith("{"):
            continue
        if language not in ("python", "sh", "text", "ini"):
            raise ValueError(f"{page.name}:{line}: a block in {language or 'no language'}")
        previous = page.blocks[-1] if page.blocks else None
        if language == "text" and previous is not None and previous.language == "python":
            # Nothing but a few words such as "It prints:" may be between the two.
            if len(between.split()) <= 12 and "#" not in between:
                previous.output = body
        page.blocks.append(Block(language, body, line))
    return page


@dataclass(frozen=True)
class Setting:
    """What a fragment needs around it to be run."""

    before: str = ""
    after: str = ""
    needs: tuple[str, ...] = ()


def program(block: Block, setting: Setting) -> str:
    """A whole program that runs a fragment. One that says ``await`` outside of any function is the
    body of a coroutine, and ``react`` runs that."""
    text = block.text
    try:
        compile(text, "fragment", "exec")
    except SyntaxError:
        body = textwrap.indent(f"{text}\n{setting.after}", "    ")
        text = f"async def main(reactor):\n{body}\nfrom twisted.internet.task import react\nreact(main)"
        return f"{setting.before}\n{text}\n"
    return f"{setting.before}\n{text}\n{setting.after}\n"


GREEN = """
from gevent import monkey
monkey.patch_all()
import greendefer
greendefer.install()
"""
MAIN = """
from twisted.internet.task import react
react(main)
"""

FRAGMENTS: dict[str, list[Setting]] = {}
"""For each page with fragments, what each of them in order needs."""
