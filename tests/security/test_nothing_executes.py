"""No shipped module can turn what it reads into code: nothing that unpickles, evaluates, or builds objects by name.

Owns the rule, as a walk of the syntax trees. What may import a module by name, because a person configured it, stands in a
list with its reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = ("events", "statecore", "workers", "migrations", "ops")
MODULES: Final = frozenset(
    {
        *(
            "pickle",
            "_pickle",
            "cPickle",
            "cloudpickle",
            "dill",
            "joblib",
            "shelve",
            "marshal",
            "copyreg",
            "jsonpickle",
        ),
        *("yaml", "ruamel", "code", "codeop", "runpy", "imp", "xmlrpc"),
        *("multiprocessing.connection.Client", "multiprocessing.connection.Listener", "multiprocessing.managers"),
    }
)
"""What reads objects or code out of bytes. Pipes between a process and its own children (`Connection`) may."""
CALLS: Final = frozenset({"eval", "exec", "compile", "__import__", "literal_eval", "system", "popen"})
FALSE_ONLY: Final = frozenset({"shell", "allow_pickle"})
BY_NAME: Final = {
    "workers/stores.py": "a store of one's own, named on the command line of the worker (module:Class)",
    "workers/cuda_memory.py": "the bindings of CUDA, named by the callers in that file",
    "ops/cli/group.py": "the module of a command, from the table in that file",
}
"""Who may import a module by a name that is not written there. It never comes from Redis."""


def offences(path: str, source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source, path)):
        found: Iterator[str] = iter(())
        match node:
            case ast.Import(names=names):
                found = (f"imports {alias.name}" for alias in names if _is_of(alias.name))
            case ast.ImportFrom(module=str(module), names=names):
                imported = [f"{module}.{alias.name}" for alias in names]
                found = (f"imports {name}" for name in imported if _is_of(name))
            case ast.Call():
                found = _of_call(path, node)
            case _:
                pass
        for what in found:
            yield f"{path}:{node.lineno}: {what}"  # type: ignore[attr-defined]  # all of them have a line


def _of_call(path: str, call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    if last in CALLS and name != "re.compile":
        yield f"calls {name}"
    constant = call.args and isinstance(call.args[0], ast.Constant)
    if last == "import_module" and not constant and path not in BY_NAME:
        yield f"calls {name} with a name that is not written here"
    for keyword in call.keywords:
        if keyword.arg in FALSE_ONLY and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
            yield f"{name}({keyword.arg}=…)"


def _is_of(module: str) -> bool:
    return any(f"{module}.".startswith(f"{each}.") for each in MODULES)


def test_no_shipped_module_executes_what_it_reads() -> None:
    """Otherwise whoever can write to the log, or hand over a file, could run code in every engine.

    Given all shipped modules, then none imports or calls what turns bytes into code or objects.
    """
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 150
    assert {path.relative_to(ROOT).as_posix() for path in files} >= BY_NAME.keys()

    found = [offence for path in files for offence in offences(path.relative_to(ROOT).as_posix(), path.read_text())]

    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import yaml", "import marshal as m", "def f():\n  import dill",
        "from ruamel.yaml import YAML", "from multiprocessing.connection import Client", "eval('1')", "exec(x)",
        "compile(x, '', 'exec')", "builtins.eval(x)", "ast.literal_eval(x)", "__import__('os')", "os.system('ls')",
        "importlib.import_module(name)", "subprocess.run(x, shell=True)", "subprocess.run(x, shell=flag)",
        "np.load(f, allow_pickle=True)",
    ],
)  # fmt: skip
def test_the_rule_sees(source: str) -> None:
    """A rule that cannot be broken proves nothing."""
    assert len(list(offences("ops/a.py", source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "re.compile('x')",
        "import_module('cuda')",
        "orjson.loads(x)",
        "subprocess.run(x, shell=False)",
        "import json",
        "import decode",
    ],
)
def test_the_rule_allows(source: str) -> None:
    """A rule that refuses what is harmless is switched off sooner or later."""
    assert list(offences("ops/a.py", source)) == []
