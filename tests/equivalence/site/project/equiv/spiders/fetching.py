"""What becomes of requests: retries, redirects, failures, cookies, forms."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import scrapy
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.http import FormRequest, JsonRequest, Response, TextResponse

from .base import DEAD_PORT, SiteSpider


class ItemSpider(SiteSpider):
    """Gives each page that arrives, and each failure, as an item."""

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Give the page."""
        yield self.leaf(response, status=response.status)

    def failed(self, failure: Any) -> Iterator[Any]:
        """Give the failure."""
        yield {"failed": failure.request.url, "type": failure.type.__name__}


class RetriesSpider(ItemSpider):
    """Pages that fail once, twice and for ever, and one retried by its callback."""

    name = "retries"

    async def start(self) -> AsyncIterator[Any]:
        """Ask for them."""
        for number in range(4):
            yield scrapy.Request(self.at(f"flaky/1/once-{number}"))
            yield scrapy.Request(self.at(f"flaky/2/twice-{number}"))
        for number in range(2):
            url = self.at(f"flaky/9/ever-{number}")
            yield scrapy.Request(url, errback=self.failed)
        yield scrapy.Request(self.at("leaf/again"), self.parse_again)

    def parse_again(self, response: Response) -> Iterator[Any]:
        """Ask for the page a second time."""
        request = response.request
        assert request is not None
        if request.meta.get("retry_times"):
            yield self.leaf(response, again=True)
        else:
            yield get_retry_request(request, spider=self, reason="too_short")


class RedirectsSpider(ItemSpider):
    """Chains, pages that were seen, other people's hosts, loops and a POST."""

    name = "redirects"
    allowed_domains = [f"127.0.0.{n}" for n in range(1, 5)]  # noqa: RUF012 - its form
    custom_settings = {"REDIRECT_MAX_TIMES": 3}  # noqa: RUF012 - Scrapy's own form

    async def start(self) -> AsyncIterator[Any]:
        """Ask for the page that others will lead to."""
        yield scrapy.Request(self.at("leaf/seen", 1), self.parse_first)

    def parse_first(self, response: Response) -> Iterator[Any]:
        """Ask for what redirects, now that one page is surely seen."""
        at = self.at
        yield self.leaf(response)
        for host in range(1, 5):
            yield scrapy.Request(at(f"redirect/2/chain-{host}", host))
        for host in (2, 3):
            yield scrapy.Request(at("to/302/1/leaf/seen", host))
            yield scrapy.Request(at("to/302/4/leaf/both", host))
        yield scrapy.Request(at("to/301/8/leaf/off", 1), errback=self.failed)
        yield scrapy.Request(at("redirect/9/loop", 2), errback=self.failed)
        yield scrapy.Request(
            at("to/307/2/echo", 1), self.parse_echo, method="POST", body=b"x=1"
        )
        meta = {"dont_redirect": True, "handle_httpstatus_list": [302]}
        yield scrapy.Request(at("to/302/3/leaf/kept", 3), meta=meta)

    def parse_echo(self, response: Response) -> Iterator[Any]:
        """Give what the site was told."""
        yield {"echo": response.text, "url": response.url}

    def parse(self, response: Response, **kwargs: Any) -> Iterator[Any]:
        """Give the page; one that redirects has no title."""
        yield {"url": response.url, "status": response.status}


class StatusesSpider(ItemSpider):
    """Codes that are ignored, retried or handled."""

    name = "statuses"

    async def start(self) -> AsyncIterator[Any]:
        """Ask for each kind."""
        for number in range(3):
            yield scrapy.Request(self.at(f"status/404/ignored-{number}"))
        for number in range(2):
            yield scrapy.Request(self.at(f"status/500/retried-{number}"))
            meta: dict[str, Any] = {"handle_httpstatus_list": [404]}
            yield scrapy.Request(self.at(f"status/404/handled-{number}"), meta=meta)
        meta = {"handle_httpstatus_all": True}
        yield scrapy.Request(self.at("status/403/handled"), meta=meta)
        yield scrapy.Request(self.at("leaf/fine"))


class FailuresSpider(ItemSpider):
    """Timeouts and refused connections, with retries and without."""

    name = "failures"

    async def start(self) -> AsyncIterator[Any]:
        """Ask for what never answers."""
        for number, meta in enumerate(({"dont_retry": True}, {})):
            yield scrapy.Request(
                self.at(f"slow/60000/never-{number}"),
                errback=self.failed,
                meta={"download_timeout": 3, **meta},
            )
        for host in (5, 6):
            url = f"http://127.0.0.{host}:{DEAD_PORT}/"
            yield scrapy.Request(url, errback=self.failed)
        yield scrapy.Request(self.at("leaf/fine"))


class CookiesSpider(ItemSpider):
    """Cookies that the site sets, that a request brings, and jars apart."""

    name = "cookies"

    async def start(self) -> AsyncIterator[Any]:
        """Collect cookies."""
        yield scrapy.Request(self.at("cookie/set/plain", 1), self.parse_set)
        yield scrapy.Request(
            self.at("cookie/show/own", 2), self.parse_show, cookies={"own": "1"}
        )
        for number in range(3):
            yield scrapy.Request(
                self.at(f"cookie/set/jar{number}", 3),
                self.parse_set,
                meta={"cookiejar": number},
            )

    def parse_set(self, response: Response) -> Iterator[Any]:
        """Look at the cookies, five times or with the same jar."""
        jar = response.meta.get("cookiejar")
        host, times = (3, 1) if jar is not None else (1, 5)
        for number in range(times):
            yield scrapy.Request(
                self.at(f"cookie/show/{jar}-{number}", host),
                self.parse_show,
                meta={} if jar is None else {"cookiejar": jar},
            )

    def parse_show(self, response: Response) -> Iterator[Any]:
        """Give what the site got."""
        yield {"url": response.url, "cookies": response.text}


class FormsSpider(ItemSpider):
    """Forms, JSON and other bodies; equal ones are one request."""

    name = "forms"

    async def start(self) -> AsyncIterator[Any]:
        """Ask for the form."""
        yield scrapy.Request(self.at("form", 3), self.parse_form)

    def parse_form(self, response: Response) -> Iterator[Any]:
        """Fill it in, and send more."""
        assert isinstance(response, TextResponse)
        url = self.at("echo", 3)
        yield FormRequest.from_response(
            response, formdata={"q": "x y"}, callback=self.parse_echo
        )
        for value in ("1", "2", "3", "3"):
            yield FormRequest(url, formdata={"v": value}, callback=self.parse_echo)
        yield JsonRequest(url, data={"a": [1, None]}, callback=self.parse_echo)
        yield scrapy.Request(
            url, self.parse_echo, method="PUT", body="ä", headers={"X-Own": ["1", "2"]}
        )

    def parse_echo(self, response: Response) -> Iterator[Any]:
        """Give what the site was told."""
        yield {"echo": response.text}
