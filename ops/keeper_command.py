"""`statecore keeper`: the keeper of an index, in the foreground.

Owns the command's options. The work is in `workers/keeper.py`.
"""

from __future__ import annotations

import sys

import click

from events import limits
from events.errors import InvalidInput
from ops.cli.source import INDEX_VARIABLE, SERVER_HELP, URL_VARIABLE
from workers.keeper_process import checked, serve_until_signalled


@click.command("keeper")
@click.option("--url", required=True, envvar=URL_VARIABLE, show_envvar=True, metavar="URL", help=SERVER_HELP)
@click.option(
    "--index", required=True, envvar=INDEX_VARIABLE, show_envvar=True, metavar="NAME", help="Name of the index."
)
@click.option(
    "--every", default=limits.SNAPSHOT_EVERY, show_default=True, help="Take a snapshot after so many commits …"
)
@click.option(
    "--age",
    "age_s",
    default=limits.SNAPSHOT_AGE_S,
    show_default=True,
    help="… or after so many seconds, if anything has happened since.",
)
@click.option("--metrics-port", type=click.IntRange(1, 65535), help="Serve Prometheus metrics on 127.0.0.1:PORT.")
def command(url: str, index: str, every: int, age_s: float, metrics_port: int | None) -> None:
    """Keep an index healthy, until told to stop (SIGTERM or Ctrl-C).

    Takes snapshots and trims the log behind them; declares engines lost that give no sign of life; puts lost transfer
    jobs back; when the log was rolled back, gives up what may have been overwritten (HistoryLost). Run two: one acts,
    the other waits for its place. When none runs, nothing stops, but the log grows and dead engines keep what they
    had. What it does goes to standard error, one JSON object a line.

    Exit code: 0 told to stop; 1 the history is broken, or of a newer release; 2 wrong options, no server at the
    start, or keys of another release.

    \b
    Example:
      statecore keeper --url redis://localhost --index llama-70b --metrics-port 9464
    """
    if url.startswith("memory:"):
        raise InvalidInput(
            "a keeper is a process of its own: use redis://, unix:// or embedded:// instead of memory://"
        )
    sys.exit(serve_until_signalled(url, index, checked(every, age_s), metrics_port))
