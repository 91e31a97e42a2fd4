"""The life of a crawl process, without any I/O, as a transition table.

Left alone it goes one way::

    LOADING -> OPENING -> OPEN -> RUNNING -> CLOSING -> COMMITTING

Three things come in between at any time. The master stops the process: Scrapy closes no
spider whose engine does not run yet, so one that is stopped early goes on until then
(the phases ``..._TO_STOP``). The spider closes by itself, perhaps before it has opened.
And the crawl ends with an error. An event without a cell in the table cannot come,
unless this process or its Scrapy is wrong.

Reasons and errors of the end, and the master's orders for it, are data of the crawl,
not part of its life.
"""

from enum import Enum, auto

from dscrapy.errors import LocalProtocolError


class Phase(Enum):
    """Where a crawl process stands."""

    # The spider, its settings and its components are made; nothing can be leased.
    LOADING = "loading"
    # The scheduler is open, the pipelines' ``open_spider`` runs.
    OPENING = "opening"
    # Leases may come; the engine does not run yet.
    OPEN = "open"
    RUNNING = "running"
    # The same four after the master's stop.
    LOADING_TO_STOP = "loading, to stop"
    OPENING_TO_STOP = "opening, to stop"
    OPEN_TO_STOP = "open, to stop"
    STOPPING = "stopping"
    # The spider closes by itself: before it has opened, and after.
    CLOSING_UNOPENED = "closing, not open"
    CLOSING = "closing"
    # The crawl is over, the last commit on its way.
    COMMITTING = "committing"


class Event(Enum):
    """What happens to a crawl process."""

    SCHEDULER_OPENS = "the scheduler opens"
    SPIDER_OPENED = "the spider has opened"
    ENGINE_STARTED = "the engine has started"
    # The master stops the process; a stop may come again, with another reason.
    STOP = "a stop"
    # The engine begins to close the spider, whoever asked for it; it may come again.
    CLOSE = "a close"
    CRAWL_ENDED = "the crawl has ended"


class Do(Enum):
    """Actions at an event, in this order."""

    KEEP_STOP = auto()
    TELL_OPENED = auto()
    TELL_CLOSING = auto()
    # Give back leases whose requests have not begun.
    GIVE_BACK = auto()
    CLOSE_ENGINE = auto()
    # Drop local requests that have not begun: the works that asked for them are
    # committed without them, or never, so that another process does the works again.
    LEAVE_LOCALS = auto()
    ABANDON_LOCALS = auto()


Step = tuple[Phase, tuple[Do, ...]]


def _to(phase: Phase, *actions: Do) -> Step:
    return phase, actions


_ENDS = {Event.CRAWL_ENDED: _to(Phase.COMMITTING)}
_CLOSING = (Do.TELL_CLOSING, Do.GIVE_BACK)

