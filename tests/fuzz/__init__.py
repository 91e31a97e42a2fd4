"""Fuzzing: every decoder, port and file format against bytes that nobody meant.

``python -m tests.fuzz`` (``make fuzz``) runs each target of ``catalogue`` in a process
of its own, guided by coverage where atheris is installed, else with random mutations
of the same seeds. ``test_targets`` runs all of them for moments in the ordinary suite.
"""
