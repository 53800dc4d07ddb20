"""The processes of a chaos run: started, killed, stopped, continued and started again, each with its log.

Owns their lives and nothing of why. Every one is tied to the thread that starts it (`tether.py`), also while it is stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from ops.chaos.engine import EngineSettings
from ops.chaos.history import Began, read_history
from ops.chaos.slot import Order, Slot
from ops.chaos.tether import tethered
from workers.rank_lock import remove_dead_locks
from workers.worker_process import URL_VARIABLE, WorkerSettings

ENGINE: Final = "engine"
WORKER: Final = "worker"
KEEPER: Final = "keeper"

_STOPPED: Final = frozenset({"T", "t"})
_STOP_TIMEOUT_S: Final = 1.0
_DEVICE_PAUSE_S: Final = 0.002
_DEVICE_TRIES: Final = 500
_TAIL_BYTES: Final = 2000


class Actor:
    """One role, played by one process after the other.

    Attributes:
        role, name, pool: who; `pool` is the GPU pool it works for, "" for a keeper.
        stopped: by `stop`.
        processes: started so far.
    """

    def __init__(self, role: str, name: str, pool: str, folder: Path) -> None:
        self.role = role
        self.name = name
        self.pool = pool
        self.stopped = False
        self.processes = 0
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Of the next process, whose number is `processes`."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return {}

    @property
    def running(self) -> bool:
        return self._process is not None and not self.stopped and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Of the present process, if it ended by itself; one that was killed by us is none."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """OSError: it cannot be started."""
        assert self._process is None, f"{self.name} runs"
        with (self._folder / f"{self.name.replace(':', '_')}.log").open("ab") as output:
            self._process = subprocess.Popen(
                tethered([sys.executable, *self.command()]),
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the parent
            )
        self.processes += 1

    def kill(self) -> None:
        """SIGKILL, stopped or not; forgets a process that ended by itself."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process, self.stopped = None, False

    def stop(self) -> bool:
        """SIGSTOP; False when it could not be, because it ended or its device never paused."""
        if self._process is None or self._process.poll() is not None:
            return False
        self._process.send_signal(signal.SIGSTOP)
        self.stopped = self._is_still()
        if not self.stopped:
            self._process.send_signal(signal.SIGCONT)
        return self.stopped

    def let_go(self) -> subprocess.Popen[bytes]:
        """Part with the present process, which somebody else will end."""
        assert self._process is not None
        process, self._process, self.stopped = self._process, None, False
        return process

    def resume(self) -> None:
        """SIGCONT."""
        if self._process is not None and self.stopped:
            self._process.send_signal(signal.SIGCONT)
            self.stopped = False

    def terminate(self) -> None:
        """SIGTERM; `wait` for the end."""
        if self._process is not None:
            self._process.terminate()

    def wait(self, timeout_s: float) -> int | None:
        """The exit code; None when it has not ended in time."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def last_words(self) -> str:
        """The end of its log."""
        path = self._folder / f"{self.name.replace(':', '_')}.log"
        return path.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip() if path.exists() else ""

    def _is_still(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            state = state_of(self._process.pid)
            if state in _STOPPED:
                return True
            if state in {"", "Z", "X"}:
                return False
            time.sleep(_DEVICE_PAUSE_S)
        return False


class EngineActor(Actor):
    """An engine. Each of its processes has a slot of its own."""

    def __init__(self, settings: EngineSettings, folder: Path) -> None:
        super().__init__(ENGINE, settings.engine, settings.gpu_pool, folder)
        self.settings = settings
        self.slot: Slot | None = None

    def command(self) -> list[str]:
        settings = attrs.evolve(self.settings, process=self.processes)
        self.slot = Slot(settings.slot)
        return ["-m", "ops.chaos.engine", settings.to_json()]

    def order(self, order: Order) -> None:
        assert self.slot is not None
        self.slot.order = order

    @property
    def session(self) -> int | None:
        """Of the present process's last life, by its history; None before its first."""
        history = attrs.evolve(self.settings, process=self.processes - 1).history
        begun = (
            [line.session for line in read_history(history).lines if isinstance(line, Began)]
            if history.exists()
            else []
        )
        return begun[-1] if begun else None

    def next_of_its_name(self) -> EngineActor:
        """Somebody to be the next of this engine's processes, while the last one still is."""
        twin = EngineActor(self.settings, self._folder)
        twin.processes = self.processes
        return twin

    def _is_still(self) -> bool:
        """Stopped between two touches of the device: what was launched comes to its end."""
        assert self._process is not None
        assert self.slot is not None
        for _ in range(_DEVICE_TRIES):
            if not super()._is_still():
                return False
            if not self.slot.busy:
                return True
            self._process.send_signal(signal.SIGCONT)
            time.sleep(_DEVICE_PAUSE_S)
            self._process.send_signal(signal.SIGSTOP)
        return False


class WorkerActor(Actor):
    """The worker of one rank of a GPU pool."""

    def __init__(self, url: str, settings: WorkerSettings, folder: Path) -> None:
        super().__init__(WORKER, f"worker-{settings.pool}-{settings.rank}", settings.pool, folder)
        self.settings = settings
        self._url = url

    def command(self) -> list[str]:
        return ["-m", "workers.worker_process", attrs.evolve(self.settings, takeover=True).to_json()]

    def environment(self) -> Mapping[str, str]:
        return {**self.settings.store.environment(), URL_VARIABLE: self._url}


class KeeperActor(Actor):
    """One of the keepers, of which one acts."""

    def __init__(self, url: str, index: str, name: str, every: int, age_s: float, folder: Path) -> None:
        super().__init__(KEEPER, name, "", folder)
        self._url = url
        self._options = ["--index", index, "--every", str(every), "--age", str(age_s)]

    def command(self) -> list[str]:
        return ["-m", "ops.cli", "keeper", *self._options]

    def environment(self) -> Mapping[str, str]:
        return {"STATECORE_URL": self._url}


def state_of(pid: int) -> str:
    """The kernel's letter for what a process does; "" when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def end_all(actors: list[Actor], index: str) -> None:
    """SIGKILL to everybody who is still there."""
    for actor in actors:
        actor.kill()
    remove_dead_locks(index)
