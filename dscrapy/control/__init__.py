"""The cluster's state machine: jobs, workers, their crawls. Pure; time is an argument.

``decide`` reads the state and gives events and answers; ``apply`` is the only thing
that changes it. The journal of applied events is the state.
"""
