"""A machine whose steps are watched: what only decides leaves the state as it was."""

import pickle
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import attrs

from dscrapy.control.clock import Now
from dscrapy.control.decision import Command, Decision
from dscrapy.control.machine import Machine
from dscrapy.control.state.state import State


@contextmanager
def unchanged(state: State) -> Iterator[None]:
    """Check that the state is the same afterwards, down to the order in its sets."""
    before = pickle.dumps(state)
    try:
        yield
    finally:
        if pickle.dumps(state) != before:
            raise ImpureError


class ImpureError(BaseException):
    """A step changed the state. No ``Exception``: nobody may take it for one of the
    bugs that the machine survives."""


@attrs.define(kw_only=True)
class WatchedMachine(Machine):
    """Raises ``ImpureError`` when a step that only decides has changed the state, also
    when the step raises. It looks at each ``one_in``-th step: looking takes longer than
    deciding."""

    one_in: int = 1
    _steps: int = 0

    def _watched(self) -> AbstractContextManager[None]:
        self._steps += 1
        return nullcontext() if self._steps % self.one_in else unchanged(self.state)

    def decide(self, session: int, command: Command, now: Now) -> Decision:
        """See ``Machine``."""
        with self._watched():
            return super().decide(session, command, now)

    def reconcile(self, job: str, now: Now) -> Decision:
        """See ``Machine``."""
        with self._watched():
            return super().reconcile(job, now)

    def place(self, now: Now, exclude: Collection[str] = ()) -> Decision | None:
        """See ``Machine``."""
        with self._watched():
            return super().place(now, exclude)

    def next_deadline_s(self, now: Now) -> float:
        """See ``Machine``."""
        with self._watched():
            return super().next_deadline_s(now)

    def complete(self, decision: Decision) -> None:
        """See ``Machine``; views of what stands now are made here."""
        with self._watched():
            super().complete(decision)
