"""`statecore export`: a log, or its beginning, as a file."""

from __future__ import annotations

from pathlib import Path

import click

from events.errors import InvalidInput
from ops.cli.export_file import Stretch, write_export
from ops.cli.output import count, number, progress
from ops.cli.source import Source, Where, checked_position, open_source, source_options, stored_records
from ops.cli.starting import kept


@click.command(short_help="Copy a log into a file.")
@source_options(file=True)
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--to", "last", type=click.IntRange(min=1), metavar="N", help="Only up to this position.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def command(where: Where, target: Path, last: int | None, force: bool) -> None:
    """Copy a log into FILE, gzipped if its name ends with .gz.

    The file holds the entries byte for byte, as JSON lines between a header and a footer with a checksum. Every command
    that reads a log takes it with --file. Nothing is judged on the way: a damaged log can be exported and looked at
    elsewhere (see: statecore verify). Where the beginning of the log was trimmed away, the snapshots that stand for it come
    along.

    \b
    Examples:
      statecore export incident.jsonl.gz
      statecore export first-day.jsonl --to 120000 --index llama-70b
    """
    if target.exists() and not force:
        raise click.UsageError(f"{target} exists: give another name, or --force to replace it")
    with open_source(where) as source:
        stretch, until = _stretch(source, last)
        records = progress(stored_records(source, stretch.first - 1, until), stretch.count, "exporting")
        size = write_export(target, stretch.index, stretch.first, stretch.count, records, stretch.snapshots)
    brought = [f"the snapshot at {pointer.position:,}" for pointer, _ in stretch.snapshots]
    click.echo(
        f"wrote {target}: {count(stretch.count, 'commit')}"
        + (f" (positions {stretch.first} to {until})" if stretch.count else "")
        + "".join(f", {words}" for words in brought)
        + f" of index {source.index!r}, {number(size)} bytes"
    )


def _stretch(source: Source, last: int | None) -> tuple[Stretch, int]:
    """What there is of the log up to `last`, and where it ends; with the snapshots where the beginning is gone."""
    here = kept(source)
    until = checked_position(last, "--to", here.head)
    if here.from_birth:
        return Stretch(source.index, 1, until), until
    usable = [pointer for pointer in here.pointers if pointer.position <= until]
    if not usable and (here.pointers or until < here.first):
        raise InvalidInput(f"--to {until} leaves nothing that leads to a state: {here.gone()}")
    snapshots = tuple([(pointer, source.snapshot(pointer)) for pointer in usable])
    return Stretch(source.index, here.first, until - here.first + 1, snapshots), until
