"""Stories: text files that tell what engines did to an index and what happened, run against the real thing.

A story is a list of paragraphs. Comments tell it; then comes a command, `----`, and what happened:

    # Nobody has computed this prompt yet.
    match a r1 tokens=1..8
    ----
    2: a/r1 matches nothing for 8 tokens

What happened is each commit that reached the log (position, then its facts), what a call was refused for, and what a
`show` or a question answered. After every command the log is replayed by a replica of the story's own, its invariants
are checked, and a command that changed nothing must have left its digest as it was; at the end every engine is brought
up to date and must have that replica's digest.

| command                                                        |                                                      |
|----------------------------------------------------------------|------------------------------------------------------|
| join ENGINE [pool=P] [gpu=N] [block_size=4] [as=NAME]           | a process begins to serve as ENGINE; NAME names it    |
|   … [cpu=N] [host=P] [write=POLICY] [low=%] [high=%]            | its host pool, and when copies go there               |
|   … [memory=new]                                               | its GPU memory dies with it                           |
| leave NAME, refresh NAME, rejoin NAME                          |                                                      |
| depose ENGINE REASON                                           | the keeper declares it lost                          |
| match NAME REQUEST tokens=1..8,50..53 [limit=N] [salt=S]       |                                                      |
| allocate NAME REQUEST N; recycle NAME REQUEST 3,4              | REQUEST `-` is the engine itself                     |
| extend NAME REQUEST [tokens=…] [blocks=N] [ready]              |                                                      |
| ready NAME REQUEST [N]; release NAME REQUEST                   |                                                      |
| would_match NAME tokens=…; can_allocate NAME N                 | questions                                            |
| step NAME { … } [meanwhile { … }]                              | calls without NAME, one a line, become one commit    |
| finish TRANSFER; fail TRANSFER REASON                          | a worker reports                                     |
| cancel NAME TRANSFER REASON; poll NAME TRANSFER                |                                                      |
| undo                                                           | inside a step: give it up                            |
| show pools, tree, engines, transfers, request NAME REQUEST     |                                                      |

`meanwhile` runs after the step was decided and before its commit reaches the log: the race, on demand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import attrs

from events import connect
from events.log import EventLog, LogConnection
from events.ports import AppendReply, Base, Commit
from statecore import CacheIndex, HashedTokens, Policy, Rejection
from statecore.hashing import Tokens
from statecore.invariants import violations
from statecore.replica import Replica
from statecore.state import WRITE_BACK
from tests.golden import pictures
from tests.golden.keeper import declare_lost
from tests.golden.workers import Workers

INDEX: Final = "story"
BLOCK_SIZE: Final = 4
RULE: Final = "----"


@attrs.frozen
class Paragraph:
    """A command with the comments before it and what is said to happen."""

    comments: tuple[str, ...]
    command: str
    expected: str


class Abandoned(Exception):
    """A step of the story was given up."""


class RacedLog:
    """A log that lets something happen between a decision and its append."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.before_append: Callable[[], object] | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def append(self, commit: Commit, base: Base) -> AppendReply:
        race, self.before_append = self.before_append, None
        if race is not None:
            race()
        return self._log.append(commit, base)


class RacedConnection:
    """A connection whose logs are `RacedLog`s."""

    def __init__(self, connection: LogConnection) -> None:
        self._connection = connection
        self.last: RacedLog | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def log(self, index: str, *, follow: bool = True) -> RacedLog:
        self.last = RacedLog(self._connection.log(index, follow=follow))
        return self.last


