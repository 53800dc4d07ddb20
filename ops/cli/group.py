"""The command `statecore` and the table of its sub-commands.

Owns which sub-commands there are, their one-line descriptions, and that only the one in use is imported: so that
`statecore --help` answers at once and a command works where another one's dependencies are missing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn

import click

from ops.cli.failures import run_to_exit_code, stop_writing

SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
_SIGPIPE_EXIT: Final = 141  # what the shell reports for a program whose reader went away


class Lazy(NamedTuple):
    """A sub-command by import path (`module:name`), and the line `--help` shows for it."""

    path: str
    summary: str


class LazyGroup(click.Group):
    """A group that imports a sub-command when it is used."""

    def __init__(self, *, lazy: Mapping[str, Lazy], **settings: Any) -> None:
        super().__init__(**settings)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # click's signature
        lazy = self._lazy.get(cmd_name)
        if lazy is None:
            return None
        module, _, name = lazy.path.partition(":")
        try:
            command = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            raise click.UsageError(f"the command {cmd_name!r} is not installed here: {error}", ctx) from error
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self._lazy and not name.startswith("-"):
            raise click.UsageError(f"there is no command {name!r}; there are: {', '.join(self._lazy)}", ctx)
        return super().resolve_command(ctx, args)

    def summaries(self) -> list[tuple[str, str]]:
        """Every sub-command and its line."""
        return [(name, lazy.summary) for name, lazy in self._lazy.items()]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(self.summaries())


class CommandLine(LazyGroup):
    """The outermost group: whatever goes wrong inside leaves as one line and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        assert standalone_mode, "this group ends the process; invoke a command of it instead"
        sys.exit(
            run_to_exit_code(
                lambda: super(CommandLine, self).main(args, prog_name, complete_var, standalone_mode=False, **extra)
            )
        )

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            stop_writing()
            ctx.exit(_SIGPIPE_EXIT)
        return result


_COMMANDS: Final = {
    "log": Lazy("ops.cli.show_log:command", "Show what happened, commit by commit; follow it live."),
    "replay": Lazy("ops.cli.replay:command", "Rebuild the state at a position and summarise it."),
    "inspect": Lazy("ops.cli.inspect:command", "Look into pools, tree, requests, engines, transfers."),
    "verify": Lazy("ops.cli.verify:command", "Prove that a log is whole and its state sound."),
    "export": Lazy("ops.cli.export_log:command", "Copy a log into a file."),
    "import": Lazy("ops.cli.import_log:command", "Copy an exported log into an empty index."),
    "snapshot": Lazy("ops.cli.snapshot:command", "Copy a state into a file, show one, begin an index with one."),
    "migrate": Lazy("ops.migrate_command:command", "Bring an index of an older release to this one."),
    "doctor": Lazy("ops.doctor.command:command", "Say what is wrong with a server and an index, and what helps."),
    "demo": Lazy("ops.demo.command:command", "Several engine processes share one index in a real Redis."),
    "simulate": Lazy("ops.simulate_command:command", "Simulate engines, workers, keepers, a dying server."),
    "chaos": Lazy("ops.chaos.command:command", "Kill, stop and cut off real processes, and check what is left."),
    "reliability": Lazy("ops.reliability.command:command", "Write the page of what was shown, from runs."),
    "bench": Lazy("ops.bench.command:command", "Measure every figure beside its reference."),
    "worker": Lazy("ops.worker_command:command", "Move the blocks of one rank between GPU and host memory."),
    "keeper": Lazy("ops.keeper_command:command", "Take snapshots, trim the log, notice dead engines."),
}


@click.group(cls=CommandLine, lazy=_COMMANDS, context_settings=SETTINGS)
@click.version_option(package_name="statecore", prog_name="statecore", message="%(prog)s %(version)s")
def statecore() -> None:
    """One KV-cache index for many LLM engines: look at it, prove it, copy it.

    A log is read from a server (--url, or STATECORE_URL) or from an exported file (--file). Where a server holds
    several indexes, --index (or STATECORE_INDEX) says which.

    \b
    Examples:
      statecore log --url redis://localhost --follow
      statecore inspect tree --at 1200 --index llama-70b
      statecore verify --file incident.jsonl.gz

    Exit codes: 0 fine, 1 the history is broken, 2 wrong usage or out of reach, 130 interrupted.
    """
