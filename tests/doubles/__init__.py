"""Doubles behind our own interfaces; each passes the suite of the real thing."""
