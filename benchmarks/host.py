"""The process under test: one event loop, one scenario. `python host.py LOOP SCENARIO`

Orders come on standard input, a word a line; each is answered with one line of JSON:

    times    CPU seconds of this process so far, user and system
    memory   bytes this process has committed, after a collection; and connections it has (echo only)
    run      a scenario without a load generator does its work once: {"count": ..., "seconds": ...}
    quit

The first line, once the scenario is ready, holds {"port": ...} or is empty; {"unsupported": why} where the loop lacks
what the scenario needs.
"""

import asyncio
import gc
import json
import os
import sys
import threading
from typing import Any

import loops
import micro
import servers
from machine import committed_bytes

SCENARIOS: dict[str, Any] = {**servers.SERVERS, **micro.MICRO}


def answer(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def obey(order: str, loop: asyncio.AbstractEventLoop, scenario: Any) -> dict[str, Any]:
    if order == "times":
        times = os.times()
        return {"user": times.user, "system": times.system}
    if order == "memory":
        gc.collect()
        return {"bytes": committed_bytes(), "connections": servers.Echo.connections}
    if order == "run":
        return asyncio.run_coroutine_threadsafe(scenario.run(), loop).result()
    return {"error": f"no such order: {order}"}


def take_orders(loop: asyncio.AbstractEventLoop, scenario: Any) -> None:
    """In a thread of its own, which sleeps in `readline` while the loop is measured."""
    for line in sys.stdin:
        order = line.strip()
        if order == "quit":
            break
        try:
            answer(obey(order, loop, scenario))
        except Exception as exc:
            answer({"error": f"{type(exc).__name__}: {exc}"})
    loop.call_soon_threadsafe(loop.stop)


def main(loop_name: str, scenario_name: str) -> None:
    loop = loops.factory(loop_name)()
    asyncio.set_event_loop(loop)
    scenario = SCENARIOS[scenario_name]()
    try:
        first = loop.run_until_complete(scenario.start(loop)) or {}
    except (ImportError, NotImplementedError, AttributeError) as exc:
        answer({"unsupported": f"{type(exc).__name__}: {exc}".rstrip(": ")})
        return
    # What start-up left behind must not be collected in the middle of a measurement.
    gc.collect()
    gc.freeze()
    answer(first)
    threading.Thread(target=take_orders, args=(loop, scenario), daemon=True).start()
    loop.run_forever()
    sys.stdout.flush()
    # Nothing is measured after this; the end of the process closes all handles.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
