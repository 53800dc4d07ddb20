"""What `upgrade.md` says of two releases on one log, where nobody would see it in the code of either."""

from __future__ import annotations

from typing import Any

import pytest

from events import codec
from events.errors import NewerSchema
from events.facts import SCHEMA, EngineLost, Fact, TransferFinished
from events.ports import Commit, StoredRecord

UNCHANGED: tuple[Fact, ...] = (
    TransferFinished(transfer="t", ok=True, reason=""),
    EngineLost(engine="a", session=1, reason="no sign of life from it"),
)


@pytest.mark.parametrize("fact", UNCHANGED, ids=lambda fact: type(fact).__name__)
def test_the_first_entry_of_a_new_release_ends_the_old_one(fact: Fact, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator would upgrade workers and keepers first, believing that engines go on until a fact they do not know.

    Given a release with a higher schema whose facts are as before, when a worker of it reports, or its keeper declares an
    engine lost, then this release cannot read the entry.
    """
    commit = Commit(id="c", engine="worker:gpu:a", session=0, facts=(fact,), checks=(), touches=())
    with monkeypatch.context() as newer:
        newer.setattr(codec, "SCHEMA", SCHEMA + 1)
        written: Any = codec.encode(commit, at_ms=0)

    with pytest.raises(NewerSchema, match="upgrade statecore"):
        codec.decode(StoredRecord(position=1, previous="", record=written))
