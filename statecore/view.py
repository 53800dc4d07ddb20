"""Questions about one replica: read-only, answered by what this process knows, waiting for nobody.

Owns the half of `CacheIndex` that has no effect. A question pins nothing and moves nothing; another thread's commit may
be under way meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from events.errors import InvalidInput
from events.facts import BLOCK_HASH_BYTES
from events.limits import POOL_BLOCKS_MAX
from statecore import door, ranges
from statecore.hashing import ExtraKey, HashedTokens, Tokens, checked_hashes
from statecore.rejections import UnknownRequest
from statecore.session import Session
from statecore.state import Engine, Request, State, request_table
from statecore.tree import host_match, longest_match

T = TypeVar("T")


class IndexView:
    """What an engine may ask of its index.

    Attributes:
        name: the index.
        engine: this engine.
        gpu_pool: the pool its requests live in.
        cpu_pool: the host pool it swaps to, or None.
        block_size: tokens in a block.
    """

    name: str
    engine: str
    gpu_pool: str
    cpu_pool: str | None
    block_size: int
    _session: Session

    @property
    def session(self) -> int:
        """Number of this engine's present life."""
        return self._session.number

    @property
    def commits(self) -> int:
        """Commits of this life that are in the log."""
        return self._session.commits

    @property
    def conflicts(self) -> int:
        """How often a commit was decided again because another engine of the pool was faster."""
        return self._session.conflicts

    def would_match(
        self,
        tokens: Tokens | None = None,
        *,
        hashes: bytes | None = None,
        salt: bytes = b"",
        adapter: bytes = b"",
        extra: Sequence[ExtraKey] = (),
    ) -> int:
        """How many blocks `match` would find, in the GPU pool and after them in the host pool, by what this replica knows.

        Pins nothing, waits for nobody. What is in the host pool still has to be brought in, as far as there is room.
        """
        sequence = self._sequence(tokens, hashes, salt, adapter, extra)
        joined = sequence if isinstance(sequence, bytes) else sequence.hashes
        limit = len(joined) // BLOCK_HASH_BYTES

        def found(state: State) -> int:
            node, depth = longest_match(state.root, self.gpu_pool, self.engine, joined, limit)
            if self.cpu_pool is None:
                return depth
            return depth + sum(
                blocks for _, blocks in host_match(node, depth, self.cpu_pool, self.gpu_pool, joined, limit)
            )

        return self._session.read(found)

    def can_allocate(self, blocks: int) -> bool:
        """Whether so many blocks are free or evictable, by what this replica knows."""
        count = door.whole(blocks, "blocks", least=0, most=POOL_BLOCKS_MAX)
        return self._session.read(
            lambda state: count <= state.pools[self.gpu_pool].free.total + state.pools[self.gpu_pool].unpinned
        )

    def table(self, request: str) -> list[int]:
        """The request's block ids in token order: cached prefix first, private blocks last."""
        door.request_id(request)
        return self._session.read(lambda state: ranges.ids(request_table(self._request(state, request), self.gpu_pool)))

    def path_blocks(self, request: str) -> int:
        """How many blocks of the request's table belong to the tree (or stand beside one that does)."""
        door.request_id(request)
        return self._session.read(lambda state: self._request(state, request).path_blocks)

    def requests(self) -> tuple[str, ...]:
        """Ids of this engine's live requests, sorted."""
        return self._session.read(lambda state: tuple(sorted(self._engine(state).requests)))

    @property
    def free_blocks(self) -> int:
        """Blocks of the pool that belong to nobody."""
        return self._session.read(lambda state: state.pools[self.gpu_pool].free.total)

    @property
    def cached_blocks(self) -> int:
        """Blocks of the pool that hold a prefix and that no request uses: what eviction could free."""
        return self._session.read(lambda state: state.pools[self.gpu_pool].unpinned)

    @property
    def paused(self) -> bool:
        """Whether no request may begin."""
        return self._session.read(lambda state: state.paused_by is not None)

    @property
    def clears(self) -> int:
        """How often the cache was cleared; a process that remembers the number sees every clearing exactly once."""
        return self._session.read(lambda state: state.clears)

    @property
    def position(self) -> int:
        """Position of this replica in the log."""
        return self._session.read(lambda state: state.position)

    def inspect(self, query: Callable[[State], T]) -> T:
        """Ask the replica's state something the calls above do not; `query` must not change or keep it."""
        return self._session.read(query)

    def _sequence(
        self, tokens: Tokens | None, hashes: bytes | None, salt: bytes, adapter: bytes, extra: Sequence[ExtraKey]
    ) -> HashedTokens | bytes:
        if (tokens is None) == (hashes is None):
            raise InvalidInput("give the prompt as tokens or as hashes, exactly one of them")
        if hashes is not None:
            if salt or adapter or extra:
                raise InvalidInput("salt, adapter and extra go into hashes when they are made; give tokens instead")
            return checked_hashes(hashes)
        assert tokens is not None
        return HashedTokens.begin(self.block_size, salt=salt, adapter=adapter, extra=extra).extend(tokens)

    def _engine(self, state: State) -> Engine:
        return state.engines[self.engine]

    def _request(self, state: State, request: str) -> Request:
        found = self._engine(state).requests.get(request)
        if found is None:
            raise UnknownRequest(self.engine, request)
        return found
