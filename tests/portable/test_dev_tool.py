"""The parts of tools/dev.py that need neither Wine nor a network."""

import multiprocessing
import re
import struct
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path, PurePosixPath

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tools"))

from devtool import (  # noqa: E402
    apt,
    cache,
    commands,
    cpus,
    debian,
    fetch,
    libraries,
    native,
    newer_wine,
    newest,
    package,
    package_page,
    pins,
    pypi,
    report,
    stdlib,
    wine,
    winpython,
)


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", str(tmp_path))
    return cache.folder()


# ---- the command line


def test_options_may_follow_the_command():
    request = commands.parse(["test", "-k", "accept", "--python", "3.11", "--stomp"])
    assert request == commands.Request("test", "3.11", None, True, ["-k", "accept"])


def test_options_may_precede_the_command():
    assert commands.parse(["--python=3.13t", "demo", "--seconds", "1"]) == commands.Request(
        "demo", "3.13t", None, False, ["--seconds", "1"]
    )


def test_python_hands_on_everything_after_its_first_argument():
    request = commands.parse(["python", "--python", "3.11", "script.py", "--python", "9", "--stomp"])
    assert request == commands.Request("python", "3.11", None, False, ["script.py", "--python", "9", "--stomp"])


@pytest.mark.parametrize("words", [["--wine", "10"], ["--wine=10"]])
def test_the_version_of_wine_may_be_chosen(words):
    assert commands.parse(["demo", *words]) == commands.Request("demo", None, "10", False, [])


def test_the_width_of_python_may_be_chosen():
    assert commands.parse(["demo", "--arch", "x86", "--python", "3.13"]).python == "3.13-32"
    assert commands.parse(["demo", "--arch=x86"]).python == f"{commands.default_name()}-32"
    assert commands.parse(["demo", "--arch=x86", "--python=3.12-32"]).python == "3.12-32"
    assert commands.parse(["demo", "--arch=amd64"]).python is None
    python = pins.WINDOWS_PYTHONS["3.13-32"]
    assert (python.minor, python.tag, python.bits, python.free_threaded) == ("3.13", "313", 32, False)


@pytest.mark.parametrize(
    "arguments", [["tset"], ["--python", "3.13"], ["demo", "--python"], ["demo", "--wine="], ["demo", "--arch", "mips"]]
)
def test_a_wrong_command_line_is_one_sentence(arguments, capsys):
    assert commands.main(arguments, "") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_no_command_prints_the_usage(capsys):
    assert commands.main([], "the usage") == 2
    assert capsys.readouterr().out == "the usage\n"


def test_named_files_decide_which_rings_run():
    this_file = "tests/portable/test_dev_tool.py"
    assert commands.concerns_portable_ring(["-x", "-k", "port"])
    assert commands.concerns_portable_ring([f"{this_file}::test_x"])
    assert not commands.concerns_portable_ring(["tools"])
    assert not commands.names_tests(["-x", "--maxfail=1", "no-such-file"])


@pytest.mark.parametrize(
    ("named", "concerns"),
    [
        ([], True),
        (["-k", "janus"], True),
        (["tests"], True),
        (["tests/libraries/test_sample.py"], True),
        (["tests/portable"], False),
    ],
)
def test_the_libraries_sample_is_fetched_for_runs_that_have_it(named, concerns):
    assert commands.concerns_ring("tests/libraries", named) is concerns


# ---- other people's tests


@pytest.fixture
def source_distribution(tmp_path):
    for name in ("lib/__init__.py", "lib/core.py", "tests/test_lib.py"):
        path = tmp_path / "lib-1.0" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    archive = tmp_path / "lib-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as members:
        members.add(tmp_path / "lib-1.0", "lib-1.0")
    return archive


def test_a_source_distribution_is_laid_out_without_the_package(source_distribution, tmp_path):
    libraries.unpack(source_distribution, tmp_path / "suite", "lib")
    assert [path.name for path in (tmp_path / "suite").iterdir()] == ["tests"]


def test_the_folder_to_leave_out_must_be_there(source_distribution, tmp_path):
    with pytest.raises(report.Trouble, match="no folder src"):
        libraries.unpack(source_distribution, tmp_path / "suite", "src")


def test_the_sample_is_for_one_python_only():
    assert libraries.sample("3.11") == {}


def test_a_library_that_is_not_in_the_table_is_said_to_be_missing():
    with pytest.raises(report.Trouble, match="nolib is not in"):
        libraries.run(["nolib"], None, lambda *_: 0)


# ---- the cache


