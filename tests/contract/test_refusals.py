"""What an append refuses, in which order, and that a refusal leaves no trace; on every backend."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from events import limits
from events.facts import HistoryLost
from events.log import EventLog, LogConnection
from events.ports import Appended, AppendReply, Base, Commit, Conflicted, Diverged, Fenced, LossInTheWay
from tests.contract.commits import BIRTH, commit, dump, filled, ids, job, without_loss

# --- fences ---------------------------------------------------------------------------------------------------------


def test_a_lower_session_is_refused(connection: LogConnection, index_name: str) -> None:
    """Otherwise an engine that was declared lost would wake up and use blocks that belong to others.

    Given a's fence was raised to 3, when sessions 1 and 2 append, then Fenced(3); 3 and 4 may.
    """
    log = connection.log(index_name)
    log.append(commit("k1", engine="keeper", fences=(("a", 3),)), BIRTH)
    base = Base(1, "k1")

    assert log.append(commit("a1", session=1), base) == Fenced(3)
    assert log.append(commit("a2", session=2), base) == Fenced(3)
    assert log.append(commit("a3", session=3), base) == Appended(2, ())
    assert log.append(commit("a4", session=4), Base(2, "a3")) == Appended(3, ())


def test_the_fence_rises_with_the_commit_itself(connection: LogConnection, index_name: str) -> None:
    """Otherwise there would be a moment in which both lives of an engine may write.

    Given a's second life joins, raising the fence in the same step, when the first life appends, then Fenced.
    """
    log = connection.log(index_name)
    log.append(commit("a1", session=1, fences=(("a", 1),)), BIRTH)
    log.append(commit("a2", session=2, fences=(("a", 2),)), Base(1, "a1"))

    assert log.append(commit("a1b", session=1), Base(1, "a1")) == Fenced(2)
    assert ids(log.read(0)) == ["a1", "a2"]


def test_sessions_compare_as_numbers(connection: LogConnection, index_name: str) -> None:
    """Otherwise the tenth life of an engine would be locked out by its ninth.

    Given a's fence is 9, when session 10 appends, then it may; when the fence is 10, session 9 may not.
    """
    log = connection.log(index_name)
    log.append(commit("k1", engine="keeper", fences=(("a", 9),)), BIRTH)

    assert isinstance(log.append(commit("a1", session=10, fences=(("a", 10),)), Base(1, "k1")), Appended)
    assert log.append(commit("a2", session=9), Base(2, "a1")) == Fenced(10)


def test_only_the_named_engines_are_fenced(connection: LogConnection, index_name: str) -> None:
    """Otherwise the loss of one engine would stop its neighbours.

    Given one commit fences a and b, when a, b and c append with session 1, then only c may.
    """
    log = connection.log(index_name)
    log.append(commit("k1", engine="keeper", fences=(("a", 2), ("b", 5))), BIRTH)
    base = Base(1, "k1")

    assert log.append(commit("a1", engine="a"), base) == Fenced(2)
    assert log.append(commit("b1", engine="b"), base) == Fenced(5)
    assert isinstance(log.append(commit("c1", engine="c"), base), Appended)


def test_own_commit_from_before_the_fence_is_found(connection: LogConnection, index_name: str) -> None:
    """Otherwise an engine whose client repeats on its own would be told that its last step never happened.

    Given a1 landed and then a's fence was raised, when the same commit comes again, then Appended at its place; when
    another commit comes, then Fenced.
    """
    log = connection.log(index_name)
    log.append(commit("b1", engine="b"), BIRTH)
    log.append(commit("a1"), BIRTH)
    log.append(commit("k1", engine="keeper", fences=(("a", 2),)), Base(2, "a1"))

    assert log.append(commit("a1"), BIRTH) == Appended(2, log.read(0)[:1])
    assert log.append(commit("a2"), Base(2, "a1")) == Fenced(2)
    assert ids(log.read(0)) == ["b1", "a1", "k1"]


# --- a history that does not fit ------------------------------------------------------------------------------------


def test_another_commit_at_the_base(connection: LogConnection, index_name: str) -> None:
    """Otherwise an engine would go on with blocks of a history that a failover threw away.

    Given the log has other commits than the caller knows, in the middle or at the head, when it appends, then Diverged
    names the place and what is there.
    """
    log = connection.log(index_name)
    filled(log, 5)

    assert log.append(commit("x1", engine="x"), Base(3, "lost")) == Diverged(3, "c3")
    assert log.append(commit("x2", engine="x"), Base(5, "lost")) == Diverged(5, "c5")
    assert log.append(commit("x3", engine="x"), Base(0, "lost")) == Diverged(0, "")


def test_a_base_ahead_of_the_log(connection: LogConnection, index_name: str) -> None:
    """Otherwise an engine would write into a log that was rolled back, and leave a hole.

    Given a log of 2, or none, when somebody at 3 appends, then Diverged: nothing is there.
    """
    empty, log = connection.log(f"{index_name}-empty"), connection.log(index_name)
    assert empty.append(commit("x1", engine="x"), Base(3, "c3")) == Diverged(3, "")

    filled(log, 2)

    assert log.append(commit("x2", engine="x"), Base(3, "c3")) == Diverged(3, "")


def test_the_fence_is_judged_before_the_history(connection: LogConnection, index_name: str) -> None:
    """Otherwise a fenced engine would report a corrupt log instead of the end of its session.

    Given a fenced engine with a base that does not exist, when it appends, then Fenced.
    """
    log = connection.log(index_name)
    log.append(commit("k1", engine="keeper", fences=(("a", 2),)), BIRTH)

    assert log.append(commit("a1"), Base(7, "c7")) == Fenced(2)


# --- far behind -----------------------------------------------------------------------------------------------------


@pytest.fixture
def short_replies(monkeypatch: pytest.MonkeyPatch) -> int:
    """A reply carries 4 missed entries, a page holds 3."""
    monkeypatch.setattr("events.redis_log.MISSED_ENTRIES_MAX", 4)
    monkeypatch.setattr("events.memory.MISSED_ENTRIES_MAX", 4)
    monkeypatch.setattr(limits, "READ_PAGE", 3)
    return 4


@pytest.mark.parametrize("behind", [4, 5, 6, 9, 10])
def test_more_missed_than_a_reply_carries(
    connection: LogConnection, index_name: str, short_replies: int, behind: int
) -> None:
    """Otherwise an engine that paused for a while could never commit again.

    Given a caller that missed up to 4 entries, when it appends, then Appended; given more, then Conflicted with all.
    """
    log = connection.log(index_name)
    end = filled(log, behind)

    reply = log.append(commit("x1", engine="x"), BIRTH)

    if behind <= short_replies:
        assert reply == Appended(behind + 1, log.read(0, 100)[:-1])
        return
    assert isinstance(reply, Conflicted)
    assert ids(reply.missed) == [f"c{number}" for number in range(1, behind + 1)]
    assert isinstance(log.append(commit("x2", engine="x"), end), Appended)


@pytest.mark.usefixtures("short_replies")
def test_own_commit_among_more_missed_than_a_reply_carries(connection: LogConnection, index_name: str) -> None:
    """Otherwise a step that landed before a long pause would be carried out twice.

    Given a1 landed at 3 and 7 more follow, when a1 is appended again from birth, then Appended at 3 with what was before.
    """
    log = connection.log(index_name)
    filled(log, 2, engine="b")
    log.append(commit("a1"), BIRTH)
    base = Base(3, "a1")
    for number in range(4, 11):
        log.append(commit(f"d{number}", engine="d"), base)
        base = Base(number, f"d{number}")

    assert log.append(commit("a1"), BIRTH) == Appended(3, log.read(0, 2))


# --- no trace -------------------------------------------------------------------------------------------------------


@attrs.frozen
class Refused:
    """A commit that is refused on the log of `test_a_refusal_leaves_no_trace`."""

    commit: Commit
    base: Base
    because: Callable[[AppendReply], bool]


RUNG = (job("x:0"), job("x:1", pool="gpu:b"))
REFUSED = {
    "conflicted": Refused(
        commit("x1", engine="x", pools=["new", "p"], fences=(("a", 8), ("new", 1)), jobs=RUNG),
        Base(1, "c1"),
        lambda reply: isinstance(reply, Conflicted) and len(reply.missed) == 5,
    ),
    "behind": Refused(
        commit("x1", engine="x", pools=["new"], fences=(("new", 1),), jobs=RUNG),
        BIRTH,
        lambda reply: isinstance(reply, Conflicted) and len(reply.missed) == 6,
    ),
    "fenced": Refused(
        commit("x1", engine="gone", session=4, pools=["new"], fences=(("gone", 9), ("new", 1)), jobs=RUNG),
        Base(6, "k"),
        lambda reply: reply == Fenced(5),
    ),
    "diverged in the middle": Refused(
        commit("x1", engine="x", pools=["new"], fences=(("new", 1),), jobs=RUNG),
        Base(2, "other"),
        lambda reply: reply == Diverged(2, "c2"),
    ),
    "diverged at the head": Refused(
        commit("x1", engine="x", pools=["new"], fences=(("new", 1),), jobs=RUNG),
        Base(6, "other"),
        lambda reply: reply == Diverged(6, "k"),
    ),
    "diverged beyond": Refused(
        commit("x1", engine="x", pools=["new"], fences=(("new", 1),), jobs=RUNG),
        Base(7, "c7"),
        lambda reply: reply == Diverged(7, ""),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_leaves_no_trace(
    connection: LogConnection, index_name: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a step that never happened would block, fence or surprise others.

    Given a log with versions and fences, when a commit is refused, then every key and field is as before; but that somebody
    knew a commit which the log does not hold is remembered, until a commit has dealt with it.
    """
    monkeypatch.setattr("events.redis_log.MISSED_ENTRIES_MAX", 5)
    monkeypatch.setattr("events.memory.MISSED_ENTRIES_MAX", 5)
    refused = REFUSED[case]
    log: EventLog = connection.log(index_name)
    end = filled(log, 5)
    log.append(commit("k", engine="keeper", pools=["p"], fences=(("gone", 5),)), end)
    before = dump(connection, index_name)

    reply = log.append(refused.commit, refused.base)

    assert refused.because(reply), reply
    assert without_loss(dump(connection, index_name)) == before
    last = Base(6, "k")
    if isinstance(reply, Diverged):
        assert log.append(commit("too early", engine="y"), last) == LossInTheWay(refused.base.commit_id)
        told = commit("told", engine="z", facts=[HistoryLost("z", refused.base.commit_id)])
        assert log.append(told, last) == Appended(7, ())
        last = Base(7, "told")
    after = log.append(commit("after", engine="y", pools=["p", "new"]), last)
    assert after == Appended(last.position + 1, ())
