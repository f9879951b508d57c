"""Run the benchmarks: ``python -m benchmarks [--small] [NAME ...]``.

What they measure goes into docs/benchmarks.json, and from there into the tables of
docs/benchmarks.md and the plots in docs/benchmarks/. What other names have measured before stays.
With ``--small`` each is only seen to work, and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # as it is for each of the scripts

from report import write_plots, write_tables

NAMES = [
    *("calls", "waits", "echo", "items", "in_flight", "lateness", "web_client"),
    *("imports", "orm", "web_server", "growth"),
]
PACKAGES = [
    *("Twisted", "gevent", "greenlet", "wrapt", "crochet", "asgiref", "anyio", "asyncio-gevent"),
    *("treq", "requests", "Django", "psycopg", "django-db-geventpool"),
]
DOCS = Path(__file__).parent.parent / "docs"


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            pass
    return {
        "processor": f"{os.cpu_count()} x {model}",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": versions,
    }


def measure(name: str, folder: Path, options: list[str]) -> dict[str, Any]:
    """Run one benchmark."""
    out = folder / f"{name}.json"
    script = Path(__file__).with_name(f"{name}.py")
    command = [sys.executable, str(script), "--json", str(out), *options]
    if (status := subprocess.run(command).returncode) != 0:
        raise SystemExit(f"{name} ended with status {status}")
    result: dict[str, Any] = json.loads(out.read_text())
    result["date"] = time.strftime("%Y-%m-%d", time.gmtime(result["began"]))
    result["machine"] = machine()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--small", action="store_true", help="only see whether they work")
    parser.add_argument("--rounds", help="how often each side has its turn")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing; only write what was measured"
    )
    options = parser.parse_args()
    names = options.names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    kept = DOCS / "benchmarks.json"
    results: dict[str, Any] = {}
    if kept.exists() and not options.small:
        results = json.loads(kept.read_text())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        passed_on = ["--small"] if options.small else []
        passed_on += ["--rounds", options.rounds] if options.rounds else []
        for name in [] if options.report else names:
            results[name] = measure(name, folder, passed_on)
            if not options.small:  # at once: the whole takes long, and may be interrupted
                kept.write_text(json.dumps(results, indent=1) + "\n")
        results = {name: results[name] for name in NAMES if name in results}
        if options.small:  # see whether that works, too
            page = folder / "benchmarks.md"
            page.write_text((DOCS / "benchmarks.md").read_text())
            write_tables(results, page)
            write_plots(results, folder)
        else:
            write_tables(results, DOCS / "benchmarks.md")
            write_plots(results, DOCS / "benchmarks")


if __name__ == "__main__":
    main()
