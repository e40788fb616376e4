"""The doors: the factory first, the policy where asyncio still has one, with the right warnings."""

import asyncio
import importlib
import sys
import warnings

import pytest

import iocp_loop

HAS_POLICIES = sys.version_info < (3, 16)
needs_policies = pytest.mark.skipif(not HAS_POLICIES, reason="asyncio has no policies any more")


async def which():
    await asyncio.sleep(0)
    return type(asyncio.get_running_loop())


@pytest.fixture
def policy_restored():
    if not HAS_POLICIES:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        before = asyncio.get_event_loop_policy()
        yield
        asyncio.set_event_loop_policy(before)


def test_the_factory_makes_a_loop():
    loop = iocp_loop.new_event_loop()
    assert type(loop) is iocp_loop.IocpEventLoop
    assert isinstance(loop, asyncio.AbstractEventLoop)
    loop.close()


def test_the_loop_is_not_a_proactor_event_loop():
    """psycopg, pyzmq and tornado refuse or wrap that class and its subclasses."""
    assert not issubclass(iocp_loop.IocpEventLoop, asyncio.ProactorEventLoop)
    assert not issubclass(iocp_loop.IocpEventLoop, asyncio.SelectorEventLoop)


def test_run_runs_on_our_loop():
    assert iocp_loop.run(which()) is iocp_loop.IocpEventLoop


def test_run_takes_debug():
    async def debug():
        return asyncio.get_running_loop().get_debug()

    assert iocp_loop.run(debug(), debug=True) is True
    assert iocp_loop.run(debug(), debug=False) is False


def test_asyncio_run_takes_the_factory():
    if sys.version_info >= (3, 12):
        assert asyncio.run(which(), loop_factory=iocp_loop.new_event_loop) is iocp_loop.IocpEventLoop
    with asyncio.Runner(loop_factory=iocp_loop.IocpEventLoop) as runner:
        assert runner.run(which()) is iocp_loop.IocpEventLoop


def test_the_import_string_that_servers_take_names_the_factory():
    """uvicorn --loop iocp_loop:new_event_loop imports the module, takes the attribute, and calls it without arguments."""
    module, _, attribute = "iocp_loop:new_event_loop".partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(which()) is iocp_loop.IocpEventLoop


@needs_policies
@pytest.mark.usefixtures("policy_restored")
def test_the_policy_makes_every_new_loop_ours():
    asyncio.set_event_loop_policy(iocp_loop.IocpEventLoopPolicy())
    assert asyncio.run(which()) is iocp_loop.IocpEventLoop
    loop = asyncio.new_event_loop()
    assert type(loop) is iocp_loop.IocpEventLoop
    loop.close()


@needs_policies
@pytest.mark.usefixtures("policy_restored")
def test_making_a_policy_warns_of_nothing_by_itself():
    """asyncio warns in set_event_loop_policy(), from 3.14 on; that is where the user's line is."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        iocp_loop.IocpEventLoopPolicy()


@needs_policies
@pytest.mark.usefixtures("policy_restored")
def test_install_sets_the_policy_and_warns_once_of_itself_where_there_is_something_better():
    """From 3.12 on asyncio.run() takes a loop factory; before, the policy is the only way, and no warning is due."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        iocp_loop.install()
    assert asyncio.run(which()) is iocp_loop.IocpEventLoop
    if sys.version_info < (3, 12):
        assert caught == []
    else:
        assert [warning.category for warning in caught] == [DeprecationWarning]
        assert "loop_factory" in str(caught[0].message)
        assert caught[0].filename == __file__


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        iocp_loop.nonsense  # noqa: B018
    if not HAS_POLICIES:
        with pytest.raises(AttributeError):
            iocp_loop.install  # noqa: B018


def test_importing_the_package_imports_no_debug_room_and_no_policy():
    import subprocess

    code = "import sys, iocp_loop; print([m for m in sys.modules if m.startswith('iocp_loop') and ('_debug' in m or '_policy' in m)])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_listed():
    for name in iocp_loop.__all__:
        assert getattr(iocp_loop, name) is not None
    assert iocp_loop.__version__
