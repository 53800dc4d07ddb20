"""What operators read: every command in it exists, every text is printed, every piece of evidence is there."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import orjson
import pytest

from ops.chaos.run import CONVERGE_S
from ops.cli import main
from tests.sim.keepers import LONGEST_RECOVERY_S

ROOT = Path(__file__).parents[2]
RUNBOOKS = sorted((ROOT / "ops" / "runbooks").glob("*.md"))
PAGES = [page for page in RUNBOOKS if page.name != "README.md"]
DOCUMENTS = [*RUNBOOKS, ROOT / "README.md", ROOT / "ops" / "PROMISES.md"]
SECTIONS = ("What you see", "What it means", "What to do", "What not to do", "How you know it is over")
PACKAGES = ("events", "statecore", "workers", "ops")


def commands(text: str) -> Iterator[str]:
    """Command lines in indented lines and in code spans; what comes after # is a remark, after | another program's."""
    lines = re.findall(r"^ {4,}(?:\.venv/bin/)?(statecore .+)$", text, re.MULTILINE)
    spans = re.findall(r"`(statecore [^`]+)`", text)
    for found in (*lines, *spans):
        yield re.split(r"\s[#|>]", found)[0].strip()


ALL = [(document.name, line) for document in DOCUMENTS for line in commands(document.read_text())]


def parse(line: str) -> None:
    """Everything click does before it calls the command."""
    _, *words = shlex.split(line)
    command: click.Command = main
    context = click.Context(main, **main.context_settings)
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None, f"there is no command {name}"
        command, context = found, click.Context(found, info_name=name, parent=context)
        if not words:
            return  # named, not called
    command.make_context(context.info_name, words, parent=context.parent)


