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
from events.ports import Entry
from ops.cli.failures import BROKEN
from ops.cli.output import count, number, show, write_json
from ops.cli.replaying import replay, require_fenced, require_sound
from ops.cli.report import pairs
from ops.cli.source import Source, Where, checked_position, open_source, source_options
from statecore.state import State

_DIGEST = re.compile(r"[0-9a-f]{32}\Z")


@attrs.frozen
class Proof:
    """What was checked, and held."""

    position: int
    commits: int
    facts: int
    invariant_checks: int
    digest: str


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
        show(
            pairs(
                ("positions", f"1 to {number(proof.position)}, no gap" if proof.position else "none"),
                ("entries", f"{count(proof.commits, 'commit')}, {count(proof.facts, 'fact')} in {seconds:.2f} s"),
                ("links", "checksums, predecessors and fences hold"),
                ("invariants", f"hold (checked {count(proof.invariant_checks, 'time')})"),
                ("digest", proof.digest + (" as given" if expected else "")),
            )
        )


def prove(source: Source, last: int | None, every: int) -> Proof:
    """Check everything up to `last`, or the end.

    Raises:
        CorruptState: the first thing that does not hold.
    """
    head = source.head()
    until = checked_position(last, "--to", head)
    facts = 0

    def watch(state: State, entry: Entry) -> None:
        nonlocal facts
        require_fenced(state, entry)
        facts += len(entry.facts)

    replica = replay(source, until, check_every=every, watch=watch)
    require_sound(replica.state)
    if until == head.position:
        _require_head(source, replica.state)
    at_end = 1 if not every or until % every or not until else 0
    return Proof(until, until, facts, (until // every if every else 0) + at_end, replica.digest())


def _require_head(source: Source, state: State) -> None:
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
