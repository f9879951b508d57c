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
        # Nothing but a few words such as "It prints:" may be between the two.
        close = len(between.split()) <= 12 and "#" not in between
        if language == "text" and close and previous is not None and previous.language == "python":
            previous.output = body
        page.blocks.append(Block(language, body, line))
    return page


@dataclass(frozen=True)
class Setting:
    """What a fragment needs around it to be run."""

    before: str = ""
    after: str = ""
    needs: tuple[str, ...] = ()


MAIN = """
from twisted.internet.task import react
react(main)
"""


def program(block: Block, setting: Setting) -> str:
    """A whole program that runs a fragment. One that says ``await`` outside of any function is the
    body of a coroutine, and ``react`` runs that."""
    text = block.text
    try:
        compile(text, "fragment", "exec")
    except SyntaxError:
        body = textwrap.indent(f"{text}\n{setting.after}", "    ")
        return f"{setting.before}\nasync def main(reactor):\n{body}\n{MAIN}"
    return f"{setting.before}\n{text}\n{setting.after}\n"


GREEN = """
from gevent import monkey
monkey.patch_all()
import greendefer
greendefer.install()
"""
FRAGMENTS: dict[str, list[Setting]] = {}
"""For each page with fragments, what each of them in order needs."""
FRAGMENTS["README.md"] = [
    # A request to a stand-in: the tests need no network.
    Setting(
        before="import sys, types\n"
        "sys.modules['requests'] = requests = types.ModuleType('requests')\n"
        "requests.get = lambda url: types.SimpleNamespace(status_code=200)\n"
    ),
    Setting(
        before=f"{GREEN}\nfrom twisted.internet import reactor\n",
        after="async def main(reactor):\n    assert await handler() == '127.0.0.1'\n" + MAIN,
    ),
    # `s3` and `db` are objects with the methods of boto3's and SQLAlchemy's that are called here;
    # the real ones are in examples/s3_boto3.py and examples/sqlalchemy_postgres.py.
    Setting(
        before=GREEN
        + """
import contextlib, types
aws = database = greendefer.GreenPool(2)
class Paginator:
    def paginate(self, Bucket):
        return iter([{"Contents": []}])
class S3:
    def put_object(self, **given): pass
    def get_paginator(self, name): return Paginator()
boto3 = types.SimpleNamespace(client=lambda name: S3())
insert = "INSERT"
class Connection:
    def __init__(self): self.done = []
    def execute(self, what): self.done.append(what)
class Engine:
    @contextlib.contextmanager
    def begin(self):
        yield Connection()
engine = Engine()
with open("access.log", "w") as f:
    f.write("one\\ntwo\\n")
""",
    ),
]
