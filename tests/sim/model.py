"""What an engine process was told so far: the caller's memory, built from answers only, never from the index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import attrs

from statecore.hashing import HashedTokens
from statecore.results import Allocation, Extension, Match, TransferState

BLOCK_SIZE_OF_ALL: Final = 2


@attrs.define
class Held:
    """A live request as its engine knows it.

    Attributes:
        begin: how many blocks it found; what follows is computed here.
        waits: transfers that were under way when it was last told; nothing is computed before they are done.
        life: tells it from an earlier request of the same name.
        was: how long its path was when a swap-in for it failed; 0 if none did.
    """

    sequence: HashedTokens
    by_hashes: bool
    table: list[int]
    path: int
    begin: int
    waits: tuple[str, ...] = ()
    life: object = attrs.field(factory=object, repr=False)
    was: int = 0

    @property
    def private(self) -> list[int]:
        return self.table[self.path :]

    def hash_of(self, place: int) -> bytes:
        return self.sequence.hashes[16 * place : 16 * place + 16]

    def copy(self) -> Held:
        return attrs.evolve(self, table=list(self.table))


@attrs.define
class Model:
    """Everything a process was told: its requests, and the blocks it holds without one."""

    requests: dict[str, Held] = attrs.Factory(dict)
    held: list[int] = attrs.Factory(list)

    def copy(self) -> Model:
        return Model({name: held.copy() for name, held in self.requests.items()}, list(self.held))


Answer: TypeAlias = Match | Allocation | Extension | tuple[TransferState, ...] | None
Update: TypeAlias = Callable[[Model, Any], None]


def counts(answer: Answer) -> object:
    """What of an answer given inside a step may not change until its end (`statecore/results.py`)."""
    match answer:
        case Match():
            return len(answer.blocks), answer.tokens
        case Allocation():
            return len(answer.blocks)
        case Extension():
            return answer.path_blocks
    return None


class Abandoned(Exception):
    """The engine's own error, leaving a step."""


@attrs.frozen
class Doubt:
    """What will hold if the unknown commit turns out to stand."""

    commit_id: str
    told: tuple[tuple[Update, Answer], ...]
    learn: bool
    new_life: bool
