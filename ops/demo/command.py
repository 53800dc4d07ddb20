"""`statecore demo`: its options, its refusals, its exit code.

Owns the meeting of a person and the demo. What a person got wrong is one line on standard error and exit code 2; an
engine that died or a proof that failed is exit code 1; the report goes to standard output, unless JSON does.
"""

from __future__ import annotations

import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import click
import orjson
from rich.console import Console

from events import StateCoreError, Unavailable, connect
from events.keys import checked_name
from events.limits import POOL_BLOCKS_MAX
from events.log import LogConnection
from ops.demo.fleet import EngineDied
from ops.demo.movers import WorkerDied
from ops.demo.progress import Bars
from ops.demo.report import figures, opening, show
from ops.demo.run import run
from ops.demo.tiers import BLOCK_BYTES_MAX, BLOCK_BYTES_STEP, Tiers, tiers
from ops.demo.workload import Workload, WorkloadError, workload
from statecore import Policy
from statecore.state import WRITE_BACK, WRITE_POLICIES

ENGINES_MAX: Final = 64
REQUESTS_DEFAULT: Final = 1000
STEP_MS_DEFAULT: Final = 10.0
WATERMARKS_DEFAULT: Final = (10, 20)
RANKS_MAX: Final = 8
INTERRUPTED: Final = 130
TERMINATED: Final = 143
STDOUT: Final = "-"


class Refused(click.ClickException):
    """What was asked cannot be done; one line says why."""

    exit_code = 2


class Failure(click.ClickException):
    """It was tried and did not come to its end."""

    exit_code = 1


