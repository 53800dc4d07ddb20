"""The first page of a shared memory segment: whose memory it is, and what is in it.

Owns the page's format, the names of all files in shared memory, and the identity of a process (pid and start time,
because pids come round again). Opens no segment.

    bytes 0…7   "kvblocks"         12…15   length of the JSON
    bytes 8…11  version            16…     the JSON, then its BLAKE2b digest of 16 bytes; zeros to 4,096

The page is complete before the file gets its name, and never changes afterwards.
"""

from __future__ import annotations

import os
import struct
from hashlib import blake2b
from pathlib import Path
from typing import Final

import attrs
import orjson

from events.errors import InvalidInput
from events.keys import checked_name
from statecore.door import whole
from workers.layout import DIMENSION_MAX, CacheLayout
from workers.store import TIERS

HEADER_BYTES: Final = 4096
"""One page, so that what follows is aligned for every dtype and for page-locking."""

IPC_HANDLE_BYTES: Final = 64 + 8
"""A CUDA IPC handle of an allocation, and the tensor's offset in it."""

HOST: Final = "host"
"""After the header come the blocks themselves."""
CUDA: Final = "cuda"
"""The blocks are in GPU memory; after the header come the handles that open it, one for each tensor."""

_MAGIC: Final = b"kvblocks"
_VERSION: Final = 1
_START: Final = struct.Struct("<8sII")
_DIGEST_BYTES: Final = 16
_NAME_DIGEST_BYTES: Final = 8


@attrs.frozen(slots=True)
class Process:
    """One life of one process.

    Attributes:
        pid: its id; another process may get it later.
        started: clock ticks after boot, field 22 of /proc/<pid>/stat.
    """

    pid: int
    started: int

    @classmethod
    def current(cls) -> Process:
        process = cls.of(os.getpid())
        assert process is not None, "/proc has no entry for this process"
        return process

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this pid now; None when there is none or it only waits to be reaped."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = stat[stat.rindex(b")") + 2 :].split()  # the command's name may hold anything: count from behind it
        return None if fields[0] in {b"Z", b"X"} else cls(pid, started=int(fields[19]))

    @property
    def alive(self) -> bool:
        return Process.of(self.pid) == self


@attrs.frozen(slots=True)
class SegmentHeader:
    """What the page says.

    Attributes:
        index, pool, tier, rank: whose memory it is.
        incarnation: 32 hex digits, made at creation.
        memory: `HOST` or `CUDA`: what follows the page.
        layout: shape of the pool.
        creator: the process that made it.
    """

    index: str
    pool: str
    tier: str
    rank: int
    incarnation: str
    memory: str
    layout: CacheLayout
    creator: Process

    @property
    def payload_bytes(self) -> int:
        return self.layout.total_bytes if self.memory == HOST else self.layout.tensors * IPC_HANDLE_BYTES

    @property
    def segment_bytes(self) -> int:
        return HEADER_BYTES + self.payload_bytes

    @property
    def name(self) -> str:
        return segment_name(self.index, self.pool, self.rank)

    def encode(self) -> bytes:
        fields = attrs.asdict(self, recurse=False) | {
            "layout": self.layout.to_json(),
            "creator": [self.creator.pid, self.creator.started],
        }
        text = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
        page = _START.pack(_MAGIC, _VERSION, len(text)) + text + _digest(text)
        if len(page) > HEADER_BYTES:
            raise InvalidInput(f"the header of pool {self.pool!r} has {len(page)} bytes; {HEADER_BYTES} is the most")
        return page.ljust(HEADER_BYTES, b"\0")

    @classmethod
    def decode(cls, page: bytes) -> SegmentHeader:
        """InvalidInput, with the reason, for a page that is not a whole header of this version."""
        if len(page) < HEADER_BYTES:
            raise InvalidInput(f"it has {len(page)} bytes; its header alone has {HEADER_BYTES}")
        magic, version, length = _START.unpack_from(page)
        if magic != _MAGIC:
            raise InvalidInput(f"it begins with {magic!r}, not with {_MAGIC!r}")
        if version != _VERSION:
            raise InvalidInput(f"its header has version {version}; this release reads version {_VERSION}")
        text = page[_START.size : _START.size + length]
        if page[_START.size + length : _START.size + length + _DIGEST_BYTES] != _digest(text):
            raise InvalidInput("its header is damaged: the digest does not fit")
        fields = orjson.loads(text)
        fields["layout"] = CacheLayout.from_json(fields["layout"])
        fields["creator"] = Process(*fields["creator"])
        return cls(**fields)


def checked_identity(index: str, pool: str, rank: int, tier: str | None = None) -> None:
    """Refuse names and ranks that no segment can have."""
    checked_name(index, "index name")
    checked_name(pool, "pool name")
    whole(rank, "a tensor-parallel rank", least=0, most=DIMENSION_MAX)
    if tier is not None and tier not in TIERS:
        raise InvalidInput(f"tier must be one of {', '.join(TIERS)}, not {tier!r:.80}")


def segment_name(index: str, pool: str, rank: int) -> str:
    """File name of a segment: of fixed length, whatever the names are."""
    return f"{pool_prefix(index, pool)}{rank}"


def pool_prefix(index: str, pool: str) -> str:
    """What the names of all ranks of one pool begin with."""
    return f"{index_prefix(index)}{_short(pool)}-r"


def index_prefix(index: str) -> str:
    """What the names of all segments of one index begin with."""
    return f"statecore-{_short(index)}-"


def lock_name(index: str, pool: str, rank: int) -> str:
    """File name of the lock of a pool's worker (`rank_lock.py`). No prefix of segments fits it."""
    return f"{lock_prefix(index)}{_short(pool)}-r{rank}.lock"


def lock_prefix(index: str) -> str:
    """What the names of all worker locks of one index begin with."""
    return f"statecore-worker-{_short(index)}-"


def _short(name: str) -> str:
    return blake2b(name.encode(), digest_size=_NAME_DIGEST_BYTES).hexdigest()


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=_DIGEST_BYTES).digest()
