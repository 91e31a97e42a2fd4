"""Job files: entries become submissions; mistakes name file, place, key, reason."""

import json
from collections.abc import Callable
from itertools import count

import pytest

from dscrapy.conf.job_file import (
    SPEC_BYTES_MAX,
    check_every,
    check_spec,
    parse_job_file,
)
from dscrapy.errors import ConfigError, UsageError
from dscrapy.model import JobSpec, Submission
from tests import builders as b


def _ids() -> Callable[[], str]:
    numbers = count(1)
    return lambda: b.job_id(next(numbers))


def _parse(name: str, text: str | bytes, *, names: bool = False) -> list[Submission]:
    data = text.encode() if isinstance(text, str) else text
    return list(parse_job_file(name, data, _ids(), require_names=names))


def _error(name: str, text: str | bytes, *, names: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        _parse(name, text, names=names)
    error = str(caught.value)
    assert "\n" not in error
    return error


FULL = {
    "project": "shop",
    "spider": "items",
    "urls": ["https://a.example/", "data:,x"],
    "args": {"limit": "10"},
    "settings": {"DOWNLOAD_DELAY": "0.5"},
    "priority": -3,
    "retries": 2,
    "parallelism": 0,
    "name": "nightly",
    "every": "1h30m",
}
FULL_SUBMISSION = Submission(
    id=b.job_id(1),
    spec=JobSpec(
        project="shop",
        spider="items",
        urls=("https://a.example/", "data:,x"),
        args={"limit": "10"},
        settings={"DOWNLOAD_DELAY": "0.5"},
        priority=-3,
        retries=2,
        parallelism=0,
        name="nightly",
    ),
    every_s=5400.0,
)


def test_both_forms_give_every_field() -> None:
    """TOML and JSON lines with the same entry give the same submission."""
    toml = "[[jobs]]\n" + "\n".join(
        f"{key} = "
        + (
            "{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) + "}"
            if isinstance(value, dict)
            else json.dumps(value)
        )
        for key, value in FULL.items()
    )
    assert _parse("jobs.toml", toml) == [FULL_SUBMISSION]
    assert _parse("jobs.jsonl", json.dumps(FULL)) == [FULL_SUBMISSION]


def test_defaults_order_and_blank_lines() -> None:
    """Entries keep their order; only project and spider are needed."""
    text = (
        '\ufeff{"project": "p", "spider": "b"}\r\n\n  \n{"dir": "/x", "spider": "a.py"}'
    )
    first, second = _parse("J.JSONL", text)
    assert first.spec == JobSpec(project="p", spider="b")
    assert first.every_s is None
    assert second.spec == JobSpec(project_dir="/x", spider="a.py")
    assert (first.id, second.id) == (b.job_id(1), b.job_id(2))
    assert _parse("none.toml", "") == _parse("none.jsonl", "") == []


def _line(**changes: object) -> str:
    entry = {"project": "p", "spider": "s"} | changes
    return json.dumps({key: value for key, value in entry.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"spider": None}, "spider: missing"),
        ({"spidr": "x"}, "spidr: unknown key; did you mean spider?"),
        ({"spider": 3}, "spider: expected text in quotes, got 3"),
        ({"spider": ""}, "spider: must be 1 to 200 printable characters, got ''"),
        ({"spider": "a\nb"}, "spider: must be 1 to 200 printable"),
        ({"spider": "a.py"}, "spider: a spider's file needs project_dir"),
        ({"project": None}, "project: give either project or project_dir"),
        ({"project_dir": "/x"}, "project: give either project or project_dir"),
        ({"project": "../x"}, "project: must be letters"),
        ({"project": None, "dir": "x"}, "project_dir: must be an absolute folder"),
        ({"project": None, "dir": "/x\0"}, "project_dir: must be an absolute folder"),
        (
            {"dir": "/x", "project_dir": "/x"},
            "dir: is another name of project_dir, which is given",
        ),
        ({"urls": "http://a"}, "urls: expected a list, got 'http://a'"),
        ({"urls": ["a.example/x"]}, "urls[0]: must be a URL with its scheme"),
        ({"urls": ["http://a", "localhost:80"]}, "urls[1]: must be a URL with its"),
        ({"urls": ["http://a b"]}, "urls[0]: must be a URL with its scheme"),
        ({"urls": ["http://"]}, "urls[0]: must be a URL with its scheme"),
        ({"args": {"limit": 10}}, "args.limit: expected text in quotes, got 10"),
        ({"args": {"": "x"}}, "args: must be 1 to 200 printable characters, got ''"),
        ({"args": {"a=b": "x"}}, "args: a name cannot hold '=': 'a=b'"),
        ({"settings": {"A\0": "x"}}, "settings: must be 1 to 200 printable"),
        ({"settings": []}, "settings: expected a table, got []"),
        ({"priority": 10**9 + 1}, "priority: must be from -1000000000 to"),
        ({"priority": -(10**9) - 1}, "priority: must be from -1000000000 to"),
        ({"priority": 1.5}, "priority: expected a whole number, got 1.5"),
        ({"priority": 2**70}, "priority: must be from"),
        ({"retries": -1}, "retries: must be from 0 to 1000, got -1"),
        ({"retries": 1001}, "retries: must be from 0 to 1000"),
        ({"parallelism": 10_001}, "parallelism: must be from 0 to 10000"),
        ({"parallelism": True}, "parallelism: expected a whole number, got True"),
        ({"name": "a b"}, "name: must be letters"),
        ({"every": "soon"}, "every: 'soon' is not a duration, such as 10s"),
        ({"every": 30}, "every: expected text in quotes, got 30"),
        ({"every": "0.5s"}, "every: must be from 1 s to 366 days, got 0.5 s"),
        ({"every": "400d"}, "every: must be from 1 s to 366 days"),
        ({"args": {"a": "x" * SPEC_BYTES_MAX}}, "the job has 1048620 b"),
        ({"spider": 3, "priority": "x"}, "spider: expected text in quotes, got 3; p"),
    ],
)
def test_a_mistake_names_line_key_and_reason(
    changes: dict[str, object], error: str
) -> None:
    """Each mistake, on the third line of a good file, is found and placed."""
    lines = "\n".join([_line(), "", _line(**changes), _line()])
    assert _error("j.jsonl", lines).startswith(f"j.jsonl: line 3: {error}")


