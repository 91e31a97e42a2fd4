"""What a record means for a job's files, as writes that may be done again.

``items.jsonl`` (and ``tagged.jsonl`` beside it) are derived from the journal: parts
of a commit go to spools, and the record that publishes them moves the spools to
the job's files. Every write names the length at which it begins, which the state
knows, so a replay does the same writes at the same places and a file that a crash
left longer is cut first.

Call ``writes_of`` before ``State.apply`` of the same record.
"""

import attrs

from dscrapy.frontier import records as r
from dscrapy.frontier.state import State

SPOOL_FOLDER = "spool"
JOBS_FOLDER = "jobs"


@attrs.frozen
class Append:
    """Write ``data`` at byte ``at`` of the file, which then ends there."""

    name: str
    at: int
    data: bytes


@attrs.frozen
class Move:
    """Write the first ``count`` bytes of ``spool`` at byte ``at`` of the file."""

    name: str
    at: int
    spool: str
    count: int


@attrs.frozen
class Discard:
    """The spool is not needed any more, once no replay can begin before this."""

    spool: str


Write = Append | Move | Discard


def items_name(job: str) -> str:
    """Return the name of the job's items file in the state folder."""
    return f"{JOBS_FOLDER}/{job}/items.jsonl"


def tagged_name(job: str) -> str:
    """Return the name of the job's file of tagged forms."""
    return f"{JOBS_FOLDER}/{job}/tagged.jsonl"


def log_name(job: str) -> str:
    """Return the name of the job's log, which is not derived."""
    return f"{JOBS_FOLDER}/{job}/log.txt"


def spool_names(process: int) -> tuple[str, str]:
    """Return the names of a process's spools: lines and tagged forms."""
    return (
        f"{SPOOL_FOLDER}/{process}.items.jsonl",
        f"{SPOOL_FOLDER}/{process}.tagged.jsonl",
    )


def process_of_spool(name: str) -> int | None:
    """Return the number of the process whose spool has this file name."""
    number = name.split(".", 1)[0]
    return int(number) if number.isdecimal() else None


def writes_of(state: State, record: r.Record | r.Volatile) -> list[Write]:
    """Return the writes that ``record`` leads to in the state as it still is."""
    match record:
        case r.PartStored():
            process = state.processes[record.process]
            items, tagged = spool_names(record.process)
            lines, forms = _lines(record)
            return [
                Append(items, process.spool_bytes, lines),
                Append(tagged, process.spool_tagged_bytes, forms),
            ]
        case r.Published():
            return _publish(state, record)
        case r.JobAgain(fresh=True):
            return [
                Append(items_name(record.job), 0, b""),
                Append(tagged_name(record.job), 0, b""),
            ]
        case r.ProcessEnded():
            if not state.processes[record.process].parts:
                return []
            return [Discard(spool) for spool in spool_names(record.process)]
        case _:
            return []


def _lines(record: r.PartStored | r.Published) -> tuple[bytes, bytes]:
    lines = r.lines_of(record.items)
    return lines, r.tagged_lines_of(record.items, record.tagged)


def _publish(state: State, record: r.Published) -> list[Write]:
    course = state.jobs[record.job].course
    assert course is not None
    process = state.processes.get(record.process)
    spooled = (0, 0)
    if process is not None:
        spooled = (process.spool_bytes, process.spool_tagged_bytes)
    names = (items_name(record.job), tagged_name(record.job))
    starts = (course.items_bytes, course.tagged_bytes)
    writes: list[Write] = []
    for name, start, spool, count, data in zip(
        names, starts, spool_names(record.process), spooled, _lines(record), strict=True
    ):
        if count:
            writes.append(Move(name, start, spool, count))
        # Also when there is nothing to write: a job that ran has its files.
        writes.append(Append(name, start + count, data))
    return writes
