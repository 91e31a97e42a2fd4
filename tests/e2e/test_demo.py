"""The demonstration's site and project, crawled by plain Scrapy."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from dscrapy.demo import __main__ as demo
from dscrapy.demo import site
from tests.hang import HANG_S

LIMIT = 40
TIMEOUT_S = HANG_S


@asynccontextmanager
async def _serving(folder: Path) -> AsyncIterator[str]:
    empty = folder / "empty"
    empty.mkdir()
    process, address = await site.start(empty)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.drain, process)
        yield address
        await site.end(process, site.STOP_S_MAX)


async def _crawl(address: str, out: Path, part: int) -> tuple[list[Any], str]:
    """Return the items of plain ``scrapy crawl`` and its log."""
    arguments = ("-a", f"site={address}", "-a", f"part={part}", "-a", f"limit={LIMIT}")
    output = ("-o", str(out), "-L", "INFO")
    with trio.fail_after(TIMEOUT_S):
        done = await trio.run_process(
            [sys.executable, "-m", "scrapy", "crawl", "pydoc", *arguments, *output],
            cwd=demo.PROJECT,
            capture_stderr=True,
            stdin=subprocess.DEVNULL,
        )
    lines = (await trio.Path(out).read_text()).splitlines()
    return [json.loads(line) for line in lines], done.stderr.decode()


async def test_pages_hang_on_the_site_alone(tmp_path: Path) -> None:
    """Two runs give the same items, within the limit; the parts share none."""
    async with _serving(tmp_path) as address:
        first, log = await _crawl(address, tmp_path / "1.jsonl", 1)
        again, _ = await _crawl(address, tmp_path / "2.jsonl", 1)
        other, _ = await _crawl(address, tmp_path / "3.jsonl", 2)
    assert "ERROR" not in log
    assert "Traceback" not in log

    def by_url(items: list[Any]) -> dict[str, Any]:
        return {item["url"]: item for item in items}

    assert by_url(first) == by_url(again)
    assert len(by_url(first)) == len(first)
    assert LIMIT // 2 < len(first) < LIMIT
    assert not by_url(first).keys() & by_url(other).keys()
    # Pages below the index are among them, and what they say is really there.
    assert any("." in item["module"] for item in first + other)
    assert sum(item["functions"] for item in first) > len(first)
    assert sum(bool(item["synopsis"]) for item in first) > len(first) / 2
    for item in first:
        assert item["title"].endswith(item["module"])
        assert item["url"] == f"{address}{item['module']}.html"


async def test_site_ends_with_its_owner(tmp_path: Path) -> None:
    """The site is reachable while it is served and gone afterwards."""
    async with _serving(tmp_path) as address:
        host, port = address.removeprefix("http://").rstrip("/").split(":")
        stream = await trio.open_tcp_stream(host, int(port))
        await stream.aclose()
    try:
        stream = await trio.open_tcp_stream(host, int(port))
    except OSError:
        return
    await stream.aclose()
    raise AssertionError("the site still listens")
