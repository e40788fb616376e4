"""NT calls of a program, counted from outside: Wine's +relay trace of ntdll's Nt functions. Wine only.

What is counted is every entry into the kernel, whoever makes it: our ctypes calls, the C socket module, asyncio's
_overlapped, winloop's libuv. With PYTHONMALLOC=malloc the heap calls in the trace are allocations, one by one.
The same number in every run. Costs 3 to 5 seconds each, almost all of it the start of Python.
"""

import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import machine
from generator import start_unix, unix_path

# The traced program calls this at the beginning and the end of what is to be counted; nothing else ever does.
MARK = "NtQueryTimerResolution"
HEAP_CALLS = ("malloc", "calloc", "realloc")
KEY = r"Software\Wine\Debug"
TIMEOUT_S = 240.0
PE32_PLUS = 0x20B  # of 64 bits; otherwise the optional header is shorter
# Run by a shell outside Wine. The exit status of the traced program is nobody's, see tools/devtool/runner.py.
SCRIPT = """
# Of several Wines the one that runs us: its loader stands beside its server.
for loader in "${{WINESERVER%/*}}/wine64" \\
    /usr/lib/wine/wine64 $(command -v wine64) $(command -v wine); do [ -x "$loader" ] && break; done
unset IOCP_LOOP_EXIT_FILE
export WINEDEBUG=-all,+relay,+pid PYTHONMALLOC=malloc PYTHONHASHSEED=0
"$loader" {words} 2>&1 < /dev/null |
    grep -oaE '[0-9a-f]{{4}}:[0-9a-f]{{4}}:Call (ntdll.Nt|ucrtbase.)[A-Za-z]+' > '{found}'
echo > '{finished}'
"""


def exports_of(dll: Path) -> list[str]:
    """The names a DLL exports (Microsoft, PE Format, "The .edata Section")."""
    image = dll.read_bytes()
    (pe,) = struct.unpack_from("<I", image, 0x3C)
    sections, optional_size = struct.unpack_from("<H12xH", image, pe + 6)
    table = pe + 24 + optional_size
    (magic,) = struct.unpack_from("<H", image, pe + 24)
    (exports,) = struct.unpack_from("<I", image, pe + 24 + (112 if magic == PE32_PLUS else 96))

    def at(address: int) -> int:
        for i in range(sections):
            size, start, raw_size, raw = struct.unpack_from("<4I", image, table + 40 * i + 8)
            if start <= address < start + max(size, raw_size):
                return address - start + raw
        raise ValueError(f"{dll.name}: no section holds address {address:#x}")

    count, _, names = struct.unpack_from("<3I", image, at(exports) + 24)
    addresses = struct.unpack_from(f"<{count}I", image, at(names))
    return [image[at(a) : image.index(b"\0", at(a))].decode() for a in addresses]


@contextmanager
def relay_filter() -> Iterator[None]:
    """For the time being the prefix's +relay shows Nt functions and the heap only; afterwards as before."""
    names = [f"ntdll.{name}" for name in exports_of(Path(r"C:\windows\system32\ntdll.dll")) if name.startswith("Nt")]
    names += [f"ucrtbase.{name}" for name in HEAP_CALLS]
    wanted = {"RelayInclude": ";".join(names), "RelayExclude": "", "RelayFromExclude": ""}
    before: dict[str, str | None] = {}
    import winreg

    with winreg.CreateKey(winreg.HKEY_CURRENT_USER, KEY) as key:
        for name, text in wanted.items():
            try:
                before[name] = winreg.QueryValueEx(key, name)[0]
            except FileNotFoundError:
                before[name] = None
            winreg.SetValueEx(key, name, 0, winreg.REG_SZ, text)
        try:
            yield
        finally:
            for name, old in before.items():
                if old is None:
                    winreg.DeleteValue(key, name)
                else:
                    winreg.SetValueEx(key, name, 0, winreg.REG_SZ, old)


def trace(arguments: list[str]) -> Counter[str]:
    """Run this Python with `arguments` under +relay; the calls it made between its two marks, by name.

    Raises:
        RuntimeError: not under Wine, or the program did not come to its second mark.
    """
    if machine.wine_version() is None:
        raise RuntimeError("NT calls can be traced under Wine only")
    with tempfile.TemporaryDirectory(dir=Path(machine.UNIX_ROOT, "tmp"), ignore_cleanup_errors=True) as folder:
        found, finished = Path(folder, "calls"), Path(folder, "finished")
        words = " ".join(f"'{word}'" for word in (unix_path(Path(sys.executable)), *arguments))
        script = SCRIPT.format(words=words, found=unix_path(found), finished=unix_path(finished))
        start_unix(["/bin/sh", "-c", script])
        deadline = time.monotonic() + TIMEOUT_S
        while not finished.exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{arguments} did not end within {TIMEOUT_S:.0f} seconds")
            time.sleep(0.1)
        return between_marks(found.read_text().splitlines())


def between_marks(lines: list[str]) -> Counter[str]:
    """Calls by name, of the process that made the marks; other processes are in the trace too."""
    counts: Counter[str] = Counter()
    pid = None
    for line in lines:
        process, _, call = line.split(":")
        name = call.rpartition(".")[2]
        if name == MARK:
            if pid is not None:
                return counts
            pid = process
        elif process == pid:
            counts[name] += 1
    raise RuntimeError("the traced program did not reach its end")


def mark() -> None:
    """Leave a mark in the trace."""
    import ctypes

    resolutions = (ctypes.c_uint32 * 3)()
    address = ctypes.addressof(resolutions)
    query = ctypes.WinDLL("ntdll").NtQueryTimerResolution  # type: ignore[attr-defined, unused-ignore]
    query(*(ctypes.c_void_p(address + 4 * i) for i in range(3)))
