"""How ``--help`` looks: commands in groups, and the default of every option."""

import argparse
import shutil
import textwrap
from collections.abc import Iterable, Mapping

# Each command stands in one group, in this order.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "crawl on this machine": ("crawl", "crawls"),
    "serve on many": ("master", "worker"),
    "give work": ("submit",),
    "look": ("status", "jobs", "show", "workers"),
    "results": ("wait", "items", "logs"),
    "change": ("pause", "resume", "cancel", "retry", "drain"),
    "remove": ("rm", "prune"),
}
_REST = "more"
# Longer lines are hard to read.
_COLUMNS_MAX = 100


class Formatter(argparse.HelpFormatter):
    """Adds the default to what takes a value and does not name it itself."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        takes_value = bool(action.option_strings) and action.nargs != 0
        if not takes_value or "default:" in text:
            return text
        if action.default in (None, [], ""):
            return f"{text} (default: none)"
        return f"{text} (default: %(default)s)"


def overview(
    usage: str, description: str, commands: Iterable[tuple[str, str]], epilog: str
) -> str:
    """Return the help of the whole program; ``commands`` are names and what they do."""
    remaining = dict(commands)
    wide = max(map(len, remaining), default=0)
    blocks = [usage, description]
    for title, names in (*GROUPS.items(), (_REST, tuple(remaining))):
        entries = [(name, remaining.pop(name)) for name in names if name in remaining]
        if entries:
            lines = [
                _entry(f"  {name.ljust(wide)}  ", about) for name, about in entries
            ]
            blocks.append("\n".join([f"{title}:", *lines]))
    blocks.append(_entry("", epilog))
    return "\n\n".join(blocks) + "\n"


def _entry(head: str, about: str) -> str:
    width = min(shutil.get_terminal_size().columns, _COLUMNS_MAX)
    below = " " * len(head)
    return textwrap.fill(about, width, initial_indent=head, subsequent_indent=below)
