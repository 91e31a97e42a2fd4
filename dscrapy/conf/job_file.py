"""Job files: what ``submit --file`` and ``master --jobs`` read, and job checks.

Two forms of the same entries: TOML with a ``[[jobs]]`` table each, or JSON lines
with an object each. Pure: the caller reads the file and makes the ids. Nothing is
taken from a file with a mistake in it.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import attrs
import msgspec

from dscrapy.conf.config import DAY_S, MIB, parse_duration
from dscrapy.conf.strict import StrictError, did_you_mean, parse_toml, structure
from dscrapy.errors import ConfigError, UsageError
from dscrapy.model import NAME_PATTERN, JobSpec, Submission
from dscrapy.text import show

# A million one-URL jobs fit; more belongs in more than one file.
FILE_BYTES_MAX = 256 * MIB
# A job travels in one frame of 8 MiB, with others; long url lists belong in the spider.
SPEC_BYTES_MAX = MIB
# Scrapy's own priorities are of this size; the bound keeps sums far from 64 bits.
PRIORITY_MAX = 10**9
RETRIES_MAX = 1000
PARALLELISM_MAX = 10_000
# Below a second a schedule is a loop, above a year a mistake.
EVERY_S_MIN = 1.0
EVERY_S_MAX = 366 * DAY_S
TEXT_CHARS_MAX = 200

_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#]|file:///|data:|about:)\S*\Z")


@attrs.frozen(kw_only=True)
class _Entry:
    """One job as written in a file; ``dir`` is short for ``project_dir``."""

    spider: str
    project: str = ""
    project_dir: str = ""
    dir: str = ""
    urls: tuple[str, ...] = ()
    args: dict[str, str] = attrs.field(factory=dict)
    settings: dict[str, str] = attrs.field(factory=dict)
    priority: int = 0
    retries: int = 0
    parallelism: int = 1
    name: str = ""
    every: str = ""
    scrapy_project: str = ""
    settings_module: str = ""


def parse_job_file(
    path: Path | str,
    data: bytes,
    make_id: Callable[[], str],
    *,
    require_names: bool = False,
) -> tuple[Submission, ...]:
    """Return the jobs and schedules of a file, in its order.

    ``path`` decides the form by its ending and names the file in errors. With
    ``require_names`` every entry has a name and none has another's. Raises
    ``ConfigError`` that names the line (JSON lines) or the entry, counted from 0
    (TOML).
    """
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(path, "", f"is over the limit of {FILE_BYTES_MAX} bytes")
    entries = _FORMS.get(PurePath(path).suffix.lower())
    if entries is None:
        raise ConfigError(path, "", f"must end in {' or '.join(sorted(_FORMS))}")
    submissions = []
    places: dict[str, str] = {}
    for place, value in entries(path, data):
        try:
            submission = _submission(value, make_id)
            name = submission.spec.name
            if require_names and not name:
                raise StrictError([("name", "missing")])
            if require_names and name in places:
                raise StrictError(
                    [("name", f"{name} is the name of {places[name]} too")]
                )
        except StrictError as error:
            key, reason = error.as_one()
            raise ConfigError(path, _at(place, key), reason) from None
        places[name] = place
        submissions.append(submission)
    return tuple(submissions)


def check_spec(spec: JobSpec) -> None:
    """Raise ``UsageError`` that names what is wrong with a job, if anything is."""
    problem = next(_problems(spec), None)
    if problem:
        raise UsageError(": ".join(part for part in problem if part))


def check_every(every_s: float) -> None:
    """Raise ``UsageError`` for a period that no schedule may have."""
    if not EVERY_S_MIN <= every_s <= EVERY_S_MAX:
        raise UsageError(
            f"every: must be from {EVERY_S_MIN:g} s to {EVERY_S_MAX / DAY_S:g} days, "
            f"got {every_s:g} s"
        )


def _submission(value: object, make_id: Callable[[], str]) -> Submission:
    entry = structure(value, _Entry)
    if entry.dir and entry.project_dir:
        raise StrictError(
            [("dir", "is another name of project_dir, which is given too")]
        )
    spec = JobSpec(
        project=entry.project,
        project_dir=entry.project_dir or entry.dir,
        spider=entry.spider,
        urls=entry.urls,
        args=entry.args,
        settings=entry.settings,
        priority=entry.priority,
        retries=entry.retries,
        parallelism=entry.parallelism,
        name=entry.name,
        scrapy_project=entry.scrapy_project,
        settings_module=entry.settings_module,
    )
    problems = list(_problems(spec))
    every_s = None
    if entry.every:
        try:
            every_s = parse_duration(entry.every)
            check_every(every_s)
        except UsageError as error:
            problems.append(("every", str(error).removeprefix("every: ")))
    if problems:
        raise StrictError(problems)
    return Submission(id=make_id(), spec=spec, every_s=every_s)


def _problems(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Yield (key, reason) for everything that is wrong with a job."""
    yield from _project_problems(spec)
    yield from _text_problems("spider", spec.spider)
    for key in ("scrapy_project", "settings_module"):
        if chosen := getattr(spec, key):
            yield from _text_problems(key, chosen)
    for index, url in enumerate(spec.urls):
        if not _URL.match(url):
            reason = f"must be a URL with its scheme, got {show(url)}"
            yield f"urls[{index}]", reason
    for key, names in (("args", spec.args), ("settings", spec.settings)):
        for name in names:
            if "=" in name:
                yield key, f"a name cannot hold '=': {show(name)}"
            yield from _text_problems(key, name)
    if spec.name and not NAME_PATTERN.match(spec.name):
        yield "name", _NAME_RULE.format(show(spec.name))
    ranges = (
        ("priority", spec.priority, -PRIORITY_MAX, PRIORITY_MAX),
        ("retries", spec.retries, 0, RETRIES_MAX),
        ("parallelism", spec.parallelism, 0, PARALLELISM_MAX),
    )
    for key, value, low, high in ranges:
        if not low <= value <= high:
            yield key, f"must be from {low} to {high}, got {show(value)}"
    yield from _size_problems(spec)


