"""The Django ORM inside Twisted: no threads, and no blocked loop.

    pip install greendefer django django-db-geventpool psycopg2-binary
    python examples/django/run.py

It starts a PostgreSQL of its own in a temporary folder (Debian: apt-get install postgresql), makes
500 queries that take 100 ms each over 20 connections, and removes everything.
"""

from gevent import monkey

monkey.patch_all()  # first of all

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from glob import glob

import greendefer

greendefer.install()  # before anything imports twisted.internet.reactor

from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import LoopingCall


@contextmanager
def private_postgresql():
    """A server that nobody else uses; its port is in the environment variable EXAMPLE_PORT."""
    folders = [os.environ["PATH"], *glob("/usr/lib/postgresql/*/bin")]
    initdb, postgres, isready = (
        shutil.which(name, path=os.pathsep.join(folders))
        or exit(f"{name} is not there: apt-get install postgresql")
        for name in ("initdb", "postgres", "pg_isready")
    )
    user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = os.environ["EXAMPLE_PORT"] = str(s.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        if user:  # PostgreSQL refuses to run as root
            shutil.chown(folder, user["user"])
        quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        init = [initdb, "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run(init, check=True, **quiet, **user)
        run = [postgres, "-D", f"{folder}/data", "-p", port, "-h", "127.0.0.1", "-k", "", "-F"]
        server = subprocess.Popen(run, **quiet, **user)
        try:
            while subprocess.run([isready, "-q", "-h", "127.0.0.1", "-p", port]).returncode:
                assert server.poll() is None, "PostgreSQL did not start"
            yield
        finally:
            server.send_signal(signal.SIGINT)  # it need not wait for our connections
            server.wait()


async def main():
    from django.db import connection
    from example.models import ExampleModel

    def create_table():
        with connection.schema_editor() as editor:
            editor.create_model(ExampleModel)
        return ExampleModel.objects.create(name="first")

    def slow_query():
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_sleep(0.1), count(*) FROM pg_stat_activity WHERE datname <> %s", [""]
            )
            return cursor.fetchone()[1]

    example = await reactor.deferToGreenlet(create_table)
    await example.rename("second")
    d = reactor.deferToGreenlet(list, ExampleModel.objects.all())
    print("in the table:", [each.name for each in await d])

    ticks = []
    ticker = LoopingCall(lambda: ticks.append(1))
    ticker.start(0.01)
    connections = await gatherResults([reactor.deferToGreenlet(slow_query) for _ in range(500)])
    ticker.stop()
    print(f"500 queries of 100 ms; never more than {max(connections)} connections")
    print(f"the reactor's 10 ms ticker ticked {len(ticks)} times meanwhile")


if __name__ == "__main__":
    with private_postgresql():
        os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
        import django

        django.setup()
        failures = []
        d = ensureDeferred(main())
        d.addErrback(failures.append)
        d.addBoth(lambda _: reactor.callWhenRunning(reactor.stop))
        reactor.run()
    for failure in failures:
        failure.raiseException()
