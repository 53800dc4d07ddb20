"""`statecore import`: an exported log into an empty index, entry by entry.

Owns the order of things: prove the file, then append every record as it is, then read the index back and compare
digests. A log whose beginning is gone begins at the oldest snapshot in the file; `planting.py` does both. Positions,
commit ids and times stay; the scopes and fences of each commit are derived again from its facts, so an engine can join
and go on as if the log had been written there. Jobs are not derived: a worker that heard of a transfer of the past would
copy over blocks of the present.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from events.keys import checked_name
from ops.cli.export_file import ExportFile
from ops.cli.output import count
from ops.cli.planting import imported
from ops.cli.source import INDEX_VARIABLE, FileSource, LiveSource, Where, open_connection, source_options
from ops.cli.verify import prove
from statecore.state import State


@click.command(short_help="Copy an exported log into an empty index.")
@source_options(file=False)
@click.argument("origin", metavar="FILE", type=click.Path(path_type=Path))
def command(where: Where, origin: Path) -> None:
    """Copy an exported log into an empty index.

    The index has the name it had when it was exported, or the one given with --index. The file is proved first (see:
    statecore verify) and the result compared with it afterwards. Engines can join the index and go on. A log whose beginning
    was trimmed away begins at the oldest snapshot in the file.

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
        state = imported(FileSource(export), LiveSource.of(connection, name), connection.backend.transport(name), proof)
        behind = f" behind the snapshot at {proof.start:,}" if proof.start else ""
        click.echo(
            f"imported {count(proof.commits, 'commit')}{behind} into index {name!r} at {connection.url}; "
            f"digest {proof.digest}, as in the file"
        )
        say_what_waits(state)


def say_what_waits(state: State) -> None:
    """What does not go on by itself in an index that was copied."""
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
