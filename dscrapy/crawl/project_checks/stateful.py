"""What a component keeps from page to page, found in its source.

A component with state gives other results where a job has several processes, each with
a component of its own: a pipeline that drops duplicates, a file that is opened once.
The source is read, no code is run, and state that the source does not show (a client
whose class keeps something) is not found. Named are

- attributes that are filled while pages are crawled, in ``process_item`` and the like,
  in receivers of signals that come with pages, and in methods that these call:
  counters, containers that are changed, values that a later page reads;
- files that are opened for writing, and databases in files;
- receivers of ``spider_closed`` that read stats.

Attributes that only look like state are not named: a client or a connection made at
first use, a value that passes between a component's own methods, a session's ``add``
and a table's ``insert`` (a container is known by its first value, or by an ``in``).
"""

import ast
import re
from collections import Counter
from typing import NamedTuple

from dscrapy.crawl.project_checks.class_sources import (
    Body,
    Function,
    Sources,
    calls,
    last_name,
    names,
    names_from_arguments,
    targets,
)

# Called for a page or what comes of it.
_EVENTS = frozenset(
    {
        *("process_item", "process_request", "process_response", "process_exception"),
        *("process_spider_input", "process_spider_output"),
        *("process_spider_output_async", "process_spider_exception"),
        *("process_start", "process_start_requests"),
        # Of pipelines for files and images.
        *("get_media_requests", "item_completed", "file_path", "media_to_download"),
        *("media_downloaded", "media_failed"),
    }
)
_EVENT_SIGNALS = frozenset(
    {
        *("item_scraped", "item_dropped", "item_error", "spider_error"),
        *("request_scheduled", "request_dropped", "request_reached_downloader"),
        *("request_left_downloader", "response_received", "response_downloaded"),
        *("headers_received", "bytes_received"),
    }
)
_CLOSED = frozenset({"spider_closed"})
_ENDS = _CLOSED | {"close_spider", "closed", "engine_stopped"}
_BEGINS = frozenset({"__init__", "from_crawler", "open_spider", "spider_opened"})
# Attributes that Scrapy sets, or whose state counts elsewhere.
_SCRAPYS = frozenset({"crawler", "spider", "settings", "stats", "logger", "signals"})
_CHANGES = frozenset(
    {
        *("add", "append", "appendleft", "clear", "discard", "extend", "extendleft"),
        *("insert", "pop", "popitem", "popleft", "remove", "setdefault", "update"),
    }
)
# Functions that open a file, called by name or as an attribute; their default mode.
_OPENS = {"open": "r", "ZipFile": "r", "ExcelWriter": "w"}
# Modules whose ``open`` takes a path first; elsewhere ``open`` may be a path's method.
_OPENERS = frozenset(
    {"io", "codecs", "gzip", "bz2", "lzma", "aiofiles", "tarfile", "dbm"}
)
_DATABASES = frozenset(
    {
        *("sqlite3.connect", "aiosqlite.connect", "apsw.Connection", "shelve.open"),
        *("plyvel.DB", "lmdb.open", "duckdb.connect", "TinyDB", "SqliteDatabase"),
        *("Workbook", "openpyxl.Workbook", "xlsxwriter.Workbook", "SqliteDict"),
    }
)
_MODE = re.compile(r"[rwaxcnbtU+]{1,3}\Z")
_WRITING = frozenset("waxcn+")
_WRITES = frozenset({"write_text", "write_bytes"})


class Kept(NamedTuple):
    """What one class keeps: names of attributes, or ``method()`` for a file that is
    written in a method and kept nowhere."""

    cls: str
    attributes: tuple[str, ...]
    files: tuple[str, ...]
    reads_stats: bool


def scan(cls: type, sources: Sources) -> Kept:
    """Return what the class keeps, from the source of the class and its bases."""
    body = sources.body(cls)
    files = _files(body)
    ends = body.reached(body.receivers(_CLOSED))
    return Kept(
        cls=f"{cls.__module__}.{cls.__qualname__}",
        attributes=tuple(name for name in _Filled(body).names if name not in files),
        files=tuple(files),
        reads_stats=any(map(_reads_stats, ends)),
    )


def _events(body: Body) -> list[str]:
    names = [name for name in body.methods if name in _EVENTS]
    return [*names, *body.receivers(_EVENT_SIGNALS)]


