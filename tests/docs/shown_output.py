"""Whether what a document shows of a terminal is what was seen there. Pure.

Of a ``text`` block each line has to be seen, in this order; there may be more between.
Times, dates and ids may be others, and any number of spaces is as good as another. A
line with ``...`` is an example of its kind: any text may stand there, and its numbers
may be others. A line that is nothing but ``...`` says that something was left out.
"""

import re

_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")
_SKIPPED = "..."
# What is never the same again: when and how long, and who.
_VARIES = (
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "<date>"),
    (re.compile(r"\b[0-9a-f]{16}\b"), "<id>"),
    (re.compile(r"\b\d+(?:\.\d+)?(?: [dhm] \d+ [hms]| s)\b"), "<span>"),
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def screen(data: bytes) -> str:
    """Return the text of what a program wrote to its terminal: lines, no colours.

    A line that is drawn over stands there as often as it was drawn.
    """
    text = _CONTROL.sub(b"", data).decode(errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def missing(shown: str, seen: str) -> str:
    """Return the first line of ``shown`` that was not ``seen``; empty if all were."""
    rest = iter(seen.splitlines())
    for line in shown.splitlines():
        if line.strip() in ("", _SKIPPED):
            continue
        pattern = _pattern(line)
        if not any(pattern.fullmatch(_normal(one)) for one in rest):
            return line
    return ""


def _pattern(line: str) -> re.Pattern[str]:
    parts = [re.escape(_normal(part)) for part in line.split(_SKIPPED)]
    if len(parts) == 1:
        return re.compile(parts[0])
    return re.compile(".*?".join(_NUMBER.sub(r"[0-9.]+", part) for part in parts))


def _normal(line: str) -> str:
    for pattern, word in _VARIES:
        line = pattern.sub(word, line)
    return " ".join(line.split())
