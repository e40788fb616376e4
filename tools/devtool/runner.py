"""One program in the Windows Python under Wine, from start to exit status. For Linux only."""

import os
import signal
import subprocess
import tempfile
from pathlib import Path

from . import cpus, pins, report, wine, winpython

# A named file gets the exit status, see launcher.c.
EXIT_FILE_VARIABLE = "IOCP_LOOP_EXIT_FILE"
STATUS_VANISHED = 70  # EX_SOFTWARE of sysexits.h

PASSED_ON = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
AWAITED = PASSED_ON | {signal.SIGCHLD}
SI_KERNEL = 0x80  # asm-generic/siginfo.h: sent by the kernel, such as by a terminal on Ctrl+C


def run(python: pins.WindowsPython, arguments: list[str], *, folder: Path, environ: dict[str, str]) -> int:
    """Runs `python ARGUMENTS` in the folder, pinned to one processor; returns its exit status."""
    open_missing_streams()
    installed = wine.ensure(python.bits)
    executable = winpython.ensure(python, installed)
    slot = cpus.take(os.sched_getaffinity(0), os.environ.get(cpus.VARIABLE))
    prefix = wine.ensure_prefix(installed, slot.name)
    cpus.pin(slot)
    wine.start(installed, prefix)
    with tempfile.TemporaryDirectory(prefix="iocp_loop-") as scratch:
        exit_file = Path(scratch) / "exit"
        # A terminal on Linux, and whoever reads a log, expects UTF-8.
        settings = {"PYTHONIOENCODING": "utf-8"} | wine.clean_environment() | installed.environment(prefix)
        settings |= environ | {EXIT_FILE_VARIABLE: wine.windows_path(exit_file)}
        status = run_with_signals([installed.loader, str(executable), *arguments], folder, settings)
        if status == 0 and not exit_file.exists():
            # Were this taken for success, tests that died half-way would pass.
            report.say(
                "the Windows Python vanished without exiting: Wine does so when freed memory is still in a kernel call."
            )
            return STATUS_VANISHED
    return status


def open_missing_streams() -> None:
    """Puts /dev/null where a standard stream is closed: Wine would open a folder of its own there."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # The lowest free number, which is this one.


def run_with_signals(command: list[str], folder: Path, environ: dict[str, str]) -> int:
    """Runs the command; signals that only this process gets are passed on to it."""
    # Blocked, they wait for us in sigwaitinfo(), which tells who sent them.
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED)

    # preexec_fn is safe here: this process has no other thread.
    process = subprocess.Popen(command, cwd=folder, env=environ, preexec_fn=unblock)  # noqa: PLW1509
    received = None
    while process.poll() is None:
        event = signal.sigwaitinfo(AWAITED)
        if event.si_signo == signal.SIGCHLD:
            # The loop's condition looks whether it was ours.
            pass
        elif event.si_signo == signal.SIGINT and event.si_code == SI_KERNEL:
            # Ctrl+C at the terminal: it went to the whole foreground group, so Wine has it already.
            pass
        else:
            # Wine turns SIGINT into a console's Ctrl+C, and ends the process on the others.
            received = event.si_signo
            process.send_signal(received)
    unblock()
    if received in (signal.SIGTERM, signal.SIGHUP):
        return 128 + received
    # A shell's way to say "ended by a signal".
    return process.returncode if process.returncode >= 0 else 128 - process.returncode
