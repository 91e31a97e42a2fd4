"""The rules of the code base that a reader could forget, checked on every file.

Each rule is a function from a parsed file to what is wrong with it; the tests below
apply it to all files, and to planted mistakes that it has to find.
"""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import attrs
import pytest

from dscrapy.conf import config, strict

ROOT = Path(__file__).parent.parent

MODULE_LINES_MAX = 600
# More do not fit on a page of a listing, or in a mind.
FOLDER_FILES_MAX = 12
FUNCTION_LINES_MAX = 70

# Modules that stand in the package's own folder and are pure.
BASE = frozenset(
    {
        "__init__",
        "conf",
        "endings",
        "errors",
        "keep",
        "lines",
        "messages",
        "model",
        "text",
    }
)
# Room -> rooms it may import beside itself; the order of docs/architecture.md.
# ``projects`` reads a project's folder: for worker and command line.
LOWER = frozenset(
    {"base", "proto", "journal", "frontier", "control", "net", "projects"}
)
ROOMS: dict[str, frozenset[str]] = {
    "base": frozenset(),
    "proto": frozenset({"base"}),
    "journal": frozenset({"base"}),
    "frontier": frozenset({"base"}),
    "control": frozenset({"base", "frontier"}),
    "projects": frozenset({"base"}),
    "net": frozenset({"base", "proto"}),
    "master": LOWER - {"projects"},
    "worker": frozenset({"base", "proto", "net", "projects"}),
    "crawl": frozenset({"base", "proto"}),
    "client": LOWER | {"master", "worker"},
    "cli": LOWER | {"master", "worker", "client", "crawl"},
    "__main__": frozenset({"cli"}),
    # It uses the command line as a person does, so it imports nothing of it.
    "demo": frozenset(),
}
PURE = frozenset({"base", "proto", "journal", "frontier", "control"})
IMPURE_MODULES = frozenset(
    {
        "asyncio",
        "logging",
        "multiprocessing",
        "random",
        "requests",
        "rich",
        "select",
        "shutil",
        "signal",
        "socket",
        "subprocess",
        "tempfile",
        "threading",
        "time",
        "trio",
    }
)
FILE_CALLS = frozenset(
    {"open", "read_bytes", "read_text", "write_bytes", "write_text", "iterdir"}
)
SCRAPY_MODULES = frozenset({"scrapy", "twisted", "itemadapter", "parsel", "w3lib"})
SCRAPY_ROOMS = frozenset({"crawl", "cli", "demo"})
# Who may write on the terminal.
PRINTING_ROOMS = frozenset({"cli", "demo", "__main__"})

BANNED_MODULES = {
    "cPickle": "data is never code",
    "dill": "data is never code",
    "marshal": "data is never code",
    "pickle": "data is never code",
    "shelve": "data is never code",
    "mock": "fakes stand behind our own interfaces",
    "unittest.mock": "fakes stand behind our own interfaces",
}
BANNED_CALLS = {
    "eval": "data is never code",
    "exec": "data is never code",
    "breakpoint": "left over",
    "time.sleep": "wait for what happens, not for time to pass",
    "os.system": "no shell",
    "os.popen": "no shell",
    "pytest.mark.timeout": "a limit is for hangs, and stands in pyproject.toml",
}
# The one module that may, for values of requests that nothing else can say: it loads
# only what a process of the same job has made (see its docstring).
UNPICKLES = Path("dscrapy/crawl/codec/pickles.py")
# A directive and the codes it names; what is left over is the reason.
DIRECTIVE = re.compile(
    r"#\s*(?:noqa(?::\s*[A-Z]+[0-9]+(?:,\s*[A-Z]+[0-9]+)*)?|type:\s*ignore(?:\[[^]]*\])?"
    r"|pragma:\s*no (?:cover|branch)|mypy:|fmt:\s*(?:off|skip)|ruff:)"
)
REASON_LETTERS_MIN = 6


@cache
def parsed(text: str, path: str) -> ast.Module:
    """Return a file's tree; every rule reads every file."""
    return ast.parse(text, path)