class Story:
    """The processes of a story, their common log, and a replica that watches it."""

    def __init__(self) -> None:
        self._memory = connect("memory://")
        self._connection = RacedConnection(self._memory)
        self._indexes: dict[str, CacheIndex] = {}
        self._logs: dict[str, RacedLog] = {}
        self._watch = self._memory.log(INDEX, follow=False)
        self._replica = Replica()
        self._workers = Workers(self._watch)
        self._tokens_of: dict[bytes, tuple[int, ...]] = {}
        self._salts: dict[tuple[str, str], tuple[bytes, list[int]]] = {}
        self._said: list[str] = []

    # --- running ----------------------------------------------------------------------------------------------------

    def run(self, command: str) -> str:
        """Carry out one command; what happened, in words."""
        self._said = []
        before = self._replica.digest()
        position = self._replica.state.position
        lines = [line.strip() for line in command.splitlines()]
        if lines[0].endswith("{"):
            self._step(lines)
        else:
            self._call(lines[0].split())
        self._see()
        if self._replica.state.position == position:
            assert self._replica.digest() == before
        return "\n".join(self._said) or "nothing changes"

    def finish(self) -> None:
        """Every process, brought up to date, holds the state the log tells."""
        for name, index in self._indexes.items():
            index.refresh()
            assert index.digest() == self._replica.digest(), f"{name} holds another state than the log"
            assert index.inspect(violations) == [], f"{name} is unsound"

    def _see(self) -> None:
        """Follow the log and tell what is new."""
        for entry in self._watch.read(self._replica.state.position):
            self._replica.apply(entry)
            found = violations(self._replica.state)
            assert not found, f"after position {entry.position}: {found}"
            for fact in entry.facts:
                self._workers.note(fact)
            facts = [pictures.fact_in_words(fact) for fact in entry.facts]
            self._said.append(f"{entry.position}: {facts[0]}")
            self._said += [f"{' ' * len(str(entry.position))}  {fact}" for fact in facts[1:]]

    def _step(self, lines: list[str]) -> None:
        name = lines[0].removeprefix("step").removesuffix("{").strip()
        inside, meanwhile = lines[1:-1], []
        assert lines[-1] == "}", f"the step is not closed: {lines[-1]}"
        if "} meanwhile {" in inside:
            cut = inside.index("} meanwhile {")
            inside, meanwhile = inside[:cut], inside[cut + 1 :]
        index = self._indexes[name]
        conflicts = index.conflicts

        def race() -> None:
            for line in meanwhile:
                self._call(line.split())
            self._see()

        self._logs[name].before_append = race if meanwhile else None
        before = index.digest()
        try:
            with index.step():
                for line in inside:
                    verb, *rest = line.split()
                    self._call([verb, name, *rest])
        except Rejection as refused:
            self._said.append(f"refused: {type(refused).__name__}: {refused}")
        except Abandoned:
            assert index.digest() == before, "a step that was given up left a trace"
            self._said.append("the step is given up")
        if index.conflicts > conflicts:
            self._said.append(f"decided again, conflicts: {index.conflicts - conflicts}")
        self._logs[name].before_append = None

    def _call(self, words: list[str]) -> None:
        verb, *rest = words
        options: dict[str, str] = {}
        plain = []
        for word in rest:
            name, equals, value = word.partition("=")
            if equals or word == "ready":
                options[name] = value
            else:
                plain.append(word)
        try:
            getattr(self, f"_do_{verb}")(*plain, **options)
        except Rejection as refused:
            self._said.append(f"refused: {type(refused).__name__}: {refused}")

    # --- commands ---------------------------------------------------------------------------------------------------

    def _do_join(
        self,
        engine: str,
        *,
        pool: str | None = None,
        gpu: str | None = None,
        cpu: str | None = None,
        host: str | None = None,
        block_size: str = "4",
        **named: str,
    ) -> None:
        index = CacheIndex(
            self._connection,  # type: ignore[arg-type]  # a connection that lets others in between
            name=INDEX,
            engine=engine,
            gpu_pool=pool,
            gpu_blocks=None if gpu is None else int(gpu),
            block_size=int(block_size),
            cpu_blocks=None if cpu is None else int(cpu),
            cpu_pool=host,
            memory_survives=named.get("memory") != "new",
            policy=self._policy(cpu is not None, {w: named[w] for w in ("write", "low", "high") if w in named}),
        )
        name = named.get("as", engine)
        assert self._connection.last is not None
        self._indexes[name], self._logs[name] = index, self._connection.last

    def _policy(self, two_tiers: bool, named: dict[str, str]) -> Policy | None:
        """What the story says; for the first engine with a host pool, swap-outs only when blocks are needed."""
        if not named and (not two_tiers or self._indexes):
            return None
        return Policy(named.get("write", WRITE_BACK), int(named.get("low", "0")), int(named.get("high", "0")))

    def _do_leave(self, name: str) -> None:
        self._indexes[name].close()

    def _do_depose(self, engine: str, *reason: str) -> None:
        declare_lost(self._watch, self._replica, engine, " ".join(reason))

    def _do_refresh(self, name: str) -> None:
        self._said.append(f"{name} is at {self._indexes[name].refresh()}")

    def _do_rejoin(self, name: str) -> None:
        self._indexes[name].rejoin()

    def _do_match(self, name: str, request: str, *, tokens: str, limit: str | None = None, salt: str = "") -> None:
        prompt = self._tokens(tokens)
        self._learn(name, request, salt.encode(), prompt)
        answer = self._indexes[name].match(
            request, prompt, limit=None if limit is None else int(limit), salt=salt.encode()
        )
        self._waits(f"{name}/{request}", answer.waits_for)

    def _do_allocate(self, name: str, request: str, blocks: str) -> None:
        answer = self._indexes[name].allocate(None if request == "-" else request, int(blocks))
        self._waits(name if request == "-" else f"{name}/{request}", answer.waits_for)

    def _waits(self, who: str, transfers: Sequence[str]) -> None:
        """After its facts: what the answer tells the caller to wait for."""
        if transfers:
            self._see()
            self._said.append(f"{who} waits for {' '.join(transfers)}")

    def _do_recycle(self, name: str, request: str, blocks: str) -> None:
        self._indexes[name].recycle(None if request == "-" else request, self._tokens(blocks))

    def _do_extend(
        self, name: str, request: str, *, tokens: str = "", blocks: str | None = None, ready: str | None = None
    ) -> None:
        more = self._tokens(tokens) if tokens else []
        if more:
            salt, known = self._salts[name, request]
            self._learn(name, request, salt, [*known, *more])
        self._indexes[name].extend(
            request, more, blocks=None if blocks is None else int(blocks), ready=ready is not None
        )

    def _do_ready(self, name: str, request: str, blocks: str | None = None) -> None:
        self._indexes[name].ready(request, None if blocks is None else int(blocks))

    def _do_release(self, name: str, request: str) -> None:
        self._indexes[name].release(request)

    def _do_would_match(self, name: str, *, tokens: str) -> None:
        self._said.append(f"{name} would match {self._indexes[name].would_match(self._tokens(tokens))} blocks")

    def _do_can_allocate(self, name: str, blocks: str) -> None:
        self._said.append("yes" if self._indexes[name].can_allocate(int(blocks)) else "no")

    def _do_finish(self, transfer: str) -> None:
        self._workers.report(transfer, ok=True)

    def _do_fail(self, transfer: str, *reason: str) -> None:
        self._workers.report(transfer, ok=False, reason=" ".join(reason))

    def _do_cancel(self, name: str, transfer: str, *reason: str) -> None:
        self._indexes[name].cancel(transfer, " ".join(reason))

    def _do_adopt(self, name: str, request: str, blocks: str) -> None:
        self._indexes[name].adopt(request, self._tokens(blocks))

    def _do_send(self, name: str, request: str, blocks: str, receiver: str, to_blocks: str) -> None:
        self._indexes[name].send(request, self._tokens(blocks), receiver, self._tokens(to_blocks))

    def _do_arrival(self, name: str, request: str) -> None:
        known = self._indexes[name].arrival(request)
        self._said.append("nobody has sent it" if known is None else f"{known.transfer} is {known.state}")

    def _do_pause(self, name: str, *reason: str) -> None:
        self._indexes[name].pause(" ".join(reason))

    def _do_resume(self, name: str, *reason: str) -> None:
        self._indexes[name].resume(" ".join(reason))

    def _do_clear(self, name: str, *reason: str) -> None:
        self._indexes[name].clear(" ".join(reason), 0.0)

    def _do_resize(self, name: str, blocks: str) -> None:
        self._indexes[name].resize(int(blocks))

    def _do_poll(self, name: str, transfer: str) -> None:
        known = self._indexes[name].poll(transfer)
        self._said.append(f"{transfer} is {known.state}" + (f": {known.reason}" if known.reason else ""))

    def _do_undo(self, name: str) -> None:
        raise Abandoned(name)

    def _do_show(self, what: str, *rest: str) -> None:
        state = self._replica.state
        pictured: dict[str, Callable[[], list[str]]] = {
            "pools": lambda: pictures.pools(state),
            "tree": lambda: pictures.tree(state, self._tokens_of),
            "transfers": lambda: pictures.transfers(state),
            "engines": lambda: pictures.engines(state),
            "request": lambda: pictures.request(state, *rest),
        }
        self._said += pictured[what]()

    # --- tokens -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _tokens(text: str) -> list[int]:
        """`1..4,9` -> [1, 2, 3, 4, 9]."""
        tokens: list[int] = []
        for span in text.split(","):
            first, _, last = span.partition("..")
            tokens += range(int(first), int(last or first) + 1)
        return tokens

    def _learn(self, name: str, request: str, salt: bytes, tokens: list[int]) -> None:
        """Remember what the hashes of these tokens stand for."""
        self._salts[name, request] = salt, tokens
        prompt: Tokens = tokens
        hashes = HashedTokens.begin(BLOCK_SIZE, salt=salt).extend(prompt).hashes
        for block in range(len(hashes) // 16):
            content = tuple(tokens[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE])
            self._tokens_of[hashes[block * 16 : block * 16 + 16]] = content


# --- files ----------------------------------------------------------------------------------------------------------


def paragraphs(text: str) -> list[Paragraph]:
    """A story's text, cut where a line is empty."""
    found = []
    comments: list[str] = []
    for part in re.split(r"\n\s*\n", text.strip()):
        lines = part.splitlines()
        told = [line for line in lines if line.startswith("#")]
        rest = [line for line in lines if not line.startswith("#")]
        comments += told
        if not rest:
            comments.append("")
            continue
        cut = rest.index(RULE)
        found.append(Paragraph(tuple(comments), "\n".join(rest[:cut]), "\n".join(rest[cut + 1 :])))
        comments = []
    return found


def play(text: str) -> str:
    """The story with what really happens in place of what it says."""
    story = Story()
    told = []
    for paragraph in paragraphs(text):
        happened = story.run(paragraph.command)
        told.append("\n".join([*paragraph.comments, paragraph.command, RULE, happened]))
    story.finish()
    return "\n\n".join(told) + "\n"


def stories(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.txt"))
