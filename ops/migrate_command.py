"""`statecore migrate`: an index of an older release, for this one.

Owns the command's options and what it prints. The work is in `ops/migrating.py`.
"""

from __future__ import annotations

import click

from events.facts import SCHEMA
from events.keys import LAYOUT
from ops.cli.output import count, write_json
from ops.cli.source import Where, chosen_index, open_connection, source_options
from ops.migrating import Place, Survey, carry_out, survey
from statecore.snapshot import SNAPSHOT_SCHEMA


@click.command("migrate", short_help="Bring an index of an older release to this one.")
@source_options(file=False)
@click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(where: Where, dry_run: bool, as_json: bool) -> None:
    """Bring an index of an older release to the layout of keys that this one speaks.

    Stop engines, workers and keepers of the older release first: from the first step on they can write nothing, and when
    it is done only this release can. Entries and snapshots stay as they are; this release reads them. If the command is cut
    off, run it again: it goes on where it stopped.

    \b
    Examples:
      statecore migrate --url redis://localhost --index llama-70b --dry-run
      statecore migrate --url redis://localhost --index llama-70b
    """
    with open_connection(where) as connection:
        index = chosen_index(connection, where)
        place = Place.of(connection, index)
        found = survey(place)
        if not as_json:
            _tell(index, found)
        done = []
        for move in () if dry_run else carry_out(place, found.moves):
            done.append(move)
            if not as_json:
                click.echo(f"done: {move.what}")
    if as_json:
        write_json(_plain(index, found, done=len(done), dry_run=dry_run))
    elif not found.moves:
        click.echo("nothing to do: the index is of today's layout")
    elif dry_run:
        for move in found.moves:
            click.echo(f"would: {move.what}")
        click.echo("nothing was changed")
    else:
        click.echo(f"index {index!r} is of layout {LAYOUT} now")


def _tell(index: str, found: Survey) -> None:
    click.echo(f"index {index!r}: key layout {found.layout}, this release speaks {LAYOUT}")
    if found.schemas:
        per_schema = ", ".join(
            f"{count(entries, 'commit')} of schema {schema}" for schema, entries in found.schemas.items()
        )
        (first, of_first), (last, of_last) = found.first, found.last
        click.echo(
            f"log: positions {first} (schema {of_first}) to {last} (schema {of_last}): {per_schema}; "
            f"this release reads 1 to {SCHEMA}"
        )
    for position, schema in found.snapshots.items():
        click.echo(f"snapshot at {position}: schema {schema}; this release reads 1 to {SNAPSHOT_SCHEMA}")


def _plain(index: str, found: Survey, *, done: int, dry_run: bool) -> dict[str, object]:
    return {
        "index": index,
        "layout": found.layout,
        "layout_of_release": LAYOUT,
        "oldest": {"position": found.first[0], "schema": found.first[1]},
        "newest": {"position": found.last[0], "schema": found.last[1]},
        "entries": {str(schema): entries for schema, entries in found.schemas.items()},
        "schema_of_release": SCHEMA,
        "snapshots": {str(position): schema for position, schema in found.snapshots.items()},
        "snapshot_schema_of_release": SNAPSHOT_SCHEMA,
        "steps": [move.what for move in found.moves],
        "done": done,
        "dry_run": dry_run,
    }
