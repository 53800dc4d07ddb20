"""`statecore demo`: several engine processes serve a trace against one shared index in a real Redis.

Owns a small but honest engine (its scheduler, without a model), the processes it runs in, and the proofs at the end.
Everything it does with the index goes through what any engine has: `events.connect` and `statecore.CacheIndex`; bytes
are moved by the workers that anybody uses, `workers.launcher`.

    command ── workload, tiers   which requests, how many blocks, the shared memory behind them
            ├─ fleet ── engine (one process each) ── drive ── scheduler ── CacheIndex over measured
            │                                              └─ contents: the bytes of computed and reused blocks
            ├─ movers            the swap workers' processes, and what they logged
            ├─ proofs            replay from position 0, digests, invariants, leaked blocks, open transfers, bytes
            │  └─ movements      what went between the tiers, and whose it was
            └─ report            tables and JSON
"""
