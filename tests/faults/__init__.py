"""Faults, counted: real extractions that are killed, cut off from power, refused by the disk, interrupted and raced.

``world`` is the small data set that is extracted, and the answers that are known. ``calls`` is the thin wrapper
around every call that writes. ``child`` is what runs in a process of its own: a run with a fault, or the judge
who looks at what it left. ``power`` rebuilds the disk after a power loss. ``campaigns`` tries a kind of fault many
times; ``python -m tests.faults`` tries them all and prints the counts, ``test_faults`` some of each in ``make test``.
"""
