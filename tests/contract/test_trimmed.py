"""The log has forgotten what comes after the place somebody has come to: what he is told, at each door, on every backend.

Trimmed behind snapshots, as a keeper does it; what it keeps is `test_snapshots.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from events import CorruptState, OutcomeUnknown, Unavailable, limits
from events.jobs import encode_job
from events.keys import IndexKeys
from events.log import EventLog, LogConnection
from events.ports import Appended, Base, Commit, Diverged, Fenced, Job, Renewed, SnapshotPointer, Trimmed
from events.snapshots import Snapshots
from events.transport import Published, Transport
from statecore import CacheIndex, SessionOver, StepConflict, UnknownTransfer
from statecore.invariants import leaked_blocks, violations
from tests.contract.commits import BIRTH, client_of, commit, filled, ids
from tests.contract.test_read import until
from tests.jobs.given import POOL, job
from tests.keeper.given import keeper_of, work

END = 20
FIRST = 11


def forget(transport: Transport, *positions: int) -> None:
    """Two snapshots are published, and the log keeps what comes after the first of them."""
    shelf = Snapshots(transport.snapshots)
    for position in positions:
        pointer = shelf.upload(b"#", SnapshotPointer(position, f"c{position}", "d", 1, "", 0, 0))
        assert isinstance(shelf.publish(pointer, shelf.pointers()), Published)


@pytest.fixture
def forgetful(connection: LogConnection, index_name: str, monkeypatch: pytest.MonkeyPatch) -> EventLog:
    """A log of 20 commits that keeps the last ten."""
    monkeypatch.setattr(limits, "SNAPSHOT_MARGIN", 0)
    log = connection.log(index_name, follow=False)
    filled(log, END)
    forget(connection.backend.transport(index_name), FIRST - 1, END)
    assert log.head().first == FIRST
    return log


# --- the log --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 1, FIRST - 2])
def test_an_append_from_behind_the_trim(forgetful: EventLog, position: int) -> None:
    """Otherwise a step would be decided on a state with a hole in it.

    Given a writer that has missed what is forgotten, when it appends, then Trimmed, and nothing is written.
    """
    base = Base(position, f"c{position}" if position else "")

    assert forgetful.append(commit("late", engine="b"), base) == Trimmed()

    assert forgetful.head().position == END


def test_an_append_from_the_edge_of_the_trim(forgetful: EventLog) -> None:
    """Otherwise everybody a moment behind a snapshot would have to restore.

    Given a writer at the last forgotten position, then it is told all it missed; with another commit there, Diverged.
    """
    reply = forgetful.append(commit("late", engine="b"), Base(FIRST - 1, f"c{FIRST - 1}"))

    assert isinstance(reply, Appended)
    assert ids(reply.missed) == [f"c{position}" for position in range(FIRST, END + 1)]
    assert forgetful.append(commit("x", engine="b"), Base(FIRST - 1, "other")) == Diverged(FIRST - 1, f"c{FIRST - 1}")


def test_a_fenced_writer_behind_the_trim_is_fenced(forgetful: EventLog) -> None:
    """Otherwise a zombie would restore a snapshot before it hears that its life is over."""
    end = forgetful.head()
    fence = commit("fence", engine="b", fences=(("a", 2),))
    assert isinstance(forgetful.append(fence, Base(end.position, end.commit_id)), Appended)

    assert forgetful.append(commit("late"), Base(1, "c1")) == Fenced(2)


def test_a_read_from_behind_the_trim_shows_the_gap(forgetful: EventLog) -> None:
    """Otherwise a reader would apply entry 11 on top of position 5."""
    assert [entry.position for entry in forgetful.read(5, 3)] == [11, 12, 13]


def test_a_lease_from_behind_the_trim_is_renewed_and_proves_nothing(forgetful: EventLog) -> None:
    """Otherwise an idle engine would lose its life to a trim; or think that its history was seen to go on."""
    transport = forgetful._transport

    behind = transport.renew_lease("a", 1, Base(3, "c3"))
    edge = transport.renew_lease("a", 1, Base(FIRST - 1, f"c{FIRST - 1}"))

    assert isinstance(behind, Renewed)
    assert isinstance(edge, Renewed)
    assert (behind.continued, edge.continued) == (False, True)


def test_a_job_of_a_state_behind_the_trim_is_not_rung(forgetful: EventLog, connection: LogConnection) -> None:
    """Otherwise a keeper that was away for an hour would ring jobs of transfers whose acks are gone already."""
    bell = connection.doorbell(forgetful.index)
    rung = Job(POOL, "e0:0", encode_job(job()))

    assert bell.ring(rung, Base(3, "c3")) is False
    assert bell.ring(rung, Base(END, "other")) is False
    assert bell.ringing(POOL) == frozenset()
    assert bell.ring(rung, Base(FIRST - 1, f"c{FIRST - 1}")) is True


# --- a commit in doubt ----------------------------------------------------------------------------------------------


@attrs.define
class Deaf:
    """A transport whose replies are lost while `deaf`; `before_append` happens between a look and the next append."""

    inner: Transport
    deaf: bool = False
    before_append: Callable[[], None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def append(self, record: Any, **named: Any) -> Any:
        if self.before_append is not None:
            self.before_append()
        reply = self.inner.append(record, **named)
        if self.deaf:
            raise OutcomeUnknown("lost", record.commit_id)
        return reply

    def read(self, after: int, limit: int) -> Any:
        if self.deaf:
            raise Unavailable("lost")
        return self.inner.read(after, limit)


def in_doubt(transport: Transport, made: Commit, base: Base) -> tuple[EventLog, Deaf]:
    """A log whose writer has sent this and heard nothing until its deadline."""
    deaf = Deaf(transport, deaf=True)
    log = EventLog("deaf", deaf, sleep=lambda _s: None)
    with pytest.raises(OutcomeUnknown):
        log.append(made, base)
    deaf.deaf = False
    return log, deaf


@pytest.mark.parametrize("landed", [True, False])
def test_a_commit_in_doubt_behind_the_trim(
    connection: LogConnection, index_name: str, landed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a commit that landed and was forgotten would be sent again, and have its effect twice (P3).

    Given a commit whose reply was lost (it landed, or was refused), when the log has forgotten that place before it could be
    found out, then Trimmed in doubt: nobody knows; nothing is appended.
    """
    monkeypatch.setattr(limits, "SNAPSHOT_MARGIN", 0)
    log, transport = connection.log(index_name, follow=False), connection.backend.transport(index_name)
    filled(log, 5)
    doubtful = commit("doubtful", engine="b", pools=[] if landed else ["p"])
    if not landed:
        assert isinstance(log.append(commit("c6", pools=["p"]), Base(5, "c5")), Appended)
    doubting, _ = in_doubt(transport, doubtful, Base(5, "c5"))
    head = log.head()
    for number in range(head.position + 1, END + 1):
        head = log.head()
        log.append(commit(f"c{number}", engine="c"), Base(head.position, head.commit_id))
    forget(transport, 10, END)

    assert doubting.append(doubtful, Base(5, "c5")) == Trimmed(in_doubt=True)
    assert log.head().position == END


