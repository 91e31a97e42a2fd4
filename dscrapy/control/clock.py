"""The master's run clock: time in which the master itself did not run is left out.

A master that was stopped or starved for a minute has not listened for that minute,
so no worker's silence in it counts. The reaper beats the clock regularly; a gap longer
than two beats is time that was not run.
"""

import attrs

# The reaper looks at least this often; reaping is late by no more than this.
BEAT_S = 0.5


@attrs.frozen(kw_only=True)
class Now:
    """An instant: ``run`` on the run clock, ``wall`` in seconds since the epoch."""

    run: float
    wall: float


class RunClock:
    """Turns instants of a clock that counts suspend into run time."""

    def __init__(self, beat_s: float = BEAT_S) -> None:
        self._gap_max_s = 2 * beat_s
        self._run = 0.0
        self._last: float | None = None

    def at(self, instant: float) -> float:
        """Return the run time of ``instant``; call it at least every ``beat_s``."""
        if self._last is not None:
            self._run += min(max(instant - self._last, 0.0), self._gap_max_s)
        self._last = instant
        return self._run
