"""`statecore log`: what happened, commit by commit.

Owns the filters and the line a commit becomes. Reads entries as they are and builds no state, so it works on a log of
any length, on one whose beginning is gone, and up to the first entry that cannot be read.
"""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Iterator
from typing import Final

import attrs
import click

from events.codec import fact_to_dict
from events.errors import InvalidInput, RolledBack
from events.facts import Fact, SendStarted, TransferStarted
from events.ports import Base, Entry, Head
from ops.cli.failures import say_warning
from ops.cli.output import iso_time, write_json
from ops.cli.source import LiveSource, Source, Where, checked_position, entries, open_source, source_options
from ops.cli.starting import Kept, kept
from ops.cli.transfers import Concerned, transfer_of
from ops.cli.words import FACT_NAMES, fact_words

_POLL_S: Final = 0.2  # a person does not see the difference, the server does not feel it
_TAIL: Final = 10  # commits shown before following begins, as `tail -f` does
_WHOLE_LOG: Final = 1 << 62


class FactName(click.ParamType[str]):
    """The name of a fact, in any case; a near miss gets a suggestion."""

    name = "fact"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        folded = {name.lower(): name for name in FACT_NAMES}
        asked = str(value).lower()
        if asked in folded:
            return folded[asked]
        near = difflib.get_close_matches(asked, folded, n=3)
        hint = (
            f"did you mean {' or '.join(folded[name] for name in near)}" if near else "known: " + ", ".join(FACT_NAMES)
        )
        raise click.BadParameter(f"{value!r} is no fact; {hint}", ctx, param)


@attrs.frozen
class Filters:
    """Which facts to show; a commit without one of them is left out.

    The end of a transfer names no request, and that of a send no receiver, so what started is remembered.
    """

    request: str | None
    engine: str | None
    facts: frozenset[str]
    _transfers: set[str] = attrs.field(factory=set, init=False)
    _concerned: Concerned = attrs.field(factory=Concerned, init=False)

    def chosen(self, entry: Entry) -> tuple[Fact, ...]:
        return tuple([fact for fact in entry.facts if self._is_chosen(fact, entry.engine)])

    def _is_chosen(self, fact: Fact, author: str) -> bool:
        engines = (author, *self._concerned.by(fact))
        return (
            (self.request is None or self._is_of_request(fact))
            and (not self.facts or type(fact).__name__ in self.facts)
            and (self.engine is None or self.engine in engines)
        )

    def _is_of_request(self, fact: Fact) -> bool:
        if getattr(fact, "request", None) == self.request:
            if isinstance(fact, TransferStarted | SendStarted):
                self._transfers.add(fact.transfer)
            return True
        return transfer_of(fact) in self._transfers


@click.command(short_help="Show what happened, commit by commit.")
@source_options(file=True)
@click.option("--follow", "-f", is_flag=True, help="Go on showing what comes, until Ctrl-C; begins with the last 10.")
@click.option("--request", metavar="ID", help="Only facts about this request.")
@click.option("--engine", metavar="NAME", help="Only facts by or about this engine.")
@click.option("--fact", "facts", type=FactName(), multiple=True, help="Only facts of this name; may be given again.")
@click.option("--from", "first", type=click.IntRange(min=1), metavar="N", help="Begin at this position.")
@click.option("--to", "last", type=click.IntRange(min=1), metavar="N", help="End with this position.")
@click.option("--last", "tail", type=click.IntRange(min=1), metavar="N", help="Only the last N positions.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Stop after showing N commits.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per commit and line.")
def command(
    where: Where,
    follow: bool,
    first: int | None,
    last: int | None,
    tail: int | None,
    limit: int | None,
    as_json: bool,
    **filters: object,
) -> None:
    """Show what happened, commit by commit.

    Each commit has its position, time (UTC), author as engine#session, and its facts. Workers write as worker:<gpu
    pool>#0. Filters choose facts; commits without a chosen one are left out. Of a transfer, the engine is the one that
    started it, and of a send the receiver as well; the request is the one whose prefix it fetches, or that it hands over.
    The end of either is known to be about a receiver or a request if its start is among the positions shown.

    What the keeper has trimmed away behind a snapshot is not shown, and said. A log that is followed and rolled back
    (a restored backup, a failover) ends the command with exit code 1.

    \b
    Examples:
      statecore log --last 20
      statecore log --request chat-17 --json
      statecore log --fact CopyEvicted --fact BlocksAllocated --from 1200 --to 1300
      statecore log --fact ServicePaused --fact ServiceResumed --fact CacheCleared
      statecore log --follow --engine engine-0
    """
    chosen = Filters(**filters)  # type: ignore[arg-type]  # the three options that are left
    with open_source(where) as source:
        here = kept(source)
        head = here.head
        after, until = _span(here, first, last, tail, follow)
        if after == here.first - 1 and not here.from_birth and first is None and tail is None:
            say_warning(f"{here.gone()}")
        shown = 0
        layout = _Layout(position=len(str(head.position)))
        for entry in _followed(source, after, until) if follow else entries(source, after, until):
            facts = chosen.chosen(entry)
            if not facts:
                continue
            if as_json:
                write_json(as_dict(entry, facts))
            else:
                layout.write(entry, facts)
            if follow:
                sys.stdout.flush()
            shown += 1
            if shown == limit:
                return
        if not shown and not as_json:
            click.echo(f"no commit from {after + 1} to {until} matches", err=True)


