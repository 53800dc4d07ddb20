"""Who holds a lease and who may be declared lost, on every backend (E-25, E-45: an owner that died stays an owner no longer
than its lease).
"""

from __future__ import annotations

import time

import attrs
import pytest

from events import keys, limits
from events.facts import EngineLost
from events.log import EventLog, LogConnection
from events.ports import Appended, Base, Commit, Conflicted, Diverged, Fenced, Renewed, StillAlive
from statecore import CacheIndex, SessionOver
from tests.contract.commits import BIRTH, commit, ids
from tests.contract.test_read import until
from tests.contract.timed import LEASE_S, Timed

LOST = EngineLost("a", 1, "no sign of life from it for 9.0 s")


@pytest.fixture
def timed(connection: LogConnection, index_name: str, monkeypatch: pytest.MonkeyPatch) -> Timed:
    monkeypatch.setattr(limits, "LEASE_TTL_S", LEASE_S)
    return Timed.on(connection, index_name)


def joined(log: EventLog, engine: str = "a", session: int = 1, base: Base = BIRTH) -> Base:
    """The beginning of a life, as the log sees it; returns where it stands."""
    begun = commit(f"join.{engine}.{session}", engine=engine, session=session, fences=((engine, session),))
    reply = log.append(begun, base)
    assert isinstance(reply, Appended)
    return Base(reply.position, begun.id)


def deposing(*engines: str) -> Commit:
    """A keeper declares engines lost; each was in its first life."""
    made = commit("depose", engine="keeper", session=0, facts=[attrs.evolve(LOST, engine=each) for each in engines])
    scopes = (*made.checks, *map(keys.engine_scope, engines))
    return attrs.evolve(
        made, checks=scopes, touches=scopes, fences=tuple((each, 2) for each in engines), lapsed=engines
    )


def test_a_life_holds_its_lease_from_the_step_in_which_it_begins(timed: Timed) -> None:
    """E-45: otherwise an engine could be declared lost between its join and its first renewal.

    Given an engine that joins, when its commit stands, then it holds the lease; when it leaves, nobody does.
    """
    assert timed.transport.leases(["a", "b"]) == (False, False)

    index = CacheIndex(timed, name="timed", engine="a", gpu_blocks=4, follow=False)
    assert timed.transport.leases(["a", "b"]) == (True, False)

    index.leave()
    assert timed.transport.leases(["a", "b"]) == (False, False)


def test_a_join_that_is_refused_holds_nothing(timed: Timed) -> None:
    """Otherwise a process that could not join would keep a dead engine alive."""
    log = timed.log()
    joined(log)
    timed.passes(LEASE_S * 1.3)

    again = commit("join.a.1.again", fences=(("a", 1),))
    assert isinstance(log.append(again, BIRTH), Conflicted)

    assert timed.transport.leases(["a"]) == (False,)


def test_a_lease_runs_out_unless_it_is_renewed(timed: Timed) -> None:
    """E-45: otherwise the blocks of a killed engine would stay its own for ever.

    Given a life, when it renews within the time, then it holds its lease however long; when it does not, it does not.
    """
    base = joined(timed.log())
    for _ in range(4):
        timed.passes(LEASE_S * 0.5)
        assert isinstance(timed.transport.renew_lease("a", 1, base), Renewed)
        assert timed.transport.leases(["a"]) == (True,)

    timed.passes(LEASE_S * 1.3)

    assert timed.transport.leases(["a"]) == (False,)


def test_a_late_renewal_brings_the_lease_back(timed: Timed) -> None:
    """Otherwise an engine that compiled for ten seconds, and that nobody declared lost, would have to begin anew."""
    base = joined(timed.log())
    timed.passes(LEASE_S * 1.3)

    assert timed.transport.renew_lease("a", 1, base) == Renewed(life_of(timed))

    assert timed.transport.leases(["a"]) == (True,)


def life_of(timed: Timed) -> str:
    return timed.transport.head().life


def test_a_fenced_life_renews_nothing(timed: Timed) -> None:
    """E-45: otherwise a zombie would keep itself alive.

    Given the next life of an engine, when the old one renews, then it hears of the fence, and the lease is the new one's.
    """
    log = timed.log()
    first = joined(log)
    joined(log, session=2, base=first)
    timed.passes(LEASE_S * 1.3)

    assert timed.transport.renew_lease("a", 1, first) == Fenced(2)
    assert timed.transport.leases(["a"]) == (False,)


@pytest.mark.parametrize("base", [Base(1, "other"), Base(2, "more"), Base(0, "x")])
def test_an_engine_of_another_history_renews_nothing(timed: Timed, base: Base) -> None:
    """Otherwise an idle engine would not notice that the log was rolled back, and others would wait for it.

    Given an engine that knows another commit than the log, or more than it, when it renews, then Diverged, and no lease.
    """
    joined(timed.log())
    timed.passes(LEASE_S * 1.3)

    found = "join.a.1" if base.position == 1 else ""
    assert timed.transport.renew_lease("a", 1, base) == Diverged(base.position, found)
    assert timed.transport.leases(["a"]) == (False,)


