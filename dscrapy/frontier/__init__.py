"""One job's requests: what is seen, pending and leased, and whose a host is. Pure.

It knows no workers and no other jobs; time is an argument.
"""
