"""Programs that stop and die inside one trio run, and a run that a seed repeats.

Two private parts of trio are touched here, and nowhere else:

- its switch for deterministic scheduling, and the ``Random`` that orders each batch of
  tasks: without them the order of tasks hangs on addresses in memory;
- the run queue. A stopped program (SIGSTOP) does nothing, while its timers run out and
  bytes arrive for it. No trio call does that to a task, so what would let a task of a
  stopped program run puts it aside until the program goes on.
"""

import importlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import attrs
import trio

# Nothing public does what this module needs; the two uses are named above.
_run: Any = importlib.import_module("trio._core._run")

_program: ContextVar["Program | None"] = ContextVar("program", default=None)


@attrs.define(eq=False)
class Program:
    """Tasks that stop together; ``is_dead`` when none of them may have an effect."""

    name: str
    is_stopped: bool = False
    is_dead: bool = False
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _waiting: list[Any] = attrs.field(factory=list)

    def run_in(
        self,
        nursery: trio.Nursery,
        function: Callable[..., Awaitable[object]],
        *args: Any,
    ) -> None:
        """Start a task of this program, and whatever tasks that starts."""
        token = _program.set(self)
        try:
            nursery.start_soon(function, *args)
        finally:
            _program.reset(token)

    def stop(self) -> None:
        """Let no task of it run any more; one in this very instant may."""
        self.is_stopped = True
        queue = _run.GLOBAL_RUN_CONTEXT.runner.runq
        mine = [task for task in queue if task.context.get(_program) is self]
        for task in mine:
            queue.remove(task)
        self._waiting += mine

    def go_on(self) -> None:
        """Let run what has become due meanwhile."""
        self.is_stopped = False
        waiting, self._waiting = self._waiting, []
        _run.GLOBAL_RUN_CONTEXT.runner.runq.extend(waiting)

    def set_aside(self, task: Any) -> None:
        """Keep a task that would run until the program goes on."""
        self._waiting.append(task)

    def kill(self) -> None:
        """End it; the caller has taken care that it reaches nothing any more."""
        self.is_dead = True
        self.scope.cancel()
        self.go_on()


class _StoppingRunner(_run.Runner):  # type: ignore[misc]  # of a module without types
    """trio's runner, whose layout it shares; it knows stopped programs."""

    __slots__ = ()

    def reschedule(self, task: Any, *args: Any) -> None:
        super().reschedule(task, *args)
        program = task.context.get(_program)
        if program is not None and program.is_stopped:
            assert self.runq.pop() is task
            program.set_aside(task)


def know_programs() -> None:
    """Let the trio run of this task stop programs."""
    runner = _run.GLOBAL_RUN_CONTEXT.runner
    runner.__class__ = _StoppingRunner


async def wait_until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, of which nobody tells; virtual time costs nothing."""
    while not holds():  # noqa: ASYNC110 - see the docstring
        await trio.sleep(0.25)


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Let trio runs in this block order their tasks by the seed alone."""
    before = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True
    _run._r.seed(seed)
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before[0]
        _run._r.setstate(before[1])
