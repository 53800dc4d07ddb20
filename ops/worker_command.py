"""`statecore worker`: one swap worker, in the foreground.

Owns the command's options. The work is in `workers/worker_process.py`.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from events.errors import InvalidInput
from ops.cli.source import INDEX_VARIABLE, SERVER_HELP, URL_VARIABLE
from workers.stores import StoreSettings
from workers.worker_process import WorkerSettings, restart_with, serve_until_signalled


@click.command("worker")
@click.option("--url", required=True, envvar=URL_VARIABLE, show_envvar=True, metavar="URL", help=SERVER_HELP)
@click.option(
    "--index", required=True, envvar=INDEX_VARIABLE, show_envvar=True, metavar="NAME", help="Name of the index."
)
@click.option("--pool", required=True, help="GPU pool whose transfers to carry out, such as gpu:engine-0.")
@click.option("--rank", required=True, type=int, help="Tensor-parallel rank this worker moves the bytes of.")
@click.option("--tp", "ranks", default=1, show_default=True, type=int, help="Number of ranks of the pool.")
@click.option(
    "--store",
    default="numpy",
    show_default=True,
    help="What holds the bytes: numpy, paddle@cpu, paddle@gpu:0, or module:Class of your own.",
)
@click.option(
    "--layout", help="Layout of the GPU pool as JSON: make its memory, or check what is there. Default: open it."
)
@click.option("--host-pool", default="cpu:host", show_default=True, help="Name of the host pool.")
@click.option("--host-blocks", default=0, type=int, help="Make the host pool of so many blocks, with the same layout.")
@click.option("--takeover", is_flag=True, help="End a worker of this rank that is alive, or stopped.")
@click.option("--name", help="Name on the job lists; the same at every start. Default: this machine's.")
def command(
    url: str, store: str, layout: str | None, host_pool: str, host_blocks: int, name: str | None, **settings: Any
) -> None:
    """Move the bytes of one rank of a GPU pool, until told to stop (SIGTERM or Ctrl-C).

    Takes transfer jobs from the pool's stream in Redis, copies this rank's shard of every block, and reports; the last
    rank's report ends the transfer. What it does goes to standard error, one JSON object a line.

    Exit code: 0 told to stop, or another worker took its seat; 2 could not start, or cannot go on.

    \b
    Example:
      statecore worker --url redis://localhost --index llama-70b --pool gpu:engine-0 --rank 0 --tp 2
    """
    if url.startswith("memory:"):
        raise InvalidInput(
            "a worker is a process of its own: use redis://, unix:// or embedded:// instead of memory://"
        )
    if name is not None:
        settings["name"] = name
    held = StoreSettings(store, layout, host_pool, host_blocks)
    restart_with(held.environment())
    sys.exit(serve_until_signalled(url, WorkerSettings(store=held, **settings)))
