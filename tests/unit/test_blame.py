"""Blamed, suspected, proven, pardoned."""

from dscrapy.frontier.quarantine import Blame, Poisoned


def test_two_deaths_make_a_suspect_and_two_more_alone_prove_it() -> None:
    """Whether the first two were alone does not matter: one request at a time may be
    how the project crawls."""
    blame = Blame()
    for shared in (True, False):
        assert not blame.is_suspect(1)
        assert not blame.would_prove(1, alone=True)
        blame.add(1, alone=shared)
    assert blame.is_suspect(1)
    assert not blame.would_prove(1, alone=True)
    blame.add(1, alone=True)
    assert blame.would_prove(1, alone=True)
    # In company it is not proven, however often.
    assert not blame.would_prove(1, alone=False)
    blame.add(1, alone=False)
    assert blame.deaths[1].alone == 1


def test_one_that_is_done_is_cleared() -> None:
    """A commit is worth more than any number of deaths."""
    blame = Blame()
    for _ in range(3):
        blame.add(1, alone=True)
    blame.set_aside(2, Poisoned(url="u", text="why"))
    blame.forget(1)
    blame.forget(2)
    assert (blame.deaths, blame.poisoned) == ({}, {})


def test_the_pardoned_are_suspects_with_a_clean_record() -> None:
    """Each gets as many chances alone as a suspect has."""
    blame = Blame()
    blame.set_aside(7, Poisoned(url="u", text="why"))
    assert blame.pardon() == [7]
    assert blame.is_suspect(7)
    assert not blame.would_prove(7, alone=True)
    assert blame.poisoned == {}
