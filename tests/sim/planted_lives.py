"""Bugs put in on purpose into leases, lives of the server, snapshots, the keeper.

Owns a table like that of `planted.py`. A campaign with perils that does not find one of them would not find its like.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from events import limits
from events.job_queue import JobQueue
from events.memory import MemoryTransport
from events.memory_jobs import MemoryJobs
from events.memory_snapshots import MemorySnapshots
from events.ports import Base, Diverged, Renewed
from events.transport import Published
from statecore import administer
from statecore.session import Session
from tests.sim.planting import CORRUPT_STATE, Bug, patches
from workers.pulse import Pulse
from workers.snapshotting import Snapshotting


def _always_open(_: Any) -> float:
    return 0.0


def _base_is_not_compared(self: Any, base: Base) -> Diverged | None:
    return Diverged(base.position, "") if base.position > self.position else None


def _base_is_not_compared_when_renewing(
    self: Any, engine: str, session: int, base: Base, renew: Any = MemoryTransport.renew_lease
) -> Any:
    self._leases[engine] = self._clock() + limits.LEASE_TTL_S
    reply = renew(self, engine, session, base)
    return Renewed(self.life) if isinstance(reply, Diverged) else reply


def _zombie_renews(self: Any, engine: str, session: int, base: Base, renew: Any = MemoryTransport.renew_lease) -> Any:
    self._leases[engine] = self._clock() + limits.LEASE_TTL_S
    return renew(self, engine, self._fences.get(engine, session), base)


def _one_too_far(self: Any, first: int, trim: Any = MemoryTransport.trim) -> None:
    trim(self, first + 2)


def _margin_from_the_new_one(
    self: Any, pointer: Any, seen: Any, margin: int, publish: Any = MemorySnapshots.publish
) -> Any:
    reply = publish(self, pointer, seen, margin)
    if isinstance(reply, Published) and reply.first:
        with self._log.changed:
            self._log.trim(pointer.position + 1)
    return reply


def _pointer_before_the_blob(
    self: Any, pointer: Any, seen: Any, margin: int, publish: Any = MemorySnapshots.publish
) -> Any:
    whole = self.blobs.get(pointer.blob, bytearray())
    self.blobs[pointer.blob] = whole[:-1]
    return publish(self, attrs.evolve(pointer, size=max(0, len(whole) - 1)), seen, margin)


def _vanished_branch_publishes(
    self: Any, pointer: Any, seen: Any, margin: int, publish: Any = MemorySnapshots.publish
) -> Any:
    held = self._log.continues
    self._log.continues = lambda _: True
    try:
        return publish(self, pointer, seen, margin)
    finally:
        self._log.continues = held


def _restored_without_its_tail(self: Any, newer: Any = None, take: Any = Session._start_from) -> None:
    if newer is not None:
        newer.settle(newer.state.position + 1, newer.state.last_commit_id)
    take(self, newer)


def _under_another_life(self: Any, seat: Any, report: Any, send: Any = MemoryJobs.report) -> Any:
    return send(self, seat, attrs.evolve(report, life=self._log.life))


def _never_sits_again(self: Any, state: str) -> str | None:
    self._transport.occupy(self._seat, self._heartbeat(state), limits.HEARTBEAT_TTL_S)
    life = self._transport.life()
    return None if life is None else str(life)


def _memory_is_not_dropped(*_: Any) -> list[Any]:
    return []


PLANTED_LIVES: Final[dict[str, Bug]] = {
    "no barrier after a new life of the server": Bug(
        patches((MemoryTransport, "closed_for", _always_open)),
        (
            "who knows a vanished history has stopped when the log opens",
            "who works for a vanished history has stopped when the log opens",
        ),
    ),
    "the barrier is shorter than a lease": Bug(
        patches((limits, "BARRIER_S", 1.0)), ("who knows a vanished history has stopped when the log opens",)
    ),
    "the base's commit is not compared": Bug(
        patches((MemoryTransport, "_diverged", _base_is_not_compared)),
        ("a session that is over changes nothing", "one digest per position", CORRUPT_STATE),
        first=5_070,
    ),
    "a renewal does not compare the base": Bug(
        patches((MemoryTransport, "renew_lease", _base_is_not_compared_when_renewing)),
        ("requests are as told", "who knows a vanished history has stopped when the log opens"),
        first=5_190,
    ),
    "a life that is over renews the lease": Bug(
        patches((MemoryTransport, "renew_lease", _zombie_renews)),
        ("all comes right within the bound", "who uses a block finds its bytes in it"),
        first=5_110,
    ),
    "the trim goes too far": Bug(
        patches((MemoryTransport, "trim", _one_too_far)), ("the log goes on from every snapshot",)
    ),
    "the trim goes up to the newest snapshot": Bug(
        patches((MemorySnapshots, "publish", _margin_from_the_new_one)),
        ("what is kept is not called trimmed", CORRUPT_STATE),
    ),
    "the pointer is moved to a blob that is not whole": Bug(
        patches((MemorySnapshots, "publish", _pointer_before_the_blob)), (CORRUPT_STATE,)
    ),
    "a snapshot is not read back": Bug(
        patches((Snapshotting, "_unsound", lambda *_: "")), ("what does not give the state back is not published",)
    ),
    "a keeper on a vanished history publishes": Bug(
        patches((MemorySnapshots, "publish", _vanished_branch_publishes)), ("a snapshot is of the log's history",)
    ),
    "a restored replica passes over the first entry of the tail": Bug(
        patches((Session, "_start_from", _restored_without_its_tail)), ("one digest per position",)
    ),
    "a report counts in another life of the server": Bug(
        patches((MemoryJobs, "report", _under_another_life)),
        ("what is ready holds its bytes", "who uses a block finds its bytes in it", "a transfer finishes once"),
        first=5_110,
    ),
    "a worker goes on copying for a vanished history": Bug(
        patches((Pulse, "vouches_for", lambda *_: True)),
        ("who works for a vanished history has stopped when the log opens",),
        first=5_250,
    ),
    "a worker whose seat was lost does not sit down again": Bug(
        patches((JobQueue, "beat", _never_sits_again)), ("all comes right within the bound",)
    ),
    "memory that died with its engine is not dropped": Bug(
        patches((administer, "_dropped", _memory_is_not_dropped)),
        ("what is ready holds its bytes", "who uses a block finds its bytes in it"),
    ),
}
"""What is wrong -> a context in which it is, and the checks that notice it. Left out because something else keeps the
promise too, so that no campaign here fails: a fence that `EngineLost` does not raise (the engine's scope refuses what it
appends), a deposition that does not look at the lease (the keeper has), a report of another seat (the rank's lock), an old
answer that vouches for a job: `tests/contract` and `tests/workers` hold each by itself."""
