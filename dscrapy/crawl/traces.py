"""Tracebacks for the project's authors: from their own code on.

Frames before it, in dscrapy, Scrapy and the standard library, say nothing about a
mistake in a project. An error that our own code raised is shown with all its frames.
"""

import os
import sysconfig
import traceback
from collections.abc import Iterator

import scrapy
import twisted

import dscrapy


def _folder(file: str | None) -> str:
    return os.path.join(os.path.dirname(file or ""), "")


_OURS = _folder(dscrapy.__file__)
_STDLIB = os.path.join(sysconfig.get_path("stdlib"), "")
_LIBRARIES = (_OURS, _folder(scrapy.__file__), _folder(twisted.__file__))
# Folders of packages, perhaps inside of the standard library's.
_PACKAGES = ("site-packages", "dist-packages")


def user_trace(error: BaseException) -> str:
    """Return the traceback of an error and its causes, without the frames that lead to
    the project's code."""
    trace = traceback.TracebackException.from_exception(error)
    for part in _chained(trace, set()):
        frames = _of_project(list(part.stack), is_syntax=_is_syntax(part))
        # An error without frames is its last line alone.
        part.stack = traceback.StackSummary.from_list(frames) if frames else None  # type: ignore[assignment] # as `format` expects it
    return "".join(trace.format())


def _chained(
    error: traceback.TracebackException, seen_ids: set[int]
) -> Iterator[traceback.TracebackException]:
    if id(error) in seen_ids:
        return
    seen_ids.add(id(error))
    yield error
    for linked in (error.__cause__, error.__context__, *(error.exceptions or ())):
        if linked is not None:
            yield from _chained(linked, seen_ids)


def _is_syntax(error: traceback.TracebackException) -> bool:
    # A syntax error names the line in the project; no frame does.
    return error.exc_type is not None and issubclass(error.exc_type, SyntaxError)


def _of_project(
    frames: list[traceback.FrameSummary], *, is_syntax: bool
) -> list[traceback.FrameSummary]:
    frames = [frame for frame in frames if not _imports(frame.filename)]
    if frames and frames[-1].filename.startswith(_OURS):
        return frames
    frames = [frame for frame in frames if not frame.filename.startswith(_OURS)]
    for place, frame in enumerate(frames):
        if not _is_library(frame.filename):
            return frames[place:]
    # No code of the project ran: a class is missing, or an argument.
    return [] if is_syntax else frames


def _imports(file: str) -> bool:
    return file.startswith(("<frozen importlib", os.path.join(_STDLIB, "importlib")))


def _is_library(file: str) -> bool:
    if file.startswith(_LIBRARIES) or file.startswith("<frozen"):
        return True
    is_package = any(name in file for name in _PACKAGES)
    return file.startswith(_STDLIB) and not is_package
