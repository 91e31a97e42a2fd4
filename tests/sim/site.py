"""A small site that is known in advance, and so what an undisturbed run of it gives.

A page is a number. Pages give others over several hosts, some twice, some with
``dont_filter``, some by a redirect; items come in parts, some with a tagged form or as
a line that is no JSON. What a page gives never depends on when or where it is fetched,
so neither does the multiset of items of a whole run.
"""

import random
from collections import Counter
from typing import Literal

import attrs
import msgspec

from dscrapy import messages as m
from dscrapy.control.item_lines import line_of
from tests import builders as b

HOSTS = ("h0", "h1", "h2")
# Of so many sites one page kills its process.
DEADLY_PART = 0.15
NULL = msgspec.Raw(b"null")
# An item as a line, and its tagged form.
Line = tuple[bytes, bytes]


@attrs.frozen(kw_only=True)
class Ref:
    """A request that something gives: for this page."""

    page: int
    dont_filter: bool = False
    priority: int = 0


@attrs.frozen(kw_only=True)
class Page:
    """What one page gives: it is downloaded after ``seconds`` and through its pipelines
    after ``waits`` more, in so many parts.

    ``redirect`` is all that a redirected one gives. A page that ``kills`` ends its
    process each time, as a segfault does, and that death counts.
    """

    key: int
    seconds: float
    waits: float = 0.0
    parts: int = 1
    items: int = 1
    form: Literal["plain", "tagged", "text"] = "plain"
    refs: tuple[Ref, ...] = ()
    redirect: int | None = None
    kills: bool = False

    @property
    def is_cut(self) -> bool:
        """Whether its only item comes in pieces, one in each part."""
        return self.parts > 1 and self.items == 1

    def item(self, index: int) -> msgspec.Raw:
        """Return one of its items, as a commit carries it."""
        if self.form == "text":
            return msgspec.Raw(
                b'"{\\"k\\":%d,\\"i\\":%d,\\"x\\":NaN}"' % (self.key, index)
            )
        return msgspec.Raw(b'{"k":%d,"i":%d}' % (self.key, index))

    def tagged(self, index: int) -> msgspec.Raw:
        """Return the tagged form of one of its items."""
        if self.form == "tagged":
            return msgspec.Raw(b'{"k":%d,"i":{"$int":"%d"}}' % (self.key, index))
        return NULL

    def part(self, number: int) -> dict[str, object]:
        """Return the items of one part, as fields of a commit."""
        indices = range(number, self.items, self.parts)
        fields: dict[str, object] = {}
        if self.is_cut:
            line, form = (_slice(text, number, self.parts) for text in self.lines()[0])
            is_end = number == self.parts - 1
            fields["piece"] = m.Piece(line=line, tagged=form, end=is_end)
            return fields
        if indices:
            fields["items"] = tuple(map(self.item, indices))
        if indices and self.form == "tagged":
            fields["tagged"] = tuple(map(self.tagged, indices))
        return fields

    def lines(self) -> list[Line]:
        """Return the lines of all its items, each with the line of its tagged form."""
        return [
            (line_of(self.item(index)), bytes(self.tagged(index)))
            for index in range(self.items)
        ]


@attrs.frozen(kw_only=True)
class Element:
    """An element of ``start()``: a request or an item. Two may have one digest."""

    digest: bytes
    ref: Ref | None
    item: int | None

    def fields(self) -> dict[str, object]:
        """Return what its unit commits."""
        if self.ref is not None:
            return {"digest": self.digest, "children": children(self.ref, start=True)}
        item = msgspec.Raw(b'{"start":%d}' % (self.item or 0))
        return {"digest": self.digest, "items": (item,)}


@attrs.frozen(kw_only=True)
class Site:
    """``opened`` and ``idle`` are what handlers of those signals ask for.

    ``is_deadly``: a run comes to a page that kills; ``expected`` are the items of the
    others.
    ``idle`` has one entry for each time that the spider is idle before it closes.
    """

    pages: tuple[Page, ...]
    elements: tuple[Element, ...]
    opened: tuple[Ref, ...]
    idle: tuple[tuple[Ref, ...], ...]
    window: int
    at_once: int
    delay_s: float
    lifo: bool
    expected: Counter[Line] = attrs.field(init=False)
    is_deadly: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        expected, is_deadly = _crawled(self)
        object.__setattr__(self, "expected", expected)
        object.__setattr__(self, "is_deadly", is_deadly)