def _size_problems(spec: JobSpec) -> Iterator[tuple[str, str]]:
    try:
        size = len(msgspec.json.encode(spec))
    except UnicodeEncodeError:
        # Bytes of a command line that are no UTF-8 arrive as lone surrogates.
        yield "", "the job has text that is not valid Unicode"
        return
    if size > SPEC_BYTES_MAX:
        yield "", f"the job has {size} bytes, the limit is {SPEC_BYTES_MAX}"


_NAME_RULE = (
    "must be letters, digits, '.', '_' and '-' (at most 100, the first a letter or "
    "digit), got {}"
)


def _project_problems(spec: JobSpec) -> Iterator[tuple[str, str]]:
    folder = spec.project_dir
    if bool(spec.project) == bool(folder):
        yield "project", "give either project or project_dir"
    elif spec.project and not NAME_PATTERN.match(spec.project):
        yield "project", _NAME_RULE.format(show(spec.project))
    elif folder and (not PurePath(folder).is_absolute() or "\0" in folder):
        yield "project_dir", f"must be an absolute folder, got {show(folder)}"
    elif spec.project and spec.spider.endswith(".py"):
        yield "spider", "a spider's file needs project_dir"


def _text_problems(key: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a name of a spider, argument or setting."""
    if not text or len(text) > TEXT_CHARS_MAX or not text.isprintable():
        rule = f"must be 1 to {TEXT_CHARS_MAX} printable characters"
        yield key, f"{rule}, got {show(text)}"


def _toml_entries(path: Path | str, data: bytes) -> Iterable[tuple[str, Any]]:
    document = parse_toml(path, data)
    for key in document:
        if key != "jobs":
            raise ConfigError(
                path, show(key), f"unknown; {did_you_mean(key, ['jobs'])}"
            )
    jobs = document.get("jobs", [])
    if not isinstance(jobs, list):
        raise ConfigError(path, "jobs", "must be [[jobs]] tables, two brackets")
    return [(f"jobs[{index}]", job) for index, job in enumerate(jobs)]


def _jsonl_entries(path: Path | str, data: bytes) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            # Editors on Windows put a byte order mark first.
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            yield place, json.loads(text, object_pairs_hook=_object)
        except UnicodeDecodeError:
            raise ConfigError(path, place, "not UTF-8") from None
        except RecursionError:
            raise ConfigError(path, place, "nested too deep") from None
        except json.JSONDecodeError as error:
            reason = f"not JSON: {error.msg} (column {error.colno})"
            raise ConfigError(path, place, reason) from None
        except ValueError as error:
            # Python reads no integer of more than 4300 digits.
            raise ConfigError(path, place, str(error)) from None


def _object(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {show(twice)} is there twice")
    return value


def _at(place: str, key: str) -> str:
    """Return ``jobs[3].args.limit`` or ``line 3: args.limit``."""
    if not key:
        return place
    return f"{place}.{key}" if place.endswith("]") else f"{place}: {key}"


_FORMS: Mapping[str, Callable[[Path | str, bytes], Iterable[tuple[str, Any]]]] = {
    ".toml": _toml_entries,
    ".jsonl": _jsonl_entries,
}
