"""An engine of the last release of schema 2, as a process: `python -m tests.multiprocess.old_release URL INDEX`.

Owns the pretence: this release's code with that one's number and fields of the facts, both ways. What it does when it meets
what it cannot read is what the code does. Takes one call a line (`match REQUEST`), says one line of JSON for each: how it
went, in which position it is; ends with its standard input.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from operator import attrgetter
from typing import Any

import attrs

from events import codec, connect
from events.errors import StateCoreError
from events.facts import EngineJoined, EngineLost
from migrations.facts_2_to_3 import MEMORY_SURVIVES, REASON
from statecore import CacheIndex


def become_schema_2() -> None:
    """Without the last field of the two facts that schema 3 lengthened."""
    setattr(codec, "SCHEMA", 2)  # noqa: B010 - a constant, for everybody but a release of the past
    added: dict[Any, object] = {EngineJoined: MEMORY_SURVIVES, EngineLost: REASON}
    for fact, value in added.items():
        now = codec._SPECS[fact.__name__]
        names = now.names[:-1]
        made: Any = partial(_made, fact, value)
        then = attrs.evolve(now, fact=made, names=names, types=now.types[:-1], values=attrgetter(*names))
        codec._SPECS[fact.__name__] = codec._SPECS_BY_TYPE[fact] = then


def _made(fact: Any, added: object, *fields: object) -> object:
    return fact(*fields, added)


def say(**said: object) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def main(url: str, index: str) -> None:
    become_schema_2()
    with connect(url) as connection:
        engine = CacheIndex(
            connection, name=index, engine="old", gpu_pool="old", gpu_blocks=8, block_size=4, follow=False
        )
        say(joined=engine.session)
        for line in sys.stdin:
            call, _, request = line.strip().partition(" ")
            try:
                if call == "match":
                    engine.match(request, [1, 2, 3, 4])
                else:
                    engine.refresh()
                say(done=call)
            except StateCoreError as error:
                say(refused=type(error).__name__, why=str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
