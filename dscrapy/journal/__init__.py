"""The journal's format, pure: bytes in, payloads and verdicts out.

Nothing here opens a file or looks into a payload; ``master/journal.py`` does the
reading and writing. docs/journal.md has the layout in tables.
"""
