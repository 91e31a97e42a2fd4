"""The journal against a disk that is cut, damaged, full or without power."""

import json
import random
from typing import Literal

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dscrapy.errors import JournalError, JournalFullError, LocalProtocolError
from dscrapy.journal.record import (
    HEAD_BYTES,
    RECORD_HEAD_BYTES,
    RECORD_MAGIC,
    encode_record,
)
from dscrapy.master.journal import Journal
from tests.doubles.storage import MemoryStorage, PowerCut

# Arbitrary bytes but for the one thing that a payload may not hold.
payloads = st.binary(max_size=40).filter(lambda data: RECORD_MAGIC not in data)
segment_limits = st.sampled_from([1, 100, 300, 100_000])


def state_of(groups: list[bytes]) -> bytes:
    """The snapshot of a state that is simply all groups so far."""
    return json.dumps([group.hex() for group in groups]).encode()


def restore(
    storage: MemoryStorage, segment_bytes_max: int = 100_000
) -> tuple[Journal, list[bytes]]:
    """Open a journal and return it with all groups, the snapshot's included."""
    journal = Journal.open(storage, segment_bytes_max=segment_bytes_max)
    groups = (
        []
        if journal.snapshot is None
        else [bytes.fromhex(text) for text in json.loads(journal.snapshot)]
    )
    groups += journal.groups()
    assert journal.next_sequence == len(groups) + 1
    return journal, groups


def contents(storage: MemoryStorage) -> dict[str, bytes]:
    return {name: storage.read(name, 0, 1 << 30) for name in storage.names()}


def written(
    groups: list[bytes], segment_bytes_max: int, snapshot_after: int | None = None
) -> MemoryStorage:
    """A closed journal of these groups, with a snapshot after so many of them."""
    storage = MemoryStorage()
    journal, _ = restore(storage, segment_bytes_max)
    for count, group in enumerate(groups):
        if count == snapshot_after:
            journal.write_snapshot(journal.rotate(), state_of(groups[:count]))
        journal.append(group)
    journal.close()
    return storage


@given(
    groups=st.lists(payloads, max_size=8),
    limit=segment_limits,
    data=st.data(),
)
def test_any_prefix_opens_to_a_prefix_of_the_groups(
    groups: list[bytes], limit: int, data: st.DataObject
) -> None:
    """Cut the journal's bytes anywhere: the groups before the cut are all there.

    The rest is put aside byte for byte, and the journal can be written on.
    """
    files = contents(written(groups, limit))
    cut = data.draw(st.integers(0, sum(map(len, files.values()))))
    storage = MemoryStorage()
    kept_whole = 0
    left = cut
    for name, file in files.items():
        if left > 0 or not storage.names():
            storage.put(name, file[:left])
        at = HEAD_BYTES
        while at < len(file):
            at += RECORD_HEAD_BYTES + len(groups[kept_whole])
            if at > left:
                break
            kept_whole += 1
        left -= len(file)
        if left <= 0:
            break
    before = b"".join(contents(storage).values())
    journal, found = restore(storage, limit)
    assert found == groups[:kept_whole]
    after = contents(storage)
    torn = b"".join(file for name, file in after.items() if ".torn" in name)
    logs = b"".join(file for name, file in after.items() if name.endswith(".log"))
    assert (journal.torn is None) == (torn == b"")
    if torn:
        assert before.endswith(torn)
        assert logs.startswith(before[: -len(torn)])
    journal.append(b"after")
    assert restore(storage)[1] == [*found, b"after"]


@given(
    groups=st.lists(payloads, min_size=1, max_size=8),
    limit=segment_limits,
    snapshot_after=st.integers(0, 8),
    flip=st.integers(1, 255),
    data=st.data(),
)
def test_changed_byte_is_reported_where_it_stands(
    groups: list[bytes], limit: int, snapshot_after: int, flip: int, data: st.DataObject
) -> None:
    """A byte changed before the last record: file and place are named, nothing lost."""
    storage = written(groups, limit, snapshot_after)
    files = contents(storage)
    last = max(name for name in files if name.endswith(".log"))
    # Where each file's damage may be told apart from a crash.
    spans = {name: len(file) for name, file in files.items()}
    spans[last] -= RECORD_HEAD_BYTES + len(groups[-1])
    name = data.draw(st.sampled_from(sorted(files)))
    at = data.draw(st.integers(0, spans[name] - 1))
    damaged = bytearray(files[name])
    damaged[at] ^= flip
    storage.put(name, bytes(damaged))
    before = contents(storage)
    with pytest.raises(JournalError) as caught:
        restore(storage)
    assert caught.value.path == storage.path(name)
    assert caught.value.offset == record_start(files[name], at)
    assert contents(storage) == before


