"""The tutorial's first program: a blocking function, and a reactor that goes on meanwhile.

pip install greendefer
python examples/tutorial/first.py
"""

from gevent import monkey

monkey.patch_all()  # first of all

import greendefer

greendefer.install()  # before anything imports twisted.internet.reactor

import time

from twisted.internet.defer import gatherResults
from twisted.internet.task import LoopingCall, react


@greendefer.green_deferred
def slow(n):
    time.sleep(1)  # it blocks, as far as this function can tell
    return n * n


async def main(reactor):
    ticker = LoopingCall(lambda: print("tick"))
    ticker.start(0.3)
    print(await gatherResults([slow(n) for n in range(5)]))


react(main)
