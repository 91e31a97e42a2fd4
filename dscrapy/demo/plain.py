"""The same crawl by plain Scrapy, and whether its items are the same."""

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dscrapy.demo.cluster import Environ, run
from dscrapy.demo.narration import Screen


async def crawl(
    screen: Screen, project: Path, words: Sequence[str], out: Path, environ: Environ
) -> None:
    """Crawl with ``scrapy crawl`` in the project's folder; items go to ``out``.

    Raises ``DemoError``.
    """
    words = ["crawl", *words, "-O", _seen_from(project, out)]
    screen.command("cd", short(project))
    screen.command("scrapy", *words)
    await run([sys.executable, "-m", "scrapy", *words], project, environ)


def read(path: Path) -> Counter[str]:
    """Return the items of a file of JSON lines, and how often each is there."""
    lines = path.read_text().splitlines()
    # The order of keys is none of an item's.
    return Counter(json.dumps(json.loads(line), sort_keys=True) for line in lines)


def difference(items: Counter[str], expected: Counter[str]) -> str:
    """Say what ours lack of plain Scrapy's and have beyond them; nothing if neither."""
    missing, extra = (expected - items).total(), (items - expected).total()
    return f"{missing} missing, {extra} more" if missing or extra else ""


def _seen_from(folder: Path, path: Path) -> str:
    return os.path.relpath(path.absolute(), folder)


def short(path: Path) -> str:
    """Return a path as a person would type it: from the current folder if below."""
    current = Path.cwd()
    return str(path.relative_to(current)) if path.is_relative_to(current) else str(path)
