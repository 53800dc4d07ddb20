"""One engine as a process of its own: `python -m tests.multiprocess.engine_process '<settings as JSON>'`.

Owns a small scheduler: a few live requests over prompts that share beginnings, in steps as an engine makes them. Talks
to the test in lines of JSON: says `joined`, `progress` after every request, `done` when all are served and released;
then answers each line it is sent with its position and digest, and ends with its standard input.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import attrs

from events import connect
from statecore import CacheIndex
from statecore.rejections import Contended, PoolExhausted, StepConflict

BLOCK_SIZE = 4
LIVE_MAX = 3


@attrs.frozen
class Settings:
    """What the test tells a process.

    Attributes:
        pool, blocks: GPU pool; shared by all that name the same.
        requests: how many to serve; 0 to serve until killed.
        meets: go on, for at most ten times as many, until somebody was faster at least once.
    """

    url: str
    index: str
    engine: str
    pool: str
    blocks: int
    seed: int
    requests: int
    meets: bool = False


def say(event: str, **details: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **details}) + "\n")
    sys.stdout.flush()


def prompt(chance: random.Random) -> list[int]:
    """One of a few conversations, cut somewhere, with an ending of its own: the same in every process by the same seed."""
    conversation = chance.randrange(6)
    shared = [conversation * 1000 + place for place in range(chance.randrange(8, 48))]
    return shared + [chance.randrange(1 << 20) for _ in range(chance.randrange(12))]


class Engine:
    """Serves requests; at least one is live from the first to the last."""

    def __init__(self, index: CacheIndex, seed: int) -> None:
        self._index = index
        self._chance = random.Random(seed)
        self._live: list[str] = []
        self.served = 0
        self.reused = 0
        self.refused = 0

    def serve_one(self) -> None:
        if len(self._live) >= LIVE_MAX or (len(self._live) > 1 and self._chance.random() < 0.4):
            self._index.release(self._live.pop(0))
        request = f"request-{self.served}"
        tokens = prompt(self._chance)
        while not self._begin(request, tokens):
            self._make_room()
        self._live.append(request)
        self._decode(request)
        self.served += 1

    def _begin(self, request: str, tokens: list[int]) -> bool:
        """Match, allocate and put the prompt into the tree, as one step; False if it did not happen."""
        try:
            with self._index.step():
                match = self._index.match(request, tokens, limit=(len(tokens) - 1) // BLOCK_SIZE)
                self._index.allocate(request, -(-len(tokens) // BLOCK_SIZE) - len(match.blocks))
                self._index.extend(request)
        except (PoolExhausted, StepConflict, Contended):
            self.refused += 1
            return False
        self._index.ready(request)
        self.reused += match.tokens
        return True

    def _make_room(self) -> None:
        if len(self._live) > 1:
            self._index.release(self._live.pop(0))

    def _decode(self, request: str) -> None:
        for _ in range(self._chance.randrange(3)):
            try:
                self._index.allocate(request, 1)
            except (PoolExhausted, Contended):
                self.refused += 1
                return
            self._index.extend(request, [self._chance.randrange(1 << 20) for _ in range(BLOCK_SIZE)], ready=True)

    def release_all(self) -> None:
        while self._live:
            self._index.release(self._live.pop())


def main(settings: Settings) -> None:
    with connect(settings.url) as connection:
        index = CacheIndex(
            connection,
            name=settings.index,
            engine=settings.engine,
            gpu_pool=settings.pool,
            gpu_blocks=settings.blocks,
            block_size=BLOCK_SIZE,
        )
        joining = index.conflicts  # with others that join: whose pool is whose has no part in it
        say("joined", session=index.session)
        engine = Engine(index, settings.seed)

        def wanted() -> int:
            unmet = settings.meets and index.conflicts == joining
            return settings.requests * 10 if unmet else settings.requests

        while not settings.requests or engine.served < wanted():
            engine.serve_one()
            say("progress", served=engine.served)
        engine.release_all()
        say(
            "done",
            reused=engine.reused,
            commits=index.commits,
            conflicts=index.conflicts - joining,
            refused=engine.refused,
        )
        for _line in sys.stdin:
            say("state", position=index.refresh(), digest=index.digest(), session=index.session)


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])))
