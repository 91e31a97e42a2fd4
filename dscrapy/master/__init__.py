"""The master: trio shells around the frontier and the journal.

Blocking disk calls stand behind ``storage.Storage`` alone and run in threads; every
decision is made in ``frontier/``, every message is read and written in ``net/``.
"""
