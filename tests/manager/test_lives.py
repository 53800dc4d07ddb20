"""A scheduler whose engine was declared lost: told once, and then served again."""

from __future__ import annotations

import pytest

from statecore import SessionOver
from statecore.commands import Depose
from tests.keeper.given import Said
from tests.manager.given import Place, cache, finish, must_be_sound, schedule, task
from workers.keeper import Keeper
from workers.keeper_totals import KeeperSettings


def test_a_scheduler_whose_engine_was_declared_lost_goes_on(place: Place) -> None:
    """A pause of the process must cost its requests, not the scheduler: it is told once, then a new life serves it.

    Given a manager with a request, whose engine is declared lost, then the next call says so and why; the one after it
    works, in a new life, with the pool as it is by the log.
    """
    manager = place.manager(num_gpu_blocks=6)
    cache(manager, [9, 9, 8, 8])
    request = task("r", [1, 2, 3, 4])
    schedule(manager, request)
    keeper = Keeper(place.log.keeping(place.index), KeeperSettings(), Said())
    replica = keeper._catch_up()
    client = getattr(place.log.backend, "_client", None)
    if client is not None:
        client.delete(f"kv:{{{place.index}}}:lease:{manager.index.engine}")
    else:
        place.log.backend.transport(place.index)._leases.clear()  # type: ignore[attr-defined]
    keeper._declare_lost(replica, Depose(manager.index.engine, 1, "it was stopped"))

    manager.index.refresh()

    with pytest.raises(SessionOver, match="it was stopped"):
        manager.allocate_gpu_blocks(1, "r")

    again = task("again", [1, 2, 3, 4])
    schedule(manager, again)
    assert manager.index.session == 2
    assert manager.index.requests() == ("again",)
    finish(manager, again)
    must_be_sound(manager)
