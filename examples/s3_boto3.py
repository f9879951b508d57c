"""boto3's S3 client in Twisted: put, streamed get, 5,000 keys in pages, a multipart upload.

    pip install greendefer boto3 'moto[server,s3]'
    python examples/s3_boto3.py

It starts its own S3, a moto server in a child process, with a bucket of 5,000 keys.
"""

from gevent import monkey

monkey.patch_all()  # first of all: it makes boto3's sockets, locks and sleeps cooperative

import greendefer

greendefer.install()  # before anything imports twisted.internet.reactor

import hashlib
import subprocess
import sys

import boto3
from botocore.config import Config
from botocore.paginate import Paginator
from botocore.response import StreamingBody
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults

AT_ONCE = 200
KEYS = 5000
PART = 5 * 1024 * 1024  # the least that S3 takes, but for the last

aws = greendefer.GreenPool(AT_ONCE, name="aws")


def make_client(endpoint):
    """The whole SDK, wrapped: these are the five lines."""
    blocking = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        # One connection for each call that may run, or they would throw connections away.
        config=Config(max_pool_connections=AT_ONCE, proxies={}),
    )
    return greendefer.green_proxy(
        blocking,
        pool=aws,
        timeout=60,
        results=Paginator,  # what get_paginator() returns blocks, too
        plain=["generate_presigned_url"],  # which only computes
        methods={"upload_part": {"timeout": 300}, "paginate": {"prefetch": 1}},
    )


async def download(s3, bucket, key):
    """A body as it comes: the next chunk is read when this one was consumed."""
    digest = hashlib.sha256()
    body = (await s3.get_object(Bucket=bucket, Key=key))["Body"]
    assert isinstance(body, StreamingBody)
    async with greendefer.green_iterator(body.iter_chunks, pool=aws)(65536) as chunks:
        async for chunk in chunks:
            digest.update(chunk)
    return digest.hexdigest()


async def count_keys(s3, bucket):
    paginator = await s3.get_paginator("list_objects_v2")
    pages = keys = 0
    async for page in paginator.paginate(Bucket=bucket):
        pages += 1
        keys += len(page["Contents"])
    return pages, keys


async def upload_in_parts(s3, bucket, key, parts):
    """All parts at once; what was begun is aborted if one fails."""
    where = {"Bucket": bucket, "Key": key}
    where["UploadId"] = (await s3.create_multipart_upload(**where))["UploadId"]

    async def upload(number, data):
        sent = await s3.upload_part(**where, PartNumber=number, Body=data)
        return {"PartNumber": number, "ETag": sent["ETag"]}

    try:
        sent = await gatherResults(
            [ensureDeferred(upload(n, data)) for n, data in enumerate(parts, 1)], consumeErrors=True
        )
        await s3.complete_multipart_upload(**where, MultipartUpload={"Parts": sent})
    except BaseException:
        await s3.abort_multipart_upload(**where)
        raise


async def main(endpoint):
    s3 = make_client(endpoint)

    await s3.create_bucket(Bucket="many")
    bodies = [f"body {n} ".encode() * 20_000 for n in range(AT_ONCE)]
    await gatherResults(
        [s3.put_object(Bucket="many", Key=f"{n}", Body=body) for n, body in enumerate(bodies)]
    )
    digests = await gatherResults(
        [ensureDeferred(download(s3, "many", f"{n}")) for n in range(AT_ONCE)]
    )
    assert digests == [hashlib.sha256(body).hexdigest() for body in bodies]
    print(f"{AT_ONCE} objects put at once, and streamed back at once")

    pages, keys = await count_keys(s3, "seeded")
    assert keys == KEYS
    print(f"{keys} keys in {pages} pages")

    parts = [bytes([n]) * PART for n in range(3)]
    await upload_in_parts(s3, "many", "in-parts", parts)
    assert await download(s3, "many", "in-parts") == hashlib.sha256(b"".join(parts)).hexdigest()
    print(f"{len(parts)} parts of {PART} bytes uploaded at once")

    try:
        await s3.get_object(Bucket="many", Key="missing")
    except s3.exceptions.NoSuchKey as e:  # the SDK's own exceptions
        print(f"and its own exception: {type(e).__name__}")
    stats = aws.stats()
    assert stats.running == stats.queued == stats.lingering == 0
    print(stats)


SERVER = f"""
import sys, threading
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
bucket = s3_backends["123456789012"]["aws"]
bucket.create_bucket("seeded", "us-east-1")
for n in range({KEYS}):
    bucket.put_object("seeded", f"key-{{n:05}}", b"")
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()  # until whoever started this is gone
"""


def run():
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    failed = []
    try:
        host, port = server.stdout.readline().split()
        d = ensureDeferred(main(f"http://{host}:{port}"))
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
