"""The life of a crawl process cell by cell: every phase, every event; every walk."""

from collections.abc import Iterator
from itertools import product

import pytest

from dscrapy.crawl.phases import Do, Event, Life, Phase
from dscrapy.errors import LocalProtocolError

# (phase, event) -> the next phase and what is done. Every other cell is an error.
CELLS: dict[tuple[Phase, Event], tuple[Phase, str]] = {
    (Phase.LOADING, Event.SCHEDULER_OPENS): (Phase.OPENING, ""),
    (Phase.LOADING, Event.STOP): (Phase.LOADING_TO_STOP, "keep_stop tell_closing"),
    (Phase.LOADING, Event.CRAWL_ENDED): (Phase.COMMITTING, ""),
    (Phase.OPENING, Event.SPIDER_OPENED): (Phase.OPEN, "tell_opened"),
    (Phase.OPENING, Event.STOP): (Phase.OPENING_TO_STOP, "keep_stop tell_closing"),
    (Phase.OPENING, Event.CLOSE): (Phase.CLOSING_UNOPENED, "leave_locals"),
    (Phase.OPENING, Event.CRAWL_ENDED): (Phase.COMMITTING, ""),
    (Phase.OPEN, Event.ENGINE_STARTED): (Phase.RUNNING, ""),
    (Phase.OPEN, Event.STOP): (
        Phase.OPEN_TO_STOP,
        "keep_stop tell_closing give_back",
    ),
    (Phase.OPEN, Event.CLOSE): (Phase.CLOSING, "tell_closing give_back leave_locals"),
    (Phase.OPEN, Event.CRAWL_ENDED): (Phase.COMMITTING, ""),
    (Phase.RUNNING, Event.STOP): (
        Phase.STOPPING,
        "keep_stop tell_closing give_back close_engine",
    ),
    (Phase.RUNNING, Event.CLOSE): (
        Phase.CLOSING,
        "tell_closing give_back leave_locals",
    ),
    (Phase.RUNNING, Event.CRAWL_ENDED): (Phase.COMMITTING, ""),
    (Phase.LOADING_TO_STOP, Event.SCHEDULER_OPENS): (Phase.OPENING_TO_STOP, ""),
    (Phase.LOADING_TO_STOP, Event.STOP): (Phase.LOADING_TO_STOP, ""),
    (Phase.LOADING_TO_STOP, Event.CRAWL_ENDED): (Phase.COMMITTING, ""),
    (Phase.OPENING_TO_STOP, Event.SPIDER_OPENED): (Phase.OPEN_TO_STOP, ""),
    (Phase.OPENING_TO_STOP, Event.STOP): (Phase.OPENING_TO_STOP, ""),
    (Phase.OPENING_TO_STOP, Event.CLOSE): (Phase.OPENING_TO_STOP, "abandon_locals"),
    (Phase.OPENING_TO_STOP, Event.CRAWL_ENDED): (Phase.COMMITTING, ""),
    (Phase.OPEN_TO_STOP, Event.ENGINE_STARTED): (Phase.STOPPING, "close_engine"),
    (Phase.OPEN_TO_STOP, Event.STOP): (Phase.OPEN_TO_STOP, ""),
    (Phase.OPEN_TO_STOP, Event.CLOSE): (Phase.OPEN_TO_STOP, "abandon_locals"),
    (Phase.OPEN_TO_STOP, Event.CRAWL_ENDED): (Phase.COMMITTING, ""),
    (Phase.STOPPING, Event.STOP): (Phase.STOPPING, ""),
    (Phase.STOPPING, Event.CLOSE): (Phase.STOPPING, "abandon_locals"),
    (Phase.STOPPING, Event.CRAWL_ENDED): (Phase.COMMITTING, ""),
    (Phase.CLOSING_UNOPENED, Event.SPIDER_OPENED): (Phase.CLOSING, "tell_opened"),
    (Phase.CLOSING_UNOPENED, Event.STOP): (Phase.CLOSING_UNOPENED, ""),
    (Phase.CLOSING_UNOPENED, Event.CLOSE): (Phase.CLOSING_UNOPENED, ""),
    (Phase.CLOSING_UNOPENED, Event.CRAWL_ENDED): (Phase.COMMITTING, ""),
    (Phase.CLOSING, Event.ENGINE_STARTED): (Phase.CLOSING, ""),
    (Phase.CLOSING, Event.STOP): (Phase.CLOSING, ""),
    (Phase.CLOSING, Event.CLOSE): (Phase.CLOSING, ""),
    (Phase.CLOSING, Event.CRAWL_ENDED): (Phase.COMMITTING, ""),
    (Phase.COMMITTING, Event.STOP): (Phase.COMMITTING, ""),
    (Phase.COMMITTING, Event.CLOSE): (Phase.COMMITTING, ""),
}
# The shortest ways; each phase is reached as Scrapy and the master would lead there.
OPENS = (Event.SCHEDULER_OPENS, Event.SPIDER_OPENED, Event.ENGINE_STARTED)
WAYS: dict[Phase, tuple[Event, ...]] = {
    Phase.LOADING: (),
    Phase.OPENING: OPENS[:1],
    Phase.OPEN: OPENS[:2],
    Phase.RUNNING: OPENS,
    Phase.LOADING_TO_STOP: (Event.STOP,),
    Phase.OPENING_TO_STOP: (*OPENS[:1], Event.STOP),
    Phase.OPEN_TO_STOP: (*OPENS[:2], Event.STOP),
    Phase.STOPPING: (*OPENS, Event.STOP),
    Phase.CLOSING_UNOPENED: (*OPENS[:1], Event.CLOSE),
    Phase.CLOSING: (*OPENS, Event.CLOSE),
    Phase.COMMITTING: (*OPENS, Event.CLOSE, Event.CRAWL_ENDED),
}
# Longer ones come to no new phase and no new pair of steps.
WALK_EVENTS_MAX = 8


