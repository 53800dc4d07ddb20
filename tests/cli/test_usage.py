"""How the command is called: help, where the log is, and mistakes answered with one line."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from events import connect
from events.errors import Unavailable
from ops.cli import failures, main
from ops.cli.group import CommandLine, Lazy, LazyGroup
from ops.trace import TraceError
from tests.cli.scenario import INDEX, Story, answer, complaint, statecore

OURS_ALONE = ("log", "replay", "inspect", "verify", "export", "import", "snapshot", "migrate", "doctor")
ELSEWHERE = ("demo", "simulate", "chaos", "reliability", "bench", "worker", "keeper")
COMMANDS = (*OURS_ALONE, *ELSEWHERE)
OURS = (
    *([name] for name in OURS_ALONE),
    *(["inspect", what] for what in ("pools", "tree", "request", "engine", "transfers")),
    *(["snapshot", what] for what in ("export", "show", "import")),
)


# --- help


def test_help_lists_every_command_without_loading_one() -> None:
    """`statecore --help` would take as long as everything it could do."""
    program = (
        "import sys; from ops.cli import main\n"
        "try: main(['--help'], prog_name='statecore')\n"
        "except SystemExit: print(sorted({name.partition('.')[0] for name in sys.modules} "
        "& {'events', 'numpy', 'redis', 'rich', 'statecore'}))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    lines = done.stdout.splitlines()
    assert lines[0] == "Usage: statecore [OPTIONS] COMMAND [ARGS]..."
    listed = [line.split()[0] for line in lines[lines.index("Commands:") + 1 : -1]]
    assert listed == list(COMMANDS)
    assert lines[-1] == "[]"


@pytest.mark.parametrize("command", OURS, ids=" ".join)
def test_every_command_explains_itself(command: list[str]) -> None:
    """A newcomer would have to read the source to use a command."""
    long, short = statecore(*command, "--help"), statecore(*command, "-h")

    assert (long.exit_code, long.stdout) == (0, short.stdout)
    assert "Examples:" in long.stdout or command[-1] == "pools"
    assert all(len(line) <= 110 for line in long.stdout.splitlines())


@pytest.mark.parametrize(
    "group", [main, *(main.get_command(click.Context(main), name) for name in ("inspect", "snapshot"))]
)
def test_the_summaries_in_the_table_are_those_of_the_commands(group: object) -> None:
    """The list of commands would promise something else than the command says of itself."""
    assert isinstance(group, LazyGroup)
    context = click.Context(group)
    for name in group.list_commands(context):
        if name not in ELSEWHERE:
            command = group.get_command(context, name)
            assert command is not None
            summary = dict(group.summaries())[name]
            assert summary.startswith((command.short_help or "").rstrip("."))


@pytest.mark.parametrize("arguments", [[], ["inspect"]])
def test_a_command_without_arguments_shows_its_help(arguments: list[str]) -> None:
    """Whoever tries the bare command would be told off instead of helped."""
    result = statecore(*arguments)

    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")
    assert "Commands:" in result.stderr


def test_the_version_is_the_installed_one() -> None:
    """A bug report would name the wrong release."""
    assert statecore("--version").stdout == f"statecore {version('statecore')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lgo"], f"there is no command 'lgo'; there are: {', '.join(COMMANDS)}"),
        (["inspect", "pool"], "there is no command 'pool'; there are: pools, tree, request, engine, transfers"),
        (["log", "--bogus"], "No such option '--bogus'"),
        (["inspect", "request"], "Missing argument 'ID'"),
        (["export"], "Missing argument 'FILE'"),
        (["--bogus"], "No such option '--bogus'"),
    ],
)
def test_a_mistyped_command_line_gets_one_line_and_a_hint(arguments: list[str], message: str) -> None:
    """A typing error would be answered with a screenful, or not be understood."""
    line = complaint(statecore(*arguments), 2)

    assert line.startswith(message)
    assert line.endswith("--help)")


# --- where the log is


def test_without_a_source_the_command_says_how_to_name_one() -> None:
    """A first try would end in a connection error to a server nobody named."""
    line = complaint(statecore("log"), 2)

    assert line.startswith("where is the log? Give --url redis://host:port, set STATECORE_URL, or")


def test_server_and_index_may_come_from_the_environment(story: Story) -> None:
    """They would have to be typed with every command."""
    from_environment = statecore("replay", "--digest", STATECORE_URL=story.url, STATECORE_INDEX=INDEX)
    overruled = statecore("replay", "--digest", "--index", INDEX, STATECORE_URL=story.url, STATECORE_INDEX="other")

    assert from_environment.stdout.strip() == overruled.stdout.strip() == story.digests[19]


def test_a_file_wins_over_the_environment(exported: Path, story: Story) -> None:
    """Whoever has a server in the environment could not look at a file."""
    result = statecore(
        "replay", "--file", exported, "--digest", STATECORE_URL="redis://nowhere:1", STATECORE_INDEX="other"
    )

    assert result.stdout.strip() == story.digests[19]


def test_the_only_index_of_a_server_needs_no_name(tmp_path: Path, exported: Path) -> None:
    """On a server with one index its name would have to be looked up first."""
    folder = f"embedded://{tmp_path}"
    with connect(folder) as connection:
        assert statecore("import", exported, "--url", connection.url).exit_code == 0
        assert answer(statecore("inspect", "pools", "--json", "--url", connection.url))["index"] == INDEX

    again = answer(statecore("inspect", "pools", "--json", "--url", folder))
    assert again["position"] == 19


def test_several_indexes_are_listed(story: Story, exported: Path, name: str) -> None:
    """One of several indexes would be taken by chance."""
    assert statecore("import", exported, "--url", story.url, "--index", name).exit_code == 0

    line = complaint(statecore("log", "--url", story.url), 2)

    assert line.startswith(f"{story.url} holds ")
    assert "say which with --index: " in line
    assert name in line
    assert INDEX in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--url", "{url}", "--index", "nope"], "there is no index 'nope' at {url}; there are: "),
        (["--url", "memory://"], "there is no index at memory://: no engine has joined one there"),
        (["--url", "http://x"], "'http://x' is no log: use redis://"),
        (["--url", "redis://:secret@localhost:1"], "the log's server cannot be reached"),
        (["--url", "unix:///nowhere.sock"], "the log's server cannot be reached"),
        (["--url", "{url}", "--file", "x"], "--url and --file are two sources: give one of them"),
        (["--file", "/nowhere/x.jsonl"], "/nowhere/x.jsonl: No such file or directory"),
        (["--file", "/"], "/: Is a directory"),
        (["--file", "{file}", "--index", "nope"], "{file} holds the log of index 'llama', not of 'nope'"),
    ],
)
@pytest.mark.parametrize("command", [["log"], ["verify"], ["inspect", "tree"]], ids=" ".join)
def test_a_log_that_is_not_there_is_said_in_one_line(
    story: Story, exported: Path, command: list[str], options: list[str], message: str
) -> None:
    """A wrong address would show a traceback, an empty log, or a password."""
    names = {"url": story.url, "file": exported}

    line = complaint(statecore(*command, *(option.format(**names) for option in options)), 2)

    assert line.startswith(message.format(**names))
    assert "secret" not in line


# --- errors


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Unavailable("the server\nis gone"), 2, "the server is gone"),
        (TraceError("t.jsonl, line 3: no timestamp"), 2, "t.jsonl, line 3: no timestamp"),
        (FileNotFoundError(2, "No such file or directory", "x"), 2, "x: No such file or directory"),
        (click.ClickException("a proof failed"), 1, "a proof failed"),
    ],
)
def test_an_error_of_a_command_becomes_a_line_and_a_code(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int, line: str
) -> None:
    """A user's mistake would show a traceback."""

    def fail() -> None:
        raise error

    assert failures.run_to_exit_code(fail) == code
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_defect_shows_its_traceback_and_is_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    """A bug of this program would be taken for a broken log, and leave nothing to find it by."""

    def fail() -> None:
        raise KeyError("oops")

    assert failures.run_to_exit_code(fail) == failures.DEFECT
    assert "KeyError: 'oops'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_command_from_elsewhere_explains_itself_or_is_missing(name: str) -> None:
    """The list of commands would promise something that ends in a traceback."""
    result = statecore(name, "--help")

    if result.exit_code == 0:
        assert result.stdout.startswith(f"Usage: statecore {name}")
    else:
        assert f"the command '{name}' is not installed here" in complaint(result, 2)


def test_a_command_that_is_not_installed_is_said() -> None:
    """A missing part would show an import error."""
    group = CommandLine(name="x", lazy={"gone": Lazy("ops.cli.no_such_module:command", "Gone.")})
    result = CliRunner().invoke(group, ["gone"])

    assert "the command 'gone' is not installed here" in complaint(result, 2)
