"""The journal on a disk: its life, what it refuses, and what it says."""

import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dscrapy.errors import JournalError, JournalFullError, LocalProtocolError
from dscrapy.journal.manifest import segment_name, snapshot_name
from dscrapy.journal.record import HEAD_BYTES, RECORD_HEAD_BYTES, encode_record
from dscrapy.master.journal import Journal
from dscrapy.master.storage import DiskStorage, Storage
from tests.doubles.storage import MemoryStorage, PowerCut
from tests.unit.old_journal_heads import segment_head_of_version, snapshot_of_version

FIRST = segment_name(1)


@pytest.fixture(params=["disk", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return DiskStorage(tmp_path) if request.param == "disk" else MemoryStorage()


def opened(
    storage: Storage, segment_bytes_max: int = 1000
) -> tuple[Journal, list[bytes]]:
    journal = Journal.open(storage, segment_bytes_max=segment_bytes_max)
    return journal, list(journal.groups())


def with_groups(storage: Storage, *groups: bytes) -> Journal:
    journal, _ = opened(storage)
    for group in groups:
        journal.append(group)
    return journal


def damage(storage: Storage, name: str, at: int) -> None:
    data = bytearray(storage.read(name, 0, storage.size(name)))
    data[at] ^= 0xFF
    storage.write_atomic(name, bytes(data))


def refusal(storage: Storage) -> JournalError:
    """What the journal says that cannot be opened; it must have changed nothing."""
    before = {name: storage.read(name, 0, 1 << 20) for name in storage.names()}
    with pytest.raises(JournalError) as caught:
        opened(storage)
    after = {name: storage.read(name, 0, 1 << 20) for name in storage.names()}
    assert after == before
    return caught.value


# ---- its life ------------------------------------------------------------------


def test_groups_come_back(storage: Storage) -> None:
    """What was appended is read by the next start, and numbering goes on."""
    journal, groups = opened(storage)
    assert (groups, journal.snapshot, journal.torn) == ([], None, None)
    assert journal.next_sequence == 1
    journal.append(b"one")
    journal.append(b"")
    journal.close()
    journal, groups = opened(storage)
    assert groups == [b"one", b""]
    assert journal.next_sequence == 3
    journal.append(b"three")
    assert opened(storage)[1] == [b"one", b"", b"three"]


def test_large_groups_are_read_in_pieces(storage: Storage) -> None:
    """A group larger than one read comes back whole, among small ones."""
    groups = [b"small", bytes(3_000_000), b"small", b"x" * 1_048_576, b"last"]
    with_groups(storage, *groups)
    assert opened(storage)[1] == groups


def test_segments_follow_each_other(storage: Storage) -> None:
    """A segment over its limit is followed by the next; groups do not notice."""
    groups = [bytes([65 + at]) * 300 for at in range(20)]
    with_groups(storage, *groups)
    assert storage.names() == [segment_name(1 + at) for at in range(7)]
    assert opened(storage)[1] == groups


def test_rotate_leaves_an_empty_segment_alone(storage: Storage) -> None:
    """Asking again before anything was written makes no further segment."""
    journal = with_groups(storage)
    assert journal.rotate() == 1
    journal.append(b"one")
    assert [journal.rotate(), journal.rotate()] == [2, 2]
    journal.append(b"two")
    assert journal.rotate() == 3
    assert opened(storage)[1] == [b"one", b"two"]


def test_snapshot_takes_the_place_of_what_is_before(storage: Storage) -> None:
    """A snapshot is found with what follows it; what it holds goes away."""
    journal = with_groups(storage, b"one", b"two")
    number = journal.rotate()
    journal.append(b"three")
    journal.write_snapshot(number, b"one and two")
    assert storage.names() == [segment_name(2), snapshot_name(2)]
    journal.append(b"four")
    journal.close()
    journal = Journal.open(storage)
    assert journal.snapshot == b"one and two"
    assert list(journal.groups()) == [b"three", b"four"]
    assert journal.snapshot is None
    assert journal.next_sequence == 5
    journal.write_snapshot(journal.rotate(), b"one to four")
    assert storage.names() == [segment_name(3), snapshot_name(3)]
    journal = Journal.open(storage)
    assert journal.snapshot == b"one to four"
    assert list(journal.groups()) == []
    assert journal.next_sequence == 5


def test_snapshot_may_hold_any_bytes(storage: Storage) -> None:
    """A snapshot is not scanned, so its payload is free."""
    journal = with_groups(storage, b"one")
    payload = b"\xfeREC" + random.Random(2).randbytes(100_000)
    journal.write_snapshot(journal.rotate(), payload)
    assert Journal.open(storage).snapshot == payload


def test_snapshot_needs_its_segment(storage: Storage) -> None:
    """A number that ``rotate`` did not give, or whose segment is gone, is our bug."""
    journal = with_groups(storage, b"one")
    journal.write_snapshot(journal.rotate(), b"state")
    for number in (0, 1, 3):
        with pytest.raises(LocalProtocolError, match=f"no segment {number}"):
            journal.write_snapshot(number, b"state")
    journal.append(b"two")
    assert opened(storage)[1] == [b"two"]


def test_tail_bytes_are_those_since_the_snapshot(storage: Storage) -> None:
    """They grow with each group, go down with a snapshot and outlive a restart."""
    journal = with_groups(storage)
    assert journal.tail_bytes == HEAD_BYTES
    journal.append(b"12345")
    record = RECORD_HEAD_BYTES + 5
    assert journal.tail_bytes == HEAD_BYTES + record
    number = journal.rotate()
    journal.append(b"12345")
    assert journal.tail_bytes == 2 * (HEAD_BYTES + record)
    assert opened(storage)[0].tail_bytes == 2 * (HEAD_BYTES + record)
    journal.write_snapshot(number, b"")
    assert journal.tail_bytes == HEAD_BYTES + record
    assert opened(storage)[0].tail_bytes == HEAD_BYTES + record


def test_half_written_files_are_removed_at_open(storage: Storage) -> None:
    """What a crash left beside the journal goes; files of others stay."""
    with_groups(storage, b"one")
    for name in (snapshot_name(2) + ".tmp", FIRST + ".torn.tmp", "token.tmp"):
        storage.write_atomic(name, b"half")
    assert opened(storage)[1] == [b"one"]
    assert storage.names() == [FIRST, "token.tmp"]


def test_dead_files_go_only_after_a_whole_replay(storage: Storage) -> None:
    """Files that a snapshot made dead help a person as long as damage is possible."""
    journal = with_groups(storage, b"one")
    dead = storage.read(FIRST, 0, 1000)
    journal.write_snapshot(journal.rotate(), b"state")
    storage.write_atomic(FIRST, dead)
    journal.append(b"two")
    journal.append(b"three")
    whole = storage.read(segment_name(2), 0, 1000)
    damage(storage, segment_name(2), HEAD_BYTES + 5)
    refusal(storage)
    storage.write_atomic(segment_name(2), whole)
    assert opened(storage)[1] == [b"two", b"three"]
    assert storage.names() == [segment_name(2), snapshot_name(2)]


def test_calls_out_of_turn_are_our_own_bug(storage: Storage) -> None:
    """Nothing is written before the groups were read, nor after the end."""
    journal = Journal.open(storage)

    def refuses(why: str) -> None:
        with pytest.raises(LocalProtocolError, match=why):
            journal.append(b"x")
        with pytest.raises(LocalProtocolError, match=why):
            journal.rotate()
        with pytest.raises(LocalProtocolError, match=why):
            journal.write_snapshot(1, b"x")

    refuses("not read yet")
    with_groups(storage, b"one", b"two")
    journal = Journal.open(storage)
    groups = journal.groups()
    assert next(groups) == b"one"
    refuses("not read to their end")
    assert list(groups) == [b"two"]
    with pytest.raises(LocalProtocolError):
        next(journal.groups())
    journal.append(b"three")
    journal.close()
    journal.close()
    refuses("closed")
    assert opened(storage)[1] == [b"one", b"two", b"three"]


# ---- torn tails ------------------------------------------------------------------


def cut(storage: Storage, name: str, size: int) -> None:
    file = storage.open(name)
    file.truncate(size)
    file.close()


def test_torn_tail_is_put_aside_and_told(storage: Storage) -> None:
    """The cut group's bytes are kept, never over older ones, and the log knows."""
    for names in (["", ".torn"], ["", ".torn", ".torn.1"]):
        journal = with_groups(storage, b"one", b"two")
        journal.close()
        end = storage.size(FIRST)
        cut(storage, FIRST, end - 1)
        start = end - RECORD_HEAD_BYTES - 3
        torn = storage.read(FIRST, start, 100)
        journal, groups = opened(storage)
        assert groups[-1] == b"one"
        assert storage.names() == [FIRST + name for name in names]
        assert storage.read(FIRST + names[-1], 0, 100) == torn
        assert storage.size(FIRST) == start
        assert journal.torn == (
            f"{storage.path(FIRST)}: a crash cut the last group short at byte {start}; "
            f"its {len(torn)} bytes are now in {FIRST}{names[-1]}"
        )
        journal.close()
        assert opened(storage)[0].torn is None


def test_segment_that_was_never_begun_is_made_anew(storage: Storage) -> None:
    """A segment without a whole head moves aside; the journal goes on before it."""
    journal = with_groups(storage, b"one")
    journal.rotate()
    journal.close()
    cut(storage, segment_name(2), HEAD_BYTES - 1)
    journal, groups = opened(storage)
    assert groups == [b"one"]
    assert journal.torn is not None
    assert storage.names() == [FIRST, segment_name(2) + ".torn"]
    journal.append(b"two")
    assert opened(storage)[1] == [b"one", b"two"]


def test_empty_first_segment_is_made_anew(storage: Storage) -> None:
    """A crash at the very first moment loses nothing and is not worth a word."""
    storage.open(FIRST).close()
    journal, groups = opened(storage)
    assert (groups, journal.torn) == ([], None)
    assert storage.names() == [FIRST]
    journal.append(b"one")
    assert opened(storage)[1] == [b"one"]


def test_no_room_for_a_torn_tail_loses_nothing() -> None:
    """Without room to keep the torn bytes nothing is cut; later it goes on."""
    storage = MemoryStorage()
    with_groups(storage, b"one", b"two")
    cut(storage, FIRST, storage.size(FIRST) - 1)
    before = storage.read(FIRST, 0, 1000)
    storage.room = storage.used_bytes() + 5
    with pytest.raises(JournalFullError, match="no room to put 26 bytes"):
        opened(storage)
    assert storage.names() == [FIRST]
    assert storage.read(FIRST, 0, 1000) == before
    storage.room = None
    assert opened(storage)[1] == [b"one"]


# ---- damage --------------------------------------------------------------------


def test_damage_says_where_and_what_to_do(storage: Storage) -> None:
    """Path, byte, reason and next step; and that nothing was deleted."""
    journal = with_groups(storage, b"one", b"two")
    journal.close()
    damage(storage, FIRST, HEAD_BYTES + RECORD_HEAD_BYTES)
    later = HEAD_BYTES + RECORD_HEAD_BYTES + 3
    assert str(refusal(storage)) == (
        f"{storage.path(FIRST)} at byte {HEAD_BYTES}: the record does not match its "
        f"checksum, and another begins at byte {later}. Nothing was deleted. Restore "
        'the state folder from a copy, or see "Damage" in docs/journal.md'
    )


def test_missing_segment_is_named(storage: Storage) -> None:
    """A gap is named with the file that proves it."""
    journal = with_groups(storage, b"one")
    for group in (b"two", b"three"):
        journal.rotate()
        journal.append(group)
    storage.remove(segment_name(2))
    error = refusal(storage)
    assert error.path == storage.path(segment_name(2))
    assert error.reason.startswith(f"is missing, but {segment_name(3)} follows it")


def test_segment_cut_between_records_is_noticed(storage: Storage) -> None:
    """Whole records that vanished from an earlier segment leave a gap in numbers."""
    journal = with_groups(storage, b"one", b"two")
    journal.rotate()
    journal.append(b"three")
    cut(storage, FIRST, HEAD_BYTES + RECORD_HEAD_BYTES + 3)
    error = refusal(storage)
    assert error.path == storage.path(segment_name(2))
    assert error.reason.startswith("it begins with record 3 where record 2 is next")


def test_damaged_snapshot_is_never_passed_over(storage: Storage) -> None:
    """Without the files before it the snapshot must come back from a copy."""
    journal = with_groups(storage, b"one")
    journal.write_snapshot(journal.rotate(), b"state")
    damage(storage, snapshot_name(2), HEAD_BYTES)
    error = refusal(storage)
    assert error.path == storage.path(snapshot_name(2))
    assert "does not match its checksum. Nothing was deleted. Restore" in error.reason


def test_damaged_snapshot_with_the_whole_state_beside_it(storage: Storage) -> None:
    """While the files before it are there, the error says so, and that is true."""
    journal = with_groups(storage, b"one")
    journal.write_snapshot(journal.rotate(), b"state one")
    journal.append(b"two")
    older = {name: storage.read(name, 0, 1000) for name in storage.names()}
    journal.write_snapshot(journal.rotate(), b"state two")
    journal.append(b"three")
    for name, data in older.items():
        storage.write_atomic(name, data)
    damage(storage, snapshot_name(3), HEAD_BYTES)
    assert "move this one away and start again" in refusal(storage).reason
    storage.remove(snapshot_name(3))
    journal = Journal.open(storage)
    assert journal.snapshot == b"state one"
    assert list(journal.groups()) == [b"two", b"three"]


def test_head_that_a_snapshot_stands_on_is_not_torn(storage: Storage) -> None:
    """The segment was durable before its snapshot, so a crash did not cut it."""
    journal = with_groups(storage, b"one")
    journal.write_snapshot(journal.rotate(), b"state")
    cut(storage, segment_name(2), 0)
    error = refusal(storage)
    assert error.path == storage.path(segment_name(2))
    assert f"but {snapshot_name(2)} stands on it" in error.reason


def test_snapshot_under_anothers_name_is_refused(storage: Storage) -> None:
    """A renamed snapshot would skip or repeat groups."""
    journal = with_groups(storage, b"one")
    journal.write_snapshot(journal.rotate(), b"state")
    journal.append(b"two")
    journal.rotate()
    whole = storage.read(snapshot_name(2), 0, storage.size(snapshot_name(2)))
    storage.write_atomic(snapshot_name(3), whole)
    storage.remove(snapshot_name(2))
    assert "is snapshot 2 under another's name" in refusal(storage).reason


@pytest.mark.parametrize("version", [1, 6])
def test_other_format_is_named_not_guessed(storage: Storage, version: int) -> None:
    """Files of an older or newer format give both versions and the way out, in one
    line; nothing of them is touched."""
    expected = (
        f"is written in format {version}, this dscrapy reads formats 2, 3, 4, 5: use "
        "the dscrapy that wrote it"
    )
    head = segment_head_of_version(version, number=1, sequence=1)
    storage.write_atomic(FIRST, head + encode_record(1, b"[]"))
    assert refusal(storage).reason == expected
    snapshot = snapshot_of_version(version, number=1, sequence=1, payload=b"new")
    storage.write_atomic(snapshot_name(1), snapshot)
    error = refusal(storage)
    assert error.path == storage.path(snapshot_name(1))
    assert error.reason == expected
    assert "\n" not in str(error)


# ---- a disk that fails -----------------------------------------------------------


def test_failed_sync_is_final() -> None:
    """After a failed sync nothing is written; a restart has what was told, no more.

    The kernel may go on showing the group whose sync failed, so a start that took
    it for durable would lose it at the next power cut.
    """
    storage = MemoryStorage()
    journal = with_groups(storage, b"one")
    storage.syncs_left = 0
    with pytest.raises(JournalError, match="sync failed: Input/output error"):
        journal.append(b"two")
    storage.syncs_left = None
    for _ in range(2):
        with pytest.raises(LocalProtocolError, match="an earlier call failed"):
            journal.append(b"three")
    journal.close()
    journal, groups = opened(storage)
    assert groups == [b"one"]
    journal.append(b"four")
    for seed in range(50):
        crashed = storage.crash(random.Random(seed))
        assert opened(crashed)[1] == [b"one", b"four"]


@pytest.mark.parametrize(
    "call",
    [
        lambda journal: journal.append(b"x"),
        lambda journal: journal.rotate(),
        lambda journal: journal.write_snapshot(1, b"x"),
    ],
    ids=["append", "rotate", "write_snapshot"],
)
def test_failed_write_is_final(call: Callable[[Journal], object]) -> None:
    """An error that is not about room stops the journal; what was told stays."""
    storage = MemoryStorage()
    journal = with_groups(storage, b"one")
    storage.appends_left = 0
    with pytest.raises(JournalError, match="Input/output error"):
        call(journal)
    storage.appends_left = None
    with pytest.raises(LocalProtocolError, match="an earlier call failed"):
        journal.append(b"x")
    assert opened(storage)[1] == [b"one"]


def test_a_sync_that_failed_at_a_start_is_made_good_by_the_next() -> None:
    """A killed master left a group that no sync has seen. The start that reads it syncs
    in vain; then the kernel takes it for written, so the next one writes it again."""
    storage = MemoryStorage()
    with_groups(storage, b"one").close()
    storage.open(FIRST).append(encode_record(2, b"two"))
    # The folder's sync succeeds, that of the segment does not.
    storage.syncs_left = 1
    with pytest.raises(JournalError, match="sync failed"):
        opened(storage)
    storage.syncs_left = None
    journal, groups = opened(storage)
    assert groups == [b"one", b"two"]
    journal.append(b"three")
    for seed in range(20):
        found = opened(storage.crash(random.Random(seed)))[1]
        assert found == [b"one", b"two", b"three"]


def test_a_segment_whose_head_was_not_synced_is_made_anew() -> None:
    """Its sync failed when it was begun; what is written there later must last."""
    storage = MemoryStorage()
    journal = with_groups(storage, b"one")
    # Its name is durable, its head is not.
    storage.syncs_left = 1
    with pytest.raises(JournalError, match="sync failed"):
        journal.rotate()
    storage.syncs_left = None
    journal, groups = opened(storage)
    assert groups == [b"one"]
    journal.append(b"two")
    journal.rotate()
    journal.append(b"three")
    for seed in range(20):
        found = opened(storage.crash(random.Random(seed)))[1]
        assert found == [b"one", b"two", b"three"]


def test_failed_sync_of_a_snapshot_is_final() -> None:
    """When nobody knows whether the snapshot stands, nothing older is removed."""
    storage = MemoryStorage()
    journal = with_groups(storage, b"one")
    number = journal.rotate()
    # The file's own sync succeeds, that of its name does not.
    storage.syncs_left = 1
    with pytest.raises(JournalError, match="sync failed"):
        journal.write_snapshot(number, b"state")
    assert storage.names() == [FIRST, segment_name(2), snapshot_name(2)]
    with pytest.raises(LocalProtocolError, match="an earlier call failed"):
        journal.append(b"x")


def test_disk_that_cannot_be_read_is_named() -> None:
    """An error of the disk while reading names the file."""
    storage = MemoryStorage()
    with_groups(storage, b"one")
    journal = Journal.open(storage)
    storage.remove(FIRST)
    with pytest.raises(JournalError, match="No such file") as caught:
        list(journal.groups())
    assert caught.value.path == storage.path(FIRST)


def test_segment_that_found_no_room_never_comes_back() -> None:
    """A half-made segment is gone for good before the old one is written on.

    If a power cut brought it back, a torn tail before it would look like damage.
    """
    storage = MemoryStorage()
    journal = with_groups(storage, b"one")
    storage.room = storage.used_bytes() + HEAD_BYTES - 1
    with pytest.raises(JournalFullError, match="No space left"):
        journal.rotate()
    storage.room = None
    storage.calls_left = 0
    with pytest.raises(PowerCut):
        journal.append(b"two")
    found = [opened(storage.crash(random.Random(seed)))[1] for seed in range(100)]
    # Torn in some of these crashes, whole in others, refused in none.
    assert [b"one"] in found
    assert all(groups in ([b"one"], [b"one", b"two"]) for groups in found)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the kernel refuse files over ``size``: a real short write, then EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_real_short_write_is_undone(tmp_path: Path) -> None:
    """On real files a group that fits only in part leaves no trace."""
    storage = DiskStorage(tmp_path)
    journal = with_groups(storage, b"one")
    end = storage.size(FIRST)
    with largest_file(end + 10):
        for _ in range(2):
            with pytest.raises(JournalFullError, match="File too large"):
                journal.append(b"two")
            assert storage.size(FIRST) == end
        with pytest.raises(JournalFullError, match="File too large"):
            journal.write_snapshot(1, bytes(1000))
    with largest_file(HEAD_BYTES - 1), pytest.raises(JournalFullError):
        journal.rotate()
    assert storage.names() == [FIRST]
    journal.append(b"two")
    assert opened(storage)[1] == [b"one", b"two"]
