"""The tutorial, from top to bottom."""

import os
import signal
from pathlib import Path

import attrs
import pytest

from tests.docs.terminals import Terminal, terminals
from tests.docs.walk import Walk

ROOT = Path(__file__).parents[2]
# Of 100: a crawl that has so many is in its middle.
BEGUN_BOOKS = 12


@pytest.mark.long
def test_the_tutorial_is_true(tmp_path: Path) -> None:
    """A newcomer who types all of it sees what it shows."""
    with terminals() as opened:
        walk = Walk(ROOT / "docs" / "tutorial.md", tmp_path, opened)
        (walk.machine("here").home / "dscrapy").symlink_to(ROOT)
        shop = _Shop(walk)
        walk.before = {
            "dscrapy crawl": shop.opens,
            "kill -9 $(cat crawl.pid)": shop.closes,
            "job=$(dscrapy submit": shop.opens,
            "dscrapy status --watch": shop.closes,
            "kill -9 $(cat two.pid)": shop.serves_two,
        }
        walk.run("here")


@attrs.define
class _Shop:
    """The tutorial's site: how far crawls are, and as far as they may come.

    A reader has the time to look and to type; on a busy machine a crawl would go on
    meanwhile, to its end.
    """

    walk: Walk
    seen: str = ""

    def opens(self) -> bool:
        """Serve from now on; what was served before does not count."""
        self._send(signal.SIGCONT)
        self.seen = self._terminal.text
        return True

    def closes(self) -> bool:
        """Whether the crawl is well under way: then it stays where it is."""
        if self._served("/book/") < BEGUN_BOOKS:
            return False
        self._send(signal.SIGSTOP)
        return True

    def serves_two(self) -> bool:
        """Whether both workers have a process that crawls; the shop opens for two.

        Each process asks for the robots.txt of its hosts; the first one had both.
        """
        state = self.walk.machine("here").home / ".local" / "state" / "dscrapy"
        (log,) = (state / "jobs").glob("*/log.txt")
        if log.read_text().count("Spider opened") < 2:
            return False
        self._send(signal.SIGCONT)
        return self._served("/robots.txt") > 2

    def _served(self, path: str) -> int:
        request = f"GET {path}"
        return self._terminal.text.count(request) - self.seen.count(request)

    def _send(self, number: signal.Signals) -> None:
        os.killpg(self._terminal.process.pid, number)

    @property
    def _terminal(self) -> Terminal:
        return self.walk.terminal("python3 bookshop.py")