def _slice(text: bytes, number: int, count: int) -> bytes:
    """Return one of so many slices of a text."""
    return text[len(text) * number // count : len(text) * (number + 1) // count]


def digests(*refs: Ref) -> bytes:
    """Return the digests of these requests."""
    return b"".join(
        b"%04d%02d%02d" % (ref.page, ref.dont_filter, ref.priority + 1) for ref in refs
    )


def host_of(page: int) -> str:
    """Return the host that a page stands on."""
    return HOSTS[page % len(HOSTS)]


def children(*refs: Ref, start: bool = False, derived: bool = False) -> m.Children:
    """Return the requests of these pages."""
    kind = (m.START_REQUEST if start else 0) | (m.DERIVED if derived else 0)
    return b.children(
        *(ref.page for ref in refs),
        hosts=[host_of(ref.page) for ref in refs],
        priorities=[ref.priority for ref in refs],
        flags=[kind | (m.DONT_FILTER if ref.dont_filter else 0) for ref in refs],
    )


def draw_site(rng: random.Random) -> Site:
    """Return a site of some tens of pages."""
    count = rng.randint(8, 28)
    pages = [_draw_page(rng, key, count) for key in range(count)]
    # Drawn beside the rest, so that what is drawn after it stays as it is.
    beside = random.Random()
    beside.setstate(rng.getstate())
    if beside.random() < DEADLY_PART:
        # Not the last one, of which there may be several requests.
        key = beside.randrange(count - 1)
        pages[key] = attrs.evolve(pages[key], redirect=None, kills=True)
    return Site(
        pages=tuple(pages),
        elements=tuple(_draw_element(rng, at) for at in range(rng.randint(2, 7))),
        opened=(Ref(page=rng.randrange(count)),) if rng.random() < 0.4 else (),
        idle=rng.choice(
            (
                (),
                ((Ref(page=count - 1),),),
                ((Ref(page=count - 1, dont_filter=True),), (Ref(page=0),)),
            )
        ),
        window=rng.choice((1, 2, 3, 6)),
        at_once=rng.choice((1, 2, 3)),
        delay_s=rng.choice((0.0, 0.0, 0.3)),
        lifo=rng.random() < 0.5,
    )


def _draw_page(rng: random.Random, key: int, count: int) -> Page:
    later = range(key + 1, count)
    found = rng.sample(later, min(rng.randint(0, 3), len(later)))
    refs = [Ref(page=one, priority=rng.choice((0, 0, 1, -1))) for one in found]
    if key:
        refs.append(Ref(page=rng.randrange(key)))
    # Only the last pages are asked for without a filter: they give no request, so
    # that no crawl goes on for ever.
    if key < count - 2 and rng.random() < 0.3:
        refs += [Ref(page=count - 1, dont_filter=True)] * rng.choice((1, 1, 2))
    if key == count - 1:
        refs = []
    items = rng.choice((0, 1, 1, 2, 4))
    is_redirect = bool(later) and rng.random() < 0.12
    return Page(
        key=key,
        seconds=rng.choice((0.1, 0.5, 1.0, 2.0)),
        waits=rng.choice((0.0, 0.0, 0.1, 2.0, 8.0)),
        parts=1 if is_redirect else rng.choice((1, 1, 1, 2, 3)),
        items=0 if is_redirect else items,
        form=rng.choice(("plain", "plain", "tagged", "text")),
        refs=() if is_redirect else tuple(refs),
        redirect=rng.choice(later) if is_redirect else None,
    )


def _draw_element(rng: random.Random, at: int) -> Element:
    if rng.random() < 0.2:
        # Its like may come again: what tells elements apart is a digest of what they
        # are, and equal ones count as often as they come.
        return Element(digest=b"an item.", ref=None, item=7)
    ref = Ref(page=at * 2 % 5, dont_filter=False)
    return Element(digest=b"ref%05d" % ref.page, ref=ref, item=None)


def _crawled(site: Site) -> tuple[Counter[Line], bool]:
    """Return the items of a run that nothing disturbs, and whether a page kills."""
    lines: Counter[Line] = Counter()
    is_deadly = False
    seen: set[int] = set()
    waiting = [*site.opened, *(ref for refs in site.idle for ref in refs)]
    for element in site.elements:
        if element.ref is not None:
            waiting.append(element.ref)
        else:
            lines[b'{"start":%d}' % (element.item or 0), b"null"] += 1
    while waiting:
        ref = waiting.pop()
        if not ref.dont_filter:
            if ref.page in seen:
                continue
            seen.add(ref.page)
        page = site.pages[ref.page]
        if page.kills:
            is_deadly = True
            continue
        if page.redirect is not None:
            waiting.append(Ref(page=page.redirect))
            continue
        lines.update(page.lines())
        waiting += page.refs
    return lines, is_deadly
