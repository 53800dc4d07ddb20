"""What a process starts from, and goes on from, when the log behind the keeper's snapshots is gone."""

from __future__ import annotations

import logging
from typing import Any
from unittest import mock

import pytest

from events.errors import CorruptState
from events.keys import IndexKeys
from events.log import EventLog, LogConnection
from statecore import invariants
from statecore.restoring import up_to_date
from tests.keeper.given import (
    engine_of,
    fresh,
    keeper_of,
    small_margin,
    work,
)


def test_a_new_process_starts_from_a_snapshot_when_the_log_before_it_is_gone(
    connection: LogConnection, index_name: str
) -> None:
    """Without it a restart replays for ever longer, or cannot start at all.

    Given snapshots taken and the log trimmed behind them, when a process starts, then it has the state of the others.
    """
    engine = engine_of(connection, index_name)
    keeper, said = keeper_of(connection, index_name)

    with small_margin():
        for turn in range(4):
            work(engine, 12, f"t{turn}-")
            keeper.turn()

    head = connection.log(index_name).head()
    assert len(said.of("published")) == 4
    assert head.first > 1, "the log was trimmed"
    late = engine_of(connection, index_name, "late")
    engine.refresh()
    assert late.digest() == engine.digest()
    assert invariants.violations(fresh(connection, index_name).state) == []


def test_a_damaged_snapshot_is_passed_over_loudly(
    stored: LogConnection, index_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A flipped bit in Redis must not stop a fleet from starting.

    Given the newest snapshot damaged after it was published, when a process starts, then it starts from the one before, with
    the same state, and an alarm names the position.
    """
    engine = engine_of(stored, index_name)
    keeper, _ = keeper_of(stored, index_name)
    with small_margin():
        for turn in range(3):
            work(engine, 8, f"t{turn}-")
            keeper.turn()
    newest = stored.keeping(index_name).shelf.pointers()[0]
    client: Any = stored.backend._client  # type: ignore[attr-defined]
    client.setrange(IndexKeys.of(index_name).blob(newest.blob), newest.size // 2, b"\x00\xff\x00")

    with caplog.at_level(logging.ERROR, logger="statecore"):
        replica = fresh(stored, index_name)

    assert replica.digest() == engine.digest()
    assert f"snapshot at position {newest.position} is not used" in caplog.text


def test_a_replica_whose_snapshots_are_replaced_while_it_reads(connection: LogConnection, index_name: str) -> None:
    """A process that was stopped for a moment would take a healthy index for damaged.

    Given a replica behind the trim that has seen where the snapshots are, when both are replaced before it reads them, then
    it reads the new ones, and nobody is alarmed.
    """
    idle = engine_of(connection, index_name, "idle")
    idle.match("kept", [5] * 4)
    busy = engine_of(connection, index_name, "busy")
    keeper, _ = keeper_of(connection, index_name)
    with small_margin():
        for turn in range(4):
            work(busy, 12, f"t{turn}-")
            keeper.turn()
        shelf = type(connection.backend.transport(index_name).snapshots)
        looks = [0]

        def pointers(self: Any, look: Any = shelf.pointers) -> Any:
            found = look(self)
            looks[0] += 1
            if looks[0] == 1:
                for turn in range(2):
                    work(busy, 12, f"u{turn}-")
                    keeper.turn()
            return found

        with mock.patch.object(shelf, "pointers", pointers), mock.patch.object(EventLog, "alarm") as alarm:
            idle.allocate("kept", 1)

    assert looks[0] > 1
    assert not alarm.called
    busy.refresh()
    assert idle.digest() == busy.digest()


def test_a_log_that_grows_while_it_is_read_is_read_to_an_end(connection: LogConnection, index_name: str) -> None:
    """Otherwise no process could join a busy index, and its keeper would do nothing but read.

    Given a log that grows by a commit with every read, when a process reads it to its end, then that comes, and it has all
    that was there at the beginning.
    """
    engine = engine_of(connection, index_name)
    work(engine, 3)
    reader = engine_of(connection, index_name, "reader")
    log = connection.log(index_name, follow=False)
    before = engine.position
    read, reads = EventLog.read_stored, [0]

    def growing(self: EventLog, after: int, limit: int | None = None) -> Any:
        if self is not engine._session._log and reads[0] < 100:
            reads[0] += 1
            engine.match(f"q{reads[0]}", [reads[0]] * 4)
        return read(self, after, limit)

    with mock.patch.object(EventLog, "read_stored", growing):
        assert up_to_date(log).state.position >= before
        assert reader.refresh() >= before

    assert reads[0] < 10


def test_a_replica_behind_the_trim_goes_on_in_the_same_life(connection: LogConnection, index_name: str) -> None:
    """An engine that was idle for hours must not lose its requests because the log has moved on.

    Given an engine with a live request that has not looked while the log was trimmed past it, when it calls, then it goes on
    with its request, at the end of the log, in the same session.
    """
    idle = engine_of(connection, index_name, "idle")
    idle.match("kept", [5, 6, 7, 8] * 2)
    table = idle.allocate("kept", 2).blocks
    behind = idle.position
    busy = engine_of(connection, index_name, "busy")
    keeper, _ = keeper_of(connection, index_name)
    with small_margin():
        for turn in range(4):
            work(busy, 8, f"t{turn}-")
            keeper.turn()
    assert connection.log(index_name).head().first > behind + 1

    idle.allocate("kept", 1)

    assert idle.table("kept")[:2] == list(table)
    assert idle.session == 1
    busy.refresh()
    assert idle.digest() == busy.digest()


def test_a_log_without_its_beginning_and_without_a_snapshot_is_told(stored: LogConnection, index_name: str) -> None:
    """Somebody trimmed by hand: better no state than a wrong one."""
    engine = engine_of(stored, index_name)
    work(engine, 5)
    client: Any = stored.backend._client  # type: ignore[attr-defined]
    client.xtrim(IndexKeys.of(index_name).log, minid="10-0", approximate=False)

    with pytest.raises(CorruptState, match="begins at position 10 and no snapshot covers"):
        fresh(stored, index_name)
