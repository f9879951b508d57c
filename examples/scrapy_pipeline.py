"""A Scrapy spider whose items go through a blocking SDK, while the crawl goes on.

    pip install greendefer scrapy requests
    python examples/scrapy_pipeline.py

It starts a small slow site in a child process: 30 pages, and a store that takes 300 ms an item.
"""

from gevent import monkey

monkey.patch_all()  # first of all: it makes requests cooperative

import subprocess
import sys

import requests
import scrapy
from scrapy.crawler import CrawlerProcess
from scrapy.utils.defer import maybe_deferred_to_future

import greendefer

PAGES = 30
SITE = f"""
import asyncio

async def handle(reader, writer):
    path = (await reader.readuntil(b"\\r\\n\\r\\n")).split()[1].decode()
    await asyncio.sleep(0.3 if path.startswith("/store") else 0.05)
    links = "".join(f'<a href="/page/{{n}}">' for n in range({PAGES})) if path == "/" else ""
    head = "HTTP/1.0 200 OK\\r\\nContent-Type: text/html\\r\\n\\r\\n"
    writer.write(f"{{head}}<html><title>{{path}}</title>{{links}}</html>".encode())
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


pool = greendefer.GreenPool(10, name="store")


class BlockingSDK:
    """A client library that knows nothing of Twisted, but for the decorator."""

    def __init__(self, url):
        self.url = url
        self.session = requests.Session()
        self.session.trust_env = False

    @greendefer.green_deferred(pool=pool, timeout=30)
    def store(self, item):
        self.session.get(f"{self.url}/store", params=item).raise_for_status()
        return item


class StorePipeline:
    """Scrapy goes on with the crawl while an item is being stored."""

    @classmethod
    def from_crawler(cls, crawler):
        pipeline = cls()
        pipeline.sdk = BlockingSDK(crawler.settings["SITE"])
        return pipeline

    async def process_item(self, item):
        return await maybe_deferred_to_future(self.sdk.store(item))


class Spider(scrapy.Spider):
    name = "example"
    pages_while_storing = 0

    async def start(self):
        yield scrapy.Request(self.settings["SITE"] + "/")

    def parse(self, response):
        self.pages_while_storing += pool.stats().running > 0
        yield {"title": response.css("title::text").get()}
        yield from response.follow_all(css="a", callback=self.parse)


def main():
    site = subprocess.Popen([sys.executable, "-c", SITE], stdout=subprocess.PIPE, text=True)
    try:
        process = CrawlerProcess(
            {
                "TWISTED_REACTOR": "greendefer.geventasyncioreactor.GeventAsyncioReactor",
                "SITE": f"http://127.0.0.1:{int(site.stdout.readline())}",
                "ITEM_PIPELINES": {StorePipeline: 100},
                "CONCURRENT_REQUESTS": 4,
                "CONCURRENT_REQUESTS_PER_DOMAIN": 4,
                "LOG_LEVEL": "WARNING",
                "TELNETCONSOLE_ENABLED": False,
            }
        )
        crawler = process.create_crawler(Spider)
        process.crawl(crawler)
        process.start()
    finally:
        site.kill()
        site.wait()
    stored = pool.stats().completed
    print(f"{stored} items stored; {crawler.spider.pages_while_storing} pages came meanwhile")
    assert stored == PAGES + 1
    assert crawler.stats.get_value("log_count/ERROR") is None


if __name__ == "__main__":
    main()
