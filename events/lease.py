"""The lease of one life of an engine: what says that it is alive, and hears whether its life and its history still stand.

Owns when it was last renewed, what the log answered, and a thread that renews. Each renewal names the position and commit
the engine has come to, so an idle engine, too, notices within `LEASE_EVERY_S` that it was deposed or that the log was rolled
back. A lease that could not be renewed for `LEASE_TRUST_S` is not to be trusted: its engine begins nothing on it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from events import limits
from events.errors import StateCoreError
from events.ports import Base, Diverged, Fenced, Renewed
from events.transport import Transport

_LOGGER: Final = logging.getLogger("statecore")


class Lease:
    """Held from the moment its life began.

    Attributes:
        life: of the server, as it was when history was last seen to continue what the engine knows; "" before.
    """

    def __init__(
        self, transport: Transport, engine: str, session: int, base: Callable[[], Base], clock: Callable[[], float]
    ) -> None:
        self._transport = transport
        self._engine = engine
        self._session = session
        self._base = base
        self._clock = clock
        self._renewed_at = clock()
        self._verdict: Fenced | Diverged | None = None
        self._closed = threading.Event()
        self.life = ""

    def renew_in_background(self, index: str) -> None:
        """A daemon: a process may end while it waits. It ends with `close`, or when the life is over."""
        threading.Thread(target=self._run, name=f"lease {index} {self._engine}", daemon=True).start()

    def renew(self) -> None:
        """Once.

        Raises:
            Unavailable: it did not get through.
        """
        begun = self._clock()
        reply = self._transport.renew_lease(self._engine, self._session, self._base())
        if isinstance(reply, Renewed):
            self._renewed_at = begun
            if reply.continued:
                self.life = reply.life
        else:
            self._verdict = reply

    def standing(self) -> Fenced | Diverged | None:
        """What the log said against this life; asks it when it was not heard for too long.

        Raises:
            Unavailable: it cannot be heard.
        """
        if self._verdict is None and self._clock() - self._renewed_at > limits.LEASE_TRUST_S:
            self.renew()
        return self._verdict

    def close(self) -> None:
        """No more in the background; `standing` still asks, for a life whose engine could not leave."""
        self._closed.set()

    def _run(self) -> None:
        while self._verdict is None and not self._closed.wait(limits.LEASE_EVERY_S):
            try:
                self.renew()
            except StateCoreError:
                continue  # `standing` asks by itself and tells the engine, as soon as it matters
            except Exception:  # a defect; but a lease that nobody renews ends this life while its engine serves
                _LOGGER.exception("the lease of engine %s was not renewed", self._engine)
