"""`statecore inspect engine`: the lives of an engine, its counters, what it serves now."""

from __future__ import annotations

import attrs
import click

from events.errors import InvalidInput
from ops.cli.inspect.history import Life, watch_lives
from ops.cli.inspect.view import View, inspect_options, opened_view
from ops.cli.output import iso_time, number, show, table, write_json
from ops.cli.report import hit_rate_words, pairs
from ops.cli.source import Where
from ops.cli.summary import EngineSummary, summarise_engine
from ops.cli.words import block_words
from statecore import ranges
from statecore.state import Engine, Request


@click.command(short_help="An engine: its lives, counters and requests.")
@inspect_options
@click.argument("name", metavar="NAME")
def command(where: Where, at: int | None, as_json: bool, name: str) -> None:
    """An engine: its lives, its counters, and the requests it serves.

    \b
    Examples:
      statecore inspect engine engine-0
      statecore inspect engine engine-0 --at 1200 --json
    """
    lives: list[Life] = []
    with opened_view(where, at, watch_lives(name, lives)) as view:
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
                }
            )
        else:
            _show(view, engine, summarise_engine(engine), lives, requests)


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


def _show(view: View, engine: Engine, summary: EngineSummary, lives: list[Life], requests: list[Request]) -> None:
    counters = summary.counters
    rows = [
        ("engine", f"{engine.name}, {'alive' if engine.alive else 'gone'} in session {engine.session}"),
        ("at", f"position {number(view.state.position)} of index {view.index!r}"),
        ("pool", engine.gpu_pool if engine.cpu_pool is None else f"{engine.gpu_pool}, {engine.cpu_pool}"),
        ("ranks", str(engine.tensor_parallel_size)),
        ("hit rate", hit_rate_words(counters, tiers=engine.cpu_pool is not None)),
    ]
    if engine.cpu_pool is not None:
        rows.append(
            ("transfers", f"{number(_open_transfers(view, engine))} not over, {number(counters.transfers)} so far")
        )
    rows += [(f"holds in {pool}", block_words(tuple(held))) for pool, held in sorted(engine.held.items()) if held.total]
    known = table("session#", "joined at#", "time", "ended at#", "time", "how", title="Lives")
    for life in lives:
        ended = life.ended
        known.add_row(
            *(str(life.session), str(life.joined.position), _time(life.joined.at_ms)),
            *("", "", "goes on") if ended is None else (
                str(ended.position), _time(ended.at_ms), type(ended.fact).__name__,
            ),
        )  # fmt: skip
    title = "Requests it serves" if requests else "It serves no request"
    served = table("request", "path#", "matched#", "duplicates#", "private#", title=title)
    served.show_header = bool(requests)
    for request in requests:
        counts = (request.path_blocks, request.matched, _duplicates(request), ranges.count(request.private))
        served.add_row(request.id, *map(number, counts))
    show(pairs(*rows), known, served)


def _open_transfers(view: View, engine: Engine) -> int:
    return sum(transfer.engine == engine.name for transfer in view.state.transfers.values())


def _time(at_ms: int) -> str:
    return (iso_time(at_ms) or f"{at_ms} ms").replace("T", " ")
