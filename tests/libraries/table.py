"""Which libraries' own tests are run on our loop, and what is known of the outcome. Data only.

A library is tested as it is installed, from its wheel; of its source distribution, the package's own folder is removed,
so that only the tests come from there. Where they lie in that folder, all of it is the source distribution's. What it
needs is pinned in locks/NAME.txt, which `tools/dev.py libraries --lock NAME` makes from the row here.
"""

from typing import NamedTuple

# The Python that the locks, the results and the page are for.
PYTHON = "3.13"


class Library(NamedTuple):
    """One library.

    Attributes:
        sha256: of the source distribution.
        source: the folder in it that must not shadow the installed package; "" if the tests are in there.
        requirements: what its tests need beside the library itself; extras are named here too.
        arguments: of pytest. They come after whatever the library's own configuration says.
        excluded: what is run on neither loop, and why. Node ids, or what they begin with up to "::" or "[".
        as_proactor: whether asyncio.ProactorEventLoop is our loop then. Where a library asks whether its loop is one,
            it must not be: users' loops are not.
        needs: a variable of the environment that says where a server for the tests runs; "" if they need none.
        test_limit_s: a test that takes longer hangs.
        limit_s: for all of them, on one loop.
        ours: tests that fail on our loop only, as in `excluded`, and the cause.
        stdlib: tests that fail on the standard library's loop only, and the cause.
        both: why tests fail on both; a remark for the page.
    """

    name: str
    version: str
    sha256: str
    source: str
    requirements: tuple[str, ...]
    arguments: tuple[str, ...]
    excluded: dict[str, str] = {}
    as_proactor: bool = True
    needs: str = ""
    test_limit_s: float = 30
    limit_s: float = 600
    ours: dict[str, str] = {}
    stdlib: dict[str, str] = {}
    both: str = ""


# Libraries that are not run, and why.
LEFT_OUT = {
    "websockets": "its source distributions leave out the tests that make loops; the newest has none at all",
    "aiocoap": "its source distribution leaves out the modules that its tests import, `common` and `fixtures`",
    "aioquic": 'its tests want "localhost" to be ::1, and wait for ever, on either loop, where it is not',
}

