"""The README, from top to bottom."""

from pathlib import Path

from tests.docs import standins
from tests.docs.terminals import terminals
from tests.docs.walk import Walk

ROOT = Path(__file__).parents[2]
SPIDER = '''
"""A spider without a site: its pages are in their addresses."""

import scrapy


class MySpider(scrapy.Spider):
    name = "myspider"

    async def start(self):
        for number in range(20):
            yield scrapy.Request(f"data:,book {number}")

    def parse(self, response):
        yield {"book": response.text, "category": getattr(self, "category", "all")}
'''


def test_the_readme_is_true(tmp_path: Path) -> None:
    """All its commands do what it says, from an installation to the items."""
    with terminals() as opened:
        walk = Walk(ROOT / "README.md", tmp_path, opened)
        alpha = walk.machine("alpha")
        _make_project(alpha.home / "my-scrapy-project")
        (alpha.home / "dscrapy").symlink_to(ROOT)
        for name in ("beta", "gamma"):
            # "The others have the same environment, with dscrapy in it."
            machine = walk.machine(name)
            venv = machine.home / "venv"
            standins.make_venv(venv)
            standins.install(venv, "dscrapy")
            machine.variables["PATH"] = f"{venv}/bin:{machine.variables['PATH']}"
        walk.run("alpha")
        project = alpha.home / "my-scrapy-project"
        assert (project / "items.csv").read_text().count("all") == 20
        assert (project / "books.csv").read_text().count("books") == 20


def _make_project(folder: Path) -> None:
    spiders = folder / "myproject" / "spiders"
    spiders.mkdir(parents=True)
    (folder / "scrapy.cfg").write_text("[settings]\ndefault = myproject.settings\n")
    for package in (spiders.parent, spiders):
        (package / "__init__.py").touch()
    (spiders / "my.py").write_text(SPIDER.lstrip())
    (spiders.parent / "settings.py").write_text(
        'SPIDER_MODULES = ["myproject.spiders"]\n'
    )
    standins.make_venv(folder / ".venv")
    standins.install(folder / ".venv", "scrapy")
