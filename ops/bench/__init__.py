"""Every figure of the design's budgets, each beside a reference measured in the same run.

Machines drift by a factor of two, so a time alone says little: measurement and reference take turns, the medians are
reported side by side, and the ratio is what to look at. Nothing here is a test: nothing fails because it was slow.

    command.py      the command line: which groups run, what is printed
    figure.py       what a figure, a budget and a group are; medians of repetitions that take turns
    report.py       the table and the JSON
    workload.py     requests of a trace, prepared so that only the index is timed
    reference.py    the naive cache the core is compared with
    bare.py         the bare EVALSHA the log is compared with
    core.py, growth.py, hashing.py, follower.py, log.py, replay.py, memory.py, fleet.py,
    transfer_step.py, latency.py, jobs.py, store.py, hit_rate.py    one group of figures each
    engine.py       what an engine process of the fleet does
    moving.py       an index with two tiers and living swap workers, for figures of transfers
    bare_worker.py  the bare stream to another process and back that jobs are compared with
    worker_process.py    how processes that copy bytes are started
"""