def test_an_engine_that_holds_its_lease_is_not_lost(timed: Timed) -> None:
    """E-25: otherwise a keeper with a slow network would take the blocks of engines that compute on them.

    Given two engines of which one holds its lease, when a keeper declares both lost, then refused by the name of that one,
    and nothing is written.
    """
    log = timed.log()
    base = joined(log, "a")
    timed.passes(LEASE_S * 1.3)
    base = joined(log, "b", base=base)
    before = (log.read(0), timed.transport.leases(["a", "b"]))

    assert log.append(deposing("a", "b"), base) == StillAlive("b")
    assert log.append(deposing("b"), base) == StillAlive("b")

    assert (log.read(0), timed.transport.leases(["a", "b"])) == before
    assert log.append(commit("go.on", engine="b"), base) == Appended(3, ())


def test_losing_an_engine_fences_it_in_the_same_step(timed: Timed) -> None:
    """E-25: otherwise a late command of a dead engine would change blocks that have gone to others.

    Given an engine without a lease, when it is declared lost, then from that position on its session appends nothing and
    hears why; the next session does.
    """
    log = timed.log()
    base = joined(log)
    timed.passes(LEASE_S * 1.3)

    reply = log.append(deposing("a"), base)

    assert reply == Appended(2, ())
    for late in (base, Base(2, "depose")):
        zombie = log.append(commit("late", pools=["p"]), late)
        assert zombie == Fenced(2)
        assert isinstance(zombie, Fenced)
        assert ids(zombie.missed) == (["depose"] if late is base else [])
    assert joined(log, session=2, base=Base(2, "depose")).position == 3


def test_a_zombie_is_told_why(timed: Timed) -> None:
    """E-25: otherwise people would look for a defect of their engine.

    Given an engine that was paused and declared lost, when it calls, then its life is over, with the keeper's reason, now
    and at every later call; nothing of it is in the log; after `rejoin` it works.
    """
    index = CacheIndex(timed, name="timed", engine="a", gpu_blocks=4, block_size=4, follow=False)
    log = timed.log()
    timed.passes(LEASE_S * 1.3)
    head = log.head()
    assert isinstance(log.append(deposing("a"), Base(head.position, head.commit_id)), Appended)

    for _ in range(2):
        with pytest.raises(SessionOver, match=r"because no sign of life from it for 9\.0 s") as over:
            index.match("r", [1, 2, 3, 4])
        assert (over.value.session, over.value.current) == (1, 2)
    assert log.head().position == head.position + 1

    index.rejoin()
    index.match("r", [1, 2, 3, 4])
    assert index.session == 2


@pytest.mark.parametrize("calls", ["match", "step", "poll", "refresh", "allocate"])
def test_who_rejoins_by_itself_is_told_once(timed: Timed, calls: str) -> None:
    """Otherwise a scheduler would use blocks of a life that is over, or be stuck in it.

    Given an engine that begins its next life by itself and was declared lost, when it calls, then one call says so, and the
    next works in the next life, in which the old requests are unknown.
    """
    index = CacheIndex(
        timed, name="timed", engine="a", gpu_blocks=4, block_size=4, follow=False, rejoin_automatically=True
    )
    index.match("old", [1, 2, 3, 4])
    timed.passes(LEASE_S * 1.3)
    head = timed.log().head()
    timed.log().append(deposing("a"), Base(head.position, head.commit_id))

    def call() -> None:
        if calls == "match":
            index.match("r", [1, 2, 3, 4])
        elif calls == "allocate":
            index.allocate("old", 1)
        elif calls == "poll":
            index.poll("a:9")
        elif calls == "refresh":
            index.refresh()
            index.match("r", [1, 2, 3, 4])
        else:
            with index.step():
                index.match("r", [1, 2, 3, 4])

    with pytest.raises(SessionOver):
        call()

    index.match("new", [1, 2, 3, 4])
    assert (index.session, index.requests()) == (2, ("new",))


def test_an_idle_engine_is_kept_alive_in_the_background(
    stored: LogConnection, index_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every engine without traffic would be declared lost.

    Given an engine that makes no call for twice its lease, then it holds it all the while; when it is fenced, it knows
    before its next commit.
    """
    monkeypatch.setattr(limits, "LEASE_TTL_S", 1.0)
    monkeypatch.setattr(limits, "LEASE_EVERY_S", 0.05)
    index = CacheIndex(stored, name=index_name, engine="a", gpu_blocks=4, block_size=4, follow=False)
    timed = Timed.on(stored, index_name)

    for _ in range(10):
        time.sleep(0.2)
        assert timed.transport.leases(["a"]) == (True,)

    CacheIndex(stored, name=index_name, engine="a", gpu_blocks=4, block_size=4, follow=False)
    appended = timed.transport.head().position

    def noticed() -> bool:
        try:
            index.poll("a:1")
        except SessionOver:
            return True
        except KeyError:
            return False
        return False

    until(noticed)
    assert timed.transport.head().position == appended