def as_dict(entry: Entry, facts: tuple[Fact, ...]) -> dict[str, object]:
    """A commit for `--json`."""
    return {
        "position": entry.position,
        "id": entry.id,
        "previous": entry.previous,
        "engine": entry.engine,
        "session": entry.session,
        "at": iso_time(entry.at_ms),
        "facts": [fact_to_dict(fact) for fact in facts],
    }


@attrs.define
class _Layout:
    """Columns that grow with what they have held, because the log is not known in advance."""

    position: int = 1
    author: int = 1
    fact: int = max(map(len, FACT_NAMES))

    def write(self, entry: Entry, facts: tuple[Fact, ...]) -> None:
        author = f"{entry.engine}#{entry.session}"
        when = (iso_time(entry.at_ms) or f"{entry.at_ms} ms").replace("T", " ")
        self.position = max(self.position, len(str(entry.position)))
        self.author = max(self.author, len(author))
        head = (
            f"{click.style(f'{entry.position:>{self.position}}', bold=True)}  {click.style(when, dim=True)}  "
            f"{click.style(author.ljust(self.author), fg='cyan')}  "
        )
        indent = " " * (self.position + len(when) + self.author + 6)
        for number, fact in enumerate(facts):
            name = click.style(type(fact).__name__.ljust(self.fact), fg="green")
            click.echo(f"{indent if number else head}{name}  {fact_words(fact, entry.engine)}")


def _span(here: Kept, first: int | None, last: int | None, tail: int | None, follow: bool) -> tuple[int, int]:
    """After which position to begin and with which to end."""
    head = here.head
    if tail is not None and first is not None:
        raise click.UsageError("--from and --last both say where to begin: give one of them")
    for option, value in (("--from", first), ("--to", last)):
        if value is not None and value < here.first:
            raise InvalidInput(f"{option} {value} lies before the beginning of the log: {here.gone()}")
    if last is not None and first is not None and last < first:
        raise InvalidInput(f"--to {last} lies before --from {first}")
    oldest = here.first - 1
    if follow:
        begin = head.position - (tail or _TAIL) if first is None else min(first - 1, head.position)
        return max(begin, oldest), _WHOLE_LOG if last is None else last
    until = checked_position(last, "--to", head)
    if tail is not None:
        return max(until - tail, oldest), until
    return checked_position(first, "--from", head) - 1 if first is not None else oldest, until


def _followed(source: Source, after: int, until: int) -> Iterator[Entry]:
    """Entries as they come.

    Raises:
        RolledBack: the log does not hold any more what was shown.
    """
    if not isinstance(source, LiveSource):
        raise click.UsageError("--follow needs a server: nothing is added to a file")
    shown: Base | None = None
    while True:
        head = source.head()
        if shown is None and head.position == after:
            shown = Base(after, head.commit_id)
        if head.position < after or (shown is not None and not source.log.continues(shown)):
            raise _rolled_back(after, head, shown)
        if head.first > after + 1:
            say_warning(f"positions {after + 1} to {head.first - 1} were trimmed away before they could be shown")
            after, shown = head.first - 1, None
        for entry in entries(source, after, min(head.position, until)):
            if shown is not None and entry.previous != shown.commit_id:
                raise _rolled_back(after, head, shown)
            yield entry
            after, shown = entry.position, Base(entry.position, entry.id)
        if after >= until:
            return
        if head.position <= after:
            time.sleep(_POLL_S)


def _rolled_back(after: int, head: Head, shown: Base | None) -> RolledBack:
    commit = f" commit {shown.commit_id!r}" if shown is not None else ""
    return RolledBack(
        f"the log was rolled back: it was shown up to{commit} at position {after}, and now ends with commit "
        f"{head.commit_id!r} at position {head.position}, another history. What was shown after they parted is void"
    )
