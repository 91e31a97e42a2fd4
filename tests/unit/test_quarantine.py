"""Deaths counted, suspected, proven, pardoned."""

from dscrapy.frontier.quarantine import DeathCounts, Poisoned


def test_two_deaths_make_a_suspect_and_two_more_alone_prove_it() -> None:
    """Whether the first two were alone does not matter: one request at a time may be
    how the project crawls."""
    counts = DeathCounts()
    for shared in (True, False):
        assert not counts.is_suspect(1)
        assert not counts.would_prove(1, alone=True)
        counts.add(1, alone=shared)
    assert counts.is_suspect(1)
    assert not counts.would_prove(1, alone=True)
    counts.add(1, alone=True)
    assert counts.would_prove(1, alone=True)
    # In company it is not proven, however often.
    assert not counts.would_prove(1, alone=False)
    counts.add(1, alone=False)
    assert counts.deaths[1].alone == 1


def test_one_that_is_done_is_cleared() -> None:
    """A commit is worth more than any number of deaths."""
    counts = DeathCounts()
    for _ in range(3):
        counts.add(1, alone=True)
    counts.set_aside(2, Poisoned(url="u", text="why"))
    counts.forget(1)
    counts.forget(2)
    assert (counts.deaths, counts.poisoned) == ({}, {})


def test_the_pardoned_are_suspects_with_a_clean_record() -> None:
    """Each gets as many chances alone as a suspect has."""
    counts = DeathCounts()
    counts.set_aside(7, Poisoned(url="u", text="why"))
    assert counts.pardon() == [7]
    assert counts.is_suspect(7)
    assert not counts.would_prove(7, alone=True)
    assert counts.poisoned == {}
