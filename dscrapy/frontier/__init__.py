"""Pure state machines of the master: no I/O, and time is an argument.

``decide`` reads the state and gives records and answers; ``apply`` is the only
thing that changes it. The journal of applied records is the state.
"""
