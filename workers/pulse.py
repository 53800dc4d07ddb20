"""A worker's heartbeat: a thread that says "still here" while the worker copies or waits.

Owns the thread. A copy may take longer than a heartbeat lives, so the two cannot share one. What a heartbeat cannot say
is whether the worker makes progress; its `state` names the transfer at hand for people to see.
"""

from __future__ import annotations

import threading

from events import limits
from events.errors import StateCoreError
from events.job_ports import Jobs
from workers.log_lines import Say


class Pulse:
    """Beats while the context lasts, and stands up at its end.

    Attributes:
        state: what the next heartbeat says.
    """

    def __init__(self, jobs: Jobs, stop: threading.Event, say: Say) -> None:
        """`stop` is set when another worker has taken the seat over."""
        self._jobs = jobs
        self._stop = stop
        self._say = say
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.state = "ready"

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
            try:
                mine = self._jobs.beat(self.state)
            except StateCoreError as error:
                self._say("no_heartbeat", reason=str(error))
                continue
            if not mine:
                self._say("replaced", reason="another worker has taken this rank over")
                self._stop.set()
                return