def test_a_thing_is_built_once(cache_folder):
    builds = []
    for _ in range(2):
        made = cache.built_once("thing", lambda folder: builds.append((folder / "content").write_text("x")))
    assert builds == [1]
    assert (made / "content").read_text() == "x"


def test_an_interrupted_build_leaves_nothing_and_is_done_again(cache_folder):
    def interrupted(folder):
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.built_once("thing", interrupted)
    assert not (cache_folder / "thing").exists()
    made = cache.built_once("thing", lambda folder: None)
    assert not (made / "half").exists()


def build_slowly(log):
    """Runs in another process: notes when it builds, and holds the lock for a while."""

    def build(folder):
        with log.open("a") as file:
            file.write("built\n")

    cache.built_once("thing", build)


def test_of_several_processes_one_builds(cache_folder, tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=build_slowly, args=(tmp_path / "log",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_lock_is_held_until_its_file_is_closed(cache_folder):
    first, second = cache.lock_file("slot"), cache.lock_file("slot")
    assert cache.try_lock(first)
    assert not cache.try_lock(second)
    first.close()
    assert cache.try_lock(second)
    second.close()


def test_the_key_separates_its_parts():
    assert cache.key("ab", "c") != cache.key("a", "bc")
    assert cache.key("ab", b"c") == cache.key(b"ab", "c")


def test_an_unwritable_cache_folder_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(report.Trouble, match="cache folder"):
        cache.folder()


# ---- downloads


def test_a_download_with_another_hash_is_refused(cache_folder, monkeypatch):
    monkeypatch.setattr(fetch, "read", lambda url: b"something else")
    with pytest.raises(report.Trouble, match="not the file it was"):
        fetch.file("https://example.org/a.deb", "00" * 32)
    assert not list(cache_folder.rglob("*.deb"))


def test_every_pin_is_a_sha256():
    hashes = [python.wheel_sha256 for python in pins.WINDOWS_PYTHONS.values()]
    hashes.append(pins.PATCHELF_SHA256)
    hashes += [sha256 for packages in pins.LIBRARY_PACKAGES.values() for _, sha256 in packages.files]
    hashes.append(pins.PIP_SHA256)
    assert all(len(bytes.fromhex(sha256)) == 32 for sha256 in hashes)
    assert len(set(hashes)) == len(hashes)


def test_a_line_for_pip_names_the_wheels_that_may_be_taken():
    name, *hashes = pypi.pins_of("uv").split()
    assert re.fullmatch(r"uv==[0-9.]+", name)
    assert len(hashes) > 5
    assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in hashes)


@pytest.mark.parametrize(("name", "groups"), [("mkdocs", ["docs"]), ("iniconfig", ["test", "lint"])])
def test_what_a_group_does_not_want_changes_nothing_of_its_environment(monkeypatch, name, groups):
    """pytest wants iniconfig; nothing that is tested wants mkdocs."""
    before = {group: pypi.key(group) for group in ("test", "lint", "docs")}
    pinned = [{**entry, "version": "0"} if entry["name"] == name else entry for entry in pypi.packages()]
    monkeypatch.setattr(pypi, "packages", lambda: pinned)
    assert [group for group in before if before[group] != pypi.key(group)] == groups


def test_every_package_of_the_lock_is_pinned_with_hashes_and_has_a_wheel():
    lock = tomllib.loads(pypi.LOCK.read_text())
    names = set()
    for pinned in lock["package"]:
        if pinned["source"] == {"editable": "."}:
            groups = pinned["dev-dependencies"]
            continue
        names.add(pinned["name"])
        assert pinned["wheels"], pinned["name"]
        assert all(wheel["hash"].startswith("sha256:") for wheel in pinned["wheels"])
    wanted = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["dependency-groups"]
    assert groups.keys() == wanted.keys()
    assert {entry["name"] for group in groups.values() for entry in group} <= names


def test_what_pip_is_given_has_no_markers(monkeypatch, tmp_path):
    """pip would ask them about the Python that it runs in, which is not the one that it fills a folder for."""
    exported = (
        "colorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n"
        "pytest==9.2.0 ; python_full_version < '3.15' and (sys_platform == 'linux') \\\n    --hash=sha256:22\n"
    )
    monkeypatch.setattr(pypi, "run_uv", lambda *_, **__: exported)
    lines = pypi.requirements("test", tmp_path).read_text().splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "colorama==0.4.6 \\",
        "--hash=sha256:00 \\",
        "--hash=sha256:11",
        "pytest==9.2.0 \\",
        "--hash=sha256:22",
    ]


# ---- the package


