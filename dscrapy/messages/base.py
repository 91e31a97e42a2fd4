"""What every message is: data, frozen and strict."""

import msgspec


class Message(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False
):
    """Settings common to messages: frozen, strict, named fields only."""


def hidden(message: Message) -> str:
    """Return the ``repr`` of a message without its ``key``, for logs and errors."""
    fields = (name for name in message.__struct_fields__ if name != "key")
    shown = ", ".join(f"{name}={getattr(message, name)!r}" for name in fields)
    return f"{type(message).__name__}({shown})"
