"""What moved between the tiers, read off the log: who computed a block, and who reused it.

Owns the account of transfers. Follows every block's origin, the engine that computed it, through swap-outs and
swap-ins, so that "reused from the host, computed by another engine" is counted from facts and not from anybody's word.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from events.facts import BlockRanges, EngineJoined, Fact, PathExtended, PoolAdded, TransferFinished, TransferStarted
from statecore import ranges
from statecore.state import SWAP_IN, State

_NOBODY = -1


class Movements:
    """Fed with the facts of a log, in order.

    Attributes:
        swap_ins, swap_outs: transfers that ended well; a write-through is a swap-out whose source stays.
        failed: transfers that did not.
        moved_blocks: of those that did.
        rescues: swap-outs whose blocks were used again before they were gone.
        host_tokens: that came from the host for a request.
        cross_engine_tokens: of these, computed by another engine than the one that reused them.
    """

    def __init__(self) -> None:
        self.swap_ins = 0
        self.swap_outs = 0
        self.failed = 0
        self.moved_blocks = 0
        self.rescues = 0
        self.host_tokens = 0
        self.cross_engine_tokens = 0
        self._engines: dict[str, int] = {}
        self._gpu_pools: dict[str, str] = {}
        self._origins: dict[str, npt.NDArray[np.int32]] = {}
        self._under_way: dict[str, tuple[TransferStarted, npt.NDArray[np.int32]]] = {}
        self._rescued_blocks = 0

    def note(self, facts: tuple[Fact, ...], after: State) -> None:
        """`after`: the state with these facts."""
        for fact in facts:
            match fact:
                case PathExtended():
                    self._write(self._gpu_pools[fact.engine], fact.adopted, self._engines[fact.engine])
                case TransferStarted():
                    self._under_way[fact.transfer] = (fact, self._read(fact.source, fact.source_blocks))
                case TransferFinished():
                    self._finished(fact, after)
                case PoolAdded():
                    self._origins[fact.pool] = np.full(fact.blocks, _NOBODY, dtype=np.int32)
                case EngineJoined():
                    self._engines.setdefault(fact.engine, len(self._engines))
                    self._gpu_pools[fact.engine] = fact.gpu_pool
                case _:
                    pass

    def _finished(self, fact: TransferFinished, after: State) -> None:
        started, origins = self._under_way.pop(fact.transfer, (None, None))
        if started is None or origins is None:
            return
        if not fact.ok:
            self.failed += 1
            return
        self._write(started.destination, started.destination_blocks, origins)
        self.moved_blocks += len(origins)
        if started.kind == SWAP_IN:
            self.swap_ins += 1
            self.host_tokens += len(origins) * after.block_size
            others = int(np.count_nonzero(origins != self._engines[started.engine]))
            self.cross_engine_tokens += others * after.block_size
        else:
            self.swap_outs += 1
            rescued = sum(pool.rescued for pool in after.pools.values())
            self.rescues += rescued > self._rescued_blocks
            self._rescued_blocks = rescued

    def _read(self, pool: str, blocks: BlockRanges) -> npt.NDArray[np.int32]:
        return self._origins[pool][ranges.ids(blocks)]

    def _write(self, pool: str, blocks: BlockRanges, origins: npt.NDArray[np.int32] | int) -> None:
        if blocks:
            self._origins[pool][ranges.ids(blocks)] = origins