def test_a_commit_in_doubt_whose_place_is_forgotten_meanwhile(
    connection: LogConnection, index_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a trim between the look and the next attempt would make a doubt look like a plain refusal.

    Given a commit in doubt that is not in the log, when its place is forgotten between the look and the next
    attempt, then Trimmed in doubt.
    """
    monkeypatch.setattr(limits, "SNAPSHOT_MARGIN", 0)
    log, transport = connection.log(index_name, follow=False), connection.backend.transport(index_name)
    filled(log, 5)
    log.append(commit("c6", pools=["p"]), Base(5, "c5"))
    doubtful = commit("doubtful", engine="b", pools=["p"])
    doubting, deaf = in_doubt(transport, doubtful, Base(5, "c5"))

    def meanwhile() -> None:
        deaf.before_append = None
        for number in range(7, END + 1):
            log.append(commit(f"c{number}", engine="c"), Base(number - 1, f"c{number - 1}"))
        forget(transport, 10, END)

    deaf.before_append = meanwhile

    assert doubting.append(doubtful, Base(5, "c5")) == Trimmed(in_doubt=True)


# --- an engine ------------------------------------------------------------------------------------------------------


@attrs.frozen
class Asleep:
    """An engine that has not looked while the log was trimmed past it; `busy` shares its pool."""

    idle: CacheIndex
    busy: CacheIndex
    table: list[int]


def engine(connection: LogConnection, index: str, name: str, **given: Any) -> CacheIndex:
    settings = {"gpu_pool": "shared", "gpu_blocks": 16, "block_size": 4, "follow": False, **given}
    return CacheIndex(connection, name=index, engine=name, **settings)


def falls_behind(connection: LogConnection, index: str, idle: CacheIndex, busy: CacheIndex) -> None:
    keeper, _ = keeper_of(connection, index)
    behind = idle.position
    for turn in range(4):
        work(busy, 8, f"t{turn}-")
        keeper.turn()
    assert connection.log(index).head().first > behind + 1


@pytest.fixture
def asleep(connection: LogConnection, index_name: str, monkeypatch: pytest.MonkeyPatch) -> Asleep:
    monkeypatch.setattr(limits, "SNAPSHOT_MARGIN", 5)
    idle, busy = engine(connection, index_name, "idle"), engine(connection, index_name, "busy")
    idle.match("kept", [5, 6, 7, 8] * 2)
    idle.allocate("kept", 2)
    falls_behind(connection, index_name, idle, busy)
    return Asleep(idle, busy, idle.table("kept"))


def sound(*indexes: CacheIndex) -> None:
    assert len({index.refresh() for index in indexes}) == 1
    assert len({index.digest() for index in indexes}) == 1
    for index in indexes:
        assert (index.inspect(violations), index.inspect(leaked_blocks)) == ([], 0)


def test_a_step_goes_on_from_a_snapshot(asleep: Asleep) -> None:
    """Otherwise an engine that slept through a night would have to begin anew, with all its requests.

    Given an engine behind the trim, when it asks several things in one step, then they are one commit at the end of the log,
    in the same life, and its answers are those of there.
    """
    with asleep.idle.step() as step:
        given = asleep.idle.allocate("kept", 1)
        asleep.idle.extend("kept", blocks=2, ready=True)

    assert step.position == asleep.idle.position
    assert asleep.idle.table("kept") == [*asleep.table, *given.blocks]
    assert (asleep.idle.session, asleep.idle.path_blocks("kept")) == (1, 2)
    sound(asleep.idle, asleep.busy)


def test_answers_that_do_not_hold_end_the_step(asleep: Asleep) -> None:
    """Otherwise a scheduler would compute with a hit that its replica only remembered.

    Given an engine behind the trim that begins a request on what it knows, when others' blocks are there by now, then the
    answers are those of the log's end, or StepConflict and nothing happened.
    """
    tokens = [1, 2, 3, 4, *([3] * 8)]
    try:
        with asleep.idle.step():
            told = asleep.idle.match("new", tokens)
            asleep.idle.allocate("new", 3 - len(told.blocks))
    except StepConflict:
        assert asleep.idle.requests() == ("kept",)
    else:
        assert len(asleep.idle.table("new")) == 3
    sound(asleep.idle, asleep.busy)


def test_a_pool_that_was_full_before_the_trim(
    connection: LogConnection, index_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a full pool would end the life of an engine behind the trim: a gap was taken for a broken history.

    Given an engine by whose replica the pool is full of another's requests, when those ended behind the trim and it
    allocates, then it is given blocks, in the same life.
    """
    monkeypatch.setattr(limits, "SNAPSHOT_MARGIN", 5)
    idle, busy = engine(connection, index_name, "idle"), engine(connection, index_name, "busy")
    busy.match("big", [9] * 8)
    busy.allocate("big", 12)
    idle.match("kept", [5, 6, 7, 8] * 2)
    idle.refresh()
    busy.release("big")
    falls_behind(connection, index_name, idle, busy)

    assert len(idle.allocate("kept", 15).blocks) == 15
    assert idle.session == 1
    sound(idle, busy)


@pytest.mark.parametrize("ask", ["refresh", "poll", "wait"])
def test_a_look_goes_on_from_a_snapshot(asleep: Asleep, ask: str) -> None:
    """Otherwise a monitoring call would end the life of an engine behind the trim."""
    end = asleep.busy.refresh()
    if ask == "refresh":
        assert asleep.idle.refresh() == end
    else:
        with pytest.raises(UnknownTransfer):
            asleep.idle.poll("busy:0") if ask == "poll" else asleep.idle.wait("busy:0", 1.0)

    assert (asleep.idle.position, asleep.idle.session) == (end, 1)
    assert asleep.idle.table("kept") == asleep.table


def test_a_follower_that_fell_behind(
    connection: LogConnection, index_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise an engine that follows would apply what arrived on top of a hole.

    Given an engine whose follower holds little, when the log is trimmed past it and it calls, then it goes on from
    a snapshot.
    """
    monkeypatch.setattr(limits, "SNAPSHOT_MARGIN", 5)
    monkeypatch.setattr(limits, "FOLLOW_QUEUE_MAX", 1)
    monkeypatch.setattr(limits, "FOLLOW_BLOCK_S", 0.05)
    idle = engine(connection, index_name, "idle", follow=True)
    busy = engine(connection, index_name, "busy")
    idle.match("kept", [5, 6, 7, 8] * 2)
    falls_behind(connection, index_name, idle, busy)
    end = busy.refresh()

    def there() -> bool:
        with idle.step():
            return idle.position == end

    idle.allocate("kept", 1)
    end += 1
    until(there)
    assert (idle.session, idle.requests()) == (1, ("kept",))
    busy.refresh()
    assert idle.digest() == busy.digest()


def test_a_step_in_doubt_that_is_forgotten_ends_the_life(
    connection: LogConnection, index_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise an engine would use, or give away, blocks without knowing whether they are its own.

    Given a step whose reply was lost, when the log has forgotten that place before `resolve`, then the life is over and says
    why; after `rejoin` nothing is leaked.
    """
    monkeypatch.setattr(limits, "SNAPSHOT_MARGIN", 5)
    busy = engine(connection, index_name, "busy")
    deaf = Deaf(connection.backend.transport(index_name))

    @attrs.frozen
    class Place:
        def log(self, index: str, *, follow: bool = True) -> EventLog:
            return EventLog(index, deaf, follow=follow, sleep=lambda _s: None, threads=False)

        def indexes(self) -> tuple[str, ...]:
            return ()

        def close(self) -> None: ...

    idle = engine(Place(), index_name, "idle")  # type: ignore[arg-type]
    deaf.deaf = True
    with pytest.raises(OutcomeUnknown):
        idle.match("doubtful", [5, 6, 7, 8])
    deaf.deaf = False
    falls_behind(connection, index_name, idle, busy)

    with pytest.raises(SessionOver, match="forgotten what became of commit"):
        idle.resolve()

    idle.rejoin()
    idle.match("next", [5, 6, 7, 8])
    assert idle.requests() == ("next",)
    sound(idle, busy)


# --- nothing to go on from ------------------------------------------------------------------------------------------


def test_trimmed_by_hand(stored: LogConnection, index_name: str) -> None:
    """Otherwise somebody's XTRIM would give two engines two histories.

    Given a log trimmed without a snapshot, when an engine behind it steps, then CorruptState with both positions; when
    one at its end does, it goes on.
    """
    idle, busy = engine(stored, index_name, "idle"), engine(stored, index_name, "busy")
    work(busy, 3)
    end = busy.position
    client_of(stored).xtrim(IndexKeys.of(index_name).log, minid=f"{end}-0", approximate=False)

    with pytest.raises(CorruptState, match=f"begins at position {end} and no snapshot covers"):
        idle.match("r", [1, 2, 3, 4])

    work(busy, 1, "more")
    assert stored.log(index_name).append(commit("x"), BIRTH) == Trimmed()
