"""Fixtures of the contract ring."""

import pytest

_results = pytest.StashKey()


@pytest.fixture(scope="session")
def suite_results(request):
    """The comparisons with CPython's suite made in this run, for the table at its end."""
    return request.config.stash.setdefault(_results, [])


def pytest_terminal_summary(terminalreporter, config):
    comparisons = config.stash.get(_results, None)
    if comparisons:
        from suite_report import table

        terminalreporter.section("CPython's test_asyncio, ours / the standard library's")
        terminalreporter.write_line(table(comparisons))
