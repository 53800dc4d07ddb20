"""The checker of chaos runs is checked: a sound history passes, and each planted defect is found by the check it is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import pytest

from events import connect
from events.errors import CorruptState
from events.facts import TransferFinished
from events.ports import Entry
from ops.chaos import checks
from ops.chaos.checks import Finding
from ops.chaos.history import (
    Acknowledged,
    Began,
    Compared,
    Doubted,
    Ended,
    Failed,
    History,
    HistoryWriter,
    Line,
    Looked,
    Refused,
    Resolved,
    Told,
    read_histories,
    read_history,
)
from ops.chaos.replayed import cached_bytes, replay
from statecore import CacheIndex
from statecore.replica import Replica

TOKENS = list(range(64))


@pytest.fixture(scope="module")
def entries() -> tuple[Entry, ...]:
    """A log of two engines: one serves a request, one leaves, one begins a second life."""
    with connect("memory://") as connection:
        first = CacheIndex(
            connection, name="i", engine="a", gpu_pool="gpu:a", gpu_blocks=8, block_size=16, cpu_blocks=8
        )
        second = CacheIndex(
            connection, name="i", engine="b", gpu_pool="gpu:b", gpu_blocks=8, block_size=16, cpu_blocks=8
        )
        first.match("r", tokens=TOKENS)
        first.allocate("r", 4)
        first.extend("r", blocks=4)
        first.release("r")
        second.close()
        first.rejoin()
        first.match("s", tokens=TOKENS)
        first.release("s")
        return connection.log("i", follow=False).read(0)


@pytest.fixture
def histories(entries: tuple[Entry, ...]) -> list[History]:
    """What engine "a" would have written of it: every commit acknowledged one second after the other."""
    own = [entry for entry in entries if entry.engine == "a"]
    lines: list[Line] = [
        Acknowledged(entry.id, entry.position, entry.session, began=entry.position, ended=entry.position + 0.5)
        for entry in own
    ]
    return [History("a", "a#0", (Began(1, "start", 0.0), *lines, Ended(2, 99.0)))]


def with_lines(histories: Sequence[History], *lines: Line) -> list[History]:
    return [attrs.evolve(histories[0], lines=(*histories[0].lines, *lines)), *histories[1:]]


def changed(
    histories: Sequence[History], position: int, change: Callable[[Acknowledged], Acknowledged]
) -> list[History]:
    """The acknowledgement of a position says something else."""
    lines = tuple(
        change(line) if isinstance(line, Acknowledged) and line.position == position else line
        for line in histories[0].lines
    )
    return [attrs.evolve(histories[0], lines=lines)]


def numbered(entries: Sequence[Entry]) -> list[Entry]:
    """Positions and links made whole again after something was put in or taken out."""
    whole: list[Entry] = []
    for number, entry in enumerate(entries, start=1):
        whole.append(attrs.evolve(entry, position=number, previous=whole[-1].id if whole else ""))
    return whole


def test_a_sound_history_has_nothing_wrong(entries: tuple[Entry, ...], histories: list[History]) -> None:
    """Given what really happened, no check finds anything, and each has looked at something."""
    replica = Replica()
    replica.apply_all(entries)
    told = with_lines(
        histories,
        Compared(len(entries), replica.digest(), 50.0),
        Doubted(entries[0].id, 1.0),
        Resolved(entries[0].id, True, 2.0),
        Doubted("never", 1.0),
        Told("never", False, 2.0),
        Refused("never", 1, 3.0),
        Looked(4, 0, "", 4.0),
    )
    doubts, landed, not_landed = checks.found_out(told, entries)
    replayed = replay(entries, told)

    findings: list[Finding] = [
        checks.whole(entries),
        checks.once(entries),
        checks.acknowledged(told, entries),
        checks.in_order(told),
        doubts,
        checks.refused(told, entries),
        checks.one_life(entries),
        checks.unchanged(entries, entries[3:]),
        checks.failures(told),
        checks.bytes_looked_at(told),
        replayed.digests,
        replayed.invariants,
        cached_bytes(replayed.state, lambda _pool, _block, _hash: True),
    ]

    assert [finding.wrong for finding in findings] == [()] * len(findings)
    assert all(finding.looked_at for finding in findings)
    assert (landed, not_landed) == (1, 1)
    assert (replayed.leaked, replayed.open_transfers) == (0, 0)
    assert replayed.alive == ("a",)


def test_a_lost_acknowledgement_is_found(entries: tuple[Entry, ...], histories: list[History]) -> None:
    """Given an acknowledged commit that the log does not hold, at its end or anywhere, it is found."""
    middle = numbered([*entries[:4], *entries[5:]])

    assert checks.acknowledged(histories, entries[:-1]).wrong
    assert checks.acknowledged(histories, middle).wrong


def test_an_acknowledgement_at_another_place_is_found(entries: tuple[Entry, ...], histories: list[History]) -> None:
    moved = changed(histories, 4, lambda line: attrs.evolve(line, position=2))

    assert len(checks.acknowledged(moved, entries).wrong) == 1


def test_a_commit_that_landed_twice_is_found(entries: tuple[Entry, ...]) -> None:
    assert len(checks.once(numbered([*entries, entries[3]])).wrong) == 1


def test_a_gap_and_a_broken_link_are_found(entries: tuple[Entry, ...]) -> None:
    assert checks.whole([*entries[:3], *entries[4:]]).wrong
    assert checks.whole([*entries[:3], attrs.evolve(entries[3], previous="other"), *entries[4:]]).wrong
    assert checks.whole(entries[1:]).wrong


def test_a_commit_before_one_that_was_acknowledged_first_is_found(histories: list[History]) -> None:
    """Given a commit acknowledged before the one above it was even begun, the order of the log is wrong."""
    later = changed(histories, 4, lambda line: attrs.evolve(line, began=60.0, ended=61.0))
    together = changed(histories, 4, lambda line: attrs.evolve(line, began=0.5, ended=61.0))

    assert checks.in_order(later).wrong
    assert not checks.in_order(together).wrong


@pytest.mark.parametrize(("commit", "landed"), [(0, False), ("never", True)])
@pytest.mark.parametrize("kind", [Resolved, Told])
def test_a_doubt_resolved_untruly_is_found(
    entries: tuple[Entry, ...], histories: list[History], commit: int | str, landed: bool, kind: type[Resolved | Told]
) -> None:
    """Given a commit that landed and was called lost, or the other way round, it is found, whoever said so."""
    name = entries[commit].id if isinstance(commit, int) else commit
    told = with_lines(histories, Doubted(name, 1.0), kind(name, landed, 2.0))

    assert len(checks.found_out(told, entries)[0].wrong) == 1


def test_a_refused_commit_that_landed_is_found(entries: tuple[Entry, ...], histories: list[History]) -> None:
    assert checks.refused(with_lines(histories, Refused(entries[2].id, 1, 3.0)), entries).wrong


def test_a_commit_of_a_session_that_is_over_is_found(entries: tuple[Entry, ...]) -> None:
    """Given the commit of an engine that had left, or of the life before the present one, it is found."""
    of_b = next(entry for entry in entries if entry.engine == "b")
    of_a = next(entry for entry in entries if entry.engine == "a" and entry.session == 1 and entry.position > 2)

    for zombie in (of_b, of_a):
        late = attrs.evolve(zombie, id="late", facts=())
        assert len(checks.one_life(numbered([*entries, late])).wrong) == 1


def test_a_log_that_changed_is_found(entries: tuple[Entry, ...]) -> None:
    other = attrs.evolve(entries[5], id="other")

    assert checks.unchanged(entries, [*entries[3:5], other, *entries[6:]]).wrong
    assert checks.unchanged(entries, entries[:-1]).wrong
    assert checks.unchanged(entries, ()).wrong
    assert checks.unchanged(entries[:-1], entries).wrong


def test_a_wrong_digest_is_found(entries: tuple[Entry, ...], histories: list[History]) -> None:
    """Given a replica whose digest is another one, or that was further than the log, it is found."""
    assert replay(entries, with_lines(histories, Compared(4, "other", 9.0))).digests.wrong
    assert replay(entries, with_lines(histories, Compared(len(entries) + 1, "any", 9.0))).digests.wrong


def test_wrong_bytes_are_found(entries: tuple[Entry, ...], histories: list[History]) -> None:
    """Given a block that held something else, when it was reused or in the end, it is found."""
    state = replay(entries, histories).state
    asked: dict[int, bytes] = {}

    def is_there(_pool: str, block: int, block_hash: bytes) -> bool:
        return asked.setdefault(block, block_hash) == block_hash

    assert not cached_bytes(state, is_there).wrong
    assert len(set(asked.values())) == 4  # each block is asked for its own hash

    asked[2], asked[3] = asked[3], asked[2]
    assert len(cached_bytes(state, is_there).wrong) == 2
    assert checks.bytes_looked_at(with_lines(histories, Looked(0, 1, "among blocks [2]", 1.0))).wrong


def test_an_effect_that_happened_twice_is_found(entries: tuple[Entry, ...], histories: list[History]) -> None:
    finish = attrs.evolve(entries[-1], engine="worker:gpu:a", session=0, facts=(TransferFinished("t", True, ""),))
    twice = numbered([*entries, attrs.evolve(finish, id="f1"), attrs.evolve(finish, id="f2")])

    assert replay(twice, histories).transfers.wrong
    assert not replay(twice[:-1], histories).transfers.wrong


def test_an_engine_that_failed_is_found(histories: list[History]) -> None:
    assert checks.failures(with_lines(histories, Failed("ValueError", 1.0))).wrong


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Given lines of a process that was killed in the middle of the last one, all whole ones are read, in order."""
    lines: list[Line] = [Began(1, "start", 0.5), Acknowledged("c", 1, 1, 0.5, 1.5), Doubted("d", 2.0)]
    writer = HistoryWriter(tmp_path / "engine-0.3.history")
    for line in [*lines, Doubted("d", 3.0)]:  # the second time it is the same doubt
        writer.write(line)
    writer.close()
    with (tmp_path / "engine-0.3.history").open("ab") as file:
        file.write(b'{"kind":"Acknow')

    assert read_histories(tmp_path) == (History("engine-0", "engine-0#3", tuple(lines)),)


@pytest.mark.parametrize("line", [b"{}", b"[]", b"x", b'{"kind":"Began"}', b'{"kind":"Unheard"}'])
def test_damaged_evidence_is_refused(tmp_path: Path, line: bytes) -> None:
    """Given a line that is none of ours, nothing is concluded from the rest."""
    path = tmp_path / "engine-0.0.history"
    path.write_bytes(line + b"\n")

    with pytest.raises(CorruptState):
        read_history(path)
