"""A Scrapy crawl on the asyncio variant, whose items go through a blocking SDK."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent.event import Event
from gevent.pywsgi import WSGIServer
from programs import run_python

from .conftest import needs

needs("scrapy")

PAGES = 30

PROGRAM = """
    from gevent import monkey; monkey.patch_all()
    import json, sys, requests, scrapy, greendefer
    from scrapy.crawler import CrawlerProcess
    from scrapy.utils.defer import maybe_deferred_to_future

    class Pipeline:
        @greendefer.green_deferred
        def store(self, item):
            requests.get(f"{sys.argv[1]}/store", params=item, proxies={"no_proxy": "127.0.0.1"})

        async def process_item(self, item):
            await maybe_deferred_to_future(self.store(item))
            return item

    class Spider(scrapy.Spider):
        name = "example"

        async def start(self):
            yield scrapy.Request(sys.argv[1] + "/")

        def parse(self, response):
            yield {"title": response.css("title::text").get()}
            yield from response.follow_all(css="a", callback=self.parse)

    process = CrawlerProcess({
        "TWISTED_REACTOR": "greendefer.geventasyncioreactor.GeventAsyncioReactor",
        "ITEM_PIPELINES": {Pipeline: 1},
        "LOG_LEVEL": "ERROR",
        "TELNETCONSOLE_ENABLED": False,
    })
    crawler = process.create_crawler(Spider)
    process.crawl(crawler)
    process.start()
    stats = crawler.stats.get_stats()
    names = "item_scraped_count", "log_count/ERROR", "finish_reason"
    print(json.dumps([stats.get(name) for name in names]))
"""


class Site:
    """It stores nothing before all pages have been asked for, and all items wait to be stored."""

    def __init__(self) -> None:
        self.pages: set[str] = set()
        self.storing = 0
        self.gate = Event()
        self._server = WSGIServer(("127.0.0.1", 0), self._answer, log=None)
        self._server.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        path = environ["PATH_INFO"]
        if path == "/store":
            self.storing += 1
            if len(self.pages) == self.storing == PAGES + 1:
                self.gate.set()
            self.gate.wait()
        else:
            self.pages.add(path)
        links = "".join(f'<a href="/page/{n}">' for n in range(PAGES)) if path == "/" else ""
        start_response("200 OK", [("Content-Type", "text/html")])
        return [f"<html><title>{path}</title>{links}</html>".encode()]

    def close(self) -> None:
        self.gate.set()
        self._server.stop()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


def test_the_crawl_goes_on_while_all_items_are_being_stored(site: Site, tmp_path: Path) -> None:
    program = tmp_path / "program.py"  # Scrapy reads the source of callbacks
    program.write_text(textwrap.dedent(PROGRAM))
    done = run_python(program, site.url)
    assert done.stdout == f'[{PAGES + 1}, null, "finished"]\n', done.stderr
    assert site.gate.is_set()
