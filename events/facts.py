"""What can happen to an index: the facts, past tense, and nothing else.

A fact carries the outcome of a decision (which blocks, which place), never the request for one, so that an old log
replays the same way after a policy change and a person reading it sees what happened.

Owns the records. Knows neither how they are stored (`codec.py`) nor what they do to the state (`statecore/evolve`).

**Block ids** are written as ranges: `((start, count), …)` in token order, because ids are given lowest first and runs
are therefore mostly contiguous.

**Places.** A place in the tree is `(node, depth)`: `depth` blocks below the root, on the path that ends at `node`.
A split leaves the id with the lower part, so climbing from the node until its run covers `depth` finds the place
whatever was split in between. `node >= 0` is the id of a node that existed before the commit (0 is the root).
`node < 0` is *commit-relative*: `-k` is the place where the k-th fact of the same commit ended its path (1-based),
because ids given inside a commit depend on what lands before it (decision 0003).
"""

from __future__ import annotations

from typing import Final, TypeAlias

import attrs

SCHEMA: Final = 3
"""Number of the schema the facts below make up. An entry with a higher one is refused (`NewerSchema`).

2: pools change size, serving pauses, caches are cleared, prefill sends to decode. What 1 had is as it was.
3: `EngineJoined` says whether its memory outlives it, `EngineLost` says why (`migrations/` fills them in older facts);
`HistoryLost`."""

BlockRanges: TypeAlias = tuple[tuple[int, int], ...]
"""Block ids as `((start, count), …)`, in token order; neighbours that continue each other are merged."""

BLOCK_HASH_BYTES: Final = 16
"""Length of one block hash. Joined hashes are one `bytes` of `16 * blocks`."""


@attrs.frozen(slots=True)
class IndexCreated:
    """The first fact of every log.

    Attributes:
        block_size: tokens in a block.
        hash_scheme: name of the block hash function; replicas that would hash otherwise are refused.
    """

    block_size: int
    hash_scheme: str


@attrs.frozen(slots=True)
class PoolAdded:
    """A memory of `blocks` blocks, ids 0 … blocks-1, all free. `tier` is "gpu" or "cpu"."""

    pool: str
    tier: str
    blocks: int


@attrs.frozen(slots=True)
class PoolResized:
    """A pool has `blocks` blocks from now on. Of those it lost, none was in use; what they cached was evicted before."""

    pool: str
    blocks: int


@attrs.frozen(slots=True)
class PoolDropped:
    """The memory of a GPU pool is gone, with every copy in it: `engine`, alone in it, begins a life with memory of its own.

    Copies in the host pool survive. Transfers from and to the pool were cancelled before.
    """

    engine: str
    pool: str


@attrs.frozen(slots=True)
class PolicyChosen:
    """When copies go to the host tier, for the whole index.

    Attributes:
        write: "write_back" (when evicted) or "write_through" (as soon as ready; eviction is free then).
        free_low, free_high: percent of a GPU pool. Once less than `free_low` is free or on its way out, swap-outs start
            until `free_high` is. 0 and 0: only when blocks are needed.
    """

    write: str
    free_low: int
    free_high: int


@attrs.frozen(slots=True)
class EngineJoined:
    """A life of an engine began. `session` is higher than that of every earlier life; the log fences the lower ones.

    Attributes:
        memory_survives: the bytes of its GPU pool outlive its process. If not, whoever declares the engine lost drops
            what the pool holds, unless another engine works in it.
    """

    engine: str
    session: int
    gpu_pool: str
    cpu_pool: str | None
    tensor_parallel_size: int
    memory_survives: bool


@attrs.frozen(slots=True)
class EngineLeft:
    """A life ended in order. Its requests are released; blocks it never made ready are dropped from its pool."""

    engine: str
    session: int


@attrs.frozen(slots=True)
class EngineLost:
    """A life was declared over by somebody else. Same effect as leaving; `session` can append nothing any more.

    Attributes:
        reason: why, for the engine if it wakes, and for people.
    """

    engine: str
    session: int
    reason: str


@attrs.frozen(slots=True)
class PrefixMatched:
    """A request began: its path is root … `node` at `depth` blocks, and pinned. Counts the hit.

    Attributes:
        depth: blocks found in the engine's GPU pool; 0 is a miss.
        prompt_tokens: length of the prompt, for the hit rate.
    """

    engine: str
    request: str
    node: int
    depth: int
    prompt_tokens: int


@attrs.frozen(slots=True)
class BlocksAllocated:
    """Free blocks became private to a request, after those it has, or to the engine itself (`request` None)."""

    engine: str
    request: str | None
    pool: str
    blocks: BlockRanges


@attrs.frozen(slots=True)
class BlocksRecycled:
    """Private blocks became free again without ending the request (or the engine's own hold)."""

    engine: str
    request: str | None
    pool: str
    blocks: BlockRanges