def record_start(file: bytes, at: int) -> int:
    """Where the record begins that holds byte ``at``; 0 for head and snapshot."""
    start = file.rfind(RECORD_MAGIC, 0, at + len(RECORD_MAGIC))
    # A magic that begins after ``at`` belongs to the next record.
    while start > at:
        start = file.rfind(RECORD_MAGIC, 0, start)
    return max(start, 0)


@given(
    groups=st.lists(payloads, max_size=4),
    payload=payloads,
    limit=segment_limits,
    seed=st.integers(0, 1000),
)
# Each example tries every byte.
@settings(max_examples=settings().max_examples // 2)
def test_full_disk_at_every_byte(
    groups: list[bytes], payload: bytes, limit: int, seed: int
) -> None:
    """Wherever the room ends, a refused group leaves the journal usable and whole."""
    original = written(groups, limit)
    need = HEAD_BYTES + len(encode_record(1, payload))
    for room in range(need + 1):
        storage = original.copy()
        journal, _ = restore(storage, limit)
        storage.room = storage.used_bytes() + room
        told = list(groups)
        try:
            journal.append(payload)
            told.append(payload)
        except JournalFullError:
            assert room < need
            names = storage.names()
            with pytest.raises(JournalFullError):
                journal.append(payload)
            assert storage.names() == names
        assert restore(storage.crash(random.Random(seed)))[1] == told
        storage.room = None
        journal.append(b"after")
        told.append(b"after")
        assert restore(storage.crash(random.Random(seed)))[1] == told


def test_full_disk_refuses_a_snapshot_and_changes_nothing() -> None:
    """Wherever the room for a snapshot ends, the files stay and it can come later."""
    groups = [b"one", b"two", b"three"]
    original = written(groups, 100)
    snapshot_bytes = HEAD_BYTES + len(state_of(groups))
    for room in range(HEAD_BYTES + snapshot_bytes + 1):
        storage = original.copy()
        journal, _ = restore(storage, 100)
        storage.room = storage.used_bytes() + room
        before = contents(storage)
        try:
            number = journal.rotate()
        except JournalFullError:
            assert room < HEAD_BYTES
            assert contents(storage) == before
            continue
        before = contents(storage)
        try:
            journal.write_snapshot(number, state_of(groups))
        except JournalFullError:
            assert room < HEAD_BYTES + snapshot_bytes
            assert contents(storage) == before
            storage.room = None
            journal.write_snapshot(number, state_of(groups))
        assert len(storage.names()) == 2
        journal.append(b"four")
        assert restore(storage)[1] == [*groups, b"four"]


# ---- random lives --------------------------------------------------------------


@attrs.frozen
class Append:
    payload: bytes


@attrs.frozen
class Snapshot:
    pass


@attrs.frozen
class Rotate:
    pass


@attrs.frozen
class Restart:
    """The process is killed between two calls."""


@attrs.frozen
class Room:
    """So many bytes of room from here on, None for no limit."""

    spare: int | None


@attrs.frozen
class Fault:
    """After so many calls to the disk the process or the machine dies.

    ``sync`` is a machine of which a sync fails first.
    """

    calls: int
    how: Literal["kill", "power", "sync"]


Step = Append | Snapshot | Rotate | Restart | Room | Fault

steps = st.one_of(
    st.builds(Append, payloads),
    st.builds(Append, payloads),
    st.builds(Snapshot),
    st.builds(Rotate),
    st.builds(Restart),
    st.builds(Room, st.none() | st.integers(0, 150)),
    st.builds(Fault, st.integers(0, 12), st.sampled_from(["kill", "power", "sync"])),
)


class Life:
    """A master that uses its journal and dies, again and again.

    ``told`` is what somebody was told to be durable, or saw after a restart.
    """

    def __init__(self, segment_bytes_max: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.limit = segment_bytes_max
        self.storage = MemoryStorage(rng=self.rng)
        self.told: list[bytes] = []
        # The group of an append that did not return.
        self.doubtful: bytes | None = None
        self.fault: Fault | None = None
        self.journal: Journal | None = None
        self.start()

    def start(self) -> None:
        """Start the master; what was told must be there, in order, and no more."""
        while self.journal is None:
            try:
                journal, groups = restore(self.storage, self.limit)
            except JournalFullError:
                self.storage.room = None
            except PowerCut:
                self.die()
            except JournalError as error:
                self.expect_sync_failed(error)
                self.die()
            else:
                allowed = [self.told]
                if self.doubtful is not None:
                    allowed.append([*self.told, self.doubtful])
                assert groups in allowed
                self.told, self.doubtful, self.journal = groups, None, journal

    def die(self) -> None:
        """Take the disk as the fault leaves it, and no fault any more."""
        assert self.fault is not None
        self.journal = None
        if self.fault.how == "kill":
            self.storage.calls_left = None
        else:
            self.storage = self.storage.crash(self.rng)
        self.fault = None

    def step(self, step: Step) -> None:
        """Do one thing; a fault that strikes is followed by a start."""
        assert self.journal is not None
        try:
            self.carry_out(step, self.journal)
        except JournalFullError:
            self.doubtful = None
            assert self.storage.room is not None
        except JournalError as error:
            self.expect_sync_failed(error)
            self.assert_refuses(self.journal)
            self.die()
        except PowerCut:
            self.die()
        self.start()

    def expect_sync_failed(self, error: JournalError) -> None:
        """Only the fault that was planted may stop the journal."""
        assert self.fault is not None
        assert self.fault.how == "sync"
        assert error.reason.endswith("Input/output error")

    def assert_refuses(self, journal: Journal) -> None:
        """After a failed sync no call touches the disk again."""
        calls = self.storage.calls
        for call in (lambda: journal.append(b"x"), journal.rotate):
            with pytest.raises(LocalProtocolError, match="an earlier call failed"):
                call()
        assert self.storage.calls == calls

    def carry_out(self, step: Step, journal: Journal) -> None:
        match step:
            case Append(payload=payload):
                self.doubtful = payload
                journal.append(payload)
                self.doubtful = None
                self.told.append(payload)
            case Snapshot():
                journal.write_snapshot(journal.rotate(), state_of(self.told))
            case Rotate():
                journal.rotate()
            case Restart():
                self.journal = None
            case Room(spare=None):
                self.storage.room = None
            case Room(spare=int(spare)):
                self.storage.room = self.storage.used_bytes() + spare
            case Fault() as fault:
                # One fault at a time: a later one takes the place of the first.
                self.fault = fault
                broken_sync = fault.how == "sync"
                self.storage.syncs_left = fault.calls if broken_sync else None
                self.storage.calls_left = None if broken_sync else fault.calls


@given(
    script=st.lists(steps, max_size=30),
    limit=segment_limits,
    seed=st.integers(0, 1 << 32),
)
# The widest space of all these, so four times the profile's share.
@settings(max_examples=4 * settings().max_examples)
def test_told_groups_survive_everything(
    script: list[Step], limit: int, seed: int
) -> None:
    """Whatever dies whenever, every group whose append returned is read back.

    In order, once, and nothing else but possibly the one group that was under way.
    """
    life = Life(limit, seed)
    for step in script:
        life.step(step)
    life.storage = life.storage.crash(life.rng)
    life.journal, life.fault = None, None
    life.start()
    assert len(life.storage.names()) > 0


def test_power_cut_at_every_call_of_a_fixed_life() -> None:
    """Append, rotate and snapshot survive a cut before, in and after every call."""
    script: list[Step] = [
        Append(b"one"),
        Rotate(),
        Append(b"two"),
        Snapshot(),
        Append(b"three"),
        Append(b"four"),
        Snapshot(),
        Restart(),
        Append(b"five"),
    ]
    for how in ("power", "kill", "sync"):
        for calls in range(60):
            for seed in range(8):
                life = Life(70, seed)
                life.step(Fault(calls, how))
                for step in script:
                    life.step(step)
                # What the kernel still holds goes as well.
                life.fault = Fault(0, "power")
                life.die()
                life.start()
