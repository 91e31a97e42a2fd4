"""Components as projects write them: those that keep something, and those that do not.

As text, for they are read and never run, and are written as people write them. The
first ones are after Scrapy's documentation.
"""

SOURCE = r"""
import gzip
import json
import shelve
import sqlite3
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itemadapter import ItemAdapter
from scrapy import signals
from scrapy.exceptions import DropItem
from scrapy.exporters import XmlItemExporter
from scrapy.pipelines.files import FilesPipeline

SEEN: set[str] = set()
count = 0


# ---- of Scrapy's documentation ---------------------------------------------


class DuplicatesPipeline:
    def __init__(self):
        self.ids_seen: set[str] = set()

    def process_item(self, item):
        adapter = ItemAdapter(item)
        if adapter["id"] in self.ids_seen:
            raise DropItem(f"Item ID already seen: {adapter['id']}")
        self.ids_seen.add(adapter["id"])
        return item


class JsonWriterPipeline:
    def open_spider(self):
        self.file = open("items.jsonl", "w")

    def close_spider(self):
        self.file.close()

    def process_item(self, item):
        line = json.dumps(ItemAdapter(item).asdict()) + "\n"
        self.file.write(line)
        return item


class PerYearXmlExportPipeline:
    def open_spider(self, spider):
        self.year_to_exporter: dict[str, Any] = {}

    def close_spider(self, spider):
        for exporter, xml_file in self.year_to_exporter.values():
            exporter.finish_exporting()
            xml_file.close()

    def _exporter_for_item(self, item):
        year = ItemAdapter(item)["year"]
        if year not in self.year_to_exporter:
            xml_file = open(f"{year}.xml", "wb")
            exporter = XmlItemExporter(xml_file)
            exporter.start_exporting()
            self.year_to_exporter[year] = (exporter, xml_file)
        return self.year_to_exporter[year][0]

    def process_item(self, item, spider):
        self._exporter_for_item(item).export_item(item)
        return item


class SpiderOpenCloseLogging:
    def __init__(self, item_count):
        self.item_count = item_count
        self.items_scraped = 0

    @classmethod
    def from_crawler(cls, crawler):
        ext = cls(crawler.settings.getint("MYEXT_ITEMCOUNT", 1000))
        crawler.signals.connect(ext.spider_opened, signal=signals.spider_opened)
        crawler.signals.connect(ext.counts_items, signal=signals.item_scraped)
        return ext

    def spider_opened(self, spider):
        spider.logger.info("opened")

    def counts_items(self, item, spider):
        self.items_scraped += 1
        if self.items_scraped % self.item_count == 0:
            spider.logger.info("scraped %d items", self.items_scraped)


class MongoPipeline:
    def __init__(self, uri):
        self.uri = uri

    def open_spider(self):
        self.client = make_client(self.uri)
        self.db = self.client["items"]

    def process_item(self, item):
        self.db["scrapy_items"].insert_one(ItemAdapter(item).asdict())
        self.db.items.update({"id": item["id"]}, item)
        return item


class ScreenshotPipeline:
    async def process_item(self, item):
        filename = f"{item['hash']}.png"
        with open(filename, "wb") as file:
            file.write(item["body"])
        Path(filename).write_bytes(item["body"])
        item["screenshot_filename"] = filename
        return item


# ---- attributes ------------------------------------------------------------


class Base:
    def note(self, key):
        self.by_key[key].append(key)
        self.total = self.total + 1


class Inherits(Base):
    by_key = defaultdict(list)
    total = 0

    def process_item(self, item):
        self.note(item["key"])
        return item


class OfTheClass:
    seen: set[str] = set()
    hosts: list[str] = []
    others = Counter[str]()

    def process_request(self, request):
        type(self).seen.add(request.url)
        OfTheClass.hosts.append(request.url)
        self.__class__.others.update([request.url])


class OfTheModule:
    def process_item(self, item):
        global count
        count += 1
        SEEN.add(item["id"])
        return item


@dataclass
class Dataclass:
    seen: set[str] = field(default_factory=set)
    table: dict[str, int] = field(default_factory=dict)

    def process_response(self, request, response):
        seen, table = self.seen, self.table
        seen.add(request.url)
        table[request.url] = response.status
        return response


class Batches:
    def open_spider(self, spider):
        self.batch = []

    async def process_item(self, item, spider):
        self.batch += [item]
        if len(self.batch) >= 16:
            await self.flush()
        return item

    async def flush(self):
        rows, self.batch = self.batch, []
        await send(rows)


class LastPrice:
    last = None

    def process_item(self, item):
        price = item["price"]
        if price == self.last:
            raise DropItem("as before")
        self.last = price
        return item


class FirstPage:
    def __init__(self):
        self.first = None

    def process_spider_output(self, response, result):
        if self.first is None:
            self.first = response.url
        yield from result


class Filter:
    "Of a package: what it is, is known by the test for membership alone."

    def __init__(self, seen):
        self.seen = seen

    def process_item(self, item):
        if item["id"] not in self.seen:
            self.seen.add(item["id"])
        return item


class TellsLater:
    "What one hook finds another one uses."

    def process_request(self, request):
        request.meta["token"] = self.token

    def process_response(self, request, response):
        self.token = response.headers["token"]
        return response


class Made:
    @classmethod
    def from_crawler(cls, crawler):
        made = cls()
        made.urls = {}
        crawler.signals.connect(made._got, signals.response_received)
        return made

    def _got(self, response):
        self.urls.setdefault(response.url, []).append(response.status)


# ---- files -----------------------------------------------------------------


class Opens:
    def __init__(self):
        self.zipped = gzip.open("items.gz", mode="wb")
        self.by_path = Path("items.txt").open("a")
        self.shelf = shelve.open("items")
        handle = open("items.xml", "wb")
        self.exporter = XmlItemExporter(handle)

    @classmethod
    def from_crawler(cls, crawler):
        made = cls()
        made.base = sqlite3.connect(crawler.settings["ITEMS_DB"])
        return made

    def spider_opened(self, spider):
        self.db = make_client("dbm").open("items.db", spider.settings["FLAG"])

    def process_item(self, item):
        self.shelf[item["id"]] = item
        return item


class WritesAtTheEnd:
    def open_spider(self):
        self.rows: list[Any] = []

    def process_item(self, item):
        self.rows.append(item)
        return item

    def close_spider(self):
        with open("all.json", "w") as file:
            json.dump(self.rows, file)


class AppendsEachTime:
    def process_item(self, item):
        with open("items.jsonl", "a") as file:
            file.write(json.dumps(item))
        return item


# ---- what is not to be named -----------------------------------------------


class Lazy:
    client = None

    def __init__(self, settings):
        self.url = settings["URL"]
        self.memory = sqlite3.connect(":memory:")
        self.words = open("words.txt").read().split()
        with open("more.txt", encoding="utf-8") as file:
            self.more = set(file)

    def process_item(self, item):
        if self.client is None:
            self.client = make_client(self.url)
        self.session = self.session or make_client(self.url)
        if time.time() > self.expires:
            self.token, self.expires = self.client.login(), time.time() + 60
        self.session.add(item)
        self.table.insert(item)
        self.cursor.update(item)
        if item["word"] in self.words or item["word"] in self.more:
            item["good"] = True
        return item


class Scratch:
    def process_item(self, item):
        self.item = item
        self.adapter = ItemAdapter(item)
        self._strip()
        found = []
        found.append(item)
        found[0]["x"] = 1
        return self.item

    def _strip(self):
        for name, value in self.adapter.items():
            self.adapter_value = value
            self.item[name] = value.strip()


class Scrapys:
    @classmethod
    def from_crawler(cls, crawler):
        made = cls()
        made.crawler = crawler
        made.stats = crawler.stats
        return made

    def spider_opened(self, spider):
        self.spider = spider

    def process_response(self, request, response):
        self.crawler.stats.inc_value("mine")
        self.stats.get_stats()["mine"] = 1
        self.spider.state["mine"] = 1
        request.meta["mine"] = 1
        request.meta.setdefault("more", []).append(1)
        return response


class Named(FilesPipeline):
    def file_path(self, request, **kwargs) -> str:
        return "files/" + request.url.rpartition("/")[2]


# ---- stats at the end ------------------------------------------------------


class Mails:
    @classmethod
    def from_crawler(cls, crawler):
        mails = cls()
        mails.stats = crawler.stats
        crawler.signals.connect(mails.over, signal=signals.spider_closed)
        return mails

    def over(self, spider, reason):
        self.send(reason)

    def send(self, reason):
        make_client("mail").send(self.stats.get_value("item_scraped_count"), reason)


class Whole:
    def spider_closed(self, spider):
        make_client("log").send(spider.crawler.stats.get_stats())


class WritesStats:
    @classmethod
    def from_crawler(cls, crawler):
        made = cls()
        crawler.signals.connect(made.over, signal=signals.spider_closed)
        crawler.signals.connect(made.idle, signal=signals.spider_idle)
        return made

    def over(self, spider):
        spider.crawler.stats.set_value("mine", self.loader.get_value("x"))

    def idle(self, spider):
        spider.crawler.stats.get_value("mine")


def make_client(where):
    raise NotImplementedError(where)


async def send(rows):
    raise NotImplementedError(rows)
"""
