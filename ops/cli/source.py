"""Where a command reads a log from: a server or an exported file, behind one small protocol.

Owns the options that say where (`--url`, `--index`, `--file` and their environment variables), the choice of the index,
and reading entries lazily, page by page, in order and without gaps. What the entries do is `replaying.py`'s.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import attrs
import click

from events import connect
from events.codec import decode
from events.errors import CorruptState, InvalidInput, Unavailable
from events.limits import READ_PAGE
from events.log import EventLog, LogConnection
from events.ports import Entry, Head, SnapshotPointer, StoredRecord
from events.snapshots import Snapshots
from ops.cli.export_file import ExportFile

URL_VARIABLE: Final = "STATECORE_URL"
INDEX_VARIABLE: Final = "STATECORE_INDEX"
SERVER_HELP: Final = (
    "Server: redis://, rediss:// (TLS), unix://, redis+cluster://, redis+sentinel:// (rediss+… with TLS), or "
    "embedded:///folder."
)


@attrs.frozen
class Where:
    """What the user said about where the log is; None for what was left out."""

    url: str | None = None
    index: str | None = None
    file: Path | None = None


def source_options(*, file: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`--url`, `--index` and, where a file does as well, `--file`; the command receives them as `where`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def called(url: str | None, index: str | None, file: Path | None = None, **rest: object) -> None:
            command(where=Where(url, index, file), **rest)

        wrapped: Callable[..., None] = called
        if file:
            wrapped = click.option(
                "--file",
                type=click.Path(path_type=Path),
                help="An exported log (see: statecore export), instead of a server.",
            )(wrapped)
        wrapped = click.option("--index", metavar="NAME", help=f"Name of the index.  [env: {INDEX_VARIABLE}]")(wrapped)
        return click.option(
            "--url",
            metavar="URL",
            help=f"{SERVER_HELP}  [env: {URL_VARIABLE}]",
        )(wrapped)

    return decorate


# --- sources --------------------------------------------------------------------------------------------------------


class Source(Protocol):
    """A log to read, of one index."""

    @property
    def index(self) -> str: ...

    @property
    def place(self) -> str:
        """Where it is, for people."""
        ...

    def head(self) -> Head: ...

    def stored(self, after: int, until: int) -> Iterator[StoredRecord]:
        """Records with positions above `after` up to `until`, fetched as they are asked for."""
        ...

    def pointers(self) -> tuple[SnapshotPointer, ...]:
        """The snapshots beside the log, at most two."""
        ...

    def snapshot(self, pointer: SnapshotPointer) -> bytes:
        """The bytes of one of them, as they are."""
        ...


@attrs.frozen
class LiveSource:
    """The log of an index on a server, and the snapshots beside it."""

    log: EventLog
    shelf: Snapshots
    place: str

    @classmethod
    def of(cls, connection: LogConnection, index: str) -> LiveSource:
        log = connection.log(index, follow=False)
        return cls(log, Snapshots(connection.backend.transport(index).snapshots), connection.url)

    @property
    def index(self) -> str:
        return self.log.index

    def head(self) -> Head:
        return self.log.head()

    def stored(self, after: int, until: int) -> Iterator[StoredRecord]:
        while after < until:
            page = self.log.read_stored(after, min(READ_PAGE, until - after))
            if not page:
                return
            for record in page:
                if record.position > until:
                    return
                yield record
            after = page[-1].position

    def pointers(self) -> tuple[SnapshotPointer, ...]:
        return self.shelf.pointers()

    def snapshot(self, pointer: SnapshotPointer) -> bytes:
        return self.shelf.fetch(pointer)


@attrs.frozen
class FileSource:
    """An exported log."""

    export: ExportFile

    @property
    def index(self) -> str:
        return self.export.index

    @property
    def place(self) -> str:
        return str(self.export.path)

    def head(self) -> Head:
        return self.export.head

    def stored(self, after: int, until: int) -> Iterator[StoredRecord]:
        return self.export.records(after, until)

    def pointers(self) -> tuple[SnapshotPointer, ...]:
        return self.export.pointers

    def snapshot(self, pointer: SnapshotPointer) -> bytes:
        return self.export.snapshot(pointer)


@contextmanager
def open_source(where: Where) -> Iterator[Source]:
    """The log the user means.

    Raises:
        click.UsageError: nothing or too much was named.
        InvalidInput, Unavailable, CorruptState, OSError: it cannot be opened, or is not there.
    """
    if where.file is None:
        with open_connection(where) as connection:
            yield _live_source(connection, where)
        return
    if where.url is not None:
        raise click.UsageError("--url and --file are two sources: give one of them")
    export = ExportFile.open(where.file)
    if where.index not in (None, export.index):
        raise InvalidInput(f"{where.file} holds the log of index {export.index!r}, not of {where.index!r}")
    yield FileSource(export)


@contextmanager
def open_connection(where: Where) -> Iterator[LogConnection]:
    """The server the user means."""
    url = where.url or os.environ.get(URL_VARIABLE)
    if not url:
        raise click.UsageError(
            f"where is the log? Give --url redis://host:port, set {URL_VARIABLE}, or, where the command takes one, "
            "give an exported log with --file"
        )
    with connect(url) as connection:
        yield connection


def _live_source(connection: LogConnection, where: Where) -> LiveSource:
    return LiveSource.of(connection, chosen_index(connection, where))


def chosen_index(connection: LogConnection, where: Where) -> str:
    """The index the user means, of those on a server."""
    known = connection.indexes()
    name = where.index or os.environ.get(INDEX_VARIABLE) or None
    if not known:
        raise InvalidInput(f"there is no index at {connection.url}: no engine has joined one there")
    if name is None:
        if len(known) > 1:
            raise InvalidInput(f"{connection.url} holds {len(known)} indexes; say which with --index: {_few(known)}")
        name = known[0]
    if name not in known:
        raise InvalidInput(f"there is no index {name!r} at {connection.url}; there are: {_few(known)}")
    return name


def _few(names: tuple[str, ...], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# --- reading --------------------------------------------------------------------------------------------------------


def stored_records(source: Source, after: int, until: int) -> Iterator[StoredRecord]:
    """Every record from `after` + 1 to `until`.

    Raises:
        CorruptState: one is missing.
        Unavailable: the keeper trimmed it away while it was read.
    """
    expected = after + 1
    for record in source.stored(after, until):
        if record.position != expected:
            first = source.head().first
            if expected < first == record.position:
                raise Unavailable(
                    f"the log was trimmed while it was read: positions before {first:,} are gone now. Run it again"
                )
            raise CorruptState(f"the log goes on with {record.position}: an entry is missing", position=expected)
        yield record
        expected += 1
    if expected <= until:
        raise CorruptState(f"the log ends before {until}, where its head is: an entry is missing", position=expected)


def entries(source: Source, after: int, until: int) -> Iterator[Entry]:
    """The same, decoded.

    Raises:
        CorruptState: one is missing or damaged.
    """
    return map(decode, stored_records(source, after, until))


def checked_position(value: int | None, option: str, head: Head) -> int:
    """The position an option names, by default the end of the log."""
    if value is None:
        return head.position
    if value > head.position:
        raise InvalidInput(f"{option} {value} is beyond the end of the log, which is at position {head.position}")
    return value
