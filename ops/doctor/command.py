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
from events.errors import InvalidInput
from events.log import LogConnection
from events.redis_log import RedisBackend
from ops.cli.failures import BROKEN
from ops.cli.output import count, number, show, table, write_json
from ops.cli.source import INDEX_VARIABLE, URL_VARIABLE, Where, source_options
from ops.doctor import blocks, durability, engines, history, rights, server, snapshots, transfers
from ops.doctor.finding import ERROR, OK, UNKNOWN, WARNING, Check, Finding
from ops.doctor.patient import CannotTell, Patient

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
        assert isinstance(connection.backend, RedisBackend)
        named = where.index or os.environ.get(INDEX_VARIABLE)
        found = examined(connection, named)
        if as_json:
            write_json(_as_dict(connection, found))
        else:
            _show(connection, found)
    if any(finding.severity == ERROR for findings in found.values() for finding in findings):
        ctx.exit(BROKEN)


def examined(connection: LogConnection, index: str | None) -> dict[str, list[Finding]]:
    """Findings by index, those of the server under ""."""
    patient = Patient(connection, None)
    patient.ask("PING")
    found = {"": [finding for check in _OF_SERVER for finding in run(check, patient)]}
    for name in (index,) if index is not None else connection.indexes():
        found[name] = list(_of_index(Patient(connection, name)))
    return found


def _of_index(patient: Patient) -> Iterator[Finding]:
    for check in _OF_INDEX:
        yield from run(check, patient)
        if check is there and not _goes_on(patient):
            return


def there(patient: Patient) -> Iterator[Finding]:
    """Whether there is such an index, in a layout that this release can read."""
    if "position" in patient.head_fields:
        yield from history.layout(patient)
        return
    entries = int(patient.ask("XLEN", patient.keys.log))
    words = f"its log has {number(entries)} entries, its head is gone" if entries else "no engine has joined it"
    remedy = (
        "runbook: ops/runbooks/redis-lost.md" if entries else "is the name right? Without --index all are looked at"
    )
    yield Finding("index", ERROR if entries else WARNING, words, remedy)


def _goes_on(patient: Patient) -> bool:
    return all(finding.severity == OK for finding in run(there, patient))


def run(check: Check, patient: Patient) -> Iterator[Finding]:
    """What a check finds; what it may not look at is said."""
    try:
        yield from check(patient)
    except CannotTell as reason:
        name = check.__name__.replace("_", " ")
        yield Finding(name, UNKNOWN, f"cannot tell: {reason}")


_OF_SERVER: tuple[Check, ...] = (*server.CHECKS, *durability.CHECKS, *rights.SERVER_CHECKS)
_OF_INDEX: tuple[Check, ...] = (
    *rights.CHECKS, there, *history.CHECKS, *snapshots.CHECKS, *engines.CHECKS, *transfers.CHECKS, *blocks.CHECKS
)  # fmt: skip


# --- showing --------------------------------------------------------------------------------------------------------


def _show(connection: LogConnection, found: dict[str, list[Finding]]) -> None:
    parts = [
        _table(f"Index {index!r}" if index else f"Server {connection.url}", findings)
        for index, findings in found.items()
    ]
    remedies = [
        f"{finding.severity}: {finding.what}{f' of {index!r}' if index else ''}: {finding.remedy}"
        for index, findings in found.items()
        for finding in findings
        if finding.remedy
    ]
    show(
        *parts, *(["What to do:\n" + "\n".join(f"  {line}" for line in remedies)] if remedies else []), _verdict(found)
    )


def _table(title: str, findings: list[Finding]) -> Table:
    made = table("what", "", "found~", title=title)
    for finding in findings:
        made.add_row(finding.what, Text(finding.severity, style=_COLOURS[finding.severity]), finding.found)
    return made


def _verdict(found: dict[str, list[Finding]]) -> str:
    grades = [finding.severity for findings in found.values() for finding in findings]
    words = [count(grades.count(grade), grade) for grade in (ERROR, WARNING) if grade in grades]
    unknown = f", {grades.count(UNKNOWN)} cannot be told" if UNKNOWN in grades else ""
    return f"{len(grades)} findings: {', '.join(words) or 'all well'}{unknown}"


def _as_dict(connection: LogConnection, found: dict[str, list[Finding]]) -> dict[str, object]:
    grades = [finding.severity for findings in found.values() for finding in findings]
    return {
        "server": connection.url,
        "healthy": ERROR not in grades,
        "errors": grades.count(ERROR),
        "warnings": grades.count(WARNING),
        "findings": [
            {"index": index or None, **attrs.asdict(finding)}
            for index, findings in found.items()
            for finding in findings
        ],
    }
