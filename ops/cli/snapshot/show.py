"""`statecore snapshot show`: what a snapshot file holds, and whether it holds together."""

from __future__ import annotations

from pathlib import Path

import attrs
import click

from ops.cli.output import count, number, show, write_json
from ops.cli.report import engine_table, pairs, pool_table
from ops.cli.snapshot.file import read_replica, read_snapshot
from ops.cli.summary import StateSummary, summarise
from statecore import snapshot
from statecore.state import State


@click.command(short_help="Say what a snapshot file holds.")
@click.argument("origin", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(origin: Path, as_json: bool) -> None:
    """Say what a snapshot file holds: schema, position, digest, pools, engines, nodes, blocks.

    The file is read as a replica would read it: its checksum, its digest and the invariants of its state are checked.

    \b
    Examples:
      statecore snapshot show then.snapshot
      statecore snapshot show then.snapshot --json
    """
    replica = read_replica(origin)
    state, found, size = replica.state, replica.digest(), origin.stat().st_size
    schema = snapshot.header_of(read_snapshot(origin))["schema"]
    summary = summarise("", state, found)
    if as_json:
        write_json({"schema": schema, "bytes": size, "blocks": _blocks(state), **_without_name(summary)})
        return
    what = pairs(
        ("snapshot", f"{origin}, {number(size)} bytes, schema {schema}"),
        ("position", number(summary.position)),
        ("commit", summary.commit),
        ("digest", f"{found}, as it says"),
        ("tree", f"{count(summary.nodes, 'node')} with {count(_blocks(state), 'cached block')} in all pools"),
        ("requests", f"{number(summary.requests)} live"),
        ("transfers", f"{number(len(summary.transfers))} not over"),
        ("invariants", "hold"),
    )
    show(what, pool_table(summary.pools), engine_table(summary.engines))


def _blocks(state: State) -> int:
    return sum((node.end - node.start) * len(node.copies) for node in state.nodes.values())


def _without_name(summary: StateSummary) -> dict[str, object]:
    """A snapshot does not know of which index it is."""
    return {name: value for name, value in attrs.asdict(summary).items() if name != "index"}
