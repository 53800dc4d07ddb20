"""A worker's heartbeat: a thread that says "still here" while the worker copies or waits.

Owns the thread, and what it knows: when the log's server was last heard, and in which of its lives. A copy may take longer
than a heartbeat lives, so the two cannot share a thread. What a heartbeat cannot say is whether the worker makes progress;
its `state` names the transfer at hand for people to see.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from events import limits
from events.errors import StateCoreError
from events.job_ports import Jobs
from workers.log_lines import Say


class Pulse:
    """Beats while the context lasts, and stands up at its end.

    Attributes:
        state: what the next heartbeat says.
    """

    def __init__(
        self, jobs: Jobs, stop: threading.Event, say: Say, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`stop` is set when another worker has taken the seat over; `clock` is for the simulator."""
        self._jobs = jobs
        self._stop = stop
        self._say = say
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._clock = clock
        self._heard_at = clock()
        self._life: str | None = None
        self.state = "ready"

    def vouches_for(self, life: str) -> bool:
        """Whether a job taken in this life of the server may still be carried out.

        Not when the server lives another life: its log may not know the job. And not when it has not been heard for too
        long: it may have begun another life, and given the job's blocks to somebody else.
        """
        if self._clock() - self._heard_at > limits.HEARTBEAT_TRUST_S:
            return False
        return self._life in (None, life)

    def now(self) -> float:
        """For `heard`: take it before asking."""
        return self._clock()

    def heard(self, life: str, asked_at: float) -> None:
        """The server has answered in this life what it was asked then. The answer may be old: a worker can be stopped with
        it in its hands, and meanwhile the server has begun another life."""
        if asked_at >= self._heard_at:
            self._heard_at, self._life = asked_at, life

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join(limits.SOCKET_TIMEOUT_S)
        try:
            self._jobs.leave()
        except StateCoreError as error:
            self._say("not_left", reason=str(error))  # the heartbeat runs out by itself

    def _run(self) -> None:
        while not self._over.wait(limits.HEARTBEAT_EVERY_S):
            asked_at = self.now()
            try:
                life = self._jobs.beat(self.state)
            except StateCoreError as error:
                self._say("no_heartbeat", reason=str(error))
                continue
            if life is None:
                self._say("replaced", reason="another worker has taken this rank over")
                self._stop.set()
                return
            self.heard(life, asked_at)
