"""An exported log: the file format, writing it and reading it. Needs no server.

Owns the format: JSON lines, gzip where the name ends with `.gz`.

| line        | holds                                                                                              |
|-------------|----------------------------------------------------------------------------------------------------|
| header      | `format`, `version`, `index`, `first` (position), `count` (entries), `snapshots` where there are some |
| snapshots   | their bytes in pieces: `snapshot` (base64)                                                         |
| each entry  | the stored record, as it is: `position, previous, commit, author, at, schema, body, hashes, checksum` |
| footer      | `end`, `count`, `commit` (id of the last one), `checksum` (BLAKE2b-128 over all bytes before it)   |

`body` is the JSON the writer made, as a string; `hashes` is base64. A file without its footer, or whose bytes are not
those the footer names, is refused as a whole: half a history looks like a history. What the entries mean is not judged
here; `verify` does that. The same log always makes the same bytes.

A log whose beginning was trimmed away brings the snapshots that stand for it, and is of version 2; any other is of version
1, as before, and needs none.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import itertools
import os
import zlib
from collections.abc import Iterable, Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Final, TypeAlias

import attrs
import orjson

from events.errors import CorruptState, InvalidInput
from events.limits import COMMIT_BYTES_MAX
from events.ports import Head, Record, SnapshotPointer, StoredRecord
from ops.cli.export_snapshots import (
    VERSION_WITH_SNAPSHOTS,
    Enclosed,
    enclosed,
    head_of,
    header_entry,
    piece_lines,
    piece_of,
)

FORMAT: Final = "statecore-log"
VERSION: Final = 1

_HEADER_BYTES_MAX: Final = 4096
_LINE_BYTES_MAX: Final = 4 * COMMIT_BYTES_MAX
"""An entry as JSON: base64 adds a third to hashes, quoting at most doubles a body of JSON."""
_CHECKSUM_BYTES: Final = 16
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ENTRY_FIELDS: Final = {
    "position": int, "previous": str, "commit": str, "author": str, "at": int, "schema": int,
    "body": str, "hashes": str, "checksum": str,
}  # fmt: skip

_Line: TypeAlias = dict[str, object]


# --- writing --------------------------------------------------------------------------------------------------------


@attrs.frozen
class Stretch:
    """What an export holds: `count` entries of an index from position `first` on, and the snapshots in front of them."""

    index: str
    first: int
    count: int
    snapshots: tuple[tuple[SnapshotPointer, bytes], ...] = ()


def write_export(
    path: Path,
    index: str,
    first: int,
    count: int,
    records: Iterable[StoredRecord],
    snapshots: tuple[tuple[SnapshotPointer, bytes], ...] = (),
) -> int:
    """Write a log file, all or nothing; an older file of that name is replaced. Returns its size in bytes.

    Raises:
        InvalidInput: its folder does not exist.
        CorruptState: the log does not hold `count` records, or one whose body is not text.
        OSError: the file cannot be written.
    """
    if not path.parent.is_dir():
        raise InvalidInput(f"there is no folder {path.parent} to write {path.name} into")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as raw, _compressed(path, raw) as out:
            _write_lines(out, Stretch(index, first, count, snapshots), records)
        size = partial.stat().st_size
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return size


def _write_lines(out: BufferedIOBase, stretch: Stretch, records: Iterable[StoredRecord]) -> None:
    hasher = hashlib.blake2b(digest_size=_CHECKSUM_BYTES)
    first, count, written, last = stretch.first, stretch.count, 0, ""

    def write(line: _Line) -> None:
        try:
            data = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        except orjson.JSONEncodeError as error:
            raise CorruptState(f"log entry is damaged: {error}", position=first + written) from None
        hasher.update(data)
        out.write(data)

    header: _Line = {"format": FORMAT, "version": VERSION, "index": stretch.index, "first": first, "count": count}
    if stretch.snapshots:
        entries = [header_entry(pointer, data) for pointer, data in stretch.snapshots]
        header |= {"version": VERSION_WITH_SNAPSHOTS, "snapshots": entries}
    write(header)
    for _, data in stretch.snapshots:
        for line in piece_lines(data):
            write(line)
    for stored in records:
        write(_entry_line(stored))
        written, last = written + 1, stored.record.commit_id
    if written != count:
        raise CorruptState(f"the log held {written} of {count} entries", position=first + written)
    write({"end": FORMAT, "count": count, "commit": last, "checksum": hasher.hexdigest()})


def _entry_line(stored: StoredRecord) -> _Line:
    record = stored.record
    try:
        body = record.body.decode()
    except UnicodeDecodeError as error:
        raise CorruptState(f"log entry is damaged: its body is not text ({error})", position=stored.position) from None
    return {
        "position": stored.position,
        "previous": stored.previous,
        "commit": record.commit_id,
        "author": record.author,
        "at": record.at_ms,
        "schema": record.schema,
        "body": body,
        "hashes": base64.b64encode(record.hashes).decode(),
        "checksum": record.checksum,
    }


@contextlib.contextmanager
def _compressed(path: Path, raw: BufferedIOBase) -> Iterator[BufferedIOBase]:
    if path.suffix != ".gz":
        yield raw
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
        yield packed


# --- reading --------------------------------------------------------------------------------------------------------


@attrs.frozen
class ExportFile:
    """An exported log that is whole.

    Attributes:
        path: the file.
        index: name of the index it was taken from.
        head: where the log in it ends, and its first position.
        snapshots: those in it, with the lines each takes.
    """

    path: Path
    index: str
    head: Head
    snapshots: tuple[Enclosed, ...] = ()

    @classmethod
    def open(cls, path: Path) -> ExportFile:
        """Read the file once to its end.

        Raises:
            InvalidInput: it is no exported log, or of a newer format.
            CorruptState: it is one, but torn or damaged.
            OSError: it cannot be read.
        """
        with _lines(path) as lines:
            first_line = next(lines, b"")
            header = _header(path, first_line)
            snapshots = enclosed(path, header)
            hasher = hashlib.blake2b(first_line, digest_size=_CHECKSUM_BYTES)
            count, last = 0, b""
            for line in lines:
                if last:
                    hasher.update(last)
                    count += 1
                last = line
            footer = _footer(path, last, count)
        first, promised = _whole(header, "first"), _whole(header, "count")
        count -= sum(each.lines for each in snapshots)
        if not count == promised == footer.get("count"):
            raise CorruptState(f"{path} is damaged: it holds {count} entries, its header says {promised}")
        if footer.get("checksum") != hasher.hexdigest():
            raise CorruptState(
                f"{path} is damaged: the checksum of its bytes is {hasher.hexdigest()}, its footer says "
                f"{footer.get('checksum')}"
            )
        return cls(path, str(header["index"]), head_of(first, count, str(footer.get("commit")), snapshots), snapshots)

    @property
    def pointers(self) -> tuple[SnapshotPointer, ...]:
        return tuple([each.pointer for each in self.snapshots])

    def snapshot(self, pointer: SnapshotPointer) -> bytes:
        """The bytes of one of its snapshots.

        Raises:
            CorruptState: a line of it is none.
        """
        pieces: list[bytes] = []
        with _lines(self.path) as lines:
            next(lines)
            for each in self.snapshots:
                found = list(itertools.islice(lines, each.lines))
                if each.pointer == pointer:
                    pieces = [piece_of(self.path, _json(line)) for line in found]
        return b"".join(pieces)

    def records(self, after: int, until: int) -> Iterator[StoredRecord]:
        """Records with positions above `after` up to `until`, in order.

        Raises:
            CorruptState: a line is not an entry, or not the one its place in the file promises.
        """
        expected = self.head.first or self.head.position + 1
        with _lines(self.path) as lines:
            next(lines)
            for line in itertools.islice(lines, sum(each.lines for each in self.snapshots), None):
                if expected > min(until, self.head.position):
                    return
                if expected > after:
                    yield _record(self.path, line, expected)
                expected += 1


@contextlib.contextmanager
def _lines(path: Path) -> Iterator[Iterator[bytes]]:
    """The lines of a file, compressed or not; damage of the compression becomes ours."""
    try:
        with path.open("rb") as raw:
            packed = raw.peek(len(_GZIP_MAGIC))[: len(_GZIP_MAGIC)] == _GZIP_MAGIC
            with gzip.GzipFile(fileobj=raw) if packed else contextlib.nullcontext(raw) as stream:
                yield _bounded(path, stream)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorruptState(f"{path} is torn or damaged ({error}); export or copy it again") from None


def _bounded(path: Path, stream: BufferedIOBase) -> Iterator[bytes]:
    """A file without line ends must not be read into memory, nor a small one that unpacks to such a one."""
    yield stream.readline(_HEADER_BYTES_MAX)
    while line := stream.readline(_LINE_BYTES_MAX):
        if len(line) == _LINE_BYTES_MAX:
            raise CorruptState(f"{path} is damaged: it has a line of {_LINE_BYTES_MAX} bytes or more")
        yield line


def _header(path: Path, line: bytes) -> _Line:
    header = _json(line)
    if header is None or header.get("format") != FORMAT:
        raise InvalidInput(f"{path} is not an exported log (its first line is no {FORMAT} header)")
    version = header.get("version")
    if version not in (VERSION, VERSION_WITH_SNAPSHOTS):
        raise InvalidInput(
            f"{path} has format version {version}, this release reads versions {VERSION} and {VERSION_WITH_SNAPSHOTS}"
        )
    first, count = _whole(header, "first"), _whole(header, "count")
    if type(header.get("index")) is not str or count < 0 or first < (1 if count else 0):
        raise CorruptState(f"{path} is damaged: its header lacks index, first or count")
    return header


def _footer(path: Path, line: bytes, count: int) -> _Line:
    footer = _json(line)
    if footer is None or footer.get("end") != FORMAT or not line.endswith(b"\n"):
        whole = count + line.endswith(b"\n")
        raise CorruptState(f"{path} is torn: it stops after {whole} whole entries; export or copy it again")
    return footer


def _record(path: Path, line: bytes, position: int) -> StoredRecord:
    fields = _json(line)
    if fields is None or fields.keys() != _ENTRY_FIELDS.keys():
        raise CorruptState(f"{path} is damaged: a line is not an entry", position=position)
    for name, kind in _ENTRY_FIELDS.items():
        if type(fields[name]) is not kind:
            raise CorruptState(f"{path} is damaged: {name} is {fields[name]!r:.80}", position=position)
    if fields["position"] != position:
        raise CorruptState(f"{path} is damaged: the entry there says it is {fields['position']}", position=position)
    try:
        hashes = base64.b64decode(str(fields["hashes"]), validate=True)
    except ValueError as error:
        raise CorruptState(f"{path} is damaged: hashes are not base64 ({error})", position=position) from None
    return StoredRecord(
        position=position,
        previous=str(fields["previous"]),
        record=Record(
            commit_id=str(fields["commit"]),
            author=str(fields["author"]),
            at_ms=_whole(fields, "at"),
            schema=_whole(fields, "schema"),
            body=str(fields["body"]).encode(),
            hashes=hashes,
            checksum=str(fields["checksum"]),
        ),
    )


def _json(line: bytes) -> _Line | None:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _whole(line: _Line, name: str) -> int:
    """An integer of a line; -1 where it is none."""
    value = line.get(name)
    return value if type(value) is int else -1
