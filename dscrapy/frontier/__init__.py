"""One job's requests: what is seen, pending and leased, and who may ask a host. Pure.

It knows no workers and no other jobs; time is an argument.
"""