# A stop or a close that does nothing comes to a process that closes already.
TABLE: dict[Phase, dict[Event, Step]] = {
    Phase.LOADING: {
        Event.SCHEDULER_OPENS: _to(Phase.OPENING),
        Event.STOP: _to(Phase.LOADING_TO_STOP, Do.KEEP_STOP, Do.TELL_CLOSING),
        **_ENDS,
    },
    Phase.OPENING: {
        Event.SPIDER_OPENED: _to(Phase.OPEN, Do.TELL_OPENED),
        Event.STOP: _to(Phase.OPENING_TO_STOP, Do.KEEP_STOP, Do.TELL_CLOSING),
        # No TELL_CLOSING: the last commit of a process that does not open says why. The
        # master weighs it with the other processes' ends.
        Event.CLOSE: _to(Phase.CLOSING_UNOPENED, Do.LEAVE_LOCALS),
        **_ENDS,
    },
    Phase.OPEN: {
        Event.ENGINE_STARTED: _to(Phase.RUNNING),
        Event.STOP: _to(Phase.OPEN_TO_STOP, Do.KEEP_STOP, *_CLOSING),
        Event.CLOSE: _to(Phase.CLOSING, *_CLOSING, Do.LEAVE_LOCALS),
        **_ENDS,
    },
    Phase.RUNNING: {
        Event.STOP: _to(Phase.STOPPING, Do.KEEP_STOP, *_CLOSING, Do.CLOSE_ENGINE),
        Event.CLOSE: _to(Phase.CLOSING, *_CLOSING, Do.LEAVE_LOCALS),
        **_ENDS,
    },
    Phase.LOADING_TO_STOP: {
        Event.SCHEDULER_OPENS: _to(Phase.OPENING_TO_STOP),
        Event.STOP: _to(Phase.LOADING_TO_STOP),
        **_ENDS,
    },
    Phase.OPENING_TO_STOP: {
        Event.SPIDER_OPENED: _to(Phase.OPEN_TO_STOP),
        Event.STOP: _to(Phase.OPENING_TO_STOP),
        Event.CLOSE: _to(Phase.OPENING_TO_STOP, Do.ABANDON_LOCALS),
        **_ENDS,
    },
    Phase.OPEN_TO_STOP: {
        Event.ENGINE_STARTED: _to(Phase.STOPPING, Do.CLOSE_ENGINE),
        Event.STOP: _to(Phase.OPEN_TO_STOP),
        Event.CLOSE: _to(Phase.OPEN_TO_STOP, Do.ABANDON_LOCALS),
        **_ENDS,
    },
    Phase.STOPPING: {
        Event.STOP: _to(Phase.STOPPING),
        Event.CLOSE: _to(Phase.STOPPING, Do.ABANDON_LOCALS),
        **_ENDS,
    },
    Phase.CLOSING_UNOPENED: {
        # Scrapy still opens a spider that a pipeline closes through the engine.
        Event.SPIDER_OPENED: _to(Phase.CLOSING, Do.TELL_OPENED),
        Event.STOP: _to(Phase.CLOSING_UNOPENED),
        Event.CLOSE: _to(Phase.CLOSING_UNOPENED),
        **_ENDS,
    },
    Phase.CLOSING: {
        # A handler of ``spider_opened`` has closed the spider.
        Event.ENGINE_STARTED: _to(Phase.CLOSING),
        Event.STOP: _to(Phase.CLOSING),
        Event.CLOSE: _to(Phase.CLOSING),
        **_ENDS,
    },
    Phase.COMMITTING: {
        Event.STOP: _to(Phase.COMMITTING),
        # Code that outlives its crawl asks for a close.
        Event.CLOSE: _to(Phase.COMMITTING),
    },
}

_OPEN = frozenset(
    {Phase.OPEN, Phase.RUNNING, Phase.OPEN_TO_STOP, Phase.STOPPING, Phase.CLOSING}
)
_OPENING = frozenset({Phase.OPENING, Phase.OPENING_TO_STOP, Phase.CLOSING_UNOPENED})


class Life:
    """The life of one crawl process; ``on`` takes what happens."""

    def __init__(self) -> None:
        self.phase = Phase.LOADING

    def on(self, event: Event) -> tuple[Do, ...]:
        """Take an event and return what is to be done, in order.

        Raises ``LocalProtocolError`` for an event that cannot come in this phase; the
        phase stays.
        """
        step = TABLE[self.phase].get(event)
        if step is None:
            raise LocalProtocolError(
                f"the crawl process cannot take this: {event.value} "
                f"(phase: {self.phase.value})"
            )
        self.phase, actions = step
        return actions

    @property
    def is_opening(self) -> bool:
        """Whether pipelines have begun to open and not all have."""
        return self.phase in _OPENING

    @property
    def is_open(self) -> bool:
        """Whether the spider has opened and its crawl is not over."""
        return self.phase in _OPEN

    @property
    def is_over(self) -> bool:
        """Whether nothing is missing but the answer to the last commit."""
        return self.phase is Phase.COMMITTING

    @property
    def may_pull_start(self) -> bool:
        """Whether ``start()`` may be asked for elements."""
        return self.phase is Phase.RUNNING
