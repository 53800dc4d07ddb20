"""The proofs at the end of the demo can fail; a proof that cannot would prove nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import attrs
import pytest

from events import connect
from events.errors import CorruptState
from events.log import LogConnection
from events.memory import MemoryBackend
from ops.demo.drive import drive
from ops.demo.messages import Replicated
from ops.demo.proofs import Replay, proofs, replay
from ops.demo.scheduler import Scheduler
from statecore import CacheIndex
from tests.demo.trace_requests import BLOCK, numbered, request


@pytest.fixture
def connection() -> Iterator[LogConnection]:
    with connect("memory://") as opened:
        yield opened


@pytest.fixture
def ended(connection: LogConnection) -> CacheIndex:
    """An engine that has served and left."""
    index = CacheIndex(connection, name="i", engine="engine", gpu_blocks=9, gpu_pool="g", block_size=BLOCK)
    drive(Scheduler(index, numbered(*(request([first, first + 1], 2) for first in range(0, 20, 2)))))
    index.close()
    return index


def test_a_sound_run_passes_every_proof(connection: LogConnection, ended: CacheIndex) -> None:
    """Users would be told that their index is broken when it is not."""
    replayed = replay(connection.log("i"))

    assert [
        proof.claim for proof in proofs([Replicated(ended.position, ended.digest())], replayed) if not proof.holds
    ] == []
    assert (replayed.position, replayed.digest) == (ended.position, ended.digest())
    assert len(replayed.checked_at) > 2


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (lambda replayed: attrs.evolve(replayed, digest="0" * 32), "replaying the log gives it again"),
        (lambda replayed: attrs.evolve(replayed, position=replayed.position - 1), "replaying the log gives it again"),
        (lambda replayed: attrs.evolve(replayed, alive=("engine",)), "every engine left in order"),
        (lambda replayed: attrs.evolve(replayed, violations=("block 3 is nowhere",)), "invariants hold"),
        (lambda replayed: attrs.evolve(replayed, free=replayed.free - 1), "no block leaked"),
        (lambda replayed: attrs.evolve(replayed, leaked_blocks=1), "no block leaked"),
    ],
)
def test_a_broken_run_fails_its_proof(
    connection: LogConnection, ended: CacheIndex, change: object, broken: str
) -> None:
    """The demo would say ✓ to a broken index."""
    assert callable(change)
    replayed = cast("Replay", change(replay(connection.log("i"))))

    failed = [
        proof.claim for proof in proofs([Replicated(ended.position, ended.digest())], replayed) if not proof.holds
    ]

    assert failed == [broken]


def test_replicas_that_differ_fail_the_proof(connection: LogConnection, ended: CacheIndex) -> None:
    """Engines could drift apart unnoticed."""
    mine = Replicated(ended.position, ended.digest())

    shown = proofs([mine, Replicated(ended.position, "f" * 32)], replay(connection.log("i")))

    assert [proof.claim for proof in shown if not proof.holds] == [
        "all engines hold one state",
        "replaying the log gives it again",
    ]


def test_a_log_that_lost_an_entry_is_not_replayed(connection: LogConnection, ended: CacheIndex) -> None:
    """A hole in the history would be papered over."""
    assert ended.position > 5
    backend = connection.backend
    assert isinstance(backend, MemoryBackend)
    del backend.transport("i")._records[3]

    with pytest.raises(CorruptState, match="position 5"):
        replay(connection.log("i"))
