"""`python start_up.py LOOP`: seconds from nothing to a loop that has run and is closed. Prints one number."""

import sys
import time

started = time.perf_counter()

import loops  # noqa: E402  # its cost is what is measured

loop = loops.factory(sys.argv[1])()


async def nothing() -> None:
    pass


loop.run_until_complete(nothing())
loop.close()
print(time.perf_counter() - started)
