"""Runs twice, once on each loop of conftest.py: python -m pytest examples/pytest_loops."""

import asyncio

import pytest


@pytest.mark.asyncio
async def test_a_line_comes_back():
    async def echo(reader, writer):
        writer.write(await reader.readline())
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        writer.close()
        await writer.wait_closed()
