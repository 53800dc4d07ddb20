"""Every bound and every timeout, each with its reason. No number of this kind stands anywhere else."""

from __future__ import annotations

from typing import Final

# --- sizes: refused at the door -------------------------------------------------------------------------------------

NAME_LENGTH_MAX: Final = 128
"""Index, engine and pool names are parts of Redis keys and of every fact: keep them short."""

REQUEST_ID_LENGTH_MAX: Final = 256
"""Request ids are uuids with a prefix in practice; a longer one is a prompt passed by mistake."""

BLOCK_SIZE_MAX: Final = 65_536
"""Tokens in a block. Engines use 16 to 512; anything above this is a mixed-up argument."""

POOL_BLOCKS_MAX: Final = 1 << 31
"""Blocks in a pool. 2^31 blocks of 64 tokens are 137 G tokens; kernels index blocks by int32."""

PATH_BLOCKS_MAX: Final = 1 << 20
"""Blocks in one path: 67 M tokens at 64 tokens a block. Bounds what one hostile entry can make a replica hold."""

COMMIT_FACTS_MAX: Final = 100_000
"""Facts in one commit. A scheduler step of 1,000 requests writes a few thousand."""

COMMIT_BYTES_MAX: Final = 32 << 20
"""Body plus hashes of one commit. Redis' own limit is 512 MB; a script should stay O(batch) (redis-facts R15)."""

MISSED_ENTRIES_MAX: Final = 256
"""Entries a commit reply carries at most. A caller further behind reads page by page first (R26 bounds unpack)."""

READ_PAGE: Final = 512
"""Entries one read asks for: large enough to be fast, small enough that the server stays responsive."""

FOLLOW_QUEUE_MAX: Final = 65_536
"""Entries the background follower holds. When full it stops fetching; the next step reads from the log itself."""

OUTCOMES_MAX: Final = 65_536
"""Ended transfers a session remembers for those who wait for them; an engine asks within seconds."""

REASON_LENGTH_MAX: Final = 500
"""Characters of the reason of a failure that go into the log: the message, not the traceback."""

RANKS_MAX: Final = 1024
"""Ranks of a pool. finish_transfer.lua walks them once a report."""

JOBS_PAGE: Final = 128
"""Jobs that one claim, or one look at a stream, asks for."""

# --- time, in seconds -----------------------------------------------------------------------------------------------

CONNECT_TIMEOUT_S: Final = 2.0
"""TCP or unix connect. A server on the same network answers in milliseconds."""

SOCKET_TIMEOUT_S: Final = 5.0
"""One request and its reply. Longer than any script of ours by three orders of magnitude."""

FOLLOW_BLOCK_S: Final = 1.0
"""How long one blocking read of the follower waits. Must stay below SOCKET_TIMEOUT_S (redis-facts C5)."""

FOLLOW_PAUSE_S: Final = 0.003
"""Rest of the follower after each fetch. Without it every commit of anybody wakes a thread in every engine, which halves
what 8 engines commit; a scheduler step takes 20 ms, so news 3 ms old are fresh."""

APPEND_DEADLINE_S: Final = 10.0
"""An append is tried and resolved for so long, then the caller hears `OutcomeUnknown`. Bounds an engine's stall."""

READ_DEADLINE_S: Final = 10.0
"""A read is harmless, so it is repeated for so long before the caller hears `Unavailable`."""

RETRY_WAIT_INITIAL_S: Final = 0.01
RETRY_WAIT_MAX_S: Final = 0.5
"""Exponential wait with jitter between tries of one operation: a restarting Redis is back within seconds."""

RETRY_ATTEMPTS_MAX: Final = 50
"""Tries of one operation, beside its deadline: a clock that stands still must not make a loop endless."""

CONFLICT_ATTEMPTS_MAX: Final = 64
"""Times a step is decided again after a conflict. Each conflict means that somebody else made progress; with 8
saturating engines on one pool, 64 losses in a row do not happen by chance."""

CONFLICT_WAIT_INITIAL_S: Final = 0.0005
CONFLICT_WAIT_MAX_S: Final = 0.02
"""Jittered wait after the second conflict in a row: a commit takes 0.2 ms, so waiting longer only adds latency."""

JOB_BLOCK_S: Final = 1.0
"""How long one blocking read of a worker waits; how soon it hears that it shall stop. Below SOCKET_TIMEOUT_S (C5)."""

JOB_IDLE_S: Final = 10.0
"""A job that was on a worker's list for so long is taken by another worker of the rank. One worker of a rank moves bytes
at a time, so nobody is robbed while copying; this only has to outlast a report that is being repeated."""

JOB_CLAIM_EVERY_S: Final = 2.0
"""How often a worker looks for jobs that dead workers of its rank left: one request each time."""

HEARTBEAT_EVERY_S: Final = 1.0
HEARTBEAT_TTL_S: Final = 10.0
"""A worker without a sign of life for so long counts as dead, for readiness and for whoever wants its seat."""

ACKS_TTL_S: Final = 600.0
"""How long "this transfer is finished" is remembered beside the log: for late workers and for jobs rung from a state a
little behind. The finish has removed the job itself, so this only bounds how stale either of them may be."""

WORKER_START_TIMEOUT_S: Final = 60.0
"""From the start of a worker process to its first heartbeat: imports take a second, page-locking 100 GB takes many."""

WORKER_STOP_TIMEOUT_S: Final = 30.0
"""A worker that was told to stop ends the copy at hand first: 100 GB at 5 GB/s take 20 s."""

TAKEOVER_TIMEOUT_S: Final = 5.0
"""From SIGKILL to the end of a process: longer only when the kernel itself is stuck."""

EMBEDDED_START_TIMEOUT_S: Final = 10.0
"""A redis-server without data is up in 50 ms; one that loads a large AOF needs seconds."""

assert FOLLOW_BLOCK_S < SOCKET_TIMEOUT_S - 1.0, "a blocking read must end before its socket times out"
assert JOB_BLOCK_S < SOCKET_TIMEOUT_S - 1.0, "a blocking read must end before its socket times out"
assert HEARTBEAT_EVERY_S * 3 < HEARTBEAT_TTL_S, "a lost heartbeat or two must not look like a death"
