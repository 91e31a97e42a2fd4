"""Values and foreign text made fit for people: cut, escaped, without secrets."""

# A value shown in an error is cut here, so that the error stays one line.
SHOWN_CHARS_MAX = 60


def show(value: object) -> str:
    """Return ``value`` for an error text: one line, not too long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # Integers of thousands of digits have no text by default.
        return "a value too large to show"
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 1] + "…"


def clean(text: str, *, keep: str = "") -> str:
    """Return ``text`` with everything escaped that does not print as itself."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def clean_lines(text: str) -> str:
    """Return ``text`` as ``clean`` does, but with its lines and tabs."""
    return clean(text, keep="\n\t")


def without_password(uri: str) -> str:
    """Return a URI for people and logs."""
    scheme, mark, rest = uri.partition("://")
    place, slash, path = rest.partition("/")
    user, at, host = place.rpartition("@")
    has_port = place.partition(":")[2].isdecimal()
    if not at and "@" in path and ":" in place and not has_port:
        # The password has a slash, which should have been escaped.
        user, at, host = rest.rpartition("@")
        slash = path = ""
    name, colon, _ = user.partition(":")
    if not mark or not at or not colon:
        return uri
    return f"{scheme}{mark}{name}:***@{host}{slash}{path}"