def life_in(phase: Phase) -> Life:
    """Return a life that stands in this phase."""
    life = Life()
    for event in WAYS[phase]:
        life.on(event)
    assert life.phase is phase
    return life


@pytest.mark.parametrize(("phase", "event"), list(product(Phase, Event)))
def test_every_cell(phase: Phase, event: Event) -> None:
    """It leads where the table above says; where that says nothing the error names
    both, and the phase stays."""
    life = life_in(phase)
    cell = CELLS.get((phase, event))
    if cell is None:
        with pytest.raises(LocalProtocolError) as caught:
            life.on(event)
        assert event.value in str(caught.value)
        assert f"(phase: {phase.value})" in str(caught.value)
        assert life.phase is phase
        return
    after, words = cell
    assert [action.name.lower() for action in life.on(event)] == words.split()
    assert life.phase is after


@pytest.mark.parametrize("phase", Phase)
def test_what_a_phase_says(phase: Phase) -> None:
    """Whether the pipelines open, the spider is open, all is over; where start() goes
    on."""
    life = life_in(phase)
    assert life.is_opening == (
        phase in (Phase.OPENING, Phase.OPENING_TO_STOP, Phase.CLOSING_UNOPENED)
    )
    assert life.is_open == (
        phase
        in (
            Phase.OPEN,
            Phase.RUNNING,
            Phase.OPEN_TO_STOP,
            Phase.STOPPING,
            Phase.CLOSING,
        )
    )
    assert life.is_over == (phase is Phase.COMMITTING)
    assert life.may_pull_start == (phase is Phase.RUNNING)


def walks() -> Iterator[list[tuple[Event, tuple[Do, ...]]]]:
    """Yield all that can happen in one life: its events, and what is done at each."""
    unfinished: list[list[Event]] = [[]]
    while unfinished:
        events = unfinished.pop()
        for event in Event:
            life, done = Life(), []
            try:
                for one in (*events, event):
                    done.append((one, life.on(one)))
            except LocalProtocolError:
                continue
            yield done
            if len(done) < WALK_EVENTS_MAX:
                unfinished.append([*events, event])


def test_whatever_happens_the_master_is_told_in_order() -> None:
    """Once that it is open, then once that it closes; never that it is open behind a
    stop; and all it may have leased is given back when it closes."""
    count = 0
    for walk in walks():
        count += 1
        actions = [action for _, done in walk for action in done]
        for action in (Do.TELL_OPENED, Do.TELL_CLOSING, Do.GIVE_BACK, Do.KEEP_STOP):
            assert actions.count(action) <= 1, walk
        if Do.TELL_OPENED in actions and Do.TELL_CLOSING in actions:
            opened = actions.index(Do.TELL_OPENED)
            assert opened < actions.index(Do.TELL_CLOSING), walk
            assert Do.GIVE_BACK in actions, walk
    assert count > 1000


def test_whatever_happens_a_stop_is_heard() -> None:
    """The first one of a spider that does not close by itself is told at once; its
    engine is closed as soon as it runs, once."""
    for walk in walks():
        events = [event for event, _ in walk]
        actions = [action for _, done in walk for action in done]
        deaf = Event.CLOSE, Event.CRAWL_ENDED
        place = events.index(Event.STOP) if Event.STOP in events else None
        is_heard = place is not None and not any(e in deaf for e in events[:place])
        if place is not None and is_heard:
            assert walk[place][1][:2] == (Do.KEEP_STOP, Do.TELL_CLOSING), walk
        runs = Event.ENGINE_STARTED in events
        assert actions.count(Do.CLOSE_ENGINE) == (is_heard and runs), walk
        assert (Do.KEEP_STOP in actions) == is_heard, walk
        if is_heard:
            assert Do.LEAVE_LOCALS not in actions, walk
        else:
            assert Do.ABANDON_LOCALS not in actions, walk
