"""The wire, sans I/O: bytes and instants in, messages and bytes out."""
