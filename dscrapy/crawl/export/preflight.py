"""Checks before a crawl whether items can be written where the command line says.

The project decides which formats and storages there are, and the command line does not
run its code: settings may do anything to the process that loads them. So this is a
process of its own, ``python -P -m dscrapy.crawl.export.preflight`` in the project's
folder. It reads a ``Question`` from stdin and writes an ``Answer`` to stdout.
"""

import io
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from dscrapy.errors import UsageError, UserError
from dscrapy.model import JobSpec


class Output(msgspec.Struct, kw_only=True, frozen=True):
    """One place for items: a file, or a URI where ``is_uri``."""

    place: str
    is_uri: bool
    format: str
    append: bool


class Question(msgspec.Struct, kw_only=True, frozen=True):
    """Without a ``spec`` the formats and storages are Scrapy's own."""

    outputs: tuple[Output, ...]
    spec: JobSpec | None


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """``fault`` is empty if nothing is wrong; ``is_usage`` if the command line is."""

    fault: str = ""
    is_usage: bool = False


def answer(question: Question) -> Answer:
    """Look at the outputs; the project in the current folder is loaded."""
    from dscrapy.crawl.export.exporting import Target, check

    targets = [
        Target(
            place=output.place if output.is_uri else Path(output.place),
            format=output.format,
            append=output.append,
        )
        for output in question.outputs
    ]
    try:
        check(targets, question.spec)
    except UserError as error:
        return Answer(fault=str(error), is_usage=isinstance(error, UsageError))
    return Answer()


class _EmptyInput(io.RawIOBase):
    """An empty stdin: the input is for the crawl itself."""

    was_read = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.was_read = True
        return 0


def main() -> None:
    """Answer one question."""
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    stdin = _EmptyInput()
    sys.stdin = io.TextIOWrapper(io.BufferedReader(stdin))
    # What the project prints is for people.
    out = os.dup(1)
    os.dup2(2, 1)
    reply = answer(question)
    if stdin.was_read and not reply.is_usage:
        # How a project loads that needs its input cannot be found out here.
        reply = Answer()
    data = msgspec.json.encode(reply)
    with open(out, "wb") as file:
        file.write(data)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the project's are not waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
