"""Deterministic simulation: the real master and real workers, and everything fails.

One trio run holds a master, workers, their crawl processes and clients, under a virtual
clock, on a network and a disk in memory. One seed decides everything: the work, the
faults, the order in which tasks run. A checker keeps a ledger of its own at each step;
then the faults stop, and every job has to end with exactly its items.

``python -m tests.sim --seed S`` repeats one seed.
"""
