"""What a keeper is told, and what it counts."""

from __future__ import annotations

import attrs

from events import limits


@attrs.frozen
class KeeperSettings:
    """How often snapshots are taken.

    Attributes:
        every: commits after which one is.
        age_s: seconds after which one is, if anything has happened since the last.
    """

    every: int = limits.SNAPSHOT_EVERY
    age_s: float = limits.SNAPSHOT_AGE_S


@attrs.define
class Totals:
    """What a keeper did and saw in its life; what its metrics show.

    Attributes:
        snapshot_sound: whether the newest snapshot gave its state back when it was last read.
    """

    acting: bool = False
    position: int = 0
    engines: int = 0
    transfers: int = 0
    deposed: int = 0
    spared: int = 0
    rung: int = 0
    published: int = 0
    not_published: int = 0
    snapshot_position: int = 0
    snapshot_bytes: int = 0
    snapshot_at_ms: int = 0
    snapshot_s: float = 0.0
    snapshot_sound: bool = True
    first_kept: int = 0
    rolled_back: int = 0
    unavailable: int = 0
