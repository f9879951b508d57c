"""Twisted's own tests on our reactor, compared with the same tests on the stock reactor."""
