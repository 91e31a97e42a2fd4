"""What every message is: data, frozen and strict."""

import msgspec


class Message(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False
):
    """Settings common to messages: frozen, strict, named fields only."""
