"""`statecore export`: a log, or its beginning, as a file."""

from __future__ import annotations

from pathlib import Path

import click

from ops.cli.export_file import write_export
from ops.cli.output import count, number, progress
from ops.cli.source import Where, checked_position, open_source, source_options, stored_records


@click.command(short_help="Copy a log into a file.")
@source_options(file=True)
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--to", "last", type=click.IntRange(min=1), metavar="N", help="Only up to this position.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def command(where: Where, target: Path, last: int | None, force: bool) -> None:
    """Copy a log into FILE, gzipped if its name ends with .gz.

    The file holds the entries byte for byte, as JSON lines between a header and a footer with a checksum. Every command
    that reads a log takes it with --file. Nothing is judged on the way: a damaged log can be exported and looked at
    elsewhere (see: statecore verify).

    \b
    Examples:
      statecore export incident.jsonl.gz
      statecore export first-day.jsonl --to 120000 --index llama-70b
    """
    if target.exists() and not force:
        raise click.UsageError(f"{target} exists: give another name, or --force to replace it")
    with open_source(where) as source:
        head = source.head()
        until = checked_position(last, "--to", head)
        first = max(head.first, 1)
        commits = until - first + 1
        records = progress(stored_records(source, first - 1, until), commits, "exporting")
        size = write_export(target, source.index, first, commits, records)
    click.echo(
        f"wrote {target}: {count(commits, 'commit')} (positions {first} to {until}) of index {source.index!r}, "
        f"{number(size)} bytes"
    )
