"""E-43: Redis cannot be reached, and no call of an engine waits for it longer than the limits say.

A real server that is suspended (its connections stay open and nothing comes), and one that is gone. What a scheduler does
then is its own affair: it is told `Unavailable`, serves without the cache, and asks again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import attrs
import pytest

from events import CorruptState, OutcomeUnknown, Unavailable, connect, limits
from events.job_ports import Delivery
from events.log import LogConnection
from statecore import CacheIndex
from statecore.invariants import leaked_blocks, violations
from tests.servers import RedisServer

INDEX = "unreachable"
TOKENS = list(range(16))
WRITES = ("match", "allocate", "extend", "ready", "release", "recycle", "step", "make_room", "resize", "leave")
LOOKS = ("refresh", "poll", "wait", "rejoin")

pytestmark = pytest.mark.usefixtures("impatient")


def longest_s() -> float:
    """What a call may take: a read that is repeated until its deadline, and an append, each with a last try that hangs."""
    return limits.READ_DEADLINE_S + limits.APPEND_DEADLINE_S + 4 * (limits.SOCKET_TIMEOUT_S + limits.CONNECT_TIMEOUT_S)


@attrs.frozen
class Heard:
    """What a call came to, and after how long."""

    error: BaseException | None
    seconds: float


def calls(index: CacheIndex) -> dict[str, Callable[[], object]]:
    def step() -> None:
        with index.step():
            index.match("s", TOKENS)
            index.allocate("s", 1)

    return {
        "match": lambda: index.match("new", TOKENS),
        "allocate": lambda: index.allocate("r", 1),
        "extend": lambda: index.extend("r", blocks=2),
        "ready": lambda: index.ready("r"),
        "release": lambda: index.release("r"),
        "recycle": lambda: index.recycle("r", index.table("r")[2:3]),
        "step": step,
        "make_room": lambda: index.make_room(8),
        "resize": lambda: index.resize(16),
        "leave": index.leave,
        "refresh": index.refresh,
        "poll": lambda: index.poll("x:1"),
        "wait": lambda: index.wait("x:1", 0.2),
        "rejoin": index.rejoin,
    }


def engine(connection: LogConnection, name: str) -> CacheIndex:
    """With a request of three blocks, of which one is in the tree, not ready; the pool is full of others."""
    index = CacheIndex(connection, name=INDEX, engine=name, gpu_blocks=8, block_size=4, follow=False)
    index.match("other", [77] * 20)
    index.allocate("other", 5)
    index.extend("other", ready=True)
    index.release("other")
    index.match("r", TOKENS)
    index.allocate("r", 3)
    index.extend("r", blocks=1)
    return index


def ask_all(engines: dict[str, CacheIndex]) -> dict[str, Heard]:
    """One call of each name, each by an engine and a thread of its own."""
    heard: dict[str, Heard] = {}

    def ask(name: str) -> None:
        begun = time.monotonic()
        error: BaseException | None = None
        try:
            calls(engines[name])[name]()
        except Exception as told:
            error = told
        heard[name] = Heard(error, time.monotonic() - begun)

    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    return heard


@pytest.fixture
def engines(server: RedisServer) -> Iterator[dict[str, CacheIndex]]:
    with connect(server.url) as connection:
        yield {name: engine(connection, name) for name in (*WRITES, *LOOKS)}


@pytest.mark.parametrize("how", ["suspended", "gone"])
def test_every_call_ends_and_says_so(
    server: RedisServer, engines: dict[str, CacheIndex], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E-43: otherwise a Redis that hangs would hang every engine, and all their users.

    Given a server that does not answer, or is gone, when every call there is is made, then each ends in bounded time with
    Unavailable (or OutcomeUnknown, where it was sent); questions are answered; and when the server is back, every
    engine finds out what became of it, and serves.
    """
    monkeypatch.setattr(limits, "LEASE_TRUST_S", 3600.0)
    if how == "suspended":
        server.suspend()
    else:
        server.kill()

    heard = ask_all(engines)

    assert heard.keys() == engines.keys()
    for name, told in heard.items():
        assert isinstance(told.error, Unavailable), (name, told)
        assert not isinstance(told.error, CorruptState)
        assert told.seconds < longest_s(), (name, told)
    for index in engines.values():
        assert (index.requests(), index.would_match([77] * 20)) == (("r",), 5)
    if how == "suspended":
        server.resume()
    else:
        server.start()
    for name, index in engines.items():
        serves_again(name, index)


def serves_again(name: str, index: CacheIndex) -> None:
    if name in ("rejoin", "leave"):
        index.rejoin()
    elif index.resolve() is False:
        assert index.requests() == ("r",)
    index.match("after", [5, 6, 7, 8])
    index.release("after")
    index.refresh()
    assert (index.inspect(violations), index.inspect(leaked_blocks)) == ([], 0)


def test_who_has_not_heard_for_too_long_does_not_even_try(
    server: RedisServer, engines: dict[str, CacheIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    """E-43: otherwise each step of a scheduler would wait its whole deadline, again and again, while Redis hangs.

    Given a server that has not answered for longer than a lease is trusted, when a call begins, then Unavailable after one
    attempt, nothing sent that could land later; when the server is back, there is nothing to resolve.
    """
    monkeypatch.setattr(limits, "LEASE_TRUST_S", 0.2)
    server.suspend()
    time.sleep(0.6)

    heard = ask_all({name: engines[name] for name in WRITES})

    for name, told in heard.items():
        assert isinstance(told.error, Unavailable), (name, told)
        assert not isinstance(told.error, OutcomeUnknown), (name, told)
        assert told.seconds < longest_s(), (name, told)
    server.resume()
    for name in WRITES:
        serves_again(name, engines[name])


def test_workers_wait_in_bounded_time(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """E-43: otherwise a worker could not be stopped while Redis hangs.

    Given a suspended server, when a worker takes, beats, reports, enters and leaves, then each ends in bounded time.
    """
    monkeypatch.setattr(limits, "JOB_BLOCK_S", 0.1)
    with connect(server.url) as connection:
        index = CacheIndex(connection, name=INDEX, engine="a", gpu_blocks=4, cpu_blocks=4, block_size=4, follow=False)
        index.match("r", list(range(16)))
        index.allocate("r", 4)
        index.extend("r", ready=True)
        index.release("r")
        index.match("s", [9] * 16)
        assert index.allocate("s", 4).waits_for
        jobs = connection.jobs(INDEX, index.gpu_pool, 0, 1, "w")
        jobs.enter()
        delivery = jobs.take(1.0)
        assert isinstance(delivery, Delivery)
        server.suspend()
        for call in (
            lambda: jobs.take(0.1),
            lambda: jobs.beat("ready"),
            lambda: jobs.finish(delivery, True),
            jobs.alive,
            jobs.leave,
            lambda: jobs.enter(takeover=True),
        ):
            begun = time.monotonic()
            with pytest.raises(Unavailable):
                call()
            assert time.monotonic() - begun < longest_s()
        server.resume()

        jobs.enter(takeover=True)
        again = jobs.take(1.0)
        assert again is None or (isinstance(again, Delivery) and jobs.finish(again, True).outcome)
        assert index.wait("a:0", 5.0).done
