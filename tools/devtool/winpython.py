"""The Windows Python on Linux: a folder laid out like python.org's, put together from parts.

python.exe  python3XX.dll  python3.dll  VCRUNTIME140*.dll
DLLs/       extension modules and the libraries they load
Lib/        the standard library; Lib/site-packages has the test dependencies
"""

import shutil
import struct
import subprocess
import zipfile
from pathlib import Path, PurePosixPath

from . import cache, fetch, pins, pypi, report, stdlib, wine

HERE = Path(__file__).parent
RECIPE = 1  # Raise it when build() does something else: the Windows Pythons are made anew then.
LAUNCHER = (HERE / "launcher.c", HERE / "launcher.manifest")

# The Universal C Runtime is Wine's own. `_wmi` needs a service that Wine lacks: platform.uname() would die in it.
PE32_PLUS = 0x20B  # of 64 bits; otherwise the optional header is shorter
LEFT_OUT_PREFIXES = ("api-ms-", "ucrtbase", "msvcp", "_wmi")


# Run in a Windows Python that has just been made: do its two halves fit each other?
CHECK = """
import _sre, asyncio, bz2, ctypes, decimal, hashlib, lzma, multiprocessing, platform, sqlite3, ssl, sys, sysconfig, zlib
import _overlapped, pytest, test.test_asyncio.utils
from re import _constants
assert platform.python_version() == sys.argv[1], platform.python_version()
assert bool(sysconfig.get_config_var("Py_GIL_DISABLED")) == bool(int(sys.argv[2])), "wrong build"
assert ctypes.sizeof(ctypes.c_void_p) * 8 == int(sys.argv[3]), "wrong width"
assert _sre.MAGIC == _constants.MAGIC, "Lib/ and the DLL disagree on regular expressions"
print("fit")
"""


def ensure(python: pins.WindowsPython, installed: wine.Wine) -> Path:
    """The python.exe of that Windows Python, made now if it is not there."""
    inputs = [str(RECIPE), repr(python), pins.PANDA3D, repr(pins.LIBRARY_PACKAGES.get(python.minor))]
    inputs.append(pypi.key("test", "bench"))
    name = f"python-{python.name}-{cache.key(*inputs, *(path.read_bytes() for path in LAUNCHER))}"
    return cache.built_once(name, lambda folder: build(python, folder, installed)) / "python.exe"


def build(python: pins.WindowsPython, folder: Path, installed: wine.Wine) -> None:
    with report.step(
        f"building CPython {python.release}{' free-threaded' * python.free_threaded} for Windows, {python.bits} bits"
    ):
        scratch = folder / "scratch"
        scratch.mkdir()
        take_binaries(python, folder, scratch)
        stdlib.copy_to(folder / "Lib", python, scratch)
        make_launcher(python, folder, scratch)
        make_stable_abi_forwarder(python, folder, scratch)
        install_packages(python, folder / "Lib" / "site-packages", scratch)
        check(python, folder, installed)
        shutil.rmtree(scratch)


def check(python: pins.WindowsPython, folder: Path, installed: wine.Wine) -> None:
    environ = wine.clean_environment() | installed.environment(wine.ensure_prefix(installed, "build"))
    arguments = ["-c", CHECK, python.release, str(int(python.free_threaded)), str(python.bits)]
    output = wine.output_of([installed.loader, str(folder / "python.exe"), *arguments], environ)
    if output.split()[-1:] != ["fit"]:
        raise report.Trouble(
            f"CPython {python.release} for Windows does not work under Wine {installed.version}: {output.strip()}"
        )


def take_binaries(python: pins.WindowsPython, folder: Path, scratch: Path) -> None:
    """DLLs and extension modules out of panda3d's wheel."""
    requirement = scratch / "panda3d.txt"
    requirement.write_text(f"panda3d=={pins.PANDA3D} --hash=sha256:{python.wheel_sha256}\n")
    report.say(f"downloading the wheel that holds CPython {python.release} (70 MB)")
    options = fetch.wheels_for_windows(python.minor, free_threaded=python.free_threaded, bits=python.bits)
    fetch.pip("download", "--no-deps", "--require-hashes", "-r", requirement, "-d", scratch, *options, what="panda3d")
    (wheel,) = scratch.glob("*.whl")
    (folder / "DLLs").mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            place = placed(PurePosixPath(member.filename), python)
            if place:
                (folder / place).write_bytes(archive.read(member))


