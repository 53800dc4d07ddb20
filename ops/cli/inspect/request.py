"""`statecore inspect request`: the block table of one request, in token order, and what happened to it.

Owns the cutting of the table into rows: one per run of the tree, duplicates apart, private blocks last.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import click
from rich.table import Table

from events.errors import InvalidInput
from events.facts import BlockRanges, EngineLeft, EngineLost, RequestReleased, SendStarted
from ops.cli.inspect.history import Event, RequestHistory
from ops.cli.inspect.view import View, copy_marks, inspect_options, opened_view
from ops.cli.output import count, iso_time, number, show, table, write_json
from ops.cli.report import pairs
from ops.cli.source import Where
from ops.cli.words import block_words, fact_words
from statecore import ranges
from statecore.state import Engine, Node, Request
from statecore.tree import path_nodes

SHARED, DUPLICATE, PRIVATE = "shared", "duplicate", "private"
_ENDS = (RequestReleased, EngineLeft, EngineLost)  # after it, only news of its transfers comes


@attrs.frozen
class Part:
    """Consecutive places of a block table.

    Attributes:
        start: first place in the table, counted in blocks.
        blocks: what the request uses there, in token order.
        kind: "shared" (the tree's), "duplicate" (its own, where the tree holds the same content), "private".
        node: the run of the tree it lies in, None for private blocks.
        refs: requests that use that run, and transfers that read it.
        marks: what is going on with the run: "pending (engine)", "filling (transfer)", "leaving (transfer)".
    """

    start: int
    blocks: BlockRanges
    kind: str
    node: int | None = None
    refs: int | None = None
    marks: tuple[str, ...] = ()

    @property
    def end(self) -> int:
        return self.start + ranges.count(self.blocks)


@click.command(short_help="A request: its block table and what happened to it.")
@inspect_options
@click.argument("request_id", metavar="ID")
@click.option("--engine", metavar="NAME", help="Whose request, where several engines have one of that id.")
def command(where: Where, at: int | None, as_json: bool, request_id: str, engine: str | None) -> None:
    """A request: its block table in token order, and what happened to it.

    \b
    In the table of blocks,
      shared      the tree's block: cached before, or put there by this request
      duplicate   the request's own block, beside one of the tree with the same content
      private     the request's own block: not full yet, or not in the tree yet

    A request that has ended has no table any more; use --at with a position before its end. One that was handed over has
    a history in both engines.

    \b
    Examples:
      statecore inspect request chat-17
      statecore inspect request chat-17 --engine engine-0 --at 1200 --json
    """
    history = RequestHistory(request_id, engine)
    with opened_view(where, at, history.watch, history.begin) as view:
        if not history.events:
            by = "" if engine is None else f" of engine {engine!r}"
            since = f", from {view.since + 1} on where it begins," if view.since else ""
            raise InvalidInput(
                f"up to position {view.state.position}{since} the log knows no request {request_id!r}{by}"
            )
        owners = history.begun or history.events.keys()
        if len(owners) > 1:
            raise InvalidInput(
                f"engines {', '.join(sorted(owners))} each have a request {request_id!r}: say which with --engine"
            )
        [name] = owners
        owner, events = view.state.engines[name], history.events[name]
        request = owner.requests.get(request_id)
        parts = [] if request is None else list(table_parts(request, owner.gpu_pool))
        if as_json:
            write_json(_as_dict(view, owner, request_id, request, parts, events))
        else:
            _show(
                view, owner, request_id, _state_of(view, request, parts, events, name in history.begun), parts, events
            )


def table_parts(request: Request, pool: str) -> Iterator[Part]:
    """The block table, row by row."""
    for node in reversed(list(path_nodes(request.leaf))):
        yield from _run_parts(node, request, pool)
    if request.private:
        yield Part(request.path_blocks, request.private, PRIVATE)


def _run_parts(node: Node, request: Request, pool: str) -> Iterator[Part]:
    """One run, cut where the request's own blocks stand in for the tree's."""
    copy = node.copies[pool]
    run = (node.id, copy.refs, tuple(copy_marks(copy)))
    at = node.start
    for depth, own in sorted(request.duplicates):
        start, end = max(depth, node.start), min(depth + ranges.count(own), node.end)
        if start >= end:
            continue
        if at < start:
            yield Part(at, _slice(copy.blocks, at - node.start, start - node.start), SHARED, *run)
        yield Part(start, _slice(own, start - depth, end - depth), DUPLICATE, *run)
        at = end
    if at < node.end:
        yield Part(at, _slice(copy.blocks, at - node.start, node.end - node.start), SHARED, *run)


def _slice(blocks: BlockRanges, start: int, end: int) -> BlockRanges:
    return ranges.split(ranges.split(blocks, end)[0], start)[1]


def _as_dict(
    view: View, owner: Engine, request_id: str, request: Request | None, parts: list[Part], events: list[Event]
) -> dict[str, object]:
    return {
        "index": view.index,
        "position": view.state.position,
        "request": request_id,
        "engine": owner.name,
        "pool": owner.gpu_pool,
        "live": request is not None,
        "path_blocks": None if request is None else request.path_blocks,
        "table": [{**attrs.asdict(part), "end": part.end} for part in parts],
        "history": [event.as_dict() for event in events],
    }


def _state_of(view: View, request: Request | None, parts: list[Part], events: list[Event], begun: bool) -> str:
    if request is not None:
        blocks = parts[-1].end if parts else 0
        return f"live: {count(blocks, 'block')}, {number(request.path_blocks)} of them on the path"
    if not begun and not isinstance(events[0].fact, SendStarted):
        return f"not live at position {number(view.since)}, before which the log is gone, nor begun since"
    if not begun:
        return (
            f"sent here at position {number(events[0].position)}, into blocks of another request or the engine itself"
        )
    ended = max(event.position for event in events if isinstance(event.fact, _ENDS))
    return f"ended at position {number(ended)}; see its blocks with --at {ended - 1}"


def _show(view: View, owner: Engine, request_id: str, state: str, parts: list[Part], events: list[Event]) -> None:
    what = pairs(
        ("request", f"{request_id} of engine {owner.name}, pool {owner.gpu_pool}"),
        ("at", f"position {number(view.state.position)} of index {view.index!r}"),
        ("state", state),
    )
    title = f"What happened from position {number(view.since + 1)} on" if view.since else "What happened"
    happened = table("position#", "time", "fact", "~", title=title)
    for event in events:
        when = iso_time(event.at_ms) or f"{event.at_ms} ms"
        words = fact_words(event.fact, owner.name)
        happened.add_row(str(event.position), when.replace("T", " "), type(event.fact).__name__, words)
    show(what, *([_table_of(parts, view.state.block_size)] if parts else []), happened)


def _table_of(parts: list[Part], block_size: int) -> Table:
    made = table(
        "tokens", "places", "kind", "blocks#", "block ids~", "node#", "refs#", "~", title="Blocks, in token order"
    )
    for part in parts:
        made.add_row(
            f"{part.start * block_size}-{part.end * block_size - 1}",
            block_words(((part.start, part.end - part.start),)),
            part.kind,
            str(part.end - part.start),
            block_words(part.blocks),
            "" if part.node is None else str(part.node),
            "" if part.refs is None else str(part.refs),
            ", ".join(part.marks),
        )
    return made
