"""`statecore demo`: several engine processes serve a trace against one shared index in a real Redis.

Owns a small but honest engine (its scheduler, without a model), the processes it runs in, and the proofs at the end.
Everything it does with the index goes through what any engine has: `events.connect` and `statecore.CacheIndex`.

    command ── workload      which requests, how many blocks
            ├─ fleet ── engine (one process each) ── drive ── scheduler ── CacheIndex over measured
            ├─ proofs        replay from position 0, digests, invariants, leaked blocks
            └─ report        tables and JSON
"""
