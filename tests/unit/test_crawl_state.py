"""What ``crawl`` keeps of a run: read back, of this version alone."""

from pathlib import Path

import pytest

from dscrapy.cli.local.crawl_state import RECORD_NAME, Crawl, Record
from dscrapy.errors import UserError


@pytest.fixture
def crawl(tmp_path: Path) -> Crawl:
    """A crawl whose folder is there."""
    return Crawl(folder=tmp_path, project=tmp_path, spider="s")


def test_a_record_comes_back(crawl: Crawl) -> None:
    """Also one that an earlier release wrote, without a version."""
    assert crawl.load() is None
    record = Record(job="j", digest="d", project="p", spider="s", began_at=1.0)
    crawl.save(record)
    assert crawl.load() == record
    path = crawl.folder / RECORD_NAME
    assert '"version":1' in path.read_text()
    path.write_text(path.read_text().replace('"version":1,', ""))
    assert crawl.load() == record


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"version":2,"jobs":[]}', "is of version 2, this dscrapy reads version 1"),
        ('{"version":1}', "cannot be read"),
        ("[]", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(
    crawl: Crawl, text: str, said: str
) -> None:
    """One line; nothing is overwritten."""
    path = crawl.folder / RECORD_NAME
    path.write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        crawl.load()
    assert "--fresh" in str(caught.value)
    assert path.read_text() == text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"job":"a","digest":"\xb4","project":"p","spider":"s","began_at":1.0}',
        b'{"job":1,"digest":"d","project":"p","spider":"s","began_at":1.0}',
        b"[" * 100_000,
    ],
)
def test_a_record_that_is_none_is_one_line(tmp_path: Path, content: bytes) -> None:
    """It names the file and what to do; also where it is no UTF-8."""
    crawl = Crawl.of(tmp_path, tmp_path, "s", {}, {})
    crawl.folder.mkdir(parents=True)
    (crawl.folder / RECORD_NAME).write_bytes(content)
    with pytest.raises(UserError, match=r"crawl\.json cannot be read .*--fresh"):
        crawl.load()