LIBRARIES = (
    Library(
        "janus",
        "2.0.0",
        "0970f38e0e725400496c834a368a67ee551dc3b5ad0a257e132f5b46f2e77770",
        "janus",
        ("pytest", "pytest-asyncio", "pytest-codspeed"),
        ("-o", "addopts=", "tests"),
        limit_s=1800,
    ),
    Library(
        "aiosqlite",
        "0.22.1",
        "043e0bd78d32888c0a9ca90fc788b38796843360c855a7262a532813133a0650",
        "",
        ("pytest",),
        ("aiosqlite/tests/smoke.py",),
    ),
    Library(
        "aiosmtpd",
        "1.4.6",
        "5a811826e1a5a06c25ebc3e6c4a704613eb9a1bcf6b78428fbe865f4f6c9a4b8",
        "",
        ("pytest", "pytest-asyncio", "pytest-mock", "setuptools<80.9"),
        ("-o", "addopts=", "-o", "asyncio_default_fixture_loop_scope=function", "aiosmtpd/tests"),
    ),
    Library(
        "pytest-asyncio",
        "1.5.0",
        "92c8fa83ca419fd0d4bd6a34df6520dae435841d3733c319343249492adf37f7",
        "pytest_asyncio",
        ("pytest", "hypothesis"),
        ("-o", "addopts=", "tests"),
        limit_s=1800,
    ),
    # Their suites use blockbuster where it is installed; it needs forbiddenfruit, which has no wheel.
    Library(
        "anyio",
        "4.16.0",
        "59bb03251907983d1603d27c3087ddb1e93299ea2163adcdba37899a4fb12ffb",
        "src",
        ("anyio[trio]", "hypothesis", "psutil", "pytest", "pytest-mock", "pytest-timeout", "trustme", "truststore"),
        # trio has a loop of its own, and so has winloop, which is not installed; "eager" is every test again with another
        # factory of tasks. Names have no IPv6 address under Wine, which is found out slowly. The other modules are about
        # files, threads, tasks, imports and the plug-in for pytest.
        (
            "-k",
            "not trio and not winloop and not eager and not ipv6 and not dualstack",
            "tests/streams/test_tls.py",
            "tests/test_eventloop.py",
            "tests/test_signals.py",
            "tests/test_sockets.py",
            "tests/test_subprocesses.py",
            "tests/test_to_process.py",
        ),
        excluded=dict.fromkeys(
            ("tests/test_sockets.py::TestUDPSocket", "tests/test_sockets.py::TestConnectedUDPSocket"),
            "most wait for ever on the standard library's loop, which takes hours; on ours those over IPv4 pass",
        ),
        limit_s=1800,
        ours={
            "tests/test_sockets.py::TestTCPStream::test_receive_exception_cause_preserved": (
                "the reset is there before our first receive, which follows what waits for the connection; Wine 8 then "
                "answers end of file (docs/wine.md)"
            )
        },
        stdlib={
            "tests/test_sockets.py::TestTCPStream::test_happy_eyeballs_refcycles": (
                "its future of a failed connect is part of a cycle"
            ),
            "tests/test_sockets.py::test_deprecated_wait_socket": (
                "it has no `add_reader`; anyio's thread with a selector meets a socket that is closed"
            ),
        },
        both="names without an IPv6 address, where two listeners are expected; faults of TLS that are not noticed",
    ),
    Library(
        "tornado",
        "6.6.1",
        "28e6311402af59c8b02e3fa0f5e7d8eb465b25081381803b127d97e6a4395d5a",
        "",
        ("pytest", "hypothesis"),
        # Its own runner silences this logger.
        ("-o", "python_files=*_test.py", "--log-disable=tornado.access", "tornado/test"),
        as_proactor=False,
        both="two, which expect one log line and get another, or none",
    ),
    Library(
        "uvicorn",
        "0.54.0",
        "a2e33cbfaa0306f8e6b0c13e0cb89d7d7a2da3e62b90c66e18c33d9807b28620",
        "uvicorn",
        (
            "uvicorn[standard]",
            "a2wsgi",
            "cryptography",
            "httpx2",
            "pytest",
            "pytest-codspeed",
            "pytest-mock",
            "trustme",
            "wsproto",
            "zttp",
        ),
        ("-o", "addopts=", "tests", "--ignore=tests/benchmarks"),
        excluded={
            "tests/supervisors/test_multiprocess.py": (
                "its loops are in other processes, which the substitution does not reach; most wait for ever under Wine"
            )
        },
        both="`os.kill(pid, signal.CTRL_C_EVENT)`, which is refused under Wine",
    ),
    Library(
        "aiosmtplib",
        "5.1.3",
        "ac2b418d3260ba62d9cfd0fe7359726e9dc009a4e8e8d9909fdfae332f522a7c",
        "src",
        ("aiosmtpd", "hypothesis", "pytest", "pytest-asyncio", "trustme"),
        ("tests",),
        both="Unix sockets, which no loop has on Windows; one gets the goodbye of a server that closes where it expects the end",
    ),
    Library(
        "httpx",
        "0.28.1",
        "75e98c5f16b0f35b567856f597f06ff2270a374470a5c2392242528e3e3e42fc",
        "httpx",
        ("httpx[brotli,cli,http2,socks,zstd]", "chardet", "pytest", "trio", "trustme", "uvicorn"),
        ("-k", "not trio", "tests"),
        both="names that need a DNS server, and newer versions of chardet, click and uvicorn than it was released with",
    ),
    Library(
        "hypercorn",
        "0.18.0",
        "d63267548939c46b0247dc8e5b45a9947590e35e64ee73a23c074aa3cf88e9da",
        "src",
        ("httpx", "hypothesis", "mock", "pytest", "pytest-asyncio", "pytest-trio", "trio"),
        ("-o", "addopts=", "-k", "not trio", "tests"),
        both="`os.chown`, Unix sockets and `/tmp`, which Windows has not; one is refused by newer versions of h2",
    ),
    Library(
        "aioftp",
        "0.28.3",
        "f054f3af285b4958621220f04ce755e58907140181e95efa859369091c92d040",
        "src",
        ("async-timeout", "pytest", "pytest-asyncio", "pytest-mock", "siosocks", "trustme"),
        ("-o", "addopts=", "--import-mode=importlib", "tests"),
        excluded={"tests/test_client_side_socks.py": "most of them wait for ever, on the standard library's loop too"},
        both="file errors that Windows or Wine reports with other classes than POSIX, and paths that compare unequal",
    ),
    Library(
        "asyncssh",
        "2.24.1",
        "efcd36e9b35f79873535b06444a7c9b0a3c61d97081b208c7fdd3fd8a40f1eca",
        "asyncssh",
        ("aiofiles", "bcrypt", "ifaddr", "pyOpenSSL", "pytest", "pywin32"),
        ("tests",),
        excluded={
            "tests/test_public_key.py": "it makes no loop, and has tests that take minutes",
            **dict.fromkeys(
                (
                    "tests/test_sftp.py::_TestSFTP::test_sparse_copy",
                    "tests/test_sftp.py::_TestSFTPAsync::test_sparse_copy",
                ),
                "they copy a file of four gigabytes, which is not sparse under Wine",
            ),
        },
        # Many classes make keys of every kind before their first test.
        test_limit_s=60,
        limit_s=1800,
        ours={
            **dict.fromkeys(
                (
                    "tests/test_channel.py::_TestChannel::test_invalid_term_type",
                    "tests/test_channel.py::_TestChannel::test_term_modes_incomplete",
                    "tests/test_connection.py::_TestConnection::test_server_ext_info",
                    "tests/test_connection.py::_TestConnection::test_service_request_before_kex_complete",
                    "tests/test_connection.py::_TestConnection::test_userauth_before_kex_complete",
                ),
                "the server writes why it ends the connection, and aborts it in a callback, which resets it. Our loop runs "
                "a callback that a delivery asks for in the same turn, the standard library's after another look at the "
                "port: by then the client's receive has the bytes. Under Wine, as it seems, the reset overtakes them. "
                "With one look more the tests pass",
            ),
            **dict.fromkeys(
                (
                    "tests/test_sftp.py::_TestSCP",
                    "tests/test_sftp.py::_TestSCPAsync",
                    "tests/test_sftp.py::_TestSCPCoroutine",
                ),
                "the test before cancels a copy and removes the file at once, which Windows refuses while the server has it "
                "open: how many turns later the server closes it is promised by no loop. Alone, the test passes",
            ),
        },
        both="times, modes and links of files, which Wine or Windows has not as POSIX has",
    ),
    Library(
        "aiohttp",
        "3.14.5",
        "5558a7f5a05af9ecf744af91e5baefc436f93c9333e656c27ec253f9a6bbe178",
        "aiohttp",
        (
            "aiohttp[speedups]",
            "coverage",
            "freezegun",
            "isal",
            "proxy.py",
            "pytest",
            "pytest-codspeed",
            "pytest-mock",
            "python-on-whales",
            "re-assert",
            "trustme",
            "zlib-ng",
        ),
        # The modules that make connections. The other ones, of parsers, headers and cookies, have thousands of tests.
        (
            "-o",
            "addopts=",
            # Its configuration has a setting of a plug-in, which is not installed, and makes errors of warnings.
            "-W",
            "ignore::pytest.PytestConfigWarning",
            "-m",
            "not dev_mode and not autobahn and not internal",
            "tests/test_client_functional.py",
            "tests/test_client_ws_functional.py",
            "tests/test_connector.py",
            "tests/test_proxy_functional.py",
            "tests/test_run_app.py",
            "tests/test_web_functional.py",
            "tests/test_web_sendfile_functional.py",
            "tests/test_web_server.py",
            "tests/test_web_websocket_functional.py",
        ),
        limit_s=1800,
        ours={
            "tests/test_web_functional.py::test_upgrade_tail_is_byte_limited": (
                "it wants no receive to bring more than 256 KiB, as asyncio's do; where much comes, ours bring up to 512"
            ),
            "tests/test_web_functional.py::test_post_max_client_size_counts_undecoded_bytes": (
                "where the receives are cut, a part's end is looked for over two chunks, and aiohttp calls a method of its "
                "own that it has deprecated; its tests make an error of the warning"
            ),
        },
        both="a count of open files in `/proc`, which a drive of Wine's shows",
    ),
    Library(
        "pyzmq",
        "27.3.0",
        "bbedb3d1d99babc625f1dd9d7438acefd442b36b75073fd6bc1ef7c0a4b96d56",
        "zmq",
        ("pytest", "pytest-asyncio", "tornado"),
        ("-o", "addopts=", "tests/test_asyncio.py", "tests/test_ioloop.py", "tests/test_zmqstream.py"),
        as_proactor=False,
    ),
    Library(
        "asyncpg",
        "0.32.0",
        "45e64e56714d888330b884aad1dfb363d0bf43fb343e3d1a8968525f3bade478",
        "asyncpg",
        ("distro", "pytest"),
        ("-o", "addopts=", "tests"),
        excluded={"tests/test__sourcecode.py": "it is about how the source is formatted"},
        needs="PGHOST",
        limit_s=1800,
        stdlib={
            "tests/test_pool.py": (
                "the library keeps a future of each connection that was lost, which nobody asks, and which is reported "
                "in whatever test the collector comes to it, on either loop"
            )
        },
        both="servers that tests start by themselves, from a PostgreSQL for Windows, which is not there",
    ),
)


def covers(pattern: str, test: str) -> bool:
    """Whether a node id is the one named, or lies below it."""
    return test == pattern or test.startswith((f"{pattern}::", f"{pattern}["))


def reason(patterns: dict[str, str], test: str) -> str | None:
    """What is said of a test."""
    return next((why for pattern, why in patterns.items() if covers(pattern, test)), None)
