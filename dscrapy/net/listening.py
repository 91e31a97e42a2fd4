"""Listening on a port, with errors that people can act on."""

import errno

import trio

from dscrapy.errors import UserError


async def listen(host: str, port: int) -> list[trio.SocketListener] | None:
    """Return listeners of ``host`` and ``port``, None when the port is in use.

    Raises ``UserError`` when nobody could listen there.
    """
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        raise UserError(f"cannot listen on {host} port {port}: {error}") from None
