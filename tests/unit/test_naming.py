"""What stands for a job: its id, the beginning of it, its name; and what does not."""

import pytest

from dscrapy import messages as m
from dscrapy.control.machine import Machine
from dscrapy.control.naming import Unknown, find
from tests import builders as b
from tests.unit import machine_driver as d

A, B, C = "a" * 16, "ab" + "0" * 14, "c" * 16


def with_jobs(*jobs: tuple[str, str], every: tuple[str, ...] = ()) -> Machine:
    """Return a machine with jobs of these ids and names; some are schedules."""
    machine = d.new_machine()
    for identity, name in jobs:
        every_s = 60.0 if identity in every else None
        d.ask(machine, b.submit(identity, every_s=every_s, retries=1, name=name))
    return machine


@pytest.mark.parametrize(
    ("word", "found"),
    [
        (A, A),
        ("aa", A),
        ("c", C),
        ("nightly", B),
        # A name goes before the beginning of an id.
        ("ab", C),
    ],
)
def test_what_a_word_stands_for(word: str, found: str) -> None:
    """Of several jobs of a name the newest."""
    machine = with_jobs((A, "nightly"), (B, "nightly"), (C, "ab"))
    assert find(machine.state, word) == found


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("a", "ambiguous", f"2 ids begin with a: {B} (s, ready), {A} (s, ready)"),
        (
            "nihgtly",
            "no_such_job",
            "no job nihgtly (unknown or removed); there is nightly: `dscrapy jobs`",
        ),
        (
            "zz",
            "no_such_job",
            "no job zz (unknown or removed): `dscrapy jobs` lists all",
        ),
        ("", "no_such_job", "no job  (unknown or removed)"),
        ("night", "no_such_job", "no job night (unknown or removed); there is nightly"),
    ],
)
def test_what_stands_for_no_job_names_the_candidates(
    word: str, code: str, said: str
) -> None:
    """In one line; a job without a name has not the empty one."""
    machine = with_jobs((A, "nightly"), (B, ""), (C, ""))
    found = find(machine.state, word)
    assert isinstance(found, Unknown)
    assert (found.code, "\n" in found.text) == (code, False)
    assert found.text.startswith(said)


def test_many_candidates_are_counted() -> None:
    """The newest four are named."""
    machine = with_jobs(*((f"a{number:015x}", "") for number in range(9)))
    found = find(machine.state, "a0")
    assert isinstance(found, Unknown)
    assert found.text.startswith(f"9 ids begin with a0: a{8:015x} (")
    assert found.text.endswith("and 5 more")


def test_a_schedule_goes_before_its_runs_by_id_and_behind_them_by_name() -> None:
    """All their ids begin with its own; whoever names one of them has a dash."""
    machine = with_jobs((A, "nightly"), every=(A,))
    assert find(machine.state, "nightly") == A
    machine = with_jobs((A, "nightly"), (f"{B}", "nightly"), every=(A,))
    assert find(machine.state, "nightly") == B
    assert find(machine.state, "aa") == A


def test_calls_take_what_stands_for_a_job() -> None:
    """Each of them, and the answer has the id."""
    machine = with_jobs((A, "nightly"))
    calls: tuple[m.ClientCall, ...] = (
        m.ShowJob(call=1, job="nightly"),
        m.ChangeJob(call=1, verb="pause", job="aa"),
        m.ChangeJob(call=1, verb="cancel", job="nightly"),
        m.WaitJob(call=1, job="a"),
    )
    for call in calls:
        (shown,) = d.answers(d.ask(machine, call), d.CLIENT)
        assert shown.job.id == A
