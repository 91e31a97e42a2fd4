"""The whole exception tree, cut by whose doing the error is.

Ordinary outcomes (a lease that is gone, a host that is not ready) are return
values, never exceptions.
"""

from pathlib import Path


class DscrapyError(Exception):
    """Base of everything dscrapy raises on purpose."""


class UserError(DscrapyError):
    """What the user asked for cannot be done; the text says in a line what to do.

    ``exit_code`` is the command's exit code, see "Exit codes" in the README.
    """

    exit_code = 1


class UsageError(UserError):
    """The command line is wrong."""

    exit_code = 2


class ConfigError(UserError):
    """A file that a person wrote is wrong: names file, place and reason."""

    exit_code = 2

    def __init__(self, path: Path | str, key: str, reason: str) -> None:
        where = f"{path}: {key}" if key else str(path)
        super().__init__(f"{where}: {reason}")
        self.path = path
        self.key = key
        self.reason = reason


class UnreachableError(UserError):
    """No master answers."""

    exit_code = 3


class UnauthorisedError(UserError):
    """The token is missing or wrong."""

    exit_code = 4


class RefusedError(UserError):
    """The other side answered a call with a refusal: its code and text."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class UnsupportedError(UserError):
    """This project or this Scrapy cannot be run here; the text says why."""


class LocalProtocolError(DscrapyError):
    """This side broke the protocol: our own bug."""


class RemoteProtocolError(DscrapyError):
    """The other side broke the protocol; its session ends.

    ``code`` is one of the fixed codes in docs/protocol.md.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class JournalError(DscrapyError):
    """The journal cannot be read or written; the master stops."""

    def __init__(self, path: Path | str, offset: int, reason: str) -> None:
        super().__init__(f"{path} at byte {offset}: {reason}")
        self.path = path
        self.offset = offset
        self.reason = reason


class DamagedFileError(DscrapyError):
    """A derived file of a job lacks bytes that the journal knows to be written."""

    def __init__(self, path: Path | str, offset: int, missing: int) -> None:
        super().__init__(
            f"{path} lacks {missing} bytes at byte {offset}: restore it from a copy"
        )
        self.path = path
        self.offset = offset
        self.missing = missing


class JournalFullError(DscrapyError):
    """There is no room to append; the last good end of the journal stands."""
