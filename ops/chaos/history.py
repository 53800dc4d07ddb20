"""What a process was told, line by line, as it happened: the evidence that a chaos run is judged by.

Owns the kinds of line and the file. A line is written whole, to the kernel, before its writer makes the next call, so a
SIGKILL loses nothing that anybody could have acted upon. Times are of the monotonic clock, which all processes of a machine
share.

| line         | says                                                                                            |
|--------------|-------------------------------------------------------------------------------------------------|
| Began        | a life of the engine stands: its session, and why it began                                      |
| Acknowledged | the log answered "appended": which commit, where; first sent at `began`, answered at `ended`    |
| Doubted      | an attempt to append ended with OutcomeUnknown; once for each commit                            |
| Resolved     | what the log said of a doubted commit later                                                     |
| Told         | what `resolve()` said to the engine of a doubted commit                                         |
| Refused      | the log answered "fenced"                                                                       |
| Compared     | the replica's digest at a position                                                              |
| Looked       | bytes of reused blocks were looked at: how many, how many were wrong, which                     |
| Ended        | all requests are done, all transfers have ended, the engine has left                            |
| Failed       | an error nobody should see                                                                      |
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeAlias

import attrs
import orjson

from events.errors import CorruptState


@attrs.frozen
class Began:
    session: int
    why: str
    at: float


@attrs.frozen
class Acknowledged:
    commit: str
    position: int
    session: int
    began: float
    ended: float


@attrs.frozen
class Doubted:
    commit: str
    at: float


@attrs.frozen
class Resolved:
    commit: str
    landed: bool
    at: float


@attrs.frozen
class Told:
    commit: str
    landed: bool
    at: float


@attrs.frozen
class Refused:
    commit: str
    session: int
    at: float


@attrs.frozen
class Compared:
    position: int
    digest: str
    at: float


@attrs.frozen
class Looked:
    blocks: int
    wrong: int
    which: str
    at: float


@attrs.frozen
class Ended:
    requests: int
    at: float


@attrs.frozen
class Failed:
    why: str
    at: float


Line: TypeAlias = Began | Acknowledged | Doubted | Resolved | Told | Refused | Compared | Looked | Ended | Failed
_KINDS: Final[dict[str, type]] = {
    kind.__name__: kind
    for kind in (Began, Acknowledged, Doubted, Resolved, Told, Refused, Compared, Looked, Ended, Failed)
}


@attrs.frozen
class History:
    """The lines of one process, in order. `process` names the engine and which of its processes it was."""

    engine: str
    process: str
    lines: tuple[Line, ...]


class HistoryWriter:
    """Appends to the file of one process.

    Attributes:
        doubted: commits of which it was written that their outcome was unknown.
    """

    def __init__(self, path: Path) -> None:
        self.doubted: set[str] = set()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, line: Line) -> None:
        """With the kernel when this returns."""
        if isinstance(line, Doubted):
            if line.commit in self.doubted:
                return
            self.doubted.add(line.commit)
        told = orjson.dumps({"kind": type(line).__name__, **attrs.asdict(line)}, option=orjson.OPT_APPEND_NEWLINE)
        written = os.write(self._descriptor, told)
        if written != len(told):
            raise OSError(f"{written} of {len(told)} bytes of a line of history were written")

    def close(self) -> None:
        os.close(self._descriptor)


def file_name(engine: str, life: int) -> str:
    """Of the history of an engine's process number `life`."""
    return f"{engine}.{life}.history"


def read_history(path: Path) -> History:
    """
    Raises:
        CorruptState: a line is none of ours; the evidence is damaged, and nothing may be concluded from it. A last line
            without its end is what a SIGKILL in the middle of a write leaves, and is not counted.
    """
    engine, life, _ = path.name.rsplit(".", 2)
    return History(engine, f"{engine}#{life}", tuple(_lines(path)))


def read_histories(folder: Path) -> tuple[History, ...]:
    """Of all processes, in the order of their names."""
    return tuple(read_history(path) for path in sorted(folder.glob("*.history")))


def _lines(path: Path) -> Iterator[Line]:
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            told = orjson.loads(line)
            yield _KINDS[told.pop("kind")](**told)
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise CorruptState(f"{path.name}, line {number}: {line!r:.80} is no line of a history ({error})") from None