def test_a_mistake_in_toml_names_the_entry() -> None:
    """TOML errors name entry and key, or the line where it is no TOML."""
    good = '[[jobs]]\nproject = "p"\nspider = "s"\n'
    assert _error("j.toml", good + good + "priority = 'x'\n") == (
        "j.toml: jobs[1].priority: expected a whole number, got 'x'"
    )
    assert _error("j.toml", good + "urls = ['x']").startswith("j.toml: jobs[0].urls[0]")
    assert _error("j.toml", good + "x ==\n").startswith("j.toml: line 4, column 4: ")
    assert _error("j.toml", "[jobs]\n") == (
        "j.toml: jobs: must be [[jobs]] tables, two brackets"
    )
    assert _error("j.toml", "jobs = [3]") == "j.toml: jobs[0]: expected a table, got 3"
    assert "did you mean jobs?" in _error("j.toml", "[[job]]\n")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"{", "not JSON: Expecting property name"),
        (b"[]", "expected a table, got []"),
        (b'{"spider": "\xff"}', "not UTF-8"),
        (b'{"spider": "\\ud800", "project": "p"}', "spider: half of a surrogate"),
        (b'{"spider": "a", "spider": "b"}', "the key 'spider' is there twice"),
        (b'{"priority": NaN, "project": "p", "spider": "s"}', "priority: expected a"),
        (b"[" * 100_000, "nested too deep"),
        (b"9" * 5000, "Exceeds the limit"),
    ],
)
def test_a_line_that_is_no_entry_is_named(line: bytes, error: str) -> None:
    """Broken JSON, bad text, depth and size are errors of their line."""
    shown = _error("j.jsonl", _line().encode() + b"\n" + line)
    assert shown.startswith(f"j.jsonl: line 2: {error}")


def test_names_where_they_are_needed() -> None:
    """A file of the master's own needs a name for each entry, each its own."""
    named = _line(name="a")
    assert len(_parse("j.jsonl", f"{named}\n{named}")) == 2
    assert _error("j.jsonl", f"{named}\n{named}", names=True) == (
        "j.jsonl: line 2: name: a is the name of line 1 too"
    )
    assert _error("j.jsonl", _line(), names=True) == "j.jsonl: line 1: name: missing"


def test_other_endings_are_refused() -> None:
    """The ending decides the form, so another one is an error that names both."""
    assert _error("jobs.json", "{}") == "jobs.json: must end in .jsonl or .toml"


def test_check_spec_is_the_same_check() -> None:
    """Jobs made by flags pass the same check; mistakes are named."""
    check_spec(JobSpec(project="p", spider="s", urls=("file:///x", "about:blank")))
    with pytest.raises(UsageError, match=r"^retries: must be from 0 to 1000, got -1$"):
        check_spec(JobSpec(project="p", spider="s", retries=-1))
    # What a shell passes on in another encoding than UTF-8.
    with pytest.raises(UsageError, match=r"^the job has text that is not valid"):
        check_spec(JobSpec(project="p", spider="s", args={"a": "\udcff"}))
    with pytest.raises(UsageError, match=r"^every: must be from"):
        check_every(0.0)
