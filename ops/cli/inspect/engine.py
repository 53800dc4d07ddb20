"""`statecore inspect engine`: the lives of an engine, its counters, what it serves now."""

from __future__ import annotations

from typing import Final

import attrs
import click
from rich.table import Table

from events.errors import InvalidInput
from events.ports import Entry
from ops.cli.inspect.history import Life, Sending, begin_lives, begin_sends, watch_lives, watch_sends
from ops.cli.inspect.view import View, before_words, inspect_options, opened_view
from ops.cli.output import iso_time, number, show, table, write_json
from ops.cli.report import hit_rate_words, pairs
from ops.cli.source import Where
from ops.cli.summary import summarise_engine
from ops.cli.words import block_words
from statecore import ranges
from statecore.sends import Send
from statecore.state import Engine, Request, State, Transfer

_SENDS_SHOWN: Final = 20  # what became of the last ones; --json has them all


@click.command(short_help="An engine: its lives, counters and requests.")
@inspect_options
@click.argument("name", metavar="NAME")
def command(where: Where, at: int | None, as_json: bool, name: str) -> None:
    """An engine: its lives, its counters, the requests it serves, and those it handed over or was handed.

    Hit rates are over all its lives, and lately: since its last multiple of 10,000 requests.

    \b
    Examples:
      statecore inspect engine engine-0
      statecore inspect engine engine-0 --at 1200 --json
    """
    lives: list[Life] = []
    sends: dict[str, Sending] = {}
    of_lives, of_sends = watch_lives(name, lives), watch_sends(name, sends)

    def watch(state: State, entry: Entry) -> None:
        of_lives(state, entry)
        of_sends(state, entry)

    def begin(state: State) -> None:
        begin_lives(name, lives)(state)
        begin_sends(name, sends)(state)

    with opened_view(where, at, watch, begin) as view:
        engine = view.state.engines.get(name)
        if engine is None:
            known = ", ".join(sorted(view.state.engines)) or "none"
            raise InvalidInput(f"up to position {view.state.position} the log knows no engine {name!r}; known: {known}")
        requests = [engine.requests[request_id] for request_id in sorted(engine.requests)]
        if as_json:
            write_json(
                {
                    "index": view.index,
                    "position": view.state.position,
                    **attrs.asdict(summarise_engine(engine)),
                    "held": {pool: list(held) for pool, held in sorted(engine.held.items()) if held.total},
                    "lives": [life.as_dict() for life in lives],
                    "live_requests": list(map(_request_dict, requests)),
                    "sends": [send.as_dict() for send in sends.values()],
                }
            )
        else:
            _show(view, engine, lives, requests, list(sends.values()))


def _request_dict(request: Request) -> dict[str, object]:
    return {
        "request": request.id,
        "path_blocks": request.path_blocks,
        "duplicate_blocks": _duplicates(request),
        "private_blocks": ranges.count(request.private),
        "matched_blocks": request.matched,
    }


def _duplicates(request: Request) -> int:
    return sum(ranges.count(own) for _, own in request.duplicates)


def _show(view: View, engine: Engine, lives: list[Life], requests: list[Request], sends: list[Sending]) -> None:
    summary = summarise_engine(engine)
    counters, window, tiers = summary.counters, summary.window, engine.cpu_pool is not None
    rows = [
        ("engine", f"{engine.name}, {'alive' if engine.alive else 'gone'} in session {engine.session}"),
        ("at", f"position {number(view.state.position)} of index {view.index!r}"),
        ("pool", engine.gpu_pool if engine.cpu_pool is None else f"{engine.gpu_pool}, {engine.cpu_pool}"),
        ("ranks", str(engine.tensor_parallel_size)),
        ("hit rate", hit_rate_words(counters, tiers=tiers)),
    ]
    if window.requests_seen < counters.requests_seen:
        rows.append(("lately", hit_rate_words(window, tiers=tiers)))
    if tiers or counters.transfers:
        rows.append(
            ("transfers", f"{number(_open_transfers(view, engine))} not over, {number(counters.transfers)} so far")
        )
    rows += [(f"holds in {pool}", block_words(tuple(held))) for pool, held in sorted(engine.held.items()) if held.total]
    parts = [pairs(*rows), _table_of_lives(view, lives), _table_of_requests(requests)]
    if sends:
        parts.append(_table_of_sends(view, engine.name, sends))
    show(*parts)


def _table_of_lives(view: View, lives: list[Life]) -> Table:
    known = table("session#", "joined at#", "time", "ended at#", "time", "how", title="Lives")
    for life in lives:
        joined, ended = life.joined, life.ended
        known.add_row(
            str(life.session),
            *(before_words(view), "trimmed away") if joined is None else (str(joined.position), _time(joined.at_ms)),
            *("", "", "goes on") if ended is None else (
                str(ended.position), _time(ended.at_ms), type(ended.fact).__name__,
            ),
        )  # fmt: skip
    return known


def _table_of_requests(requests: list[Request]) -> Table:
    title = "Requests it serves" if requests else "It serves no request"
    served = table("request", "path#", "matched#", "duplicates#", "private#", title=title)
    served.show_header = bool(requests)
    for request in requests:
        counts = (request.path_blocks, request.matched, _duplicates(request), ranges.count(request.private))
        served.add_row(request.id, *map(number, counts))
    return served


def _table_of_sends(view: View, engine: str, sends: list[Sending]) -> Table:
    """The last ones; what is left out the title says."""
    few = sends[-_SENDS_SHOWN:]
    title = "Sends" if len(few) == len(sends) else f"Sends, the last {len(few)} of {number(len(sends))}"
    made = table("transfer", "request", "to or from", "blocks#", "started at#", "ended at#", "how~", title=title)
    for sending in few:
        send, started, ended = sending.send, sending.started, sending.ended
        made.add_row(
            send.transfer,
            send.request,
            f"to {send.receiver}" if send.engine == engine else f"from {send.engine}",
            number(ranges.count(send.source_blocks)),
            before_words(view) if started is None else str(started.position),
            "" if ended is None else str(ended.position),
            f"{sending.outcome} ({sending.reason})" if sending.reason else sending.outcome,
        )
    return made


def _open_transfers(view: View, engine: Engine) -> int:
    moving: list[Transfer | Send] = [*view.state.transfers.values(), *view.state.sends.values()]
    return sum(each.engine == engine.name for each in moving)


def _time(at_ms: int) -> str:
    return (iso_time(at_ms) or f"{at_ms} ms").replace("T", " ")
