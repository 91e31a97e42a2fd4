"""Targets: frames, every union of messages, and the link of a crawl process."""

import json
from pathlib import Path
from typing import Any, get_args

import trio
import trio.testing

from dscrapy import messages as m
from dscrapy.crawl.worker_side.worker_link import _Protocol
from dscrapy.errors import RemoteProtocolError
from dscrapy.proto.codec import Decoder, encode
from dscrapy.proto.framing import (
    FRAME_BYTES_MAX,
    LENGTH_BYTES,
    FrameReader,
    encode_frame,
)
from dscrapy.proto.handshake import HANDSHAKE_FRAME_BYTES_MAX
from dscrapy.worker.crawl_process import CrawlProcess
from dscrapy.worker.process_view import ProcessView
from tests import builders as b
from tests.fuzz.catalogue import Tally, Target
from tests.fuzz.draw import JOBS, Draw

UNIONS: dict[str, Any] = {
    "ClientCall": m.ClientCall,
    "Answer": m.Answer,
    "FromWorker": m.FromWorker,
    "ToWorker": m.ToWorker,
    "ToCrawl": m.ToCrawl,
    "FromCrawl": m.FromCrawl,
}
DECODERS = {name: Decoder[Any](union) for name, union in UNIONS.items()}
START = b.start(job=JOBS[1])


def samples(union: str) -> list[bytes]:
    """Return an encoded message of each kind that may arrive there."""
    found = []
    for seed in range(4):
        for kind in get_args(UNIONS[union]):
            draw = Draw(bytes((seed * 7 + at * 13) % 256 for at in range(200)))
            try:
                found.append(encode(draw.struct(kind)))
            except UnicodeEncodeError:
                # Of a text that no peer could send.
                continue
    return found


# ---- frames ------------------------------------------------------------------------


def _frames(data: bytes, tally: Tally) -> None:
    """Whatever the pieces, the frames are the same, and little is ever held."""
    draw = Draw(data)
    limit = draw.pick((HANDSHAKE_FRAME_BYTES_MAX, 1024, FRAME_BYTES_MAX))
    piece = 1 + draw.below(64)
    stream = draw.rest()
    frames, error = _cut(stream, len(stream) or 1, limit)
    assert (frames, error) == _cut(stream, piece, limit)
    tally.frames += len(frames)
    told = b"".join(encode_frame(frame) for frame in frames)
    assert stream.startswith(told)
    assert all(len(frame) <= limit for frame in frames)


def _cut(stream: bytes, piece: int, limit: int) -> tuple[list[bytes], str]:
    reader, frames = FrameReader(limit), []
    for at in range(0, len(stream), piece):
        reader.feed(stream[at : at + piece])
        try:
            while (frame := reader.next_frame()) is not None:
                frames.append(frame)
        except RemoteProtocolError as error:
            return frames, error.code
        assert len(reader._buffer) < LENGTH_BYTES + limit
    return frames, ""


def _frame_seeds() -> list[bytes]:
    whole = b"".join(map(encode_frame, samples("ToCrawl")[:4]))
    return [b"\2\7" + whole, b"\0\0" + whole, b"\1\3\xff\xff\xff\xff", b"\2\0\0\0\0\0"]


FRAMES = Target(run=_frames, seeds=_frame_seeds)


# ---- messages ----------------------------------------------------------------------


def _messages(data: bytes, tally: Tally) -> None:
    """Bytes are a message that encodes to itself, or our error."""
    draw = Draw(data)
    name, is_made = draw.pick(tuple(UNIONS)), draw.below(2) == 0
    decoder, tally.frames = DECODERS[name], tally.frames + 1
    frame = b""
    if is_made:
        # A message of odd values, and one byte of it that is not as it was.
        try:
            frame = encode(draw.struct(draw.pick(get_args(UNIONS[name]))))
        except UnicodeEncodeError:
            return
        at = draw.below(1 << 16)
        if not draw.is_empty:
            frame = (
                frame[: at % len(frame)] + draw.take(1) + frame[at % len(frame) + 1 :]
            )
    else:
        frame = draw.rest()
    try:
        message = decoder.decode(frame)
    except RemoteProtocolError:
        return
    assert decoder.decode(encode(message)) == message


