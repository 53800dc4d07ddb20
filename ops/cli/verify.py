"""`statecore verify`: is this log whole, and is the state it leads to sound?

Owns what "sound" means to an operator and how the answer is given. Stops at the first thing that is wrong, because
what follows a broken entry proves nothing.
"""

from __future__ import annotations

import re
import time

import attrs
import click

from events.errors import CorruptState, NewerSchema
from events.ports import Entry, SnapshotPointer
from ops.cli.failures import BROKEN
from ops.cli.output import count, number, show, write_json
from ops.cli.replaying import replay, require_fenced, require_sound
from ops.cli.report import pairs
from ops.cli.source import Source, Where, checked_position, entries, open_source, source_options
from ops.cli.starting import Kept, kept, read
from statecore.digest import digest
from statecore.state import State

_DIGEST = re.compile(r"[0-9a-f]{32}\Z")


@attrs.frozen
class Proof:
    """What was checked, and held.

    Attributes:
        start: position from which the log was replayed: 0, or that of the oldest snapshot where the log before it is gone.
        first: first position kept; `commits` counts from there.
        snapshots: positions of those that were read, and are what the log leads to.
    """

    position: int
    commits: int
    facts: int
    invariant_checks: int
    digest: str
    start: int = 0
    first: int = 1
    snapshots: tuple[int, ...] = ()


