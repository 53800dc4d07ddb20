"""`statecore inspect transfers`: what moves between tiers and from engine to engine, since when, and who waits for it."""

from __future__ import annotations

import attrs
import click

from ops.cli.inspect.history import Event, watch_starts
from ops.cli.inspect.view import View, before_words, inspect_options, opened_view
from ops.cli.output import count, iso_time, number, show, table, write_json
from ops.cli.report import pairs, transfer_table
from ops.cli.source import Where
from ops.cli.summary import count_pools
from ops.cli.transfers import TransferSummary, summarise_transfers


@click.command(short_help="Transfers that are not over, since when, and who waits.")
@inspect_options
def command(where: Where, at: int | None, as_json: bool) -> None:
    """Transfers that are not over, since when, and who waits for them.

    \b
    under way    workers copy its blocks
    cancelled    nobody wants it any more; what it may still write of blocks that have lost their owner is in
                 quarantine until every rank has reported

    A send hands a request over: its receiver waits, and it has no place in the tree.

    Which ranks have reported is not in the log. What became of a transfer that is over: statecore log --engine NAME
    --fact TransferFinished --fact TransferCancelled.

    \b
    Examples:
      statecore inspect transfers
      statecore inspect transfers --at 1200 --json
    """
    starts: dict[str, Event] = {}
    with opened_view(where, at, watch_starts(starts)) as view:
        transfers = summarise_transfers(view.state)
        if as_json:
            write_json(
                {
                    "index": view.index,
                    "position": view.state.position,
                    "transfers": [_as_dict(transfer, starts.get(transfer.transfer)) for transfer in transfers],
                    "started": sum(engine.transfers for engine in view.state.engines.values()),
                    "ignored_finishes": view.state.ignored_finishes,
                }
            )
        else:
            _show(view, transfers, starts)


def _as_dict(transfer: TransferSummary, start: Event | None) -> dict[str, object]:
    """Of one whose start was trimmed away, nobody knows when it was."""
    return {
        **attrs.asdict(transfer),
        "started_position": None if start is None else start.position,
        "started_at": None if start is None else iso_time(start.at_ms),
    }


def _show(view: View, transfers: tuple[TransferSummary, ...], starts: dict[str, Event]) -> None:
    shown = transfer_table(transfers)
    shown.title = view.title("Transfers" if transfers else "No transfers under way")
    since = table("transfer", "started at#", "time", title="Since when")
    for transfer in transfers:
        start = starts.get(transfer.transfer)
        if start is None:
            since.add_row(transfer.transfer, before_words(view), "trimmed away")
            continue
        when = iso_time(start.at_ms) or f"{start.at_ms} ms"
        since.add_row(transfer.transfer, str(start.position), when.replace("T", " "))
    started = sum(engine.transfers for engine in view.state.engines.values())
    late = count(view.state.ignored_finishes, "result")
    rows = [("so far", f"{count(started, 'transfer')} started, {late} came too late")]
    rows += [
        (pool.pool, f"{number(pool.arrived)} blocks arrived, {number(pool.rescued)} rescued")
        for pool in count_pools(view.state)
    ]
    show(shown, *([since] if transfers else []), pairs(*rows))
