"""`statecore import`: an exported log into an empty index, entry by entry.

Owns the order of things: prove the file, then append every record as it is, then read the index back and compare
digests. Positions, commit ids and times stay; the scopes and fences of each commit are derived again from its facts,
so an engine can join and go on as if the log had been written there. Jobs are not derived: a worker that heard of a
transfer of the past would copy over blocks of the present.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from events.codec import decode
from events.errors import CorruptState, InvalidInput, OutcomeUnknown
from events.facts import TransferFinished, TransferStarted
from events.keys import INDEX_SCOPE, checked_name, engine_scope, leaving_scope, pool_scope
from events.log import EventLog, LogConnection
from events.ports import Entry, RawAppended, StoredRecord
from events.transport import Transport
from ops.cli.export_file import ExportFile
from ops.cli.output import count, progress
from ops.cli.replaying import replay
from ops.cli.source import INDEX_VARIABLE, FileSource, LiveSource, Where, open_connection, source_options
from ops.cli.transfers import is_by_worker
from ops.cli.verify import Proof, prove
from statecore.replica import Replica
from statecore.scopes import fences_of, finish_touches, scopes_of
from statecore.state import State


@click.command(short_help="Copy an exported log into an empty index.")
@source_options(file=False)
@click.argument("origin", metavar="FILE", type=click.Path(path_type=Path))
def command(where: Where, origin: Path) -> None:
    """Copy an exported log into an empty index.

    The index has the name it had when it was exported, or the one given with --index. The file is proved first (see:
    statecore verify) and the result compared with it afterwards. Engines can join the index and go on.

    No worker is told of anything: transfers that were under way stay so, until they are rung again or cancelled.

    \b
    Examples:
      statecore import incident.jsonl.gz --url redis://localhost
      statecore import incident.jsonl.gz --url embedded:///var/tmp/incident --index incident
    """
    export = ExportFile.open(origin)
    proof = prove(FileSource(export), None, every=0)
    name = checked_name(where.index or os.environ.get(INDEX_VARIABLE) or export.index, "index name")
    with open_connection(where) as connection:
        log = connection.log(name, follow=False)
        _require_empty(log, connection)
        _copy(FileSource(export), connection.backend.transport(name), log)
        state = _compared(LiveSource(log, connection.url), proof)
        click.echo(
            f"imported {count(proof.commits, 'commit')} into index {name!r} at {connection.url}; "
            f"digest {proof.digest}, as in the file"
        )
        under_way = len(state.transfers) + len(state.sends)
        if under_way:
            click.echo(
                f"{count(under_way, 'transfer')} of it not over: no worker was told, so nobody moves the blocks "
                "before they are rung again or cancelled (see: statecore inspect transfers)"
            )
        if state.paused_by is not None:
            click.echo(
                f"service is paused by {state.paused_by} ({state.paused_for}): no request may begin before an "
                "engine resumes it"
            )


def _require_empty(log: EventLog, connection: LogConnection) -> None:
    position = log.head().position
    if position:
        raise InvalidInput(
            f"index {log.index!r} at {connection.url} is not empty (its log is at position {position}): "
            "give another name with --index"
        )


def _copy(source: FileSource, transport: Transport, log: EventLog) -> None:
    replica, starts = Replica(), dict[str, TransferStarted]()
    until = source.head().position
    for stored in progress(source.stored(0, until), until, "importing"):
        _append(stored, replica, starts, transport, log)


def _append(
    stored: StoredRecord, replica: Replica, starts: dict[str, TransferStarted], transport: Transport, log: EventLog
) -> None:
    entry = decode(stored)
    base, checks = replica.base, _every_scope(replica.state)
    replica.apply(entry)
    try:
        reply = transport.append(
            stored.record,
            engine=entry.engine,
            session=entry.session,
            base=base,
            checks=checks,
            touches=_touches(replica.state, entry, starts),
            fences=fences_of(entry.facts),
        )
    except OutcomeUnknown:
        if log.read_stored(base.position, 1) != (stored,):
            raise
        return
    if reply != RawAppended(stored.position, ()):
        raise InvalidInput(
            f"somebody else writes to index {log.index!r}: {base.position} entries were copied before a commit of theirs "
            "came; this index is of no use, import into one that nobody has joined"
        )


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


def _compared(target: LiveSource, proof: Proof) -> State:
    """The state the imported log leads to, proved to be that of the file."""
    replica = replay(target, proof.position)
    found = replica.digest()
    if found != proof.digest:
        raise CorruptState(
            f"the imported log leads to digest {found}, the file to {proof.digest}", position=proof.position
        )
    return replica.state