@click.command(short_help="Prove that a log is whole and its state sound.")
@source_options(file=True)
@click.option("--to", "last", type=click.IntRange(min=0), metavar="N", help="Only up to this position.")
@click.option("--digest", "expected", metavar="HEX", help="The digest the state must have there.")
@click.option(
    "--every", type=click.IntRange(min=0), default=1000, show_default=True, metavar="K",
    help="Check the invariants every K commits (0: only at the end).",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for a broken log too.")
@click.pass_context
def command(
    ctx: click.Context, where: Where, last: int | None, expected: str | None, every: int, as_json: bool
) -> None:
    """Prove that a log is whole and the state it leads to is sound.

    \b
    Checked are, entry by entry:
      positions    1, 2, 3 … without a gap, up to where the head of the log says
      checksums    each entry is, byte for byte, what its author wrote
      links        each entry names the commit before it
      fences       each entry was written in the session its author was in; a worker's only ends transfers
      facts        each fact fits the state before it
      invariants   every block is in exactly one place, every count is right, …
      snapshots    each can be read, and is the state the log leads to; a trimmed log begins at its oldest

    Exit code 0: sound. 1: broken; says where and what. 2: could not be checked.

    \b
    Examples:
      statecore verify
      statecore verify --file incident.jsonl.gz --every 1
      statecore verify --to 1200 --digest 0f3c…
    """
    if expected is not None and not _DIGEST.match(expected.lower()):
        raise click.BadParameter(f"{expected!r} is not a digest: 32 hexadecimal digits", param_hint="--digest")
    with open_source(where) as source:
        started = time.perf_counter()
        try:
            proof = prove(source, last, every)
            if expected is not None and proof.digest != expected.lower():
                raise CorruptState(f"the digest is {proof.digest}, not {expected.lower()}", position=proof.position)
        except NewerSchema:
            raise
        except CorruptState as broken:
            if not as_json:
                raise
            write_json({"sound": False, "position": broken.position, "reason": broken.reason})
            ctx.exit(BROKEN)
        seconds = time.perf_counter() - started
        if as_json:
            write_json({"sound": True, **attrs.asdict(proof)})
            return
        click.secho(f"sound: index {source.index!r} ({source.place})", fg="green", bold=True)
        show(pairs(*_rows(proof, seconds, given=expected is not None)))


def _rows(proof: Proof, seconds: float, *, given: bool) -> list[tuple[str, str]]:
    rows = [
        ("positions", f"{number(proof.first)} to {number(proof.position)}, no gap" if proof.commits else "none"),
        ("entries", f"{count(proof.commits, 'commit')}, {count(proof.facts, 'fact')} in {seconds:.2f} s"),
        ("links", "checksums, predecessors and fences hold"),
        ("invariants", f"hold (checked {count(proof.invariant_checks, 'time')})"),
        ("digest", proof.digest + (" as given" if given else "")),
    ]
    if proof.start:
        gone = f"positions before {number(proof.first)} are gone: replayed from the snapshot at {number(proof.start)}"
        rows.insert(0, ("trimmed", gone))
    if proof.snapshots:
        at = ", ".join(map(number, proof.snapshots))
        rows.append(("snapshots", f"at {at}: readable, digests as replayed"))
    return rows


def prove(source: Source, last: int | None, every: int) -> Proof:
    """Check everything up to `last`, or the end.

    Raises:
        CorruptState: the first thing that does not hold.
    """
    here = kept(source)
    head = here.head
    until = checked_position(last, "--to", head)
    _require_reached(here)
    stored = StoredSnapshots(source, here, until)
    facts = 0

    def watch(state: State, entry: Entry) -> None:
        nonlocal facts
        stored.compare(state)
        require_fenced(state, entry)
        facts += len(entry.facts)

    start = 0

    def begin(state: State) -> None:
        nonlocal start
        start = state.position

    replica = replay(source, until, check_every=every, watch=watch, begin=begin, here=here)
    stored.compare(replica.state)
    require_sound(replica.state)
    first = here.first
    if start:
        facts += _below(source, first, start, stored.found[start][0])
    if until == head.position:
        require_head(source, replica.state)
    checked = until // every - start // every if every else 0
    at_end = 1 if not every or until % every or until == start else 0
    commits = until - (first - 1 if start else 0)
    return Proof(until, commits, facts, checked + at_end, replica.digest(), start, first, tuple(stored.found))


class StoredSnapshots:
    """The snapshots beside a log, each read, and compared with the state that the log leads to.

    Attributes:
        found: by position, the commit id and the digest of the state each holds.
    """

    def __init__(self, source: Source, here: Kept, until: int) -> None:
        self._pointers = {each.position: each for each in here.pointers if each.position <= until}
        self.found = {position: self._read(source, each) for position, each in self._pointers.items()}

    def compare(self, state: State) -> None:
        """Stop at a snapshot that is not this state."""
        pointer = self._pointers.get(state.position)
        if pointer is None:
            return
        digests = {
            "its pointer says": pointer.digest,
            "it holds": self.found[state.position][1],
            "the log leads to": digest(state),
        }
        if len({*digests.values()}) > 1:
            words = ", ".join(f"{what} {value}" for what, value in digests.items())
            raise CorruptState(f"the snapshot is not the state of the log: {words}", position=state.position)

    @staticmethod
    def _read(source: Source, pointer: SnapshotPointer) -> tuple[str, str]:
        try:
            replica = read(source, pointer)
        except NewerSchema:
            raise
        except CorruptState as error:
            raise CorruptState(f"the snapshot cannot be used: {error.reason}", position=pointer.position) from error
        return replica.base.commit_id, replica.digest()


def _below(source: Source, first: int, start: int, commit_id: str) -> int:
    """The facts of the entries kept below the snapshot the replay began with, which must lead to it."""
    facts, previous = 0, ""
    for entry in entries(source, first - 1, start):
        if previous and entry.previous != previous:
            raise CorruptState(
                f"history diverged: the entry continues commit {entry.previous!r}, before it is {previous!r}",
                position=entry.position,
            )
        previous = entry.id
        facts += len(entry.facts)
    if previous and previous != commit_id:
        raise CorruptState(f"the snapshot is of commit {commit_id!r}, the log holds {previous!r} there", position=start)
    return facts


def _require_reached(here: Kept) -> None:
    """The log goes at least as far as its snapshots: one that does not has lost its end."""
    end = here.head.position
    for pointer in here.stored:
        if pointer.position > end:
            raise CorruptState(
                f"there is a snapshot at position {pointer.position}, and the log ends before: it was rolled back",
                position=end,
            )


def require_head(source: Source, state: State) -> None:
    """The head of the log names its last entry, and nothing lies beyond it."""
    beyond = next(source.stored(state.position, state.position + 1), None)
    head = source.head()
    if head.position != state.position:
        return  # somebody went on writing meanwhile
    if head.commit_id != state.last_commit_id:
        raise CorruptState(
            f"the head of the log names commit {head.commit_id!r}, its last entry is {state.last_commit_id!r}",
            position=state.position,
        )
    if beyond is not None:
        raise CorruptState("the log holds an entry beyond its head", position=beyond.position)
