"""The story of the two tiers as it is after two snapshots: the beginning of its log is gone.

Owns the trimming: snapshots are stored and published as the keeper does it, with a small margin. The digests are those of
the whole log, from before.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from events import connect
from events.log import EventLog, LogConnection
from events.ports import SnapshotPointer
from events.snapshots import Snapshots
from events.transport import Published
from statecore import snapshot
from statecore.replica import Replica
from tests.cli import scenario

TRIMMED = "trimmed"


@attrs.frozen
class TrimmedStory:
    """Attributes:
    url: of the server it is on.
    end: position of the last commit.
    first: first position kept.
    snapshots: their positions, the older first.
    digests: of every position, also of those that are gone.
    at: as in `scenario.Tiers`.
    """

    url: str
    end: int
    first: int
    snapshots: tuple[int, int]
    digests: Mapping[int, str]
    at: Mapping[str, int]


def tell_trimmed(url: str, index: str = TRIMMED) -> TrimmedStory:
    """Make the history on a server, and trim it behind snapshots at "swap-in" and "used again"."""
    tiers = scenario.tell_tiers(url, index)
    digests: dict[int, str] = {}
    with connect(url) as connection:
        for entry in connection.log(index, follow=False).read(0):
            digests[entry.position] = replica_at(connection.log(index, follow=False), entry.position).digest()
        older, newer = tiers.at["swap-in"], tiers.at["used again"]
        publish(connection, index, older)
        first = publish(connection, index, newer)
        head = connection.log(index, follow=False).head()
    assert (first, head.first) == (older - 1, older - 1)
    return TrimmedStory(url, tiers.end, first, (older, newer), digests, tiers.at)


def replica_at(log: EventLog, position: int) -> Replica:
    """From birth; while the log has it."""
    replica = Replica()
    replica.apply_all(log.read(0, position))
    assert replica.state.position == position
    return replica


def publish(connection: LogConnection, index: str, position: int, *, below: int = 2) -> int:
    """Publish a snapshot of a position; the log keeps an entry `below` the older one's successor. Returns the first kept."""
    log = connection.log(index, follow=False)
    transport = connection.backend.transport(index)
    shelf = Snapshots(transport.snapshots)
    replica = replica_at(log, position)
    seen = shelf.pointers()
    stored = shelf.upload(
        snapshot.encode(replica.state),
        SnapshotPointer(position, replica.base.commit_id, replica.digest(), snapshot.SNAPSHOT_SCHEMA, "", 0, 1),
    )
    margin = position - seen[0].position + below if seen else 0
    reply = transport.snapshots.publish(stored, seen, margin)
    assert isinstance(reply, Published)
    return reply.first
