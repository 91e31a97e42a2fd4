"""Items that wait on the disk of this machine for their commit."""

import os
import struct
import tempfile
from typing import IO

_HEAD = struct.Struct("<qq")
_NONE = -1


class Spill:
    """Lines and tagged forms, first in, first out, in a file without a name.

    The file is there only while items wait in it. After an ``OSError`` of ``put`` the
    items that wait are as they were.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._read_at = 0
        self._write_at = 0

    def __bool__(self) -> bool:
        return self._file is not None

    def put(self, line: bytes, tagged: bytes | None) -> None:
        """Take an item."""
        # The file stays open as long as items wait in it.
        file = self._file or tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - see above
        size = _NONE if tagged is None else len(tagged)
        data = memoryview(_HEAD.pack(len(line), size) + line + (tagged or b""))
        end = self._write_at
        try:
            while data:
                count = os.pwrite(file.fileno(), data, end)
                end, data = end + count, data[count:]
        except OSError:
            if self._file is None:
                file.close()
            raise
        self._file, self._write_at = file, end

    def get(self) -> tuple[bytes, bytes | None]:
        """Return the first item; there must be one."""
        assert self._file is not None
        line_size, size = _HEAD.unpack(self._take(_HEAD.size))
        line = self._take(line_size)
        tagged = None if size == _NONE else self._take(size)
        if self._read_at == self._write_at:
            self._file.close()
            self._file, self._read_at, self._write_at = None, 0, 0
        return line, tagged

    def _take(self, count: int) -> bytes:
        assert self._file is not None
        data = b""
        while len(data) < count:
            chunk = os.pread(self._file.fileno(), count - len(data), self._read_at)
            assert chunk, "what was written is there"
            data += chunk
            self._read_at += len(chunk)
        return data
