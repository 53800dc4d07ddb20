"""`statecore replay`: the state at a position, rebuilt from the log, in numbers."""

from __future__ import annotations

import attrs
import click

from ops.cli.output import show, write_json
from ops.cli.replaying import replay, require_sound
from ops.cli.report import engine_table, headline, pool_table, transfer_table
from ops.cli.source import Where, checked_position, open_source, source_options
from ops.cli.summary import summarise


@click.command(short_help="Rebuild the state at a position and summarise it.")
@source_options(file=True)
@click.option("--to", "last", type=click.IntRange(min=0), metavar="N", help="Stop at this position (default: the end).")
@click.option("--digest", "digest_only", is_flag=True, help="Print the digest of the state and nothing else.")
@click.option(
    "--check-invariants", "check_every", type=click.IntRange(min=1), metavar="K",
    help="Check the invariants every K commits, and at the end.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(where: Where, last: int | None, digest_only: bool, check_every: int | None, as_json: bool) -> None:
    """Rebuild the state at a position and summarise it.

    Two logs whose states have the same digest at a position are the same there. In the table of pools, `cached` blocks
    hold a prefix that no request uses, `pinned` ones a prefix in use, `private` ones belong to a single request;
    `used` is all but free and cached. With a host tier, a transfer brings the bytes of `filling` blocks, may still write
    into `quarantined` ones (a send, too), and takes `leaving` ones away.

    \b
    Examples:
      statecore replay
      statecore replay --to 1200 --digest
      statecore replay --file incident.jsonl.gz --check-invariants 100 --json
    """
    with open_source(where) as source:
        until = checked_position(last, "--to", source.head())
        replica = replay(source, until, check_every=check_every or 0)
        if check_every:
            require_sound(replica.state)
        digest = replica.digest()
        if digest_only:
            if as_json:
                write_json({"position": until, "digest": digest})
            else:
                click.echo(digest)
            return
        summary = summarise(source.index, replica.state, digest)
        if as_json:
            write_json(attrs.asdict(summary))
            return
        parts = [headline(summary, source.place), pool_table(summary.pools), engine_table(summary.engines)]
        if summary.transfers:
            parts.append(transfer_table(summary.transfers))
        show(*parts)