@click.command(name="demo")
@click.option("--engines", type=int, default=4, show_default=True, help="Engine processes, 1 to 64.")
@click.option("--requests", type=int, default=REQUESTS_DEFAULT, show_default=True, help="How many of the trace.")
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    help="A trace in the published Mooncake format, .jsonl or .jsonl.gz. Default: a built-in generator like it.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the generator.")
@click.option(
    "--gpu-blocks",
    type=int,
    help="GPU blocks of all engines together: a pool of its own for each; with --host-blocks 0 one pool for all. "
    "Default: a tenth, or with --host-blocks 0 a quarter, of what the prompts hold.",
)
@click.option(
    "--host-blocks",
    type=int,
    help="Blocks of the host pool all share. Default: 30 % of what the prompts hold; 0: one tier, and no bytes.",
)
@click.option(
    "--policy",
    type=click.Choice(WRITE_POLICIES),
    default=WRITE_BACK,
    show_default=True,
    help="When blocks are copied to the host: at eviction, or as soon as they are computed.",
)
@click.option(
    "--watermarks",
    type=(int, int),
    default=WATERMARKS_DEFAULT,
    show_default=True,
    metavar="LOW HIGH",
    help="Percent of a GPU pool: with less than LOW free, swap-outs start until HIGH is. 0 0: only when blocks are needed.",
)
@click.option("--tp", "ranks", type=int, default=1, show_default=True, help="Tensor-parallel ranks: workers per pool.")
@click.option(
    "--block-bytes",
    type=int,
    help=f"Bytes of a block in one rank, a multiple of {BLOCK_BYTES_STEP}. Default: up to 4096, as /dev/shm allows.",
)
@click.option("--block-size", type=int, default=64, show_default=True, help="Tokens in a block; divides 512.")
@click.option(
    "--step-ms",
    type=float,
    default=STEP_MS_DEFAULT,
    show_default=True,
    help="Least time of a scheduler step, in place of a model's; 0 is as fast as the index goes.",
)
@click.option(
    "--url",
    default="embedded://",
    show_default=True,
    help="The log's server: redis://, rediss://, unix:// or embedded://[folder].",
)
@click.option("--index", "index", help="Name of the index; must be new. Default: demo- and eight digits.")
@click.option("--json", "json_path", help="Write the report as JSON to this file, or - for standard output.")
def command(  # noqa: PLR0913, PLR0917 - click gives one argument per option
    engines: int,
    requests: int,
    trace: Path | None,
    seed: int,
    gpu_blocks: int | None,
    host_blocks: int | None,
    policy: str,
    watermarks: tuple[int, int],
    ranks: int,
    block_bytes: int | None,
    block_size: int,
    step_ms: float,
    url: str,
    index: str | None,
    json_path: str | None,
) -> None:
    """Engine processes serve a trace against one shared index in a real Redis, and the log proves it.

    Each engine is a process with a scheduler of continuous batching: it matches, allocates, computes prompts in chunks
    and output block by block, and releases; every step is one commit. Blocks that fall out of an engine's GPU pool go
    to a host pool that all engines share, and come back to whichever needs them; worker processes move the bytes, and
    every block that is reused is looked at. At the end all engines, and a replay of the log, must hold the same state.

    Exit code: 0 all proofs hold; 1 a proof failed or an engine died; 2 the options make no sense here.

    \b
    Examples:
      statecore demo
      statecore demo --engines 8 --requests 5000 --url redis://localhost
    """
    console = Console(stderr=json_path == STDOUT, highlight=False)
    try:
        with ended_in_order():
            _check(engines=engines, requests=requests, seed=seed, gpu_blocks=gpu_blocks, step_ms=step_ms)
            _check_tiers(host_blocks=host_blocks, ranks=ranks, block_bytes=block_bytes)
            chosen = _policy(policy, watermarks)
            _check_writable(json_path)
            work = workload(
                trace=trace,
                seed=seed,
                requests=requests,
                engines=engines,
                block_size=block_size,
                gpu_blocks=gpu_blocks,
                host_blocks=host_blocks,
            )
            memory = None
            if work.two_tiers:
                memory = tiers(work, engines=engines, ranks=ranks, block_bytes=block_bytes, policy=chosen)
            with _opened(url) as connection:
                name = _new_index(connection, index)
                ok = _demo(console, connection, url, name, work, memory, engines, step_ms, json_path)
    except WorkloadError as error:
        raise Refused(str(error)) from None
    except KeyboardInterrupt:
        click.echo("Interrupted: engines, workers and embedded server are ended.", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(0 if ok else 1)


def _demo(  # noqa: PLR0913, PLR0917 - what the command has made of its options
    console: Console,
    connection: LogConnection,
    url: str,
    index: str,
    work: Workload,
    memory: Tiers | None,
    engines: int,
    step_ms: float,
    json_path: str | None,
) -> bool:
    embedded = _scheme(url) == "embedded"
    where = "an embedded redis-server" if embedded else connection.url
    console.print(opening(work, memory, engines, f"{index} on {where}", step_ms / 1000), soft_wrap=True)
    try:
        with Bars() as bars:
            result = run(
                connection,
                connection.url if embedded else url,
                index,
                work,
                memory,
                engines=engines,
                step_s=step_ms / 1000,
                watcher=bars,
            )
    except (EngineDied, WorkerDied, StateCoreError) as error:
        raise Failure(f"{str(error).rstrip('.')}. All engines are ended.") from None
    show(console, result)
    if not embedded:
        console.print(f"The log stays on the server, as index {index}.", style="dim", soft_wrap=True)
    if json_path is not None:
        _write(json_path, orjson.dumps(figures(result), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return result.ok


# --- refusals -------------------------------------------------------------------------------------------------------


def _check(*, engines: int, requests: int, seed: int, gpu_blocks: int | None, step_ms: float) -> None:
    if not 1 <= engines <= ENGINES_MAX:
        raise Refused(f"--engines must be from 1 to {ENGINES_MAX}, not {engines}")
    if requests < 1:
        raise Refused(f"--requests must be at least 1, not {requests}")
    if seed < 0:
        raise Refused(f"--seed must be at least 0, not {seed}")
    if gpu_blocks is not None and not engines <= gpu_blocks <= POOL_BLOCKS_MAX:
        raise Refused(
            f"--gpu-blocks must be from {engines}, one for each engine, to {POOL_BLOCKS_MAX}, not {gpu_blocks}"
        )
    if not 0 <= step_ms <= 10_000:
        raise Refused(f"--step-ms must be from 0 to 10000, not {step_ms:g}")


def _check_tiers(*, host_blocks: int | None, ranks: int, block_bytes: int | None) -> None:
    if host_blocks is not None and not 0 <= host_blocks <= POOL_BLOCKS_MAX:
        raise Refused(f"--host-blocks must be from 0 to {POOL_BLOCKS_MAX}, not {host_blocks}")
    if not 1 <= ranks <= RANKS_MAX:
        raise Refused(f"--tp must be from 1 to {RANKS_MAX}, not {ranks}")
    if block_bytes is not None and (not 0 < block_bytes <= BLOCK_BYTES_MAX or block_bytes % BLOCK_BYTES_STEP):
        raise Refused(
            f"--block-bytes must be a multiple of {BLOCK_BYTES_STEP} up to {BLOCK_BYTES_MAX}, not {block_bytes}"
        )


def _policy(write: str, watermarks: tuple[int, int]) -> Policy:
    try:
        return Policy(write, *watermarks)
    except StateCoreError as error:
        raise Refused(f"--watermarks: {error}") from None


def _opened(url: str) -> LogConnection:
    if _scheme(url) == "memory":
        raise Refused("--url memory:// cannot be shared by processes: use embedded://, redis:// or unix://")
    try:
        return connect(url)
    except (ValueError, Unavailable, OSError) as error:
        raise Refused(f"--url: {error}") from None


def _scheme(url: str) -> str:
    return url.partition("://")[0]


def _new_index(connection: LogConnection, name: str | None) -> str:
    if name is None:
        return f"demo-{secrets.token_hex(4)}"
    try:
        head = connection.log(checked_name(name, "--index"), follow=False).head()
    except StateCoreError as error:
        raise Refused(str(error)) from None
    if head.position:
        raise Refused(f"index {name!r} has a log of {head.position:,} commits already: give --index another name")
    return name


# --- JSON -----------------------------------------------------------------------------------------------------------


def _check_writable(path: str | None) -> None:
    """Before the work, not after it. Leaves everything as it is."""
    if path is None or path == STDOUT:
        return
    existed = Path(path).exists()
    try:
        with open(path, "ab"):
            pass
        if not existed:
            Path(path).unlink()
    except OSError as error:
        raise Refused(f"cannot write --json {path!r}: {error.strerror or error}") from None


def _write(path: str, report: bytes) -> None:
    if path == STDOUT:
        sys.stdout.buffer.write(report)
        sys.stdout.flush()
        return
    Path(path).write_bytes(report)


# --- signals --------------------------------------------------------------------------------------------------------


@contextmanager
def ended_in_order() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that engines and server end with us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminated(_number: int, _frame: FrameType | None) -> None:
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
