"""What an operator uses: the command line, proofs over a log, the demo, the bench, and how things were decided."""
