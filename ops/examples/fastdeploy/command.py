"""`python -m ops.examples.fastdeploy`: its options, its refusals, its exit code."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import orjson
from rich.console import Console

from events import StateCoreError, Unavailable, connect
from ops.demo.progress import Bars
from ops.examples.fastdeploy.plug import DECODE, PREFILL, EngineSpec, SpecError, engine_specs
from ops.examples.fastdeploy.processes import EngineDied
from ops.examples.fastdeploy.report import figures, show
from ops.examples.fastdeploy.run import Result, RolesResult, run_engines, run_roles, run_single
from ops.examples.fastdeploy.serve import Starved
from ops.examples.fastdeploy.settings import Settings, SettingsError
from ops.examples.fastdeploy.workload import Shape, WorkloadError, workload
from workers.surroundings import URL_VARIABLE

ENGINES_MAX: Final = 16
REQUESTS_DEFAULT: Final = 2000
GPU_BLOCKS_DEFAULT: Final = 640
HOST_BLOCKS_DEFAULT: Final = 6000
PLAIN_COLUMNS: Final = 120


class Refused(click.ClickException):
    """What was asked cannot be done; one line says why."""

    exit_code = 2


class Failure(click.ClickException):
    """It was tried and did not come to its end."""

    exit_code = 1


@click.command(name="fastdeploy")
@click.option("--requests", type=click.IntRange(1), default=REQUESTS_DEFAULT, show_default=True, help="Of the trace.")
@click.option(
    "--trace", type=click.Path(path_type=Path), help="A published Mooncake trace. Default: a generator like it."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the generator.")
@click.option("--engines", type=click.IntRange(1, ENGINES_MAX), default=2, show_default=True, help="Engine processes.")
@click.option(
    "--gpu-blocks",
    type=click.IntRange(1),
    default=GPU_BLOCKS_DEFAULT,
    show_default=True,
    help="Of each engine's own pool. Small, so that requests are preempted and blocks go to the host all the time.",
)
@click.option(
    "--host-blocks",
    type=click.IntRange(0),
    default=HOST_BLOCKS_DEFAULT,
    show_default=True,
    help="Of the host pool all share; worker processes move the bytes. 0: one tier, no bytes.",
)
@click.option("--block-size", type=click.IntRange(1), default=16, show_default=True, help="Tokens in a block.")
@click.option("--speculative", type=click.IntRange(0), default=2, show_default=True, help="Tokens drafted in a decode.")
@click.option(
    "--max-num-batched-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Tokens of one step."
)
@click.option(
    "--max-num-seqs", type=click.IntRange(1), default=16, show_default=True, help="Requests that run at a time."
)
@click.option(
    "--abort-every",
    type=click.IntRange(0),
    default=25,
    show_default=True,
    help="One client of so many goes away; 0: none.",
)
@click.option(
    "--again-every",
    type=click.IntRange(0),
    default=12,
    show_default=True,
    help="One request of so many asks an earlier prompt again; 0: none.",
)
@click.option(
    "--shrink",
    type=(int, int),
    default=(16, 4),
    show_default=True,
    metavar="PROMPT OUTPUT",
    help="Divide the trace's prompt and output lengths by these. 1 1: as in the trace; wants larger pools.",
)
@click.option("--roles", is_flag=True, help="Instead: one prefill and one decode engine; requests are handed over.")
@click.option("--single", is_flag=True, help="One engine in this process, its log in memory: no Redis, no host pool.")
@click.option("--url", default="embedded://", show_default=True, help="The log's server; it needs a real Redis.")
@click.option("--json", "as_json", is_flag=True, help="Write the report as JSON to standard output.")
def command(  # noqa: PLR0913, PLR0917 - click gives one argument per option
    requests: int,
    trace: Path | None,
    seed: int,
    engines: int,
    gpu_blocks: int,
    host_blocks: int,
    block_size: int,
    speculative: int,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    abort_every: int,
    again_every: int,
    shrink: tuple[int, int],
    roles: bool,
    single: bool,
    url: str,
    as_json: bool,
) -> None:
    """FastDeploy's scheduler contract on statecore.PrefixCacheManager, with every rule of it checked at every step.

    A scheduler loop like FastDeploy's (waiting, running and preempted requests, chunked prefill, decode, speculative
    decoding, LIFO preemption, aborts, output caching) drives the manager through the requests of a trace, in engine
    processes that share one index. Nothing is trusted: block tables are compared with each other and with the state of the
    replica, all counts are recounted, reused blocks must hold their bytes, and a replay of the log must give the same state.

    Exit code: 0 everything held; 1 something did not, or an engine died; 2 the options make no sense.

    \b
    Examples:
      python -m ops.examples.fastdeploy
      python -m ops.examples.fastdeploy --requests 300 --single
      python -m ops.examples.fastdeploy --requests 300 --roles
      python -m ops.examples.fastdeploy --engines 4 --gpu-blocks 1200 --speculative 0 --json
    """
    if single and roles:
        raise Refused("--roles needs workers and so a real Redis, --single has none: choose one")
    try:
        settings = Settings(
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            num_speculative_tokens=speculative,
        )
        work = workload(trace, requests, seed, Shape(block_size, *shrink, again_every))
        specs = engine_specs(
            work,
            settings,
            engines=1 if single else engines,
            gpu_blocks=gpu_blocks,
            host_blocks=0 if single or roles else host_blocks,
            index=f"fastdeploy-{secrets.token_hex(4)}",
            abort_every=abort_every,
            roles=(PREFILL, DECODE) if roles else (),
        )
    except (SettingsError, WorkloadError, SpecError) as error:
        raise Refused(str(error)) from None
    console = Console(stderr=as_json, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_COLUMNS  # what goes into a file is not cut
    try:
        result = _run(specs, single, url)
    except (EngineDied, Starved, StateCoreError, RuntimeError) as error:  # the last: workers did not start
        raise Failure(str(error)) from None
    show(console, result)
    if as_json:
        sys.stdout.buffer.write(orjson.dumps(figures(result), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        sys.stdout.flush()
    sys.exit(0 if result.ok else 1)


def _run(specs: list[EngineSpec], single: bool, url: str) -> Result | RolesResult:
    with Bars() as bars:
        bars.begin("serving", len(specs[0].work.requests))
        if single:
            return run_single(specs[0], lambda ended: bars.at(ended, ""))
        if url.startswith("memory://"):
            raise Refused(
                "--url memory:// cannot be shared by processes: use embedded://, redis:// or unix://, or --single"
            )
        try:
            connection = connect(url)
        except (ValueError, Unavailable, OSError) as error:
            raise Refused(f"--url: {error}") from None
        with connection, _known_by_environment(connection.url if url.startswith("embedded://") else url) as where:
            there = [spec.at(where) for spec in specs]
            if there[0].role == PREFILL:
                return run_roles(connection, there[0], there[1], lambda ended: bars.at(ended, ""))
            return run_engines(connection, there, lambda ended: bars.at(ended, ""))


@contextmanager
def _known_by_environment(url: str) -> Iterator[str]:
    """Engines and workers find the server as they do in FastDeploy: a connection does not tell its password."""
    before = os.environ.get(URL_VARIABLE)
    os.environ[URL_VARIABLE] = url
    try:
        yield url
    finally:
        if before is None:
            del os.environ[URL_VARIABLE]
        else:
            os.environ[URL_VARIABLE] = before
