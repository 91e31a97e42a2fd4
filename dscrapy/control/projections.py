"""Returns what a record writes to a job's files, as writes that may be done again.

``items.jsonl`` (and ``tagged.jsonl`` beside it) are derived from the journal: parts
of a commit go to spools, and the record that publishes them moves the spools to
the job's files. ``requests.jsonl`` takes the bodies of all requests in turn, those
of parts at once.
"""

from collections.abc import Iterator
from itertools import chain

from dscrapy.control import events as r
from dscrapy.control.effects import (
    Append,
    Bodies,
    Clear,
    Discard,
    Effects,
    Move,
    Write,
)
from dscrapy.control.item_lines import items_in, texts_of
from dscrapy.control.state.processes import Spool, spool_key
from dscrapy.control.state.state import State
from dscrapy.frontier.frontier import payloads

SPOOL_FOLDER = "spool"
JOBS_FOLDER = "jobs"


def folder_name(job: str) -> str:
    """Return the name of the folder of all the job's files."""
    return f"{JOBS_FOLDER}/{job}"


def items_name(job: str) -> str:
    """Return the name of the job's items file in the state folder."""
    return f"{JOBS_FOLDER}/{job}/items.jsonl"


def tagged_name(job: str) -> str:
    """Return the name of the job's file of tagged forms."""
    return f"{JOBS_FOLDER}/{job}/tagged.jsonl"


def log_name(job: str) -> str:
    """Return the name of the job's log, which is not derived."""
    return f"{JOBS_FOLDER}/{job}/log.txt"


def requests_name(job: str) -> str:
    """Return the name of the job's file of bodies of requests."""
    return f"{JOBS_FOLDER}/{job}/requests.jsonl"


def spool_names(process: int, key: str) -> tuple[str, str]:
    """Return the spools of a process's commit: lines and tagged forms."""
    return (
        f"{SPOOL_FOLDER}/{process}-{key}.items.jsonl",
        f"{SPOOL_FOLDER}/{process}-{key}.tagged.jsonl",
    )


def process_of_spool(name: str) -> int | None:
    """Return the number of the process whose spool has this file name."""
    number = name.split("-", 1)[0]
    return int(number) if number.isdecimal() else None


def known_lengths(state: State) -> Iterator[tuple[str, int]]:
    """Yield the derived files that are not empty, with their lengths in this state.

    Files of jobs that have not ended come first, then those of the latest jobs.
    """
    unfinished = (job for job in state.order if not job.is_final)
    finished = (job for job in reversed(state.order) if job.is_final)
    for job in chain(unfinished, finished):
        course = job.course
        if course is None:
            continue
        if course.items_bytes:
            yield items_name(job.id), course.items_bytes
        if course.tagged_bytes:
            yield tagged_name(job.id), course.tagged_bytes
        crawl = state.crawls.get(job.id)
        if crawl is not None and job.status != "succeeded":
            yield requests_name(job.id), crawl.frontier.body_bytes


def effects_of(state: State, record: r.Record | r.Volatile) -> Effects:
    """Return the writes and bodies of ``record``, which is not applied to the state
    yet."""
    match record:
        case r.PartStored() | r.PartTaken():
            return _with_bodies(state, record, _store(state, record))
        case r.Published():
            return _with_bodies(state, record, _publish(state, record))
        case r.JobAgain(fresh=True):
            names = (items_name, tagged_name, requests_name)
            return Effects([Append(name(record.job), 0, b"") for name in names])
        case r.ProcessEnded():
            process = state.processes[record.process]
            return Effects(
                [
                    Discard(name)
                    for key, spool in process.spools.items()
                    if spool.items_bytes
                    for name in spool_names(record.process, key)
                ]
            )
        case r.JobEnded(state="succeeded") if record.job in state.crawls:
            return Effects([Discard(requests_name(record.job))])
        case r.JobRemoved():
            return Effects([Clear(folder_name(record.job))])
        case _:
            return Effects()


def _with_bodies(
    state: State,
    record: r.AnyPart,
    writes: list[Write],
) -> Effects:
    found = payloads(record.children)
    if not found:
        return Effects(writes)
    at = state.crawls[record.job].frontier.body_bytes
    data = b"".join(bytes(payload) + b"\n" for payload in found)
    writes.append(Append(requests_name(record.job), at, data))
    return Effects(writes, [Bodies(record.job, at, found)])


def _spool_of(state: State, record: r.AnyPart) -> Spool:
    process = state.processes.get(record.process)
    key = spool_key(record.request, record.unit)
    return Spool() if process is None else process.spools.get(key, Spool())


def _store(state: State, record: r.Part) -> list[Write]:
    spool = _spool_of(state, record)
    key = spool_key(record.request, record.unit)
    items, tagged = spool_names(record.process, key)
    lines, forms = texts_of(record)
    if not lines and not forms:
        return []
    return [
        Append(items, spool.items_bytes, lines),
        Append(tagged, spool.tagged_bytes, forms),
    ]


def _publish(state: State, record: r.Published) -> list[Write]:
    course = state.jobs[record.job].course
    assert course is not None
    spool = _spool_of(state, record)
    if not spool.items and not items_in(record) and record.kind != "closed":
        return []
    spools = spool_names(record.process, spool_key(record.request, record.unit))
    names = (items_name(record.job), tagged_name(record.job))
    starts = (course.items_bytes, course.tagged_bytes)
    spooled = (spool.items_bytes, spool.tagged_bytes)
    writes: list[Write] = []
    for name, start, source, count, data in zip(
        names, starts, spools, spooled, texts_of(record), strict=True
    ):
        if count:
            writes += [Move(name, start, source, count), Discard(source)]
        # Also when there is nothing to write: a job that ran has its files.
        writes.append(Append(name, start + count, data))
    return writes
