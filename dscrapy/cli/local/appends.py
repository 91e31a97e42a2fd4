"""Files of ``-o`` that a crawl appends to, again if it was stopped and goes on.

A crawl that is stopped appends the items so far. When it goes on, all its items take
their place: ``crawl.json`` says where they begin and how long the file was then. A
failed append leaves the file as the last run did.
"""

import attrs

from dscrapy.cli.local.crawl_state import Record
from dscrapy.cli.output_files import Feed
from dscrapy.crawl.export.file_writes import length_of, takes_at_once
from dscrapy.errors import UserError


def prepare(record: Record, feeds: tuple[Feed, ...]) -> tuple[Feed, ...]:
    """Note in the record where in each file this crawl's items begin; return the feeds
    with these places. Save the record before the files are written: whatever is behind
    a place is then this crawl's, even if it is cut short.

    Raises ``UserError`` when somebody else has written to a file since.
    """
    return tuple(_prepared(record, feed) for feed in feeds)


def _prepared(record: Record, feed: Feed) -> Feed:
    if feed.path is None or not _is_append(feed):
        return feed
    name = str(feed.path)
    size = length_of(feed.path) or 0
    begin = min(record.appended.get(name, size), size)
    if record.written.get(name, size) != size > begin:
        raise UserError(
            f"{name} has changed since this crawl wrote to it: move it away and "
            "run the same command again"
        )
    record.written.pop(name, None)
    record.appended[name] = begin
    return attrs.evolve(feed, begin=begin if size > begin else None)


def note(record: Record, feeds: tuple[Feed, ...]) -> None:
    """Note in the record how long the files are, for a run that writes them again."""
    for feed in feeds:
        name = str(feed.path)
        if feed.path is None or not _is_append(feed) or name not in record.appended:
            continue
        size = length_of(feed.path) or 0
        if size > record.appended[name]:
            record.written[name] = size
        else:
            # Nothing of ours is there: what comes meanwhile stays.
            del record.appended[name]


def _is_append(feed: Feed) -> bool:
    is_file = feed.path is not None and not takes_at_once(feed.path)
    return is_file and not feed.overwrite
