"""One engine at work: steps of the scheduler, the model behind it, the checker after it, until every request has ended.

Owns the loop, its bounds, and which clients go away when. A violation ends the loop at once: what came after it would only
repeat it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

import attrs

from events.errors import InvalidInput
from ops.demo.contents import NO_CONTENTS, Contents
from ops.demo.drive import drain
from ops.examples.fastdeploy.checker import Checked, Checker
from ops.examples.fastdeploy.manager import Manager
from ops.examples.fastdeploy.model import Computed, Model
from ops.examples.fastdeploy.scheduler import Batch, Counts, Scheduler
from ops.examples.fastdeploy.settings import Settings
from ops.examples.fastdeploy.task import Task
from statecore import CacheIndex, Rejection

STARVED_S: Final = 60.0
"""Without a batch for so long, something holds blocks that will never let go."""

IDLE_S: Final = 0.002
"""What an idle step lasts: blocks are on their way to the host, or the other engine is behind in the trace."""


class Starved(Exception):
    """The engine got nowhere for too long."""


@attrs.frozen
class Tokens:
    """Prompt tokens of all matches, by the facts in the log: how many were asked for, and where they were found."""

    asked: int = 0
    from_gpu: int = 0
    from_host: int = 0


@attrs.frozen
class Served:
    """What one engine did. `put_off_commits`: log entries appended while a waiting request did not fit; must be none."""

    counts: Counts
    computed: Computed
    checked: Checked
    tokens: Tokens
    violations: tuple[str, ...]
    steps: int
    put_off_commits: int
    seconds: float
    commits: int
    conflicts: int
    free_blocks: int
    cached_blocks: int
    gpu_blocks: int


class Aborts:
    """Which clients go away: one of every `every`, in turn before its request begins, in its prompt, in its output."""

    def __init__(self, every: int) -> None:
        self._every = every

    def due(self, waiting: Iterable[Task], running: Iterable[Task]) -> list[str]:
        """Requests to be aborted now."""
        if not self._every:
            return []
        gone = [task for task in waiting if self._stage(task) == 0 and not task.preemptions]
        gone += [task for task in running if self._stage(task) == 1]
        gone += [
            task for task in running if self._stage(task) == 2 and len(task.output_token_ids) * 2 > task.max_tokens
        ]
        return [task.request_id for task in gone]

    def _stage(self, task: Task) -> int | None:
        turn, chosen = divmod(task.number, self._every)
        return turn % 3 if chosen == self._every - 1 else None


class Serving:
    """An engine between its first request and its last."""

    def __init__(
        self,
        manager: Manager,
        index: CacheIndex,
        settings: Settings,
        tasks: Iterable[Task],
        *,
        contents: Contents = NO_CONTENTS,
        abort_every: int = 0,
        is_due: Callable[[int], bool] = lambda _number: True,
    ) -> None:
        self.scheduler = Scheduler(manager, settings, fits=index.can_allocate, is_due=is_due)
        for task in tasks:
            self.scheduler.add(task)
        self.model = Model(settings, contents)
        self.checker = Checker(manager, index, settings, self.model.hashes)
        self.violations: list[str] = []
        self.steps = 0
        self._index = index
        self._aborts = Aborts(abort_every)
        self._put_off_commits = 0

    def run(self, after_step: Callable[[], None] = lambda: None) -> Served:
        """
        Raises:
            Starved: see the module.
            Unavailable, CorruptState: as the manager.
        """
        began = progressed = time.monotonic()
        while (self.scheduler.running or self.scheduler.waiting) and not self.violations:
            batch = self.step()
            after_step()
            if not batch.idle:
                progressed = time.monotonic()
                continue
            if time.monotonic() - progressed > STARVED_S:
                raise Starved(self._needs())
            time.sleep(IDLE_S)
            self._index.refresh()
        seconds = time.monotonic() - began
        return self._report(seconds)

    def step(self) -> Batch:
        """Schedule, check, run, finish, check. A call that the manager refuses is a violation, whoever is to blame."""
        try:
            return self._step()
        except (InvalidInput, Rejection) as refused:
            self.violations.append(f"the manager refused a call of the scheduler: {type(refused).__name__}: {refused}")
            return Batch()

    def _step(self) -> Batch:
        scheduler = self.scheduler
        for request_id in self._aborts.due(list(scheduler.waiting)[:1], scheduler.running):
            scheduler.abort(request_id)
        commits, put_off = self._index.commits, scheduler.counts.put_off
        batch = scheduler.schedule()
        if batch.idle and scheduler.counts.put_off > put_off:
            self._put_off_commits += self._index.commits - commits
        self.violations += self.checker.after_schedule(scheduler.running, scheduler.waiting, batch)
        if self.violations:
            return batch
        self.steps += not batch.idle
        ended = self.model.run(batch)
        scheduler.confirm(batch)
        for task in ended:
            scheduler.finish(task)
        for task in (*ended, *batch.aborted, *batch.refused):
            self.model.forget(task)
        if ended:
            self.violations += self.checker.now(scheduler.running, scheduler.waiting)
        if self.model.computed.mismatches:
            self.violations.append(f"{self.model.computed.mismatches} reused blocks held something else")
        return batch

    def _report(self, seconds: float) -> Served:
        index = self._index
        if not self.violations:
            if left := drain(index):
                self.violations.append(f"{left} transfers never ended")
            index.refresh()
            self.violations += self.checker.at_end()
        asked, matched, host = index.inspect(
            lambda state: (
                (engine := state.engines[index.engine]).prompt_tokens,
                engine.matched_tokens,
                engine.host_tokens,
            )
        )
        return Served(
            counts=self.scheduler.counts,
            computed=self.model.computed,
            checked=self.checker.checked,
            tokens=Tokens(asked, matched - host, host),
            violations=tuple(self.violations),
            steps=self.steps,
            put_off_commits=self._put_off_commits,
            seconds=seconds,
            commits=index.commits,
            conflicts=index.conflicts,
            free_blocks=index.free_blocks,
            cached_blocks=index.cached_blocks,
            gpu_blocks=self.scheduler.manager.num_gpu_blocks,
        )

    def _needs(self) -> str:
        scheduler, index = self.scheduler, self._index
        return (
            f"{len(scheduler.running)} running and {len(scheduler.waiting)} waiting requests got nowhere "
            f"for {STARVED_S:.0f} s; pool {index.gpu_pool!r} has {index.free_blocks} free and "
            f"{index.cached_blocks} cached blocks"
        )
