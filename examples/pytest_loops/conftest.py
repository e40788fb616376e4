"""For your tests/conftest.py: what makes the asyncio tests run on this loop. Take the half that you need."""

import asyncio

import pytest

import iocp_loop


def pytest_asyncio_loop_factories(config, item):
    """pytest-asyncio 1.4 or newer: every test runs on both loops, or on those it names in its mark.

    `@pytest.mark.asyncio(loop_factories=["iocp"])` chooses one.
    """
    return {"asyncio": asyncio.ProactorEventLoop, "iocp": iocp_loop.new_event_loop}


@pytest.fixture(params=[("asyncio", {"loop_factory": iocp_loop.new_event_loop})])
def anyio_backend(request):
    """anyio's plug-in: every test that it runs."""
    return request.param
