"""What a user reads when something goes wrong: one line on stderr, and an exit code that means something.

Owns the table below. A mistake of the user, a server out of reach and a broken history never show a traceback; a
mistake in this program does, because then the traceback is what the report needs, and it never looks like a broken log.

| code | means                                                                         |
|------|-------------------------------------------------------------------------------|
| 0    | fine                                                                          |
| 1    | the history or the state is broken                                            |
| 2    | could not be done: wrong usage, out of reach, no such file, made by a newer release |
| 3    | a defect of this program; the traceback says where                            |
| 130  | interrupted (Ctrl-C)                                                          |
| 141  | whoever read the output went away                                             |
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Final

import click

SOUND: Final = 0
BROKEN: Final = 1
NOT_DONE: Final = 2
DEFECT: Final = 3
INTERRUPTED: Final = 130


def run_to_exit_code(run: Callable[[], object]) -> int:
    """Run a command line; say on stderr what went wrong."""
    try:
        result = run()
    except click.Abort:
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return NOT_DONE
    except click.ClickException as error:
        say_error(_usage(error))
        return NOT_DONE if isinstance(error, click.FileError) else error.exit_code
    except Exception as error:
        described = _described(error)
        if described is None:
            traceback.print_exc()
            return DEFECT
        message, code = described
        say_error(message)
        return code
    return result if isinstance(result, int) else SOUND


def say_error(message: str) -> None:
    """One red line on stderr, whatever line breaks the message brought along."""
    click.secho(f"error: {' '.join(message.split())}", err=True, fg="red")


def say_warning(message: str) -> None:
    """The same in yellow, for what the command can go on with."""
    click.secho(f"warning: {' '.join(message.split())}", err=True, fg="yellow")


def stop_writing() -> None:
    """Nobody reads stdout any more: whatever is still buffered goes nowhere, without a complaint at exit."""
    if sys.__stdout__ is not None and sys.stdout is sys.__stdout__:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())


def _usage(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{message} (see {error.ctx.command_path} --help)"
    return message


def _described(error: Exception) -> tuple[str, int] | None:
    """Message and exit code of an error that is nobody's programming mistake; None for all others."""
    from events.errors import CorruptState, NewerSchema, StateCoreError
    from ops.trace import TraceError

    if isinstance(error, CorruptState) and not isinstance(error, NewerSchema):
        return str(error), BROKEN
    if isinstance(error, StateCoreError | TraceError):
        return str(error), NOT_DONE
    if isinstance(error, OSError):
        name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{name}{error.strerror or error}", NOT_DONE
    return None
