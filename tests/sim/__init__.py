"""Deterministic simulation: many engines, one faulty log, one thread, every choice recorded.

`python -m tests.sim --seed N` runs one story; see `world.py` for what is in it and `ledger.py` for what must hold.
"""
