"""From flags, variables and files to a client of the right master."""

import os
from argparse import Namespace
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import attrs
import trio

from dscrapy.cli.parser import PROGRAM
from dscrapy.cli.terminal.screen import note
from dscrapy.client import Client, Target
from dscrapy.conf.config import (
    TOKEN_NAME,
    Config,
    expanded,
    find_master,
    find_token,
    load,
    override,
    parse_endpoint,
)
from dscrapy.errors import RefusedError, UnauthorisedError

T = TypeVar("T")


def client_config(options: Namespace) -> Config:
    """Return the settings of a client command."""
    config = load(_path(options.conf), os.environ)
    return override(
        config,
        "client",
        state=_path(options.state),
        master=options.master,
        connect_timeout_s=options.connect_timeout,
    )


def make_client(
    config: Config, *, patient: bool = False, quiet: bool = False
) -> Client:
    """Return a client that finds the master as ``config`` says.

    ``quiet`` leaves it to another client to tell that the master is gone.
    """
    return Client(
        lambda: target_of(config),
        connect_timeout_s=config.client.connect_timeout_s,
        patient=patient,
        tell=_say_nothing if quiet else _say,
    )


def target_of(config: Config) -> Target:
    """Return where the master is now and with which token to go there."""
    endpoint = find_master(config, "client")
    token: str | None = None
    try:
        token = find_token(config)
        token_from = f"it comes from {_token_place(config)}"
    except UnauthorisedError as error:
        # Whether a master listens there at all is what people need to know first.
        token_from = str(error)
    return Target(
        host=endpoint.host, port=endpoint.port, token=token, token_from=token_from
    )


def at(config: Config, endpoint: str) -> Config:
    """Return ``config`` with another address to ask."""
    parse_endpoint(endpoint)
    client = attrs.evolve(config.client, master=endpoint)
    return attrs.evolve(config, client=client)


def run_client(
    options: Namespace,
    action: Callable[[Client], Awaitable[T]],
    *,
    patient: bool = False,
) -> T:
    """Run one command's conversation with the master and return its result."""
    config = client_config(options)

    async def converse() -> T:
        async with make_client(config, patient=patient) as client:
            return await action(client)

    return trio.run(converse)


async def for_each(names: list[str], act: Callable[[str], Awaitable[None]]) -> int:
    """Do ``act`` for each name and return the exit code.

    A refusal is printed, and the names after it are done all the same.
    """
    code = 0
    for name in names:
        try:
            await act(name)
        except RefusedError as error:
            note(f"{PROGRAM}: {error}")
            code = error.exit_code
    return code


def _say(text: str) -> None:
    note(f"{PROGRAM}: {text}")


def _say_nothing(text: str) -> None:
    pass


def _path(text: str | None) -> Path | None:
    return None if text is None else expanded(text)


def _token_place(config: Config) -> str:
    if os.environ.get("DSCRAPY_TOKEN"):
        return "DSCRAPY_TOKEN"
    if config.token:
        return f"`token` in {config.conf}"
    return str(config.state / TOKEN_NAME)
