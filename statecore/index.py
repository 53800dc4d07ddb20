"""`CacheIndex`: what an engine process embeds.

Owns the calls: what they take, what they check at the door, what they answer. Everything they do is a command handed to
the `Session`; the index itself keeps one thing only, a memo of each live request's block hashes, so that an engine
passes tokens once.

A request's life: `match` begins it (pins what is cached), `allocate` gives it blocks, `extend` puts computed or
scheduled blocks into the tree, `ready` says that their bytes are there, `release` ends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TypeVar

from events.errors import InvalidInput
from events.facts import BLOCK_HASH_BYTES
from events.keys import checked_engine, checked_name
from events.limits import BLOCK_SIZE_MAX, POOL_BLOCKS_MAX, REASON_LENGTH_MAX
from events.ports import Connection
from statecore import commands, door
from statecore.answers import Answers, no_answer
from statecore.hashing import SCHEME, ExtraKey, HashedTokens, Tokens, checked_hashes, token_bytes
from statecore.policy import Policy
from statecore.rejections import UnknownRequest
from statecore.results import Allocation, Extension, Match, TransferState
from statecore.session import Session
from statecore.state import GPU
from statecore.step import Step
from statecore.upkeep import IndexUpkeep

T = TypeVar("T")

_TOKENS_MAX = BLOCK_SIZE_MAX * POOL_BLOCKS_MAX
_TENSOR_PARALLEL_MAX = 1024


class CacheIndex(IndexUpkeep):
    """One engine's door to a shared KV-cache index.

    Read-only questions are in `IndexView`, pools and pauses in `IndexUpkeep`, errors in `statecore.rejections` and
    `events.errors`.
    """

    def __init__(  # noqa: PLR0913 - every setting of an engine, by keyword; most have a default
        self,
        connection: Connection,
        *,
        name: str,
        engine: str,
        gpu_blocks: int | None = None,
        gpu_pool: str | None = None,
        block_size: int = 64,
        tensor_parallel_size: int = 1,
        cpu_blocks: int | None = None,
        cpu_pool: str | None = None,
        policy: Policy | None = None,
        memory_survives: bool = False,
        rejoin_automatically: bool = False,
        follow: bool = True,
    ) -> None:
        """Join the index `name` as `engine`; the first to join creates it.

        Args:
            connection: from `events.connect`.
            name: the index; engines with the same name on the same Redis share it.
            engine: identity of this engine, stable over restarts. A second process with the same identity ends the
                life of the first.
            gpu_blocks: number of blocks of the GPU pool; None to use a pool that exists.
            gpu_pool: its name; default is the engine's own, `gpu:<engine>`. Engines that name the same pool share it.
            block_size: tokens in a block; the same for all engines of an index.
            tensor_parallel_size: ranks that each hold a shard of every block; as many workers copy each block.
            cpu_blocks: number of blocks of the host pool, shared by all engines that name it; 0 or None without
                `cpu_pool`: no second tier.
            cpu_pool: name of the host pool; default "cpu:host" where `cpu_blocks` is given. `cpu_blocks` None: it exists.
            policy: when copies go to the host; default: what the index has; `Policy()` where nobody chose one.
            memory_survives: the GPU pool's bytes outlive a process. If not, a new one forgets what was left in its own pool.
            rejoin_automatically: when this life is over (declared lost, or the log rolled back), the call that finds out
                says so once; the next one begins a new life, in which the requests of the old one are unknown.
            follow: fetch others' commits in the background, on a connection of its own.

        Raises:
            InvalidInput: a size or name is not one.
            Rejection: the index or pool was made with other settings.
            Unavailable: the log cannot be reached.
            CorruptState: the log cannot be read.
        """
        self.name = checked_name(name, "index name")
        self.engine = checked_engine(engine)
        self.gpu_pool = f"gpu:{engine}" if gpu_pool is None else checked_name(gpu_pool, "pool name")
        self.block_size = door.whole(block_size, "block_size", least=1, most=BLOCK_SIZE_MAX)
        if gpu_blocks is not None:
            gpu_blocks = door.whole(gpu_blocks, "gpu_blocks", least=1, most=POOL_BLOCKS_MAX)
        ranks = door.whole(tensor_parallel_size, "tensor_parallel_size", least=1, most=_TENSOR_PARALLEL_MAX)
        if cpu_blocks is not None:
            cpu_blocks = door.whole(cpu_blocks, "cpu_blocks", least=0, most=POOL_BLOCKS_MAX)
        if cpu_pool is None and cpu_blocks:
            cpu_pool = "cpu:host"
        self.cpu_pool = None if cpu_pool is None or cpu_blocks == 0 else checked_name(cpu_pool, "pool name")
        if self.cpu_pool == self.gpu_pool:
            raise InvalidInput(f"gpu_pool and cpu_pool are both {self.gpu_pool!r}; they are two memories")
        if policy is not None and not isinstance(policy, Policy):
            raise InvalidInput(f"policy is a statecore.Policy, not {door.shown(policy)}")
        self._connection = connection  # an embedded server lives as long as somebody holds its connection
        self._log = connection.log(name, follow=follow)
        join = commands.Join(
            engine=engine,
            block_size=self.block_size,
            hash_scheme=SCHEME,
            gpu_pool=self.gpu_pool,
            gpu_blocks=gpu_blocks,
            tensor_parallel_size=ranks,
            cpu_pool=self.cpu_pool,
            cpu_blocks=cpu_blocks or None,
            policy=None if policy is None else policy.fact,
            first_policy=Policy().fact,
            memory_survives=bool(memory_survives),
        )
        self._session = Session(self._log, join, rejoin_automatically=bool(rejoin_automatically))
        self._answers = Answers(engine, self.gpu_pool)
        self._sequences: dict[str, HashedTokens | bytes] = {}
        self._session.join(self._sequences.clear)

    # --- the life of a request --------------------------------------------------------------------------------------

    def match(
        self,
        request: str,
        tokens: Tokens | None = None,
        *,
        hashes: bytes | None = None,
        prompt_tokens: int | None = None,
        salt: bytes = b"",
        adapter: bytes = b"",
        extra: Sequence[ExtraKey] = (),
        limit: int | None = None,
    ) -> Match:
        """Begin a request: pin the longest cached prefix of its prompt, found in this engine's pool.

        Args:
            request: id, unique among this engine's live requests.
            tokens: the prompt; or
            hashes: its full blocks' hashes, joined, made by the caller (then `prompt_tokens` says how long it is).
            salt, adapter, extra: tenant, LoRA adapter, images and the like (see `HashedTokens`).
            limit: use at most so many cached blocks, e.g. to leave one to compute.

        Returns:
            The cached blocks, first in the request's table. A prompt shorter than a block has none.

        Raises:
            RequestExists: it lives already.
        """
        door.request_id(request)
        sequence = self._sequence(tokens, hashes, salt, adapter, extra)
        joined = sequence if isinstance(sequence, bytes) else sequence.hashes
        full = len(joined) // BLOCK_HASH_BYTES * self.block_size
        if isinstance(sequence, HashedTokens):
            if prompt_tokens is not None:
                raise InvalidInput("prompt_tokens goes with hashes; tokens are counted")
            prompt_tokens = sequence.length
        elif prompt_tokens is None:
            prompt_tokens = full
        else:
            prompt_tokens = door.whole(prompt_tokens, "prompt_tokens", least=full, most=_TOKENS_MAX)
        if limit is not None:
            limit = door.whole(limit, "limit", least=0, most=POOL_BLOCKS_MAX)
        command = commands.Match(self.engine, request, joined, prompt_tokens, limit)
        with self._session.step_of_one() as step:
            answer = self._session.perform(command, Match(request), self._answers.match)
            if self.cpu_pool is not None:
                more = commands.BringIn(self.engine, request, joined, limit)
                self._session.perform(more, answer, self._answers.match)
            self._remember(step, request, sequence)
        return answer

    def allocate(self, request: str | None, blocks: int) -> Allocation:
        """Give a request (or the engine itself, None) `blocks` more blocks. Evicts what no request uses, if it must.

        Raises:
            PoolExhausted: not now; NeverFits: not ever; UnknownRequest.
        """
        if request is not None:
            door.request_id(request)
        count = door.whole(blocks, "blocks", least=1, most=POOL_BLOCKS_MAX)
        return self._session.perform(
            commands.Allocate(self.engine, request, count), Allocation(request), self._answers.allocation
        )

    def recycle(self, request: str | None, blocks: Iterable[int], *, tier: str = GPU) -> None:
        """Give private blocks back before the request ends: ids that `allocate` gave and `extend` has not taken.

        Raises:
            ForeignBlocks: one of them is not private to the request; nothing is freed then.
            Sending: a send still reads one of them.
        """
        if request is not None:
            door.request_id(request)
        given = door.block_ids(blocks, POOL_BLOCKS_MAX)
        self._session.perform(commands.Recycle(self.engine, request, given, self._tier(tier)), None, no_answer)

    def extend(
        self,
        request: str,
        tokens: Tokens = (),
        *,
        hashes: bytes = b"",
        blocks: int | None = None,
        ready: bool = False,
    ) -> Extension:
        """Put full blocks of the request's sequence into the tree, over its first private blocks.

        Args:
            tokens: what follows the tokens the index knows of this request (output, or the next part of a prompt); or
            hashes: the same as block hashes, for a request that was matched by hashes.
            blocks: how long the path shall be; default: every full block known. A shorter path than now changes nothing.
            ready: their bytes are there already. Otherwise they are pending: this engine may match them, no other may,
                until `ready` is called or a later step speaks of the request again.

        Returns:
            How long the path is now. It stops short where another engine of the pool is computing the same content.

        Raises:
            PathNotCovered: more blocks than path and private ones; UnknownRequest.
        """
        door.request_id(request)
        sequence = self._continued(request, tokens, hashes)
        joined = sequence if isinstance(sequence, bytes) else sequence.hashes
        if blocks is not None:
            length = door.whole(blocks, "blocks", least=0, most=POOL_BLOCKS_MAX)
            if length * BLOCK_HASH_BYTES > len(joined):
                raise InvalidInput(
                    f"a path of {length} blocks is asked for, the tokens known of request {request!r} fill "
                    f"{len(joined) // BLOCK_HASH_BYTES}"
                )
            joined = joined[: length * BLOCK_HASH_BYTES]
        with self._session.step_of_one() as step:
            answer = self._session.perform(
                commands.Extend(self.engine, request, joined), Extension(request), self._answers.extension
            )
            if ready:
                self._session.perform(commands.MarkReady(self.engine, request), None, no_answer)
            self._remember(step, request, sequence)
        return answer

    def ready(self, request: str, blocks: int | None = None) -> None:
        """The bytes of the request's path, down to `blocks` blocks (default: all of it), are in their blocks.

        Raises:
            PathNotCovered: the path is shorter; UnknownRequest.
        """
        door.request_id(request)
        if blocks is not None:
            blocks = door.whole(blocks, "blocks", least=0, most=POOL_BLOCKS_MAX)
        self._session.perform(commands.MarkReady(self.engine, request, blocks), None, no_answer)

    def release(self, request: str) -> None:
        """End a request: what is cached stays cached, its private blocks are free, nothing of it is pinned.

        Blocks that it put into the tree within the same step, without `ready`, were never computed and go.

        Raises:
            UnknownRequest: never matched, or released before.
        """
        door.request_id(request)
        with self._session.step_of_one() as step:
            self._session.perform(commands.Release(self.engine, request), None, no_answer)
            self._remember(step, request, None)

    def known_tokens(self, request: str) -> int:
        """How many tokens of a request's sequence the index has been given; `extend` goes on after them."""
        known = self._sequences.get(door.request_id(request))
        if known is None:
            raise UnknownRequest(self.engine, request)
        return len(known) // BLOCK_HASH_BYTES * self.block_size if isinstance(known, bytes) else known.length

    # --- transfers --------------------------------------------------------------------------------------------------

    def wait(self, transfer: str, timeout: float) -> TransferState:
        """Wait until a transfer has ended, at most `timeout` seconds; others of this engine go on meanwhile.

        Returns:
            "done", "failed", "cancelled" or "forgotten" with the reason; "under way" when the time was over first. After a
            failed swap-in the request's path ends before what did not come: `table` is shorter, allocate and compute.
            After a forgotten one it may: this engine was away for so long that the log no longer says how it ended.

        Raises:
            UnknownTransfer: never started, or ended too long ago.
        """
        seconds = door.seconds(timeout, "timeout")
        return self._session.wait(door.transfer_id(transfer), seconds)

    def poll(self, transfer: str) -> TransferState:
        """What this replica knows of a transfer, after applying what has arrived."""
        return self._session.poll(door.transfer_id(transfer))

    def cancel(self, transfer: str, reason: str = "cancelled by its engine") -> None:
        """Stop wanting the outcome of a transfer this engine started. Blocks a worker may still write are kept apart.

        Raises:
            UnknownTransfer: not under way, or another engine's.
        """
        why = door.text(reason, "reason", REASON_LENGTH_MAX)
        command = commands.CancelTransfer(self.engine, door.transfer_id(transfer), why)
        self._session.perform(command, None, no_answer)

    # --- several calls, one commit ----------------------------------------------------------------------------------

    def step(self) -> AbstractContextManager[Step]:
        """`with index.step():` — the calls inside become one commit, all or nothing.

        What a call inside refuses can be caught there, and the rest of the step goes on. An error that leaves the block
        undoes the whole step. Answers given inside are provisional, see `statecore/results.py`.

        Raises (at the end of the block):
            StepConflict: an engine of the same pool was faster and an answer no longer holds. Nothing happened.
            OutcomeUnknown: sent, no reply. Call `resolve`.
            Unavailable, CorruptState: nothing happened. SessionOver: this life is over, and with it whatever the step gave.
        """
        return self._session.step()

    def resolve(self) -> bool:
        """After `OutcomeUnknown`: find out. True: the step stands, with the answers given. False: it never happened."""
        return self._session.resolve()

    def rejoin(self) -> None:
        """Begin a new life of this engine; everything of the old one is released and fenced."""
        self._session.join(self._sequences.clear)

    # --- this life ---------------------------------------------------------------------------------------------------

    def refresh(self) -> int:
        """Read the log to its end and return the position there."""
        return self._session.refresh()

    def digest(self) -> str:
        """Digest of the whole index at `position`: equal on every replica at that position."""
        return self._session.digest()

    # --- end --------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """End this life in order: its requests are released, what is cached stays. Questions are answered as before."""
        self._session.leave()

    def close(self) -> None:
        """Leave, and close the log."""
        try:
            self._session.leave()
        finally:
            self._log.close()

    def __enter__(self) -> CacheIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CacheIndex({self.name!r}, engine={self.engine!r}, session={self.session}, position={self.position})"

    # --- inside -----------------------------------------------------------------------------------------------------

    def _continued(self, request: str, tokens: Tokens, hashes: bytes) -> HashedTokens | bytes:
        known = self._sequences.get(request)
        if known is None:
            raise UnknownRequest(self.engine, request)
        if isinstance(known, bytes):
            if token_bytes(tokens):
                raise InvalidInput(f"request {request!r} was matched by hashes; extend it by hashes")
            return checked_hashes(known + checked_hashes(hashes)) if hashes else known
        if hashes:
            raise InvalidInput(f"request {request!r} was matched by tokens; extend it by tokens")
        return known if isinstance(tokens, tuple) and not tokens else known.extend(tokens)

    def _remember(self, step: Step, request: str, sequence: HashedTokens | bytes | None) -> None:
        """Keep the hashes of a live request; goes back with the step."""
        before = self._sequences.get(request)
        if sequence is not before:
            step.memo(lambda: self._set_sequence(request, sequence), lambda: self._set_sequence(request, before))

    def _set_sequence(self, request: str, sequence: HashedTokens | bytes | None) -> None:
        if sequence is None:
            self._sequences.pop(request, None)
        else:
            self._sequences[request] = sequence
