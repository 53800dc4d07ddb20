"""An index that is begun elsewhere: from its birth or from a snapshot, and on with records of a log.

Owns the order: empty, planted, appended record by record with the checks of an import, read back and compared by digest.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from events.codec import decode
from events.errors import CorruptState, InvalidInput, OutcomeUnknown
from events.facts import TransferFinished, TransferStarted
from events.keys import INDEX_SCOPE, engine_scope, leaving_scope, pool_scope
from events.log import EventLog
from events.ports import Entry, RawAppended, SnapshotPointer, StoredRecord
from events.transport import NotPublished, Transport
from ops.cli.output import progress
from ops.cli.replaying import replay
from ops.cli.source import LiveSource, Source
from ops.cli.starting import beginning
from ops.cli.transfers import is_by_worker
from ops.cli.verify import Proof
from statecore import snapshot
from statecore.replica import Replica
from statecore.scopes import fences_at, fences_of, finish_touches, scopes_of
from statecore.state import State


def imported(origin: Source, target: LiveSource, transport: Transport, proof: Proof) -> State:
    """All that is kept of a log, copied into an empty index; the state it leads to, proved to be the same."""
    until = proof.position
    start = beginning(origin, until, oldest=True)
    return planted(start, origin.stored(start.state.position, until), target, transport, proof)


def planted(
    start: Replica, records: Iterable[StoredRecord], target: LiveSource, transport: Transport, proof: Proof
) -> State:
    """An empty index begun with a state and gone on with records; `proof` says what it must come to.

    Raises:
        InvalidInput: the index is not empty, or somebody else writes to it.
        CorruptState: it came to something else.
    """
    require_empty(target)
    if start.state.position:
        plant(start, target)
    tail = _Tail(start, transport, target.log)
    for stored in progress(records, proof.position - start.state.position, "importing"):
        tail.append(stored)
    return compared(target, proof)


def require_empty(target: LiveSource) -> None:
    position = target.log.head().position
    if position:
        raise InvalidInput(
            f"index {target.index!r} at {target.place} is not empty (its log is at position {position}): "
            "give another name with --index"
        )


def plant(start: Replica, target: LiveSource) -> None:
    """Begin an empty index with a state."""
    state = start.state
    pointer = SnapshotPointer(
        state.position, state.last_commit_id, start.digest(), snapshot.SNAPSHOT_SCHEMA, "", 0, at_ms=_now_ms()
    )
    reply = target.shelf.plant(snapshot.encode(state), pointer, fences_at(state))
    if isinstance(reply, NotPublished):
        raise InvalidInput(f"index {target.index!r} at {target.place} cannot be begun: {reply.reason}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class _Tail:
    """Appends records to an index just begun, each as it was."""

    def __init__(self, start: Replica, transport: Transport, log: EventLog) -> None:
        self._replica = start
        self._transport = transport
        self._log = log
        self._starts = dict(_started(start.state))

    def append(self, stored: StoredRecord) -> None:
        replica, entry = self._replica, decode(stored)
        base, checks = replica.base, _every_scope(replica.state)
        replica.apply(entry)
        try:
            reply = self._transport.append(
                stored.record,
                engine=entry.engine,
                session=entry.session,
                base=base,
                checks=checks,
                touches=_touches(replica.state, entry, self._starts),
                fences=fences_of(entry.facts),
            )
        except OutcomeUnknown:
            if self._log.read_stored(base.position, 1) != (stored,):
                raise
            return
        if reply != RawAppended(stored.position, ()):
            raise InvalidInput(
                f"somebody else writes to index {self._log.index!r}: {base.position} entries were copied before a commit of "
                "theirs came; this index is of no use, import into one that nobody has joined"
            )


def _started(state: State) -> dict[str, TransferStarted]:
    """The transfers under way in a state, as far as the scopes of their end depend on them."""
    return {
        each.id: TransferStarted(
            each.id,
            each.kind,
            each.engine,
            None,
            each.node.id,
            each.start,
            each.end,
            each.source,
            (),
            each.destination,
            (),
        )
        for each in state.transfers.values()
    }


def _touches(state: State, entry: Entry, starts: dict[str, TransferStarted]) -> tuple[str, ...]:
    """What the commit moved when it was written; a worker's was told so in its job, see `statecore.scopes`.

    The end of a send moves nothing, so its start need not be known.
    """
    starts.update({fact.transfer: fact for fact in entry.facts if isinstance(fact, TransferStarted)})
    if not is_by_worker(entry):
        return scopes_of(state, entry.engine, entry.facts)
    touched: set[str] = set()
    for fact in entry.facts:
        if isinstance(fact, TransferFinished) and (start := starts.pop(fact.transfer, None)) is not None:
            when_ok, when_failed = finish_touches(start)
            touched.update(when_ok if fact.ok else when_failed)
    return tuple(sorted(touched))


def _every_scope(state: State) -> tuple[str, ...]:
    """Whatever anyone could touch: while an import runs, nobody else may write."""
    of_pools = (scope(pool) for pool in state.pools for scope in (pool_scope, leaving_scope))
    return (INDEX_SCOPE, *map(engine_scope, state.engines), *of_pools)


def compared(target: LiveSource, proof: Proof) -> State:
    """The state the imported log leads to, proved to be that of the file."""
    replica = replay(target, proof.position)
    found = replica.digest()
    if found != proof.digest:
        raise CorruptState(
            f"the imported log leads to digest {found}, the file to {proof.digest}", position=proof.position
        )
    return replica.state
