"""Every document: its blocks can be read, its commands exist, its tables are whole."""

import re
import shlex
import tomllib
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from dscrapy.cli.parser import build_parser
from dscrapy.conf import config, job_file
from dscrapy.control import events
from dscrapy.messages import Message
from tests.docs import campaigns
from tests.docs.markdown import Block, MarkdownError, blocks, spans
from tests.docs.shown_output import missing

ROOT = Path(__file__).parents[2]
DOCUMENTS = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
# Documents that test_readme.py and test_tutorial.py walk through, from top to bottom.
WALKED = frozenset({"README.md", "docs/tutorial.md"})
IS_PATH = re.compile(
    r"(?:tests|docs|benchmarks)/[\w./-]*|dscrapy/(?:\w+/)+|(?:\w+/)+\w+\.py"
)
IDS = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]


@pytest.fixture(params=DOCUMENTS, ids=IDS)
def document(request: pytest.FixtureRequest) -> Path:
    """Each document in turn."""
    path: Path = request.param
    return path


# ---- blocks ---------------------------------------------------------------------


def unproved(name: str, text: str) -> Iterator[str]:
    """Yield the commands of a document that no test types or proves."""
    for block in blocks(text):
        if block.language == "sh" and name not in WALKED:
            for line, command in block.commands():
                if not campaigns.prove(command):
                    yield f"{name}:{line}: {command}"


def test_every_command_block_is_walked(document: Path) -> None:
    """A block of commands is in a document that is walked, or of campaigns alone."""
    name = document.relative_to(ROOT).as_posix()
    assert list(unproved(name, document.read_text())) == []


def test_every_example_can_be_read(document: Path, tmp_path: Path) -> None:
    """Examples of files are what their readers take, Python compiles."""
    for block in blocks(document.read_text()):
        match block.language:
            case "python":
                compile(block.text, f"{document.name}:{block.line}", "exec")
            case "toml":
                _check_toml(block, tmp_path / "conf.toml")
            case "json":
                job_file.parse_job_file("jobs.jsonl", block.text.encode(), lambda: "id")


def _check_toml(block: Block, conf: Path) -> None:
    if "jobs" in tomllib.loads(block.text):
        job_file.parse_job_file("jobs.toml", block.text.encode(), lambda: "id")
    else:
        conf.write_text(block.text)
        config.load(conf, {})


def test_every_link_leads_somewhere(document: Path) -> None:
    """Links between the project's own files."""
    links = re.findall(r"\]\(([^)#]+)", document.read_text())
    ours = [link for link in links if not link.startswith("https://")]
    assert [link for link in ours if not (document.parent / link).exists()] == []


def test_every_file_named_is_there(document: Path) -> None:
    """Paths in code spans: of the project, or of its package or tests."""
    text = document.read_text()
    # What the reader is told to write is not the project's.
    named = set(filter(IS_PATH.fullmatch, spans(text)))
    named -= {block.file for block in blocks(text)}
    bases = (ROOT, ROOT / "dscrapy", ROOT / "tests")
    assert [
        name for name in named if not any((base / name).exists() for base in bases)
    ] == []


# ---- commands in the prose ------------------------------------------------------


def test_every_command_in_the_prose_exists(document: Path) -> None:
    """What stands in code spans of the prose has a name and options that there are."""
    text = document.read_text()
    wrong = [what for span in spans(text) for what in unknown(span)]
    assert wrong == []


def unknown(span: str) -> Iterator[str]:
    """Yield what is wrong with a code span, if it is a command."""
    try:
        words = shlex.split(span)
    except ValueError:
        # A quotation mark alone, as in `"`: no command.
        return
    commands = _commands()
    if words[:1] == ["dscrapy"]:
        words = words[1:]
        if words and words[0] not in (*commands, "COMMAND") and words[0][0] != "-":
            yield f"{span}: no such command"
    if words[:1] == ["make"] and len(words) > 1:
        yield from _problem(campaigns.prove_make, span)
    elif words[:2] == ["python", "-m"] and words[2] not in ("dscrapy", "pip"):
        yield from _problem(campaigns.prove_module, span)
    elif words and words[0] in commands:
        known = commands[words[0]]._option_string_actions
        for word in words[1:]:
            option = word.split("=", 1)[0]
            if re.match(r"--?[A-Za-z]", option) and option not in known:
                yield f"{span}: no option {option}"


