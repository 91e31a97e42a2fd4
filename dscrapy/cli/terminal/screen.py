"""Writing for people and scripts: results on stdout, everything else on stderr.

Text that comes from jobs may hold anything; control characters are escaped wherever
a terminal would obey them. Decoration appears on terminals alone.
"""

import codecs
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import attrs

from dscrapy.cli.terminal.tables import Table, cut, fitted
from dscrapy.errors import UserError
from dscrapy.text import clean, clean_lines

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult


Block = str | Table


def note(text: str) -> None:
    """Write one line for people to stderr."""
    write_err(f"{clean(text)}\n")


def write_err(text: str) -> None:
    """Write to stderr as it stands."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except BrokenPipeError:
        # Nobody reads the remarks; the results still matter.
        pass


def write_line(text: str) -> None:
    """Write one line of results to stdout."""
    write_out(f"{text}\n".encode("utf-8", "surrogateescape"))


def write_out(data: bytes) -> None:
    """Write results to stdout.

    Raises ``BrokenPipeError`` when nobody reads on and ``UserError`` when they
    cannot be written.
    """
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot write to stdout: {error.strerror}") from None


def discard_stdout() -> None:
    """Let what goes to stdout from now on go nowhere: whoever read it has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class Bytes:
    """Writes bytes of jobs (items, logs) to ``stream`` as they come.

    On a terminal control characters are escaped; elsewhere the bytes are exact.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        # A character may be cut by the end of a chunk.
        self._decoder = (
            codecs.getincrementaldecoder("utf-8")("backslashreplace")
            if stream.isatty()
            else None
        )

    def write(self, data: bytes) -> None:
        """Write a chunk; raises as ``write_out``."""
        if self._decoder is not None:
            text = self._decoder.decode(data).replace("\r\n", "\n")
            data = clean_lines(text).encode("utf-8", "surrogateescape")
        if self._stream is sys.stdout:
            write_out(data)
            return
        try:
            self._stream.buffer.write(data)  # type: ignore[attr-defined] # text over bytes
            self._stream.flush()
        except BrokenPipeError:
            # As ``write_err``.
            pass


class Ticker:
    """One line at the bottom of the terminal on stderr, drawn over and over."""

    def __init__(self) -> None:
        self._shown = ""

    @property
    def width(self) -> int:
        """How much a line may hold; in the last column it would wrap."""
        return shutil.get_terminal_size().columns - 1

    def show(self, text: str) -> None:
        """Replace the line, cut to the terminal's width."""
        self._shown = cut(clean(text), self.width)
        write_err(f"\r\x1b[K{self._shown}")

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            write_err("\r\x1b[K")
        self._shown = ""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the line away while something else is written."""
        shown = self._shown
        self.clear()
        yield
        if shown:
            self.show(shown)


def is_decorated(stream: IO[str]) -> bool:
    """Whether ``stream`` is a terminal that may show colour and redraw."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def out_width() -> int | None:
    """Return the width of the terminal that stdout is, None if it is none."""
    if not is_decorated(sys.stdout):
        return None
    return shutil.get_terminal_size().columns


def print_blocks(blocks: Iterable[Block]) -> None:
    """Write blocks to stdout, a blank line between them."""
    if not is_decorated(sys.stdout):
        write_line(plain(blocks))
        return
    try:
        make_console(sys.stdout).print(decorated(blocks))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot write to stdout: {error.strerror}") from None


def plain(blocks: Iterable[Block]) -> str:
    """Return blocks as text: columns are aligned and never cut."""
    return "\n\n".join("\n".join(_lines(block)) for block in blocks)


def decorated(blocks: Iterable[Block]) -> "RenderableType":
    """Return blocks for a terminal, see ``fitted``."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for block in blocks:
        if parts:
            parts.append("")
        # A table's width is known when it is drawn.
        parts.append(Text(block) if isinstance(block, str) else _Fitted(block))
    return Group(*parts)


@attrs.frozen
class _Fitted:
    """A table that takes the terminal's width whenever it is drawn."""

    table: Table

    def __rich_console__(
        self, console: "Console", options: "ConsoleOptions"
    ) -> "RenderResult":
        from rich.text import Text

        for is_head, line in fitted(self.table, options.max_width):
            # A single name may be longer than the terminal is wide: it goes on below.
            yield Text(line, "bold" if is_head else "", overflow="fold")


def make_console(stream: IO[str]) -> "Console":
    """Return a rich console that takes our text as it stands."""
    from rich.console import Console

    return Console(file=stream, markup=False, highlight=False, emoji=False)


def _lines(block: Block) -> Iterator[str]:
    if isinstance(block, str):
        yield block
        return
    table = (block.headers, *block.rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (
            cell.rjust(width) if header in block.right else cell.ljust(width)
            for cell, header, width in zip(row, block.headers, widths, strict=True)
        )
        yield "  ".join(cells).rstrip()
