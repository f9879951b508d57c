"""SQLAlchemy 2 (the blocking one) in Twisted: transactions are async context managers.

    pip install greendefer sqlalchemy 'psycopg[binary]'    # and PostgreSQL's programs
    python examples/sqlalchemy_postgres.py

It starts its own PostgreSQL, on a socket in a temporary folder.
"""

from gevent import monkey

monkey.patch_all()  # first of all: psycopg 3 sees it, and then waits cooperatively

import greendefer

greendefer.install()  # before anything imports twisted.internet.reactor

import glob
import os
import pwd
import shutil
import subprocess
import tempfile
import time

from sqlalchemy import ForeignKey, create_engine, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults

CONNECTIONS = 20
AT_ONCE = 200

# As many slots as the engine has connections: who waits, waits here, where timeouts count it.
database = greendefer.GreenPool(CONNECTIONS, name="database")


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]


class Transfer(Base):
    __tablename__ = "transfer"
    id: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"))
    amount: Mapped[int]


async def transfer(Session, account_id, amount):
    """One transaction on one worker, and so on one connection, from its begin to its end."""
    async with Session() as session, session.begin():
        account = await session.get(Account, account_id, with_for_update=True)
        account.balance += amount
        # add() only takes a note; a proxied session runs it on its worker all the same.
        await session.add(Transfer(account_id=account_id, amount=amount))
        await session.flush()
        if account.balance < 0:
            raise ValueError("overdrawn")  # rolls both back


async def main(url):
    engine = create_engine(url, pool_size=CONNECTIONS, max_overflow=0)
    Base.metadata.create_all(engine)  # plain blocking code, before the service starts
    green = greendefer.green_proxy(engine, pool=database, timeout=30)
    # expire_on_commit=False: reading an attribute afterwards must not query the database, which
    # would block wherever that is.
    Session = greendefer.green_proxy(
        sessionmaker(engine, expire_on_commit=False), pool=database, timeout=30
    )

    async def sleeper():
        async with green.begin() as connection:
            pid = await connection.scalar(text("select pg_backend_pid()"))
            await connection.execute(text("select pg_sleep(0.02)"))
            assert await connection.scalar(text("select pg_backend_pid()")) == pid
        return pid

    started = time.monotonic()
    pids = await gatherResults([ensureDeferred(sleeper()) for _ in range(AT_ONCE)])
    took = time.monotonic() - started
    assert len(set(pids)) <= CONNECTIONS
    print(f"{AT_ONCE} transactions of 20 ms at once, {len(set(pids))} connections: {took:.2f} s")

    async with Session.begin() as session:
        await session.add_all([Account(id=n, balance=0) for n in range(10)])
    outcomes = await gatherResults(
        [
            ensureDeferred(transfer(Session, n % 10, -1 if n % 4 == 0 else 5)).addErrback(
                lambda failure: failure.trap(ValueError)
            )
            for n in range(AT_ONCE)
        ]
    )
    async with Session() as session:
        balance = await session.scalar(select(func.sum(Account.balance)))
        moved = await session.scalar(select(func.sum(Transfer.amount)))
        done = await session.scalar(select(func.count(Transfer.id)))
        rows = [row async for row in session.execute(select(Account.id).order_by(Account.id))]
    assert balance == moved
    assert done == outcomes.count(None)
    assert rows == [(n,) for n in range(10)]
    print(f"{done} transfers done, {AT_ONCE - done} rolled back; the books balance: {balance}")

    # Rows as they come from the server, 100 at a time, at most 200 ahead of who reads them.
    async with green.connect() as connection:
        streaming = await connection.execution_options(yield_per=100)
        result = await streaming.execute(text("select generate_series(1, 5000)"))
        total = 0
        async for (n,) in result:
            total += n
    assert total == 5000 * 5001 // 2
    print(f"5000 rows streamed: {total}")
    assert engine.pool.checkedout() == 0
    engine.dispose()
    stats = database.stats()
    assert stats.running == stats.lingering == 0
    print(stats)


def start_postgres(folder):
    """A PostgreSQL for this program alone; as another user where this is root."""
    found = [shutil.which("initdb"), *sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))]
    programs = [os.path.dirname(path) for path in found if path]
    if not programs:
        raise SystemExit("PostgreSQL's programs (initdb, postgres) are not installed")
    owner = {}
    if os.getuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        owner["user"] = "postgres" if "postgres" in names else "nobody"
        os.chown(folder, pwd.getpwnam(owner["user"]).pw_uid, -1)
    data = f"{folder}/data"
    subprocess.run(
        [f"{programs[-1]}/initdb", "-D", data, "-U", "app", "-A", "trust", "--no-sync"],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=folder,
        **owner,
    )
    options = ["-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"]
    server = subprocess.Popen(
        [f"{programs[-1]}/postgres", "-D", data, *options],
        stderr=subprocess.DEVNULL,
        cwd=folder,
        **owner,
    )
    ready = [f"{programs[-1]}/pg_isready", "-q", "-h", folder, "-U", "app", "-d", "postgres"]
    while subprocess.run(ready, check=False).returncode:
        if server.poll() is not None:
            raise RuntimeError("PostgreSQL did not start")
        time.sleep(0.05)
    return server, f"postgresql+psycopg://app@/postgres?host={folder}"


def run():
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        server, url = start_postgres(folder)
        try:
            d = ensureDeferred(main(url))
            d.addErrback(failed.append)
            d.addBoth(lambda _: reactor.callWhenRunning(reactor.stop))
            reactor.run()
        finally:
            server.terminate()
            server.wait()
    if failed:
        failed[0].raiseException()


if __name__ == "__main__":
    run()
