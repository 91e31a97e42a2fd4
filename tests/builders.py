"""Messages as tests need them, and the values in them: one builder for each.

What a test does not care about has a default here; what it does care about it gives,
the message's other fields by name.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from dscrapy import messages as m
from dscrapy.model import (
    FEEDS_WRITTEN,
    CloseLimits,
    HostLimits,
    JobSpec,
    Outcome,
    Submission,
    Versions,
)

# Why a unit is committed; see ``messages.Commit``.
Kind = Literal[
    "page",
    "start",
    "started",
    "opened",
    "idle",
    "late",
    "batch",
    "ending",
    "closed",
]


def job_id(number: int) -> str:
    """Return the id of the job of this number."""
    return f"{number:016x}"


# The job of most tests, and one beside it.
ID, OTHER = job_id(1), "e" * 16
VERSIONS = Versions(dscrapy="1", scrapy="2", python="3")
FINISHED = Outcome(finish_reason="finished")
WRITTEN = Outcome(finish_reason=FEEDS_WRITTEN)


def raws(*lines: bytes) -> tuple[msgspec.Raw, ...]:
    """Return JSON texts as messages carry them: items, bodies, values."""
    return tuple(map(msgspec.Raw, lines))


ITEM = raws(b'{"a":1}')


# ---- clients -------------------------------------------------------------------------


def spec(**fields: Any) -> JobSpec:
    """Return what a user asks for, by default of the project ``p``."""
    project = {} if "project_dir" in fields else {"project": "p"}
    return JobSpec(**({"spider": "s"} | project | fields))


def submit(*jobs: int | str, every_s: float | None = None, **fields: Any) -> m.Submit:
    """Return the submission of jobs, or schedules, by number or id.

    ``fields`` are those of ``JobSpec``.
    """
    return submission(
        *(
            Submission(
                id=one if isinstance(one, str) else job_id(one),
                spec=spec(**fields),
                every_s=every_s,
            )
            for one in jobs
        )
    )


def submission(*every: Submission) -> m.Submit:
    """Return a whole submission."""
    return m.Submit(call=1, part=0, last=True, submissions=every)


# ---- workers -------------------------------------------------------------------------


def registration(
    name: str = "w",
    slots: int = 1,
    held: tuple[m.HeldProcess, ...] = (),
    instance: str = "1",
) -> m.Register:
    """Return what a worker registers with."""
    return m.Register(
        name=name,
        instance=instance,
        host="h",
        port=1,
        slots=slots,
        draining=False,
        versions=VERSIONS,
        held=held,
    )


def held(process: int, *requests: int, job: str = ID, **fields: Any) -> m.HeldProcess:
    """Return what a worker says of a process that is open."""
    values: dict[str, Any] = {"opened": opened(process, job)} | fields
    return m.HeldProcess(job=job, process=process, requests=requests, **values)


def ended(process: int, job: str = ID, how: Any = "exited", **fields: Any) -> m.Ended:
    """Return the end of a process."""
    return m.Ended(job=job, process=process, how=how, **fields)


# ---- crawl processes -----------------------------------------------------------------


def opened(
    process: int = 1,
    job: str = ID,
    *,
    concurrency: int = 16,
    delay_s: float = 0.0,
    **fields: Any,
) -> m.Opened:
    """Return what an open process says: a host takes what the window allows."""
    values: dict[str, Any] = {
        "window": 16,
        "lifo": False,
        "start_lifo": False,
        "default_host": HostLimits(concurrency=concurrency, delay_s=delay_s),
        "hosts": {},
        "limits": CloseLimits(),
        "has_feeds": False,
    }
    return m.Opened(job=job, process=process, **(values | fields))


def fingerprint(url: str | bytes) -> bytes:
    """Return what stands for a request to ``url``."""
    text = url.encode() if isinstance(url, str) else url
    return hashlib.sha1(text, usedforsecurity=False).digest()


def children(
    *requests: int | str | bytes,
    host: str = "h",
    hosts: Sequence[str] = (),
    priorities: Sequence[int] = (),
    flags: int | Sequence[int] = 0,
) -> m.Children:
    """Return requests, by default of one host, ordinary and of priority 0.

    A request is given by a number, its url or its body; equal ones are the same.
    ``body_of`` says what the first two have for a body. ``flags`` are one for all, or
    one each.
    """
    of = tuple(hosts) or (host,) * len(requests)
    names = tuple(dict.fromkeys(of))
    each = (flags,) * len(requests) if isinstance(flags, int) else tuple(flags)
    return m.Children(
        fingerprints=b"".join(
            one.to_bytes(m.FINGERPRINT_BYTES, "big")
            if isinstance(one, int)
            else fingerprint(one)
            for one in requests
        ),
        hosts=names,
        host_of=tuple(names.index(one) for one in of),
        priorities=tuple(priorities) or (0,) * len(requests),
        flags=each,
        bodies=tuple(map(body_of, requests)),
    )


def body_of(request: int | str | bytes) -> msgspec.Raw:
    """Return the body of a request: ``{"n":number}``, or its url as a JSON string."""
    match request:
        case int():
            return msgspec.Raw(b'{"n":%d}' % request)
        case str():
            return msgspec.Raw(msgspec.json.encode(request))
        case _:
            return msgspec.Raw(request)


def number_of(body: msgspec.Raw | bytes) -> int:
    """Return the number of a request that was given by it."""
    return int(msgspec.json.decode(body)["n"])


def page(request: int, **fields: Any) -> m.Commit:
    """Return the whole commit of a request."""
    return m.Commit(request=request, **fields)


def digests(children: m.Children) -> bytes:
    """Return digests of requests: equal ones for equal fingerprints."""
    size = m.FINGERPRINT_BYTES
    ends = range(size, len(children.fingerprints) + 1, size)
    return b"".join(children.fingerprints[end - m.DIGEST_BYTES : end] for end in ends)


def part(request: int, number: int, *, last: bool = False, **fields: Any) -> m.Commit:
    """Return a part of the commit of a request."""
    if "children" in fields and not last:
        fields = {"digests": digests(fields["children"])} | fields
    return m.Commit(request=request, part=number, last=last, **fields)


def unit(number: int, kind: Kind = "late", **fields: Any) -> m.Commit:
    """Return a whole unit."""
    if kind == "start":
        fields = {"digest": number.to_bytes(m.DIGEST_BYTES, "big")} | fields
    if kind == "closed":
        fields = {"end": FINISHED} | fields
    return m.Commit(unit=number, kind=kind, **fields)


def progress(process: int, job: str = ID, **fields: Any) -> m.Progress:
    """Return how far a process says that it has come."""
    return m.Progress(job=job, process=process, **fields)


def commits(process: int, *every: m.Commit, job: str = ID) -> m.Commits:
    """Return a message of commits."""
    return m.Commits(job=job, process=process, commits=every)


# ---- the master ----------------------------------------------------------------------


def registered(*drop: int, **fields: Any) -> m.Registered:
    """Return the answer to a registration; the worker kills the processes ``drop``."""
    spans = {"heartbeat_s": 2.0, "die_after_s": 20.0, "reconnect_grace_s": 5.0}
    return m.Registered(epoch=1, drop=drop, **(spans | fields))


def start(
    process: int = 1,
    *,
    job: str = ID,
    digest: str = "",
    role: Literal["crawl", "export"] = "crawl",
    **fields: Any,
) -> m.Start:
    """Return the order to start a process; ``fields`` are those of ``JobSpec``."""
    return m.Start(
        job=job,
        process=process,
        role=role,
        spec=spec(**fields),
        digest=digest,
        hash_seed=41,
    )


def grant(*requests: int, process: int = 1, job: str = ID, **fields: Any) -> m.Grant:
    """Return leases of these requests, all of one host."""
    values: dict[str, Any] = {
        "hosts": ("h",),
        "host_of": (0,) * len(requests),
        "bodies": tuple(map(body_of, requests)),
    }
    return m.Grant(job=job, process=process, requests=requests, **(values | fields))


def commits_seen(
    *requests: int, process: int = 1, result: Any = "published"
) -> m.CommitsSeen:
    """Return the answer to whole commits of these requests."""
    answers = tuple(m.Seen(request, 0, 0, result) for request in requests)
    return m.CommitsSeen(job=ID, process=process, seen=answers)


def stop(reason: str = "cancelled", process: int = 1) -> m.Stop:
    """Return the order to close."""
    return m.Stop(job=ID, process=process, reason=reason)