@pytest.mark.parametrize(("document", "line"), ALL, ids=[f"{name}: {line}" for name, line in ALL])
def test_a_command_in_a_document_is_one(document: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an incident, the command that helps would answer with a usage error."""
    monkeypatch.setenv("STATECORE_URL", "redis://localhost")
    monkeypatch.setenv("STATECORE_INDEX", "llama-70b")

    parse(line)

    assert document


@pytest.mark.parametrize(
    "line", ["statecore frobnicate", "statecore log --frob", "statecore log --from x", "statecore import --index x"]
)
def test_a_command_that_is_none_is_noticed(line: str) -> None:
    """The test above would pass whatever stands there."""
    with pytest.raises(click.UsageError):
        parse(line)


def explained(group: click.Group, path: str) -> Iterator[tuple[str, str]]:
    """Every command that does something, by its whole name, and the text of its help."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from explained(command, f"{path} {name}")
        yield f"{path} {name}", command.help or ""


HELPS = list(explained(main, "statecore"))


@pytest.mark.parametrize(("name", "text"), HELPS, ids=[name for name, _ in HELPS])
def test_every_help_has_examples_that_are_commands(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that a newcomer copies first would be answered with a usage error."""
    monkeypatch.setenv("STATECORE_URL", "redis://localhost")
    monkeypatch.setenv("STATECORE_INDEX", "llama-70b")
    examples = re.findall(r"^ *(statecore .+)$", text.partition("Example")[2], re.MULTILINE)

    assert any(f"{line} ".startswith(f"{name} ") for line in examples), f"{name} --help shows no example"
    for line in examples:
        parse(line)


def test_there_are_commands_on_every_page() -> None:
    """A page whose commands are written in another way would not be checked."""
    for page in RUNBOOKS:
        assert list(commands(page.read_text())), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_its_parts(page: Path) -> None:
    """Whoever is woken at night finds what he needs at the same place."""
    titles = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)

    assert [title.removesuffix(" when releases are mixed") for title in titles] == list(SECTIONS)


# --- what the programs print


@cache
def printed() -> tuple[str, ...]:
    """Every string in the code of the packages, also the pieces between the values of a formatted one."""
    found: list[str] = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(path.read_text())))
            prose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings are not printed
            constants = (node for node in nodes if isinstance(node, ast.Constant) and id(node) not in prose)
            found += [node.value for node in constants if isinstance(node.value, str)]
    return tuple(found)


@cache
def metrics() -> frozenset[str]:
    from workers.keeper_metrics import _HELP
    from workers.prometheus import KNOWN

    return frozenset({*(f"statecore:keeper_{name}" for name in _HELP), "statecore:keeper_snapshot_age_seconds", *KNOWN})


def seen(page: Path) -> Iterator[str]:
    """The texts under "What you see"."""
    section = re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1]
    for span in re.findall(r"`([^`]+)`", section):
        if not span.startswith("statecore "):
            yield span


TEXTS = [(page.name, text) for page in PAGES for text in seen(page)]


@pytest.mark.parametrize(("page", "text"), TEXTS, ids=[f"{name}: {text}" for name, text in TEXTS])
def test_a_text_in_a_runbook_is_printed(page: str, text: str) -> None:
    """Whoever searches the runbooks for what is on his screen would find nothing."""
    assert is_printed(text), f"{page}: nothing prints {text!r}"


@pytest.mark.parametrize("text", ["the server is burning", "roll", "statecore:keeper_temperature"])
def test_a_text_that_nobody_prints_is_noticed(text: str) -> None:
    """The test above would pass whatever stands there."""
    assert not is_printed(text)


def is_printed(text: str) -> bool:
    """A single word must be one of its own: many a word stands in some sentence."""
    if " " in text:
        return any(text in each for each in printed())
    return text in metrics() or any(text == each.strip() for each in printed())


def test_every_runbook_that_is_named_is_there() -> None:
    """The remedy would be a dead end."""
    named = {name for each in printed() for name in re.findall(r"ops/runbooks/([a-z-]+\.md)", each)}

    assert named
    assert named <= {page.name for page in PAGES}


# --- promises


PROMISES = ROOT / "ops" / "PROMISES.md"


def test_every_promise_has_evidence_that_is_there() -> None:
    """A promise would stand on a test that was renamed or deleted."""
    text = PROMISES.read_text()
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    promises = {part.split(" ", 1)[0]: part for part in parts if re.match(r"P\d ", part)}

    assert list(promises) == [f"P{number}" for number in range(1, 9)]
    for name, part in promises.items():
        files = re.findall(r"`((?:tests|ops|events|statecore|workers|migrations)/[\w/.-]+)(?:::(\w+))?`", part)
        assert any(path.startswith("tests/") for path, _ in files), f"{name} has no test"
        for path, test in files:
            assert (ROOT / path).exists(), f"{name}: there is no {path}"
            if test:
                defined = re.search(rf"^\s*(?:def|class) {test}\b", (ROOT / path).read_text(), re.MULTILINE)
                assert defined, f"{name}: there is no {test} in {path}"


def test_the_bound_of_p6_is_the_one_that_is_tested() -> None:
    """An operator would wait for less, or longer, than what was shown."""
    promised = re.split(r"^## ", PROMISES.read_text(), flags=re.MULTILINE)[6]

    assert promised.startswith("P6 ")
    assert f"Within {LONGEST_RECOVERY_S:g} s" in promised
    assert f"allows {CONVERGE_S:g} s" in promised


# --- the map


def test_the_map_shows_every_folder() -> None:
    """A folder that is not on it is found by nobody, or made a second time."""
    shown = re.findall(
        r"^    (ops|tests)/ ((?:.+\n)(?: {17}.+\n)*)", (ROOT / "ops" / "ARCHITECTURE.md").read_text(), re.MULTILINE
    )

    assert [name for name, _ in shown] == ["ops", "tests"]
    for name, text in shown:
        folders = {each.name for each in (ROOT / name).iterdir() if each.is_dir() and not each.name.startswith("_")}
        folders -= {each for each in folders if each.startswith(".")}
        assert folders <= set(re.findall(r"[a-z]+", text)), f"ops/ARCHITECTURE.md does not show all of {name}/"


def test_a_decision_has_the_number_of_its_file() -> None:
    """Two decisions would be called by one number."""
    for note in (ROOT / "ops" / "decisions").glob("*.md"):
        assert note.read_text().startswith(f"# {note.name[:4]} "), note.name


# --- dashboards


DASHBOARD = ROOT / "ops" / "dashboards" / "statecore.json"


def test_a_dashboard_asks_for_metrics_that_exist() -> None:
    """A panel would stay empty, and look as if nothing had happened."""
    board = orjson.loads(DASHBOARD.read_bytes())
    asked = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    ours = set(re.findall(r"statecore:\w+", asked))
    theirs = set(re.findall(r"fastdeploy:(\w+)", asked))

    assert ours
    assert theirs
    assert ours | theirs <= metrics()


def test_a_dashboard_shows_all_of_a_keeper() -> None:
    """What a keeper tells would be shown nowhere. Left out are what follows from the others, and a duration."""
    asked = set(re.findall(r"[\w:]+", DASHBOARD.read_text()))

    missing = {name for name in metrics() if name.startswith("statecore:") and name not in asked}
    assert missing == {"statecore:keeper_snapshot_position", "statecore:keeper_snapshot_s"}


def test_a_panel_names_runbooks_that_are_there() -> None:
    """The way from the alarm to what helps would end there."""
    board = orjson.loads(DASHBOARD.read_bytes())
    named = {name for panel in board["panels"] for name in re.findall(r"runbook ([a-z-]+)", panel["description"])}

    assert named == {page.stem for page in PAGES} - {"upgrade"}
