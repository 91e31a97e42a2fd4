"""What the demonstration shows: lines, commands as a person types them, progress."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

# With it the longest state fits on a line of 80 columns.
BAR_COLUMNS = 16


@attrs.define
class Screen:
    """Lines on a terminal are cut at words; elsewhere each stays one line."""

    console: Console

    def say(self, text: str = "", style: str = "") -> None:
        # Not as a style of ``print``: the bar below would take it on, too.
        self.console.print(Text(text, style), soft_wrap=not self.console.is_terminal)

    def command(self, *words: str) -> None:
        """Show a command; one that is too long goes on below, as in a shell."""
        width = self.console.width if self.console.is_terminal else None
        self.say(shown_command(words, width), "bold")

    @contextmanager
    def progress(self, name: str, total: int | None) -> "Iterator[Bar]":
        """Show a bar on a terminal, which is drawn when told to; else lines."""
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(BAR_COLUMNS),
            TextColumn("{task.fields[state]}"),
        )
        is_terminal = self.console.is_terminal
        with Progress(
            *columns,
            console=self.console,
            auto_refresh=False,
            disable=not is_terminal,
        ) as bars:
            yield Bar(self, bars, bars.add_task(name, total=total, state=""))


@attrs.define
class Bar:
    """One line of progress."""

    screen: Screen
    bars: Progress
    task: TaskID
    _state: str = ""

    def show(self, state: str, done: int, *, is_last: bool) -> None:
        """Show a state and how much is done; with ``is_last`` that is all there is."""
        total = max(done, 1) if is_last else None
        self.bars.update(self.task, state=state, completed=done, total=total)
        self.bars.refresh()
        if not self.screen.console.is_terminal and state != self._state:
            self.screen.say(f"  {state}")
        self._state = state


def shown_command(words: Sequence[str], width: int | None) -> str:
    """Return a command after a prompt, in lines of at most ``width`` columns.

    A flag stays with its value. A word that is longer than a line is not cut.
    """
    parts: list[str] = []
    for word in map(shlex.quote, words):
        if parts and parts[-1].startswith("-") and " " not in parts[-1]:
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    lines = ["$"]
    for part in parts:
        # Behind all lines but the last there is room for " \".
        if width is not None and len(lines[-1]) + 1 + len(part) > width - 2:
            lines.append("   ")
        lines[-1] += f" {part}"
    return " \\\n".join(lines)
