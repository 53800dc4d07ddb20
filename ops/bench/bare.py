"""The reference of everything that goes through Redis: a script that does nothing but append.

Owns one Lua line and its caller. An `XADD` with an explicit id and the fields of a log entry, in one EVALSHA: the same
round trip and the same bytes as a commit, without a check, a version, a codec or a machine.
"""

from __future__ import annotations

from typing import Final

from events.client import Client
from events.keys import IndexKeys, entry_id
from events.ports import Record
from events.stream_entry import meta_of

_SCRIPT: Final = (
    "return redis.call('XADD', KEYS[1], ARGV[1], 'previous', ARGV[2], 'meta', ARGV[3], 'body', ARGV[4],"
    " 'hashes', ARGV[5])"
)


class BareAppends:
    """Appends to a stream of its own."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._key = IndexKeys.of(name).log
        self._sha = client.script_load(_SCRIPT)
        self._position = 0

    def append(self, record: Record) -> None:
        self._position += 1
        self._client.execute_command(  # type: ignore[no-untyped-call]  # redis-py has no types for it
            "EVALSHA", self._sha, 1, self._key, entry_id(self._position),
            record.commit_id, meta_of(record), record.body, record.hashes,
        )  # fmt: skip
