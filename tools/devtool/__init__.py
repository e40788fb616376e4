"""What tools/dev.py is made of. Standard library only: it runs before anything is installed.

- pins: what is downloaded, with its hash; data only
- report: progress lines, and the one-sentence error
- cache: the user's cache folder, locks, things that are built once
- fetch: downloads checked by hash, pip
- stdlib: a Lib/ folder for a Windows Python on Linux
- winpython: the Windows Python itself: DLLs, Lib, python.exe, packages
- wine: Wine, found or installed, and its prefixes
- cpus: which processor a run under Wine is pinned to
- runner: one program in the Windows Python under Wine, from start to exit status
- native: virtual environments of the machine's own Python
- commands: what each command runs
"""
