"""A call that waits for another one lends it its slot.

On a full pool, a call that waits for one that is queued behind it would wait for ever
(twisted#5298). But while it waits it does nothing: so the queued call may run in its slot, if
whoever waits for that call, directly or through others, includes one that has a slot of the same
pool. The lender goes on when the borrower has really ended, so that there are never more at work
than the pool has slots.

What waits for what can be seen where one call waits for the Deferred of another: not through
``gatherResults``, a callback that returns a Deferred, or a greenlet that the call has spawned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._errors import WouldDeadlock

if TYPE_CHECKING:
    from ._admission import Call


def wait_begins(waiter: Call, call: Call) -> None:
    """`waiter` does nothing from now on until `call` has fired.

    :raises WouldDeadlock: `call` in turn waits for `waiter`, or can run only where that does.
    """
    seen: Call | None = call
    while seen is not None:
        if seen is waiter:
            raise WouldDeadlock(
                f"{waiter.name} waits for {call.name}, which waits for {waiter.name}: neither "
                "can ever go on."
            )
        seen = seen.waits_for
    waiter.waits_for = call
    if _never_ends(waiter, set()):
        waiter.waits_for = None
        raise WouldDeadlock(
            f"{waiter.name} waits for {call.name}, which is queued behind it, or waits for what "
            f"is so, on {call.pool!r}. Call the function itself instead, or use another pool."
        )
    call.waiters = call.waiters | {waiter}
    lend_along(waiter)


def _never_ends(waiter: Call, asked: set[Call]) -> bool:
    """Does it wait, in the end, for a call that starts when one of those that have a slot ends,
    where slots can't be lent, and none of these ever does?"""
    asked.add(waiter)
    call = waiter
    while call.waits_for is not None:
        call = call.waits_for
    pool = call.pool
    if call is waiter or not call.is_queued or pool._can_nest:
        return False
    return all(each in asked or _never_ends(each, asked) for each in pool._active_calls())


def wait_ends(waiter: Call) -> None:
    """`waiter` goes on."""
    call, waiter.waits_for = waiter.waits_for, None
    if call is not None:
        call.waiters = call.waiters - {waiter}


def lend_along(waiter: Call) -> None:
    """Start the call that `waiter` waits for in the end, if that is queued, in a slot of those who
    wait for it."""
    call = waiter
    while call.waits_for is not None:
        call = call.waits_for
    if call.is_queued and call.pool._can_nest:
        for each in call.waiters:
            lender = _lender_for(each, call)
            if lender is not None:
                call.pool._start_in_slot_of(lender, call)
                return


def slot_is_back(lender: Call) -> None:
    """What `lender` waits for may need its slot once more."""
    lend_along(lender)
    if lender.hosted is not None:
        for call in lender.hosted._active_calls():
            lend_along(call)


def _lender_for(waiter: Call, call: Call) -> Call | None:
    """Whoever has a slot of the pool of `call`, among `waiter` and those who wait for it."""
    asked: set[Call] = set()
    to_ask = [waiter]
    while to_ask:
        each = to_ask.pop()
        if each in asked:
            continue
        asked.add(each)
        if each.pool is call.pool and each.is_running and each.borrower is None:
            return each
        to_ask += each.waiters
        if each.pool._host is not None:
            to_ask.append(each.pool._host)
    return None


def borrower_of(me: Call) -> Call | None:
    """The call that runs in the slot of `me`, or of one that this runs inside of."""
    lender: Call | None = me
    while lender is not None:
        borrower = lender.borrower
        if borrower is not None and not borrower.has_ended:
            return borrower
        lender = lender.pool._host
    return None
