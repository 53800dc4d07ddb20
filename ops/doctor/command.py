"""`statecore doctor`: every check, what it found, and one exit code.

Owns the order of the checks and how findings are shown. Exit codes: 0 nothing is in error, 1 something is, 2 the server
cannot be reached.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import attrs
import click
from rich.table import Table
from rich.text import Text

from events import connect
from events.errors import InvalidInput, Unavailable
from events.log import LogConnection
from ops.cli.failures import BROKEN
from ops.cli.output import count, number, show, table, write_json
from ops.cli.source import INDEX_VARIABLE, URL_VARIABLE, Where, source_options
from ops.doctor import blocks, durability, engines, history, rights, server, snapshots, transfers
from ops.doctor.finding import ERROR, OK, UNKNOWN, WARNING, Check, Finding
from ops.doctor.patient import CannotTell, Damaged, Patient, holder, servers

_RESTORE = (
    "somebody else wrote it: keep a copy of the server's files, then restore the key from a replica or a backup; "
    "runbook: ops/runbooks/divergence.md"
)
_COLOURS = {OK: "green", WARNING: "yellow", ERROR: "red bold", UNKNOWN: "dim"}


@click.command(short_help="Say what is wrong with a server and an index, and what helps.")
@source_options(file=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def command(ctx: click.Context, where: Where, as_json: bool) -> None:
    """Say what is wrong with a server and an index, and what helps.

    Looks at the server (version, eviction, memory, append-only file, replicas, scripts, clock), and at the index,
    or at every index where none is named: rights, layout, links, snapshots, trim, keeper, engines and their leases,
    transfers and their workers, job streams, blocks. It changes nothing.

    \b
    ok        as it should be
    warning   nothing is lost yet; somebody should look
    error     a promise does not hold, or will not for long
    unknown   the server does not say, or this user may not ask

    Exit code 0: nothing is in error. 1: something is. 2: the server cannot be reached.

    \b
    Examples:
      statecore doctor --url redis://localhost
      statecore doctor --index llama-70b --json
    """
    url = where.url or os.environ.get(URL_VARIABLE)
    if not url:
        raise click.UsageError(f"which server? Give --url redis://host:port, or set {URL_VARIABLE}")
    if url.startswith("memory:"):
        raise InvalidInput("memory:// has no server to look at: use redis://, unix:// or embedded:///folder")
    with connect(url, any_server=True) as connection:
        named = where.index or os.environ.get(INDEX_VARIABLE)
        found = examined(connection, named)
        if as_json:
            write_json(_as_dict(found))
        else:
            _show(found)
    if ERROR in _grades(found):
        ctx.exit(BROKEN)


@attrs.frozen
class Section:
    """What was found of a server, or of an index on it."""

    server: str
    index: str | None
    findings: tuple[Finding, ...]

    @property
    def title(self) -> str:
        return f"Server {self.server}" if self.index is None else f"Index {self.index!r}"


def examined(connection: LogConnection, named: str | None) -> list[Section]:
    """Every server of the connection, then the index, or every one."""
    found = []
    for name, client in servers(connection):
        patient = Patient(connection, client)
        patient.ask("PING")
        findings = [finding for check in _OF_SERVER for finding in run(check, patient)]
        found.append(Section(name, None, tuple(findings)))
    for each in (named,) if named is not None else connection.indexes():
        patient = Patient(connection, holder(connection, each), each)
        found.append(Section(connection.url, each, tuple(_of_index(patient))))
    return found


def _of_index(patient: Patient) -> Iterator[Finding]:
    for check in _OF_INDEX:
        yield from run(check, patient)
        if check is index and not _goes_on(patient):
            return


def index(patient: Patient) -> Iterator[Finding]:
    """Whether there is such an index, in a layout that this release can read."""
    entries = int(patient.ask("XLEN", patient.keys.log))
    if "position" in patient.head_fields:
        yield from history.layout(patient)
        return
    words = f"its log has {number(entries)} entries, its head is gone" if entries else "no engine has joined it"
    remedy = (
        "runbook: ops/runbooks/redis-lost.md" if entries else "is the name right? Without --index all are looked at"
    )
    yield Finding("index", ERROR if entries else WARNING, words, remedy)


def _goes_on(patient: Patient) -> bool:
    return all(finding.severity == OK for finding in run(index, patient))


def run(check: Check, patient: Patient) -> Iterator[Finding]:
    """What a check finds; what it may not look at is said."""
    try:
        yield from check(patient)
    except (CannotTell, Unavailable) as reason:
        if isinstance(reason, Unavailable) and not reason.lasting:
            raise
        name = check.__name__.replace("_", " ")
        if isinstance(reason, Damaged):
            yield Finding(name, ERROR, str(reason), _RESTORE)
            return
        yield Finding(name, UNKNOWN, f"cannot tell: {reason}")


_OF_SERVER: tuple[Check, ...] = (*server.CHECKS, *durability.CHECKS, *rights.SERVER_CHECKS)
_OF_INDEX: tuple[Check, ...] = (
    *rights.CHECKS, index, *history.CHECKS, *snapshots.CHECKS, *engines.CHECKS, *transfers.CHECKS, *blocks.CHECKS
)  # fmt: skip


# --- showing --------------------------------------------------------------------------------------------------------


def _show(found: list[Section]) -> None:
    remedies = [
        f"{finding.severity}: {finding.what}{f' of {section.index!r}' if section.index else ''}: {finding.remedy}"
        for section in found
        for finding in section.findings
        if finding.remedy
    ]
    advice = ["What to do:\n" + "\n".join(f"  {line}" for line in remedies)] if remedies else []
    show(*[_table(section.title, section.findings) for section in found], *advice, _verdict(found))


def _table(title: str, findings: tuple[Finding, ...]) -> Table:
    made = table("what", "", "found~", title=title)
    for finding in findings:
        made.add_row(finding.what, Text(finding.severity, style=_COLOURS[finding.severity]), finding.found)
    return made


def _verdict(found: list[Section]) -> str:
    grades = _grades(found)
    words = [count(grades.count(grade), grade) for grade in (ERROR, WARNING) if grade in grades]
    unknown = f", {grades.count(UNKNOWN)} cannot be told" if UNKNOWN in grades else ""
    return f"{len(grades)} findings: {', '.join(words) or 'all well'}{unknown}"


def _grades(found: list[Section]) -> list[str]:
    return [finding.severity for section in found for finding in section.findings]


def _as_dict(found: list[Section]) -> dict[str, object]:
    grades = _grades(found)
    return {
        "healthy": ERROR not in grades,
        "errors": grades.count(ERROR),
        "warnings": grades.count(WARNING),
        "findings": [
            {"server": section.server, "index": section.index, **attrs.asdict(finding)}
            for section in found
            for finding in section.findings
        ],
    }
