"""Decides commits: the first commit of a request that is not done wins.

The commits of one message are decided together, before any of them is applied, so a
``_Frame`` keeps what the earlier ones mean for the later ones. ``apply`` dedupes
children once more and exactly; here seen children are left out so that their bodies
are not written.
"""

from collections import Counter
from typing import Any, Literal

import attrs

from dscrapy import messages as m
from dscrapy.control import events as r
from dscrapy.control.decision import Decision
from dscrapy.control.state.crawls import Crawl
from dscrapy.control.state.jobs import Course
from dscrapy.control.state.processes import Process, spool_key
from dscrapy.errors import RemoteProtocolError
from dscrapy.frontier.early_requests import Given
from dscrapy.frontier.frontier import is_sound, uses_are_sound, without
from dscrapy.model import FeedFiles

Result = Literal["stored", "taken", "published", "settled"]

# Units that only the process that leads its job may commit.
_LEADERS = frozenset({"start", "started", "opened", "idle"})


@attrs.define(kw_only=True)
class _Frame:
    """The committing process, and what the commits decided so far will change."""

    crawl: Crawl
    course: Course
    process: Process | None
    number: int
    parts: dict[str, int] = attrs.field(factory=dict)
    # Commits whose last part holds a piece of an item, not its end.
    open_items: dict[str, bool] = attrs.field(factory=dict)
    values: dict[str, int] = attrs.field(factory=dict)
    # What earlier parts of a page in this frame ask for, by digest.
    undecided: dict[str, Counter[bytes]] = attrs.field(factory=dict)
    settled: set[str] = attrs.field(factory=set)
    opened: bool = False
    finish: int = 0


def decide_commits(
    decision: Decision, worker: str, command: m.Commits
) -> m.CommitsSeen:
    """Return the answer to a worker's commits.

    Raises ``RemoteProtocolError`` for what a known process may not commit. The same of
    a process that is gone is settled: a lost process cannot be given up again.
    """
    state = decision.state
    job = state.jobs.get(command.job)
    crawl = state.crawls.get(command.job)
    process = state.processes.get(command.process)
    if process is not None and (process.job, process.worker) != (command.job, worker):
        raise RemoteProtocolError(
            "bad_commit", "the process is of another worker or another job"
        )
    problems = [_problem_of(commit, process) for commit in command.commits]
    if process is not None and any(problems):
        raise RemoteProtocolError("bad_commit", next(filter(None, problems)))
    results: list[Result] = ["settled"] * len(command.commits)
    if job is not None and crawl is not None and not job.is_final:
        course = job.progress
        frame = _Frame(
            crawl=crawl,
            course=course,
            process=process,
            number=command.process,
            opened=course.opened,
            finish=course.finish,
        )
        results = [
            "settled" if problem else _decide(decision, command.job, commit, frame)
            for commit, problem in zip(command.commits, problems, strict=True)
        ]
    return m.CommitsSeen(
        job=command.job,
        process=command.process,
        seen=tuple(
            m.Seen(commit.request, commit.unit, commit.part, result)
            for commit, result in zip(command.commits, results, strict=True)
        ),
    )


def _problem_of(commit: m.Commit, process: Process | None) -> str:
    """Return what is wrong with a commit that contradicts itself or the ones before."""
    problem = ""
    if commit.tagged and len(commit.tagged) != len(commit.items):
        problem = "tagged and items differ in length"
    elif commit.piece is not None and not _is_sound_piece(commit):
        problem = "a piece of an item stands alone in its part"
    elif (commit.request > 0) == (commit.unit > 0) or (
        min(commit.request, commit.unit, commit.part) < 0
    ):
        problem = "a commit is of one request or of one unit"
    elif (commit.request > 0) != (commit.kind == "page"):
        problem = "a commit is of kind page if, and only if, it is of a request"
    elif commit.kind in ("ending", "closed") and commit.last and commit.end is None:
        problem = f"a commit of kind {commit.kind} does not say how the spider closes"
    elif not is_sound(commit.children) or len(commit.seen) % m.FINGERPRINT_BYTES:
        problem = "the columns of a commit's requests differ in length, or name no host"
    elif not _are_sound_digests(commit):
        problem = "a page's part has a digest of each of its requests, or is the last"
    elif commit.batches and commit.kind not in ("batch", "closed"):
        problem = f"a commit of kind {commit.kind} has batches of feeds"
    elif any(
        min(batch.number, batch.item, batch.items_at) < 0 for batch in commit.batches
    ):
        problem = "a batch of a feed has a negative number or place"
    elif commit.written and commit.kind != "closed":
        problem = f"a commit of kind {commit.kind} has files of complete feeds"
    elif any(
        min(feed.files, feed.items, feed.failed) < 0 for feed in _files_of(commit)
    ):
        problem = "a feed has a negative number of files or items"
    elif commit.kind == "start" and len(commit.digest) != m.DIGEST_BYTES:
        problem = f"the digest of an element of start() has {m.DIGEST_BYTES} bytes"
    elif process is not None and commit.unit > process.last_unit + m.UNITS_AHEAD_MAX:
        problem = f"unit {commit.unit} is far beyond the last one, {process.last_unit}"
    return problem


def _files_of(commit: m.Commit) -> list[FeedFiles]:
    before = [batch.before for batch in commit.batches if batch.before is not None]
    return [*before, *commit.written]


