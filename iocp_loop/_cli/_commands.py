"""The command line: `python -m iocp_loop demo | doctor | version`.

Exit status: 0 all is well, 1 the command found something wrong, 2 the command line is wrong, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status.

    Args:
        arguments: the words after `python -m iocp_loop`; None for those of this process.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m iocp_loop", description="An asyncio event loop for Windows on I/O completion ports."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="demo | doctor | version")
    demo = commands.add_parser(
        "demo", help="an echo server and its clients on this loop and on asyncio's, by turns: every byte is compared"
    )
    demo.add_argument("--seconds", type=_number(float, 0.2, 3600), default=6.0, help="altogether; default: %(default)s")
    demo.add_argument("--clients", type=_number(int, 1, 2000), default=50, help="at once; default: %(default)s")
    demo.add_argument(
        "--size", type=_number(int, 16, 1 << 24), default=1024, help="bytes a message; default: %(default)s"
    )
    demo.set_defaults(command=_demo)
    doctor = commands.add_parser(
        "doctor", help="what this system offers, what is in use, and what is missed without it"
    )
    doctor.add_argument(
        "--check",
        action="store_true",
        help="make the experiments too that only a run on this system can decide; takes a minute, and no network",
    )
    doctor.add_argument(
        "--report", metavar="FILE", type=Path, help="write it to a file as well, without names, paths and addresses"
    )
    doctor.set_defaults(command=_doctor)
    version = commands.add_parser("version", help="the version, and nothing else")
    version.set_defaults(command=_version)
    return parser


def _number(kind: Callable[[str], float], smallest: float, largest: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        number = kind(text)
        if not smallest <= number <= largest:
            raise argparse.ArgumentTypeError(f"{text} is not {smallest} to {largest}")
        return number

    convert.__name__ = "number"  # argparse says "invalid number value".
    return convert


def _demo(options: argparse.Namespace) -> int:
    from ._demo import run_demo

    return run_demo(seconds=options.seconds, clients=options.clients, size=options.size)


def _doctor(options: argparse.Namespace) -> int:
    from ._doctor import run_doctor

    return run_doctor(check=options.check, report=options.report)


def _version(_options: argparse.Namespace) -> int:
    print(__version__)
    return 0
