"""`statecore snapshot import`: an empty index begun with a snapshot file, and gone on with the tail of an exported log."""

from __future__ import annotations

import os
from pathlib import Path

import click

from events.errors import InvalidInput
from events.keys import checked_name
from ops.cli.export_file import ExportFile
from ops.cli.import_log import say_what_waits
from ops.cli.output import count, number
from ops.cli.planting import planted
from ops.cli.snapshot.file import read_replica
from ops.cli.source import INDEX_VARIABLE, FileSource, LiveSource, Where, entries, open_connection, source_options
from ops.cli.verify import Proof
from statecore.replica import Replica


@click.command(short_help="Begin an empty index with a snapshot file.")
@source_options(file=False)
@click.argument("origin", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--tail", type=click.Path(path_type=Path), metavar="LOG", help="An exported log to go on with.")
def command(where: Where, origin: Path, tail: Path | None) -> None:
    """Begin an empty index with a snapshot file, and go on with the tail of an exported log.

    The name of the index is to be given: a snapshot does not know its own. Of LOG the entries after the snapshot are taken;
    they must continue it. Engines can join the index and go on; no worker is told of anything.

    \b
    Examples:
      statecore snapshot import then.snapshot --url embedded:///var/tmp/incident --index incident
      statecore snapshot import then.snapshot --tail incident.jsonl.gz --url redis://localhost --index incident
    """
    given = where.index or os.environ.get(INDEX_VARIABLE)
    if not given:
        raise click.UsageError("a snapshot does not know the name of its index: give one with --index")
    name = checked_name(given, "index name")
    start = read_replica(origin)
    log = None if tail is None else _tail(tail, start)
    end = start.state.position if log is None else log.head().position
    proof = _proof(read_replica(origin), log, end)
    with open_connection(where) as connection:
        records = () if log is None else log.stored(start.state.position, end)
        state = planted(start, records, LiveSource.of(connection, name), connection.backend.transport(name), proof)
        click.echo(
            f"began index {name!r} at {connection.url} with the snapshot at {number(proof.start)} and "
            f"{count(proof.commits, 'commit')} after it; position {number(proof.position)}, digest {proof.digest}"
        )
        say_what_waits(state)


def _tail(path: Path, start: Replica) -> FileSource:
    source = FileSource(ExportFile.open(path))
    head, position = source.head(), start.state.position
    if not head.first or head.first > position + 1 or head.position < position:
        held = f"positions {head.first} to {head.position}" if head.first else "no entry"
        raise InvalidInput(
            f"{path} does not go on from the snapshot at position {position}: it holds {held}, and {position + 1} is next"
        )
    return source


def _proof(replica: Replica, log: FileSource | None, end: int) -> Proof:
    """What the two files come to; wrong ones are found before anything is written."""
    start, facts = replica.state.position, 0
    for entry in () if log is None else entries(log, start, end):
        replica.apply(entry)
        facts += len(entry.facts)
    return Proof(end, end - start, facts, 0, replica.digest(), start=start, first=start + 1)
