"""What became of transfers: remembered after the state has forgotten them, and not for ever."""

from __future__ import annotations

from unittest import mock

from events.facts import PathReady, TransferCancelled, TransferFinished
from events.limits import OUTCOMES_MAX
from statecore.outcomes import Outcomes
from statecore.results import CANCELLED, DONE, FORGOTTEN, TransferState
from statecore.state import State


def test_each_end_is_told_with_its_reason() -> None:
    """E-12: a waiter learns that it is over, and not what happened."""
    outcomes = Outcomes()
    outcomes.note(
        [
            TransferFinished("a:0", True, ""),
            PathReady("a", "r", 1),
            TransferFinished("a:1", False, "rank 0: gone"),
            TransferCancelled("a:2", "preempted"),
        ],
        State(),
    )

    assert outcomes.get("a:0") == TransferState("a:0", "done")
    assert outcomes.get("a:1") == TransferState("a:1", "failed", "rank 0: gone")
    assert outcomes.get("a:2") == TransferState("a:2", "cancelled", "preempted")
    assert outcomes.get("a:3") is None
    assert [outcomes.get(f"a:{number}").done for number in range(3)] == [True, False, False]  # type: ignore[union-attr]


def test_the_first_end_counts() -> None:
    """E-11, E-32: a cancelled transfer is told to be done because its workers were faster than they knew."""
    outcomes = Outcomes()
    outcomes.note([TransferCancelled("a:0", "preempted"), TransferFinished("a:0", True, "")], State())
    outcomes.note([TransferFinished("a:1", False, "broken")], State())
    outcomes.note([TransferFinished("a:1", True, ""), TransferCancelled("a:1", "late")], State())

    assert outcomes.get("a:0") == TransferState("a:0", "cancelled", "preempted")
    assert outcomes.get("a:1") == TransferState("a:1", "failed", "broken")


def test_the_oldest_are_forgotten_first() -> None:
    """E-53: memory grows with every transfer there ever was."""
    outcomes = Outcomes()
    outcomes.note((TransferFinished(f"a:{number}", True, "") for number in range(OUTCOMES_MAX)), State())
    outcomes.note([TransferFinished("a:0", False, "again")], State())
    assert outcomes.get("a:0") is not None

    outcomes.note([TransferFinished("b:0", True, ""), TransferFinished("b:1", True, "")], State())

    assert [outcomes.get(name) is None for name in ("a:0", "a:1", "a:2", "b:0", "b:1")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert len(outcomes._ended) == OUTCOMES_MAX


def test_what_was_cancelled_before_a_snapshot_stays_cancelled() -> None:
    """Otherwise an engine that was behind the trim would be told that a swap-in is done whose blocks it has not.

    Given a state in which a transfer is cancelled and another is not, when both finish, then the one was cancelled, the
    other is done.
    """
    state = State()
    for name, cancelled in (("a:1", True), ("a:2", False)):
        state.transfers[name] = mock.Mock(id=name, cancelled=cancelled)
    outcomes = Outcomes()
    outcomes.begin_at(state, State())

    outcomes.note([TransferFinished(name, ok=True, reason="") for name in ("a:1", "a:2")], state)

    assert [outcomes.get(name).state for name in ("a:1", "a:2")] == [CANCELLED, DONE]  # type: ignore[union-attr]


def test_what_ended_unread_is_forgotten() -> None:
    """Otherwise a scheduler that asks after what it waits for would be told that there never was such a transfer.

    Given transfers and a send that were under way, of which one was told of and one still is, when a snapshot takes the
    state's place, then the others are forgotten, and an end that comes later changes nothing.
    """
    before, after, outcomes = State(), State(), Outcomes()
    before.transfers.update({name: mock.Mock(id=name, cancelled=False) for name in ("a:1", "a:2", "a:3")})
    before.sends["b:1"] = mock.Mock(id="b:1", cancelled=False)
    after.transfers["a:3"] = before.transfers["a:3"]
    outcomes.note([TransferFinished("a:1", ok=True, reason="")], before)
    outcomes.begin_at(after, before)
    outcomes.note([TransferFinished("a:2", ok=True, reason="")], after)

    ended = {name: outcomes.get(name) for name in ("a:1", "a:2", "a:3", "b:1")}
    assert [each and each.state for each in ended.values()] == [DONE, FORGOTTEN, None, FORGOTTEN]
    assert "trimmed" in ended["a:2"].reason  # type: ignore[union-attr]
