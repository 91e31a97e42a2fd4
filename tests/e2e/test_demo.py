"""The demonstration, and its site and project as plain Scrapy crawls them."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from dscrapy.demo import __main__ as demo
from dscrapy.demo import site
from dscrapy.demo.narration import shown_command
from dscrapy.demo.plain import difference
from tests.hang import HANG_S

LIMIT = 80
TIMEOUT_S = HANG_S
POLL_S = 0.05
DEMO = [sys.executable, "-m", "dscrapy.demo"]


@asynccontextmanager
async def _serving(folder: Path) -> AsyncIterator[str]:
    empty = folder / "empty"
    empty.mkdir()
    process, address = await site.start(empty)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.drain, process)
        yield address
        await site.end(process, site.STOP_S_MAX)


async def _crawl(out: Path, *addresses: str) -> tuple[list[Any], str]:
    """Return the items of plain ``scrapy crawl`` and its log."""
    arguments = ("-a", f"sites={','.join(addresses)}", "-a", f"limit={LIMIT}")
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


@pytest.mark.long
async def test_pages_hang_on_the_sites_alone(tmp_path: Path) -> None:
    """Two runs give the same items, within the limit; the sites share no module."""
    async with _serving(tmp_path) as address:
        # The same site by another name: what has been imported there stays so.
        addresses = (address, address.replace("127.0.0.1", "localhost"))
        first, log = await _crawl(tmp_path / "1.jsonl", *addresses)
        again, _ = await _crawl(tmp_path / "2.jsonl", *addresses)
    assert "ERROR" not in log
    assert "Traceback" not in log

    def by_url(items: list[Any]) -> dict[str, Any]:
        return {item["url"]: item for item in items}

    assert by_url(first) == by_url(again)
    assert len(by_url(first)) == len(first)
    assert LIMIT // 2 < len(first) < LIMIT
    modules = [
        {item["module"] for item in first if item["url"].startswith(address)}
        for address in addresses
    ]
    assert all(modules)
    assert not modules[0] & modules[1]
    # Pages below the index are among them, and what they say is really there.
    assert any("." in item["module"] for item in first)
    assert sum(item["functions"] for item in first) > len(first)
    assert sum(bool(item["synopsis"]) for item in first) > len(first) / 2
    for item in first:
        assert item["title"].endswith(item["module"])
        assert item["url"].endswith(f"/{item['module']}.html")


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


async def test_items_are_those_of_plain_scrapy_though_a_worker_is_killed(
    tmp_path: Path,
) -> None:
    """``make demo`` kills a worker that has work, and ends well."""
    with trio.fail_after(TIMEOUT_S):
        done = await trio.run_process(
            DEMO, capture_stdout=True, check=False, cwd=tmp_path, env=_environ(tmp_path)
        )
    said = done.stdout.decode()
    assert done.returncode == 0, said
    shared = re.search(r"so far (\d+) pages by worker-1, (\d+) pages by worker-2", said)
    assert shared, said
    done_by = [int(pages) for pages in shared.groups()]
    assert "worker-2 is killed (SIGKILL) in the middle of its work" in said
    assert "gives worker-2 up after 2 s: its pages are worker-1's now" in said
    assert f"{demo.PAGES_MAX} pages at most" in said
    ours, plain = (
        Counter((tmp_path / "demo-out" / name).read_text().splitlines())
        for name in ("items.jsonl", "plain.jsonl")
    )
    assert ours == plain
    # Either had done some, and there were more to come.
    assert done_by[0] > 0
    assert done_by[1] >= demo.OWN_PAGES_MIN
    assert sum(done_by) < ours.total()
    counts = f"{ours.total()} items by dscrapy, {plain.total()} by plain Scrapy"
    assert f"{counts}: the same" in said
    assert not _left(tmp_path)


async def test_nothing_stays_behind_when_it_is_interrupted(tmp_path: Path) -> None:
    """Ctrl-C in the middle of the crawl ends every process."""
    with trio.fail_after(TIMEOUT_S):
        process = await trio.lowlevel.open_process(
            DEMO, stdout=subprocess.PIPE, cwd=tmp_path, env=_environ(tmp_path)
        )
        assert process.stdout is not None
        said = b""
        while b" pages on worker-" not in said:
            data = await process.stdout.receive_some()
            assert data, said.decode()
            said += data
        process.send_signal(signal.SIGINT)
        async for data in process.stdout:
            said += data
        assert await process.wait() == 128 + signal.SIGINT
        assert said.decode().endswith("stopped\n")
        # A crawl process whose worker was killed ends by itself, at once.
        while _left(tmp_path):  # noqa: ASYNC110 - no event tells it
            await trio.sleep(POLL_S)


def test_a_difference_is_told() -> None:
    """Items that are missing, more or there twice are counted; their order is free."""
    plain = Counter({"a": 1, "b": 2, "c": 1})
    assert difference(Counter("bcab"), plain) == ""
    assert difference(Counter("abc"), plain) == "1 missing, 0 more"
    assert difference(Counter("abbca"), plain) == "0 missing, 1 more"
    assert difference(Counter("abbd"), plain) == "1 missing, 1 more"


def test_a_long_command_goes_on_below() -> None:
    """A command is cut between its words, never between a flag and its value."""
    words = ("dscrapy", "submit", "spider", "-a", "name=a b", "-p", "2")
    assert shown_command(words, None) == "$ dscrapy submit spider -a 'name=a b' -p 2"
    lines = [
        "$ dscrapy submit spider \\",
        "    -a 'name=a b' -p 2",
    ]
    assert shown_command(words, 30).splitlines() == lines
    assert shown_command(words, 25).splitlines() == lines
    assert len(shown_command(words, 24).splitlines()) == 3


def _environ(folder: Path) -> dict[str, str]:
    """Return variables by which every process is known that comes of these."""
    return os.environ | {"TMPDIR": str(folder)}


def _left(folder: Path) -> list[int]:
    """Return the processes of this machine that have the variables of ``_environ``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"TMPDIR={folder}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found
