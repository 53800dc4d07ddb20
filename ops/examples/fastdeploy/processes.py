"""The engine processes: started, ordered and ended together, over one pipe each.

Owns their lives and the conversation. Every order is answered once by every engine before the next is given, so nobody
leaves while another serves, and nobody reads a digest while another writes. Leaving the context ends every process.

| order  | answer       | meanwhile |
|--------|--------------|-----------|
| JOIN   | `Done`       |           |
| SERVE  | `Served`     | `Sign`    |
| LEAVE  | `Done`       |           |
| READ   | `Replicated` |           |

An engine that cannot go on answers `Failed` and ends.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from enum import Enum, auto
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Final, TypeAlias, TypeVar

import attrs

from events import StateCoreError, connect
from ops.demo.engine import last_words
from ops.demo.messages import Replicated
from ops.demo.pace import Board, Pace, new_board
from ops.examples.fastdeploy.plug import EngineSpec, Plugged, plugged
from ops.examples.fastdeploy.serve import Served, Starved

SILENCE_S: Final = 90.0
"""Engines tell of themselves all the time they serve; the longest they may be busy is a wait for blocks, 60 s."""

SIGN_EVERY_S: Final = 0.2
LOOK_EVERY_S: Final = 1.0
END_S: Final = 2.0


class EngineDied(Exception):
    """An engine ended, failed or fell silent before its work was done."""


class Order(Enum):
    """What an engine does next."""

    JOIN = auto()
    SERVE = auto()
    LEAVE = auto()
    READ = auto()


@attrs.frozen
class Sign:
    """A sign of life: requests that have ended."""

    ended: int


@attrs.frozen
class Done:
    """It is in the index, and its workers are ready; or it left it."""


@attrs.frozen
class Failed:
    """Last words, one line."""

    why: str


Message: TypeAlias = Served | Done | Replicated | Sign | Failed
Answer = TypeVar("Answer", Served, Done, Replicated)


# --- inside an engine process -----------------------------------------------------------------------------------------


def main(spec: EngineSpec, pipe: Pipe, board: Board) -> None:
    """Body of an engine process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    try:
        with connect(spec.url) as connection, plugged(spec, connection) as plug:
            _obey(spec, plug, pipe, Pace(board, spec.place))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # nobody is there to hear
    except Exception as error:
        known = isinstance(error, Starved | StateCoreError)
        why = f"{type(error).__name__}: {' '.join(str(error).split())}" if known else last_words(error)
        with suppress(OSError):
            pipe.send(Failed(why))
        raise SystemExit(1) from None


def _obey(spec: EngineSpec, plug: Plugged, pipe: Pipe, pace: Pace) -> None:
    while True:
        match pipe.recv():
            case Order.JOIN:
                pipe.send(Done())
            case Order.SERVE:
                pipe.send(_serve(spec, plug, pipe, pace))
            case Order.LEAVE:
                plug.index.leave()
                pipe.send(Done())
            case Order.READ:
                pipe.send(Replicated(plug.index.refresh(), plug.index.digest()))


def _serve(spec: EngineSpec, plug: Plugged, pipe: Pipe, pace: Pace) -> Served:
    serving = plug.serving(spec.work.tasks(spec.place, spec.engines), pace.is_due)
    told_at = 0.0

    def after_step() -> None:
        nonlocal told_at
        pace.publish(serving.scheduler.next_number)
        if time.monotonic() - told_at > SIGN_EVERY_S:
            told_at = time.monotonic()
            pipe.send(Sign(serving.scheduler.counts.ended))

    try:
        return serving.run(after_step)
    finally:
        pace.publish(None)  # the other engine goes on, whatever came of us


# --- seen from outside ------------------------------------------------------------------------------------------------


@attrs.define
class _Member:
    """An engine's process and our end of its pipe."""

    name: str
    process: BaseProcess
    pipe: Pipe
    heard_at: float


class Engines:
    """Engine processes. Use as a context: entering starts them, leaving ends them."""

    def __init__(self, specs: Sequence[EngineSpec]) -> None:
        self._specs = specs
        self._members: list[_Member] = []

    def __enter__(self) -> Engines:
        context = multiprocessing.get_context("spawn")
        board = new_board(context, len(self._specs))
        with ExitStack() as undo:
            undo.callback(self._end)
            for spec in self._specs:
                ours, theirs = context.Pipe()
                process = context.Process(target=main, args=(spec, theirs, board), name=spec.engine, daemon=True)
                self._members.append(_Member(spec.engine, process, ours, time.monotonic()))
                process.start()
                theirs.close()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def ask(self, order: Order, kind: type[Answer], watch: Callable[[int], None] = lambda _ended: None) -> list[Answer]:
        """Give all engines an order; their answers, in their order. `watch` hears how many requests have ended.

        Raises:
            EngineDied: one of them did not answer.
        """
        for member in self._members:
            member.heard_at = time.monotonic()
            with suppress(OSError):  # it has ended; its last words are still in the pipe
                member.pipe.send(order)
        answers: dict[int, Answer] = {}
        ended = [0] * len(self._members)
        while len(answers) < len(self._members):
            missing = {member.pipe: place for place, member in enumerate(self._members) if place not in answers}
            for pipe in wait(list(missing), timeout=LOOK_EVERY_S):
                assert isinstance(pipe, Pipe)
                message = self._receive(self._members[missing[pipe]])
                if isinstance(message, Sign):
                    ended[missing[pipe]] = message.ended
                    watch(sum(ended))
                elif isinstance(message, kind):
                    answers[missing[pipe]] = message
            for place in missing.values():
                if time.monotonic() - self._members[place].heard_at > SILENCE_S:
                    raise EngineDied(f"{self._members[place].name} gave no sign of life for {SILENCE_S:.0f} s")
        return [answers[place] for place in sorted(answers)]

    @staticmethod
    def _receive(member: _Member) -> Message:
        try:
            message: Message = member.pipe.recv()
        except (EOFError, OSError):
            member.process.join(END_S)
            code = member.process.exitcode
            raise EngineDied(f"{member.name} (process {member.process.pid}) ended with exit code {code}") from None
        if isinstance(message, Failed):
            raise EngineDied(f"{member.name} gave up: {message.why}")
        member.heard_at = time.monotonic()
        return message

    def _end(self) -> None:
        """Closing the pipe asks; then SIGTERM; then SIGKILL."""
        for member in self._members:
            member.pipe.close()
        started = [member.process for member in self._members if member.process.pid is not None]
        deadline = time.monotonic() + END_S
        for process in started:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.terminate()
                process.join(END_S)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._members.clear()