def test_a_package_page_links_to_the_repository():
    text = "see [a](docs/a.md), [b](https://example.org/b) and [c](#c)"
    shown = package_page.with_absolute_links(text, "https://example.org/x/y/")
    assert shown == "see [a](https://example.org/x/y/blob/main/docs/a.md), [b](https://example.org/b) and [c](#c)"
    assert package_page.with_absolute_links(text, "") == text
    assert package_page.urls("") == {}
    assert package_page.urls("https://example.org/x/y/")["Issues"] == "https://example.org/x/y/issues"


@pytest.mark.parametrize("tag", ["", "0.1.0", "v0.2.0", "main"])
def test_nothing_is_published_for_another_tag(monkeypatch, tmp_path, tag):
    monkeypatch.setattr(package, "DIST", tmp_path)
    monkeypatch.setattr(pypi, "run_uv", lambda *_, **__: pytest.fail("it was uploaded"))
    for name in ("iocp_loop-0.1.0.tar.gz", "iocp_loop-0.1.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    with pytest.raises(report.Trouble, match="the tag"):
        package.publish(tag)


def test_what_was_built_for_a_tag_is_published(monkeypatch, tmp_path):
    monkeypatch.setattr(package, "DIST", tmp_path)
    uploaded = []
    monkeypatch.setattr(pypi, "run_uv", lambda *arguments, **_: uploaded.append(arguments))
    for name in ("iocp_loop-0.1.0.tar.gz", "iocp_loop-0.1.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    assert package.publish("v0.1.0") == 0
    ((command, *_, wheel, source),) = uploaded
    assert (command, wheel.suffix, source.suffix) == ("publish", ".whl", ".gz")


# ---- benchmarks


def test_a_page_is_made_of_rates_and_counts(monkeypatch, tmp_path):
    steps = []
    monkeypatch.setattr(commands, "in_windows_python", lambda _name, arguments, _folder: steps.append(arguments) or 0)
    monkeypatch.setattr(native, "environment", lambda *_: Path("python"))
    monkeypatch.setattr(native, "run", lambda _python, arguments, **_: steps.append(arguments) or 0)
    page = tmp_path / "page"
    request = commands.parse(["bench", "echo_1k", "--page", str(page), "--rounds", "3"])
    assert commands.bench(request) == 0
    rates, counts, drawing = steps
    assert rates[:5] == ["benchmarks/run.py", "echo_1k", "--rounds", "3", "--out"]
    assert rates[5].endswith("results.json")
    assert counts[0] == "benchmarks/counts.py"
    assert drawing == [
        "benchmarks/report.py", str(page / "results.json"), "--counts", str(page / "counts.json"), "--out", str(page)
    ]  # fmt: skip
    assert page.is_dir()


def test_no_page_is_drawn_of_what_failed(monkeypatch, tmp_path):
    monkeypatch.setattr(commands, "in_windows_python", lambda *_: 3)
    assert commands.bench(commands.parse(["bench", "--page", str(tmp_path)])) == 3


def test_a_page_wants_a_folder():
    with pytest.raises(report.Trouble, match="--page wants a folder"):
        commands.bench(commands.parse(["bench", "--page"]))


# ---- the standard library


def test_the_nearest_patch_release_is_taken():
    near, far = stdlib.Local("3.11.7", Path("near")), stdlib.Local("3.11.2", Path("far"))
    assert stdlib.nearest("3.11.9", [far, near]) == near
    assert stdlib.nearest("3.11.9", []) is None
    assert stdlib.distance("3.13.11", "3.13.5") == 6


def test_a_debian_index_names_file_and_hash():
    index = (
        "Package: wanted\nVersion: 1\nFilename: pool/w.deb\nSHA256: ab12\n\nPackage: other\nFilename: o\nSHA256: 00\n"
    )
    assert dict(stdlib.package_files(index, {"wanted"})) == {"wanted": ("pool/w.deb", "ab12")}


# ---- the Windows Python


@pytest.mark.parametrize(
    ("member", "name", "place"),
    [
        ("deploy_libs/python313.dll", "3.13", "python313.dll"),
        ("deploy_libs/VCRUNTIME140_1.dll", "3.13", "VCRUNTIME140_1.dll"),
        ("deploy_libs/libffi-8.dll", "3.13", "DLLs/libffi-8.dll"),
        ("deploy_libs/_ssl.pyd", "3.13", "DLLs/_ssl.pyd"),
        ("deploy_libs/_ssl.pyd", "3.13t", None),
        ("deploy_libs/_ssl.cp313t-win_amd64.pyd", "3.13t", "DLLs/_ssl.cp313t-win_amd64.pyd"),
        ("deploy_libs/_ssl.cp313t-win_amd64.pyd", "3.13", None),
        ("deploy_libs/_wmi.pyd", "3.13", None),
        ("deploy_libs/api-ms-win-crt-heap-l1-1-0.dll", "3.13", None),
        ("panda3d/core.cp313-win_amd64.pyd", "3.13", None),
    ],
)
def test_members_of_the_wheel_go_where_python_org_has_them(member, name, place):
    assert winpython.placed(PurePosixPath(member), pins.WINDOWS_PYTHONS[name]) == place


def pe_file_exporting(names, bits):
    """The smallest DLL image that has an export table: one section, loaded at 0x1000, lying at 0x200."""
    header = bytearray(0x200)
    struct.pack_into("<I", header, 0x3C, 0x40)
    machine, magic, size, table = {64: (0x8664, 0x20B, 240, 112), 32: (0x14C, 0x10B, 224, 96)}[bits]
    struct.pack_into("<4sHHIIIHH", header, 0x40, b"PE\0\0", machine, 1, 0, 0, 0, size, 0)
    struct.pack_into("<H", header, 0x58, magic)
    struct.pack_into("<I", header, 0x58 + table, 0x1000)
    texts = b"".join(name.encode() + b"\0" for name in names)
    starts, start = [], 0x1000 + 40 + 4 * len(names)
    for name in names:
        starts.append(start)
        start += len(name) + 1
    directory = struct.pack("<IIHHIIIIIII", 0, 0, 0, 0, 0, 1, len(names), len(names), 0, 0x1000 + 40, 0)
    section = directory + struct.pack(f"<{len(names)}I", *starts) + texts
    struct.pack_into("<8sIIII", header, 0x58 + size, b".rdata", len(section), 0x1000, len(section), 0x200)
    return bytes(header) + section


@pytest.mark.parametrize("bits", [32, 64])
def test_the_export_table_is_read(bits):
    assert winpython.exported_names(pe_file_exporting(["PyA", "PyLonger", "Z"], bits)) == ["PyA", "PyLonger", "Z"]


# ---- processors


STAT = """cpu  3 3 3 3 3 3 3 3 3 3
cpu0 100 0 50 1000 7 1 2 0 100 0
cpu1 10 5 0 2000 9 0 0 3 10 0
intr 5
"""


def test_busy_ticks_leave_out_idle_and_guest_time():
    assert cpus.busy_ticks(STAT) == {0: 153, 1: 18}


def test_runs_at_the_same_time_take_different_processors_while_there_are_any(cache_folder, monkeypatch):
    monkeypatch.setattr(cpus, "busy_times", lambda sample_s: {0: 50, 1: 3})
    first, second, third = (cpus.take([0, 1], None) for _ in range(3))
    assert [slot.cpu for slot in (first, second, third)] == [1, 0, 1]
    assert third.lock is None
    first.lock.close()
    fourth = cpus.take([0, 1], None)
    assert fourth.cpu == 1
    fourth.lock.close()
    second.lock.close()


def test_the_user_may_choose_the_processor():
    assert cpus.take([0, 1], "all") == cpus.Slot("all", None, None)
    assert cpus.take([0, 1], "1") == cpus.Slot("cpu1", 1, None)
    with pytest.raises(report.Trouble, match="IOCP_LOOP_CPU=2"):
        cpus.take([0, 1], "2")


# ---- Wine


@pytest.fixture
def wine_8(monkeypatch):
    """The distribution has Wine 8, and another Wine 10 can be had."""
    installed = wine.Wine("wine", "wineserver", "8.0")
    monkeypatch.setattr(wine, "ensure_installed", lambda bits: installed)
    monkeypatch.setattr(newer_wine, "ensure", lambda bits: (f"other wine of {bits} bits", "other wineserver"))
    monkeypatch.setattr(wine, "identified", lambda loader, server: wine.Wine(loader, server, "10.0"))
    return installed


@pytest.mark.parametrize("wanted", [None, "", "8"])
def test_the_distributions_wine_is_taken_unless_another_is_asked_for(wine_8, monkeypatch, wanted):
    monkeypatch.delenv(wine.VARIABLE, raising=False)
    if wanted is not None:
        monkeypatch.setenv(wine.VARIABLE, wanted)
    assert wine.ensure() is wine_8


def test_another_wine_is_unpacked_when_it_is_asked_for(wine_8, monkeypatch):
    monkeypatch.setenv(wine.VARIABLE, "10")
    assert wine.ensure() == wine.Wine("other wine of 64 bits", "other wineserver", "10.0")


def test_programs_of_32_bits_run_on_the_unpacked_wine(wine_8, monkeypatch):
    monkeypatch.delenv(wine.VARIABLE, raising=False)
    assert wine.ensure(32) == wine.Wine("other wine of 32 bits", "other wineserver", "10.0", 32)
    monkeypatch.setenv(wine.VARIABLE, "8")
    with pytest.raises(report.Trouble, match="no Wine 8 to be had here: take 10"):
        wine.ensure(32)


def test_a_wine_that_cannot_be_had_is_a_clear_error(wine_8, monkeypatch):
    monkeypatch.setenv(wine.VARIABLE, "9")
    with pytest.raises(report.Trouble, match="no Wine 9 to be had here: take 10 or 8"):
        wine.ensure()


def test_an_unpacked_wine_that_does_not_start_is_a_clear_error(wine_8, monkeypatch):
    monkeypatch.setenv(wine.VARIABLE, "10")
    monkeypatch.setattr(wine, "identified", lambda *_: None)
    with pytest.raises(report.Trouble, match="does not work here"):
        wine.ensure()


# ---- the newest CPython


PACKAGES = """Package: python3.9-minimal
Version: 3.9.1-1
Depends: libc6 (>= 2.38)
Filename: pool/old.deb
SHA256: 0a

Package: python3.15-minimal
Version: 3.15.0-1
Pre-Depends: libc6 (>= 2.38)
Depends: libpython3.15-minimal (= 3.15.0-1), libz1 (>= 1) | zlib1g, media-types | mime-support
Filename: pool/new.deb
SHA256: 1a

Package: libpython3.15-stdlib
Version: 3.15.0-1
Filename: pool/stdlib.deb
SHA256: 2a

Package: libpython3.15-minimal
Depends: libc6:any
Filename: pool/minimal.deb
SHA256: 3a

Package: media-types
Filename: pool/types.deb
SHA256: 4a

Package: libc6
Filename: pool/c.deb
SHA256: 5a
"""


def test_the_newest_interpreter_is_taken_with_the_libraries_that_it_needs():
    name, packages = newest.choose(debian.parse(PACKAGES))
    assert name == "python3.15"
    assert [package["SHA256"] for package in packages] == ["1a", "2a", "5a", "3a"]


def test_an_index_without_an_interpreter_is_a_clear_error():
    with pytest.raises(report.Trouble, match="has no Python 3"):
        newest.choose(debian.parse("Package: libc6\n"))


def test_what_debian_has_not_signed_is_not_used(monkeypatch, capsys):
    monkeypatch.setattr(fetch, "read", lambda _url: b"-----BEGIN PGP SIGNED MESSAGE-----\n\nnonsense")
    assert newest.run([], REPOSITORY) == newest.STATUS_UNAVAILABLE
    assert "cannot be had" in capsys.readouterr().err


def test_an_index_that_is_not_the_signed_one_is_not_used(monkeypatch):
    monkeypatch.setattr(fetch, "read", lambda _url: b"content")
    monkeypatch.setattr(debian, "verified", lambda *_: " 0123 ")
    with pytest.raises(report.Trouble, match="not the file that was signed"):
        debian.read_index("sid")


# -- packages of the machine's own distribution ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("distribution", "is_root", "has_sudo", "advice"),
    [("fedora", True, True, "install this and that"), ("debian", False, False, "let root run 'apt-get install a b'")],
)
def test_what_cannot_be_installed_says_who_can_do_it(monkeypatch, distribution, is_root, has_sudo, advice):
    monkeypatch.setattr(apt, "distribution", lambda: distribution)
    monkeypatch.setattr(apt, "is_root", lambda: is_root)
    monkeypatch.setattr(apt, "sudo_works", lambda: has_sudo)
    monkeypatch.setattr(apt.subprocess, "run", lambda *_, **__: pytest.fail("nothing may be run"))
    with pytest.raises(report.Trouble, match=advice):
        apt.install(("a", "b"), "something", "this and that")


def test_packages_are_installed_by_whoever_may(monkeypatch, tmp_path):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 100 if "b" in command else 0, "", "E: no such package")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(apt, "distribution", lambda: "ubuntu")
    monkeypatch.setattr(apt, "is_root", lambda: False)
    monkeypatch.setattr(apt, "sudo_works", lambda: True)
    monkeypatch.setattr(apt.subprocess, "run", run)
    apt.install(("a",), "something", "it")
    assert [command[:4] for command in commands] == [
        ["sudo", "-n", "apt-get", "update"],
        ["sudo", "-n", "apt-get", "install"],
    ]
    with pytest.raises(report.Trouble, match="no such package"):
        apt.install(("b",), "something", "it")
