"""The segments one store has open: by pool name, all of one index and one rank.

Owns what every store does the same way, whatever it makes of the memory: opening each pool once, telling an unknown
pool from a known one, noticing that ranks disagree, removing. Knows no arrays and no tensors.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path

import attrs

from events.errors import InvalidInput
from workers import shared_memory
from workers.layout import CacheLayout
from workers.rank_lock import remove_dead_locks
from workers.segment_header import HOST, Process, SegmentHeader, checked_identity, index_prefix, pool_prefix
from workers.shared_memory import SHARED_FOLDER, Segment
from workers.store import MemoryGone, PoolMemory


class SharedPools:
    """Pools of one index and rank that this process has open."""

    def __init__(self, index: str, rank: int, folder: Path = SHARED_FOLDER) -> None:
        checked_identity(index, "pool", rank)
        self._index = index
        self._rank = rank
        self._folder = folder
        self._segments: dict[str, Segment] = {}

    def create(
        self,
        pool: str,
        tier: str,
        layout: CacheLayout,
        *,
        memory: str = HOST,
        payload: Callable[[], bytes] | None = None,
    ) -> PoolMemory:
        """Make the pool's segment, or open it. InvalidInput when another rank of the pool has another layout."""
        self._refuse_open(pool)
        checked_identity(self._index, pool, self._rank, tier)
        header = SegmentHeader(
            index=self._index,
            pool=pool,
            tier=tier,
            rank=self._rank,
            incarnation=secrets.token_hex(16),
            memory=memory,
            layout=layout,
            creator=Process.current(),
        )
        return self._keep(pool, shared_memory.create(self._folder, header, payload))

    def attach(self, pool: str, layout: CacheLayout | None, incarnation: str | None) -> PoolMemory:
        self._refuse_open(pool)
        return self._keep(
            pool,
            shared_memory.attach(self._folder, self._index, pool, self._rank, layout=layout, incarnation=incarnation),
        )

    def __getitem__(self, pool: str) -> Segment:
        """The open segment. InvalidInput for a pool this store has not opened."""
        if pool not in self._segments:
            known = ", ".join(sorted(self._segments)) or "none"
            raise InvalidInput(f"pool {pool!r:.140} is not open in this store of index {self._index!r}; open: {known}")
        return self._segments[pool]

    def unlink(self, pool: str) -> bool:
        """Close the pool and remove its segment unless somebody else has it open. Returns whether it is gone."""
        segment = self[pool]
        with contextlib.suppress(MemoryGone):
            segment.check_in_place()
            self.close(pool)
            return shared_memory.remove_if_unused(segment.path)
        self.close(pool)  # its name belongs to nobody, or to somebody else's memory
        return True

    def close(self, pool: str) -> None:
        self._segments.pop(pool).close()

    def close_all(self) -> None:
        for pool in list(self._segments):
            self.close(pool)

    def _refuse_open(self, pool: str) -> None:
        if pool in self._segments:
            raise InvalidInput(f"pool {pool!r} is already open in this store")

    def _keep(self, pool: str, segment: Segment) -> PoolMemory:
        try:
            self._check_other_ranks(segment)
        except InvalidInput:
            segment.close()
            if segment.created:
                shared_memory.remove_if_unused(segment.path)
            raise
        self._segments[pool] = segment
        header = segment.header
        return PoolMemory(pool, header.tier, header.layout, header.incarnation, segment.created)

    def _check_other_ranks(self, segment: Segment) -> None:
        """Ranks of one pool hold shards of the same blocks: refuse a layout that differs from a living rank's (E-41).

        Looks after publishing, so of two ranks that come at the same moment at least one sees the other.
        """
        for path in self._folder.glob(f"{pool_prefix(self._index, segment.header.pool)}*"):
            if path == segment.path or shared_memory.is_unfinished(path):
                continue
            with contextlib.suppress(MemoryGone), shared_memory.opened(path) as descriptor:
                other = shared_memory.read_header(path, descriptor)
                if other.layout != segment.header.layout and other.creator.alive:
                    raise InvalidInput(
                        f"rank {segment.header.rank} of pool {other.pool!r} has {segment.header.layout}, but rank "
                        f"{other.rank} has {other.layout}"
                    )


@attrs.frozen(slots=True)
class RemovedSegment:
    """A file that `remove_stale` removed, a segment or a lock: its name, and the bytes given back."""

    name: str
    freed_bytes: int


def remove_stale(index: str, folder: Path = SHARED_FOLDER) -> list[RemovedSegment]:
    """Remove what crashed processes left: segments of the index whose creator is dead and that nobody has open, and
    locks of workers that nobody holds.

    Files under such a name that are not segments of ours are left alone.
    """
    checked_identity(index, "pool", 0)
    removed = [RemovedSegment(path.name, 0) for path in remove_dead_locks(index, folder)]
    for path in sorted(folder.glob(f"{index_prefix(index)}*")):
        with contextlib.suppress(FileNotFoundError, InvalidInput):
            size = path.stat().st_size
            if shared_memory.is_unfinished(path):
                gone = shared_memory.remove_unfinished(path)
            else:
                gone = shared_memory.remove_if_unused(path, only_of_the_dead=True)
            if gone:
                removed.append(RemovedSegment(path.name, size))
    return removed