def placed(member: PurePosixPath, python: pins.WindowsPython) -> str | None:
    """Where a member of the wheel belongs; None: nowhere."""
    name = member.name
    if member.parent.name != "deploy_libs" or name.lower().startswith(LEFT_OUT_PREFIXES):
        return None
    if name.lower().startswith(("python3", "vcruntime")):
        return name
    if member.suffix == ".pyd":
        # The wheels of 3.13 hold both builds' modules; only the free-threaded ones are tagged.
        is_free_threaded = f".cp{python.tag.rstrip('t')}t-" in name
        return f"DLLs/{name}" if is_free_threaded == python.free_threaded else None
    return f"DLLs/{name}" if member.suffix == ".dll" else None


def make_launcher(python: pins.WindowsPython, folder: Path, scratch: Path) -> None:
    source, manifest = LAUNCHER
    (scratch / "launcher.rc").write_text(f'1 24 "{manifest}"\n')
    resource_compiler = wine.COMPILERS[python.bits].removesuffix("gcc") + "windres"
    compile_with(resource_compiler, scratch / "launcher.rc", scratch / "launcher.o")
    define = f'-DPYTHON_DLL="python{python.tag}.dll"'
    options = ("-municode", "-D_WIN32_WINNT=0x0A00", "-O2", "-Wall", "-Werror", "-s")
    compile_with(
        wine.COMPILERS[python.bits], *options, define, source, scratch / "launcher.o", "-o", folder / "python.exe"
    )


def make_stable_abi_forwarder(python: pins.WindowsPython, folder: Path, scratch: Path) -> None:
    """python3.dll, which modules built for the stable ABI link to: every name leads to python3XX.dll."""
    if python.free_threaded:
        return  # A free-threaded build has no stable ABI.
    names = exported_names((folder / f"python{python.tag}.dll").read_bytes())
    definition = scratch / "python3.def"
    lines = (f"  {name} = python{python.tag}.{name}" for name in names)
    definition.write_text("LIBRARY python3\nEXPORTS\n" + "\n".join(lines) + "\n")
    compile_with(
        wine.COMPILERS[python.bits], "-shared", "-nostdlib", "-Wl,--entry=0", definition, "-o", folder / "python3.dll"
    )


def compile_with(*command: str | Path) -> None:
    result = subprocess.run(list(map(str, command)), stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise report.Trouble(f"{command[0]} could not make {command[-1]}: {result.stderr.strip()}")


def exported_names(dll: bytes) -> list[str]:
    """The names in a DLL's export table (Microsoft's "PE Format", sections 3.4 and 6.3)."""
    (pe,) = struct.unpack_from("<I", dll, 0x3C)
    (section_count,) = struct.unpack_from("<H", dll, pe + 6)
    (optional_size,) = struct.unpack_from("<H", dll, pe + 20)
    optional = pe + 24
    (magic,) = struct.unpack_from("<H", dll, optional)
    (export_table,) = struct.unpack_from("<I", dll, optional + (112 if magic == PE32_PLUS else 96))
    sections = [
        struct.unpack_from("<IIII", dll, optional + optional_size + 40 * index + 8) for index in range(section_count)
    ]

    def at(address: int) -> int:
        for size, start, raw_size, raw_start in sections:
            if start <= address < start + max(size, raw_size):
                return int(raw_start + address - start)
        raise ValueError(f"address {address:#x} lies in no section")

    name_count, _, names = struct.unpack_from("<III", dll, at(export_table) + 24)
    starts = (at(address) for address in struct.unpack_from(f"<{name_count}I", dll, at(names)))
    return [dll[start : dll.index(b"\0", start)].decode("ascii") for start in starts]


def install_packages(python: pins.WindowsPython, site_packages: Path, scratch: Path) -> None:
    """The pinned test dependencies, as wheels for Windows."""
    options = fetch.wheels_for_windows(python.minor, free_threaded=python.free_threaded, bits=python.bits)
    common = ("install", "--target", str(site_packages), "--no-deps", "--require-hashes", "--no-compile", *options)
    report.say("installing the test dependencies")
    fetch.pip(*common, "-r", pypi.requirements("test", scratch), what="the test dependencies")
    try:
        fetch.pip(*common, "-r", pypi.requirements("bench", scratch), what="winloop")
    except report.Trouble:
        report.say(f"winloop has no wheel for {python.name}: the benchmarks leave it out")
