"""A server that begins a new life may have lost the end of the log: who is told, who waits, and for how long.

Real servers, killed, cut and failed over. The barrier is short here; what it is for is in `ops/decisions/0016`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import attrs
import pytest

from events import RolledBack, connect, limits
from events.facts import Fact
from events.log import EventLog, LogConnection
from events.memory import MemoryTransport
from events.ports import Appended, Base, Diverged, LossInTheWay, RawAppended, Renewed
from statecore import CacheIndex
from tests.contract.commits import BIRTH, commit, filled
from tests.contract.lives import (
    BARRIER_S,
    INDEX,
    TOKENS,
    append_only_file,
    attempt,
    engine,
    renewed,
    restart,
    serve,
    shorten_barrier,
    sound,
)
from tests.servers import RedisServer


@pytest.fixture(autouse=True)
def short_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_barrier(monkeypatch)


@pytest.fixture
def connection_to(server: RedisServer) -> Iterator[LogConnection]:
    with connect(server.url) as connection:
        yield connection


# --- a restart that lost nothing ------------------------------------------------------------------------------------


def test_the_log_is_closed_and_then_goes_on(server: RedisServer, connection_to: LogConnection) -> None:
    """Otherwise an engine that knew a vanished end could still be writing to blocks that are given to another.

    Given a log, when its server is killed and started again, then nothing is appended for the barrier's time, by nobody,
    and then it goes on at the same position; reading and renewing go on all the while, and say so.
    """
    log, transport = connection_to.log(INDEX, follow=False), connection_to.backend.transport(INDEX)
    base = filled(log, 3)
    before = log.head()
    restart(server)

    begun = time.monotonic()
    opens_in: list[float] = []
    while (reply := attempt(transport, "c4", base)) is None:
        told = renewed(transport, base)
        assert isinstance(told, Renewed)
        opens_in.append(told.opens_in_s)
        assert (len(log.read(0)), log.head()) == (3, before)
        time.sleep(0.05)
    waited = time.monotonic() - begun

    assert reply == RawAppended(4, ())
    assert BARRIER_S * 0.9 < waited < BARRIER_S + 5.0
    assert 0 < opens_in[0] <= BARRIER_S
    assert opens_in == sorted(opens_in, reverse=True)
    assert log.head().life not in ("", before.life)
    assert renewed(transport, Base(4, "c4")) == Renewed(log.head().life)


def test_the_barrier_begins_when_the_first_one_asks(server: RedisServer, connection_to: LogConnection) -> None:
    """Otherwise a server that was up alone for a minute would open at once, for engines that have asked nobody yet."""
    log = connection_to.log(INDEX, follow=False)
    base = filled(log, 1)
    restart(server)
    time.sleep(BARRIER_S * 1.3)

    begun = time.monotonic()
    assert log.append(commit("c2"), base) == Appended(2, ())

    assert time.monotonic() - begun > BARRIER_S * 0.8


def test_each_new_life_closes_the_log_again(server: RedisServer, connection_to: LogConnection) -> None:
    """Otherwise the second of two crashes in a row would go unnoticed, with what it lost."""
    log = connection_to.log(INDEX, follow=False)
    base = filled(log, 1)
    for _ in range(2):
        restart(server)
        transport = connection_to.backend.transport(INDEX)
        told = renewed(transport, base)
        assert isinstance(told, Renewed)
        assert told.opens_in_s > BARRIER_S * 0.8

    begun = time.monotonic()
    assert log.append(commit("c2"), base) == Appended(2, ())
    assert time.monotonic() - begun > BARRIER_S * 0.7


def test_an_empty_index_opens_at_once(server: RedisServer, connection_to: LogConnection) -> None:
    """Otherwise the first engine of a fresh server would wait eight seconds for nobody."""
    restart(server)
    begun = time.monotonic()

    assert connection_to.log(INDEX).append(commit("c1"), BIRTH) == Appended(1, ())

    assert time.monotonic() - begun < BARRIER_S


def test_an_engine_only_waits(server: RedisServer, connection_to: LogConnection) -> None:
    """Otherwise a restart of Redis would restart every engine.

    Given two engines on one pool, when the server is killed and started again, then both go on in the same life, with
    every request they had.
    """
    engines = [engine(connection_to, "a", follow=True), engine(connection_to, "b")]
    tables = [serve(each, f"r-{each.engine}") for each in engines]
    position = engines[1].position
    restart(server)

    assert len(engines[0].allocate("r-a", 1).blocks) == 1

    assert engines[0].position == position + 1
    engines[1].allocate("r-b", 1)
    assert [each.table(f"r-{each.engine}")[:3] for each in engines] == tables
    assert [each.session for each in engines] == [1, 1]
    sound(*engines)


# --- an end that vanished -------------------------------------------------------------------------------------------


@attrs.frozen
class Parted:
    """Two engines of one pool, of which one knows commits that the server has lost."""

    ahead: CacheIndex
    low: CacheIndex
    lost: list[int]


@pytest.fixture
def parted(server: RedisServer, connection_to: LogConnection) -> Parted:
    ahead, low = engine(connection_to, "ahead"), engine(connection_to, "low")
    serve(ahead, "kept")
    low.refresh()
    end = append_only_file(server).stat().st_size
    lost = serve(ahead, "lost")
    restart(server, cut_at=end)
    assert connection_to.log(INDEX).head().position == low.position < ahead.position
    return Parted(ahead, low, lost)


def test_who_knows_more_than_the_log_is_told_at_its_next_call(parted: Parted) -> None:
    """Otherwise it would go on writing to blocks that the surviving log calls free.

    Given an engine ahead of a cut log, when it calls, then RolledBack at once, long before the log opens, and from then on
    for every call; after `rejoin` it works in its next life, on what the log holds.
    """
    begun = time.monotonic()
    with pytest.raises(RolledBack, match="holds nothing"):
        parted.ahead.match("next", TOKENS)
    assert time.monotonic() - begun < BARRIER_S

    for call in (lambda: parted.ahead.release("lost"), parted.ahead.refresh, lambda: parted.ahead.allocate("kept", 1)):
        with pytest.raises(RolledBack):
            call()

    parted.ahead.rejoin()
    assert (parted.ahead.session, parted.ahead.requests()) == (2, ())
    serve(parted.ahead, "next")
    sound(parted.ahead, parted.low)


def test_an_idle_engine_is_told_too(parted: Parted) -> None:
    """Otherwise an engine between two prompts would compute the next one on blocks of others.

    Given an engine ahead of a cut log that makes no call that writes, when its lease is renewed, then its next look says so.
    """
    time.sleep(limits.LEASE_EVERY_S * 1.4)

    with pytest.raises(RolledBack):
        parted.ahead.poll("ahead:0")


def test_who_knows_no_more_than_the_log_is_told_nothing(parted: Parted) -> None:
    """Otherwise a crash of the server would cost every engine its requests.

    Given an engine at the end of a cut log, when it allocates, then it is given blocks only after the barrier, when who knew
    of them has stopped; in the same life, with all it had.
    """
    begun = time.monotonic()

    mine = serve(parted.low, "mine")

    assert time.monotonic() - begun > BARRIER_S * 0.7
    assert set(mine) & set(parted.lost), "the lost blocks are free by the surviving log, that is why it waited"
    assert parted.low.session == 1
    with pytest.raises(RolledBack):
        parted.ahead.match("next", TOKENS)


def test_positions_that_were_used_again_deceive_nobody(parted: Parted) -> None:
    """Otherwise an engine at position 9 of one history would go on at position 9 of another.

    Given the surviving log has grown past the engine that was ahead, when that engine calls, then RolledBack, by the commit
    that the log holds in its place.
    """
    for number in range(4):
        parted.low.match(f"more-{number}", TOKENS)
    assert parted.low.position > parted.ahead.position

    with pytest.raises(RolledBack, match=r"the log holds commit|continues commit"):
        parted.ahead.match("next", TOKENS)


def test_who_begins_its_next_life_by_itself_is_told_once(server: RedisServer, connection_to: LogConnection) -> None:
    """Otherwise somebody would have to get up at night after each failover.

    Given an engine with `rejoin_automatically` that is ahead of a cut log, when it calls twice, then the first call says
    RolledBack, the second works, and the requests of the old life are gone from the log as well.
    """
    ahead = CacheIndex(
        connection_to, name=INDEX, engine="ahead", gpu_blocks=16, block_size=4, follow=False, rejoin_automatically=True
    )
    serve(ahead, "kept")
    end = append_only_file(server).stat().st_size
    serve(ahead, "lost")
    restart(server, cut_at=end)

    with pytest.raises(RolledBack):
        ahead.match("next", TOKENS)
    ahead.match("next", TOKENS)

    assert (ahead.session, ahead.requests()) == (2, ("next",))
    sound(ahead)


def test_a_server_that_lost_everything(server: RedisServer, connection_to: LogConnection) -> None:
    """Otherwise the first engine back would continue a history of which nothing is left."""
    ahead = engine(connection_to, "ahead")
    serve(ahead, "lost")
    restart(server, cut_at=0)

    with pytest.raises(RolledBack):
        ahead.match("next", TOKENS)

    ahead.rejoin()
    assert ahead.session == 1, "the log knows of no other life"
    serve(ahead, "next")
    sound(ahead)


def test_a_server_that_lost_everything_waits_too(server: RedisServer, connection_to: LogConnection) -> None:
    """Otherwise the first engine back would be given the blocks that another one, which has not looked yet, still uses.

    Given two engines on one pool and a server that comes back empty, when one of them is told, then it begins no new life
    before the barrier is over, and the other one has been told by then; and the first commit deals with the loss.
    """
    with connect(server.url) as other:
        user, reader = engine(other, "user"), engine(connection_to, "reader")
        table = serve(user, "lost")
        reader.refresh()
        restart(server, cut_at=0)
        with pytest.raises(RolledBack):
            reader.match("next", TOKENS)
        begun = time.monotonic()

        log = user._session._log
        assert isinstance(log, EventLog)
        log.renew_lease()  # as its thread does, every `LEASE_EVERY_S`
        reader.rejoin()

        assert time.monotonic() - begun > BARRIER_S * 0.8
        with pytest.raises(RolledBack):
            user.allocate("lost", 1)
        assert set(serve(reader, "next")) & set(table), "the pool is as empty as the log"
        sound(reader)
    assert [type(fact).__name__ for fact in facts_of(connection_to, 1)][-1] == "HistoryLost"


def facts_of(connection: LogConnection, position: int) -> tuple[Fact, ...]:
    (entry,) = connection.log(INDEX, follow=False).read(position - 1, 1)
    return entry.facts


# --- the definition -------------------------------------------------------------------------------------------------


def test_lives_in_memory_are_the_same() -> None:
    """Otherwise the simulator would prove a barrier that servers do not have.

    Given the log in memory and a clock, when its server begins new lives, then it is closed from the first question on for
    the barrier's time, each time, also when a life comes back; an empty one is open.
    """
    now = [0.0]
    transport = MemoryTransport(lambda: now[0])
    assert transport.closed_for() == 0.0
    transport.begin_life("1")
    assert attempt(transport, "c1", BIRTH)
    for life in ("2", "3", "2"):
        transport.begin_life(life)
        now[0] += 100.0
        assert attempt(transport, "x", Base(1, "c1")) is None
        now[0] += BARRIER_S / 2
        assert transport.renew_lease("a", 1, Base(1, "c1")) == Renewed(life, BARRIER_S / 2)
    now[0] += BARRIER_S
    assert attempt(transport, "c2", Base(1, "c1")) == RawAppended(2, ())
    transport.begin_life("4")
    transport.closed_for()
    transport.begin_life("2")
    assert transport.closed_for() == BARRIER_S
    assert transport.head().life == "2"


def test_an_empty_log_in_memory_is_the_same() -> None:
    """Given an empty log in memory, when somebody knows more, then it is closed for the barrier's time, and then waits for
    who deals with the loss.
    """
    now = [0.0]
    transport = MemoryTransport(lambda: now[0])
    transport.begin_life("1")
    assert attempt(transport, "x", Base(3, "c3")) == Diverged(3, "")
    assert attempt(transport, "c1", BIRTH) is None
    now[0] += BARRIER_S
    assert attempt(transport, "c1", BIRTH) == LossInTheWay("c3")
