"""What was shown about reliability, and how it is published.

Owns `ops/RELIABILITY.md`: the records that runs leave (`results.py`), and the page made of them. Runs nothing itself but
what `command.py` starts.
"""
