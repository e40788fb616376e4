"""The load generator: built once, started beside the loops, given orders over a TCP connection.

The C program wherever a compiler is found: under Wine Linux's own cc, run as a Linux program outside Wine; on Windows
gcc, clang or cl. Without a compiler load.py, which understands the same orders. TLS is always load.py's.
"""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine

HERE = Path(__file__).parent
C_SOURCE = HERE / "load.c"
START_TIMEOUT_S = 30.0
BUILD_TIMEOUT_S = 60.0


class GeneratorError(Exception):
    """The load generator reported an error; usually the server's fault."""


def unix_path(path: Path) -> str:
    """Linux's name of a path on drive Z: of Wine."""
    return str(path.absolute())[2:].replace("\\", "/")


def start_unix(command: list[str]) -> None:
    """Start a Linux program from inside Wine: no handle and no exit status come back, only what it does."""
    import _winapi

    program = machine.UNIX_ROOT + command[0].lstrip("/").replace("/", "\\")
    _winapi.CreateProcess(program, subprocess.list2cmdline(command), None, None, False, 0, None, None, None)


def _unix_program(*names: str) -> str | None:
    for name in names:
        for folder in ("/usr/local/bin", "/usr/bin", "/bin"):
            if Path(machine.UNIX_ROOT + f"{folder}/{name}".lstrip("/")).exists():
                return f"{folder}/{name}"
    return None


def _cache_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / "iocp_loop-bench"
    if machine.wine_version():
        folder = Path(machine.UNIX_ROOT) / "tmp" / f"iocp_loop-bench-{os.environ.get('USERNAME', 'user')}"
    folder.mkdir(exist_ok=True)
    return folder


def _build_under_wine(program: Path) -> bool:
    compiler = _unix_program("cc", "gcc", "clang")
    if compiler is None:
        return False
    unfinished = program.with_suffix(".tmp")
    # The shell renames it when it is complete: the one sign of success that reaches us.
    source, new, final = (f"'{unix_path(path)}'" for path in (C_SOURCE, unfinished, program))
    script = f"{compiler} -O2 -o {new} {source} && mv {new} {final}"
    start_unix(["/bin/sh", "-c", script])
    deadline = time.monotonic() + BUILD_TIMEOUT_S
    while not program.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return program.exists()


def _build_on_windows(program: Path) -> bool:
    for compiler in ("gcc", "clang", "cl"):
        path = shutil.which(compiler)
        if path is None:
            continue
        command = [path, "-O2", "-o", str(program), str(C_SOURCE), "-lws2_32"]
        if compiler == "cl":
            command = [path, "/nologo", "/O2", str(C_SOURCE), f"/Fe:{program}", f"/Fo:{program}.obj", "ws2_32.lib"]
        elif compiler == "clang":
            command[-1:] = ["-lws2_32", "-D_CRT_SECURE_NO_WARNINGS"]
        if subprocess.run(command, check=False).returncode == 0:
            return True
    return False


def native_program() -> Path | None:
    """The compiled load generator, built if need be; None where there is no compiler."""
    wine = machine.wine_version() is not None
    digest = hashlib.sha256(C_SOURCE.read_bytes()).hexdigest()[:12]
    program = _cache_folder() / f"load-{digest}{'' if wine else '.exe'}"
    if program.exists() or (_build_under_wine if wine else _build_on_windows)(program):
        return program
    return None


class Generator:
    """A running load generator.

    Args:
        native: the C program where there is one; False for load.py, which can do TLS.
    """

    def __init__(self, *, native: bool = True) -> None:
        self.program = native_program() if native else None
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(START_TIMEOUT_S)
        self._start(listener.getsockname()[1])
        self._control, _ = listener.accept()
        listener.close()
        self._lines = self._control.makefile("r")

    def _start(self, port: int) -> None:
        wine = machine.wine_version() is not None
        where = ["127.0.0.1", str(port)]
        python = _unix_program("python3") if wine else None
        if self.program is not None and wine:
            self.title = "C, a Linux program outside Wine"
            start_unix([unix_path(self.program), *where])
        elif self.program is not None:
            self.title = "C"
            subprocess.Popen([str(self.program), *where])
        elif python is not None:
            self.title = "Python, a Linux program outside Wine"
            start_unix([python, unix_path(HERE / "load.py"), *where])
        else:
            self.title = "Python"
            subprocess.Popen([sys.executable, str(HERE / "load.py"), *where])

    def order(self, text: str, on_begin: Callable[[], None] | None = None) -> dict[str, Any]:
        """Give an order; `on_begin` is called when the warm-up is over.

        Raises:
            GeneratorError: it could not be carried out.
        """
        self._control.sendall(text.encode() + b"\n")
        while True:
            line = self._lines.readline()
            if not line:
                raise GeneratorError("the load generator is gone")
            answer = json.loads(line)
            if "error" in answer:
                raise GeneratorError(answer["error"])
            if "begin" not in answer:
                return answer
            if on_begin is not None:
                on_begin()

    def close(self) -> None:
        """End it: it leaves when its orders do."""
        self._lines.close()
        self._control.close()
