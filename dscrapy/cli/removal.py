"""Commands that remove: ended jobs of a master, and what `crawl` keeps."""

import os
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable
from pathlib import Path

from dscrapy.cli.connect import for_each, run_client
from dscrapy.cli.local import crawl_keep
from dscrapy.cli.local.crawl_state import FOLDER
from dscrapy.cli.parser import PROGRAM
from dscrapy.cli.terminal.render import cell, dump, plural
from dscrapy.cli.terminal.screen import note, print_blocks, write_line
from dscrapy.cli.terminal.tables import Table
from dscrapy.client import Client
from dscrapy.conf.config import expanded, load, override
from dscrapy.errors import UserError
from dscrapy.keep import Keep
from dscrapy.messages import Prune, Pruned
from dscrapy.text import clean


def rm(options: Namespace) -> int:
    """Remove ended jobs; after a refusal the others are removed all the same."""

    async def act(client: Client) -> int:
        async def remove(identity: str) -> None:
            await client.remove(identity)
            write_line(f"{identity} removed")

        return await for_each(options.jobs, remove)

    return run_client(options, act)


def prune(options: Namespace) -> int:
    """Remove the oldest ended jobs; print their ids."""

    request = Prune(
        call=0,
        keep_jobs=options.keep_jobs,
        keep_days=options.keep_days,
        keep_bytes=options.keep_bytes,
        dry_run=options.dry_run,
    )

    async def act(client: Client) -> int:
        await prune_all(client.prune, request)
        return 0

    return run_client(options, act)


async def prune_all(
    prune_batch: Callable[[Prune], Awaitable[Pruned]], request: Prune
) -> None:
    """Prune until nothing is left, since one answer names few jobs; print them all."""
    count = size = 0
    while True:
        pruned = await prune_batch(request)
        for identity in pruned.jobs:
            write_line(identity)
        count, size = count + len(pruned.jobs), size + pruned.bytes
        if request.dry_run or not pruned.left:
            break
    if pruned.left:
        note(f"{PROGRAM}: and {pruned.left} more")
    count, size = count + pruned.left, size + pruned.left_bytes
    _report(plural(count, "job"), size, request.dry_run)


def _report(subject: str, size: int, is_dry: bool) -> None:
    verb = "would be removed" if is_dry else "removed"
    note(f"{PROGRAM}: {subject} {verb}, {size_text(size)}")


def size_text(size: int) -> str:
    """Return bytes as people read them."""
    number, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{size} bytes" if unit == "bytes" else f"{number:.1f} {unit}"


def crawls(options: Namespace) -> int:
    """List the crawls that `crawl` keeps, or remove some."""
    conf = None if options.conf is None else expanded(options.conf)
    state = None if options.state is None else expanded(options.state)
    config = override(load(conf, os.environ), "master", state=state)
    if options.action == "rm":
        return _remove(config.state, options.ids, options.dry_run)
    if options.action == "prune":
        given_limits = Keep(
            jobs=options.keep_jobs, days=options.keep_days, bytes=options.keep_bytes
        )
        limits = (
            crawl_keep.limits_of(config) if given_limits.is_everything else given_limits
        )
        removed = crawl_keep.prune(config.state, limits, dry_run=options.dry_run)
        for crawl in removed:
            write_line(crawl.id)
        size = sum(crawl.bytes for crawl in removed)
        _report(plural(len(removed), "crawl"), size, options.dry_run)
        return 0
    found = crawl_keep.kept(config.state)
    if options.json:
        write_line(dump([crawl.as_json() for crawl in found]))
        return 0
    if found:
        print_blocks([_table(found)])
    else:
        note(f"{PROGRAM}: no crawls are kept in {config.state / FOLDER}")
    return 0


def _table(found: list[crawl_keep.Kept]) -> Table:
    return Table(
        ("CRAWL", "STATE", "TIME", "PAGES", "ITEMS", "SIZE", "SPIDER", "ARGUMENTS"),
        tuple(
            (
                crawl.id,
                crawl.stands,
                time.strftime("%Y-%m-%d %H:%M", time.localtime(crawl.at)),
                str(crawl.pages) if crawl.done else "",
                str(crawl.items) if crawl.done else "",
                size_text(crawl.bytes),
                clean(crawl.spider),
                cell(" ".join(crawl.arguments)),
            )
            for crawl in found
        ),
        frozenset({"PAGES", "ITEMS", "SIZE"}),
        free=frozenset({"ARGUMENTS"}),
    )


def _remove(state: Path, ids: list[str], is_dry: bool) -> int:
    code = 0
    for identity in ids:
        try:
            size = crawl_keep.remove(state, identity, dry_run=is_dry)
        except UserError as error:
            note(f"{PROGRAM}: {error}")
            code = error.exit_code
        else:
            _report(identity, size, is_dry)
    return code