def _is_sound_piece(commit: m.Commit) -> bool:
    piece = commit.piece
    assert piece is not None
    # A line end inside would make two lines of one item in one of its files.
    is_one_line = b"\n" not in piece.line and b"\n" not in piece.tagged
    return is_one_line and not commit.items and (piece.end or not commit.last)


def _are_sound_digests(commit: m.Commit) -> bool:
    count = len(commit.children.bodies)
    if not commit.digests:
        return not count or commit.last or not commit.request
    return bool(commit.request) and len(commit.digests) == count * m.DIGEST_BYTES


def _decide(decision: Decision, job: str, commit: m.Commit, frame: _Frame) -> Result:
    key = spool_key(commit.request, commit.unit)
    if key in frame.settled or _is_settled(commit, frame):
        return "settled"
    process = frame.process
    spool = process.spools.get(key) if process is not None else None
    parts = frame.parts.get(key, spool.parts if spool is not None else 0)
    if commit.part < parts:
        # The part is stored already: the answer to it was lost on the way.
        return "taken" if commit.digests else "stored"
    if commit.part > parts or (process is None and not commit.last):
        # Earlier parts went with a process that was given up.
        return "settled"
    is_open = frame.open_items.get(key, spool is not None and spool.is_open)
    if is_open and commit.piece is None and (commit.items or commit.last):
        raise RemoteProtocolError(
            "bad_commit",
            "another item stands before the end of an item in pieces",
        )
    if _is_unknown_run(commit, key, frame):
        if process is not None:
            raise RemoteProtocolError(
                "bad_commit", "a page that is run again has digests of its requests"
            )
        return "settled"
    _check_values(commit, key, frame)
    children, filtered = frame.crawl.frontier.unseen(_new_of(commit, key, frame))
    if commit.last and not children.bodies:
        # Without bodies no request refers to the values.
        children = m.Children()
    if not commit.last:
        if commit.piece is not None:
            frame.open_items[key] = not commit.piece.end
        frame.parts[key] = parts + 1
        is_taken = bool(commit.digests)
        decision.records.append(
            (r.PartTaken if is_taken else r.PartStored)(
                job=job,
                process=frame.number,
                part=commit.part,
                filtered=filtered,
                **_fields(commit, m.PartFields, children),
            )
        )
        return "taken" if is_taken else "stored"
    frame.settled.add(key)
    frame.opened |= commit.kind == "opened"
    frame.finish = max(frame.finish, commit.finish)
    decision.records.append(
        r.Published(
            job=job,
            process=frame.number,
            filtered=filtered,
            **_fields(commit, m.CommitFields, children),
        )
    )
    return "published"


def _fields(
    commit: m.Commit, kind: type[m.PartFields], children: m.Children
) -> dict[str, Any]:
    """Return the fields of ``kind`` as the commit has them, but with these children."""
    fields = {name: getattr(commit, name) for name in kind.__struct_fields__}
    return {**fields, "children": children}


def _given_by(key: str, frame: _Frame) -> Given:
    """Return what the run of this commit had asked for before this frame."""
    spool = frame.process.spools.get(key) if frame.process is not None else None
    return {} if spool is None else spool.given


def _is_unknown_run(commit: m.Commit, key: str, frame: _Frame) -> bool:
    """Whether another run has given requests, and this one does not say which its own
    are: it began before the other, and was given up."""
    if not commit.request or commit.digests or not commit.children.bodies:
        return False
    early = frame.crawl.frontier.early
    if not early.has(commit.request):
        return False
    given = Counter(_given_by(key, frame)) + frame.undecided.get(key, Counter())
    return early.differs(commit.request, given)


def _new_of(commit: m.Commit, key: str, frame: _Frame) -> m.Children:
    """Return the requests of a commit without those that an earlier run of its page
    has given."""
    if not commit.digests:
        return commit.children
    undecided = frame.undecided.setdefault(key, Counter())
    passed = frame.crawl.frontier.early.passed_over(
        commit.request, _given_by(key, frame), undecided, commit.digests
    )
    return without(commit.children, passed)


def _check_values(commit: m.Commit, key: str, frame: _Frame) -> None:
    """Raise ``RemoteProtocolError`` for a request whose values have not arrived."""
    stored = frame.crawl.stored.get(frame.number, {}).get(key, [])
    count = frame.values.get(key, sum(len(part.value_lengths) for part in stored))
    count += len(commit.children.values)
    frame.values[key] = count
    if not uses_are_sound(commit.children, count):
        raise RemoteProtocolError(
            "bad_commit", "a request refers to a value that the commit does not have"
        )


def _is_settled(commit: m.Commit, frame: _Frame) -> bool:
    """Whether the commit comes too late, or from a process that may not make it."""
    if commit.request:
        return not frame.crawl.frontier.is_open(commit.request)
    process = frame.process
    if process is None or process.closed or process.has_unit(commit.unit):
        return True
    if (commit.batches or commit.written) and process.role != "export":
        return True
    if commit.kind in _LEADERS and frame.crawl.leader != process.number:
        return True
    match commit.kind:
        case "start" | "started":
            return frame.course.start_done
        case "opened":
            return frame.opened
        case "idle":
            return commit.finish != frame.finish + 1
    return False
