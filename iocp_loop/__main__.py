"""`python -m iocp_loop`: see `_cli`."""

import sys

from ._cli._commands import main

if __name__ == "__main__":
    sys.exit(main())
