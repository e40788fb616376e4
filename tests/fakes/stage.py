"""One seed, one schedule: a kernel, the real loop on it, and what must hold when the schedule has been played."""

from collections.abc import Coroutine
from typing import Any

from .kernel import Chances, FakeKernel
from .loop import FakeLoop
from .rules import Interrupted

__all__ = ["BaseStage", "Interrupted"]


class BaseStage:
    """The kernel and the loop of one seed."""

    def __init__(self, seed: int, chances: Chances | None = None) -> None:
        self.kernel = FakeKernel(seed, chances)
        self.random = self.kernel.random
        self.loop = FakeLoop(self.kernel)

    def run(self, scenario: Any) -> None:
        """Run it, close the loop, and look at what is left."""
        try:
            self.loop.run_until_complete(scenario)
        except BaseException:
            self.loop.take_apart()
            raise
        self.look_at_what_is_left()

    def run_through_interrupts(self, scenario: Coroutine[Any, Any, None]) -> None:
        """`run`, gone on with after whatever ended the loop's run in the middle, as an interactive session would."""
        task = self.loop.create_task(scenario)
        while not task.done():
            try:
                self.loop.run_until_complete(task)
            except (KeyboardInterrupt, SystemExit, MemoryError):
                # Out of a callback; or the wait itself has raised. If it was the scenario, `run` says so.
                continue
            except BaseException:
                break
        self.run(task)

    def look_at_what_is_left(self) -> None:
        """Close the loop: nothing is pending, nothing is open, and nobody wrote where he must not."""
        self.loop.close()
        self.kernel.settle_all()  # A raw peer reads what is left for it.
        proactor = self.loop.proactor
        assert (proactor.pending, proactor.endpoints) == ({}, {})
        self.kernel.check()
        self.loop.arena.check()
        assert self.kernel.open_handles == []
        assert self.kernel.timers == []
