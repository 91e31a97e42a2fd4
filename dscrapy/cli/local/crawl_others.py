"""Unfinished crawls of the same spider that the command at hand does not go on with."""

import shlex

from dscrapy.cli.local.crawl_state import Crawl, Record


def others_line(crawl: Crawl, begun: Record) -> str:
    """Return a line about the latest unfinished crawl and how to go on with it; empty
    if there is none. ``begun`` is the crawl that begins instead."""
    found = crawl.others_unfinished()
    if not found:
        return ""
    latest = found[0]
    more = f" (there are {len(found)})" if len(found) > 1 else ""
    return (
        f"starting anew: the unfinished crawl of {crawl.spider} has "
        f"{_differences(begun, latest)}{more}; to go on with it: {_way(begun, latest)}"
    )


def _differences(begun: Record, other: Record) -> str:
    differences = [
        name
        for name, new_value, old_value in (
            ("other -a", begun.args, other.args),
            ("other -s", begun.settings, other.settings),
            ("another folder", begun.around.get("folder"), other.around.get("folder")),
            ("other SCRAPY_* variables", _variables(begun), _variables(other)),
        )
        if new_value != old_value
    ]
    # An earlier release did not record arguments and settings.
    return ", ".join(differences) if other.command else "other -a or -s"


def _way(begun: Record, other: Record) -> str:
    if not other.command:
        return "run it with its own -a and -s"
    words = []
    if other.folder != begun.folder:
        words.append(f"cd {shlex.quote(other.folder)} &&")
    begun_variables, other_variables = _variables(begun), _variables(other)
    if begun_variables != other_variables:
        names = sorted({*begun_variables, *other_variables})
        words += [
            f"{name}={shlex.quote(other_variables.get(name, ''))}" for name in names
        ]
    return " ".join([*words, other.command])


def _variables(record: Record) -> dict[str, str]:
    return {name: value for name, value in record.around.items() if name != "folder"}
