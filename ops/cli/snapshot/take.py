"""`statecore snapshot export`: the state at a position, as a file."""

from __future__ import annotations

from pathlib import Path

import click

from ops.cli.output import number
from ops.cli.replaying import replay, require_sound
from ops.cli.snapshot.file import write_snapshot
from ops.cli.source import Where, checked_position, open_source, source_options
from statecore import snapshot


@click.command(short_help="Write the state at a position into a file.")
@source_options(file=True)
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--at", type=click.IntRange(min=1), metavar="N", help="The state at this position (default: the end).")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def command(where: Where, target: Path, at: int | None, force: bool) -> None:
    """Write the state at a position into FILE.

    The state is rebuilt from the newest snapshot that is not beyond the position, and its invariants are checked. Nothing on
    the server changes.

    \b
    Examples:
      statecore snapshot export now.snapshot
      statecore snapshot export then.snapshot --at 41200
      statecore snapshot export then.snapshot --file incident.jsonl.gz --at 41200
    """
    if target.exists() and not force:
        raise click.UsageError(f"{target} exists: give another name, or --force to replace it")
    with open_source(where) as source:
        replica = replay(source, checked_position(at, "--at", source.head()))
        require_sound(replica.state)
        data = snapshot.encode(replica.state)
        write_snapshot(target, data)
        click.echo(
            f"wrote {target}: the state of index {source.index!r} at position {number(replica.state.position)}, digest "
            f"{replica.digest()}, {number(len(data))} bytes"
        )
