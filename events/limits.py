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

COPY_PIECE_BLOCKS: Final = 64
"""Blocks a worker copies before it looks whether it still may: large enough for full speed, done within a second."""

SNAPSHOT_EVERY: Final = 20_000
"""Commits after which the keeper takes a snapshot: 1 s of replay at 20,000 entries a second bounds a restart."""

SNAPSHOT_MARGIN: Final = 1_000
"""Entries kept below a snapshot, so that a replica a little behind need not restore."""

SNAPSHOT_PIECE_BYTES: Final = 1 << 20
"""A snapshot is stored and read in pieces of this size, so that the server serves others in between."""

SNAPSHOT_LOOKS_MAX: Final = 4
"""How often a replica looks for snapshots again when those it was about to read were replaced meanwhile."""

SNAPSHOT_BYTES_MAX: Final = 512 << 20
"""A Redis string holds no more. 1 M blocks take 20 MB."""

# --- time, in seconds -----------------------------------------------------------------------------------------------

SNAPSHOT_AGE_S: Final = 600.0
"""A snapshot older than this is replaced if anything has happened since: a quiet index restarts fast, too."""

SNAPSHOT_RETRY_S: Final = 10.0
"""Wait before a snapshot that did not come about is tried again; doubled each time, up to the age of one."""

SNAPSHOT_UPLOAD_TTL_S: Final = 600.0
"""A blob that nobody published runs out: its keeper died on the way."""

CONNECT_TIMEOUT_S: Final = 2.0
"""TCP or unix connect. A server on the same network answers in milliseconds."""

SOCKET_TIMEOUT_S: Final = 5.0
"""One request and its reply. Longer than any script of ours by three orders of magnitude."""

FOLLOW_BLOCK_S: Final = 1.0
"""How long one blocking read of the follower waits. Must stay below SOCKET_TIMEOUT_S (redis-facts C5)."""

FOLLOW_PAUSE_S: Final = 0.003
"""Rest of the follower after each fetch. Without it every commit of anybody wakes a thread in every engine, which halves
what 8 engines commit; a scheduler step takes 20 ms, so news 3 ms old are fresh."""

APPEND_DEADLINE_S: Final = 15.0
"""An append is tried and resolved for so long, then the caller hears `OutcomeUnknown`. Bounds an engine's stall. Longer
than a restart of the server and the `BARRIER_S` after it, so that an engine only waits there."""

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

JOIN_ATTEMPTS_MAX: Final = 1024
"""The same for a life that begins. The one before may be of a process that still works, and commits without a pause: then
every commit of it is a conflict, until this one has ended it. About 10 s of waits if all are lost, and as many requests."""

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

LEASE_TTL_S: Final = 6.0
"""An engine that has not renewed its lease for so long is suspected dead. Renewing takes a millisecond and needs the
interpreter's lock: compiling kernels or loading weights can hold that for seconds."""

LEASE_EVERY_S: Final = 1.5
"""How often a lease is renewed; and how soon an idle engine notices that it was deposed, or the log rolled back."""

LEASE_TRUST_S: Final = 5.0
"""An engine begins no step on a lease renewed longer ago than this: it must stop before others may think it gone."""

DEVICE_GRACE_S: Final = 2.0
"""The longest a device goes on writing after its engine began its last step: a prefill chunk takes 0.1 to 1 s."""

BARRIER_S: Final = LEASE_TTL_S + DEVICE_GRACE_S
"""How long the log stays closed after its server began a new life. By then whoever knew a history that is gone has asked
and been told, or has lost its lease and stopped (decision 0016)."""

LEASE_GRACE_S: Final = 3.0
"""The keeper deposes an engine whose lease it has seen missing for so long, in unbroken contact with the server: a server
that was away took everybody's leases along. More than `DEVICE_GRACE_S`."""

KEEPER_EVERY_S: Final = 0.5
"""How often a keeper looks. A look without news costs a few requests."""

KEEPER_TTL_S: Final = 5.0
"""A keeper that does not act for so long is replaced by one that waits."""

RING_EVERY_S: Final = 5.0
"""How often the keeper looks for transfers without a job; and how old a transfer must be to have lost it."""

HEARTBEAT_EVERY_S: Final = 1.0
HEARTBEAT_TTL_S: Final = 10.0
"""A worker without a sign of life for so long counts as dead, for readiness and for whoever wants its seat."""

HEARTBEAT_TRUST_S: Final = 5.0
"""A worker whose heartbeat has not got through for so long copies no further piece: the log may have been closed, opened
and its blocks given to others meanwhile. Less than `BARRIER_S`."""

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

assert LEASE_EVERY_S * 3 < LEASE_TRUST_S < LEASE_TTL_S, "a lost renewal or two must not look like a death"
assert LEASE_GRACE_S > DEVICE_GRACE_S, "a device must have stopped before its blocks are given to others"
assert HEARTBEAT_TRUST_S < BARRIER_S < APPEND_DEADLINE_S, "workers stop first; who waits for the log is served"
assert FOLLOW_BLOCK_S < SOCKET_TIMEOUT_S - 1.0, "a blocking read must end before its socket times out"
assert JOB_BLOCK_S < SOCKET_TIMEOUT_S - 1.0, "a blocking read must end before its socket times out"
assert HEARTBEAT_EVERY_S * 3 < HEARTBEAT_TTL_S, "a lost heartbeat or two must not look like a death"
