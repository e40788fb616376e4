"""Puts a loop of ours in the place of asyncio.ProactorEventLoop, for the whole of this process.

    ours    IocpEventLoop: by name, by policy and by `asyncio.new_event_loop`
    hybrid  the standard library's ProactorEventLoop over our IocpProactor
    stdlib  nothing is substituted: what the others are compared with

It must be done before a test module is imported, because the tests take the names they need at import. How many loops
of each kind were made is counted, so that a test which never met the loop that it claims to be about is seen.
"""

import asyncio
import unittest
from asyncio import base_events, windows_events
from collections import Counter
from typing import Any

import iocp_loop
from iocp_loop._loop._other_turns import OtherTurns
from iocp_loop._transports._pipe import PipeServer

StdlibLoop = windows_events.ProactorEventLoop
StdlibPipeServer = windows_events.PipeServer
LOOPS = ("ours", "hybrid", "stdlib")


class HybridLoop(StdlibLoop):
    """ProactorEventLoop that makes one of our proactors where it would make one of its own."""

    def __init__(self, proactor: Any = None) -> None:
        super().__init__(iocp_loop.IocpProactor() if proactor is None else proactor)


_REPLACEMENTS: dict[str, Any] = {"ours": iocp_loop.IocpEventLoop, "hybrid": HybridLoop, "stdlib": StdlibLoop}


def install(loop: str) -> Counter[str]:
    """Substitute. Returns the live count of loops made: "tested", the kind asked for, and "other", the one replaced."""
    made: Counter[str] = Counter()
    replacement = _REPLACEMENTS[loop]
    _count(replacement, made, "tested")
    if loop == "ours":
        _count(StdlibLoop, made, "other")
        # Tests ask of what start_serving_pipe() returns whether it is one.
        windows_events.PipeServer = _AnyPipeServer  # type: ignore[misc]
    for module in (asyncio, windows_events):
        for name, value in list(vars(module).items()):
            if value is StdlibLoop:
                setattr(module, name, replacement)
            elif getattr(value, "_loop_factory", None) is StdlibLoop:
                # The policy itself and not an instance: the tests put the default policy back when they are done.
                value._loop_factory = replacement
    return made


class LoopWithSelector(iocp_loop.IocpEventLoop):
    """Ours, waiting on whatever `_selector` is: the tests of BaseEventLoop set it to a mock, and look at its calls."""

    @property
    def _selector(self) -> Any:
        return self._waits_on

    @_selector.setter
    def _selector(self, selector: Any) -> None:
        self._waits_on = selector
        if not isinstance(selector, OtherTurns):
            self.proactor.select = selector.select  # type: ignore[method-assign]


def replace_base_loop() -> None:
    """Let the tests of BaseEventLoop itself meet our loop: it has a turn (`_run_once`) of its own."""
    base_events.BaseEventLoop = LoopWithSelector  # type: ignore[misc]


def _count(loop_class: Any, made: Counter[str], kind: str) -> None:
    original = loop_class.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        made[kind] += 1
        original(self, *args, **kwargs)

    loop_class.__init__ = __init__


class _PipeServers(type):
    """Whose instances are both the standard library's pipe servers and ours."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, PipeServer | StdlibPipeServer)


class _AnyPipeServer(StdlibPipeServer, metaclass=_PipeServers):
    """windows_events.PipeServer, where our loop is tested."""


class _NotAProactor(type):
    """A class that makes our loops, and of which they are no instances."""

    def __call__(cls) -> iocp_loop.IocpEventLoop:
        return iocp_loop.IocpEventLoop()


class LoopThatIsNoProactor(metaclass=_NotAProactor):
    """Stands in for asyncio.ProactorEventLoop where a test asks for that class only to skip what it cannot do."""


def unskip(test: unittest.TestCase) -> None:
    """Let a test run that the suite skips for ProactorEventLoop because of something which our loop has.

    Two ways of skipping are undone: a method that overrides the mixin's test with a skip, and a question after the
    loop's class.
    """
    name = test._testMethodName
    for owner in type(test).__mro__:
        if name in vars(owner):
            if owner is type(test) and any(name in vars(base) for base in owner.__mro__[1:]):
                delattr(owner, name)
                # A TestCase remembers nothing of its method but the name.
                return
            break
    setup = test.setUp

    def set_up() -> None:
        original, asyncio.ProactorEventLoop = asyncio.ProactorEventLoop, LoopThatIsNoProactor  # type: ignore[misc, assignment]
        test.addCleanup(setattr, asyncio, "ProactorEventLoop", original)
        setup()

    test.setUp = set_up  # type: ignore[method-assign]
