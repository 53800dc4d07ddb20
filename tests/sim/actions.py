"""What engines do: every call of the index, right and wrong, alone and in steps, and the lives around them.

Owns the choice of the next action and its arguments. Prompts are drawn from a small alphabet, so that sharing, splits,
duplicates, conflicts and eviction happen all the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from events.errors import OutcomeUnknown
from statecore.hashing import HashedTokens
from statecore.results import Allocation, Extension, Match
from tests.sim.accounts import Intent, require
from tests.sim.model import BLOCK_SIZE_OF_ALL, Abandoned, Held, Model
from tests.sim.tier_actions import TierActions, nothing

if TYPE_CHECKING:
    pass

STEMS = ((0, 0, 0, 0, 0, 0, 0, 0), (0, 0, 1, 1, 0, 0, 1, 1), (0, 0, 0, 1, 2, 2, 2, 2), (1, 0, 1, 0, 1, 0, 1, 0))
NAMES = tuple(f"r{number}" for number in range(6))


def tokens_of(symbols: list[int]) -> list[int]:
    return [symbol + 1 for symbol in symbols for _ in range(BLOCK_SIZE_OF_ALL)]


class Actions(TierActions):
    """The calls of one process."""

    def one(self) -> None:
        """One call with arguments that make sense, mostly."""
        live = list(self.process.model.requests)
        tiers = bool(self.process.slot.host)
        options: list[tuple[int, Callable[[], object]]] = [(24 if len(live) < 4 else 6, self.match)]
        if live:
            options += [
                (20 if not tiers else 8, self.extend),
                (16 if not tiers else 8, self.allocate),
                (8, self.ready),
                (16 if not tiers else 26, self.release),
                (4, self.recycle),
            ]
        options += [(2, self.hold), (4, self.give_back), (7 if not tiers else 3, self.wrong), (2, self.ask)]
        options += [(10 if not tiers else 30, self.serve), (4, self.double)]
        if tiers:
            options += [(16, self.look), (16, self.go_on), (6, self.cancel), (12, self.fetch_in_parts)]
        if self.index.paused:
            options.append((60, self.resume))
        self.choices.weighted(options)()

    # --- right ------------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """A request as far as its path, as schedulers do it; perhaps a second one with the same beginning."""
        process = self.process
        longer = self._symbols(3 + self.choices.draw(5)) if process.slot.host and self.choices.chance(50) else None
        for number in range(1 + self.choices.draw(2)):
            name = self.match(longer if number or longer is None else longer[: 1 + self.choices.draw(len(longer))])
            held = process.model.requests.get(name)
            if held is None or not process.usable:
                return
            missing = held.sequence.blocks - len(held.table)
            if held.waits and not self.choices.chance(20):
                continue
            if missing > 0:
                self._allocate(name, missing)
            if process.usable and name in process.model.requests:  # type: ignore[redundant-expr]  # calls in between change it
                self.extend(name)

    def fetch_in_parts(self) -> None:
        """A prompt that the host holds: first its beginning, then a request that wants more of it."""
        ledger, engine = self.world.ledger, self.process.engine
        found = []
        for stem in STEMS:
            hashes = HashedTokens.begin(BLOCK_SIZE_OF_ALL).extend(tokens_of(list(stem))).hashes
            depth = ledger.longest(engine, hashes, None)[0] if self.process.alive_in_log() else 0
            if self.process.alive_in_log() and ledger.fetchable(engine, hashes, depth) > 1:
                found.append((list(stem), depth))
        if not found:
            self.serve()
            return
        symbols, depth = self.choices.one_of(found)
        self.match(symbols[: depth + 1])
        if self.process.usable:
            self.process.rush = True  # the first may come, or fail, before the second is asked for
            self.match(symbols)
            self.process.rush = False

    def match(self, symbols: list[int] | None = None) -> str:
        process, choices = self.process, self.choices
        name = choices.one_of([name for name in NAMES if name not in process.model.requests] or list(NAMES))
        symbols = self._symbols(1 + choices.draw(7)) if symbols is None else symbols
        tokens = tokens_of(symbols) + [9] * choices.draw(BLOCK_SIZE_OF_ALL)
        limit = choices.draw(5) if choices.chance(10) else None
        salt = b"tenant" if choices.chance(4) else b""
        by_hashes = not salt and choices.chance(25)
        sequence = HashedTokens.begin(BLOCK_SIZE_OF_ALL, salt=salt).extend(tokens)
        told = f"{'hashes' if by_hashes else 'tokens'} {''.join(map(str, symbols))}{salt.decode()}"
        self._match(name, sequence, None if by_hashes else tokens, salt, limit, told)
        return name

    def _match(
        self,
        name: str,
        sequence: HashedTokens,
        tokens: list[int] | None,
        salt: bytes = b"",
        limit: int | None = None,
        told: str = "",
    ) -> None:
        process = self.process

        def do() -> Match:
            process.intents.append(Intent(sequence.hashes, limit))
            try:
                if tokens is None:
                    return self.index.match(name, hashes=sequence.hashes, prompt_tokens=sequence.length, limit=limit)
                return self.index.match(name, tokens, salt=salt, limit=limit)
            except OutcomeUnknown:
                raise
            except Exception:
                process.intents.pop()
                raise

        def update(model: Model, answer: Match | None) -> None:
            blocks = [] if answer is None else list(answer.blocks)
            waits = () if answer is None else answer.waits_for
            model.requests[name] = Held(sequence, tokens is None, blocks, len(blocks), len(blocks), waits)
            if answer is not None:
                require(answer.tokens == len(blocks) * BLOCK_SIZE_OF_ALL, "tokens are those of the blocks", answer)

        process.call(f"match({name}, {told}, limit={limit})", do, update)

    def double(self) -> None:
        """While one request has computed blocks that the tree has not, another with the same prompt is scheduled."""
        process = self.process
        computed = [
            name
            for name, held in process.model.requests.items()
            if not held.waits and held.path < held.sequence.blocks <= len(held.table)
        ]
        spare = [name for name in NAMES if name not in process.model.requests]
        if not computed or not spare:
            self.serve()
        elif process.stepping:
            self._double(self.choices.one_of(computed), spare[0])
        else:
            name = self.choices.one_of(computed)
            process.step(lambda _: self._double(name, spare[0]))

    def _double(self, first: str, second: str) -> None:
        requests = self.process.model.requests
        if first not in requests:
            return
        self._match(second, requests[first].sequence, None, told=f"like {first}")
        requests = self.process.model.requests  # told anew after each call of a step
        if second in requests and (missing := requests[second].sequence.blocks - len(requests[second].table)) > 0:
            self._allocate(second, missing)
        for name in (second, first):
            if name in self.process.model.requests:
                self.extend(name, whole=name == first)

    def allocate(self) -> None:
        name, held = self._live()
        missing = held.sequence.blocks - len(held.table)
        self._allocate(name, missing if missing > 0 and not self.choices.chance(30) else 1 + self.choices.draw(3))

    def hold(self) -> None:
        self._allocate(None, 1 + self.choices.draw(3))

    def _allocate(self, name: str | None, blocks: int) -> None:
        def update(model: Model, answer: Allocation | None) -> None:
            if answer is None:
                return
            if not answer.blocks:
                require(bool(answer.waits_for), "who is told to ask again is told after what", answer)
                self.world.marks["allocate: not yet"] += 1
                return
            require(len(answer.blocks) == blocks, "as many blocks are given as were asked", (answer, blocks))
            taken = self._taken_by_others(model, answer.blocks)
            require(not taken, "what is given belongs to nobody else", (answer, taken))
            if name is None:
                model.held += answer.blocks
            else:
                model.requests[name].table += answer.blocks

        self.process.call(f"allocate({name}, {blocks})", lambda: self.index.allocate(name, blocks), update, of=name)

    def _taken_by_others(self, model: Model, blocks: list[int]) -> set[int]:
        mine = set(model.held)
        for held in model.requests.values():
            mine.update(held.table[held.begin :] if held.waits else held.table)  # a path that waits may have been cut
        return mine & set(blocks)

    def extend(self, name: str | None = None, *, whole: bool = False, blocks: int | None = None) -> None:
        """`whole`: all that is known, and it is ready. `blocks`: so far, and not as chance has it."""
        process, choices = self.process, self.choices
        name, held = self._live() if name is None else (name, process.model.requests[name])
        room = len(held.private)
        more: list[int] = []
        if not whole and held.sequence.blocks <= held.path + choices.draw(2) and room:
            more = tokens_of(self._symbols(room, choices.chance(50)))
            more = more[: 1 + choices.draw(len(more))] if choices.chance(20) else more
        sequence = held.sequence.extend(more)
        if whole or blocks is not None:
            pass
        elif sequence.blocks > held.path + room and not choices.chance(15):
            blocks = held.path + choices.draw(room + 1)
        elif choices.chance(20):
            blocks = choices.draw(sequence.blocks + 1)
        ready = (whole or choices.chance(30)) and self.compute_all(name, held, sequence, blocks)

        def do() -> Extension:
            if ready:
                process.said_ready.add(name)
            if held.by_hashes:
                added = sequence.hashes[len(held.sequence.hashes) :]
                return self.index.extend(name, hashes=added, blocks=blocks, ready=ready)
            return self.index.extend(name, more, blocks=blocks, ready=ready)

        def update(model: Model, answer: Extension | None) -> None:
            model.requests[name].sequence = sequence
            if answer is not None:
                known = model.requests[name]
                require(answer.path_blocks >= known.path or bool(known.waits), "a path does not get shorter", answer)
                known.path = answer.path_blocks
                self.world.marks["a failed swap-in answered by computing"] += 0 < known.was <= known.path

        process.call(f"extend({name}, {more}, blocks={blocks}, ready={ready})", do, update, of=name)

    def ready(self) -> None:
        name, held = self._live()
        depth = self.choices.draw(held.path + 1) if self.choices.chance(50) else None
        if self.process.stepping:  # what this step schedules is not computed yet
            before = self.process.before.requests.get(name)
            known = 0 if before is None or before.life is not held.life else min(before.path, held.path)
            depth = known if depth is None else min(depth, known)
        self.process.said_ready.add(name)
        self.process.call(f"ready({name}, {depth})", lambda: self.index.ready(name, depth), nothing, of=name)

    def release(self) -> None:
        self.release_one(self._live()[0])

    def recycle(self) -> None:
        name, held = self._live()
        if held.private:
            count = 1 + self.choices.draw(len(held.private))
            self._recycle(name, held.private[-count:] if self.choices.chance(80) else held.private[:count])

    def take_and_give_back(self) -> None:
        self._allocate(None, 1)
        if self.process.model.held and self.process.usable:
            self._recycle(None, self.process.model.held[:1])

    def give_back(self) -> None:
        if self.process.model.held:
            self._recycle(None, self.process.model.held[: 1 + self.choices.draw(3)])

    def _recycle(self, name: str | None, blocks: list[int]) -> None:
        def update(model: Model, _: Any) -> None:
            if name is None:
                model.held = [block for block in model.held if block not in blocks]
            else:
                request = model.requests[name]
                kept = [block for block in request.private if block not in blocks]
                request.table = request.table[: request.path] + kept  # a path that was cut may name one of them still

        self.process.computed()  # nothing is written any more into what is given back
        self.process.call(f"recycle({name}, {blocks})", lambda: self.index.recycle(name, blocks), update, of=name)

    def ask(self) -> None:
        """Questions change nothing and are answered by what this replica knows."""
        index, known = self.index, self.world.past.get(self.process.base().commit_id)
        hashes = HashedTokens.begin(BLOCK_SIZE_OF_ALL).extend(tokens_of(self._symbols(6))).hashes
        found = index.would_match(hashes=hashes)
        self.world.tell(f"{self.process.name}:   would_match -> {found}")
        self.world.marks["would_match"] += 1
        if known is not None and self.process.engine in known.engines and not self.process.busy:
            depth, _ = known.longest(self.process.engine, hashes, None)
            depth += known.fetchable(self.process.engine, hashes, depth)
            require(found == depth, "a question is answered truly", (found, depth))
            pool = known.pools[self.process.pool]
            room = len(pool.free) + known.idle(self.process.pool)
            require(index.free_blocks == len(pool.free), "free blocks are told truly")
            require(index.cached_blocks == known.idle(self.process.pool), "cached blocks are told truly")
            require(index.can_allocate(room) and not index.can_allocate(room + 1), "room is told truly", room)

    # --- wrong ------------------------------------------------------------------------------------------------------

    def wrong(self) -> None:
        """A call that must be refused and change nothing. A success is a violation."""
        index, choices, process = self.index, self.choices, self.process
        live = list(process.model.requests)
        name = choices.one_of(live) if live else None
        calls: list[tuple[str, Callable[[], object]]] = [
            ("release(nobody)", lambda: index.release("nobody")),
            ("allocate(nobody)", lambda: index.allocate("nobody", 1)),
            ("extend(nobody)", lambda: index.extend("nobody", [1, 1])),
            ("ready(nobody)", lambda: index.ready("nobody")),
            ("recycle(nobody)", lambda: index.recycle("nobody", [0])),
            ("allocate(None, 0)", lambda: index.allocate(None, 0)),
            ("allocate(None, -1)", lambda: index.allocate(None, -1)),
            ("allocate(None, all + 1)", lambda: index.allocate(None, process.pool_blocks + 1)),
            ("recycle(None, foreign)", lambda: index.recycle(None, [process.pool_blocks + 3])),
            ("match without prompt", lambda: index.match("new")),
            ("match('')", lambda: index.match("", [1, 2])),
            ("match with torn hashes", lambda: index.match("new", hashes=b"torn")),
            ("cancel(nothing)", lambda: index.cancel("e0:9999")),
            ("poll(nothing)", lambda: index.poll("e0:9999")),
            ("poll('')", lambda: index.poll("")),
        ]
        if process.model.held or any(held.table and not held.waits for held in process.model.requests.values()):
            calls.append(("allocate(None, all)", lambda: index.allocate(None, process.pool_blocks)))
        if name is not None:
            held = process.model.requests[name]
            calls += [
                (f"match({name}) again", lambda: index.match(name, [1, 1])),
                (f"ready({name}) too far", lambda: index.ready(name, held.path + 1)),
                (f"extend({name}) beyond", lambda: index.extend(name, blocks=held.sequence.blocks + 1)),
                (f"recycle({name}, twice)", lambda: index.recycle(name, [5, 5])),
            ]
            if held.path:
                calls.append((f"recycle({name}, path)", lambda: index.recycle(name, held.table[: held.path])))
            if not held.by_hashes:
                far = [7] * (BLOCK_SIZE_OF_ALL * (len(held.table) + 1))
                calls.append((f"extend({name}) over nothing", lambda: index.extend(name, far)))
                calls.append((f"extend({name}) by hashes", lambda: index.extend(name, hashes=bytes(16))))
            else:
                calls.append((f"extend({name}) by tokens", lambda: index.extend(name, [1, 2])))
        title, do = choices.one_of(calls)

        def refused() -> None:
            do()
            require(process.over, "what is wrong is refused", title)

        self.process.call(title, refused, nothing, of=name)

    # --- steps ------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        def body(_: object) -> None:
            for _ in range(1 + self.choices.draw(5)):
                if self.choices.chance(12):
                    self.story.interlude(self.process)
                if self.choices.chance(6):
                    with self.index.step():
                        self.one()
                else:
                    self.one()
            if self.choices.chance(5):
                raise Abandoned

        self.process.step(body)

    # --- arguments --------------------------------------------------------------------------------------------------

    def _live(self) -> tuple[str, Held]:
        name = self.choices.one_of(list(self.process.model.requests))
        return name, self.process.model.requests[name]

    def _symbols(self, blocks: int, stem: bool = True) -> list[int]:
        """Block contents: a stem that many share, then perhaps another way."""
        if not stem:
            return [self.choices.draw(3) for _ in range(blocks)]
        chosen = list(self.choices.one_of(STEMS)[:blocks])
        if self.choices.chance(25 if self.process.slot.host else 40):
            fork = self.choices.draw(blocks + 1)
            chosen[fork:] = [self.choices.draw(3) for _ in range(len(chosen) - fork)]
        return chosen
