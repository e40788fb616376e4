"""The ecosystem ring: other people's servers and clients doing their main job on our loop, warnings as errors."""

import asyncio

import pytest

import iocp_loop


@pytest.fixture
def run():
    """Run a coroutine on our loop; whatever reaches the exception handler, or stays open, fails the test."""

    def run(main):
        reports = []
        with asyncio.Runner(loop_factory=iocp_loop.new_event_loop) as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _loop, report: reports.append(report))
            result = runner.run(asyncio.wait_for(main, 120))
        assert not reports
        assert not loop.proactor.pending
        assert not loop.proactor.endpoints
        return result

    return run
