"""The records of the independent account, and the word for a broken promise. Shares no code with `statecore`."""

from __future__ import annotations

from collections import Counter

import attrs

from events import facts as f

WIDTH = f.BLOCK_HASH_BYTES


class Violation(AssertionError):
    """A promise is broken. `check` names the promise, so that shrinking stays with the same failure."""

    def __init__(self, check: str, detail: str) -> None:
        super().__init__(f"{check}: {detail}")
        self.check = check


checks_made: Counter[str] = Counter()
"""How often each check was made since the run at hand began."""


def require(holds: bool, check: str, detail: object = "") -> None:
    checks_made[check] += 1
    if not holds:
        raise Violation(check, str(detail))


def listed(blocks: f.BlockRanges) -> list[int]:
    return [block for start, count in blocks for block in range(start, start + count)]


def cut(hashes: bytes) -> list[bytes]:
    return [hashes[at : at + WIDTH] for at in range(0, len(hashes), WIDTH)]


@attrs.frozen
class Cached:
    """One cached block.

    Attributes:
        pending: who is computing it, or has it brought.
        commit: number of the commit that brought it.
        used: number of the last commit in which a request began, grew over it, or ended.
        filling: the transfer that brings its bytes.
        leaving: the swap-out at whose end it goes, if nobody uses it then.
    """

    block: int
    parent: bytes | None
    pending: str | None
    commit: int
    used: int
    filling: str | None = None
    leaving: str | None = None


@attrs.frozen
class Moving:
    """One transfer under way: block hashes in token order, and the blocks it writes to."""

    kind: str
    engine: str
    source: str
    destination: str
    start: int
    hashes: tuple[bytes, ...]
    blocks: tuple[int, ...]
    cancelled: bool = False


@attrs.define
class Live:
    """One live request: block hashes of its path, its own blocks at duplicate places, its private blocks, its prompt."""

    pool: str
    path: list[bytes]
    wanted: bytes
    own: dict[int, int] = attrs.Factory(dict)
    private: list[int] = attrs.Factory(list)

    def copy(self) -> Live:
        return Live(self.pool, list(self.path), self.wanted, dict(self.own), list(self.private))


@attrs.define
class Memory:
    """One pool."""

    tier: str
    blocks: int
    free: set[int]
    cached: dict[bytes, Cached]

    def copy(self) -> Memory:
        return Memory(self.tier, self.blocks, set(self.free), dict(self.cached))


@attrs.frozen
class Served:
    """Over all lives of an engine: requests, hits, tokens asked, blocks found, those of them from the host."""

    requests: int = 0
    hits: int = 0
    asked: int = 0
    found: int = 0
    fetched: int = 0


@attrs.define
class Life:
    """One engine. `started`: transfers, over all its lives."""

    session: int
    alive: bool
    pool: str
    host: str | None
    ranks: int
    held: set[int] = attrs.Factory(set)
    started: int = 0
    served: Served = Served()

    def copy(self) -> Life:
        return attrs.evolve(self, held=set(self.held))


@attrs.frozen
class Intent:
    """What a process asked for when it began a request: the caller's half of a `PrefixMatched`."""

    hashes: bytes
    limit: int | None
