"""The names of every Redis key, in one place.

All keys of one index share one hash tag, so an index lives on one shard of a Redis Cluster and many indexes spread.
"""

from __future__ import annotations

import re
from typing import Final

import attrs

from events.errors import InvalidInput
from events.limits import NAME_LENGTH_MAX

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+/-]*\Z")

KEEPER: Final = "keeper"
"""Who writes what the keeper appends; no engine may have this name."""
HEAD_POSITION: Final = "position"
HEAD_COMMIT: Final = "commit"
HEAD_LAYOUT: Final = "layout"
HEAD_LIFE: Final = "life"
HEAD_OPENING: Final = "opening"
HEAD_LOST: Final = "lost"
HEAD_FORGOT: Final = "forgot"
HEAD_FIELDS: Final = (HEAD_POSITION, HEAD_COMMIT, HEAD_LAYOUT, HEAD_LIFE, HEAD_OPENING, HEAD_LOST, HEAD_FORGOT)
"""All others are scopes."""

ACKS_DONE: Final = "done"
"""Field of a transfer's acks that holds the position of its finish."""
LAYOUT: Final = "2"
"""Version of the layout of keys and stream fields below; a client of another layout is refused by every
script. Between two it is named after both ("1>2"), and nobody writes: `migrations/layouts.py`."""


def checked_name(value: object, what: str) -> str:
    """Return `value` when it can be part of a key; raise `InvalidInput` naming it otherwise."""
    if not isinstance(value, str):
        raise InvalidInput(f"{what} must be a string, not {type(value).__name__}")
    if not is_name(value):
        raise InvalidInput(
            f"{what} {value[:140]!r} is not a name: 1 to {NAME_LENGTH_MAX} letters, digits or any of _ . : @ + / - "
            "that begin with a letter, digit or underscore"
        )
    return value


def checked_engine(value: object) -> str:
    """`checked_name` of an engine; the keeper's name is no engine's, for an engine's session would fence the keeper off."""
    if value == KEEPER:
        raise InvalidInput(f"engine name {KEEPER!r} is the keeper's: give the engine another one")
    return checked_name(value, "engine name")


def is_name(value: str) -> bool:
    """Whether it can be part of a key."""
    return len(value) <= NAME_LENGTH_MAX and _NAME.match(value) is not None


@attrs.frozen
class IndexKeys:
    """Keys of the index `name`.

    Attributes:
        log: stream, entry id `<position>-0`.
        head: hash of position, last commit id, layout, and per pool or engine the position that last touched it.
        fence: hash engine -> lowest session that may append.
        closed: string that is there while the log is closed after its server began a new life.
        seats: hash "<rank>:<pool>" -> token of the worker that sits there.
        snapshot: hash, where the last two snapshots are.
        keeper: string, the keeper that acts; runs out.
    """

    name: str
    log: str
    head: str
    fence: str
    closed: str
    seats: str
    snapshot: str
    keeper: str

    def jobs(self, pool: str) -> str:
        """Stream of the transfer jobs of a GPU pool; one consumer group per rank."""
        return f"{self._tag}:jobs:{pool}"

    def acks(self, transfer: str) -> str:
        """Hash rank -> what it reported of a transfer; expires some time after the last report."""
        return f"{self._tag}:acks:{transfer}"

    def worker(self, pool: str, rank: int) -> str:
        """String: the heartbeat of the worker that sits on a rank of a GPU pool; runs out when it stops beating."""
        return f"{self._tag}:worker:{rank}:{checked_name(pool, 'pool name')}"

    def lease(self, engine: str) -> str:
        """String: the session of an engine that is alive; runs out when it is not renewed."""
        return f"{self._tag}:lease:{checked_name(engine, 'engine name')}"

    def blob(self, name: str) -> str:
        """String: the bytes of one snapshot."""
        return f"{self.snapshot}:{name}"

    @property
    def _tag(self) -> str:
        return f"kv:{{{self.name}}}"

    @classmethod
    def of(cls, name: str) -> IndexKeys:
        checked_name(name, "index name")
        tag = f"kv:{{{name}}}"
        return cls(
            name=name,
            log=f"{tag}:log",
            head=f"{tag}:head",
            fence=f"{tag}:fence",
            closed=f"{tag}:closed",
            seats=f"{tag}:seats",
            snapshot=f"{tag}:snapshot",
            keeper=f"{tag}:keeper",
        )


def is_key(word: str) -> bool:
    """Whether this word of a command is one of our keys: names cannot hold a brace."""
    return word.startswith("kv:{")


def pool_scope(pool: str) -> str:
    """Field of `head` that holds the position of the last commit that touched this pool."""
    return f"pool:{pool}"


def leaving_scope(pool: str) -> str:
    """Field of `head` that holds the position of the last finish that may have taken a copy out of this pool."""
    return f"leaving:{pool}"


def ends_scope(engine: str) -> str:
    """Field of `head` that holds the position of the last end of a transfer that this engine started."""
    return f"ends:{engine}"


def engine_scope(engine: str) -> str:
    """Field of `head` for an engine: engines count as pools in the conflict check."""
    return f"engine:{engine}"


def seat_field(pool: str, rank: int) -> str:
    """Field of `seats`: a rank of a GPU pool."""
    return f"{rank}:{pool}"


def rank_group(rank: int) -> str:
    """Consumer group of a job stream: the workers of one rank."""
    return f"rank-{rank}"


INDEX_SCOPE: Final = "index"
"""Field of `head` for the configuration as a whole: creation, pools added."""


def entry_id(position: int) -> str:
    return f"{position}-0"


def position_of(stream_id: bytes | str) -> int:
    text = stream_id.decode("ascii") if isinstance(stream_id, bytes) else stream_id
    position, dash, rest = text.partition("-")
    if not dash or rest != "0" or not position.isdecimal():
        raise ValueError(f"stream id {text!r} is not of the form <position>-0")
    return int(position)
