"""The tutorial's service: notes in PostgreSQL, through the Django ORM, served by Twisted.

    pip install greendefer 'django>=5.1' 'psycopg[binary,pool]'
    cd examples/tutorial
    python -m django migrate --run-syncdb --settings settings
    python service.py [PORT]

PGHOST, PGPORT, PGUSER and PGPASSWORD say which PostgreSQL.
"""

from gevent import monkey

monkey.patch_all()  # first of all: Django, psycopg and this service then give way while they wait

import greendefer

greendefer.install()  # before anything imports twisted.internet.reactor

import json
import os
import sys

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()

from django.db import connection, transaction
from notes.models import Note
from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from greendefer.contrib.django import closing_connections

log = Logger()

# [pool]
database = greendefer.GreenPool(
    20,
    max_queued=200,
    name="database",
    around=closing_connections,
)
# [/pool]


# [queries]
@greendefer.green_deferred(pool=database, timeout=5)
def add_note(text):
    with transaction.atomic():
        note = Note.objects.create(text=text)
        return {"id": note.id, "notes": Note.objects.count()}


@greendefer.green_deferred(pool=database, timeout=5)
def list_notes():
    return [{"id": note.id, "text": note.text} for note in Note.objects.order_by("id")]


limits = greendefer.Timeouts(queued=10, running=5)


@greendefer.green_deferred(pool=database, timeout=limits)
def sleep_in_the_database(seconds):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])
    return {"slept": seconds}


# [/queries]


# [web]
class Notes(Resource):
    isLeaf = True

    def render_GET(self, request):
        return respond(request, list_notes())

    def render_POST(self, request):
        return respond(request, add_note(request.content.read().decode()))


class Slow(Resource):
    isLeaf = True

    def render_GET(self, request):
        seconds = float(request.args[b"seconds"][0])
        return respond(request, sleep_in_the_database(seconds))


class Stats(Resource):
    isLeaf = True

    def render_GET(self, request):
        return f"{database.stats()}\n".encode()


def respond(request, d):
    """Answer with what `d` comes to. If the client goes away, that ends the call."""

    def answer(value):
        request.setHeader(b"Content-Type", b"application/json")
        request.write(json.dumps(value).encode() + b"\n")
        request.finish()

    def fail(failure):
        if failure.check(CancelledError):
            return  # there is nobody to answer to
        if failure.check(greendefer.PoolFull, greendefer.PoolClosed):
            request.setResponseCode(503)
        elif failure.check(greendefer.CallTimeout):
            request.setResponseCode(504)
        else:
            request.setResponseCode(500)
            log.failure("{uri} failed", failure, uri=request.uri)
        request.finish()

    request.notifyFinish().addErrback(lambda _: d.cancel())
    d.addCallbacks(answer, fail)
    d.addErrback(lambda failure: log.failure("Answering failed", failure))
    return NOT_DONE_YET


# [/web]


def main():
    root = Resource()
    root.putChild(b"notes", Notes())
    root.putChild(b"slow", Slow())
    root.putChild(b"stats", Stats())
    port = reactor.listenTCP(int((sys.argv[1:] or ["8000"])[0]), Site(root), interface="127.0.0.1")
    url = f"http://127.0.0.1:{port.getHost().port}/notes"
    reactor.callWhenRunning(print, url, flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
