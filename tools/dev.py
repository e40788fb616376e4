#!/usr/bin/env python3
"""Runs iocp_loop's tests, demo and benchmarks in a CPython for Windows: on Windows, or on Linux under Wine.

    tools/dev.py demo   [ARGS]    python -m iocp_loop demo ARGS
    tools/dev.py check            python -m iocp_loop doctor --check, with its report in iocp_loop-check.txt
    tools/dev.py test   [ARGS]    pytest ARGS; --stomp: with the stomp mode's guarded memory
    tools/dev.py bench  [ARGS]    benchmarks/run.py ARGS; --page FOLDER: and the results page, with counts and plots
    tools/dev.py python [ARGS]    anything: python ARGS
    tools/dev.py lint             ruff, mypy and pyright
    tools/dev.py docs   [serve]   the site, into build/site; a warning is an error
    tools/dev.py package          a wheel and a source distribution, into build/dist, checked, installed and run
    tools/dev.py coverage         what the portable ring runs of the package, by room; too little of one is a failure
    tools/dev.py mutants [NAMES]  deliberate faults, which the portable ring must catch; --sample N: only so many;
                                  --everywhere ROOMS: every small fault that cosmic-ray makes there
    tools/dev.py publish          uploads that; only in the workflow that PyPI trusts
    tools/dev.py newest [ARGS]    the portable ring on the newest CPython of Debian's unstable: pytest ARGS; for Linux
    tools/dev.py libraries [NAMES]    other people's own tests on our loop and on the standard library's, and
                                  docs/compatibility.md of it; --lock NAMES: only pins what they need

Each takes --python 3.11|3.12|3.13|3.14 (or 3.13t, 3.14t: free-threaded); the default is the newest that works here.
--arch x86 takes the Python of 32 bits; --wine 10 takes Debian 13's Wine where the distribution has an older one.
What they need is downloaded and made on the first run, and kept in the user's cache folder (on Linux about 1 GB, in
$XDG_CACHE_HOME or ~/.cache; it may be deleted at any time).

Under Wine a run is pinned to one processor, which it has for itself if it can: Wine is ten times slower across two.
IOCP_LOOP_CPU names another one, or "all" for no pinning. The exit status is the program's.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - an older Python may well be the one that runs this
    sys.exit("tools/dev.py needs Python 3.11 or newer: run it with one, for example 'python3.11 tools/dev.py test'.")

from devtool import commands

if __name__ == "__main__":
    sys.exit(commands.main(sys.argv[1:], __doc__))