def _message_seeds() -> list[bytes]:
    return [
        bytes([number, 1]) + sample
        for number, name in enumerate(UNIONS)
        for sample in samples(name)
    ]


MESSAGES = Target(run=_messages, seeds=_message_seeds)


# ---- the link of a crawl process ---------------------------------------------------


def as_stream(data: bytes) -> bytes:
    """Return the lines as frames, so that a mutation need not keep the lengths."""
    return b"".join(map(encode_frame, data.split(b"\n")))


def held_process() -> ProcessView:
    """Return what a worker knows of a process that has some leases."""
    held = ProcessView(start=START)
    held.hand_on(b.grant(1, 2, 3, 4, job=START.job))
    return held


def _process_link(data: bytes, tally: Tally) -> None:
    """Both ends of the socket pair bear whatever the other says."""
    draw = Draw(data)
    is_framed, to_worker = draw.below(4) > 0, draw.below(2)
    rest = draw.rest()
    stream = as_stream(rest) if is_framed else rest
    tally.frames += rest.count(b"\n") + 1 if is_framed else 0
    if to_worker:
        trio.run(_worker_hears, stream, clock=trio.testing.MockClock())
    else:
        _process_hears(stream)


async def _worker_hears(stream: bytes) -> None:
    held = held_process()
    passed: list[bytes] = []

    def take(message: m.FromProcess, frame: bytes) -> None:
        held.hear(message)
        passed.append(frame)

    process = CrawlProcess(
        start=START,
        folder=Path(),
        process_silent_s=1,
        stop_grace_s=1,
        on_message=take,
        on_log=lambda data: None,
    )
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(stream)
    await theirs.send_eof()
    await process._read(ours)  # type: ignore[arg-type]  # memory in a socket's place
    # What is handed on to the master is what came, and what the master can read.
    for frame in passed:
        DECODERS["FromWorker"].decode(frame[LENGTH_BYTES:])
    DECODERS["FromWorker"].decode(encode(b.registration(held=(held.report(()),))))


def _process_hears(stream: bytes) -> None:
    heard: list[m.ToCrawl] = []
    ends: list[bool] = []
    protocol = _Protocol(
        FrameReader(),
        DECODERS["ToCrawl"],
        heard.append,
        lambda: ends.append(True),
        lambda: None,
    )
    protocol.data_received(stream)


def _link_seeds() -> list[bytes]:
    said = b"\n".join(_of_our_process(samples("FromCrawl")))
    told = b"\n".join(_of_our_process(samples("ToCrawl")))
    return [b"\1\1" + said, b"\1\0" + told, b"\0\1" + as_stream(said)]


def _of_our_process(frames: list[bytes]) -> list[bytes]:
    named = []
    for frame in frames:
        fields = json.loads(frame)
        if "process" in fields:
            fields |= {"job": START.job, "process": START.process}
        named.append(json.dumps(fields).encode())
    return named


PROCESS_LINK = Target(run=_process_link, seeds=_link_seeds, bytes_max=8192)


# ---- what a worker lets through ----------------------------------------------------

SAID = get_args(m.FromProcess)
TOLD = get_args(m.ToProcess)


def _held(data: bytes, tally: Tally) -> None:
    """Any order of words: a process commits and gives back what it holds, no more."""
    draw = Draw(data)
    held = ProcessView(start=START)
    granted: set[int] = set()
    while not draw.is_empty:
        tally.frames += 1
        if draw.below(3) == 0:
            told = draw.struct(draw.pick(TOLD))
            held.hand_on(told)
            if isinstance(told, m.Grant):
                granted.update(told.requests)
            continue
        before, said = set(held.leased), draw.struct(draw.pick(SAID))
        try:
            held.hear(said)
        except RemoteProtocolError:
            # The process is killed for it.
            return
        assert held.leased <= before
        if isinstance(said, m.Release):
            assert set(said.requests) <= before
        assert held.leased <= granted


def _held_seeds() -> list[bytes]:
    return [bytes((7 * at + seed) % 251 for at in range(120)) for seed in range(8)]


HELD = Target(run=_held, seeds=_held_seeds, bytes_max=1024)