@cache
def _commands() -> dict[str, ArgumentParser]:
    return dict(build_parser().commands.choices)


def _problem(prove: object, span: str) -> Iterator[str]:
    assert callable(prove)
    try:
        prove(span)
    except AssertionError as error:
        yield str(error)


# ---- tables that repeat what the code says ---------------------------------------


def _tags(structs: Iterable[type[msgspec.Struct]]) -> set[str]:
    tags = (one.__struct_config__.tag for one in structs)
    return {tag for tag in tags if isinstance(tag, str)}


def test_the_journal_s_facts_are_all_told() -> None:
    """docs/journal.md names every record."""
    told = set(spans((ROOT / "docs" / "journal.md").read_text()))
    assert _tags(get_args(events.Record)) - told == set()


def test_the_protocol_s_messages_are_all_told() -> None:
    """docs/protocol.md names every message."""
    told = set(spans((ROOT / "docs" / "protocol.md").read_text()))
    known = Message.__subclasses__()
    assert len(known) > 40
    assert _tags(known) - told == set()


# ---- planted mistakes: each has to be found ---------------------------------------

FENCE = "```"


def fenced(language: str, *lines: str) -> str:
    """Return a fenced block."""
    return "\n".join([f"{FENCE}{language}", *lines, FENCE, ""])


def test_a_block_that_nobody_walks_is_found() -> None:
    """A command block in any other document, and a campaign that there is not."""
    text = "Do this:\n\n" + fenced("sh", "dscrapy status", "make chaos")
    assert list(unproved("docs/new.md", text)) == ["docs/new.md:4: dscrapy status"]
    with pytest.raises(AssertionError, match="chaoss"):
        campaigns.prove_make("make chaoss")


@pytest.mark.parametrize(
    "text",
    [
        fenced("", "dscrapy status"),
        fenced("bash", "dscrapy status"),
        "So:\n\n    dscrapy status\n",
        f"{FENCE}sh\ndscrapy status\n",
    ],
    ids=["no language", "another language", "indented", "without an end"],
)
def test_a_block_that_cannot_be_read_is_found(text: str) -> None:
    """No command hides in a block of another form."""
    with pytest.raises(MarkdownError):
        list(blocks(text))


@pytest.mark.parametrize(
    "span",
    [
        "crawl -P 2",
        "submit --parallel 2",
        "dscrapy stats",
        "make chaoss",
        "make demo SIDE=x",
        "make demo ARGS=--sight",
        "python -m tests.chaos.peer --seeds 1",
        "python -m tests.pear",
    ],
)
def test_a_command_that_there_is_not_is_found(span: str) -> None:
    """A wrong name, option or variable in the prose."""
    assert list(unknown(span))


def test_commands_are_read_as_a_shell_reads_them() -> None:
    """Comments go, lines that go on are one, the first comment names machines."""
    (block,) = blocks(
        "Once:\n\n"
        + fenced("sh", "# on beta and gamma, once", "a \\", "  b  # c", "", "d")
    )
    assert list(block.commands()) == [(5, "a   b"), (8, "d")]
    assert block.machines == ("beta", "gamma")
    assert block.lead == "Once:"


@pytest.mark.parametrize(
    ("shown", "seen", "lacks"),
    [
        ("a\nb", "a\nx\nb", ""),
        ("b\na", "a\nb", "a"),
        ("1 item", "2 items", "1 item"),
        ("12 pages in 3.5 s", "12 pages in 1 m 2 s", ""),
        ("12 pages in 3 s", "13 pages in 3 s", "12 pages in 3 s"),
        ("1 of ... pages", "7 of 12 pages", ""),
        ("1 of ... items", "7 of 12 pages", "1 of ... items"),
        ("...\nb\n...", "a\nb", ""),
        ("id  0123456789abcdef", "id fedcba9876543210", ""),
    ],
)
def test_what_is_shown_is_compared_with_what_is_seen(
    shown: str, seen: str, lacks: str
) -> None:
    """In order, with its numbers; times, ids and what is left out may differ."""
    assert missing(shown, seen) == lacks