@attrs.frozen(slots=True)
class PathExtended:
    """The first private blocks of a request became tree copies (pending), its path grew by `len(hashes) / 16`.

    Where the pool already held a block of that content, the tree keeps what it has and the request's own block stays
    private: a duplicate, which its table goes on using until release.

    Attributes:
        depth: path length before.
        hashes: joined hashes of the new path blocks.
        adopted: blocks the tree took over.
        duplicates: blocks that stay private although their place on the path is shared.
    """

    engine: str
    request: str
    depth: int
    hashes: bytes
    adopted: BlockRanges
    duplicates: BlockRanges


@attrs.frozen(slots=True)
class PathReady:
    """The bytes of the request's path down to `depth` blocks are there: other engines may match them."""

    engine: str
    request: str
    depth: int


@attrs.frozen(slots=True)
class RequestReleased:
    """The request ended: pins off, private blocks free, copies stay. `freed` are the private blocks."""

    engine: str
    request: str
    freed: BlockRanges


@attrs.frozen(slots=True)
class CopyEvicted:
    """The tail `blocks` of the copy that ends at the place (`node`, `depth`) was dropped from one pool."""

    pool: str
    node: int
    depth: int
    blocks: BlockRanges


@attrs.frozen(slots=True)
class TransferStarted:
    """Bytes are to be moved between two pools: blocks `start` … `end`-1 of the path that ends at (`node`, `end`).

    The source is pinned and the destination is a copy nobody may use yet. The job goes out in the same commit.

    Attributes:
        transfer: id, `<engine>:<number>`; never used twice.
        kind: "swap_out" (source dropped at the end unless used again), "write_through" (source stays), "swap_in".
        engine: who asked for it.
        request: for a swap-in the request whose path it lengthens.
    """

    transfer: str
    kind: str
    engine: str
    request: str | None
    node: int
    start: int
    end: int
    source: str
    source_blocks: BlockRanges
    destination: str
    destination_blocks: BlockRanges


@attrs.frozen(slots=True)
class TransferFinished:
    """Every rank has reported. `ok`: the bytes are there. Otherwise `reason` says what went wrong; nothing was moved."""

    transfer: str
    ok: bool
    reason: str


@attrs.frozen(slots=True)
class TransferCancelled:
    """Nobody wants the outcome any more. Its destination stays in quarantine until every rank has reported."""

    transfer: str
    reason: str


@attrs.frozen(slots=True)
class SendStarted:
    """A prefill engine hands a request over: bytes go from its blocks to blocks of a decode engine, pairwise in order.

    Both keep their blocks: the sender must not free its own before the end; what the receiver frees stays in quarantine
    until every rank has reported. Ends with `TransferFinished` or `TransferCancelled`. The job goes out in the same commit.

    Attributes:
        transfer: id, from the same numbers as `TransferStarted`.
        engine, request: who sends, and what the sender's scheduler calls it.
        receiver: the engine that goes on with the request.
    """

    transfer: str
    engine: str
    request: str
    receiver: str
    source: str
    source_blocks: BlockRanges
    destination: str
    destination_blocks: BlockRanges


@attrs.frozen(slots=True)
class HistoryLost:
    """Somebody knew an end of the history that is gone. What its writers did to blocks the log knows nothing of.

    So every copy that nobody pins is given up, in every pool: it may have been evicted in the lost part, and its blocks hold
    other bytes. Transfers under way were cancelled before: they may have ended there.

    Attributes:
        told_by: who appended this.
        commit: id of a commit that was lost.
    """

    told_by: str
    commit: str


@attrs.frozen(slots=True)
class ServicePaused:
    """No request may begin, in any engine, until `ServiceResumed`; those that live go on. `engine` asked for it."""

    engine: str
    reason: str


@attrs.frozen(slots=True)
class ServiceResumed:
    """Requests may begin again."""

    engine: str
    reason: str


@attrs.frozen(slots=True)
class CacheCleared:
    """All that was cached is forgotten, in every pool: the weights have changed, or an operator asked.

    No request lived. Transfers under way are cancelled by it: their late results are ignored, and the blocks a worker may
    still write stay in quarantine until every rank has reported.
    """

    engine: str
    reason: str


Fact: TypeAlias = (
    IndexCreated
    | PoolAdded
    | PoolResized
    | PoolDropped
    | PolicyChosen
    | EngineJoined
    | EngineLeft
    | EngineLost
    | PrefixMatched
    | BlocksAllocated
    | BlocksRecycled
    | PathExtended
    | PathReady
    | RequestReleased
    | CopyEvicted
    | TransferStarted
    | TransferFinished
    | TransferCancelled
    | SendStarted
    | HistoryLost
    | ServicePaused
    | ServiceResumed
    | CacheCleared
)

FACT_TYPES: Final[tuple[type[Fact], ...]] = (
    IndexCreated,
    PoolAdded,
    PoolResized,
    PoolDropped,
    PolicyChosen,
    EngineJoined,
    EngineLeft,
    EngineLost,
    PrefixMatched,
    BlocksAllocated,
    BlocksRecycled,
    PathExtended,
    PathReady,
    RequestReleased,
    CopyEvicted,
    TransferStarted,
    TransferFinished,
    TransferCancelled,
    SendStarted,
    HistoryLost,
    ServicePaused,
    ServiceResumed,
    CacheCleared,
)
