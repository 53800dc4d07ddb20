"""Snapshots in Redis: one attempt a call.

Owns the mapping of `SnapshotTransport` to commands: pieces of a blob by SETRANGE and GETRANGE, and the script that
publishes. Knows nothing of what is in them.
"""

from __future__ import annotations

from typing import Any, Final, cast

from redis.exceptions import RedisError

from events import client as clients
from events import keys
from events.errors import CorruptState
from events.ports import SnapshotPointer
from events.redis_values import number, text
from events.script import Script
from events.transport import NotPublished, Published, PublishReply

_PUBLISH: Final = Script("publish_snapshot", "continuity", "stored_number")
_PLANT: Final = Script("plant_index", "server_life")
_FIELDS: Final = ("position", "commit", "digest", "schema", "blob", "bytes", "at_ms")
"""Of the pointer, in the order of the script's arguments."""


class RedisSnapshots:
    """Implements `SnapshotTransport` for one index on one server."""

    def __init__(self, client: clients.Client, index: keys.IndexKeys) -> None:
        self._client = client
        self._keys = index

    def pointers(self) -> tuple[SnapshotPointer, ...]:
        newest, previous = _FIELDS, tuple([f"previous_{field}" for field in _FIELDS])
        try:
            found = cast("list[bytes | None]", self._client.hmget(self._keys.snapshot, [*newest, *previous]))
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error
        both = ((newest, found[: len(newest)]), (previous, found[len(newest) :]))
        return tuple([_pointer(self._keys.snapshot, names, values) for names, values in both if any(values)])

    def piece(self, blob: str, start: int, size: int) -> bytes:
        try:
            found = self._client.getrange(self._keys.blob(blob), start, start + size - 1)
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error
        return cast("bytes", found)

    def store(self, blob: str, start: int, piece: bytes, ttl_s: float) -> None:
        key = self._keys.blob(blob)
        try:
            self._client.setrange(key, start, cast("Any", piece))  # the library's types know text only
            self._client.pexpire(key, int(ttl_s * 1000))
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error

    def discard(self, blob: str) -> None:
        try:
            self._client.delete(self._keys.blob(blob))
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error

    def publish(self, pointer: SnapshotPointer, seen: tuple[SnapshotPointer, ...], margin: int) -> PublishReply:
        blobs = [each.blob for each in seen]
        current, previous = (*blobs, "", "")[:2]
        named = [
            self._keys.log, self._keys.head, self._keys.snapshot, self._keys.blob(pointer.blob),
            self._keys.blob(previous or pointer.blob),
        ]  # fmt: skip
        arguments = (
            keys.LAYOUT, pointer.position, pointer.commit_id, pointer.digest, pointer.schema, pointer.blob, pointer.size,
            pointer.at_ms, current, previous, margin,
        )  # fmt: skip
        try:
            answer = _PUBLISH.run(self._client, named, arguments)
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error
        return _reply(answer, pointer)

    def plant(self, pointer: SnapshotPointer, fences: tuple[tuple[str, int], ...]) -> PublishReply:
        named = [
            self._keys.log, self._keys.head, self._keys.fence, self._keys.snapshot, self._keys.blob(pointer.blob)
        ]  # fmt: skip
        arguments = (
            keys.LAYOUT, pointer.position, pointer.commit_id, pointer.digest, pointer.schema, pointer.blob, pointer.size,
            pointer.at_ms, *(part for fence in fences for part in fence),
        )  # fmt: skip
        try:
            answer = _PLANT.run(self._client, named, arguments)
            if bytes(answer[0]) == b"taken" and self.pointers()[:1] == (pointer,):
                return Published(pointer.position + 1)  # this very call, whose first reply was lost
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error
        return _reply(answer, pointer)


def _reply(answer: Any, pointer: SnapshotPointer) -> PublishReply:
    """The tagged array of publish_snapshot.lua; its header lists the tags."""
    tag = bytes(answer[0])
    match tag:
        case b"published":
            return Published(int(answer[1]))
        case b"planted":
            return Published(pointer.position + 1)
        case b"taken":
            return NotPublished(f"the index is not empty: its log is at position {text(answer[1], 'plant_index.lua')}")
        case b"moved":
            if bytes(answer[1]) == pointer.blob.encode():
                return Published(0)  # this very call, whose first reply was lost
            return NotPublished(f"another keeper published {text(answer[1], 'publish_snapshot.lua')!r} meanwhile")
        case b"incomplete":
            return NotPublished(f"the blob holds {int(answer[1])} of {pointer.size} bytes")
        case b"diverged":
            return NotPublished(f"the log does not hold commit {pointer.commit_id!r} at position {pointer.position}")
        case b"layout":
            raise clients.other_layout(bytes(answer[1]), keys.LAYOUT)
        case _:
            raise CorruptState(f"publish_snapshot.lua gave an answer this release does not know: {tag!r:.80}")


def _pointer(key: str, names: tuple[str, ...], values: list[bytes | None]) -> SnapshotPointer:
    position, commit, digest, schema, blob, size, at_ms = zip(values, [f"{key}, {name}" for name in names], strict=True)
    return SnapshotPointer(
        number(*position), text(*commit), text(*digest), number(*schema), text(*blob), number(*size), number(*at_ms)
    )
