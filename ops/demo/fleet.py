"""The engine processes, seen from the demo: started together, ordered together, ended together.

Owns their lives. Nothing here waits without a bound: an engine that dies is noticed at once, one that gives no sign of
life for `SILENCE_S` is given up, and whatever happens, leaving the `with` block ends every process.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Final, TypeVar

import attrs

from ops.demo import engine
from ops.demo.messages import EngineSpec, Failed, Joined, Message, Order, Progress
from ops.demo.pace import new_board
from workers.interrupts import interrupts_held_back

SILENCE_S: Final = 60.0
"""An engine tells of itself five times a second; the longest it may be busy is an append nobody answers, 10 s."""

END_S: Final = 2.0
"""For an engine to end when asked, before it is killed."""

Answer = TypeVar("Answer", bound=Message)
Watch = Callable[[Sequence[Progress | None]], None]


class EngineDied(Exception):
    """An engine ended, failed or fell silent before its work was done."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} {why}")
        self.name = name


@attrs.define
class _Member:
    """An engine's process and our end of its pipe."""

    name: str
    process: BaseProcess
    pipe: Pipe
    heard_at: float


class Fleet:
    """Engines by their specs. Use as a context: entering starts them, leaving ends them."""

    def __init__(self, specs: Sequence[EngineSpec]) -> None:
        self._specs = specs
        self._members: list[_Member] = []
        self._progress: list[Progress | None] = [None] * len(specs)

    def __enter__(self) -> Fleet:
        context = multiprocessing.get_context("spawn")
        board = new_board(context, len(self._specs))
        try:
            for spec in self._specs:
                ours, theirs = context.Pipe()
                process = context.Process(target=engine.main, args=(spec, theirs, board), name=spec.engine, daemon=True)
                self._members.append(_Member(spec.engine, process, ours, time.monotonic()))
                with _interrupts_held_back():
                    process.start()
                theirs.close()
        except OSError as error:
            name = self._members[-1].name
            self._end()
            raise EngineDied(name, f"could not be started: {error}") from None
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def joined(self) -> list[Joined]:
        """Wait until every engine is in the index.

        Raises:
            EngineDied: one of them never got there.
        """
        return self.collect(Joined)

    def order(self, order: Order) -> None:
        """Tell every engine what to do next; `collect` the answers.

        Raises:
            EngineDied: one of them is gone.
        """
        for member in self._members:
            try:
                member.pipe.send(order)
            except OSError:
                raise EngineDied(member.name, self._last_words(member)) from None

    def collect(self, kind: type[Answer], watch: Watch = lambda _progress: None) -> list[Answer]:
        """One answer of this kind from every engine, in the order of their specs. `watch` sees signs of life.

        Raises:
            EngineDied: one of them ended, failed or fell silent.
        """
        answers: dict[int, Answer] = {}
        self._progress = [None] * len(self._members)
        for member in self._members:
            member.heard_at = time.monotonic()
        while len(answers) < len(self._members):
            missing = {member.pipe: place for place, member in enumerate(self._members) if place not in answers}
            for pipe in wait(list(missing), timeout=SILENCE_S / 10):
                assert isinstance(pipe, Pipe)
                place = missing[pipe]
                message = self._receive(self._members[place])
                if isinstance(message, Progress):
                    self._progress[place] = message
                    watch(self._progress)
                elif isinstance(message, kind):
                    answers[place] = message
            self._require_life(place for place in missing.values() if place not in answers)
        return [answers[place] for place in sorted(answers)]

    # --- inside -----------------------------------------------------------------------------------------------------

    def _receive(self, member: _Member) -> Message:
        try:
            message: Message = member.pipe.recv()
        except (EOFError, OSError):
            raise EngineDied(member.name, _how_it_ended(member.process)) from None
        if isinstance(message, Failed):
            raise EngineDied(member.name, f"gave up: {message.why}")
        member.heard_at = time.monotonic()
        return message

    def _last_words(self, member: _Member) -> str:
        """Why a pipe is closed: what the engine still said, or how its process ended."""
        try:
            while member.pipe.poll():
                self._receive(member)
        except EngineDied as died:
            return str(died).removeprefix(f"{member.name} ")
        return _how_it_ended(member.process)

    def _require_life(self, places: Iterator[int]) -> None:
        for place in places:
            member = self._members[place]
            if time.monotonic() - member.heard_at > SILENCE_S:
                raise EngineDied(
                    member.name, f"(process {member.process.pid}) gave no sign of life for {SILENCE_S:.0f} s"
                )

    def _end(self) -> None:
        """Closing the pipe asks; then SIGTERM; then SIGKILL."""
        for member in self._members:
            member.pipe.close()
        started = [member.process for member in self._members if member.process.pid is not None]
        deadline = time.monotonic() + END_S
        for process in started:
            process.terminate()
        for process in started:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._members.clear()


def _how_it_ended(process: BaseProcess) -> str:
    process.join(END_S)
    code = process.exitcode
    if code is None:
        return f"(process {process.pid}) closed its pipe but goes on"
    if code < 0:
        return f"(process {process.pid}) was ended by {signal.Signals(-code).name}"
    return f"(process {process.pid}) ended with exit code {code} before its work was done"


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C reaches a terminal's whole process group, and it is ours to end the engines: a process started in here has
    it blocked from its first moment. For us both kinds of end are only held back until the end of the block.
    """
    resource_tracker.ensure_running()  # or `start` would run it first, and that unblocks interrupts
    with interrupts_held_back():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
