"""What became of transfers: remembered for those who ask after the state has forgotten them.

Owns a bounded memory of finished and cancelled transfers, in the order they ended, and of which request was sent by which,
fed with every entry a session applies.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from events.facts import (
    EngineJoined,
    EngineLeft,
    EngineLost,
    Fact,
    RequestReleased,
    SendStarted,
    TransferCancelled,
    TransferFinished,
)
from events.limits import OUTCOMES_MAX
from statecore.rejections import UnknownTransfer
from statecore.replica import Replica
from statecore.results import CANCELLED, DONE, FAILED, FORGOTTEN, UNDER_WAY, TransferState
from statecore.sends import Send
from statecore.state import State, Transfer

_UNREAD: Final = "in a part of the log that was trimmed before it was read here"


class Outcomes:
    """Ended transfers by id; the oldest are forgotten first."""

    __slots__ = ("_ended", "_sent")

    def __init__(self) -> None:
        self._ended: dict[str, TransferState] = {}
        self._sent: dict[tuple[str, str], str] = {}

    def note(self, facts: Iterable[Fact], state: State) -> None:
        """What a commit says of transfers; `state` is the one after it."""
        for fact in facts:
            if isinstance(fact, TransferCancelled):
                self._end(TransferState(fact.transfer, CANCELLED, fact.reason))
            elif isinstance(fact, TransferFinished):
                self._end(TransferState(fact.transfer, DONE if fact.ok else FAILED, fact.reason))
                if not fact.ok:
                    self._dropped_with(fact, state)
            elif isinstance(fact, SendStarted):
                self._was_sent(fact.receiver, fact.request, fact.transfer)
            elif isinstance(fact, RequestReleased):  # its id may come again, for another sequence
                self._sent.pop((fact.engine, fact.request), None)
            elif isinstance(fact, EngineJoined | EngineLeft | EngineLost):  # the end may stand where nobody read it
                self._sent = {sent: by for sent, by in self._sent.items() if sent[0] != fact.engine}

    def begin_at(self, state: State, before: State) -> None:
        """A snapshot's state, in place of the one `before`: nobody reads what lies between.

        What is cancelled in it stays so when its workers report; it does not say why. What was under way before and is no
        more has ended; it does not say how. What it says is under way to somebody may have been sent in between; where the
        receiver has given blocks back, it was to an earlier request, or it is known.
        """
        moving: dict[str, Transfer | Send] = {**state.transfers, **state.sends}
        for transfer in moving.values():
            if transfer.cancelled:
                self._end(TransferState(transfer.id, CANCELLED, f"cancelled {_UNREAD}"))
        for name in (*before.transfers, *before.sends):
            if name not in moving:
                self._end(TransferState(name, FORGOTTEN, f"ended {_UNREAD}"))
        for send in state.sends.values():
            live = send.request in state.engines[send.receiver].requests
            if not send.cancelled or (live and not send.quarantine):
                self._was_sent(send.receiver, send.request, send.id)

    def of(self, transfer: str, replica: Replica) -> TransferState:
        """What is known of a transfer; `UnknownTransfer` if it never was, or ended too long ago."""
        ended = self._ended.get(transfer)
        if ended is not None:
            return ended
        if replica.moves(transfer):
            return TransferState(transfer, UNDER_WAY)
        raise UnknownTransfer(transfer)

    def arrival(self, receiver: str, request: str, replica: Replica) -> TransferState | None:
        """What is known of the last send of a live request to an engine; None if there was none."""
        sent = self._sent.get((receiver, request))
        return None if sent is None or not (sent in self._ended or replica.moves(sent)) else self.of(sent, replica)

    def get(self, transfer: str) -> TransferState | None:
        return self._ended.get(transfer)

    def _was_sent(self, receiver: str, request: str, transfer: str) -> None:
        self._sent.pop((receiver, request), None)
        self._sent[receiver, request] = transfer
        if len(self._sent) > OUTCOMES_MAX:
            del self._sent[next(iter(self._sent))]

    def _dropped_with(self, failed: TransferFinished, state: State) -> None:
        """A swap-in that failed takes along what other transfers move below it; no fact says that of each."""
        for transfer in state.transfers.values():
            if transfer.cancelled:
                self._end(TransferState(transfer.id, CANCELLED, f"{failed.transfer} before it failed: {failed.reason}"))

    def _end(self, ended: TransferState) -> None:
        if ended.transfer in self._ended:
            return  # the first outcome counts: a cancelled transfer stays cancelled when its workers report
        self._ended[ended.transfer] = ended
        if len(self._ended) > OUTCOMES_MAX:
            del self._ended[next(iter(self._ended))]
