"""The reference of the core: the cache one would write in an afternoon, one node per block.

Owns nothing but the comparison. A dictionary from block hash to block, a reference count per block, and an
`OrderedDict` of the blocks nobody uses, least recently used first; a request's blocks are put there deepest first, so
eviction takes leaves before what they hang on. It serves the same lives as the machine and finds the same hits.

It leaves out what the machine does besides: no sharing between processes, nothing that could be logged or replayed, no
undo, no digest, no refusal (a pool that is too small is a KeyError), no pending blocks, no tiers, no checks. Block
hashes come as a list of 16-byte keys, made before the clock starts. Its cost is per block, the machine's per run.
"""

from __future__ import annotations

from collections import OrderedDict

from events.facts import BLOCK_HASH_BYTES
from ops.bench.workload import Life


class Block:
    """A cached block."""

    __slots__ = ("hash", "id", "refs")

    def __init__(self, block_hash: bytes, block_id: int) -> None:
        self.hash = block_hash
        self.id = block_id
        self.refs = 1


class NaiveCache:
    """Cached blocks of one pool, in the memory of one process."""

    def __init__(self, pool_blocks: int) -> None:
        self.cached: dict[bytes, Block] = {}
        self.unused: OrderedDict[bytes, Block] = OrderedDict()
        self.free = list(range(pool_blocks - 1, -1, -1))

    def serve(self, life: Life, keys: list[bytes]) -> int:
        """A whole request, `keys` being the hashes of `life.path`. Returns the blocks it found cached."""
        prompt_full = len(life.prompt) // BLOCK_HASH_BYTES
        path = self.match(keys[:prompt_full])
        matched = len(path)
        private = self.allocate(life.prompt_blocks - matched)
        self.insert(path, private, keys[matched:prompt_full])
        private += self.allocate(life.blocks - life.prompt_blocks)
        self.insert(path, private, keys[prompt_full:])
        self.release(path, private)
        return matched

    def match(self, keys: list[bytes]) -> list[Block]:
        """The longest cached prefix, pinned."""
        path = []
        for key in keys:
            block = self.cached.get(key)
            if block is None:
                break
            if block.refs == 0:
                del self.unused[key]
            block.refs += 1
            path.append(block)
        return path

    def allocate(self, blocks: int) -> list[int]:
        """Free blocks; evicts while there are too few."""
        while len(self.free) < blocks:
            key, block = self.unused.popitem(last=False)
            del self.cached[key]
            self.free.append(block.id)
        return [self.free.pop() for _ in range(blocks)]

    def insert(self, path: list[Block], private: list[int], keys: list[bytes]) -> None:
        """The first private blocks become cached, under `keys`."""
        for key, block_id in zip(keys, private, strict=False):
            block = self.cached[key] = Block(key, block_id)
            path.append(block)
        del private[: len(keys)]

    def release(self, path: list[Block], private: list[int]) -> None:
        """Unpin, deepest first; what is still private is free."""
        for block in reversed(path):
            block.refs -= 1
            if block.refs == 0:
                self.unused[block.hash] = block
        self.free += private


def keys_of(life: Life) -> list[bytes]:
    """The hashes of the life's path one by one."""
    path = life.path
    return [path[offset : offset + BLOCK_HASH_BYTES] for offset in range(0, len(path), BLOCK_HASH_BYTES)]
