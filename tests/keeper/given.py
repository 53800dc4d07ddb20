"""What the keeper's tests set up: an index that is worked on, and a keeper over it with small bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import attrs

from events import limits
from events.keeping import Keeping
from events.log import LogConnection
from events.ports import Connection, SnapshotPointer
from events.transport import PublishReply
from statecore import CacheIndex
from statecore.replica import Replica
from statecore.restoring import up_to_date
from workers.keeper import Keeper
from workers.keeper_totals import KeeperSettings

BLOCK_SIZE = 4
EVERY = 20
MARGIN = 5


@contextmanager
def small_margin() -> Iterator[None]:
    with mock.patch.object(limits, "SNAPSHOT_MARGIN", MARGIN):
        yield


@contextmanager
def bounds(**values: float) -> Iterator[None]:
    with ExitStack() as patches:
        for name, value in values.items():
            patches.enter_context(mock.patch.object(limits, name, value))
        yield


@attrs.define
class Said:
    """Everything a keeper said."""

    lines: list[tuple[str, dict[str, Any]]] = attrs.Factory(list)

    def __call__(self, event: str, /, **details: object) -> None:
        self.lines.append((event, dict(details)))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [details for said, details in self.lines if said == event]


@attrs.define
class Clock:
    """Seconds that a test moves."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


def keeper_of(connection: Any, index: str, **given: Any) -> tuple[Keeper, Said]:
    said = Said()
    place = given.pop("place", None) or connection.keeping(index)
    settings = given.pop("settings", KeeperSettings(every=EVERY, age_s=1e6))
    return Keeper(place, settings, said, **given), said


def engine_of(connection: Connection, index: str, name: str = "a", **given: Any) -> CacheIndex:
    return CacheIndex(
        connection, name=index, engine=name, block_size=BLOCK_SIZE, **{"gpu_blocks": 32, "follow": False, **given}
    )


def work(engine: CacheIndex, requests: int, tag: str = "r") -> None:
    """Requests that share a beginning; four or five commits each."""
    for number in range(requests):
        request = f"{tag}{number}"
        tokens = [1, 2, 3, 4, *([number % 7] * 8)]
        found = len(engine.match(request, tokens).blocks)
        if found < 3:
            engine.allocate(request, 3 - found)
        engine.extend(request, ready=True)
        engine.release(request)


class Dies(BaseException):
    """The keeper's process ends here."""


@attrs.define
class MortalShelf:
    """A shelf whose keeper dies before or after one of its calls."""

    inner: Any
    call: str
    after: bool

    def pointers(self) -> tuple[SnapshotPointer, ...]:
        found: tuple[SnapshotPointer, ...] = self._mortal("pointers", self.inner.pointers)
        return found

    def fetch(self, pointer: SnapshotPointer) -> bytes:
        data: bytes = self._mortal("fetch", lambda: self.inner.fetch(pointer))
        return data

    def upload(self, data: bytes, pointer: SnapshotPointer) -> SnapshotPointer:
        stored: SnapshotPointer = self._mortal("upload", lambda: self.inner.upload(data, pointer))
        return stored

    def discard(self, pointer: SnapshotPointer) -> None:
        self._mortal("discard", lambda: self.inner.discard(pointer))

    def publish(self, pointer: SnapshotPointer, seen: tuple[SnapshotPointer, ...]) -> PublishReply:
        reply: PublishReply = self._mortal("publish", lambda: self.inner.publish(pointer, seen))
        return reply

    def _mortal(self, name: str, do: Callable[[], Any]) -> Any:
        if name == self.call and not self.after:
            raise Dies
        answer = do()
        if name == self.call and self.after:
            raise Dies
        return answer


def with_shelf(place: Keeping, call: str, after: bool) -> Keeping:
    return attrs.evolve(place, shelf=MortalShelf(place.shelf, call, after))


def fresh(connection: LogConnection, index: str) -> Replica:
    """What a process that starts now comes to."""
    return up_to_date(connection.log(index, follow=False))
