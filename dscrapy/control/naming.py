"""What people call a job or schedule: its id, the beginning of its id, or its name.

An id that is given whole comes first, then a name, then the beginning of an id. A name
stands for the newest job that has it, so runs of a schedule are meant before the
schedule, and the schedule only where no job has the name. A beginning of several ids
stands for none of them, unless they are a schedule and its runs: then for the schedule.
"""

import difflib
from collections.abc import Iterable
from itertools import islice

import attrs
import msgspec

from dscrapy.control.state.jobs import Schedule
from dscrapy.control.state.state import State
from dscrapy.model import JobSpec

# Candidates that a refusal names, and the newest jobs whose names are compared.
NAMED_MAX = 4
COMPARED_MAX = 1000


@attrs.frozen
class Unknown:
    """Why a word stands for no job: a fixed code, and a line for people."""

    code: str
    text: str


def find(state: State, word: str) -> str | Unknown:
    """Return the id of the job or schedule that ``word`` stands for.

    A word that is no whole id takes time that grows with the number of jobs.
    """
    if word in state.jobs or word in state.schedules:
        return word
    for job in reversed(state.order):
        if word and job.name == word:
            return job.id
    for schedule in reversed(state.schedules.values()):
        if word and _name_of(schedule) == word:
            return schedule.id
    found = [*_beginning(state.schedules, word), *_beginning(state.jobs, word)]
    if len(found) == 1 or (found and _are_runs_of(found[0], found)):
        return found[0]
    if found:
        return Unknown("ambiguous", _choice(state, word, found))
    return Unknown("no_such_job", _nothing(state, word))


def _beginning(ids: Iterable[str], word: str) -> list[str]:
    return [identity for identity in ids if word and identity.startswith(word)]


def _are_runs_of(schedule: str, found: list[str]) -> bool:
    return all(
        identity == schedule or identity.startswith(f"{schedule}-")
        for identity in found
    )


def _choice(state: State, word: str, found: list[str]) -> str:
    # The newest jobs are the likeliest to be meant.
    named = [_label(state, identity) for identity in reversed(found[-NAMED_MAX:])]
    omitted = len(found) - len(named)
    ending = f" and {omitted} more" if omitted else ""
    return f"{len(found)} ids begin with {word}: {', '.join(named)}{ending}"


def _label(state: State, identity: str) -> str:
    job = state.jobs.get(identity)
    if job is not None:
        return f"{identity} ({job.spider}, {job.state})"
    return f"{identity} (schedule)"


def _nothing(state: State, word: str) -> str:
    newest = islice(reversed(state.order), COMPARED_MAX)
    names = list(dict.fromkeys(job.name for job in newest if job.name))
    names += [
        _name_of(schedule)
        for schedule in state.schedules.values()
        if _name_of(schedule)
    ]
    alike = list(dict.fromkeys(difflib.get_close_matches(word, names, NAMED_MAX)))
    hint = f"; there is {', '.join(alike)}" if alike else ""
    return f"no job {word} (unknown or removed){hint}: `dscrapy jobs` lists all"


def _name_of(schedule: Schedule) -> str:
    return msgspec.json.decode(schedule.spec, type=JobSpec).name
