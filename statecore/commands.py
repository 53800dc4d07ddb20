"""What can be asked of the machine: commands, imperative, checked at the door by `CacheIndex`."""

from __future__ import annotations

from typing import TypeAlias

import attrs

from events.facts import BlockRanges, PolicyChosen
from statecore.state import GPU


@attrs.frozen(slots=True)
class Join:
    """Begin a life of `engine`. Creates index and pools where they do not exist, ends an earlier life that did not end.

    Attributes:
        gpu_blocks: size of the GPU pool; None to join a pool that must exist.
        cpu_pool, cpu_blocks: the same for the host pool; no host tier if `cpu_pool` is None.
        policy: write policy and watermarks; None to take what the index has.
        memory_survives: the bytes of the GPU pool outlive a process.
        memory_of: session whose memory this process still has; 0 for none. If another process lived under the name since,
            what the pool holds is in that one's memory.
        history_lost: the life before knew an end of the log that is gone. What it wrote there, over copies that it had
            evicted, the log knows nothing of: bytes and copies may differ.
        first_policy: what an index without a policy gets with its first host pool.
    """

    engine: str
    block_size: int
    hash_scheme: str
    gpu_pool: str
    gpu_blocks: int | None
    tensor_parallel_size: int
    cpu_pool: str | None = None
    cpu_blocks: int | None = None
    policy: PolicyChosen | None = None
    first_policy: PolicyChosen | None = None
    memory_survives: bool = True
    memory_of: int = 0
    history_lost: bool = False

    def in_the_same_process(self, session: int) -> Join:
        """The same for the next life of this process, which has the memory still."""
        return attrs.evolve(self, memory_of=session, history_lost=False)

    def after_lost_history(self) -> Join:
        """The same for the life after one whose history is gone."""
        return attrs.evolve(self, history_lost=True)

    def sized(self, tier: str, blocks: int) -> Join:
        """The same with a pool of another size."""
        return attrs.evolve(self, gpu_blocks=blocks) if tier == GPU else attrs.evolve(self, cpu_blocks=blocks)


@attrs.frozen(slots=True)
class Leave:
    """End the engine's present life."""

    engine: str


@attrs.frozen(slots=True)
class Depose:
    """Declare a life of an engine over, because it gives no sign of it any more. The log has the last word on that.

    Nothing is done if that life is over already.
    """

    engine: str
    session: int
    reason: str


@attrs.frozen(slots=True)
class Match:
    """Begin a request: pin the longest prefix of `hashes` the engine's pool holds, at most `limit` blocks."""

    engine: str
    request: str
    hashes: bytes
    prompt_tokens: int
    limit: int | None = None


@attrs.frozen(slots=True)
class BringIn:
    """Lengthen the path of a request that was just matched by what the host pool holds of `hashes`, to `limit` at most."""

    engine: str
    request: str
    hashes: bytes
    limit: int | None = None


@attrs.frozen(slots=True)
class CancelTransfer:
    """Stop wanting the outcome of a transfer this engine started."""

    engine: str
    transfer: str
    reason: str


@attrs.frozen(slots=True)
class Allocate:
    """Give `blocks` blocks of the engine's GPU pool to a request, or to the engine itself (None). May evict."""

    engine: str
    request: str | None
    blocks: int


@attrs.frozen(slots=True)
class AllocateHost:
    """Give `blocks` blocks of the engine's host pool to the engine itself. May evict."""

    engine: str
    blocks: int


@attrs.frozen(slots=True)
class Adopt:
    """Blocks the engine itself holds become private blocks of a request, after those it has, in the order given."""

    engine: str
    request: str
    blocks: BlockRanges


@attrs.frozen(slots=True)
class Forget:
    """Deal with a lost end of the history: give up every copy that nobody pins; their bytes may be others than the log says.

    Attributes:
        author: who asks.
        commit: id of a commit that was lost.
    """

    author: str
    commit: str


@attrs.frozen(slots=True)
class MakeRoom:
    """Evict until `blocks` blocks of a pool of the engine's are free or on their way out, or as many as can be."""

    engine: str
    tier: str
    blocks: int


@attrs.frozen(slots=True)
class Recycle:
    """Give private blocks back without ending the request, or blocks of the engine's own, in the tier named."""

    engine: str
    request: str | None
    blocks: BlockRanges
    tier: str = GPU


@attrs.frozen(slots=True)
class Extend:
    """Put the request's first private blocks into the tree until its path is `hashes` long, as pending."""

    engine: str
    request: str
    hashes: bytes


@attrs.frozen(slots=True)
class MarkReady:
    """The request's path is computed down to `depth` blocks; None means all of it."""

    engine: str
    request: str
    depth: int | None = None


@attrs.frozen(slots=True)
class Release:
    """End a request."""

    engine: str
    request: str


@attrs.frozen(slots=True)
class Send:
    """Hand a request over: copy `source` (blocks of the request, or the engine's own) to `destination` (the receiver's)."""

    engine: str
    request: str
    source: BlockRanges
    receiver: str
    destination: BlockRanges


@attrs.frozen(slots=True)
class Resize:
    """Give a pool of the engine's another size."""

    engine: str
    tier: str
    blocks: int


@attrs.frozen(slots=True)
class Pause:
    """Let no request begin, anywhere."""

    engine: str
    reason: str


@attrs.frozen(slots=True)
class Resume:
    """Let requests begin again."""

    engine: str
    reason: str


@attrs.frozen(slots=True)
class Clear:
    """Forget all that is cached, in every pool."""

    engine: str
    reason: str


Command: TypeAlias = (
    Join
    | Leave
    | Depose
    | Match
    | BringIn
    | CancelTransfer
    | Allocate
    | AllocateHost
    | Adopt
    | Forget
    | MakeRoom
    | Recycle
    | Extend
    | MarkReady
    | Release
    | Send
    | Resize
    | Pause
    | Resume
    | Clear
)
