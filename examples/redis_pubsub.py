"""redis-py's pub/sub in Twisted: 200 subscribers, each an async iterator.

    pip install greendefer redis      # and a redis-server on the PATH
    python examples/redis_pubsub.py

It starts its own Redis, on a socket in a temporary folder.
"""

from gevent import monkey

monkey.patch_all()  # first of all: it makes redis-py's sockets cooperative

import greendefer

greendefer.install()  # before anything imports twisted.internet.reactor

import subprocess
import tempfile
import time

import redis
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults

SUBSCRIBERS = 200
MESSAGES = 20

# A subscription has its slot for as long as it lasts: so it has a pool of its own, in which other
# calls need not wait for it.
subscriptions = greendefer.GreenPool(SUBSCRIBERS, name="subscriptions")
commands = greendefer.GreenPool(50, name="commands")


def make_client(blocking):
    return greendefer.green_proxy(
        blocking, pool=commands, timeout=10, methods={"pubsub": {"pool": subscriptions}}
    )


async def subscriber(client, ready):
    """Make it, subscribe, listen and close: all on one worker."""
    got = []
    async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe("news")
        ready()
        async for message in pubsub.listen():
            got.append(message["data"])
            if len(got) == MESSAGES:
                break  # and leave the block, which closes the connection
    return got


async def main(path):
    blocking = redis.Redis(unix_socket_path=path, decode_responses=True, max_connections=300)
    client = make_client(blocking)

    async def one(n):
        await client.set(f"key:{n}", n)
        return int(await client.get(f"key:{n}"))

    numbers = await gatherResults([ensureDeferred(one(n)) for n in range(200)])
    assert numbers == list(range(200))
    keys = [key async for key in client.scan_iter("key:*", count=50)]
    assert len(set(keys)) == 200
    print(f"{len(numbers)} commands at once; {len(set(keys))} keys scanned")

    waiting = SUBSCRIBERS
    all_ready = Deferred()

    def ready():
        nonlocal waiting
        waiting -= 1
        if not waiting:
            all_ready.callback(None)

    listening = [ensureDeferred(subscriber(client, ready)) for _ in range(SUBSCRIBERS)]
    await all_ready
    assert subscriptions.stats().running == SUBSCRIBERS
    for n in range(MESSAGES):
        heard_by = await client.publish("news", f"message {n}")
        assert heard_by == SUBSCRIBERS
    heard = await gatherResults(listening)
    assert heard == [[f"message {n}" for n in range(MESSAGES)]] * SUBSCRIBERS
    print(f"{SUBSCRIBERS} subscribers heard {MESSAGES} messages each, in order")
    await client.close()
    stats = subscriptions.stats()
    assert stats.running == stats.lingering == 0
    print(stats)


def start_redis(folder):
    path = f"{folder}/redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while True:
        try:
            redis.Redis(unix_socket_path=path).ping()
        except redis.ConnectionError:
            if server.poll() is not None:
                raise RuntimeError("redis-server did not start") from None
            time.sleep(0.01)
        else:
            return server, path


def run():
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        server, path = start_redis(folder)
        try:
            d = ensureDeferred(main(path))
            d.addErrback(failed.append)
            d.addBoth(lambda _: reactor.callWhenRunning(reactor.stop))
            reactor.run()
        finally:
            server.kill()
            server.wait()
    if failed:
        failed[0].raiseException()


if __name__ == "__main__":
    run()
