"""What stands in a markdown file beside its prose: fenced blocks and code spans. Pure.

- ``sh``: commands, as typed; a first line ``# on alpha`` names the machine
- ``text``: what is then seen
- ``python``, ``toml``, ``json``: a file, or what stands in one
"""

import re
from collections.abc import Iterator

import attrs

LANGUAGES = frozenset({"sh", "text", "python", "toml", "json"})

_FENCE = re.compile(r"```(\S*)\s*\Z")
_SAVED_AS = re.compile(r"\bas `([^`]+)`:\Z")
_SPAN = re.compile(r"`([^`]+)`")
_ON = re.compile(r"# on (.+?)(?:[,:;(].*)?\Z")


class MarkdownError(Exception):
    """A file is not written as these tests can read it: line and reason."""


@attrs.frozen(kw_only=True)
class Block:
    """A fenced block: ``line`` is that of its first line of text, from 1.

    ``lead`` is the paragraph before it, on one line.
    """

    language: str
    line: int
    text: str
    lead: str

    @property
    def file(self) -> str:
        """The file that the prose says to save this as, or nothing."""
        found = _SAVED_AS.search(self.lead)
        return found[1] if found else ""

    @property
    def machines(self) -> tuple[str, ...]:
        """The machines that a first comment names: ``# on beta and gamma``."""
        found = _ON.match(self.text.split("\n", 1)[0])
        return tuple(re.split(r", | and ", found[1])) if found else ()

    def commands(self) -> Iterator[tuple[int, str]]:
        """Yield the line and the text of each command, without comments.

        A backslash at the end of a line goes on with the next one.
        """
        begun = ""
        first = self.line
        for number, line in enumerate(self.text.splitlines(), self.line):
            begun += line
            if begun.endswith("\\"):
                begun = begun[:-1]
                continue
            command = re.sub(r"(\A|\s)#.*", "", begun).strip()
            if command:
                yield first, command
            begun, first = "", number + 1
        if begun:
            raise MarkdownError(f"{first}: goes on behind the block's end")


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a file, in order.

    Raises ``MarkdownError`` for one without a language of ours and for a block that
    is indented: nobody could tell what it is.
    """
    lead: list[str] = []
    body: list[str] | None = None
    language = ""
    before = ""
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if body is not None:
            if fence:
                yield Block(
                    language=language,
                    line=number - len(body),
                    text="\n".join(body),
                    lead=" ".join(" ".join(lead).split()),
                )
                body, lead = None, []
            else:
                body.append(line)
        elif fence:
            language = fence[1]
            if language not in LANGUAGES:
                raise MarkdownError(f"{number}: no language of {sorted(LANGUAGES)}")
            body = []
        elif line.startswith("    ") and not before:
            raise MarkdownError(f"{number}: an indented block, fence it")
        elif line.strip():
            lead = [*lead, line] if before else [line]
        before = line.strip()
    if body is not None:
        raise MarkdownError(f"{len(text.splitlines())}: a block without an end")


def spans(text: str) -> Iterator[str]:
    """Yield the code spans of the prose, each on one line; fenced blocks have none."""
    prose: list[str] = []
    inside = False
    for line in text.splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            # A span may go on in the next line, not beyond a paragraph or a row.
            ends = not line.strip() or line.startswith("|")
            prose.append(f"{line}\n\n" if ends else f"{line}\n")
    for paragraph in re.split(r"\n{2,}", "".join(prose)):
        for found in _SPAN.finditer(paragraph):
            yield " ".join(found[1].split())
