"""Make ``docs/demo.svg``: what ``make demo`` prints in a terminal of 80 columns.

Nothing in it is written by hand. The file loads nothing, fonts included, so it may be
shown as an image anywhere.
"""

import io
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

from rich.ansi import AnsiDecoder
from rich.console import Console

ROOT = Path(__file__).parent.parent
SVG = Path(__file__).with_name("demo.svg")
TITLE = "make demo"
# Sites at the same addresses each time, so that a new picture differs in figures alone.
COMMAND = (sys.executable, "-m", "dscrapy.demo", "--port", "8001")
COLUMNS, ROWS = 80, 24
# Variables that would have it print something else.
CHOOSING = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "COLORTERM", "TERM_PROGRAM")

# Colours and styles, and what draws one line anew: of such a line, what stands behind
# the last return is what is seen.
KNOWN = re.compile(r"\x1b\[(?:[0-9;]*m|2K|\?25[hl])")

# What rich makes of the end of a line.
LINE_END = re.compile(r"<text [^>]*>\n</text>")

# As rich's own, without the fonts that it loads; the braces are rich's.
FORMAT = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>What make demo prints</title>
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-size: {char_height}px;
  line-height: {line_height}px;
}}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; font-weight: bold }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})"
  clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def main() -> int:
    """Run the demonstration, write the picture; return the exit code."""
    status, printed = record(COMMAND)
    try:
        if status:
            raise ValueError(f"the demonstration ended with {status}")
        SVG.write_text(draw(printed), encoding="utf-8")
    except ValueError as error:
        sys.stderr.write(f"no picture: {error}\n")
        return 1
    sys.stdout.write(f"{SVG.relative_to(ROOT)} is what you have just seen\n")
    return 0


def record(command: tuple[str, ...]) -> tuple[int, str]:
    """Run a command in a terminal of its own; return its status and what it printed.

    That is shown meanwhile.
    """
    environ = {key: value for key, value in os.environ.items() if key not in CHOOSING}
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (ROWS, COLUMNS))
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env=environ | {"TERM": "xterm-256color"},
    ) as process:
        os.close(theirs)
        printed = b""
        while data := _read(ours):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            printed += data
        os.close(ours)
    return process.returncode, printed.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        # So Linux tells that nobody has the other end open any more.
        return b""


def draw(printed: str) -> str:
    """Return the picture of what was printed; raises ``ValueError`` if it cannot."""
    if "\x1b" in (rest := KNOWN.sub("", printed)):
        unknown = rest[rest.index("\x1b") :][:8]
        raise ValueError(f"a control sequence that is not known here: {unknown!r}")
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for line in AnsiDecoder().decode(printed.rstrip().replace("\r\n", "\n")):
        if line.cell_len > COLUMNS:
            raise ValueError(f"a line that the terminal would cut: {line.plain}")
        console.print(line, no_wrap=True)
    # rich forgets the clip of the last line, which is this.
    console.print()
    picture = console.export_svg(title=TITLE, unique_id="demo", code_format=FORMAT)
    # One element a line, so that a new picture differs where the text does.
    picture = LINE_END.sub("", picture).replace("><text", ">\n<text")
    lines = (line.strip() for line in picture.splitlines())
    return "".join(f"{line}\n" for line in lines if line)


if __name__ == "__main__":
    sys.exit(main())
