"""What must be true of the histories of all processes and the log. Pure: evidence in, sentences out.

Owns the checks of promises P1, P3 and P5 over appends; those over the state are in `replayed.py`. Each check gives the
number of things it looked at and a sentence for each that is wrong; one that looked at nothing has shown nothing, and the
report counts that as missing.

| check          | holds                                                                                              |
|----------------|----------------------------------------------------------------------------------------------------|
| whole          | positions without gaps, each entry names the one before it                                         |
| once           | no commit id twice                                                                                 |
| acknowledged   | an acknowledged commit is in the log where it was said to be                                       |
| in order       | acknowledged before another was begun: it stands before it                                         |
| found out      | what was said of a commit in doubt is so                                                           |
| refused        | what was refused as of a session that is over is not in the log                                    |
| one life       | after an engine's life has ended, no commit of it                                                  |
| unchanged      | what the log holds in the end is what was seen in it before                                        |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import attrs

from events.facts import EngineJoined, EngineLeft, EngineLost
from events.ports import Entry
from ops.chaos.history import Acknowledged, Doubted, Failed, History, Looked, Refused, Resolved, Told

Kind = TypeVar("Kind")


@attrs.frozen
class Finding:
    """What a check looked at, and what it found wrong, in words."""

    looked_at: int
    wrong: tuple[str, ...] = ()


def whole(entries: Sequence[Entry]) -> Finding:
    """`entries` from position 1 on."""
    wrong, before = [], ""
    for number, entry in enumerate(entries, start=1):
        if entry.position != number:
            wrong.append(f"position {entry.position} stands where {number} belongs")
        if entry.previous != before:
            wrong.append(f"position {entry.position} follows commit {entry.previous!r}, before it stands {before!r}")
        before = entry.id
    return Finding(len(entries), tuple(wrong))


def once(entries: Sequence[Entry]) -> Finding:
    counts = Counter(entry.id for entry in entries)
    return Finding(
        len(entries),
        tuple(f"commit {commit} is in the log {times} times" for commit, times in counts.items() if times > 1),
    )


def acknowledged(histories: Iterable[History], entries: Sequence[Entry]) -> Finding:
    at = {entry.position: entry.id for entry in entries}
    told, wrong = 0, []
    for process, line in _lines(histories, Acknowledged):
        told += 1
        if at.get(line.position) != line.commit:
            holds = at.get(line.position, "nothing")
            wrong.append(
                f"commit {line.commit} was acknowledged to {process} at {line.position}, where the log holds {holds}"
            )
    return Finding(told, tuple(wrong))


def in_order(histories: Iterable[History]) -> Finding:
    """By position, nobody may have been acknowledged before somebody further up had begun."""
    lines = sorted((line for _, line in _lines(histories, Acknowledged)), key=lambda line: line.position)
    wrong: list[str] = []
    latest: Acknowledged | None = None
    for line in lines:
        if latest is not None and line.ended < latest.began:
            wrong.append(
                f"commit {line.commit} was acknowledged {latest.began - line.ended:.6f} s before {latest.commit} was begun, "
                f"and stands after it: at {line.position} and {latest.position}"
            )
        if latest is None or line.began > latest.began:
            latest = line
    return Finding(len(lines), tuple(wrong))


def found_out(histories: Sequence[History], entries: Sequence[Entry]) -> tuple[Finding, int, int]:
    """With how many of those that were found out had landed, and how many had not."""
    in_log = {entry.id for entry in entries}
    wrong: list[str] = []
    said: dict[str, bool] = {}
    claims: list[tuple[str, Resolved | Told]] = [*_lines(histories, Resolved), *_lines(histories, Told)]
    for process, line in claims:
        said[line.commit] = line.landed
        if line.landed != (line.commit in in_log):
            claim = "landed" if line.landed else "not landed"
            wrong.append(f"commit {line.commit} was told to {process} as {claim}, and the log says otherwise")
    doubted = {line.commit for _, line in _lines(histories, Doubted)}
    landed = sum(said[commit] for commit in doubted if commit in said)
    settled = sum(commit in said for commit in doubted)
    return Finding(len(said), tuple(wrong)), landed, settled - landed


def refused(histories: Iterable[History], entries: Sequence[Entry]) -> Finding:
    in_log = {entry.id for entry in entries}
    lines = list(_lines(histories, Refused))
    return Finding(
        len(lines),
        tuple(
            f"commit {line.commit} of {process}, session {line.session}, was refused and is in the log"
            for process, line in lines
            if line.commit in in_log
        ),
    )


def one_life(entries: Sequence[Entry]) -> Finding:
    """An engine's commits are of its present session; the one that ends a session is the last of it."""
    current: dict[str, int] = {}
    wrong, looked_at = [], 0
    for entry in entries:
        begun = {fact.engine: fact.session for fact in entry.facts if isinstance(fact, EngineJoined)}
        ended = [fact for fact in entry.facts if isinstance(fact, EngineLost | EngineLeft)]
        if entry.engine in current or entry.engine in begun:
            looked_at += 1
            expected = begun.get(entry.engine, current.get(entry.engine))
            if entry.session != expected:
                wrong.append(
                    f"position {entry.position} is of {entry.engine}, session {entry.session}; {_session(expected)} lives"
                )
        for fact in ended:
            if current.get(fact.engine) == fact.session:
                current[fact.engine] = 0
        current.update(begun)
    return Finding(looked_at, tuple(wrong))


def unchanged(entries: Sequence[Entry], again: Sequence[Entry]) -> Finding:
    """`entries` from position 1 on; `again` what the log holds in the end, from its first entry that is left."""
    wrong = []
    for entry in again:
        before = entries[entry.position - 1] if entry.position <= len(entries) else None
        if before != entry:
            wrong.append(f"position {entry.position} holds something else than before")
    last = again[-1].position if again else 0
    if last != len(entries):
        wrong.append(f"the log ends at {last}, and was seen up to {len(entries)}")
    return Finding(len(again), tuple(wrong))


def failures(histories: Iterable[History]) -> Finding:
    """Errors that no engine should have seen."""
    histories = list(histories)
    return Finding(len(histories), tuple(f"{process}: {line.why}" for process, line in _lines(histories, Failed)))


def bytes_looked_at(histories: Iterable[History]) -> Finding:
    """Of reused blocks, before their use."""
    lines = list(_lines(histories, Looked))
    return Finding(
        sum(line.blocks for _, line in lines),
        tuple(
            f"{line.wrong} reused blocks of {process} held something else, {line.which}"
            for process, line in lines
            if line.wrong
        ),
    )


def _session(number: int | None) -> str:
    return f"session {number}" if number else "none"


def _lines(histories: Iterable[History], kind: type[Kind]) -> Iterator[tuple[str, Kind]]:
    for history in histories:
        for line in history.lines:
            if isinstance(line, kind):
                yield history.process, line
