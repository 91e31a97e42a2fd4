"""Finding projects, and the digest that tells two copies of their code apart."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dscrapy.projects import code_digest, find_project


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder with code, a data file and what is no code."""
    root = tmp_path / "project"
    for name, content in {
        "scrapy.cfg": "[settings]",
        "shop/__init__.py": "",
        "shop/spiders/one.py": "x = 1",
        "shop/data.csv": "1,2",
        "scripts/tool.py": "y = 2",
        "shop/__pycache__/one.py": "cached",
        ".hidden/two.py": "hidden",
        "env/pyvenv.cfg": "",
        "env/lib/three.py": "installed",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_closest_project_is_found(project: Path, tmp_path: Path) -> None:
    """The project around a folder is the closest one; outside there is none."""
    assert find_project(project / "shop" / "spiders") == project
    assert find_project(project) == project
    assert find_project(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "shop/spiders/one.py").write_text("x = 2"),
        lambda root: (root / "scrapy.cfg").write_text("[deploy]"),
        lambda root: (root / "shop/new.py").write_text(""),
        lambda root: (root / "shop/__init__.py").unlink(),
        lambda root: (root / "scripts/tool.py").rename(root / "scripts/tooling.py"),
    ],
)
def test_changed_code_changes_the_digest(
    project: Path, change: Callable[[Path], object]
) -> None:
    """Content, a new, a missing and a renamed file each give another digest."""
    before = code_digest(project)
    change(project)
    assert code_digest(project) != before


@pytest.mark.parametrize(
    "name",
    [
        "shop/data.csv",
        "shop/__pycache__/one.py",
        ".hidden/two.py",
        "env/lib/three.py",
    ],
)
def test_what_is_no_code_does_not_count(project: Path, name: str) -> None:
    """Data, caches, hidden folders and virtual environments may differ."""
    before = code_digest(project)
    (project / name).write_text("changed")
    assert code_digest(project) == before


def test_copies_agree_wherever_they_are(project: Path, tmp_path: Path) -> None:
    """The digest depends on names and contents inside the folder alone."""
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(project, copy)
    assert code_digest(copy) == code_digest(project)


def test_content_cannot_pass_for_another_tree(tmp_path: Path) -> None:
    """Moving bytes from one file to the next gives another digest."""
    digests = set()
    for first, second in (("ab", "c"), ("a", "bc"), ("abc", "")):
        (tmp_path / "a.py").write_text(first)
        (tmp_path / "b.py").write_text(second)
        digests.add(code_digest(tmp_path))
    assert len(digests) == 3


def test_spider_file_alone_counts_its_folder_and_packages(tmp_path: Path) -> None:
    """Without scrapy.cfg only files beside the spider and packages count."""
    (tmp_path / "spider.py").write_text("")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("")
    (tmp_path / "photos").mkdir()
    before = code_digest(tmp_path)
    (tmp_path / "photos/script.py").write_text("")
    assert code_digest(tmp_path) == before
    (tmp_path / "package/module.py").write_text("")
    assert code_digest(tmp_path) != before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_code_is_an_error(project: Path) -> None:
    """Code that cannot be read is not left out in silence."""
    (project / "shop").chmod(0)
    try:
        with pytest.raises(PermissionError):
            code_digest(project)
    finally:
        (project / "shop").chmod(0o755)


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    """A folder that is not there has no digest."""
    with pytest.raises(FileNotFoundError):
        code_digest(tmp_path / "nowhere")