class _Filled:
    """The attributes that are filled while pages are crawled."""

    def __init__(self, body: Body) -> None:
        # A dict as an ordered set.
        self.names: dict[str, None] = {}
        self._body = body
        self._events = set(_events(body))
        self._ends = body.reached([*_ENDS, *body.receivers(_CLOSED)])
        functions = body.reached(sorted(self._events))
        self._of_page = _of_page(body, functions)
        for function in functions:
            self._read(function)

    def _read(self, function: Function) -> None:
        aliases, derived = self._body.aliases(function), names_from_arguments(function)
        declared = {
            name
            for node in ast.walk(function)
            if isinstance(node, ast.Global)
            for name in node.names
        }
        for node in ast.walk(function):
            for target, value in targets(node):
                match target:
                    case ast.Subscript(value=container):
                        name = self._body.root(container, aliases)
                        if name not in self._of_page:
                            self._note(name)
                    case ast.Name(id=name) if name in declared:
                        self._note(name)
                    case ast.Attribute():
                        self._set(function, node, target, value, derived)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = self._body.root(node.func.value, aliases)
                if node.func.attr in _CHANGES and self._body.is_filled(name):
                    self._note(name)

    def _note(self, name: str) -> None:
        if name and name not in _SCRAPYS:
            self.names[name] = None

    def _set(
        self,
        function: Function,
        node: ast.AST,
        target: ast.Attribute,
        value: ast.expr | None,
        derived: set[str],
    ) -> None:
        """Note an attribute that is set, if it grows or a later page reads it."""
        name = self._body.attribute(target)
        if not name or value is None:
            return
        is_extended = isinstance(node, ast.AugAssign) or self._extends_itself(
            value, name
        )
        is_of_page = bool(names(value) & derived)
        if is_extended or (is_of_page and self._is_read_later(function, target, name)):
            self._note(name)

    def _extends_itself(self, value: ast.expr, name: str) -> bool:
        parts = [value]
        if isinstance(value, ast.BoolOp) and isinstance(value.op, ast.Or):
            # ``self.x = self.x or make()`` is a first use.
            parts = value.values[1:]
        read = self._body.is_read
        return any(read(node, name) for part in parts for node in ast.walk(part))

    def _is_read_later(
        self, function: Function, target: ast.Attribute, name: str
    ) -> bool:
        """Whether a value outlives the call that sets it: read before it is set, by
        another event or at the end."""
        read = self._body.is_read
        if any(
            isinstance(node, ast.Attribute) and node.lineno < target.lineno
            for node in ast.walk(function)
            if read(node, name)
        ):
            return True
        readers = list(self._ends)
        if function.name in self._events:
            for event in self._events - {function.name}:
                readers += self._body.methods.get(event, [])
        return any(read(node, name) for reader in readers for node in ast.walk(reader))


def _of_page(body: Body, functions: list[Function]) -> set[str]:
    """Return the attributes whose every value comes from a page: an item that passes
    between methods, for instance."""
    count = Counter[str]()
    for function in functions:
        derived = names_from_arguments(function)
        count.update(
            body.attribute(target)
            for node in ast.walk(function)
            for target, value in targets(node)
            if value is not None and names(value) & derived
        )
    return {name for name, values in body.values.items() if count[name] == len(values)}


# ---- files --------------------------------------------------------------------------


def _files(body: Body) -> dict[str, None]:
    """Return the attributes that hold a written file, and methods that write one."""
    files: dict[str, None] = {}
    of_events = body.reached(_events(body))
    called = body.reached([*_events(body), *_BEGINS, *_ENDS, *body.receivers(_CLOSED)])
    for function in body.functions():
        written = [call for call in calls(function) if _is_written(call)]
        if not written:
            continue
        holders = _holders(body, function, written)
        files.update(dict.fromkeys(holders))
        # Processes do not share a file that is named after a page.
        derived = (
            names_from_arguments(function) if function in of_events else set[str]()
        )
        is_shared = any(not names(call) & derived for call in written)
        if not holders and is_shared and function in called:
            files[f"{function.name}()"] = None
    return files


def _holders(body: Body, function: Function, written: list[ast.Call]) -> list[str]:
    """Return the attributes that keep one of these calls' results, also by way of a
    local or inside of something else."""
    holders, local = [], set[str]()
    for node in ast.walk(function):
        for target, value in targets(node):
            if value is None:
                continue
            is_file = any(call in written for call in calls(value))
            if not is_file and not names(value) & local:
                continue
            name = body.root(target, {})
            if name:
                holders.append(name)
            elif isinstance(target, ast.Name) and not isinstance(node, ast.withitem):
                local.add(target.id)
    return holders


def _is_written(call: ast.Call) -> bool:
    """Whether a call opens a file for writing, or a database in a file."""
    name, dotted = last_name(call.func), ast.unparse(call.func)
    if name in _WRITES:
        return True
    constants = {arg.value for arg in call.args if isinstance(arg, ast.Constant)}
    if dotted in _DATABASES:
        return not constants & {":memory:", "r"}
    if name not in _OPENS:
        return False
    takes_path = isinstance(call.func, ast.Name) or dotted.partition(".")[0] in _OPENERS
    words = [word.value for word in call.keywords if word.arg in ("mode", "flag")]
    modes = [*call.args[1 if takes_path else 0 :][:2], *words]
    for mode in modes:
        text = mode.value if isinstance(mode, ast.Constant) else None
        if isinstance(text, str) and _MODE.match(text):
            return bool(_WRITING.intersection(text))
    if not call.args[1:2] and not words:
        return bool(_WRITING.intersection(_OPENS[name]))
    # A mode that is no constant may be one for writing.
    return any(not isinstance(mode, ast.Constant) for mode in [*call.args[1:2], *words])


# ---- stats --------------------------------------------------------------------------


def _reads_stats(function: Function) -> bool:
    return any(
        isinstance(call.func, ast.Attribute)
        and call.func.attr in ("get_value", "get_stats")
        and "stats" in ast.unparse(call.func.value)
        for call in calls(function)
    )
