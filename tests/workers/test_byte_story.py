"""Seeded stories of engines, workers and bytes (`byte_story.py`): no request ever finds another's bytes in its blocks."""

from __future__ import annotations

import pytest

from events import connect, limits
from tests.workers.byte_story import ByteStory


@pytest.mark.parametrize("seed", range(16))
def test_whoever_uses_a_block_finds_its_bytes_in_it(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise users get answers computed from somebody else's prompt, and nothing says so.

    Given engines that share a host tier, workers that crash at every point, two names on a rank, jobs lost and rung,
    copies that fail half-way, cancelled transfers and new lives, when every live request's table is compared with the
    memory of every rank after every event, then all bytes are right, every invariant holds, and in the end no
    transfer is left and all replicas agree (E-09, E-10, E-11, E-12, E-25, E-31, E-32, E-41).
    """
    monkeypatch.setattr(limits, "JOB_IDLE_S", 0.0)
    monkeypatch.setattr(limits, "JOB_CLAIM_EVERY_S", 0.0)
    with connect("memory://") as connection:
        ByteStory(connection, seed).tell(events=300)
