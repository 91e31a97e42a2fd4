"""Unfinished crawls of the same spider that the command at hand does not go on with."""

import shlex

from dscrapy.cli.local.crawl_state import Crawl, Record


def others_line(crawl: Crawl, mine: Record) -> str:
    """Return a line about the latest one and how to go on with it; empty if there is
    none. ``mine`` is what was begun instead."""
    found = crawl.others_unfinished()
    if not found:
        return ""
    latest = found[0]
    more = f" (there are {len(found)})" if len(found) > 1 else ""
    return (
        f"starting anew: the unfinished crawl of {crawl.spider} has "
        f"{_differences(mine, latest)}{more}; to go on with it: {_way(mine, latest)}"
    )


def _differences(mine: Record, other: Record) -> str:
    differences = [
        name
        for name, one, two in (
            ("other -a", mine.args, other.args),
            ("other -s", mine.settings, other.settings),
            ("another folder", mine.around.get("folder"), other.around.get("folder")),
            ("other SCRAPY_* variables", _variables(mine), _variables(other)),
        )
        if one != two
    ]
    # A release before this one did not note what they were.
    return ", ".join(differences) if other.command else "other -a or -s"


def _way(mine: Record, other: Record) -> str:
    if not other.command:
        return "run it with its own -a and -s"
    words = []
    if other.folder != mine.folder:
        words.append(f"cd {shlex.quote(other.folder)} &&")
    mine_variables, others = _variables(mine), _variables(other)
    if mine_variables != others:
        names = sorted({*mine_variables, *others})
        words += [f"{name}={shlex.quote(others.get(name, ''))}" for name in names]
    return " ".join([*words, other.command])


def _variables(record: Record) -> dict[str, str]:
    return {name: value for name, value in record.around.items() if name != "folder"}
