"""Checks of a project's code: what may differ where a job has several processes."""
