"""The snapshots beside the log, as the world sees them: each publishing is checked, and blobs rot.

Owns what must hold of every snapshot a keeper publishes, whoever it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from events.ports import SnapshotPointer
from events.transport import Published, PublishReply
from statecore import snapshot
from statecore.replica import Replica
from tests.sim.accounts import require

if TYPE_CHECKING:
    from tests.sim.world import World


class Shelf:
    """Snapshots as the world sees them: each publishing is checked, and blobs rot. `rotten`: such blobs, and where."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.rotten: dict[str, int] = {}
        self._seen_whole: set[str] = set()

    def writes(self, blob: str, start: int, size: int) -> None:
        """A piece is written, perhaps once more, over what had rotted."""
        if start <= self.rotten.get(blob, -1) < start + size:
            del self.rotten[blob]

    def reads(self, blob: str) -> None:
        """A keeper, or a replica, reads a piece of it."""
        if blob not in self.rotten:
            self._seen_whole.add(blob)

    def publish(self, pointer: SnapshotPointer, seen: tuple[SnapshotPointer, ...], margin: int) -> PublishReply:
        world, shelf = self._world, self._world.log.snapshots
        before = shelf.pointers()
        reply = shelf.publish(pointer, seen, margin)
        moved = shelf.pointers() != before
        if not isinstance(reply, Published):
            world.tell(f"the snapshot of {pointer.position} is not published: {reply.reason}")
            world.marks["publish lost a race"] += "another keeper" in reply.reason
            world.marks["a snapshot of a vanished history is not published"] += "does not hold" in reply.reason
        require(isinstance(reply, Published) or not moved, "what is refused changes nothing", reply)
        if moved:
            self._is_published(pointer, before)
        return reply

    def _is_published(self, pointer: SnapshotPointer, before: tuple[SnapshotPointer, ...]) -> None:
        world = self._world
        first = world.log.head().first
        world.tell(f"snapshot of {pointer.position} published, the log begins at {first}")
        world.marks["snapshot published"] += 1
        world.marks["trim"] += first > 1
        position = pointer.position
        require(position < len(world.chain), "a snapshot is of the log's history", pointer)
        require(world.chain[position] == pointer.commit_id, "a snapshot is of the log's history", pointer)
        require(not before or before[0].position < position, "the pointer moves forward", (before, pointer))
        for each in world.log.snapshots.pointers():
            require(first <= each.position + 1, "the log goes on from every snapshot", (each, first))
        verified = pointer.blob not in self.rotten or pointer.blob in self._seen_whole
        require(verified, "what does not give the state back is not published", pointer)
        if pointer.blob not in self.rotten:
            state = snapshot.decode(bytes(world.log.snapshots.blobs[pointer.blob]))
            found = Replica(state).digest()
            require(found == world.digests[pointer.commit_id], "a snapshot gives the state back", pointer)
        world.server.photograph()

    def rot(self) -> None:
        """A bit of a stored snapshot turns over: of one that is published while the other is whole, or of one that is not
        yet."""
        world, blobs = self._world, self._world.log.snapshots.blobs
        published = [each.blob for each in world.log.snapshots.pointers()]
        whole = [blob for blob in published if blob not in self.rotten]
        candidates = [blob for blob in blobs if blob not in published and blobs[blob] and whole == published]
        candidates += whole if len(whole) > 1 else []
        candidates = [blob for blob in candidates if blob not in self.rotten]
        if candidates:
            blob = candidates[-1 - world.choices.draw(len(candidates))]
            at = world.choices.draw(len(blobs[blob]))
            blobs[blob][at] ^= 1 << world.choices.draw(8)
            self.rotten[blob] = at
            world.tell(f"a bit of snapshot {blob} turns over")
            world.marks["a stored snapshot rots"] += 1