@attrs.frozen
class Source:
    """A file and its tree. ``path`` is relative to the project's folder."""

    path: Path
    text: str

    @property
    def tree(self) -> ast.Module:
        return parsed(self.text, str(self.path))

    @property
    def room(self) -> str | None:
        """The room of a module of the package; None for tests and benchmarks."""
        parts = self.path.with_suffix("").parts
        if parts[0] != "dscrapy":
            return None
        return "base" if parts[1] in BASE else parts[1]

    @property
    def module(self) -> str:
        """The dotted name by which it is imported."""
        parts = self.path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def is_example(self) -> bool:
        """A Scrapy project that stands for a user's, not for a layer."""
        return "project" in self.path.parts[:-1]

    @property
    def is_helper(self) -> bool:
        """What tests with real processes stand on: slow sites, waits for a file."""
        real = {"e2e", "site", "chaos"}.intersection(self.path.parts)
        return bool(real) and not self.path.name.startswith("test_")

    def imports(self) -> Iterator[tuple[int, str]]:
        """Yield (line, full dotted name) of everything imported, wherever."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, alias.name
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                for alias in node.names:
                    yield node.lineno, f"{module}.{alias.name}"

    def calls(self) -> Iterator[tuple[int, str]]:
        """Yield (line, dotted name) of every call."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield node.lineno, dotted(node.func)


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` as it stands there, without what is computed."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{dotted(value)}.{name}"
    return ""


def _is_of(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


Rule = Callable[[Source], Iterator[str]]


def import_directions(source: Source) -> Iterator[str]:
    """Rooms import lower rooms only, as the table says."""
    if source.room is None or source.is_example:
        return
    allowed = ROOMS.get(source.room)
    if allowed is None:
        yield f"1: a room that the table does not know: {source.room}"
        return
    for line, name in source.imports():
        if name.startswith("."):
            yield f"{line}: a relative import hides its direction"
        if not _is_of(name, "dscrapy"):
            continue
        target = (*name.split("."), "__init__")[1]
        # "from dscrapy import x": a module, or what the package itself holds.
        room = "base" if target in BASE or target.startswith("__v") else target
        if room != source.room and room not in allowed:
            yield f"{line}: {source.room} imports {room}"


def purity(source: Source) -> Iterator[str]:
    """Pure rooms do no I/O and read no clock; config alone reads files."""
    if source.room not in PURE:
        return
    for line, name in source.imports():
        if name.split(".")[0] in IMPURE_MODULES | SCRAPY_MODULES:
            yield f"{line}: {source.room} is pure, it imports {name}"
    if source.path.name == "config.py":
        return
    for line, name in source.calls():
        if name.split(".")[-1] in FILE_CALLS:
            yield f"{line}: {source.room} is pure, it calls {name}"


def scrapy_and_trio(source: Source) -> Iterator[str]:
    """The crawl process runs on asyncio; no project's code in other processes."""
    if source.room is None or source.is_example:
        return
    for line, name in source.imports():
        top = name.split(".")[0]
        if source.room == "crawl" and top == "trio":
            yield f"{line}: crawl runs in Scrapy's process, it imports trio"
        if source.room not in SCRAPY_ROOMS and top in SCRAPY_MODULES:
            yield f"{line}: {source.room} imports {name}"


def banned(source: Source) -> Iterator[str]:
    """No pickle, no code from data, no sleeping, printing only where it belongs."""
    for line, name in source.imports():
        for module, why in BANNED_MODULES.items():
            # Tests read what Scrapy's own exporters wrote, pickle among them.
            applies = source.room is not None or "mock" in module
            if module == "pickle" and source.path == UNPICKLES:
                continue
            if applies and _is_of(name, module):
                yield f"{line}: {module}: {why}"
        if name in BANNED_CALLS and not source.is_helper:
            yield f"{line}: {name}: {BANNED_CALLS[name]}"
    for line, name in source.calls():
        if name in BANNED_CALLS and not source.is_helper:
            yield f"{line}: {name}: {BANNED_CALLS[name]}"
        in_package = source.room is not None
        if name == "print" and in_package and source.room not in PRINTING_ROOMS:
            yield f"{line}: print: shells log, the command line prints"


def sizes(source: Source) -> Iterator[str]:
    """Modules and functions stay of a size that one can hold in mind."""
    lines = source.text.count("\n")
    if lines > MODULE_LINES_MAX:
        yield f"{lines} lines, the limit is {MODULE_LINES_MAX}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                limit = FUNCTION_LINES_MAX
                yield f"{node.lineno}: {node.name} has {length} lines, limit {limit}"


def module_state(source: Source) -> Iterator[str]:
    """What a module holds is constant, so two masters in one process are apart."""
    for node in source.tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case _:
                continue
        mutable = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp
        # A constant table may be a dict; its name says that it is constant.
        constant = name == "__all__" or re.fullmatch(r"_?[A-Z][A-Z0-9_]*", name)
        if isinstance(value, mutable) and not constant:
            yield f"{node.lineno}: {name} is mutable state of the module"
    for statement in ast.walk(source.tree):
        if isinstance(statement, ast.Global):
            yield f"{statement.lineno}: global: state belongs to objects"


def reasons(source: Source) -> Iterator[str]:
    """Every exception to a check says why: behind it or on the line above."""
    lines = source.text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type != tokenize.COMMENT or not DIRECTIVE.search(token.string):
            continue
        line = token.start[0]
        above = lines[line - 2].strip() if line > 1 else ""
        if not (above.startswith("#") and not DIRECTIVE.search(above)):
            words = DIRECTIVE.sub("", token.string)
            if len(re.findall("[a-z]", words)) < REASON_LETTERS_MIN:
                yield f"{line}: no reason given: {token.string}"


def words(source: Source) -> Iterator[str]:
    """A local name says what it holds, not that something was said."""
    if source.room is not None:
        for node in ast.walk(source.tree):
            match node:
                case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                    if name in EMPTY_WORDS:
                        yield f"{node.lineno}: {name} does not say what it is"


RULES: tuple[Rule, ...] = (
    words,
    import_directions,
    purity,
    scrapy_and_trio,
    banned,
    sizes,
    module_state,
    reasons,
)


# Names that tell nobody what is in a variable.
EMPTY_WORDS = frozenset({"told", "said", "its"})
# Names that tell nobody what is in a file.
RIDDLES = frozenset(
    {
        "blame",
        "demands",
        "door",
        "ends",
        "faults",
        "held",
        "marks",
        "mend",
        "parts",
        "rules",
        "common",
        "helpers",
        "misc",
        "util",
        "utils",
    }
)
NAMED_BY_PYTHON = frozenset({"__init__", "__main__"})


def layout(sources: Iterable[Source]) -> Iterator[str]:
    """Folders of the package are small, and a file's name says what is in it, alone."""
    paths = [one.path for one in sources if one.room and not one.is_example]
    for folder, count in Counter(path.parent for path in paths).items():
        if count > FOLDER_FILES_MAX:
            yield f"{folder} has {count} files, the limit is {FOLDER_FILES_MAX}"
    known: dict[str, Path] = {}
    for path in paths:
        if path.stem in NAMED_BY_PYTHON:
            continue
        if path.stem in RIDDLES:
            yield f"{path} has a name that tells nobody what is in it"
        if path.stem in known:
            yield f"{path} has the name of {known[path.stem]}"
        known[path.stem] = path


def circles(sources: Iterable[Source]) -> Iterator[str]:
    """No files need each other, be it in a function or for type checkers alone."""
    ours = {one.module: one for one in sources if one.room and not one.is_example}
    needs: dict[str, set[str]] = {}
    for module, source in ours.items():
        names = {name for _, name in source.imports()}
        # ``from a.b import c``: the module ``a.b.c``, or ``c`` of the module ``a.b``.
        wanted = {one if one in ours else one.rpartition(".")[0] for one in names}
        needs[module] = (wanted & ours.keys()) - {module}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        yield " -> ".join(error.args[1])


def all_sources() -> list[Source]:
    """Return every file of the project."""
    folders = ("dscrapy", "tests", "benchmarks", "docs")
    paths = (path for name in folders for path in (ROOT / name).rglob("*.py"))
    return [Source(p.relative_to(ROOT), p.read_text()) for p in sorted(paths)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule) -> None:
    """No file of the project breaks the rule."""
    sources = all_sources()
    assert len(sources) > 10
    broken = [f"{one.path}:{what}" for one in sources for what in rule(one)]
    assert not broken, "\n".join(["", *broken])


PLANTED: tuple[tuple[Rule, str, str], ...] = (
    (import_directions, "proto/x.py", "from dscrapy.control.state.jobs import Job\n"),
    (import_directions, "model.py", "import dscrapy.proto\n"),
    (import_directions, "model.py", "from dscrapy import proto\n"),
    (import_directions, "master/x.py", "from dscrapy.worker import agent\n"),
    (import_directions, "worker/x.py", "def f():\n    import dscrapy.master.server\n"),
    (import_directions, "worker/x.py", "from dscrapy.crawl import run\n"),
    (import_directions, "client.py", "from dscrapy.crawl import run\n"),
    (import_directions, "crawl/x.py", "from dscrapy.net import connection\n"),
    (import_directions, "net/x.py", "from ..master import server\n"),
    (import_directions, "demo/x.py", "from dscrapy.cli import main\n"),
    (import_directions, "newroom/x.py", ""),
    (purity, "journal/x.py", "from time import monotonic\n"),
    (purity, "conf/strict.py", "import trio.testing\n"),
    (purity, "frontier/x.py", "import logging\n"),
    (purity, "conf/job_file.py", "data = path.read_bytes()\n"),
    (purity, "proto/x.py", "open('f')\n"),
    (purity, "conf/config.py", "import socket\n"),
    (scrapy_and_trio, "crawl/x.py", "import trio\n"),
    (scrapy_and_trio, "master/x.py", "from scrapy.http import Request\n"),
    (banned, "master/x.py", "import pickle\n"),
    (banned, "crawl/codec/request_bodies.py", "import pickle\n"),
    (banned, "crawl/codec/pickles.py", "import marshal\n"),
    (banned, "cli/x.py", "from time import sleep\n"),
    (banned, "demo/x.py", "time.sleep(1)\n"),
    (banned, "net/x.py", "print('x')\n"),
    (banned, "crawl/x.py", "eval('1')\n"),
    (banned, "../tests/x.py", "from unittest.mock import Mock\n"),
    (banned, "../tests/x.py", "from unittest import mock\n"),
    (banned, "../tests/e2e/test_x.py", "pytestmark = pytest.mark.timeout(9)\n"),
    (banned, "../tests/unit/x.py", "time.sleep(1)\n"),
    (banned, "../tests/e2e/test_x.py", "time.sleep(1)\n"),
    (sizes, "net/x.py", "\n" * (MODULE_LINES_MAX + 1)),
    (sizes, "net/x.py", "async def f():\n" + "    x\n" * FUNCTION_LINES_MAX),
    (module_state, "net/x.py", "sessions = {}\n"),
    (module_state, "net/x.py", "_sessions: list[int] = []\n"),
    (module_state, "net/x.py", "def f():\n    global x\n"),
    (words, "net/x.py", "def f(said):\n    pass\n"),
    (words, "net/x.py", "told = [one for one in (1, 2)]\n"),
    (reasons, "net/x.py", "x = 1  # noqa: E501\n"),
    (reasons, "net/x.py", "x = 1  # noqa\n"),
    (reasons, "net/x.py", "x = 1  # type: ignore[no-any-return]\n"),
    (reasons, "../tests/x.py", "x = 1  # pragma: no cover\n"),
    (reasons, "net/x.py", "# noqa: E501\nx = 1  # type: ignore\n"),
)


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED)
def test_a_planted_mistake_is_found(rule: Rule, path: str, text: str) -> None:
    """Each rule sees what it forbids, or keeping it would mean nothing."""
    assert list(rule(_planted(path, text)))


GOOD: tuple[tuple[str, str], ...] = (
    ("proto/x.py", "from dscrapy.errors import DscrapyError\nimport struct\n"),
    ("proto/x.py", "from dscrapy import __version__, model\n"),
    ("conf/config.py", "path.read_bytes()\nopen('x')\n"),
    ("cli/x.py", "from dscrapy.crawl import feeds\nimport scrapy\nprint('x')\n"),
    ("crawl/x.py", "import asyncio, scrapy\n"),
    ("crawl/codec/pickles.py", "import pickle\n"),
    ("demo/project/pydocs/x.py", "from .items import Page\nimport scrapy\n"),
    ("net/x.py", "TABLE = {1: 2}\n__all__ = ['x']\nAlias = dict[str, int]\n"),
    ("net/x.py", "x = 1  # noqa: BLE001 - whatever user code raises\n"),
    ("net/x.py", "x = 1  # type: ignore[misc]  # the stub is wrong about this\n"),
    ("net/x.py", "def f():\n" + "    x\n" * (FUNCTION_LINES_MAX - 1)),
    ("net/x.py", "# The stub is wrong.\nx = 1  # type: ignore[misc]\n"),
    ("../tests/x.py", "print('x')\n"),
    ("../tests/e2e/x.py", "import pickle\n"),
    ("../tests/site/x.py", "time.sleep(1)\n"),
)


@pytest.mark.parametrize(("path", "text"), GOOD)
def test_what_is_allowed_is_not_reported(path: str, text: str) -> None:
    """The rules are no stricter than they say."""
    source = _planted(path, text)
    assert [what for rule in RULES for what in rule(source)] == []


def _planted(path: str, text: str) -> Source:
    outside = path.startswith("../")
    where = Path(path.removeprefix("../")) if outside else Path("dscrapy") / path
    return Source(where, text)


WholeRule = Callable[[Iterable[Source]], Iterator[str]]
WHOLE_RULES: tuple[WholeRule, ...] = (layout, circles)


@pytest.mark.parametrize("rule", WHOLE_RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: WholeRule) -> None:
    """The package as a whole does not break the rule."""
    assert list(rule(all_sources())) == []


PLANTED_TOGETHER: tuple[tuple[WholeRule, dict[str, str]], ...] = (
    (layout, {f"net/x{number}.py": "" for number in range(FOLDER_FILES_MAX + 1)}),
    (layout, {"net/x.py": "", "crawl/codec/x.py": ""}),
    (layout, {"worker/door.py": ""}),
    (
        circles,
        {
            "net/x.py": "def f():\n    from dscrapy.net.y import g\n",
            "net/y.py": "from dscrapy.net import z\n",
            "net/z.py": "if TYPE_CHECKING:\n    import dscrapy.net.x\n",
        },
    ),
)


@pytest.mark.parametrize(("rule", "files"), PLANTED_TOGETHER)
def test_a_mistake_planted_in_several_files_is_found(
    rule: WholeRule, files: dict[str, str]
) -> None:
    """Each rule sees what it forbids; without the last file nothing is wrong."""
    sources = [_planted(path, text) for path, text in files.items()]
    assert list(rule(sources))
    assert not list(rule(sources[:-1]))


def test_example_settings_are_the_code() -> None:
    """``conf.example.toml`` shows every key with the default that the code has."""
    written = (ROOT / "conf.example.toml").read_text()
    assert written == config.example(), "write config.example() into it"


def test_constraints_pin_the_full_set() -> None:
    """Every requirement is pinned to one version, and nothing names a place."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 30
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", pin) for pin in pins)
    pinned = {re.split("==", pin)[0].lower().replace("_", "-") for pin in pins}
    project = strict.parse_toml(
        "pyproject.toml", (ROOT / "pyproject.toml").read_bytes()
    )
    table = project["project"]
    wanted = [*table["dependencies"], *table["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=~!\[ ]", want)[0].lower() for want in wanted}
    assert names <= pinned
